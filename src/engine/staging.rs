//! What a file is between its rows and its place in the table: converted, then staged, then in the table.
//!
//! Nothing here reads a stream or waits; all of it runs in slices on workers, but for taking the place.

use std::sync::Arc;

use chrono::{SecondsFormat, Utc};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    checksums::to_hex,
    convert::BatchBuilder,
    csv::{Row, Rows},
    integers::Stop,
    parquet::{Layout, PartWriter, Written},
    part::{Column, FORMAT_VERSION, Part, PartId, Receipt, ReceiptChecks, Schema},
    state::Shared,
    store::{Draft, Staged, Store},
};
use crate::error::Error;

/// A file's rows as Parquet, and what its receipt says of them.
pub struct Converted {
    /// The file.
    pub parquet: Written,
    /// With their types.
    pub columns: Vec<Column>,
    /// Data rows.
    pub rows: u64,
}

/// A part that is in place, and not in the table yet.
pub(super) struct StagedPart {
    /// None if there is nothing left to do with them.
    pub(super) files: Option<Staged>,
    pub(super) receipt: Receipt,
    pub(super) schema: Schema,
    pub(super) place: PartPlace,
}

/// A place in the table. It is free again when it is dropped, unless it was taken.
pub(super) struct PartPlace {
    state: Shared,
    part: PartId,
    taken: bool,
}

impl PartPlace {
    fn reserve(state: &Shared) -> Result<Self, Error> {
        match state.with(|state| state.parts.reserve()) {
            Some(part) => Ok(Self { state: state.clone(), part, taken: false }),
            None => Err(check_room(state).err().unwrap_or(Error::NoPartIdLeft)),
        }
    }

    pub(super) fn take(mut self, part: Arc<Part>) {
        self.taken = true;
        if self.state.with(|state| state.parts.insert(part)) {
            warn_nearly_full(&self.state);
        }
    }
}

impl Drop for PartPlace {
    fn drop(&mut self) {
        if !self.taken {
            self.state.with(|state| state.parts.release());
        }
    }
}

/// Errors: the table is full.
pub(super) fn check_room(state: &Shared) -> Result<(), Error> {
    let (is_full, parts_max) = state.with(|state| (state.parts.is_full(), state.parts.parts_max()));
    if is_full { Err(Error::TooManyParts { parts_max }) } else { Ok(()) }
}

/// Tells the operator that there will be room for no more parts soon.
pub(super) fn warn_nearly_full(state: &Shared) {
    let (parts, parts_max) = state.with(|state| (state.parts.len(), state.parts.parts_max()));
    tracing::warn!(
        parts,
        parts_max,
        "the table is nearly full: uploads are refused once it has as many parts as --parts-max allows"
    );
}

/// Puts a part's files in place; where nothing is synced, its receipt too.
pub(super) fn stage(store: &Arc<Store>, state: &Shared, csv: Draft, converted: Converted) -> Result<StagedPart, Error> {
    let place = PartPlace::reserve(state)?;
    let receipt = receipt_of(place.part, &csv, &converted);
    let staged = store.stage(csv, converted.parquet.draft, &receipt)?;
    let files = if store.is_synced() {
        Some(staged)
    } else {
        staged.commit_unsynced()?;
        None
    };
    let schema = Schema::of(&receipt.columns);
    Ok(StagedPart { files, receipt, schema, place })
}

/// Rows on their way into a Parquet file.
pub(super) struct Conversion {
    store: Arc<Store>,
    columns: Vec<Column>,
    layout: Layout,
    /// Made when the scan begins, on a worker.
    output: Option<(BatchBuilder, PartWriter)>,
    /// Travels with the work: a cancelled upload's slice may still be running.
    pub(super) claim: Option<OwnedSemaphorePermit>,
}

impl Conversion {
    pub(super) fn new(store: &Arc<Store>, columns: Vec<Column>, layout: Layout) -> Self {
        Self { store: Arc::clone(store), columns, layout, output: None, claim: None }
    }

    fn output(&mut self) -> Result<&mut (BatchBuilder, PartWriter), Error> {
        self.output.as_mut().ok_or_else(|| Error::Internal("a row before the header".to_owned()))
    }

    /// The last rows and the footer.
    pub(super) fn finish(mut self, rows: u64) -> Result<Converted, Error> {
        let (batch, writer) = self.output()?;
        writer.write(&batch.take()?)?;
        let Some((_, writer)) = self.output else { return Err(Error::Internal("no header".to_owned())) };
        Ok(Converted { parquet: writer.finish()?, columns: self.columns, rows })
    }
}

impl Rows for Conversion {
    type Error = Error;

    fn header(&mut self, _names: &[String]) -> Result<(), Error> {
        let writer = PartWriter::new(&self.store, &self.columns, self.layout)?;
        self.output = Some((BatchBuilder::new(&self.columns), writer));
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
        let (batch, writer) = self.output()?;
        batch.push(&row)?;
        if batch.is_full() {
            writer.write(&batch.take()?)?;
        }
        Ok(())
    }
}

/// What the path for integers makes of a file, none if it does not take it.
pub(super) fn unless_unsuited<T>(result: Result<T, Stop>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Unsuited) => Ok(None),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn receipt_of(part: PartId, csv: &Draft, converted: &Converted) -> Receipt {
    let Converted { parquet, columns, rows } = converted;
    Receipt {
        format: FORMAT_VERSION,
        part,
        rows: *rows,
        columns: columns.clone(),
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
    }
}
