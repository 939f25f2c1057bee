//! Finds marks with AVX-512.

use std::arch::x86_64::*;

use super::{
    avx512::{avx512, equal, load},
    types::{LANES, MARKS_ROOM},
};

avx512! {
    /// [`super::find_marks`] with AVX-512: the positions of the marks in 64 bytes are moved next to each other, and sixteen are
    /// written at once, whether there are as many or not. So no branch depends on their number as long as it is less.
    pub(super) fn find_marks(bytes: &[u8], marks: &mut [u32]) -> usize {
        let mut all_positions = [0; LANES];
        for (position, byte) in (0..).zip(&mut all_positions) {
            *byte = position;
        }
        let (all_positions, _) = load(&all_positions);
        let mut count = 0;
        for (base, piece) in (0_i32..).step_by(LANES).zip(bytes.chunks(LANES)) {
            let (lanes, _) = load(piece);
            let bits = equal(lanes, b',') | equal(lanes, b'\n') | equal(lanes, b'\r') | equal(lanes, b'"');
            let mut positions = _mm512_maskz_compress_epi8(bits, all_positions);
            let mut at = count;
            count += bits.count_ones() as usize;
            while at < count {
                let first = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(positions));
                let first = _mm512_add_epi32(first, _mm512_set1_epi32(base));
                let Some(room) = marks[at..].first_chunk_mut::<MARKS_ROOM>() else { return at };
                // SAFETY: there is room for sixteen numbers of 32 bits.
                unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), first) };
                positions = _mm512_alignr_epi64::<2>(_mm512_setzero_si512(), positions);
                at += MARKS_ROOM;
            }
        }
        count
    }
}
