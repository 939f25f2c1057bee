//! The schemas that parts share, each with figures over the parts of the table that have it.
//!
//! The figures of the table's columns are sums over schemas, so a part of 4,096 columns changes one short list of numbers.

use std::sync::Arc;

use crate::model::{
    part::{ColumnFigures, PartFigures},
    schema::Schema,
};

/// A schema, and sums over the parts of the table that have it.
pub struct KeptSchema {
    pub(super) schema: Arc<Schema>,
    pub(super) figures: SchemaFigures,
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

    /// The reverse. `part` is `None` if its receipt cannot be read. Returns whether it was the last.
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
