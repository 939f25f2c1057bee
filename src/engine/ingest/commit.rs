//! The last steps of an upload: reserve a part id, write the receipt, move the files to `parts/`, insert the part into the
//! table. Nothing here reads a stream or waits. Whatever uses files runs on workers.

use std::sync::Arc;

use chrono::{SecondsFormat, Utc};

use crate::{
    engine::{
        parquet::writer::Converted,
        state::{Shared, State, schemas::KeptSchema},
        storage::{Store, commit::PreparedPart, draft::Draft},
    },
    error::Error,
    model::{
        checksum::to_hex,
        dialect::Source,
        idempotency_key::IdempotencyKey,
        part::{FORMAT_VERSION, Part, PartFigures, PartId, Receipt, ReceiptChecks},
        schema::Schema,
    },
};

/// A part whose files are in `parts/`, but which is not in the table yet.
pub(super) struct StagedPart {
    /// The files that still have to be committed. `None` if nothing is synced, because [`stage`] has committed them then.
    pub(super) files: Option<PreparedPart>,
    pub(super) receipt: Receipt,
    pub(super) schema: Schema,
    pub(super) reservation: PartReservation,
}

/// A reserved entry of the table for one part. Dropping it frees the entry, unless the part was inserted.
pub(super) struct PartReservation {
    state: Shared,
    part: PartId,
    inserted: bool,
}

impl PartReservation {
    fn reserve(state: &Shared) -> Result<Self, Error> {
        let part = state.with(|state| {
            let full = full(state);
            state.parts.reserve().ok_or_else(|| full.unwrap_or(Error::NoPartIdLeft))
        })?;
        Ok(Self { state: state.clone(), part, inserted: false })
    }

    pub(super) fn insert(mut self, part: Arc<Part>, columns: &PartFigures) {
        self.inserted = true;
        if self.state.with(|state| state.parts.insert(part, columns)) {
            warn_nearly_full(&self.state);
        }
    }
}

impl Drop for PartReservation {
    fn drop(&mut self) {
        if !self.inserted {
            self.state.with(|state| state.parts.release());
        }
    }
}

/// Checks that the table has room for another part. Errors: it is full.
pub(crate) fn check_room(state: &Shared) -> Result<(), Error> {
    state.with(|state| full(state)).map_or(Ok(()), Err)
}

fn full(state: &State) -> Option<Error> {
    state.parts.is_full().then(|| state.parts.too_many_parts())
}

/// Warns the operator that the table is nearly full.
pub(crate) fn warn_nearly_full(state: &Shared) {
    let (parts, parts_max) = state.with(|state| (state.parts.taken(), state.parts.parts_max()));
    tracing::warn!(
        parts,
        parts_max,
        "the table is nearly full: uploads wait while small parts are packed, and are refused at --parts-max. Parts in segments \
         do not count; removed parts do"
    );
}

/// Moves the files of a part to `parts/`. If nothing is synced, this also commits them, because there is nothing to wait for.
pub(super) fn stage(
    store: &Arc<Store>,
    state: &Shared,
    csv: Draft,
    converted: Converted,
    key: Option<IdempotencyKey>,
    source: Option<Box<Source>>,
) -> Result<StagedPart, Error> {
    let reservation = PartReservation::reserve(state)?;
    let receipt = Receipt { source, ..receipt_of(reservation.part, &csv, &converted, key) };
    let staged = store.prepare_part(csv, converted.parquet.draft, &receipt)?;
    let files = if store.is_synced() {
        Some(staged)
    } else {
        staged.commit_unsynced()?;
        None
    };
    let schema = Schema::of(&receipt.columns);
    Ok(StagedPart { files, receipt, schema, reservation })
}

fn receipt_of(part: PartId, csv: &Draft, converted: &Converted, key: Option<IdempotencyKey>) -> Receipt {
    let Converted { parquet, columns, rows } = converted;
    let mut column_bytes = parquet.column_bytes.clone();
    column_bytes.resize(columns.len(), 0); // without rows there are no row groups
    Receipt {
        format: FORMAT_VERSION,
        part,
        rows: *rows,
        columns: columns.clone(),
        column_bytes,
        csv: csv.info(),
        parquet: parquet.draft.info(),
        row_groups: parquet.row_groups,
        footer_bytes: parquet.footer_bytes,
        uploaded_at: Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
        checks: Some(ReceiptChecks {
            sums_seed: csv.sums_seed().map(to_hex),
            footer_xxh3: to_hex(parquet.draft.tail_checksum()),
            chunks_in_sums: false,
        }),
        idempotency_key: key,
        source: None,
        segment: None,
    }
}

/// The schema of a part as it is shared by all parts that have an equal one. `None` if the table of shared schemas is full.
pub(crate) fn share_schema(state: &Shared, schema: Schema) -> Option<Arc<Schema>> {
    if let Some(kept) = state.with(|state| state.parts.schema(schema.hash())) {
        // Compared outside of the lock, because a schema can be long.
        return (*kept == schema).then_some(kept);
    }
    let schema = Arc::new(schema);
    let kept = KeptSchema::new(&schema); // allocated outside of the lock
    if state.with(|state| state.parts.keep_schema(kept)) {
        return Some(schema);
    }
    // The table is full, or another upload added the schema in the meantime.
    state.with(|state| state.parts.schema(schema.hash())).filter(|kept| **kept == *schema)
}
