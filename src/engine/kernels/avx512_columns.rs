//! Columns of integers on their way to Parquet pages, compiled for AVX-512.

use std::arch::x86_64::*;

use super::{avx512::avx512, delta, scalar::gather_plain, types::GATHER_COLUMNS_MAX};

avx512! {
    pub(super) fn put_deltas(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
        delta::put(values, out)
    }

    pub(super) fn put_narrow_deltas(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
        delta::put_narrow(values, out)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "there are few columns")]
    pub(super) fn gather(cells: &[i32], columns_count: usize, column_index: usize, column: &mut Vec<i32>) {
        // 16 rows are as many vectors as there are columns. For each row, the lane of its cell in its vector.
        let mut lanes = [0_i32; 16];
        // For each vector, the rows whose cells it has.
        let mut from = [0_u16; GATHER_COLUMNS_MAX];
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
}
