//! The schemas that parts share, each with figures over the parts of the table that have it.
//!
//! The figures of the table's columns are sums over schemas, so a part of 4,096 columns changes one short list of numbers.

use std::sync::Arc;

use crate::model::{
    part::{ColumnFigures, PartFigures},
    schema::Schema,
};

/// A schema, and what is known of the parts that have it.
pub struct KeptSchema {
    pub(super) schema: Arc<Schema>,
    /// Sums over the parts of the table.
    pub(super) figures: SchemaFigures,
    /// Which columns have values.
    pub(super) values: ColumnValues,
}

impl KeptSchema {
    /// Without parts. The memory for all columns is allocated here.
    pub fn new(schema: &Arc<Schema>) -> Self {
        let values = ColumnValues { parts: 0, with_values: vec![0; schema.columns_count()] };
        Self { schema: Arc::clone(schema), figures: SchemaFigures::new(schema), values }
    }
}

/// Which columns have values, over the parts with one schema: those of the table, and those that can be restored.
pub(super) struct ColumnValues {
    /// The parts.
    parts: u32,
    /// In how many of them each column has values, in the order of the file.
    with_values: Vec<u32>,
}

impl ColumnValues {
    /// Adds a part.
    pub(super) fn add(&mut self, rows: u64, part: &PartFigures) {
        self.parts += 1;
        for (count, figures) in self.with_values.iter_mut().zip(&part.figures) {
            *count += u32::from(figures.nulls < rows);
        }
    }

    /// Adds the parts of a segment: in how many of them each column has values.
    pub(super) fn add_all(&mut self, parts: u64, with_values: &[u64]) {
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        self.parts = self.parts.saturating_add(count(parts));
        for (sum, with_values) in self.with_values.iter_mut().zip(with_values) {
            *sum = sum.saturating_add(count(*with_values));
        }
    }

    /// The reverse of [`Self::add`]. `part` is `None` if its receipt cannot be read: then its values count as long as a part has the schema.
    pub(super) fn remove(&mut self, rows: u64, part: Option<&PartFigures>) {
        self.parts = self.parts.saturating_sub(1);
        if self.parts == 0 {
            self.with_values.fill(0);
            return;
        }
        let figures = part.into_iter().flat_map(|part| &part.figures);
        for (count, figures) in self.with_values.iter_mut().zip(figures) {
            *count = count.saturating_sub(u32::from(figures.nulls < rows));
        }
    }

    /// Whether each column has values; nothing without parts.
    pub(super) fn have_values(&self) -> impl Iterator<Item = bool> {
        self.with_values.iter().filter(|_| self.parts > 0).map(|count| *count > 0)
    }
}

/// Sums over the parts of the table that have one schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaFigures {
    /// The parts.
    pub parts: u64,
    /// Parts whose receipts do not say how many bytes each column has.
    pub parts_without_bytes: u64,
    /// Data rows.
    pub rows: u64,
    /// A part was removed whose receipt could not be read, so `columns` still has its empty cells and bytes.
    pub has_unknown: bool,
    /// Each column, in the order of the file.
    pub columns: Vec<ColumnFigures>,
}

impl SchemaFigures {
    /// No parts. The memory for all columns is allocated here.
    pub fn new(schema: &Schema) -> Self {
        Self { columns: vec![ColumnFigures::default(); schema.columns_count()], ..Self::default() }
    }

    /// Adds a part. Returns whether it is the first.
    pub(super) fn add(&mut self, rows: u64, part: &PartFigures) -> bool {
        self.parts += 1;
        self.parts_without_bytes += u64::from(!part.has_bytes);
        self.rows = self.rows.wrapping_add(rows);
        for (sum, figures) in self.columns.iter_mut().zip(&part.figures) {
            sum.nulls = sum.nulls.wrapping_add(figures.nulls);
            sum.parquet_bytes = sum.parquet_bytes.wrapping_add(figures.parquet_bytes);
        }
        self.parts == 1
    }

    /// Adds the parts of a segment that have this schema. Returns whether they are the first.
    pub(super) fn add_all(&mut self, other: &Self) -> bool {
        let is_first = self.parts == 0 && other.parts > 0;
        self.parts += other.parts;
        self.parts_without_bytes += other.parts_without_bytes;
        self.rows = self.rows.wrapping_add(other.rows);
        for (sum, figures) in self.columns.iter_mut().zip(&other.columns) {
            sum.nulls = sum.nulls.wrapping_add(figures.nulls);
            sum.parquet_bytes = sum.parquet_bytes.wrapping_add(figures.parquet_bytes);
        }
        is_first
    }

    /// The reverse of [`Self::add`]. `part` is `None` if its receipt cannot be read. Returns whether it was the last.
    pub(super) fn subtract(&mut self, rows: u64, part: Option<&PartFigures>) -> bool {
        self.parts = self.parts.saturating_sub(1);
        if self.parts == 0 {
            self.clear();
            return true;
        }
        self.rows = self.rows.wrapping_sub(rows);
        let Some(part) = part else {
            self.has_unknown = true;
            return false;
        };
        self.parts_without_bytes -= u64::from(!part.has_bytes);
        for (sum, figures) in self.columns.iter_mut().zip(&part.figures) {
            sum.nulls = sum.nulls.wrapping_sub(figures.nulls);
            sum.parquet_bytes = sum.parquet_bytes.wrapping_sub(figures.parquet_bytes);
        }
        false
    }

    fn clear(&mut self) {
        self.columns.fill(ColumnFigures::default());
        *self = Self { columns: std::mem::take(&mut self.columns), ..Self::default() };
    }

    pub(super) fn copy_from(&mut self, other: &Self) {
        self.columns.clear();
        self.columns.extend_from_slice(&other.columns);
        *self = Self { columns: std::mem::take(&mut self.columns), ..*other };
    }
}
