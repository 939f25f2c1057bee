//! Parses rows of integers from blocks into one flat buffer, until there are enough for pages. Files, Parquet and the
//! handling of other cells are in `ingest/integers.rs`.
//!
//! While all cells are short, a table stores them in 32 bits, sixteen to a vector. From the first longer one on it uses 64
//! bits, until a table has only short cells again. In 32 bits a cell takes 1.4 ns from its text to the page, in 64 bits 2.3
//! (parsing 0.9 and 1.1, gathering columns 0.2 and 0.4, packing 0.4 and 0.8).
//!
//! Memory: 8 bytes for a cell, 8 more for an empty one, and 8 while a column is gathered.

use super::{
    classify::structure,
    dispatch,
    types::{LANES, NARROW_CELL_END, Parsed},
};
use crate::{engine::values::parse, limits::KIB};

/// Cells that are collected for one page of each column: few enough to stay in a core's cache.
pub(crate) const CELLS_MAX: usize = 48 * KIB;

/// The rows that will become the next pages.
pub(crate) struct Table {
    pub(crate) columns: usize,
    pub(crate) cells: Cells,
    /// The number of filled cells.
    pub(crate) filled: usize,
    /// The indexes of the empty cells, ascending.
    pub(crate) empty: Vec<u32>,
}

pub(crate) enum Cells {
    /// All cells are short.
    Narrow(Flat<i32>),
    /// A cell of this table or of the one before was long.
    Wide(Flat<i64>),
}

pub(crate) struct Flat<N> {
    /// Row by row; 0 for an empty cell.
    pub(crate) cells: Vec<N>,
    /// One column, while its page is made.
    column: Vec<N>,
}

/// The type in which cells are stored. More cells of a narrower type fit in a vector and in a core's cache.
pub(crate) trait Number: Copy + Default {
    /// `None` if the value may need the wider type.
    fn of(value: i64) -> Option<Self>;
    /// Parses the cells of whole rows with vector code, as far as that can.
    fn read(bytes: &[u8], columns: usize, cells: &mut [Self], filled: usize, empty: &mut Vec<u32>) -> Parsed;
    /// Gathers the cells of one column.
    fn gather(cells: &[Self], columns: usize, index: usize, column: &mut Vec<Self>);
    /// Appends values as DELTA_BINARY_PACKED, and returns the smallest and the largest of them.
    fn put_deltas(values: &[Self], page: &mut Vec<u8>) -> Option<(i64, i64)>;
}

impl Number for i32 {
    fn of(value: i64) -> Option<i32> {
        i32::try_from(value).ok().filter(|value| value.unsigned_abs() < NARROW_CELL_END)
    }

    fn read(bytes: &[u8], columns: usize, cells: &mut [i32], filled: usize, empty: &mut Vec<u32>) -> Parsed {
        dispatch::read_narrow_integers(bytes, columns, cells, filled, empty)
    }

    fn gather(cells: &[i32], columns: usize, index: usize, column: &mut Vec<i32>) {
        dispatch::gather(cells, columns, index, column);
    }

    fn put_deltas(values: &[i32], page: &mut Vec<u8>) -> Option<(i64, i64)> {
        dispatch::put_narrow_deltas(values, page)
    }
}

impl Number for i64 {
    fn of(value: i64) -> Option<i64> {
        Some(value)
    }

    fn read(bytes: &[u8], columns: usize, cells: &mut [i64], filled: usize, empty: &mut Vec<u32>) -> Parsed {
        dispatch::read_integers(bytes, columns, cells, filled, empty)
    }

    fn gather(cells: &[i64], columns: usize, index: usize, column: &mut Vec<i64>) {
        column.clear();
        column.extend(cells.chunks_exact(columns).map(|row| row[index]));
    }

    fn put_deltas(values: &[i64], page: &mut Vec<u8>) -> Option<(i64, i64)> {
        dispatch::put_deltas(values, page)
    }
}

impl<N: Number> Flat<N> {
    fn new(cells: Vec<N>) -> Self {
        Self { cells, column: Vec::new() }
    }

    /// One column of the first `filled` cells.
    pub(crate) fn gather(&mut self, filled: usize, columns: usize, index: usize) -> &mut Vec<N> {
        N::gather(&self.cells[..filled], columns, index, &mut self.column);
        &mut self.column
    }
}

/// How many bytes of whole rows were parsed, and why parsing ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ParseEnd {
    /// The table is full, or no complete row is left.
    Done(usize),
    /// The next row has a cell that may need the wider type.
    LongCell(usize),
}

impl Table {
    /// A table with room for the rows of a file of `file_bytes`, but not for more than [`CELLS_MAX`] cells.
    pub(crate) fn new(columns: usize, file_bytes: usize) -> Self {
        let rows_max = (CELLS_MAX / columns).min(file_bytes / columns + 1);
        Self { columns, cells: Cells::Narrow(Flat::new(vec![0; rows_max * columns])), filled: 0, empty: Vec::new() }
    }

    pub(crate) fn is_full(&self) -> bool {
        let room = match &self.cells {
            Cells::Narrow(flat) => flat.cells.len(),
            Cells::Wide(flat) => flat.cells.len(),
        };
        self.filled == room
    }

    /// Removes all cells.
    pub(crate) fn clear(&mut self) {
        if let Cells::Wide(flat) = &self.cells
            && flat.cells[..self.filled].iter().all(|cell| i32::of(*cell).is_some())
        {
            self.cells = Cells::Narrow(Flat::new(vec![0; flat.cells.len()]));
        }
        self.filled = 0;
        self.empty.clear();
    }

    pub(crate) fn rows(&self) -> usize {
        self.filled / self.columns
    }

    /// Whether every column has a value. A column without a value has the type text.
    pub(crate) fn has_all_types(&self) -> bool {
        let mut seen = vec![false; self.columns];
        let mut empty = self.empty.iter().peekable();
        for index in 0..self.filled {
            let is_empty = empty.next_if(|next| **next as usize == index).is_some();
            seen[index % self.columns] |= !is_empty;
        }
        seen.into_iter().all(|seen| seen)
    }

    /// Parses complete rows until the table is full, and returns the number of their bytes. `None` if a cell is neither an
    /// integer nor empty.
    pub(crate) fn parse(&mut self, block: &[u8]) -> Option<usize> {
        let Self { columns, cells, filled, empty } = self;
        let (taken, wide) = match cells {
            Cells::Narrow(flat) => match parse(block, *columns, &mut flat.cells, filled, empty)? {
                ParseEnd::Done(bytes) => return Some(bytes),
                ParseEnd::LongCell(bytes) => (bytes, flat.cells.iter().copied().map(i64::from).collect()),
            },
            Cells::Wide(flat) => match parse(block, *columns, &mut flat.cells, filled, empty)? {
                ParseEnd::Done(bytes) => return Some(bytes),
                ParseEnd::LongCell(_) => return None,
            },
        };
        *cells = Cells::Wide(Flat::new(wide));
        Some(taken + self.parse(&block[taken..])?)
    }
}

/// [`Table::parse`]: vector code first, scalar code for the rest.
fn parse<N: Number>(
    block: &[u8],
    columns: usize,
    cells: &mut [N],
    filled: &mut usize,
    empty: &mut Vec<u32>,
) -> Option<ParseEnd> {
    let taken = N::read(block, columns, cells, *filled, empty);
    *filled = taken.filled;
    if taken.at_long {
        return Some(ParseEnd::LongCell(taken.bytes));
    }
    Some(match parse_plain(&block[taken.bytes..], columns, cells, filled, empty)? {
        ParseEnd::Done(bytes) => ParseEnd::Done(taken.bytes + bytes),
        ParseEnd::LongCell(bytes) => ParseEnd::LongCell(taken.bytes + bytes),
    })
}

/// [`Table::parse`] with scalar code.
#[allow(clippy::cast_possible_truncation, reason = "there are few cells")]
pub(crate) fn parse_plain<N: Number>(
    block: &[u8],
    columns: usize,
    cells: &mut [N],
    filled: &mut usize,
    empty: &mut Vec<u32>,
) -> Option<ParseEnd> {
    let mut row = 0; // where the row starts
    let mut cell = 0; // where the cell starts
    let mut column = 0;
    let mut index = *filled;
    let mut fits = true;
    'bytes: for base in (0..block.len()).step_by(LANES) {
        let mut marks = structure(block, base);
        while marks != 0 {
            let at = base + marks.trailing_zeros() as usize;
            marks &= marks - 1;
            let mark = block[at];
            if mark == b',' {
                if column + 1 == columns {
                    return None;
                }
            } else if mark == b'\n' || mark == b'\r' {
                if at == row {
                    // An empty line is no row.
                    row = at + 1;
                    cell = row;
                    continue;
                }
                if column + 1 != columns {
                    return None;
                }
            } else {
                return None;
            }
            let slot = cells.get_mut(index)?;
            if at == cell {
                *slot = N::default();
                empty.push(index as u32);
            } else if let Some(number) = N::of(parse::integer_before(block, cell, at)?) {
                *slot = number;
            } else {
                fits = false;
                break 'bytes;
            }
            index += 1;
            column += 1;
            cell = at + 1;
            if column == columns {
                column = 0;
                row = cell;
                *filled = index;
                if index == cells.len() {
                    return Some(ParseEnd::Done(row));
                }
            }
        }
    }
    // The cells of an incomplete row are parsed again later.
    while empty.last().is_some_and(|last| *last as usize >= *filled) {
        empty.pop();
    }
    Some(if fits { ParseEnd::Done(row) } else { ParseEnd::LongCell(row) })
}
