//! Unpacks bit-packed numbers with AVX-512: one instruction moves the bytes of 8 or 16 numbers to their lanes, one shifts each
//! by its own distance, and one clears the bits above.

use std::arch::x86_64::*;

use super::{
    avx512::{avx512, load},
    delta::MINIBLOCK_VALUES,
    types::LANES,
};

/// Up to this width, a number and the bits before it in its first byte fit in 32 bits.
pub(super) const NARROW_BITS_MAX: u8 = 25;
/// The same for 64 bits.
pub(super) const WIDE_BITS_MAX: u8 = 57;

/// Where the numbers of one width are.
#[derive(Clone, Copy)]
struct Places<T, const COUNT: usize> {
    /// Which byte of the packed ones each byte of the lanes is.
    bytes: [u8; LANES],
    /// The bits before each number in its first byte.
    shifts: [T; COUNT],
}

/// Places of sixteen numbers, by width.
#[allow(clippy::cast_possible_truncation, reason = "less than 8")]
static NARROW: [Places<u32, 16>; NARROW_BITS_MAX as usize + 1] = {
    let mut all = [Places { bytes: [0; LANES], shifts: [0; 16] }; NARROW_BITS_MAX as usize + 1];
    let mut width = 0;
    while width < all.len() {
        all[width].bytes = bytes_of::<4>(width);
        let mut lane = 0;
        while lane < 16 {
            all[width].shifts[lane] = (lane * width % 8) as u32;
            lane += 1;
        }
        width += 1;
    }
    all
};

/// Places of eight numbers, by width.
static WIDE: [Places<u64, 8>; WIDE_BITS_MAX as usize + 1] = {
    let mut all = [Places { bytes: [0; LANES], shifts: [0; 8] }; WIDE_BITS_MAX as usize + 1];
    let mut width = 0;
    while width < all.len() {
        all[width].bytes = bytes_of::<8>(width);
        let mut lane = 0;
        while lane < 8 {
            all[width].shifts[lane] = (lane * width % 8) as u64;
            lane += 1;
        }
        width += 1;
    }
    all
};

#[allow(clippy::cast_possible_truncation, reason = "less than 64")]
const fn bytes_of<const LANE_BYTES: usize>(width: usize) -> [u8; LANES] {
    let mut bytes = [0; LANES];
    let mut at = 0;
    while at < LANES {
        bytes[at] = (at / LANE_BYTES * width / 8 + at % LANE_BYTES) as u8;
        at += 1;
    }
    bytes
}

/// The vectors that unpack numbers of one width.
struct Unpacker {
    bytes: __m512i,
    shifts: __m512i,
    mask: __m512i,
}

impl Unpacker {
    avx512! {
        #[inline]
        fn narrow(width: u8) -> Self {
            let Places { bytes, shifts } = &NARROW[usize::from(width)];
            // SAFETY: each reads 64 bytes, which are those of the array.
            let (bytes, shifts) =
                unsafe { (_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(shifts.as_ptr().cast())) };
            Self { bytes, shifts, mask: _mm512_set1_epi32((1 << width) - 1) }
        }

        #[inline]
        fn wide(width: u8) -> Self {
            let Places { bytes, shifts } = &WIDE[usize::from(width)];
            // SAFETY: each reads 64 bytes, which are those of the array.
            let (bytes, shifts) =
                unsafe { (_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(shifts.as_ptr().cast())) };
            Self { bytes, shifts, mask: _mm512_set1_epi64((1 << width) - 1) }
        }

        #[inline]
        fn sixteen(&self, packed: &[u8]) -> __m512i {
            let words = _mm512_permutexvar_epi8(self.bytes, load(packed).0);
            _mm512_and_si512(_mm512_srlv_epi32(words, self.shifts), self.mask)
        }

        #[inline]
        fn eight(&self, packed: &[u8]) -> __m512i {
            let words = _mm512_permutexvar_epi8(self.bytes, load(packed).0);
            _mm512_and_si512(_mm512_srlv_epi64(words, self.shifts), self.mask)
        }
    }
}

avx512! {
    /// [`unpack_plain`](super::unpack::unpack_plain) for widths up to [`NARROW_BITS_MAX`]. This takes 0.07 ns for a number.
    pub(super) fn unpack(mut packed: &[u8], width: u8, out: &mut [u32]) -> u32 {
        let unpacker = Unpacker::narrow(width);
        let (whole, rest) = out.as_chunks_mut::<16>();
        let mut greatest = _mm512_setzero_si512();
        for numbers in whole {
            let sixteen = unpacker.sixteen(packed);
            greatest = _mm512_max_epu32(greatest, sixteen);
            store(sixteen, numbers);
            packed = packed.get(2 * usize::from(width)..).unwrap_or_default();
        }
        let mut greatest = _mm512_reduce_max_epu32(greatest);
        if !rest.is_empty() {
            let mut numbers = [0; 16];
            store(unpacker.sixteen(packed), &mut numbers);
            rest.copy_from_slice(&numbers[..rest.len()]);
            greatest = rest.iter().fold(greatest, |greatest, &number| greatest.max(number));
        }
        greatest
    }

    /// [`add_deltas_plain`](super::unpack::add_deltas_plain) for widths up to [`WIDE_BITS_MAX`].
    pub(super) fn add_deltas(mut packed: &[u8], width: u8, delta_min: i64, last: i64, out: &mut [i64]) -> i64 {
        let (unpacker, delta_min) = (Unpacker::wide(width), _mm512_set1_epi64(delta_min));
        let (zero, seventh) = (_mm512_setzero_si512(), _mm512_set1_epi64(7));
        let mut before = _mm512_set1_epi64(last);
        let mut next = || {
            let mut sums = _mm512_add_epi64(unpacker.eight(packed), delta_min);
            // Each lane gets the sum of all lanes up to it: of two, of four, of eight.
            sums = _mm512_add_epi64(sums, _mm512_alignr_epi64::<7>(sums, zero));
            sums = _mm512_add_epi64(sums, _mm512_alignr_epi64::<6>(sums, zero));
            sums = _mm512_add_epi64(sums, _mm512_alignr_epi64::<4>(sums, zero));
            let values = _mm512_add_epi64(sums, before);
            before = _mm512_permutexvar_epi64(seventh, values);
            packed = packed.get(usize::from(width)..).unwrap_or_default();
            values
        };
        let (whole, rest) = out.as_chunks_mut::<8>();
        let mut last = last;
        for values in whole {
            store(next(), values);
            last = values[7];
        }
        if !rest.is_empty() {
            let mut values = [0; 8];
            store(next(), &mut values);
            rest.copy_from_slice(&values[..rest.len()]);
            last = values[rest.len() - 1];
        }
        last
    }

    /// [`expand_plain`](super::unpack::expand_plain).
    pub(super) fn expand(bits: &[u8], mut numbers: &[u32], other: u32, out: &mut [u32]) {
        let others = _mm512_set1_epi32(other.cast_signed());
        let mut next = |bits: u16| {
            let here = low_bits(numbers.len());
            // SAFETY: it reads the numbers that have a bit in `here`, which are the first of `numbers`, and touches no other.
            let first = unsafe { _mm512_maskz_loadu_epi32(here, numbers.as_ptr().cast()) };
            numbers = numbers.get(bits.count_ones() as usize..).unwrap_or_default();
            _mm512_mask_expand_epi32(others, bits, first)
        };
        let (whole, rest) = out.as_chunks_mut::<16>();
        let (twos, last_bits) = bits.split_at(2 * whole.len());
        for (rows, two) in whole.iter_mut().zip(twos.as_chunks::<2>().0) {
            store(next(u16::from_le_bytes(*two)), rows);
        }
        if !rest.is_empty() {
            let mut two = [0; 2];
            let bytes = rest.len().div_ceil(8);
            two[..bytes].copy_from_slice(&last_bits[..bytes]);
            let mut rows = [0; 16];
            store(next(u16::from_le_bytes(two) & low_bits(rest.len())), &mut rows);
            rest.copy_from_slice(&rows[..rest.len()]);
        }
    }

    /// [`sum_miniblock_plain`](super::unpack::sum_miniblock_plain). Eight numbers are added lane by lane; a lane is shifted and
    /// multiplied once for all eight of its numbers. This takes 0.15 ns for a number, the scalar code 0.4 ns.
    pub(super) fn sum_miniblock(packed: &[u8], width: u8) -> (u64, u64) {
        const EIGHTS: usize = MINIBLOCK_VALUES / 8;
        let (unpacker, step) = (Unpacker::wide(width), usize::from(width));
        let (mut sums, mut weighted) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for eight in 0..EIGHTS {
            sums = _mm512_add_epi64(sums, unpacker.eight(&packed[eight * step..]));
            weighted = _mm512_add_epi64(weighted, sums);
        }
        // The number in this lane of the first eight is in 64 - `lane` prefix sums, that of the next in 8 fewer.
        let lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
        let low = _mm512_mul_epu32(sums, lanes);
        let high = _mm512_slli_epi64::<32>(_mm512_mul_epu32(_mm512_srli_epi64::<32>(sums), lanes));
        let running = _mm512_sub_epi64(_mm512_slli_epi64::<3>(weighted), _mm512_add_epi64(low, high));
        let sum = |lanes| _mm512_reduce_add_epi64(lanes).cast_unsigned();
        (sum(sums), sum(running))
    }

    /// Writes all lanes.
    #[inline]
    fn store<T: Lane, const COUNT: usize>(lanes: __m512i, out: &mut [T; COUNT]) {
        const { assert!(size_of::<[T; COUNT]>() == LANES, "all lanes fit") };
        // SAFETY: it writes 64 bytes, which are those of the array, and any bits are a value of an integer.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), lanes) };
    }
}

/// An integer, of which any bits are a value.
trait Lane {}
impl Lane for u32 {}
impl Lane for i64 {}

/// A mask of the first lanes, all if there are more.
fn low_bits(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}
