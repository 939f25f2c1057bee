//! The kernels' entry points: each calls the vector code if the processor has the instructions, or else the scalar code.

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512_columns, avx512_marks, avx512_read, avx512_sum, avx512_unpack};
use super::{
    classify::structure_of,
    delta,
    scalar::{find_cells_by, find_marks_by, gather_plain, marks_plain},
    types::{Added, FoundCells, GATHER_COLUMNS_MAX, LANES, Parsed, RowCell, SUM_BYTES_MAX, SUM_COLUMNS_MAX},
    unpack::{add_deltas_plain, expand_plain, sum_miniblock_plain, unpack_plain},
};

/// Whether [`sum_rows`] supports tables with this number of columns on this processor.
#[inline]
pub fn serves(columns_count: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_instructions = avx512::has_instructions();
    #[cfg(not(target_arch = "x86_64"))]
    let has_instructions = false;
    has_instructions && (1..=SUM_COLUMNS_MAX).contains(&columns_count)
}

/// Adds up a column of whole rows. `None` if the rows are not plain or not whole, or if the processor lacks the
/// instructions.
#[inline]
pub fn sum_rows(block: &[u8], columns_count: usize, column_index: usize) -> Option<Added> {
    let is_whole = matches!(block.last(), Some(b'\n' | b'\r'));
    if !serves(columns_count) || !is_whole || block.len() > SUM_BYTES_MAX || column_index >= columns_count {
        return None;
    }
    #[cfg(target_arch = "x86_64")]
    let added = avx512_sum::sum_rows(block, columns_count, column_index);
    #[cfg(not(target_arch = "x86_64"))]
    let added = None;
    added
}

/// Finds a column's cell in each row, beginning at the start of a row, up to a row that is irregular: regular rows have as
/// many cells as there are columns, and quotes enclose whole cells or are doubled inside such cells.
#[inline]
pub fn find_cells(bytes: &[u8], columns_count: usize, column_index: usize, cells: &mut [RowCell]) -> FoundCells {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("popcnt") {
        // SAFETY: the processor has the features that it needs, as the line above checked.
        return unsafe { avx2::find_cells(bytes, columns_count, column_index, cells) };
    }
    find_cells_by(bytes, columns_count, column_index, cells, marks_plain)
}

/// Fills `marks` with the positions of all commas, row ends and quotes, and returns their number. There must be room for
/// [`MARKS_ROOM`](super::MARKS_ROOM) more marks than `bytes` has bytes.
#[inline]
pub fn find_marks(bytes: &[u8], marks: &mut [u32]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_marks::find_marks(bytes, marks) };
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("popcnt") {
        // SAFETY: the processor has the features that it needs, as the line above checked.
        return unsafe { avx2::find_marks(bytes, marks) };
    }
    find_marks_by(bytes, marks, structure_of)
}

/// Parses the cells of whole rows into `cells`, row by row, after the first `filled` cells. An empty cell is 0, and its
/// index is appended to `empty`. Parsing continues while there are 64 bytes and room for 64 cells, and every cell is empty
/// or an integer in canonical form. Cells after the filled ones may be overwritten.
#[inline]
pub fn read_integers(
    bytes: &[u8],
    columns_count: usize,
    cells: &mut [i64],
    filled: usize,
    empty: &mut Vec<u32>,
) -> Parsed {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() && (1..=LANES).contains(&columns_count) {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_read::read_integers(bytes, columns_count, cells, filled, empty) };
    }
    Parsed { bytes: 0, filled, at_long: false }
}

/// As [`read_integers`], for cells of at most seven digits; stops at a longer one.
#[inline]
pub fn read_narrow_integers(
    bytes: &[u8],
    columns_count: usize,
    cells: &mut [i32],
    filled: usize,
    empty: &mut Vec<u32>,
) -> Parsed {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() && (1..=LANES).contains(&columns_count) {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_read::read_narrow_integers(bytes, columns_count, cells, filled, empty) };
    }
    Parsed { bytes: 0, filled, at_long: false }
}

/// Replaces `column` by the column at `column_index` of cells that are stored row by row.
#[inline]
pub fn gather(cells: &[i32], columns_count: usize, column_index: usize, column: &mut Vec<i32>) {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() && columns_count <= GATHER_COLUMNS_MAX {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_columns::gather(cells, columns_count, column_index, column) };
    }
    column.clear();
    gather_plain(cells, columns_count, column_index, column);
}

/// [`delta::put_narrow`], compiled for AVX-512 if the processor has it.
#[inline]
pub fn put_narrow_deltas(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_columns::put_narrow_deltas(values, out) };
    }
    delta::put_narrow(values, out)
}

/// [`delta::put`], compiled for AVX-512 if the processor has it.
#[inline]
pub fn put_deltas(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_columns::put_deltas(values, out) };
    }
    delta::put(values, out)
}

/// Fills `out` with numbers of at most 32 bits, and returns the greatest. `packed` has the bits of all of them.
#[inline]
pub fn unpack(packed: &[u8], width: u8, out: &mut [u32]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if width <= avx512_unpack::NARROW_BITS_MAX && avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_unpack::unpack(packed, width, out) };
    }
    unpack_plain(packed, width, out)
}

/// Turns packed deltas of at most 64 bits, less `delta_min`, into the values of `out`; `last` is the value before them. Returns
/// the last value. Additions wrap. `packed` has the bits of all deltas.
#[inline]
pub fn add_deltas(packed: &[u8], width: u8, delta_min: i64, last: i64, out: &mut [i64]) -> i64 {
    #[cfg(target_arch = "x86_64")]
    if width <= avx512_unpack::WIDE_BITS_MAX && avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_unpack::add_deltas(packed, width, delta_min, last, out) };
    }
    add_deltas_plain(packed, width, delta_min, last, out)
}

/// Spreads numbers over the rows of `out`: a row whose bit is set gets the next number, any other row `other`. `numbers` has as
/// many as there are bits set.
#[inline]
pub fn expand(bits: &[u8], numbers: &[u32], other: u32, out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_unpack::expand(bits, numbers, other, out) };
    }
    expand_plain(bits, numbers, other, out);
}

/// The sum of the 64 packed numbers of a miniblock, and the sum of their prefix sums, for widths up to
/// [`SUM_BITS_MAX`](super::unpack::SUM_BITS_MAX). At least 8 bytes follow the numbers.
#[inline]
pub fn sum_miniblock(packed: &[u8], width: u8) -> (u64, u64) {
    if width == 0 {
        return (0, 0); // a constant column, or one that grows evenly
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_unpack::sum_miniblock(packed, width) };
    }
    sum_miniblock_plain(packed, width)
}
