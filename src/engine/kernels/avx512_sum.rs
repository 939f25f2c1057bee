//! Adds up a column of plain rows with AVX-512.
//!
//! Rows are not parsed one by one. 64 bytes become bit masks. In these, a column's cells are found in all rows at once, by
//! additions whose carries run through a cell to its end (`ScanThru` of Cameron and others, "Bitwise data parallelism in
//! regular expression matching", 2014). Then the digits of eight cells are gathered in one register and multiplied.

use std::arch::x86_64::*;

use super::{
    avx512::{Windows, avx512, digits_before, equal, has_instructions, load, low_byte, splat},
    types::{Added, LANES},
};

/// [`super::sum_rows`] for 1 to 16 columns. The loop over the columns is unrolled, so each number of columns has its own
/// code.
pub(super) fn sum_rows(block: &[u8], columns_count: usize, column_index: usize) -> Option<Added> {
    if !has_instructions() {
        return None;
    }
    // Carriage returns are row ends if the last row ends with one; otherwise the rows are not plain.
    let returns = block.ends_with(b"\r") || block.ends_with(b"\r\n");
    macro_rules! for_columns {
        ($($count:literal)*) => {
            match (columns_count, returns) {
                // SAFETY: `has_instructions` has looked for all the features.
                $(($count, false) => unsafe { sum_of::<$count, false>(block, column_index) },
                // SAFETY: as above.
                ($count, true) => unsafe { sum_of::<$count, true>(block, column_index) },)*
                _ => None,
            }
        };
    }
    for_columns!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
}

avx512! {
    fn sum_of<const COLUMNS: usize, const RETURNS: bool>(block: &[u8], column_index: usize) -> Option<Added> {
        let mut rows = 0;
        let mut wrong = 0; // not 0 if something is not plain
        let mut unlike = splat(0xff); // a lane is 0 if it has seen a byte that plain rows do not have
        let mut sums = Sums::new();
        let mut before = _mm512_setzero_si512();
        // The state after the previous 64 bytes, in the lowest bit. The first byte is after a row end.
        let mut after_row_end = 1;
        let mut after_break = 1;
        let mut in_negative = 0;
        let mut in_column = [0_u64; COLUMNS];
        let mut after_cell = 0; // of the column before the wanted one
        let mut rest = block;
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
                // A carry from a cell's start runs to its end, if necessary into the next 64 bytes.
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
            // The last column's cells must end exactly where the rows end.
            wrong |= ends ^ row_ends;

            let (starts, cells, ends) = wanted;
            let minuses = starts & equal(bytes, b'-');
            let (ran, beyond) = (minuses | in_negative).overflowing_add(inside);
            in_negative = u64::from(beyond);
            let negative_ends = ran & separators;
            let breaks = separators | minuses;
            let after_breaks = breaks << 1 | after_break;
            after_break = breaks >> 63;
            wrong |= cells & !digits & !minuses | negative_ends & after_breaks; // neither digit nor sign; a `-` alone

            wrong |= sums.add(before, bytes, ends, negative_ends);
            before = bytes;
        }
        wrong |= equal(unlike, 0);
        (wrong == 0).then(|| Added { rows, total: sums.total() })
    }
}

/// Totals of the cells' last eight digits, of the eight digits before, and of the first two of 18. Each total is eight
/// pairs of 32 bits: the first four digits, then the last four.
struct Sums {
    all: [__m512i; 3],
    negative: [__m512i; 3],
    windows: Windows,
}

/// Bits of the first two digits of 18, the number of digits that always fits in 64 bits.
const TWO_DIGITS: i64 = 16;

impl Sums {
    avx512! {
        fn new() -> Self {
            let zero = _mm512_setzero_si512();
            Self { all: [zero; 3], negative: [zero; 3], windows: Windows::new() }
        }

        /// Adds the integers that end where `ends` has a bit. Returns a bit for each that has more than 18 digits.
        #[inline]
        fn add(&mut self, before: __m512i, bytes: __m512i, ends: u64, negative_ends: u64) -> u64 {
            let mut positions = _mm512_maskz_compress_epi8(ends, self.windows.positions);
            let mut negative = _pext_u64(negative_ends, ends);
            let mut left = ends.count_ones();
            let mut too_long = 0;
            loop {
                let mut windows = self.windows.before(positions);
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
                positions = _mm512_permutexvar_epi8(_mm512_add_epi8(self.windows.positions, splat(8)), positions);
            }
        }

        fn total(&self) -> i128 {
            let sum = |pairs: __m512i| {
                let thousands = _mm512_reduce_add_epi64(_mm512_and_si512(pairs, _mm512_set1_epi64(0xffff_ffff)));
                i128::from(thousands) * 10_000 + i128::from(_mm512_reduce_add_epi64(_mm512_srli_epi64::<32>(pairs)))
            };
            let eights = self.all.iter().zip(&self.negative).map(|(&all, &negative)| sum(all) - 2 * sum(negative));
            eights.rev().fold(0, |total, eight| total * 100_000_000 + eight)
        }
    }
}
