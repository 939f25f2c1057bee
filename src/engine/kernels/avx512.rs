//! What the AVX-512 kernels share: the processor features they need, loads and comparisons, and turning the digits
//! before a position into a number.

use std::{arch::x86_64::*, sync::LazyLock};

use super::types::LANES;

/// Compiles functions for the features that [`has_instructions`] looks for.
macro_rules! avx512 {
    ($($function:item)*) => {$(
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        $function
    )*};
}
pub(super) use avx512;

/// Whether the processor has the features that these kernels need: Intel since Ice Lake, AMD since Zen 4.
#[inline]
pub(super) fn has_instructions() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(detect);
    *HAS
}

fn detect() -> bool {
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

/// Indexes for `permutex2var`: of the eight bytes before a position, for eight positions at a time.
pub(super) struct Windows {
    /// 0 to 63.
    pub(super) positions: __m512i,
    /// Eight times 0, eight times 1, and so on.
    pub(super) eights: __m512i,
    /// The window of position 0, if 64 other bytes precede the 64 bytes of the position.
    pub(super) of_first: __m512i,
}

impl Windows {
    avx512! {
        pub(super) fn new() -> Self {
            let mut positions = [0; LANES];
            for (position, byte) in (0..).zip(&mut positions) {
                *byte = position;
            }
            let (positions, _) = load(&positions);
            Self {
                positions,
                eights: _mm512_srli_epi16::<3>(_mm512_and_si512(positions, splat(0x38))),
                of_first: _mm512_add_epi8(_mm512_and_si512(positions, splat(7)), splat(64 - 8)),
            }
        }

        /// The windows before the first eight of these positions.
        #[inline]
        pub(super) fn before(&self, positions: __m512i) -> __m512i {
            _mm512_add_epi8(_mm512_permutexvar_epi8(self.eights, positions), self.of_first)
        }

        /// The absolute values of the cells that end at the first eight positions, for those in `cells`; and which of
        /// them have 16 digits or more and so no value here.
        #[inline]
        pub(super) fn values(&self, before: __m512i, bytes: __m512i, positions: __m512i, cells: u8) -> (__m512i, u8) {
            let windows = self.before(positions);
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
}

avx512! {
    /// The values of the digits right before eight positions, at most eight digits each, for those in `cells`: two
    /// numbers of 32 bits, the first four digits and the last four. And which of them have digits in at least `full`
    /// bits of the window.
    #[inline]
    pub(super) fn digits_before(
        before: __m512i,
        bytes: __m512i,
        windows: __m512i,
        cells: u8,
        full: i64,
    ) -> (__m512i, u8) {
        let values = _mm512_sub_epi8(_mm512_permutex2var_epi8(before, windows, bytes), splat(b'0'));
        let no_digits = _mm512_movm_epi8(_mm512_cmpge_epu8_mask(values, splat(10)));
        // In each eight bytes, the bytes before the cell are the lowest.
        let bits = _mm512_lzcnt_epi64(no_digits);
        let values = _mm512_maskz_andnot_epi64(cells, _mm512_srlv_epi64(splat(0xff), bits), values);
        let twos = _mm512_maddubs_epi16(values, _mm512_set1_epi16(0x010a)); // by 10 and 1
        let fours = _mm512_madd_epi16(twos, _mm512_set1_epi32(0x0001_0064)); // by 100 and 1
        (fours, _mm512_mask_cmpge_epu64_mask(cells, bits, _mm512_set1_epi64(full)))
    }

    /// The first 64 bytes, with zeros for those that are missing, and a bit for each that is not.
    #[inline]
    pub(super) fn load(bytes: &[u8]) -> (__m512i, u64) {
        let any = if bytes.len() >= LANES { u64::MAX } else { (1 << bytes.len()) - 1 };
        // SAFETY: it reads the bytes that have a bit in `any`, which are the first of `bytes`, and touches no other.
        (unsafe { _mm512_maskz_loadu_epi8(any, bytes.as_ptr().cast()) }, any)
    }

    #[inline]
    pub(super) fn splat(byte: u8) -> __m512i {
        _mm512_set1_epi8(byte.cast_signed())
    }

    #[inline]
    pub(super) fn equal(bytes: __m512i, byte: u8) -> u64 {
        _mm512_cmpeq_epi8_mask(bytes, splat(byte))
    }
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "only the low byte is wanted")]
pub(super) fn low_byte(bits: u64) -> u8 {
    bits as u8
}
