//! The answer to a question for the sum of a column.

/// A sum, and what was read for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnSum {
    /// The exact sum.
    pub total: i64,
    /// How much was read for it.
    pub read: Read,
}

/// What was read for an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Parts that have the column.
    pub parts: u64,
    /// Their rows.
    pub rows: u64,
    /// Bytes of CSV, or of the column's chunks in Parquet.
    pub bytes: u64,
}

impl Read {
    pub(crate) fn add(&mut self, other: Self) {
        self.parts += other.parts;
        self.rows += other.rows;
        self.bytes += other.bytes;
    }
}
