//! The registry: the parts of the table, in memory, under the lock.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};

use super::{
    column_types::{ColumnNames, TypeSets},
    missing_parts::MissingParts,
    removed_parts::{Removal, RemovedParts},
    schemas::{KeptSchema, SchemaFigures},
    upload_keys::PartKeys,
};
use crate::{
    limits::{PART_BYTES, SCHEMA_BYTES_MAX},
    model::{
        packed::Segment,
        part::{Part, PartFigures, PartId},
        schema::{Schema, TypedName},
    },
};

/// Schemas that are looked at while the lock is held.
const SCHEMAS_STEP: usize = 64;

/// All parts of the table in the order of their ids. Parts with the same header share one copy of it. Of the parts in segments
/// it has only their number and those that were removed; their entries are read from the segments' indexes.
pub struct Registry {
    /// The parts that have their own files.
    pub(super) parts: OrdMap<PartId, Arc<Part>>,
    /// The segments, by the smallest number that each covers. No two cover the same number.
    pub(super) segments: OrdMap<PartId, Arc<Segment>>,
    /// How many parts of the table are in segments.
    pub(super) packed: usize,
    /// Parts that are in segments and were removed from the table.
    pub(super) packed_removed: OrdSet<PartId>,
    /// Those of them that cannot be restored. Nothing else is known of them; the others are also in `removed`.
    pub(super) packed_purged: OrdSet<PartId>,
    /// Sums of [`Segment::weight`].
    pub(super) segments_weight: usize,
    /// How many of the parts that have their own files can be packed.
    pub(super) packable: usize,
    /// Whether the last look found nothing to pack, or it failed.
    pub(super) is_packing_stuck: bool,
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
    /// How many small parts keep their own files.
    pub(super) pack_above: usize,
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

/// A part, the two counts of its `Arc`, and its entry in a node of the map that may be half empty.
const _: () = assert!(size_of::<Part>() + 16 + 2 * 16 <= PART_BYTES);

/// The parts of the table at one moment.
#[derive(Clone)]
pub struct Snapshot {
    /// The parts that have their own files.
    pub parts: OrdMap<PartId, Arc<Part>>,
    /// The segments, by the smallest number that each covers.
    pub segments: OrdMap<PartId, Arc<Segment>>,
    /// Parts that are in segments and were removed from the table.
    pub removed: OrdSet<PartId>,
    len: usize,
}

impl Snapshot {
    /// These parts, as a part of the table.
    pub fn of(
        parts: OrdMap<PartId, Arc<Part>>,
        segments: OrdMap<PartId, Arc<Segment>>,
        removed: OrdSet<PartId>,
    ) -> Self {
        let packed: u64 = segments.values().map(|segment| segment.parts).sum();
        let len = parts.len() + usize::try_from(packed).unwrap_or(usize::MAX).saturating_sub(removed.len());
        Self { parts, segments, removed, len }
    }

    /// Whether these are copies of one list, with no change between them.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.parts.ptr_eq(&other.parts) && self.segments.ptr_eq(&other.segments) && self.removed.ptr_eq(&other.removed)
    }

    /// The number of parts.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no parts.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The greatest number that a part may have; `None` if there are no parts.
    pub fn last(&self) -> Option<PartId> {
        let part = self.parts.get_max().map(|(id, _)| *id);
        let segment = self.segments.get_max().map(|(_, segment)| segment.id.last);
        part.max(segment)
    }
}

/// Where a part of the table is.
pub enum Located {
    /// It has its own files.
    Part(Arc<Part>),
    /// It is in this segment, if that has it: a segment does not have all numbers that it covers.
    Segment(Arc<Segment>),
}

/// What a segment found at start says of one of its Parquet files, besides the figures of its columns.
pub struct PackedFigures {
    /// Bytes of the Parquet files that its parts had.
    pub parquet_bytes: u64,
    /// Names and types of its columns, if the registry does not keep their schema.
    pub names: Vec<TypedName>,
    /// In how many of its parts each column has values.
    pub with_values: Vec<u64>,
}

impl Registry {
    /// A copy of the current list of parts, made in constant time.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            parts: self.parts.clone(),
            segments: self.segments.clone(),
            removed: self.packed_removed.clone(),
            len: self.len(),
        }
    }

    /// The number of parts.
    pub fn len(&self) -> usize {
        self.parts.len() + self.packed
    }

    /// Whether there are no parts.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many parts have their own files.
    pub fn unpacked(&self) -> usize {
        self.parts.len()
    }

    /// Whether a segment has parts with idempotency keys.
    pub fn has_packed_keys(&self) -> bool {
        self.segments.values().any(|segment| segment.keys.0 > 0)
    }

    /// How many segments there are.
    pub fn segments_count(&self) -> usize {
        self.segments.len()
    }

    /// Adds a segment that was found at start. `figures` are those of its Parquet files, in their order. Its numbers and all
    /// smaller ones are not used again.
    pub fn restore_segment(&mut self, segment: Arc<Segment>, figures: &[(PackedFigures, SchemaFigures)]) {
        self.skip_to(segment.id.last);
        self.packed += usize::try_from(segment.parts).unwrap_or(usize::MAX);
        for ((packed, figures), file) in figures.iter().zip(&segment.files) {
            self.totals.rows = self.totals.rows.wrapping_add(figures.rows);
            self.totals.parquet_bytes = self.totals.parquet_bytes.wrapping_add(packed.parquet_bytes);
            let Some(schema) = &file.schema else {
                self.without_schema += usize::try_from(file.parts).unwrap_or(usize::MAX);
                for (column, with_values) in packed.names.iter().zip(&packed.with_values) {
                    self.column_names.note_unshared(*column, *with_values > 0);
                }
                for _part in 0..file.parts {
                    self.column_names.add(packed.names.iter().map(|column| column.hash));
                }
                continue;
            };
            if let Some(kept) = self.schemas.get_mut(&schema.hash()) {
                kept.values.add_all(file.parts, &packed.with_values);
                if kept.figures.add_all(figures) {
                    self.column_names.add(schema.name_hashes().iter().copied());
                }
            }
        }
        self.totals.csv_bytes = self.totals.csv_bytes.wrapping_add(segment.csv_bytes);
        self.add_segment(segment);
    }

    pub(super) fn add_own(&mut self, part: Arc<Part>) {
        self.packable += usize::from(part.is_packable());
        self.parts.insert(part.id, part);
    }

    pub(super) fn take_own(&mut self, id: PartId) -> Option<Arc<Part>> {
        let part = self.parts.remove(&id)?;
        self.packable -= usize::from(part.is_packable());
        Some(part)
    }

    /// Removes a part of a segment from the table. The part is without its segment, which may be replaced meanwhile. `columns` is
    /// `None` if its receipt cannot be read. Returns whether the table had it.
    pub fn remove_packed(&mut self, part: Arc<Part>, columns: Option<&PartFigures>, removal: Removal) -> bool {
        if self.packed_removed.contains(&part.id) {
            return false;
        }
        self.packed_removed.insert(part.id);
        self.packed -= 1;
        self.uncount(&part, columns);
        if removal == Removal::Purged {
            self.forget_types(&part, columns);
            self.packed_purged.insert(part.id);
        } else {
            self.removed.insert_packed(part, removal);
        }
        true
    }

    /// Adds a part with a reserved id. Returns whether it makes the table nearly full.
    pub fn insert(&mut self, part: Arc<Part>, columns: &PartFigures) -> bool {
        self.release();
        self.keys.insert(part.key_hash);
        self.note_types(&part, columns);
        self.count(&part, columns);
        self.add_own(part);
        self.taken() == self.warning_len()
    }

    /// Adds a part that was found at start. Its id and all smaller ones are not used again.
    pub fn restore(&mut self, part: Arc<Part>, columns: &PartFigures) {
        self.skip_to(part.id);
        self.keys.insert(part.key_hash);
        self.note_types(&part, columns);
        self.count(&part, columns);
        self.unchecked += usize::from(part.checks.is_none());
        self.add_own(part);
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
        let Some(part) = self.take_own(id) else { return false };
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
        let is_packed = self.removed.is_packed(id);
        if let Some(part) = self.removed.remove(id) {
            self.count(&part, columns);
            if is_packed {
                self.packed_removed.remove(&id);
                self.packed += 1;
                return;
            }
            self.unchecked += usize::from(part.checks.is_none());
            self.add_own(part);
        }
    }

    /// Notes that a removed part cannot be restored any more. `columns` is `None` if its receipt cannot be read.
    pub fn purge(&mut self, id: PartId, columns: Option<&PartFigures>) {
        let is_packed = self.removed.is_packed(id);
        if let Some(part) = self.removed.remove(id) {
            self.forget_types(&part, columns);
            if is_packed {
                self.packed_purged.insert(id);
                return;
            }
            self.keys.remove(part.key_hash);
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

    /// The first part after `after` that has its own files.
    pub fn next_unpacked(&self, after: Option<PartId>) -> Option<Arc<Part>> {
        let first = after.map_or(PartId::FIRST, PartId::next);
        self.parts.range(first..).next().map(|(_, part)| Arc::clone(part))
    }

    /// A part of the table, if it has its own files; or the segment in which it is, if it is in the table.
    pub fn locate(&self, id: PartId) -> Option<Located> {
        if let Some(part) = self.parts.get(&id) {
            return Some(Located::Part(Arc::clone(part)));
        }
        let (_, segment) = self.segments.get_prev(&id)?;
        let is_there = segment.id.covers(id) && !self.packed_removed.contains(&id);
        is_there.then(|| Located::Segment(Arc::clone(segment)))
    }

    /// The segment that covers this number, whether it has the part or not.
    pub fn segment_of(&self, id: PartId) -> Option<Arc<Segment>> {
        let (_, segment) = self.segments.get_prev(&id)?;
        segment.id.covers(id).then(|| Arc::clone(segment))
    }

    /// Whether a part is in the table and has its own files.
    pub fn contains_unpacked(&self, id: PartId) -> bool {
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
            self.packable -= usize::from(old.is_packable());
            self.packable += usize::from(part.is_packable());
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

    /// Adds the types that columns have in the next 64 schemas after one of them, counting all parts, and removed ones
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
