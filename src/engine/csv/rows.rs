//! The rows that the scanner delivers, and what a caller can ask for.

use crate::{engine::values::sum::Sum, error::csv::CsvError};

/// Receives the rows of a file.
pub trait Rows {
    /// Why the scan ended: an error in the file, or an error of the receiver.
    type Error: From<CsvError>;

    /// Whether rows may be delivered as the sum of their cells of the one wanted column.
    const TAKES_SUMS: bool = false;

    /// The names of the columns; called once, before any row. They are different, but several may be empty.
    fn header(&mut self, names: &[String]) -> Result<(), Self::Error>;

    /// The next bytes of the file, before the rows that end in them are delivered. After the last there is one more row end.
    fn bytes(&mut self, _bytes: &[u8]) {}

    /// One row, with all its cells or the wanted one.
    fn row(&mut self, row: Row<'_>) -> Result<(), Self::Error>;

    /// The sum of the wanted cells of some rows, all integers or empty. Called only if `TAKES_SUMS`.
    fn sum(&mut self, _sum: Sum) {}
}

/// A row whose number of cells has been checked.
pub struct Row<'a> {
    /// From 1; the header is not counted.
    pub number: u64,
    /// The row, and what follows it in the block.
    pub(super) bytes: &'a [u8],
    pub(super) unescaped: &'a [u8],
    pub(super) spans: &'a [Span],
}

impl<'a> Row<'a> {
    /// The cells' texts: without quotes around them, and with doubled quotes made single. They may be any bytes; type
    /// inference checks that they are UTF-8.
    pub fn cells(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (bytes, unescaped) = (self.bytes, self.unescaped);
        self.spans.iter().map(move |span| {
            let source = if span.unescaped { unescaped } else { bytes };
            &source[span.start..span.end]
        })
    }

    /// The first cell's length, and its text together with the bytes that follow it in memory.
    pub fn first_cell(&self) -> Option<(usize, &'a [u8])> {
        self.spans.first().map(|&span| self.window(span))
    }

    /// The text of the cell at an index that the row has.
    #[inline]
    pub fn cell(&self, column_index: usize) -> &'a [u8] {
        let (len, window) = self.cell_window(column_index);
        &window[..len]
    }

    /// As [`Row::first_cell`], for the cell at an index that the row has.
    #[inline]
    pub fn cell_window(&self, column_index: usize) -> (usize, &'a [u8]) {
        self.window(self.spans[column_index])
    }

    #[inline]
    fn window(&self, span: Span) -> (usize, &'a [u8]) {
        let source = if span.unescaped { self.unescaped } else { self.bytes };
        (span.end - span.start, &source[span.start..])
    }
}

/// Which cells of a row are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them.
    All,
    /// One column's, by index.
    Column(usize),
}

impl Wanted {
    pub(super) fn has(self, column_index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Column(wanted) => wanted == column_index,
        }
    }
}

/// A position between two rows from which another scanner can continue.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// Bytes of the file before the next row.
    pub offset: u64,
    /// Data rows before it.
    pub rows: u64,
    /// The names of the columns; empty before the header.
    pub names: Vec<String>,
}

#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) unescaped: bool,
}
