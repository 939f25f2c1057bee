//! A part whose rows can be read from Parquet: whether they can, and how positions in its CSV and its rows belong together.

use std::sync::Arc;

use super::spec::GroupBy;
use crate::{
    engine::{
        parquet::{
            column_reader::{ColumnRef, PartColumns},
            wide::is_wide,
        },
        storage::{Store, reader::Reader},
    },
    error::Error,
    limits::GROUP_PARQUET_COLUMNS_MAX,
    model::{
        format::Format,
        part::Part,
        schema::{ColumnType, Schema},
    },
};

/// A part whose rows are read from Parquet.
pub(super) struct ColumnarPart {
    pub(super) part: Arc<Part>,
    pub(super) file: Reader,
    pub(super) schema: Arc<Schema>,
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
        let has_type = |names: &[String], accepts: fn(ColumnType) -> bool| {
            names.iter().all(|name| schema.find(name).is_some_and(|(_, column_type)| accepts(column_type)))
        };
        let columns = spec.by().len() + spec.sum().len();
        if part.packed.is_some()
            || part.csv_bytes < csv_bytes_min
            || is_wide(part)
            || columns > GROUP_PARQUET_COLUMNS_MAX
            || !has_type(spec.sum(), |column_type| column_type == ColumnType::Int64)
            || !has_type(spec.by(), ColumnType::keeps_texts)
        {
            return Ok(None);
        }
        let file = store.open_part(part, Format::Parquet)?;
        let open = PartColumns::open(&file, part)?;
        for column in columns_of(schema, spec.by()) {
            if !open.is_coded(&column)? {
                return Ok(None);
            }
        }
        drop(open);
        Ok(Some(Self { part: Arc::clone(part), file, schema: Arc::clone(schema) }))
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

/// The columns of these names.
pub(super) fn columns_of<'n>(schema: &Schema, names: &'n [String]) -> Vec<ColumnRef<'n>> {
    names.iter().filter_map(|name| ColumnRef::find(schema, name)).collect()
}
