//! How much a question has read.

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
    pub(super) fn add(&mut self, other: Self) {
        self.parts += other.parts;
        self.rows += other.rows;
        self.bytes += other.bytes;
    }
}
