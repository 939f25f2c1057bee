//! What the kernels take and return, and their limits.

use super::delta::NARROW_DELTAS_END;

/// Bytes that one step of a kernel takes: as many as a mask of 64 bits has bits for.
pub const LANES: usize = 64;

/// The most columns for which [`sum_rows`](super::sum_rows) is worth it: with more, too few cells of the wanted one are
/// among 64 bytes.
pub(super) const SUM_COLUMNS_MAX: usize = 16;

/// The most bytes that are summed at once. With more, totals of 32 bits could wrap: 64 bytes add at most 9999 four
/// times to each of them.
pub(super) const SUM_BYTES_MAX: usize = 1 << 20;
const _: () = assert!((SUM_BYTES_MAX / LANES + 1) * 4 * 9999 < u32::MAX as usize);

/// The most columns for which [`gather`](super::gather) uses vectors.
pub(super) const GATHER_COLUMNS_MAX: usize = 16;

/// The number of some rows, and the sum of their cells of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// How many rows.
    pub rows: u64,
    /// The exact sum.
    pub total: i128,
}

/// The offsets of a row in a block, and of the row's cell of one column, with its quotes if it has any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCell {
    /// The start of the row.
    pub row: usize,
    /// The row's end: the line feed or carriage return.
    pub row_end: usize,
    /// The start of the cell.
    pub start: usize,
    /// The byte after the cell.
    pub end: usize,
}

/// How far [`find_cells`](super::find_cells) came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many cells were found, one in each row that is not empty.
    pub count: usize,
    /// Offset of the first row that is not among them.
    pub next: usize,
    /// Why that row is not among them.
    pub stopped: Stopped,
}

/// Why no more rows were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// There was no room for more.
    Full,
    /// The next row does not end in this block.
    End,
    /// The next row has another number of cells, or a quote where quotes have no meaning.
    Odd,
}

/// How far [`read_integers`](super::read_integers) came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of whole rows.
    pub bytes: usize,
    /// How many cells are there now, including those from before.
    pub filled: usize,
    /// Whether the next row may have a cell that is too long for this function, but not for its wider sister.
    pub at_long: bool,
}

/// [`read_narrow_integers`](super::read_narrow_integers) reads values that are less than this from zero.
pub(super) const NARROW_CELL_END: u32 = 10_000_000;
const _: () = assert!(NARROW_CELL_END <= NARROW_DELTAS_END);
