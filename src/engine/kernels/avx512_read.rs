//! Reads whole rows of integers with AVX-512.

use std::arch::x86_64::*;

use super::{
    avx512::{Windows, avx512, equal, load, low_byte, splat},
    types::{LANES, Parsed},
};
use crate::engine::values::parse;

avx512! {
    pub(super) fn read_integers(
        bytes: &[u8],
        columns_count: usize,
        cells: &mut [i64],
        filled: usize,
        empty: &mut Vec<u32>,
    ) -> Parsed {
        let windows = Windows::new();
        read_by(bytes, columns_count, cells, filled, empty, |found, cells| {
            let Found { base, before, lanes, ends, mut positions, mut negative, .. } = found;
            let count = ends.count_ones();
            let mut longs = 0;
            for (eight, from) in cells.as_chunks_mut::<8>().0.iter_mut().zip((0..count).step_by(8)) {
                let here = low_byte(u64::from(_bzhi_u32(0xff, count - from)));
                let (values, long) = windows.values(before, lanes, positions, here);
                let values = _mm512_mask_sub_epi64(values, low_byte(negative), _mm512_setzero_si512(), values);
                // SAFETY: it writes 64 bytes, which are the eight cells.
                unsafe { _mm512_storeu_si512(eight.as_mut_ptr().cast(), values) };
                longs |= u64::from(long) << from;
                negative >>= 8;
                positions = _mm512_permutexvar_epi8(_mm512_add_epi8(windows.positions, splat(8)), positions);
            }
            longs == 0 || long_integers(bytes, base, ends, longs, cells).is_some()
        })
    }

    #[allow(clippy::cast_possible_truncation, reason = "sixteen bits at a time")]
    pub(super) fn read_narrow_integers(
        bytes: &[u8],
        columns_count: usize,
        cells: &mut [i32],
        filled: usize,
        empty: &mut Vec<u32>,
    ) -> Parsed {
        let windows = Windows::new();
        // `packus` interleaves two vectors two cells at a time, so the cells are distributed in that order.
        let low_positions = _mm512_add_epi8(windows.eights, _mm512_and_si512(windows.eights, splat(6)));
        let high_positions = _mm512_add_epi8(low_positions, splat(2));
        // Digits as 0 to 9; every other byte has its highest bit set.
        let mut before = splat(0x80);
        let mut digits_before = 0;
        let mut at_long = false;
        let taken = read_by(bytes, columns_count, cells, filled, empty, |found, cells| {
            let Found { lanes, digits, ends, mut positions, mut negative, .. } = found;
            at_long = ends_eight(digits_before, digits) != 0;
            if at_long {
                return false;
            }
            let lanes = _mm512_mask_sub_epi8(splat(0x80), digits, lanes, splat(b'0'));
            for (sixteen, _) in cells.as_chunks_mut::<16>().0.iter_mut().zip((0..ends.count_ones()).step_by(16)) {
                let [low, high] = [low_positions, high_positions].map(|which| {
                    let before_cells = _mm512_add_epi8(_mm512_permutexvar_epi8(which, positions), windows.of_first);
                    fours_of(_mm512_permutex2var_epi8(before, before_cells, lanes))
                });
                let fours = _mm512_packus_epi32(low, high);
                let values = _mm512_madd_epi16(fours, _mm512_set1_epi32(0x0001_2710)); // by 10,000 and 1
                let values = _mm512_mask_sub_epi32(values, negative as u16, _mm512_setzero_si512(), values);
                // SAFETY: it writes 64 bytes, which are the sixteen cells.
                unsafe { _mm512_storeu_si512(sixteen.as_mut_ptr().cast(), values) };
                negative >>= 16;
                positions = _mm512_permutexvar_epi8(_mm512_add_epi8(windows.positions, splat(16)), positions);
            }
            (before, digits_before) = (lanes, digits);
            true
        });
        Parsed { at_long, ..taken }
    }

    /// The values of the digits at the end of each eight bytes, fewer than eight digits: two numbers of 32 bits, the
    /// first four digits and the last four. Digits are given as 0 to 9, and every other byte has its highest bit set.
    #[inline]
    fn fours_of(eights: __m512i) -> __m512i {
        // In each eight bytes, the bytes before the cell are the lowest. One bit is always set, so that the compiler knows
        // that nothing is shifted by 64.
        let others = _mm512_or_si512(_mm512_and_si512(eights, splat(0x80)), _mm512_set1_epi64(1));
        let others = _mm512_srlv_epi64(splat(0xff), _mm512_lzcnt_epi64(others));
        let twos = _mm512_maddubs_epi16(_mm512_andnot_si512(others, eights), _mm512_set1_epi16(0x010a)); // by 10 and 1
        _mm512_madd_epi16(twos, _mm512_set1_epi32(0x0001_0064)) // by 100 and 1
    }
}

/// The bits that end a run of eight set bits, which may begin in the 64 before.
#[allow(clippy::cast_possible_truncation, reason = "the upper half")]
fn ends_eight(before: u64, bits: u64) -> u64 {
    let bits = u128::from(bits) << 64 | u128::from(before);
    let twos = bits & bits << 1;
    let fours = twos & twos << 2;
    ((fours & fours << 4) >> 64) as u64
}

/// The cells that end within 64 bytes.
struct Found {
    /// Offset of the 64 bytes.
    base: usize,
    /// The 64 bytes before them.
    before: __m512i,
    lanes: __m512i,
    digits: u64,
    /// The separators that end a cell.
    ends: u64,
    /// Their positions in the 64 bytes, one after another.
    positions: __m512i,
    /// A bit for each cell: whether it begins with a minus.
    negative: u64,
}

avx512! {
    /// The common part of `read_integers` and `read_narrow_integers`. `values` writes the values of the found cells, and
    /// returns false if it cannot.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "there are few cells")]
    #[allow(clippy::too_many_lines, reason = "with the two tables made in a function of their own, it is 1.6 % slower")]
    fn read_by<T>(
        bytes: &[u8],
        columns_count: usize,
        cells: &mut [T],
        filled: usize,
        empty: &mut Vec<u32>,
        mut values: impl FnMut(Found, &mut [T]) -> bool,
    ) -> Parsed {
        let positions = Windows::new().positions;
        let mut taken = Parsed { bytes: 0, filled, at_long: false };
        // For each column that the next cell may be in: which of the next 64 cells end a row.
        let mut row_ends_from = [0_u64; LANES];
        for (column, row_ends) in row_ends_from[..columns_count].iter_mut().enumerate() {
            for cell in (columns_count - 1 - column..64).step_by(columns_count) {
                *row_ends |= 1 << cell;
            }
        }
        // The columns of the next cells, if the first is in column 0.
        let mut columns = [0_u8; 2 * LANES];
        for (column, of) in (0..columns_count as u8).cycle().zip(&mut columns) {
            *of = column;
        }
        let mut before = _mm512_setzero_si512();
        let mut column = 0;
        let mut index = filled;
        let mut last = None;
        // The state after the previous 64 bytes, in the lowest bit. The first byte is after a row end.
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
            let positions = _mm512_maskz_compress_epi8(ends, positions);
            let found = Found { base, before, lanes, digits, ends, positions, negative };
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
        // The cells of an incomplete row are parsed again later.
        while empty.last().is_some_and(|last| *last as usize >= taken.filled) {
            empty.pop();
        }
        taken
    }
}

/// Parses the cells that have too many digits for the vector code: `longs` has a bit for each of the cells that end at
/// `ends`, in the 64 bytes from `base`. It is cold, because otherwise the compiler spills the vectors of the loop above.
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

/// Appends `first` plus the index of each set bit. It is cold for the same reason.
#[cold]
#[inline(never)]
fn put_indexes(first: u32, mut bits: u64, indexes: &mut Vec<u32>) {
    while bits != 0 {
        indexes.push(first + bits.trailing_zeros());
        bits &= bits - 1;
    }
}
