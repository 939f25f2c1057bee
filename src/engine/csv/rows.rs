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
    /// The bytes that the cells are in, and what follows them in the block.
    pub(super) bytes: &'a [u8],
    pub(super) unescaped: &'a [u8],
    pub(super) cells: Cells<'a>,
}

/// Where the cells of a row are.
#[derive(Clone, Copy)]
pub(super) enum Cells<'a> {
    Spans(&'a [Span]),
    /// All cells of a row without quotes: where the first begins, and where each ends. The next begins after the comma.
    Plain {
        start: usize,
        ends: &'a [u32],
    },
}

impl Cells<'_> {
    #[inline]
    fn count(&self) -> usize {
        match self {
            Self::Spans(spans) => spans.len(),
            Self::Plain { ends, .. } => ends.len(),
        }
    }

    #[inline]
    fn span(&self, index: usize) -> Span {
        match self {
            Self::Spans(spans) => spans[index],
            Self::Plain { start, ends } => {
                let start = if index == 0 { *start } else { ends[index - 1] as usize + 1 };
                Span { start, end: ends[index] as usize, unescaped: false }
            }
        }
    }
}

impl<'a> Row<'a> {
    /// The cells' texts: without quotes around them, and with doubled quotes made single. They may be any bytes; type
    /// inference checks that they are UTF-8.
    pub fn cells(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (bytes, unescaped, cells) = (self.bytes, self.unescaped, self.cells);
        (0..cells.count()).map(move |index| {
            let span = cells.span(index);
            let source = if span.unescaped { unescaped } else { bytes };
            &source[span.start..span.end]
        })
    }

    /// The first cell's length, and its text together with the bytes that follow it in memory.
    pub fn first_cell(&self) -> Option<(usize, &'a [u8])> {
        (self.cells.count() > 0).then(|| self.cell_window(0))
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
        let span = self.cells.span(column_index);
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
