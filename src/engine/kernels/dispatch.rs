//! The kernels' entry points: each takes the vector code if the processor has the instructions for it, else the scalar
//! twin.

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512_columns, avx512_read, avx512_sum};
use super::{
    delta,
    scalar::{find_cells_by, gather_plain, marks_plain},
    types::{Added, GATHER_COLUMNS_MAX, LANES, RowCell, Rows, SUM_BYTES_MAX, SUM_COLUMNS_MAX, Taken},
};

/// Whether [`sum_rows`] can add up tables of so many columns on this processor.
#[inline]
pub fn serves(columns_count: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_instructions = avx512::has_instructions();
    #[cfg(not(target_arch = "x86_64"))]
    let has_instructions = false;
    has_instructions && (1..=SUM_COLUMNS_MAX).contains(&columns_count)
}

/// Adds up a column of whole rows, of which the last ends with its row end. `None` if they are not plain, or if the
/// processor lacks the instructions.
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

/// Finds a column's cell in each row, from the start of a row on, as long as rows are usual ones: each has as many
/// cells as there are columns, and quotes enclose whole cells, or are doubled inside such cells.
#[inline]
pub fn find_cells(bytes: &[u8], columns_count: usize, column_index: usize, cells: &mut [RowCell]) -> Rows {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("popcnt") {
        // SAFETY: the processor has the features that it needs, as the line above checked.
        return unsafe { avx2::find_cells(bytes, columns_count, column_index, cells) };
    }
    find_cells_by(bytes, columns_count, column_index, cells, marks_plain)
}

/// Reads the cells of whole rows into `cells`, row by row, after the `filled` ones. An empty cell is 0, and its index
/// goes to `empty`. It goes on while there are 64 bytes and room for 64 cells, and while every cell is empty or an
/// integer written the way it would be printed. It may write to `cells` beyond those that it says are filled.
#[inline]
pub fn read_integers(
    bytes: &[u8],
    columns_count: usize,
    cells: &mut [i64],
    filled: usize,
    empty: &mut Vec<u32>,
) -> Taken {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() && (1..=LANES).contains(&columns_count) {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_read::read_integers(bytes, columns_count, cells, filled, empty) };
    }
    Taken { bytes: 0, filled, at_long: false }
}

/// [`read_integers`] for cells of at most seven digits, into cells of half the size; stops at a longer one.
#[inline]
pub fn read_narrow_integers(
    bytes: &[u8],
    columns_count: usize,
    cells: &mut [i32],
    filled: usize,
    empty: &mut Vec<u32>,
) -> Taken {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() && (1..=LANES).contains(&columns_count) {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_read::read_narrow_integers(bytes, columns_count, cells, filled, empty) };
    }
    Taken { bytes: 0, filled, at_long: false }
}

/// Sets `column` to the column at `column_index` of cells that are given row by row.
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

/// [`delta::put_narrow`], compiled for the processor's wide vectors where it has them.
#[inline]
pub fn put_narrow_deltas(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_columns::put_narrow_deltas(values, out) };
    }
    delta::put_narrow(values, out)
}

/// [`delta::put`], compiled for the processor's wide vectors where it has them: it takes eight values at a time then.
#[inline]
pub fn put_deltas(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_instructions() {
        // SAFETY: `has_instructions` has checked all the features.
        return unsafe { avx512_columns::put_deltas(values, out) };
    }
    delta::put(values, out)
}
