//! What the kernels take and return, and their limits.

use super::delta::NARROW_DELTAS_END;

/// Bytes that one step of a kernel handles, one for each bit of a mask of 64 bits.
pub const LANES: usize = 64;

/// [`find_marks`](super::find_marks) writes up to sixteen marks at a time, of which only some may be wanted.
pub const MARKS_ROOM: usize = 16;

/// Columns up to which [`sum_rows`](super::sum_rows) is worth it. With more, 64 bytes have too few cells of the wanted
/// column.
pub(super) const SUM_COLUMNS_MAX: usize = 16;

/// Bytes that are summed at once. With more, totals of 32 bits could wrap: each 64 bytes add at most four times 9999.
pub(super) const SUM_BYTES_MAX: usize = 1 << 20;
const _: () = assert!((SUM_BYTES_MAX / LANES + 1) * 4 * 9999 < u32::MAX as usize);

/// Columns up to which [`gather`](super::gather) uses vectors.
pub(super) const GATHER_COLUMNS_MAX: usize = 16;

/// The number of some rows, and the sum of their cells of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// The number of rows.
    pub rows: u64,
    /// The exact sum.
    pub total: i128,
}

/// The offsets in a block of a row and of one of its cells, including the cell's quotes.
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

/// The result of [`find_cells`](super::find_cells).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundCells {
    /// The number of cells that were found, one in each row that is not empty.
    pub count: usize,
    /// Offset of the next row.
    pub next: usize,
    /// Why the search ended there.
    pub stopped: Stopped,
}

/// Why the search for cells ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// There was no room for more.
    Full,
    /// The next row does not end in this block.
    End,
    /// The next row has a wrong number of cells, or a quote that does not enclose a cell.
    Irregular,
}

/// The result of [`read_integers`](super::read_integers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Bytes of the whole rows that were parsed.
    pub bytes: usize,
    /// The number of filled cells, including those that were filled before.
    pub filled: usize,
    /// Whether the next row may have a cell that is too long for [`read_narrow_integers`](super::read_narrow_integers).
    pub at_long: bool,
}

/// [`read_narrow_integers`](super::read_narrow_integers) parses values that are less than this from zero.
pub(super) const NARROW_CELL_END: u32 = 10_000_000;
const _: () = assert!(NARROW_CELL_END <= NARROW_DELTAS_END);
