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

use super::deltas;

/// With more columns there are too few cells of the wanted one in 64 bytes for this to be worth it.
pub const COLUMNS_MAX: usize = 16;

/// Longer stretches could wrap totals of 32 bits: 64 bytes add at most 9999 four times to each of them.
pub const STRETCH_BYTES_MAX: usize = 1 << 20;
const _: () = assert!((STRETCH_BYTES_MAX / LANES + 1) * 4 * 9999 < u32::MAX as usize);

/// Bytes that are looked at together.
const LANES: usize = 64;

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
const _: () = assert!(NARROW_END <= deltas::NARROW_END);

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

/// The same one after the other, behind what is there.
fn gather_plain(cells: &[i32], columns_count: usize, column_index: usize, column: &mut Vec<i32>) {
    column.extend(cells.chunks_exact(columns_count).map(|row| row[column_index]));
}

/// [`deltas::put_narrow`], compiled as [`put_deltas`] is.
#[inline]
pub fn put_narrow_deltas(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if x86::has_instructions() {
        // SAFETY: `has_instructions` has looked for all the features.
        return unsafe { x86::put_narrow_deltas(values, out) };
    }
    deltas::put_narrow(values, out)
}

/// [`deltas::put`], compiled for the processor's wide vectors where it has them: it takes eight values at a time then.
#[inline]
pub fn put_deltas(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    #[cfg(target_arch = "x86_64")]
    if x86::has_instructions() {
        // SAFETY: `has_instructions` has looked for all the features.
        return unsafe { x86::put_deltas(values, out) };
    }
    deltas::put(values, out)
}

/// What 64 bytes are, a bit for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Marks {
    commas: u64,
    row_ends: u64,
    quotes: u64,
}

/// What vector instructions do, byte by byte.
fn marks_plain(lanes: &[u8; LANES]) -> Marks {
    let bits = |is: fn(u8) -> bool| (0..).zip(lanes).fold(0, |bits, (at, &byte)| bits | u64::from(is(byte)) << at);
    Marks {
        commas: bits(|byte| byte == b','),
        row_ends: bits(|byte| matches!(byte, b'\n' | b'\r')),
        quotes: bits(|byte| byte == b'"'),
    }
}

/// [`find_cells`] with any way to get marks. A quote opens a cell or closes one by turns, so what stands inside quotes
/// is known from how many come before it; that this is what they mean is checked at each of them.
#[inline(always)]
fn find_cells_by(
    bytes: &[u8],
    columns_count: usize,
    column_index: usize,
    cells: &mut [RowCell],
    marks_of: impl Fn(&[u8; LANES]) -> Marks,
) -> Rows {
    let mut count = 0;
    let mut found = RowCell::default();
    let mut commas_before = 0; // in the row
    let mut quoted = 0; // all ones if the last byte stands inside quotes, or opens them
    let mut after_separator = 1; // in the lowest bit what the last byte was
    let mut after_close = 0;
    let mut base = 0;
    let mut last = [0; LANES];
    while base < bytes.len() {
        let lanes = bytes[base..].first_chunk::<LANES>().unwrap_or_else(|| {
            last[..bytes.len() - base].copy_from_slice(&bytes[base..]);
            &last
        });
        let Marks { mut commas, mut row_ends, quotes } = marks_of(lanes);
        let mut odd = 0;
        if quotes | quoted == 0 {
            odd |= after_close & !(commas | row_ends);
            after_close = 0;
            after_separator = (commas | row_ends) >> 63;
        } else {
            let inside = prefix_xor(quotes) ^ quoted;
            (commas, row_ends) = (commas & !inside, row_ends & !inside);
            let separators = commas | row_ends;
            let (opens, closes) = (quotes & inside, quotes & !inside);
            odd |= opens & !((separators | closes) << 1 | after_separator | after_close);
            odd |= (closes << 1 | after_close) & !(separators | opens);
            quoted = (inside >> 63).wrapping_neg();
            after_separator = separators >> 63;
            after_close = closes >> 63;
        }
        // What follows the first odd byte is not known.
        let known = (odd & odd.wrapping_neg()).wrapping_sub(1);
        (commas, row_ends) = (commas & known, row_ends & known);
        loop {
            let row_end = row_ends & row_ends.wrapping_neg();
            let here = commas & row_end.wrapping_sub(1);
            let commas_here = here.count_ones() as usize;
            let wanted = column_index.wrapping_sub(commas_before);
            if wanted.wrapping_sub(1) < commas_here {
                found.start = base + place_of(here, wanted - 1) + 1;
            }
            if wanted < commas_here {
                found.end = base + place_of(here, wanted);
            }
            commas_before += commas_here;
            if row_end == 0 {
                break;
            }
            let at = base + row_end.trailing_zeros() as usize;
            commas &= !row_end.wrapping_sub(1);
            row_ends ^= row_end;
            if at > found.row {
                if commas_before + 1 != columns_count {
                    return Rows { count, next: found.row, stopped: Stopped::Odd };
                }
                if count == cells.len() {
                    return Rows { count, next: found.row, stopped: Stopped::Full };
                }
                if column_index == commas_before {
                    found.end = at;
                }
                cells[count] = RowCell { row_end: at, ..found };
                count += 1;
            }
            commas_before = 0;
            found.row = at + 1;
            found.start = at + 1;
        }
        if odd != 0 {
            return Rows { count, next: found.row, stopped: Stopped::Odd };
        }
        base += LANES;
    }
    Rows { count, next: found.row, stopped: Stopped::End }
}

/// The parity of all bits up to each.
#[inline(always)]
fn prefix_xor(bits: u64) -> u64 {
    [1, 2, 4, 8, 16, 32].iter().fold(bits, |bits, by| bits ^ bits << by)
}

/// Where the bit stands that has so many below it.
#[inline(always)]
fn place_of(mut bits: u64, below: usize) -> usize {
    for _ in 0..below {
        bits &= bits - 1;
    }
    bits.trailing_zeros() as usize
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Added, COLUMNS_MAX, LANES, Marks, RowCell, Rows, Taken, find_cells_by, gather_plain};
    use crate::engine::{cell, deltas};

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
        deltas::put(values, out)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn put_narrow_deltas(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
        deltas::put_narrow(values, out)
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
                *value = cell::integer_before(bytes, before.map_or(0, |before| before + 1), end)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What `sum_rows` means, row by row and cell by cell: the safe twin.
    fn sum_rows_plain(stretch: &[u8], columns_count: usize, column_index: usize) -> Option<Added> {
        let lines = stretch.split(|byte| matches!(byte, b'\n' | b'\r'));
        let mut added = Added { rows: 0, total: 0 };
        for row in lines.filter(|line| !line.is_empty()) {
            let cells: Vec<_> = row.split(|&byte| byte == b',').collect();
            let text = std::str::from_utf8(cells.get(column_index)?).ok()?;
            let digits = text.strip_prefix('-').unwrap_or(text);
            let is_plain = text.is_empty() || (1..=18).contains(&digits.len());
            let fits = is_plain && digits.bytes().all(|byte| byte.is_ascii_digit());
            if cells.len() != columns_count || !fits || row.contains(&b'"') {
                return None;
            }
            added.rows += 1;
            added.total += if text.is_empty() { 0 } else { text.parse::<i128>().ok()? };
        }
        Some(added)
    }

    fn random_cell(random: &mut fastrand::Rng, digits_max: usize) -> String {
        let digits: String = (0..random.usize(1..=digits_max)).map(|_| random.digit(10)).collect();
        match random.u8(..8) {
            0 => String::new(),
            1..3 => format!("-{digits}"),
            _ => digits,
        }
    }

    /// Rows of random width in any of the three row ends, at times with blank lines.
    fn random_rows(random: &mut fastrand::Rng, columns_count: usize, bytes: usize) -> Vec<u8> {
        let row_ends = [["\n"; 4], ["\r\n"; 4], ["\r"; 4], ["\n", "\r\n", "\n\n", "\r\r\n"]];
        let row_ends = row_ends[random.usize(..4)];
        let digits_max = [1, 2, 7, 8, 9, 17, 18][random.usize(..7)];
        let mut text = String::new();
        while text.len() < bytes {
            let mut cells: Vec<_> = (0..columns_count).map(|_| random_cell(random, digits_max)).collect();
            if random.u8(..30) == 0 {
                cells[random.usize(..columns_count)] = "9".repeat(18);
            }
            text.push_str(&cells.join(","));
            text.push_str(row_ends[random.usize(..4)]);
        }
        text.into_bytes()
    }

    #[test]
    fn vectors_equal_their_plain_twin() {
        let (mut plain, mut refused) = (0, 0);
        for seed in 0..6000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let columns_count = random.usize(1..=COLUMNS_MAX);
            let bytes = [10, 60, 64, 70, 130, 700][random.usize(..6)];
            let mut rows = random_rows(&mut random, columns_count, bytes);
            if random.bool() {
                // One byte of the kind that rows could be read wrong by.
                let at = random.usize(..rows.len());
                rows[at] = *b",,\n\r\"-0+ x\xff\0.:/"[..].get(random.usize(..16)).unwrap_or(&b'1');
            }
            for column_index in 0..columns_count {
                let expected = sum_rows_plain(&rows, columns_count, column_index);
                let found = sum_rows(&rows, columns_count, column_index);
                if serves(columns_count) {
                    let shown = String::from_utf8_lossy(&rows);
                    // Rows whose ends are mixed may be left to the careful scan.
                    let mixed = rows.contains(&b'\r') && !rows.ends_with(b"\r") && !rows.ends_with(b"\r\n");
                    if !mixed && matches!(rows.last(), Some(b'\n' | b'\r')) || found.is_some() {
                        assert_eq!(found, expected, "seed {seed}, column {column_index} of {columns_count}: {shown:?}");
                    }
                    plain += u32::from(found.is_some());
                    refused += u32::from(found.is_none());
                }
            }
        }
        assert!(!serves(1) || plain > 5000 && refused > 5000, "{plain} plain, {refused} refused");
    }

    #[test]
    fn cells_are_found_alike_by_any_marks() {
        let mut found_rows = 0;
        for seed in 0..6000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let columns_count = random.usize(1..60);
            let mut bytes = random_rows(&mut random, columns_count, 300);
            for _ in 0..random.usize(..8) {
                let at = random.usize(..bytes.len());
                let piece: &[u8] =
                    [&b"\"a\""[..], b"\"", b",\"\",", b"\"x\n,\"\"y\"", b"\n", b"\"\"", b","][random.usize(..7)];
                bytes.splice(at..at, piece.iter().copied());
            }
            let room = random.usize(1..20);
            let (mut cells, mut plain) = (vec![RowCell::default(); room], vec![RowCell::default(); room]);
            let column_index = random.usize(..columns_count);
            let rows = find_cells(&bytes, columns_count, column_index, &mut cells);
            let expected = find_cells_by(&bytes, columns_count, column_index, &mut plain, marks_plain);
            assert_eq!((rows, cells), (expected, plain), "seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
            found_rows += rows.count;
        }
        assert!(found_rows > 3000, "{found_rows}");
    }

    #[test]
    fn deltas_are_the_same_by_wide_vectors() {
        for count in 0..600 {
            let mut random = fastrand::Rng::with_seed(count);
            let bits = random.u32(0..64);
            let values: Vec<i64> = (0..count).map(|_| random.i64(..) >> bits).collect();
            let (mut wide, mut plain) = (Vec::new(), Vec::new());
            let range = put_deltas(&values, &mut wide);
            assert_eq!(range, deltas::put(&values, &mut plain));
            assert_eq!(range, values.iter().copied().min().zip(values.iter().copied().max()));
            assert_eq!(wide, plain, "{count} values of {} bits", 64 - bits);
        }
    }

    #[test]
    fn narrow_deltas_are_the_same_bytes() {
        for round in 0..3000 {
            let mut random = fastrand::Rng::with_seed(round);
            let end = i64::from(deltas::NARROW_END);
            let bits = random.u32(0..31);
            let values: Vec<i64> = (0..round % 600).map(|_| random.i64(1 - end..end) >> bits).collect();
            let narrow: Vec<_> = values.iter().map(|value| i32::try_from(*value).unwrap()).collect();
            let mut bytes = [Vec::new(), Vec::new(), Vec::new()];
            let ranges = [
                deltas::put(&values, &mut bytes[0]),
                deltas::put_narrow(&narrow, &mut bytes[1]),
                put_narrow_deltas(&narrow, &mut bytes[2]),
            ];
            assert_eq!(ranges, [ranges[0]; 3]);
            assert!(bytes[1] == bytes[0] && bytes[2] == bytes[0], "{} values, shifted by {bits}", values.len());
        }
    }

    #[test]
    fn deltas_of_every_width_are_packed_bit_by_bit() {
        let mut random = fastrand::Rng::with_seed(1);
        for width in 0..=32 {
            // From `-height` to `height` and back: differences of four times that. The smallest widths have no room to go back.
            let height = (1_i64 << width) / 4 - 1;
            let most = if width < 3 { (1 << width) - 1 } else { 4 * height };
            let mut values = vec![if width < 3 { 0 } else { -height }];
            for index in 1..=256 {
                let last = values[index - 1];
                values.push(match (width, index % 64) {
                    (0..3, 0) => last,
                    (0..3, 1) => last + most,
                    (0..3, _) => last + random.i64(0..=most),
                    (_, 0..4) if index % 2 == 0 => -height,
                    (_, 0..4) => height,
                    _ if index % 2 == 0 => -random.i64(0..=height),
                    _ => random.i64(0..=height),
                });
            }
            let least = values.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
            let expected: Vec<_> = values.windows(2).map(|pair| pair[1] - pair[0] - least).collect();
            let narrow: Vec<_> = values.iter().map(|value| i32::try_from(*value).unwrap()).collect();
            let mut bytes = [Vec::new(), Vec::new(), Vec::new()];
            deltas::put(&values, &mut bytes[0]);
            deltas::put_narrow(&narrow, &mut bytes[1]);
            put_narrow_deltas(&narrow, &mut bytes[2]);
            let mut bits = vec![0_u8; 256 / 8 * width];
            for (index, offset) in expected.iter().enumerate() {
                for bit in (0..width).filter(|bit| offset >> bit & 1 == 1) {
                    bits[(index * width + bit) / 8] |= 1 << ((index * width + bit) % 8);
                }
            }
            for bytes in bytes {
                let (head, packed) = bytes.split_at(bytes.len() - bits.len());
                assert!(head.ends_with(&[u8::try_from(width).unwrap(); 4]), "width {width}: {head:?}");
                assert_eq!(packed, bits, "width {width}");
            }
        }
    }

    #[test]
    fn seven_digits_are_narrow_and_eight_are_not_wherever_they_stand() {
        for (cell, is_narrow) in [("9999999", true), ("-9999999", true), ("10000000", false), ("-10000000", false)] {
            for before in 0..2 * LANES {
                // Empty lines are no rows.
                let (shift, rows_before) = ("\n".repeat(before % 4), "1,2\n".repeat(before / 4));
                let rows = format!("{shift}{rows_before}{cell},1\n2,{cell}\n{}", "4,5\n".repeat(40));
                let (mut cells, mut empty) = (vec![0; 400], Vec::new());
                let taken = read_narrow_integers(rows.as_bytes(), 2, &mut cells, 0, &mut empty);
                if serves(2) {
                    assert_eq!(taken.at_long, !is_narrow, "{rows:?}");
                }
                let found = cells[..taken.filled].iter().any(|found| found.to_string() == cell);
                assert_eq!(found, is_narrow && serves(2), "{rows:?}");
            }
        }
    }

    #[test]
    fn a_column_is_gathered_alike() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut column, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..2000 {
            let columns_count = random.usize(1..=COLUMNS_MAX + 2);
            let cells: Vec<_> = (0..columns_count * random.usize(..100)).map(|_| random.i32(..)).collect();
            let column_index = random.usize(..columns_count);
            gather(&cells, columns_count, column_index, &mut column);
            plain.clear();
            gather_plain(&cells, columns_count, column_index, &mut plain);
            assert_eq!(column, plain, "column {column_index} of {columns_count}");
        }
    }

    #[test]
    fn narrow_cells_are_what_wide_ones_are() {
        let (mut short, mut long) = (0, 0);
        for seed in 0..6000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let columns_count = random.usize(1..=COLUMNS_MAX);
            // Long cells are rare, so that some stand across 64 bytes and their neighbours.
            let bits = [54, 44, 41, 36][random.usize(..4)];
            let mut rows = Vec::new();
            while rows.len() < 400 {
                let cell = |_| match random.u8(..20) {
                    0 => String::new(),
                    1 => (random.i64(..) >> 36).to_string(),
                    _ => (random.i64(..) >> bits).to_string(),
                };
                rows.extend((0..columns_count).map(cell).collect::<Vec<_>>().join(",").bytes());
                rows.push(b'\n');
            }
            if random.u8(..4) == 0 {
                let at = random.usize(..rows.len());
                rows[at] = *b",,\n\r\"-0+ x\xff\0.:/"[..].get(random.usize(..16)).unwrap_or(&b'1');
            }
            let filled = random.usize(..3) * columns_count;
            let (mut cells, mut narrow) = (vec![7_i64; 1200], vec![7_i32; 1200]);
            let (mut empty, mut narrow_empty) = (Vec::new(), Vec::new());
            let wide = read_integers(&rows, columns_count, &mut cells, filled, &mut empty);
            let taken = read_narrow_integers(&rows, columns_count, &mut narrow, filled, &mut narrow_empty);
            let shown = String::from_utf8_lossy(&rows);
            if taken.at_long {
                // It stops at the row that ends in the 64 bytes where the eighth digit is, or was to end there.
                let is_eighth = |at: &usize| rows[at - 7..=*at].iter().all(u8::is_ascii_digit);
                let eighth = (7..rows.len()).find(is_eighth).expect("a long cell");
                let before = &rows[..eighth / LANES * LANES];
                let row = before.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(0, |end| end + 1);
                // What ends empty lines may be left.
                let left = rows[..row].get(taken.bytes..).expect("no row of them is taken");
                assert!(left.iter().all(|byte| matches!(byte, b'\n' | b'\r')), "seed {seed}: {shown:?}");
                empty.retain(|index| (*index as usize) < taken.filled);
                long += 1;
            } else {
                assert_eq!(taken, wide, "seed {seed}: {shown:?}");
                short += taken.filled;
            }
            let widened: Vec<_> = narrow[..taken.filled].iter().copied().map(i64::from).collect();
            assert_eq!(widened, cells[..taken.filled], "seed {seed}: {shown:?}");
            assert_eq!(narrow_empty, empty, "seed {seed}: {shown:?}");
        }
        assert!(!serves(1) || short > 5000 && long > 1000, "{short} cells, {long} stops");
    }

    #[test]
    fn totals_do_not_wrap() {
        for (row, columns_count) in [("9\n", 1), ("99999999\n", 1), ("-999999999999999999,9\n", 2), ("9,-9\r\n", 2)] {
            let rows = row.repeat(STRETCH_BYTES_MAX / row.len()).into_bytes();
            for column_index in 0..columns_count {
                let found = sum_rows(&rows, columns_count, column_index);
                let expected = sum_rows_plain(&rows, columns_count, column_index);
                assert_eq!(found, expected.filter(|_| serves(1)), "{row:?}");
            }
        }
    }
}
