//! Integers added up or read 64 bytes at a time, with the processor's vector instructions where it has them. The one
//! module with `unsafe` in it.
//!
//! [`find_cells`] finds the cells of one column, in rows of any width, with quotes or without.
//!
//! [`sum_rows`] takes whole rows that are plain: no quote in them, as many cells in each as there are columns, and in
//! the wanted column nothing but `-?[0-9]{1,18}` or no text at all. Whatever else there is makes it answer none, and
//! the careful scan of `csv.rs` says what that means. So nothing here knows errors, row numbers or limits.
//!
//! [`read_integers`] takes rows of cells that Parquet can have as integers, and stops where something else is;
//! [`read_narrow_integers`] does so for short ones, sixteen at a time instead of eight, and [`gather`] and
//! [`put_narrow_deltas`] take them on to a page.
//!
//! Why: bigdata's rows of 16 bytes, `1,-12345,678901` and a line feed, take 3 ns here and 12 there. No row is looked at by itself. Bytes
//! become bit masks, in which the cells of a column are found for all rows of 64 bytes together, by additions whose
//! carries run through a cell to its end (`ScanThru` of Cameron and others, "Bitwise data parallelism in regular
//! expression matching", 2014). Then the digits of eight cells are gathered into one register and multiplied out.
#![allow(unsafe_code, reason = "vector instructions; each block says why it is sound, and tests compare a safe twin")]

pub mod classify;
pub mod delta;
pub mod integer_table;
pub mod scalar;
#[cfg(test)]
mod tests;

use self::scalar::{find_cells_by, gather_plain, marks_plain};

/// With more columns there are too few cells of the wanted one in 64 bytes for this to be worth it.
pub const COLUMNS_MAX: usize = 16;

/// Longer stretches could wrap totals of 32 bits: 64 bytes add at most 9999 four times to each of them.
pub const STRETCH_BYTES_MAX: usize = 1 << 20;
const _: () = assert!((STRETCH_BYTES_MAX / LANES + 1) * 4 * 9999 < u32::MAX as usize);

/// Bytes that are looked at together.
pub(super) const LANES: usize = 64;

/// Rows, and what their cells of one column add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// How many rows.
    pub rows: u64,
    /// The exact sum.
    pub total: i128,
}

/// Whether this processor adds up a column of so many at all.
#[inline]
pub fn serves(columns_count: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_instructions = x86::has_instructions();
    #[cfg(not(target_arch = "x86_64"))]
    let has_instructions = false;
    has_instructions && (1..=COLUMNS_MAX).contains(&columns_count)
}

/// Adds up a column of whole rows, the last of which has its row end. None if they are not plain, or if the processor
/// does not serve.
#[inline]
pub fn sum_rows(stretch: &[u8], columns_count: usize, column_index: usize) -> Option<Added> {
    let is_whole = matches!(stretch.last(), Some(b'\n' | b'\r'));
    if !serves(columns_count) || !is_whole || stretch.len() > STRETCH_BYTES_MAX || column_index >= columns_count {
        return None;
    }
    #[cfg(target_arch = "x86_64")]
    let added = x86::sum_rows(stretch, columns_count, column_index);
    #[cfg(not(target_arch = "x86_64"))]
    let added = None;
    added
}

/// Where a row of a stretch stands, and in it the cell of one column, with its quotes if it has any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCell {
    /// Where the row starts.
    pub row: usize,
    /// Where its row end stands.
    pub row_end: usize,
    /// Where the cell starts.
    pub start: usize,
    /// What follows the cell.
    pub end: usize,
}

/// How far [`find_cells`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many cells were found, one in each row that is not empty.
    pub count: usize,
    /// Where the first row starts that is not among them.
    pub next: usize,
    /// What about that row.
    pub stopped: Stopped,
}

/// Why no more rows were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// There was no room for more.
    Full,
    /// The next row does not end here.
    End,
    /// The next row has other than so many cells, or a quote where it means something else than usual.
    Odd,
}

/// Finds a column's cell in each row, from the start of a row on, as far as rows are usual ones: each has as many cells
/// as there are columns, and quotes stand around whole cells alone, or twice inside such.
#[inline]
pub fn find_cells(bytes: &[u8], columns_count: usize, column_index: usize, cells: &mut [RowCell]) -> Rows {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("popcnt") {
        // SAFETY: the features that it needs were found just now.
        return unsafe { x86::find_cells(bytes, columns_count, column_index, cells) };
    }
    find_cells_by(bytes, columns_count, column_index, cells, marks_plain)
}

/// How far [`read_integers`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of whole rows.
    pub bytes: usize,
    /// Cells that are there now, those from before among them.
    pub filled: usize,
    /// Whether what comes next may be a cell that is too long for this function, and not for its wider sister.
    pub at_long: bool,
}

/// Reads the cells of whole rows into `cells`, row by row, after those that are there; 0 where there is no text, and
/// then its index goes to `empty`. Takes rows as far as there are 64 bytes and room for 64 cells, and every cell is
/// an integer written the way it would be printed, or empty. Cells behind what it says it filled may have been written.
#[inline]
pub fn read_integers(
    bytes: &[u8],
    columns_count: usize,
    cells: &mut [i64],
    filled: usize,
    empty: &mut Vec<u32>,
) -> Taken {
    let nothing = Taken { bytes: 0, filled, at_long: false };
    #[cfg(target_arch = "x86_64")]
    if x86::has_instructions() && (1..=LANES).contains(&columns_count) {
        // SAFETY: `has_instructions` has looked for all the features.
        return unsafe { x86::read_integers(bytes, columns_count, cells, filled, empty) };
    }
    nothing
}

/// What [`read_narrow_integers`] reads is less than this from zero.
pub const NARROW_END: u32 = 10_000_000;

const _: () = assert!(NARROW_END <= delta::NARROW_END);

/// [`read_integers`] for cells of at most seven digits, into half the room; stops where a longer one is.
#[inline]
pub fn read_narrow_integers(
    bytes: &[u8],
    columns_count: usize,
    cells: &mut [i32],
    filled: usize,
    empty: &mut Vec<u32>,
) -> Taken {
    #[cfg(target_arch = "x86_64")]
    if x86::has_instructions() && (1..=LANES).contains(&columns_count) {
        // SAFETY: `has_instructions` has looked for all the features.
        return unsafe { x86::read_narrow_integers(bytes, columns_count, cells, filled, empty) };
    }
    Taken { bytes: 0, filled, at_long: false }
}

/// Makes `column` every `columns_count`th cell, from the one at `column_index` on, which is one of the first row.
#[inline]
pub fn gather(cells: &[i32], columns_count: usize, column_index: usize, column: &mut Vec<i32>) {
    #[cfg(target_arch = "x86_64")]
    if x86::has_instructions() && columns_count <= COLUMNS_MAX {
        // SAFETY: `has_instructions` has looked for all the features.
        return unsafe { x86::gather(cells, columns_count, column_index, column) };
    }
    column.clear();
    gather_plain(cells, columns_count, column_index, column);
}

/// [`deltas::put_narrow`], compiled as [`put_deltas`] is.
#[inline]
pub fn put_narrow_deltas(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if x86::has_instructions() {
        // SAFETY: `has_instructions` has looked for all the features.
        return unsafe { x86::put_narrow_deltas(values, out) };
    }
    delta::put_narrow(values, out)
}

/// [`deltas::put`], compiled for the processor's wide vectors where it has them: it takes eight values at a time then.
#[inline]
pub fn put_deltas(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if x86::has_instructions() {
        // SAFETY: `has_instructions` has looked for all the features.
        return unsafe { x86::put_deltas(values, out) };
    }
    delta::put(values, out)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::engine::{
        kernels::{
            Added, COLUMNS_MAX, LANES, RowCell, Rows, Taken, delta,
            scalar::{Marks, find_cells_by, gather_plain},
        },
        values::parse,
    };

    /// What is needed came with Ice Lake and Zen 4.
    #[inline]
    pub(super) fn has_instructions() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    }

    /// The loop over the columns is unrolled, so there is code for each number of them.
    pub(super) fn sum_rows(stretch: &[u8], columns_count: usize, column_index: usize) -> Option<Added> {
        if !has_instructions() {
            return None;
        }
        // A carriage return is looked for if the last row ends with one; elsewhere it makes rows not plain.
        let returns = stretch.ends_with(b"\r") || stretch.ends_with(b"\r\n");
        macro_rules! for_columns {
            ($($count:literal)*) => {
                match (columns_count, returns) {
                    // SAFETY: `has_instructions` has looked for all the features.
                    $(($count, false) => unsafe { sum_of::<$count, false>(stretch, column_index) },
                    // SAFETY: as above.
                    ($count, true) => unsafe { sum_of::<$count, true>(stretch, column_index) },)*
                    _ => None,
                }
            };
        }
        for_columns!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    fn sum_of<const COLUMNS: usize, const RETURNS: bool>(stretch: &[u8], column_index: usize) -> Option<Added> {
        let mut rows = 0;
        let mut wrong = 0; // bits of what is not plain
        let mut unlike = splat(0xff); // has a zero where there was a byte that plain rows do not have
        let mut sums = Sums::new();
        let mut before = _mm512_setzero_si512();
        // What the last byte left to the next 64, in the lowest bit: at first it was a row end.
        let mut after_row_end = 1;
        let mut after_break = 1;
        let mut in_negative = 0;
        let mut in_column = [0_u64; COLUMNS];
        let mut after_cell = 0; // of the column before the wanted one
        let mut rest = stretch;
        while !rest.is_empty() {
            let (bytes, any) = load(rest);
            rest = rest.get(LANES..).unwrap_or_default();
            let digits = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(bytes, splat(b'0')), splat(10));
            unlike = _mm512_min_epu8(unlike, _mm512_xor_si512(bytes, splat(b'"')));
            let mut all_row_ends = equal(bytes, b'\n');
            if RETURNS {
                all_row_ends |= equal(bytes, b'\r');
            } else {
                unlike = _mm512_min_epu8(unlike, _mm512_xor_si512(bytes, splat(b'\r')));
            }
            let separators = equal(bytes, b',') | all_row_ends;
            let inside = any & !separators;

            // A row end right after another ends no row.
            let after_row_ends = all_row_ends << 1 | after_row_end;
            after_row_end = all_row_ends >> 63;
            let row_ends = all_row_ends & !after_row_ends;
            rows += u64::from(row_ends.count_ones());

            let mut starts = after_row_ends & !all_row_ends;
            let mut ends = 0;
            let mut after_end = 0;
            let mut wanted = (0, 0, 0);
            for (column, in_column) in in_column.iter_mut().enumerate() {
                // A carry that begins at a cell's start runs through it to its end, and beyond these bytes into the next.
                let (ran, beyond) = (starts | *in_column).overflowing_add(inside);
                ends = ran & separators;
                if column == column_index {
                    wanted = (starts | after_cell, inside & !ran, ends);
                    after_cell = after_end;
                }
                *in_column = after_end | u64::from(beyond);
                after_end = ends >> 63;
                starts = ends << 1;
            }
            // The last column's cells end where rows do, all of them: no row has fewer cells or more.
            wrong |= ends ^ row_ends;

            let (starts, cells, ends) = wanted;
            let minuses = starts & equal(bytes, b'-');
            let (ran, beyond) = (minuses | in_negative).overflowing_add(inside);
            in_negative = u64::from(beyond);
            let negative_ends = ran & separators;
            let breaks = separators | minuses;
            let after_breaks = breaks << 1 | after_break;
            after_break = breaks >> 63;
            wrong |= cells & !digits & !minuses | negative_ends & after_breaks; // what is no digit; a `-` alone

            wrong |= sums.add(before, bytes, ends, negative_ends);
            before = bytes;
        }
        wrong |= equal(unlike, 0);
        (wrong == 0).then(|| Added { rows, total: sums.total() })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn put_deltas(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
        delta::put(values, out)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn put_narrow_deltas(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
        delta::put_narrow(values, out)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "there are few columns")]
    pub(super) fn gather(cells: &[i32], columns_count: usize, column_index: usize, column: &mut Vec<i32>) {
        // Of 16 rows, which lie in as many vectors as there are columns, cell by cell: where in its vector it is, ...
        let mut lanes = [0_i32; 16];
        // ... and for each vector, which cells are from it.
        let mut from = [0_u16; COLUMNS_MAX];
        for (row, lane) in lanes.iter_mut().enumerate() {
            let at = row * columns_count + column_index;
            *lane = at as i32 % 16;
            from[at / 16] |= 1 << row;
        }
        // SAFETY: it reads 64 bytes, which are the sixteen lanes.
        let lanes = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        let mut rows = cells.chunks_exact(16 * columns_count);
        column.resize(16 * rows.len(), 0);
        for (sixteen, rows) in column.as_chunks_mut::<16>().0.iter_mut().zip(&mut rows) {
            let mut values = _mm512_setzero_si512();
            for (vector, from) in rows.as_chunks::<16>().0.iter().zip(from) {
                // SAFETY: it reads 64 bytes, which are the sixteen cells.
                let vector = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
                values = _mm512_mask_permutexvar_epi32(values, from, lanes, vector);
            }
            // SAFETY: it writes 64 bytes, which are the sixteen cells.
            unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), values) };
        }
        gather_plain(rows.remainder(), columns_count, column_index, column);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn read_integers(
        bytes: &[u8],
        columns_count: usize,
        cells: &mut [i64],
        filled: usize,
        empty: &mut Vec<u32>,
    ) -> Taken {
        let eights = Eights::new();
        read_by(bytes, columns_count, cells, filled, empty, |found, cells| {
            let Found { base, before, lanes, ends, mut places, mut negative, .. } = found;
            let count = ends.count_ones();
            let mut longs = 0;
            for (eight, from) in cells.as_chunks_mut::<8>().0.iter_mut().zip((0..count).step_by(8)) {
                let here = low_byte(u64::from(_bzhi_u32(0xff, count - from)));
                let (values, long) = eights.values(before, lanes, places, here);
                let values = _mm512_mask_sub_epi64(values, low_byte(negative), _mm512_setzero_si512(), values);
                // SAFETY: it writes 64 bytes, which are the eight cells.
                unsafe { _mm512_storeu_si512(eight.as_mut_ptr().cast(), values) };
                longs |= u64::from(long) << from;
                negative >>= 8;
                places = _mm512_permutexvar_epi8(_mm512_add_epi8(eights.places, splat(8)), places);
            }
            longs == 0 || long_integers(bytes, base, ends, longs, cells).is_some()
        })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[allow(clippy::cast_possible_truncation, reason = "sixteen bits at a time")]
    pub(super) fn read_narrow_integers(
        bytes: &[u8],
        columns_count: usize,
        cells: &mut [i32],
        filled: usize,
        empty: &mut Vec<u32>,
    ) -> Taken {
        let eights = Eights::new();
        // Two vectors of eight are put together two cells by two, so that is how the cells are shared out.
        let low_places = _mm512_add_epi8(eights.eights, _mm512_and_si512(eights.eights, splat(6)));
        let high_places = _mm512_add_epi8(low_places, splat(2));
        // What digits are, and for all else a byte with its highest bit.
        let mut before = splat(0x80);
        let mut digits_before = 0;
        let mut at_long = false;
        let taken = read_by(bytes, columns_count, cells, filled, empty, |found, cells| {
            let Found { lanes, digits, ends, mut places, mut negative, .. } = found;
            at_long = ends_eight(digits_before, digits) != 0;
            if at_long {
                return false;
            }
            let lanes = _mm512_mask_sub_epi8(splat(0x80), digits, lanes, splat(b'0'));
            for (sixteen, _) in cells.as_chunks_mut::<16>().0.iter_mut().zip((0..ends.count_ones()).step_by(16)) {
                let [low, high] = [low_places, high_places].map(|which| {
                    let windows = _mm512_add_epi8(_mm512_permutexvar_epi8(which, places), eights.windows);
                    fours_of(_mm512_permutex2var_epi8(before, windows, lanes))
                });
                let fours = _mm512_packus_epi32(low, high);
                let values = _mm512_madd_epi16(fours, _mm512_set1_epi32(0x0001_2710)); // by 10,000 and 1
                let values = _mm512_mask_sub_epi32(values, negative as u16, _mm512_setzero_si512(), values);
                // SAFETY: it writes 64 bytes, which are the sixteen cells.
                unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), values) };
                negative >>= 16;
                places = _mm512_permutexvar_epi8(_mm512_add_epi8(eights.places, splat(16)), places);
            }
            (before, digits_before) = (lanes, digits);
            true
        });
        Taken { at_long, ..taken }
    }

    /// What the digits at the end of eight bytes are, which are less than eight: thousands of tens, then ones, 32 bits
    /// each. Digits are what they mean here, and all else has its highest bit.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn fours_of(eights: __m512i) -> __m512i {
        // What stands before the cell is at the lower end of each eight. One bit is always set: a compiler that knows of no
        // shift by 64 makes less of it.
        let others = _mm512_or_si512(_mm512_and_si512(eights, splat(0x80)), _mm512_set1_epi64(1));
        let others = _mm512_srlv_epi64(splat(0xff), _mm512_lzcnt_epi64(others));
        let twos = _mm512_maddubs_epi16(_mm512_andnot_si512(others, eights), _mm512_set1_epi16(0x010a)); // by 10 and 1
        _mm512_madd_epi16(twos, _mm512_set1_epi32(0x0001_0064)) // by 100 and 1
    }

    /// The bits among 64 that end a run of eight, which may begin in the 64 before.
    #[allow(clippy::cast_possible_truncation, reason = "the upper half")]
    fn ends_eight(before: u64, bits: u64) -> u64 {
        let bits = u128::from(bits) << 64 | u128::from(before);
        let twos = bits & bits << 1;
        let fours = twos & twos << 2;
        ((fours & fours << 4) >> 64) as u64
    }

    /// Cells among 64 bytes.
    struct Found {
        /// Where these begin.
        base: usize,
        /// The 64 before them.
        before: __m512i,
        lanes: __m512i,
        digits: u64,
        /// What follows a cell.
        ends: u64,
        /// Where in them that is.
        places: __m512i,
        /// Which cells begin with a minus, cell by cell.
        negative: u64,
    }

    /// What `read_integers` and `read_narrow_integers` share. `values` writes what the cells that were found are, and says whether it could.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "there are few cells")]
    fn read_by<T>(
        bytes: &[u8],
        columns_count: usize,
        cells: &mut [T],
        filled: usize,
        empty: &mut Vec<u32>,
        mut values: impl FnMut(Found, &mut [T]) -> bool,
    ) -> Taken {
        let places = Eights::new().places;
        let mut taken = Taken { bytes: 0, filled, at_long: false };
        // Which of the next 64 cells end a row, by the column of the first of them.
        let mut row_ends_from = [0_u64; LANES];
        for (column, row_ends) in row_ends_from[..columns_count].iter_mut().enumerate() {
            for cell in (columns_count - 1 - column..64).step_by(columns_count) {
                *row_ends |= 1 << cell;
            }
        }
        // The column of a cell that has so many before it.
        let mut columns = [0_u8; 2 * LANES];
        for (column, of) in (0..columns_count as u8).cycle().zip(&mut columns) {
            *of = column;
        }
        let mut before = _mm512_setzero_si512();
        let mut column = 0;
        let mut index = filled;
        let mut last = None;
        // What the last byte left to the next 64, in the lowest bit: at first it was a row end.
        let (mut after_separator, mut after_row_end) = (1, 1);
        let (mut after_minus, mut after_zero, mut in_negative) = (0, 0, 0);
        for (base, lanes) in (0..).step_by(LANES).zip(bytes.as_chunks::<LANES>().0) {
            if cells.len() - index < LANES {
                break;
            }
            let (lanes, _) = load(lanes);
            let digits = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(lanes, splat(b'0')), splat(10));
            let minuses = equal(lanes, b'-');
            let all_row_ends = equal(lanes, b'\n') | equal(lanes, b'\r');
            let separators = equal(lanes, b',') | all_row_ends;
            let after_separators = separators << 1 | after_separator;
            let after_minuses = minuses << 1 | after_minus;
            let first_zeros = equal(lanes, b'0') & (after_separators | after_minuses);
            let wrong = !(digits | minuses | separators)
                | minuses & !after_separators
                | after_minuses & !digits
                | first_zeros & after_minuses
                | (first_zeros << 1 | after_zero) & digits;

            // A row end right after another ends no row.
            let ends = separators & !(all_row_ends & (all_row_ends << 1 | after_row_end));
            let row_ends = ends & all_row_ends;
            let count = ends.count_ones();
            let misplaced = _bzhi_u64(_pext_u64(row_ends, ends) ^ row_ends_from[column], count);
            if wrong | misplaced != 0 {
                break;
            }

            let (ran, beyond) = (minuses | in_negative).overflowing_add(!separators);
            let negative = _pext_u64(ran & separators, ends);
            let places = _mm512_maskz_compress_epi8(ends, places);
            let found = Found { base, before, lanes, digits, ends, places, negative };
            if !values(found, &mut cells[index..index + LANES]) {
                break;
            }
            let empties = _pext_u64(ends & after_separators, ends);
            if empties != 0 {
                put_indexes(index as u32, empties, empty);
            }

            index += count as usize;
            column = usize::from(columns[column + count as usize]);
            if row_ends != 0 {
                last = Some((base, row_ends, ends, index));
            }
            after_separator = separators >> 63;
            after_row_end = all_row_ends >> 63;
            after_minus = minuses >> 63;
            after_zero = first_zeros >> 63;
            in_negative = u64::from(beyond);
            before = lanes;
        }
        if let Some((base, row_ends, ends, index)) = last {
            let behind = u64::MAX.checked_shl(64 - row_ends.leading_zeros()).unwrap_or(0);
            taken.bytes = base + 64 - row_ends.leading_zeros() as usize;
            taken.filled = index - (ends & behind).count_ones() as usize;
        }
        // The cells of a row that is not whole come again with it.
        while empty.last().is_some_and(|last| *last as usize >= taken.filled) {
            empty.pop();
        }
        taken
    }

    /// Cells of more digits than the vectors take: `longs` says which of those that end at `ends`, 64 bytes from `base`.
    /// A call that is not cold would have the vectors of the loop above stored and loaded at every turn.
    #[cold]
    #[inline(never)]
    fn long_integers(bytes: &[u8], base: usize, mut ends: u64, mut longs: u64, cells: &mut [i64]) -> Option<()> {
        for value in cells {
            if longs & 1 != 0 {
                let end = base + ends.trailing_zeros() as usize;
                let before = bytes[..end].iter().rposition(|byte| matches!(byte, b',' | b'\n' | b'\r'));
                *value = parse::integer_before(bytes, before.map_or(0, |before| before + 1), end)?;
            }
            longs >>= 1;
            if longs == 0 {
                break;
            }
            ends &= ends - 1;
        }
        Some(())
    }

    /// The indexes that `bits` has, from `first` on. Cold as above.
    #[cold]
    #[inline(never)]
    fn put_indexes(first: u32, mut bits: u64, indexes: &mut Vec<u32>) {
        while bits != 0 {
            indexes.push(first + bits.trailing_zeros());
            bits &= bits - 1;
        }
    }

    #[target_feature(enable = "avx2,bmi1,popcnt")]
    pub(super) fn find_cells(bytes: &[u8], columns_count: usize, column_index: usize, cells: &mut [RowCell]) -> Rows {
        find_cells_by(bytes, columns_count, column_index, cells, |lanes| marks(lanes))
    }

    #[target_feature(enable = "avx2,bmi1,popcnt")]
    #[inline]
    pub(super) fn marks(lanes: &[u8; LANES]) -> Marks {
        let (low, high) = lanes.split_at(LANES / 2);
        // SAFETY: each half has 32 bytes.
        let halves = [low, high].map(|half| unsafe { _mm256_loadu_si256(half.as_ptr().cast()) });
        let bits = |are: [__m256i; 2]| {
            let [low, high] = are.map(|are| u64::from(_mm256_movemask_epi8(are).cast_unsigned()));
            low | high << 32
        };
        let equal = |byte: u8| halves.map(|half| _mm256_cmpeq_epi8(half, _mm256_set1_epi8(byte.cast_signed())));
        let ([low_feed, high_feed], [low_return, high_return]) = (equal(b'\n'), equal(b'\r'));
        Marks {
            commas: bits(equal(b',')),
            row_ends: bits([_mm256_or_si256(low_feed, low_return), _mm256_or_si256(high_feed, high_return)]),
            quotes: bits(equal(b'"')),
        }
    }

    /// Where the eight bytes before a place stand, for eight places at a time.
    struct Eights {
        /// 0 to 63.
        places: __m512i,
        /// Eight times 0, eight times 1 and so on.
        eights: __m512i,
        /// For place 0, when 64 other bytes come before.
        windows: __m512i,
    }

    impl Eights {
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        fn new() -> Self {
            let mut places = [0; LANES];
            for (place, byte) in (0..).zip(&mut places) {
                *byte = place;
            }
            let (places, _) = load(&places);
            Self {
                places,
                eights: _mm512_srli_epi16::<3>(_mm512_and_si512(places, splat(0x38))),
                windows: _mm512_add_epi8(_mm512_and_si512(places, splat(7)), splat(64 - 8)),
            }
        }

        /// The windows before the first eight of these places.
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        #[inline]
        fn before(&self, places: __m512i) -> __m512i {
            _mm512_add_epi8(_mm512_permutexvar_epi8(self.eights, places), self.windows)
        }

        /// The absolute values of the cells that end at the first eight places, of those in `cells`; and which of them
        /// have 16 digits or more, and no value here.
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        #[inline]
        fn values(&self, before: __m512i, bytes: __m512i, places: __m512i, cells: u8) -> (__m512i, u8) {
            let windows = self.before(places);
            let value_of = |fours| {
                let thousands = _mm512_mul_epu32(fours, _mm512_set1_epi64(10_000));
                _mm512_add_epi64(thousands, _mm512_srli_epi64::<32>(fours))
            };
            let (fours, full) = digits_before(before, bytes, windows, cells, 64);
            let values = value_of(fours);
            if full == 0 {
                return (values, 0);
            }
            let (fours, long) = digits_before(before, bytes, _mm512_sub_epi8(windows, splat(8)), full, 64);
            let more = _mm512_mul_epu32(value_of(fours), _mm512_set1_epi64(100_000_000));
            (_mm512_add_epi64(values, more), long)
        }
    }

    /// What the digits right before eight places are, at most eight each, for those in `cells`: thousands of tens, then
    /// ones, 32 bits each. And which have digits in at least so many bits of the window.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn digits_before(before: __m512i, bytes: __m512i, windows: __m512i, cells: u8, full: i64) -> (__m512i, u8) {
        let values = _mm512_sub_epi8(_mm512_permutex2var_epi8(before, windows, bytes), splat(b'0'));
        let no_digits = _mm512_movm_epi8(_mm512_cmpge_epu8_mask(values, splat(10)));
        // What stands before the cell is at the lower end of each eight.
        let bits = _mm512_lzcnt_epi64(no_digits);
        let values = _mm512_maskz_andnot_epi64(cells, _mm512_srlv_epi64(splat(0xff), bits), values);
        let twos = _mm512_maddubs_epi16(values, _mm512_set1_epi16(0x010a)); // by 10 and 1
        let fours = _mm512_madd_epi16(twos, _mm512_set1_epi32(0x0001_0064)); // by 100 and 1
        (fours, _mm512_mask_cmpge_epu64_mask(cells, bits, _mm512_set1_epi64(full)))
    }

    /// Totals of cells by their last eight digits, the eight before, and the two that are left of 18. Each is eight pairs
    /// of 32 bits: thousands of tens, then ones.
    struct Sums {
        all: [__m512i; 3],
        negative: [__m512i; 3],
        eights: Eights,
    }

    /// Bits of the last two digits of 18, which is as many as always fit in 64 bits.
    const TWO_DIGITS: i64 = 16;

    impl Sums {
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        fn new() -> Self {
            let zero = _mm512_setzero_si512();
            Self { all: [zero; 3], negative: [zero; 3], eights: Eights::new() }
        }

        /// Adds the integers that end at these places. Returns bits if one has more than 18 digits.
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        #[inline]
        fn add(&mut self, before: __m512i, bytes: __m512i, ends: u64, negative_ends: u64) -> u64 {
            let mut places = _mm512_maskz_compress_epi8(ends, self.eights.places);
            let mut negative = _pext_u64(negative_ends, ends);
            let mut left = ends.count_ones();
            let mut too_long = 0;
            loop {
                let mut windows = self.eights.before(places);
                let mut cells = low_byte(u64::from(_bzhi_u32(0xff, left)));
                for ((all, negatives), full) in
                    self.all.iter_mut().zip(&mut self.negative).zip([64, 64, TWO_DIGITS + 1])
                {
                    let fours;
                    (fours, cells) = digits_before(before, bytes, windows, cells, full);
                    *all = _mm512_add_epi64(*all, fours);
                    *negatives = _mm512_mask_add_epi64(*negatives, low_byte(negative), *negatives, fours);
                    if cells == 0 {
                        break;
                    }
                    windows = _mm512_sub_epi8(windows, splat(8));
                }
                too_long |= u64::from(cells);
                if left <= 8 {
                    return too_long;
                }
                left -= 8;
                negative >>= 8;
                places = _mm512_permutexvar_epi8(_mm512_add_epi8(self.eights.places, splat(8)), places);
            }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        fn total(&self) -> i128 {
            let sum = |pairs: __m512i| {
                let thousands = _mm512_reduce_add_epi64(_mm512_and_si512(pairs, _mm512_set1_epi64(0xffff_ffff)));
                i128::from(thousands) * 10_000 + i128::from(_mm512_reduce_add_epi64(_mm512_srli_epi64::<32>(pairs)))
            };
            let eights = self.all.iter().zip(&self.negative).map(|(&all, &negative)| sum(all) - 2 * sum(negative));
            eights.rev().fold(0, |total, eight| total * 100_000_000 + eight)
        }
    }

    /// The first 64 bytes, zeros for those that are not there, and a bit for each that is.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn load(bytes: &[u8]) -> (__m512i, u64) {
        let any = if bytes.len() >= LANES { u64::MAX } else { (1 << bytes.len()) - 1 };
        // SAFETY: it reads the bytes that have a bit in `any`, which are the first of `bytes`, and touches no other.
        (unsafe { _mm512_maskz_loadu_epi8(any, bytes.as_ptr().cast()) }, any)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn splat(byte: u8) -> __m512i {
        _mm512_set1_epi8(byte.cast_signed())
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn equal(bytes: __m512i, byte: u8) -> u64 {
        _mm512_cmpeq_epi8_mask(bytes, splat(byte))
    }

    #[inline]
    fn low_byte(bits: u64) -> u8 {
        bits.to_le_bytes()[0]
    }
}
