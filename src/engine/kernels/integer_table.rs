//! Rows of integers, parsed from a block into one flat buffer until they are enough to make pages of. No file and no
//! Parquet: `ingest/integers.rs` has those, and decides what a file with other cells means.
//!
//! As long as its cells are short, a table keeps them in 32 bits, sixteen to a vector; from the first longer one on in
//! 64 bits, until all cells of a table are short again. In 32 bits a cell of bigdata takes 1.4 ns from its text to the
//! page, in 64 bits 2.3 (read 0.9 and 1.1, gathered to columns 0.2 and 0.4, packed 0.4 and 0.8).
//!
//! Memory: 8 bytes for a cell, 8 more for an empty one, and 8 while a column is gathered.

use super::{
    classify::structure,
    dispatch,
    types::{LANES, NARROW_CELL_END, Taken},
};
use crate::{engine::values::parse, limits::KIB};

/// Cells that are gathered before they become a page of each column: small enough to stay in a core's cache.
pub(crate) const CELLS_MAX: usize = 48 * KIB;

/// Rows that are not in a page yet.
pub(crate) struct Table {
    pub(crate) columns: usize,
    pub(crate) cells: Cells,
    /// How many of the cells are filled.
    pub(crate) filled: usize,
    /// The indexes of the empty cells, ascending.
    pub(crate) empty: Vec<u32>,
}

pub(crate) enum Cells {
    /// All cells seen are short.
    Narrow(Flat<i32>),
    /// Some cell was long, of these or of those before.
    Wide(Flat<i64>),
}

pub(crate) struct Flat<N> {
    /// Row by row; 0 for an empty cell.
    pub(crate) cells: Vec<N>,
    /// One column of them, while a page is made of it.
    column: Vec<N>,
}

/// The type that cells are kept as. Of a narrower one, more fit in a vector and in a core's cache.
pub(crate) trait Number: Copy + Default {
    /// `None` if the value may need the wider type.
    fn of(value: i64) -> Option<Self>;
    /// Reads the cells of whole rows as far as vectors can.
    fn read(bytes: &[u8], columns: usize, cells: &mut [Self], filled: usize, empty: &mut Vec<u32>) -> Taken;
    /// Gathers the cells of one column.
    fn gather(cells: &[Self], columns: usize, index: usize, column: &mut Vec<Self>);
    /// Appends values as DELTA_BINARY_PACKED, and returns the smallest and the largest of them.
    fn put_deltas(values: &[Self], page: &mut Vec<u8>) -> Option<(i64, i64)>;
}

impl Number for i32 {
    fn of(value: i64) -> Option<i32> {
        i32::try_from(value).ok().filter(|value| value.unsigned_abs() < NARROW_CELL_END)
    }

    fn read(bytes: &[u8], columns: usize, cells: &mut [i32], filled: usize, empty: &mut Vec<u32>) -> Taken {
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

    fn read(bytes: &[u8], columns: usize, cells: &mut [i64], filled: usize, empty: &mut Vec<u32>) -> Taken {
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

/// How far a table took a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// So many bytes of it: the table is full, or no complete row is left.
    Taken(usize),
    /// So many bytes; then comes a cell that may need the wider type.
    Wider(usize),
}

impl Table {
    /// Has room for as many rows as `file_bytes` can have, and not more than pages are made of.
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

    /// Removes all cells, and keeps the room for them.
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

    /// Whether every column has a value. A column without one has the type text.
    pub(crate) fn has_all_types(&self) -> bool {
        let mut seen = vec![false; self.columns];
        let mut empty = self.empty.iter().peekable();
        for index in 0..self.filled {
            let is_empty = empty.next_if(|next| **next as usize == index).is_some();
            seen[index % self.columns] |= !is_empty;
        }
        seen.into_iter().all(|seen| seen)
    }

    /// Takes complete rows until it is full, and returns how many bytes they were. `None` if a row has a cell that is
    /// neither an integer nor empty.
    pub(crate) fn parse(&mut self, block: &[u8]) -> Option<usize> {
        let Self { columns, cells, filled, empty } = self;
        let (taken, wide) = match cells {
            Cells::Narrow(flat) => match parse(block, *columns, &mut flat.cells, filled, empty)? {
                Rest::Taken(bytes) => return Some(bytes),
                Rest::Wider(bytes) => (bytes, flat.cells.iter().copied().map(i64::from).collect()),
            },
            Cells::Wide(flat) => match parse(block, *columns, &mut flat.cells, filled, empty)? {
                Rest::Taken(bytes) => return Some(bytes),
                Rest::Wider(_) => return None,
            },
        };
        *cells = Cells::Wide(Flat::new(wide));
        Some(taken + self.parse(&block[taken..])?)
    }
}

/// [`Table::parse`] with vectors where there are any, and for the rest without.
fn parse<N: Number>(
    block: &[u8],
    columns: usize,
    cells: &mut [N],
    filled: &mut usize,
    empty: &mut Vec<u32>,
) -> Option<Rest> {
    let taken = N::read(block, columns, cells, *filled, empty);
    *filled = taken.filled;
    if taken.at_long {
        return Some(Rest::Wider(taken.bytes));
    }
    Some(match parse_plain(&block[taken.bytes..], columns, cells, filled, empty)? {
        Rest::Taken(bytes) => Rest::Taken(taken.bytes + bytes),
        Rest::Wider(bytes) => Rest::Wider(taken.bytes + bytes),
    })
}

/// The same, cell by cell.
#[allow(clippy::cast_possible_truncation, reason = "there are few cells")]
pub(crate) fn parse_plain<N: Number>(
    block: &[u8],
    columns: usize,
    cells: &mut [N],
    filled: &mut usize,
    empty: &mut Vec<u32>,
) -> Option<Rest> {
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
                    return Some(Rest::Taken(row));
                }
            }
        }
    }
    // The cells of a row that is not complete are read again with it.
    while empty.last().is_some_and(|last| *last as usize >= *filled) {
        empty.pop();
    }
    Some(if fits { Rest::Taken(row) } else { Rest::Wider(row) })
}
