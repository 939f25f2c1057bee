//! Finds cells and marks with AVX2.

use std::arch::x86_64::*;

use super::{
    scalar::{Marks, find_cells_by, find_marks_by},
    types::{FoundCells, LANES, RowCell},
};

/// [`super::find_cells`] with AVX2.
#[target_feature(enable = "avx2,bmi1,popcnt")]
pub(super) fn find_cells(bytes: &[u8], columns_count: usize, column_index: usize, cells: &mut [RowCell]) -> FoundCells {
    find_cells_by(bytes, columns_count, column_index, cells, |lanes| marks(lanes))
}

/// As [`marks_plain`](super::scalar::marks_plain), 32 bytes at a time.
#[target_feature(enable = "avx2,bmi1,popcnt")]
#[inline]
fn marks(lanes: &[u8; LANES]) -> Marks {
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

/// [`super::find_marks`] with AVX2.
#[target_feature(enable = "avx2,bmi1,popcnt")]
pub(super) fn find_marks(bytes: &[u8], found: &mut [u32]) -> usize {
    find_marks_by(bytes, found, |lanes| {
        let Marks { commas, row_ends, quotes } = marks(lanes);
        commas | row_ends | quotes
    })
}
