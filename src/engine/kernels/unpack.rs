//! Unpacks bit-packed numbers (Parquet's Encodings.md): each takes `width` bits, the first the lowest bits of the first byte.
//! Only arithmetic: no pages, no files. Of each function there is a vector version in `avx512_unpack.rs`.

use super::delta::MINIBLOCK_VALUES;

/// Up to this width, the sum of a miniblock and of its prefix sums fits in 64 bits: 2^48 * 2080 is far less than 2^63.
pub const SUM_BITS_MAX: u8 = 48;

/// Bytes that are read at once.
const WORD_BYTES: usize = 8;

/// [`super::unpack()`]
#[allow(clippy::cast_possible_truncation, reason = "a number has at most 32 bits")]
pub(super) fn unpack_plain(packed: &[u8], width: u8, out: &mut [u32]) -> u32 {
    let (mut eights, mut greatest) = (EightsOf { packed, width }, 0);
    for numbers in out.chunks_mut(8) {
        let unpacked = eights.next(numbers.len());
        for (number, unpacked) in numbers.iter_mut().zip(unpacked) {
            *number = unpacked as u32;
            greatest = greatest.max(*number);
        }
    }
    greatest
}

/// Packed numbers of at most 64 bits. Eight of them fill whole bytes.
struct EightsOf<'a> {
    packed: &'a [u8],
    width: u8,
}

impl EightsOf<'_> {
    /// The next eight numbers, of which `count` are stored.
    #[inline]
    fn next(&mut self, count: usize) -> [u64; 8] {
        let width = usize::from(self.width);
        let bytes = (count * width).div_ceil(8);
        let mut numbers = [0; 8];
        if self.packed.len() > width + WORD_BYTES {
            for (at, number) in numbers.iter_mut().enumerate() {
                *number = number_at(self.packed, at, self.width);
            }
        } else {
            let mut padded = [0; 64 + WORD_BYTES + 1];
            padded[..bytes].copy_from_slice(&self.packed[..bytes]);
            for (at, number) in numbers[..count].iter_mut().enumerate() {
                *number = number_at(&padded, at, self.width);
            }
        }
        self.packed = &self.packed[bytes..];
        numbers
    }
}

/// A number of at most 64 bits. At least 8 bytes can be read from its first one on, and 9 if it needs them.
#[inline]
fn number_at(packed: &[u8], at: usize, width: u8) -> u64 {
    let bit = at * usize::from(width);
    let (mut low, shift) = ([0; WORD_BYTES], bit % 8);
    low.copy_from_slice(&packed[bit / 8..][..WORD_BYTES]);
    let number = u64::from_le_bytes(low) >> shift;
    if usize::from(width) + shift <= 64 {
        return number & 1_u64.checked_shl(u32::from(width)).map_or(u64::MAX, |bit| bit - 1);
    }
    let ninth = u64::from(packed[bit / 8 + WORD_BYTES]) << (64 - shift);
    (number | ninth) & 1_u64.checked_shl(u32::from(width)).map_or(u64::MAX, |bit| bit - 1)
}

/// [`super::add_deltas`]
pub(super) fn add_deltas_plain(packed: &[u8], width: u8, delta_min: i64, mut last: i64, out: &mut [i64]) -> i64 {
    let mut eights = EightsOf { packed, width };
    for values in out.chunks_mut(8) {
        let deltas = eights.next(values.len());
        for (value, delta) in values.iter_mut().zip(deltas) {
            last = last.wrapping_add(delta_min).wrapping_add(delta.cast_signed());
            *value = last;
        }
    }
    last
}

/// [`super::expand`]
pub(super) fn expand_plain(bits: &[u8], numbers: &[u32], other: u32, out: &mut [u32]) {
    let mut next = 0;
    for (row, number) in out.iter_mut().enumerate() {
        let is_set = bits[row / 8] >> (row % 8) & 1 == 1;
        // After the last number, no bit is set.
        let found = numbers.get(next).copied().unwrap_or(other);
        *number = if is_set { found } else { other };
        next += usize::from(is_set);
    }
}

/// [`super::sum_miniblock`]
pub(super) fn sum_miniblock_plain(packed: &[u8], width: u8) -> (u64, u64) {
    SUMS[usize::from(width)](packed)
}

/// Returns the sum of a miniblock's numbers, and the sum of their prefix sums.
type MiniblockSum = fn(&[u8]) -> (u64, u64);

/// One function for each width.
const SUMS: [MiniblockSum; SUM_BITS_MAX as usize + 1] = {
    macro_rules! of_widths {
        ($($width:literal)*) => { [$(sum_of_width::<$width>),*] };
    }
    of_widths!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47 48)
};

/// The width is a constant, and 8 numbers fill whole bytes, so every offset and mask is a constant, too. In each group of
/// eight numbers, those at the same index are added without shifting; the total is shifted once. Four indices at a time fit
/// in the registers. This takes 0.39 ns for a number; a running sum takes 0.51 ns.
fn sum_of_width<const WIDTH: usize>(packed: &[u8]) -> (u64, u64) {
    const EIGHTS: usize = MINIBLOCK_VALUES / 8;
    let (mut all, mut running) = (0_u64, 0_u64);
    let packed = &packed[..EIGHTS * WIDTH + WORD_BYTES];
    for first in [0, 4] {
        let (mut sums, mut weighted) = ([0_u64; 4], [0_u64; 4]);
        for eight in 0..EIGHTS {
            for (at, sum) in sums.iter_mut().enumerate() {
                let bit = (first + at) * WIDTH;
                let mut word = [0; WORD_BYTES];
                word.copy_from_slice(&packed[eight * WIDTH + bit / 8..][..WORD_BYTES]);
                // 36 times a number of 48 bits, shifted by 7 at most, fits in 64 bits.
                *sum += u64::from_le_bytes(word) & (((1 << WIDTH) - 1) << (bit % 8));
            }
            for (weighted, sum) in weighted.iter_mut().zip(sums) {
                *weighted += sum;
            }
        }
        for (at, (sum, weighted)) in (first..).zip(sums.into_iter().zip(weighted)) {
            let shift = at * WIDTH % 8;
            all += sum >> shift;
            // The number at this index of the first eight is in 64 - `at` prefix sums, that of the next in 8 fewer.
            running += (weighted >> shift) * 8 - (sum >> shift) * at as u64;
        }
    }
    (all, running)
}
