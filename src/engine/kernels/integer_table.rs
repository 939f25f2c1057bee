//! Rows of integers as they stand in a block, parsed into one flat buffer until they are as many as make pages. No file, no
//! Parquet: `integers.rs` has those, and says what a file that is none of integers means.
//!
//! As long as its cells are short a table keeps them in 32 bits, sixteen to a vector; from the first longer one on in 64,
//! until all of a table's cells were short again. A cell of bigdata's takes 1.4 ns so, from its text to the page, and in 64
//! bits 2.3 (read 0.9 and 1.1, gathered to columns 0.2 and 0.4, packed 0.4 and 0.8).
//!
//! Memory: for a cell 8 bytes, 8 more for an empty one, and 8 while a column is gathered.

use super::Taken;
use crate::{
    engine::{kernels, values::parse},
    limits::KIB,
};

/// Cells that are gathered before they become a page of each column: small enough to stay in a core's cache.
pub(crate) const CELLS_MAX: usize = 48 * KIB;
/// Rows that are not in a page yet.
pub(crate) struct Table {
    pub(crate) columns: usize,
    pub(crate) cells: Cells,
    /// How many of them there are.
    pub(crate) filled: usize,
    /// The indexes of the empty ones, ascending.
    pub(crate) empty: Vec<u32>,
}

pub(crate) enum Cells {
    /// All so far are short.
    Narrow(Flat<i32>),
    /// One was not, of these or of those before.
    Wide(Flat<i64>),
}

pub(crate) struct Flat<N> {
    /// Row by row; 0 for an empty cell.
    pub(crate) cells: Vec<N>,
    /// One column of them, as long as it is made a page of.
    column: Vec<N>,
}

/// What a cell is kept as: the narrower, the more of them a vector has, and a core's cache.
pub(crate) trait Number: Copy + Default {
    /// None: it may need more room.
    fn of(value: i64) -> Option<Self>;
    /// Reads cells of whole rows as far as they are as usual.
    fn read(bytes: &[u8], columns: usize, cells: &mut [Self], filled: usize, empty: &mut Vec<u32>) -> Taken;
    /// Gathers the cells of one column.
    fn gather(cells: &[Self], columns: usize, index: usize, column: &mut Vec<Self>);
    /// Appends values as DELTA_BINARY_PACKED, and returns the least and the most of them.
    fn put_deltas(values: &[Self], page: &mut Vec<u8>) -> Option<(i64, i64)>;
}

impl Number for i32 {
    fn of(value: i64) -> Option<i32> {
        i32::try_from(value).ok().filter(|value| value.unsigned_abs() < kernels::NARROW_END)
    }

    fn read(bytes: &[u8], columns: usize, cells: &mut [i32], filled: usize, empty: &mut Vec<u32>) -> Taken {
        kernels::read_narrow_integers(bytes, columns, cells, filled, empty)
    }

    fn gather(cells: &[i32], columns: usize, index: usize, column: &mut Vec<i32>) {
        kernels::gather(cells, columns, index, column);
    }

    fn put_deltas(values: &[i32], page: &mut Vec<u8>) -> Option<(i64, i64)> {
        kernels::put_narrow_deltas(values, page)
    }
}

impl Number for i64 {
    fn of(value: i64) -> Option<i64> {
        Some(value)
    }

    fn read(bytes: &[u8], columns: usize, cells: &mut [i64], filled: usize, empty: &mut Vec<u32>) -> Taken {
        kernels::read_integers(bytes, columns, cells, filled, empty)
    }

    fn gather(cells: &[i64], columns: usize, index: usize, column: &mut Vec<i64>) {
        column.clear();
        column.extend(cells.chunks_exact(columns).map(|row| row[index]));
    }

    fn put_deltas(values: &[i64], page: &mut Vec<u8>) -> Option<(i64, i64)> {
        kernels::put_deltas(values, page)
    }
}

impl<N: Number> Flat<N> {
    fn new(cells: Vec<N>) -> Self {
        Self { cells, column: Vec::new() }
    }

    /// A column of the first cells.
    pub(crate) fn gather(&mut self, filled: usize, columns: usize, index: usize) -> &mut Vec<N> {
        N::gather(&self.cells[..filled], columns, index, &mut self.column);
        &mut self.column
    }
}

/// How far a table took a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// So many bytes of it: it is full, or no row is complete any more.
    Taken(usize),
    /// So many bytes, and then there is a cell that may need more room.
    Wider(usize),
}

impl Table {
    /// Room for as many rows as `file_bytes` can have, and not more than make pages.
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

    /// Begins anew, with room for as many.
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

    /// Whether every column has a value: one that has none is text.
    pub(crate) fn has_all_types(&self) -> bool {
        let mut seen = vec![false; self.columns];
        let mut empty = self.empty.iter().peekable();
        for index in 0..self.filled {
            let is_empty = empty.next_if(|next| **next as usize == index).is_some();
            seen[index % self.columns] |= !is_empty;
        }
        seen.into_iter().all(|seen| seen)
    }

    /// Takes complete rows until it is full, and says how many bytes they were. None: a row is not one of integers.
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

/// Takes complete rows until there are as many cells as fit. None: a row is not one of integers.
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

/// The same cell by cell.
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
        let mut marks = marks(block, base)?;
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
    // The cells of a row that is not complete come again with it.
    while empty.last().is_some_and(|last| *last as usize >= *filled) {
        empty.pop();
    }
    Some(if fits { Rest::Taken(row) } else { Rest::Wider(row) })
}

/// Bytes that are looked at together.
pub(crate) const LANES: usize = 64;

/// One bit for each of the 64 bytes from `base` that comes before `-` in ASCII: comma and row ends, and else only what
/// stands in no integer. None if a byte is not ASCII.
fn marks(block: &[u8], base: usize) -> Option<u64> {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    /// Carries a byte's highest bit if it is `-` or beyond.
    const BEYOND: u64 = 0x5353_5353_5353_5353;
    let mut padded = [b'0'; LANES];
    let lanes = match block[base..].first_chunk::<LANES>() {
        Some(lanes) => lanes,
        None => {
            padded[..block.len() - base].copy_from_slice(&block[base..]);
            &padded
        }
    };
    let (mut marks, mut high) = (0, 0);
    for (index, eight) in lanes.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*eight);
        high |= word;
        let found = !word.wrapping_add(BEYOND) & HIGH;
        // The lowest bit of each byte, gathered in the highest byte, first byte first.
        let bits = (found >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        marks |= bits << (8 * index);
    }
    (high & HIGH == 0).then_some(marks)
}
