//! A part whose rows can be read from Parquet: whether they can, and how positions in its CSV and its rows belong together.

use std::{ops::Range, sync::Arc};

use super::spec::GroupBy;
use crate::{
    engine::{
        parquet::{
            column_reader::{ColumnRef, PartColumns},
            wide::is_wide,
        },
        parts::segment_rows::{FileUse, SegmentRows},
        storage::{Store, reader::Reader},
    },
    error::Error,
    limits::{GROUP_PARQUET_COLUMNS_MAX, KIB},
    model::{
        format::Format,
        part::Part,
        schema::{ColumnType, Schema},
    },
};

/// What a part of a segment takes to be read from CSV, besides its bytes, in bytes of CSV.
const PACKED_PART_BYTES: u64 = 32 * KIB as u64;

/// A part whose rows are read from Parquet, or a Parquet file of a segment, which is read as if it were one part.
pub(super) struct ColumnarPart {
    pub(super) part: Arc<Part>,
    pub(super) file: Reader,
    pub(super) schema: Arc<Schema>,
    /// Rows that are passed over, in ascending order.
    pub(super) removed: Arc<[Range<u64>]>,
}

impl ColumnarPart {
    /// Opens a part that has all columns; `None` if its CSV has to be read, as for a CSV of fewer than `csv_bytes_min` bytes.
    pub(super) fn open(
        store: &Store,
        part: &Arc<Part>,
        schema: &Arc<Schema>,
        spec: &GroupBy,
        csv_bytes_min: u64,
    ) -> Result<Option<Self>, Error> {
        if part.packed.is_some() || part.csv_bytes < csv_bytes_min || !may_be_columnar(part, schema, spec) {
            return Ok(None);
        }
        let file = store.open_part(part, Format::Parquet)?;
        if !is_coded(&file, part, schema, spec)? {
            return Ok(None);
        }
        Ok(Some(Self { part: Arc::clone(part), file, schema: Arc::clone(schema), removed: Arc::from([]) }))
    }

    /// Opens a file of a segment, whose [`use_of_segment`] is [`FileUse::Parquet`].
    pub(super) fn of_segment(store: &Store, rows: &SegmentRows) -> Result<Self, Error> {
        let (part, file, schema) = (Arc::new(part_of(rows)?), rows.open(store)?, rows.schema(store)?);
        Ok(Self { part, file, schema, removed: Arc::clone(&rows.removed) })
    }

    /// The first row, counted from 0, whose offset is at least this.
    pub(super) fn row_at(&self, offset: u64) -> u64 {
        let rows = u128::from(offset) * u128::from(self.part.rows);
        u64::try_from(rows.div_ceil(u128::from(self.part.csv_bytes))).unwrap_or(u64::MAX)
    }

    /// The offset in the CSV at which a row counts as read: every row has the same share of the bytes. It grows with each
    /// row, because no row is shorter than a byte.
    pub(super) fn offset_of(&self, row: u64) -> u64 {
        let bytes = u128::from(row) * u128::from(self.part.csv_bytes);
        u64::try_from(bytes / u128::from(self.part.rows.max(1))).unwrap_or(u64::MAX)
    }
}

/// What is read of a segment's Parquet file: as of a part with so many bytes of CSV.
pub(super) fn use_of_segment(
    store: &Store,
    rows: &SegmentRows,
    schema: &Schema,
    spec: &GroupBy,
    csv_bytes_min: u64,
) -> Result<FileUse, Error> {
    if spec.by().iter().chain(spec.sum()).any(|name| schema.find(name).is_none()) {
        return Ok(FileUse::Nothing);
    }
    let (part, parts_count) = (part_of(rows)?, rows.parquet()?.parts);
    let cost = part.csv_bytes.saturating_add(parts_count.saturating_mul(PACKED_PART_BYTES));
    if cost < csv_bytes_min || !may_be_columnar(&part, schema, spec) {
        return Ok(FileUse::Csv);
    }
    Ok(if is_coded(&rows.open(store)?, &part, schema, spec)? { FileUse::Parquet } else { FileUse::Csv })
}

/// A segment's Parquet file as if it were that of one part, with a share of the segment's CSV.
pub(super) fn part_of(rows: &SegmentRows) -> Result<Part, Error> {
    let all_rows: u64 = rows.segment.files.iter().map(|file| file.rows).fold(0, u64::saturating_add);
    let part = rows.part()?;
    let share = u128::from(rows.segment.csv_bytes) * u128::from(part.rows) / u128::from(all_rows.max(1));
    // No row is shorter than a byte.
    let csv_bytes = u64::try_from(share).unwrap_or(u64::MAX).max(part.rows).max(1);
    Ok(Part { csv_bytes, ..part })
}

/// Whether the types of the columns allow it, and there is memory for the columns.
fn may_be_columnar(part: &Part, schema: &Schema, spec: &GroupBy) -> bool {
    let has_type = |names: &[String], accepts: fn(ColumnType) -> bool| {
        names.iter().all(|name| schema.find(name).is_some_and(|(_, column_type)| accepts(column_type)))
    };
    spec.by().len() + spec.sum().len() <= GROUP_PARQUET_COLUMNS_MAX
        && !is_wide(part)
        && has_type(spec.sum(), |column_type| column_type == ColumnType::Int64)
        && has_type(spec.by(), ColumnType::keeps_texts)
}

/// Whether the columns to group by are in dictionaries.
fn is_coded(file: &Reader, part: &Part, schema: &Schema, spec: &GroupBy) -> Result<bool, Error> {
    let open = PartColumns::open(file, part)?;
    for column in columns_of(schema, spec.by()) {
        if !open.is_coded(&column)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The columns of these names.
pub(super) fn columns_of<'n>(schema: &Schema, names: &'n [String]) -> Vec<ColumnRef<'n>> {
    names.iter().filter_map(|name| ColumnRef::find(schema, name)).collect()
}
