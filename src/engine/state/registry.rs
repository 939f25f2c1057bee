//! The registry: the parts of the table, in memory, under the lock.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use imbl::OrdMap;

use super::{
    column_types::{ColumnNames, TypeSets},
    missing_parts::MissingParts,
    removed_parts::{Removal, RemovedParts},
    schemas::{KeptSchema, SchemaFigures},
    upload_keys::PartKeys,
};
use crate::{
    limits::{PARTS_WARNING_PERCENT, SCHEMA_BYTES_MAX},
    model::{
        part::{Part, PartFigures, PartId},
        schema::Schema,
    },
};

/// Schemas that are looked at while the lock is held.
const SCHEMAS_STEP: usize = 64;

/// All parts of the table in the order of their ids. Parts with the same header share one copy of it.
pub struct Registry {
    pub(super) parts: OrdMap<PartId, Arc<Part>>,
    /// Headers by a hash of their names and types. If two different headers have the same hash, the second is not shared,
    /// which only takes more memory.
    pub(super) schemas: BTreeMap<u128, KeptSchema>,
    pub(super) schema_bytes: usize,
    /// How many parts have no schema here, because there was no room for it.
    pub(super) without_schema: usize,
    /// Sums over all parts.
    pub(super) totals: Totals,
    /// The id of the next part. No id is used twice.
    pub(super) next_id: PartId,
    /// How many ids are reserved for parts that are not in `parts` yet.
    pub(super) reserved: usize,
    /// How many parts there may be.
    pub(super) parts_max: usize,
    /// Parts that belong in `parts` but are in quarantine.
    pub(super) missing: MissingParts,
    /// How many parts have format version 1. Such a part is verified completely when it is first used.
    pub(super) unchecked: usize,
    /// The names of the parts' columns.
    pub(super) column_names: ColumnNames,
    /// Parts that were removed and still have files.
    pub(super) removed: RemovedParts,
    /// The hashes of the keys of all parts, and of removed ones that are not purged.
    pub(super) keys: PartKeys,
}

/// Sums over all parts of the table. They wrap instead of panicking: only a forged receipt can have such sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Data rows.
    pub rows: u64,
    /// Bytes of the CSV files.
    pub csv_bytes: u64,
    /// Bytes of the Parquet files.
    pub parquet_bytes: u64,
}

impl Totals {
    fn add(&mut self, part: &Part) {
        self.rows = self.rows.wrapping_add(part.rows);
        self.csv_bytes = self.csv_bytes.wrapping_add(part.csv_bytes);
        self.parquet_bytes = self.parquet_bytes.wrapping_add(part.parquet_bytes);
    }

    fn subtract(&mut self, part: &Part) {
        self.rows = self.rows.wrapping_sub(part.rows);
        self.csv_bytes = self.csv_bytes.wrapping_sub(part.csv_bytes);
        self.parquet_bytes = self.parquet_bytes.wrapping_sub(part.parquet_bytes);
    }
}

impl Registry {
    /// A copy of the current list of parts, made in constant time.
    pub fn snapshot(&self) -> OrdMap<PartId, Arc<Part>> {
        self.parts.clone()
    }

    /// The number of parts.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there are no parts.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Sets how many parts there may be.
    pub fn set_parts_max(&mut self, parts_max: usize) {
        self.parts_max = parts_max;
    }

    /// How many parts there may be.
    pub fn parts_max(&self) -> usize {
        self.parts_max
    }

    /// Whether the table is full, counting the parts that are about to be published, and those that were removed: there is
    /// always room to restore them.
    pub fn is_full(&self) -> bool {
        self.parts.len() + self.removed.len() + self.reserved >= self.parts_max
    }

    /// The number of parts at which the table is nearly full.
    pub fn warning_len(&self) -> usize {
        (self.parts_max * PARTS_WARNING_PERCENT).div_ceil(100)
    }

    /// Reserves an id for a part that is about to be published; `None` if the table is full. `insert` or `release` must
    /// follow.
    pub fn reserve(&mut self) -> Option<PartId> {
        if self.is_full() || self.next_id == PartId::END {
            return None;
        }
        self.reserved += 1;
        let id = self.next_id;
        self.next_id = id.next();
        Some(id)
    }

    /// Gives up a reserved id, which is not used again.
    pub fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Adds a part with a reserved id. Returns whether it makes the table nearly full.
    pub fn insert(&mut self, part: Arc<Part>, columns: &PartFigures) -> bool {
        self.release();
        self.keys.insert(part.key_hash);
        self.note_types(&part, columns);
        self.count(&part, columns);
        self.parts.insert(part.id, part);
        self.parts.len() == self.warning_len()
    }

    /// Adds a part that was found at start. Its id and all smaller ones are not used again.
    pub fn restore(&mut self, part: Arc<Part>, columns: &PartFigures) {
        self.skip_to(part.id);
        self.keys.insert(part.key_hash);
        self.note_types(&part, columns);
        self.count(&part, columns);
        self.unchecked += usize::from(part.checks.is_none());
        self.parts.insert(part.id, part);
    }

    /// Notes the types of a part's columns, for columns of later parts that have no value.
    fn note_types(&mut self, part: &Part, columns: &PartFigures) {
        let Some(schema) = &part.schema else {
            for (column, figures) in columns.names.iter().zip(&columns.figures) {
                self.column_names.note_unshared(*column, figures.nulls < part.rows);
            }
            return;
        };
        if let Some(kept) = self.schemas.get_mut(&schema.hash()) {
            kept.values.add(part.rows, columns);
        }
    }

    /// The reverse, for a part that cannot be restored any more. `columns` is `None` if its receipt cannot be read. The types of
    /// parts without a schema in memory stay.
    fn forget_types(&mut self, part: &Part, columns: Option<&PartFigures>) {
        if let Some(schema) = &part.schema
            && let Some(kept) = self.schemas.get_mut(&schema.hash())
        {
            kept.values.remove(part.rows, columns);
        }
    }

    /// Adds a part to the figures of the table and of its columns.
    fn count(&mut self, part: &Part, columns: &PartFigures) {
        self.totals.add(part);
        let Some(schema) = &part.schema else {
            self.without_schema += 1;
            self.column_names.add(columns.names.iter().map(|column| column.hash));
            return;
        };
        if let Some(kept) = self.schemas.get_mut(&schema.hash())
            && kept.figures.add(part.rows, columns)
        {
            self.column_names.add(schema.name_hashes().iter().copied());
        }
    }

    /// The reverse of [`Self::count`]. `columns` is `None` if the part's receipt cannot be read.
    fn uncount(&mut self, part: &Part, columns: Option<&PartFigures>) {
        self.totals.subtract(part);
        let Some(schema) = &part.schema else {
            self.without_schema -= 1;
            let names = columns.into_iter().flat_map(|columns| &columns.names);
            self.column_names.remove(names.map(|column| column.hash));
            return;
        };
        if let Some(kept) = self.schemas.get_mut(&schema.hash())
            && kept.figures.subtract(part.rows, columns)
        {
            self.column_names.remove(schema.name_hashes().iter().copied());
        }
    }

    /// Removes a part from the table. If it is kept, its key stays in use. `columns` is `None` if the part's receipt cannot be
    /// read. Returns whether the table had it.
    pub fn remove(&mut self, id: PartId, columns: Option<&PartFigures>, removal: Removal) -> bool {
        let Some(part) = self.parts.remove(&id) else { return false };
        self.uncount(&part, columns);
        self.unchecked -= usize::from(part.checks.is_none());
        if removal == Removal::Purged {
            self.keys.remove(part.key_hash);
            self.forget_types(&part, columns);
        }
        self.removed.insert(part, removal);
        true
    }

    /// Adds a removed part that was found at start. Its id and all smaller ones are not used again.
    pub fn restore_removed(&mut self, part: Arc<Part>, columns: &PartFigures, since_s: u32) {
        self.skip_to(part.id);
        self.keys.insert(part.key_hash);
        self.note_types(&part, columns);
        self.removed.insert(part, Removal::Kept { since_s });
    }

    /// Puts a removed part back into the table.
    pub fn put_back(&mut self, id: PartId, columns: &PartFigures) {
        if let Some(part) = self.removed.remove(id) {
            self.count(&part, columns);
            self.unchecked += usize::from(part.checks.is_none());
            self.parts.insert(id, part);
        }
    }

    /// Notes that a removed part cannot be restored any more. `columns` is `None` if its receipt cannot be read.
    pub fn purge(&mut self, id: PartId, columns: Option<&PartFigures>) {
        if let Some(part) = self.removed.remove(id) {
            self.keys.remove(part.key_hash);
            self.forget_types(&part, columns);
            self.removed.insert(part, Removal::Purged);
        }
    }

    /// Notes that the files of a purged part are gone.
    pub fn end_purge(&mut self, id: PartId) {
        self.removed.remove(id);
    }

    /// The parts that were removed and still have files.
    pub fn removed(&self) -> &RemovedParts {
        &self.removed
    }

    /// The hashes of the keys of all parts and of removed ones.
    pub fn keys(&self) -> &PartKeys {
        &self.keys
    }

    /// The first part of the table after `after`.
    pub fn next(&self, after: Option<PartId>) -> Option<Arc<Part>> {
        let first = after.map_or(PartId::FIRST, PartId::next);
        self.parts.range(first..).next().map(|(_, part)| Arc::clone(part))
    }

    /// A part of the table.
    pub fn get(&self, id: PartId) -> Option<Arc<Part>> {
        self.parts.get(&id).cloned()
    }

    /// Whether a part is in the table.
    pub fn contains(&self, id: PartId) -> bool {
        self.parts.contains_key(&id)
    }

    /// The parts in quarantine whose loss no operator has accepted.
    pub fn missing(&self) -> &MissingParts {
        &self.missing
    }

    /// Sets the parts that were found in quarantine.
    pub fn set_missing(&mut self, missing: MissingParts) {
        self.missing = missing;
    }

    /// Notes that the loss of a missing part was accepted. Returns whether the quarantine has to be listed again.
    pub fn accept_loss(&mut self, id: PartId) -> bool {
        self.missing.remove(id)
    }

    /// How many parts have format version 1.
    pub fn unchecked(&self) -> usize {
        self.unchecked
    }

    /// Replaces a part of format version 1, which has been verified, with the same part in the current version.
    pub fn replace(&mut self, part: Arc<Part>) {
        if let Some(old) = self.parts.get_mut(&part.id) {
            self.unchecked -= usize::from(old.checks.is_none() && part.checks.is_some());
            *old = part;
        }
    }

    /// Makes sure that ids up to this one are not used again. [`PartId::END`] is ignored, because no part has that id.
    pub fn skip_to(&mut self, id: PartId) {
        if id != PartId::END {
            self.next_id = self.next_id.max(id.next());
        }
    }

    /// The names of the parts' columns.
    pub fn column_names(&self) -> &ColumnNames {
        &self.column_names
    }

    /// Adds the types that columns have had in parts without a schema in memory. `wanted`: hashes of names, and the index in
    /// `found` of each.
    pub fn add_unshared_types(&self, wanted: &HashMap<u64, usize>, found: &mut [TypeSets]) {
        for (hash, index) in wanted {
            found[*index] = self.column_names.unshared(*hash);
        }
    }

    /// Adds the types that columns have in the next [`SCHEMAS_STEP`] schemas after one of them, counting all parts, and removed ones
    /// that are not purged. Returns the hash of the last schema, if there may be more.
    pub fn add_types(&self, after: Option<u128>, wanted: &HashMap<u64, usize>, found: &mut [TypeSets]) -> Option<u128> {
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (index, (hash, kept)) in self.schemas.range((first, Bound::Unbounded)).take(SCHEMAS_STEP).enumerate() {
            for (column, has_values) in kept.schema.typed_names().zip(kept.values.have_values()) {
                if let Some(index) = wanted.get(&column.hash) {
                    found[*index].add(column.column_type, has_values);
                }
            }
            last = (index + 1 == SCHEMAS_STEP).then_some(*hash);
        }
        last
    }

    /// The header that is kept under a hash.
    pub fn schema(&self, hash: u128) -> Option<Arc<Schema>> {
        self.schemas.get(&hash).map(|kept| Arc::clone(&kept.schema))
    }

    /// Sums over all parts.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many parts have no schema in memory, so that their columns are counted from their receipts.
    pub fn without_schema(&self) -> usize {
        self.without_schema
    }

    /// The schema with the smallest hash after `after` that parts of the table have. Its figures are copied to `figures`, which
    /// has room for the columns of any schema.
    pub fn next_schema(&self, after: Option<u128>, figures: &mut SchemaFigures) -> Option<Arc<Schema>> {
        let first = match after {
            None => 0,
            Some(after) => after.checked_add(1)?,
        };
        let kept = self.schemas.range(first..).map(|(_, kept)| kept).find(|kept| kept.figures.parts > 0)?;
        figures.copy_from(&kept.figures);
        Some(Arc::clone(&kept.schema))
    }

    /// Leaves no room for further schemas.
    #[cfg(all(test, not(feature = "model")))]
    pub(crate) fn fill_schemas(&mut self, bytes: usize) {
        self.schema_bytes = bytes;
    }

    /// Keeps a header if there is room for it, and returns whether it was kept.
    pub fn keep_schema(&mut self, kept: KeptSchema) -> bool {
        let (bytes, hash) = (self.schema_bytes + kept.schema.bytes(), kept.schema.hash());
        let fits = bytes <= SCHEMA_BYTES_MAX && !self.schemas.contains_key(&hash);
        if fits {
            self.schema_bytes = bytes;
            self.schemas.insert(hash, kept);
        }
        fits
    }
}
