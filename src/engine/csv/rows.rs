//! The rows that the scanner finds, and what a caller asks of it.

use memchr::memchr;

use crate::{
    engine::values::sum::Sum,
    error::csv::{CellFault, CsvError},
};

/// Who receives the rows of a file.
pub trait Rows {
    /// What may stop the scan.
    type Error: From<CsvError>;

    /// Whether rows may come as what their cells of the one wanted column add up to.
    const TAKES_SUMS: bool = false;

    /// The names of the columns; called once, before any row.
    fn header(&mut self, names: &[String]) -> Result<(), Self::Error>;

    /// One row, all its cells or the one that was asked for.
    fn row(&mut self, row: Row<'_>) -> Result<(), Self::Error>;

    /// The sum of the wanted cells of some rows, which are integers all, or empty. Called if `TAKES_SUMS` alone.
    fn sum(&mut self, _sum: Sum) {}
}

/// A row of which the number of cells has been checked.
pub struct Row<'a> {
    /// From 1; the header is not counted.
    pub number: u64,
    /// From the row's start; what follows the row may stand behind it.
    pub(super) bytes: &'a [u8],
    pub(super) unescaped: &'a [u8],
    pub(super) spans: &'a [Span],
}

impl<'a> Row<'a> {
    /// The cells' texts: quotes removed, doubled quotes single. Any bytes; typing checks that they are UTF-8.
    pub fn cells(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (bytes, unescaped) = (self.bytes, self.unescaped);
        self.spans.iter().map(move |span| {
            let source = if span.unescaped { unescaped } else { bytes };
            &source[span.start..span.end]
        })
    }

    /// The first cell's length, and its text with whatever follows it in memory.
    pub fn first_cell(&self) -> Option<(usize, &'a [u8])> {
        self.spans.first().map(|&span| self.window(span))
    }

    /// The text of the cell at an index that the row has.
    #[inline]
    pub fn cell(&self, column_index: usize) -> &'a [u8] {
        let (len, window) = self.cell_window(column_index);
        &window[..len]
    }

    /// The same as [`Row::first_cell`] of the cell at an index that the row has.
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

/// Where a scan stands between two rows, so that another scanner can go on there.
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

/// A cell's bytes as text, or what keeps them from being text.
pub fn text_of(cell: &[u8]) -> Result<&str, CellFault> {
    if memchr(0, cell).is_some() {
        return Err(CellFault::Nul);
    }
    std::str::from_utf8(cell).ok().ok_or(CellFault::NotUtf8)
}
