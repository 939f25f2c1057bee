//! Encodes integers as DELTA_BINARY_PACKED (Parquet's Encodings.md): deltas, less the minimum of their block, in as many
//! bits as the largest needs. Only arithmetic: no pages, no files.

use crate::engine::values::varint::{put_i64, put_u64};

/// Values of a block. The sizes are those of the parquet crate's writer, so that `parquet/page_sum.rs` reads both.
const BLOCK_VALUES: usize = 256;
/// Values of a miniblock. Each miniblock has its own bit width.
pub const MINIBLOCK_VALUES: usize = 64;
/// Miniblocks of a block.
pub const MINIBLOCKS: usize = BLOCK_VALUES / MINIBLOCK_VALUES;

/// The limit of [`put_narrow`]: two values that are less than this from zero are less than 2^31 apart.
pub const NARROW_DELTAS_END: u32 = 1 << 30;

/// Appends values as DELTA_BINARY_PACKED, and returns the smallest and the largest. It is inlined, so that it is compiled
/// for the processor features of its caller.
#[inline(always)]
pub fn put(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    put_u64(BLOCK_VALUES as u64, out);
    put_u64(MINIBLOCKS as u64, out);
    put_u64(values.len() as u64, out);
    put_i64(values.first().copied().unwrap_or(0), out);
    let mut range = values.first().map(|first| (*first, *first));
    let mut deltas = [0_i64; BLOCK_VALUES];
    let mut start = 1;
    while start < values.len() {
        let block = &values[start - 1..values.len().min(start + BLOCK_VALUES)];
        let wider = |(least, most): (i64, i64), value: &i64| (least.min(*value), most.max(*value));
        range = range.map(|range| block.iter().fold(range, wider));
        let count = block.len() - 1;
        for (delta, pair) in deltas.iter_mut().zip(block.windows(2)) {
            *delta = pair[1].wrapping_sub(pair[0]);
        }
        let least = deltas[..count].iter().copied().min().unwrap_or(0);
        put_i64(least, out);
        // The last block is padded with deltas that are packed as 0.
        deltas[count..].fill(least);
        let (miniblocks, _) = deltas.as_chunks::<MINIBLOCK_VALUES>();
        let mut offsets = [[0; MINIBLOCK_VALUES]; MINIBLOCKS];
        let widths_at = out.len();
        for (miniblock, offsets) in miniblocks.iter().zip(&mut offsets) {
            let mut all = 0;
            for (delta, offset) in miniblock.iter().zip(offsets.iter_mut()) {
                *offset = delta.wrapping_sub(least).cast_unsigned();
                all |= *offset;
            }
            out.push(width_of(all));
        }
        for (index, offsets) in offsets.iter().enumerate() {
            let width = out[widths_at + index];
            match width {
                0 => {}
                1..=32 => {
                    let mut pairs = [0; PAIRS];
                    for (pair, two) in pairs.iter_mut().zip(offsets.as_chunks::<2>().0) {
                        *pair = two[0] | two[1] << width;
                    }
                    put_pairs(&pairs, width, out);
                }
                _ => pack(offsets, width.into(), out),
            }
        }
        start += BLOCK_VALUES;
    }
    range
}

/// As [`put`], with the same result, for values less than [`NARROW_DELTAS_END`] from zero: a vector has twice as many.
#[inline(always)]
#[allow(clippy::cast_sign_loss, reason = "deltas are used as bit patterns")]
pub fn put_narrow(values: &[i32], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    put_u64(BLOCK_VALUES as u64, out);
    put_u64(MINIBLOCKS as u64, out);
    put_u64(values.len() as u64, out);
    put_i64(values.first().copied().unwrap_or(0).into(), out);
    let mut range = (*values.first().unwrap_or(&0), *values.first().unwrap_or(&0));
    let mut offsets = [0_u32; BLOCK_VALUES];
    let mut start = 1;
    while start < values.len() {
        let block = &values[start - 1..values.len().min(start + BLOCK_VALUES)];
        let count = block.len() - 1;
        debug_assert!(block.iter().all(|value| value.unsigned_abs() < NARROW_DELTAS_END), "deltas would wrap");
        let mut least = i32::MAX;
        for ((offset, value), before) in offsets.iter_mut().zip(&block[1..]).zip(block) {
            *offset = (value - before) as u32;
            least = least.min(value - before);
            range = (range.0.min(*value), range.1.max(*value));
        }
        put_i64(least.into(), out);
        // The last block is padded with deltas that are packed as 0.
        offsets[count..].fill(least as u32);
        let mut widths = [0; MINIBLOCKS];
        for (width, offsets) in widths.iter_mut().zip(offsets.as_chunks_mut::<MINIBLOCK_VALUES>().0) {
            let mut all = 0;
            for offset in offsets {
                *offset = offset.wrapping_sub(least as u32);
                all |= *offset;
            }
            *width = width_of(all.into());
        }
        out.extend_from_slice(&widths);
        for (width, offsets) in widths.into_iter().zip(offsets.as_chunks::<MINIBLOCK_VALUES>().0) {
            if width == 0 {
                continue;
            }
            let mut pairs = [0; PAIRS];
            for (pair, two) in pairs.iter_mut().zip(offsets.as_chunks::<2>().0) {
                *pair = u64::from(two[0]) | u64::from(two[1]) << width;
            }
            put_pairs(&pairs, width, out);
        }
        start += BLOCK_VALUES;
    }
    (!values.is_empty()).then_some((range.0.into(), range.1.into()))
}

/// The bits that a value needs.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "64 at most")]
fn width_of(value: u64) -> u8 {
    (u64::BITS - value.leading_zeros()) as u8
}

/// Pairs of values in a miniblock.
const PAIRS: usize = MINIBLOCK_VALUES / 2;

/// Appends a miniblock of values of at most 32 bits, given as packed pairs.
#[inline(always)]
fn put_pairs(pairs: &[u64; PAIRS], width: u8, out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + usize::from(width) * MINIBLOCK_VALUES / 8, 0);
    PACK[usize::from(width)](pairs, out[at..].as_chunks_mut().0);
}

/// Writes pairs of values of one width, the first value in the lowest bits.
type Pack = fn(&[u64; PAIRS], &mut [[u8; 8]]);

/// A packer for each width of a value.
const PACK: [Pack; 33] = {
    macro_rules! of_widths {
        ($($width:literal)*) => { [$(pack_pairs::<$width>),*] };
    }
    of_widths!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32)
};

/// The width is a constant and the loop is unrolled, so every index and shift is a constant, too. It does not use vectors,
/// so it need not be inlined.
fn pack_pairs<const WIDTH: usize>(pairs: &[u64; PAIRS], out: &mut [[u8; 8]]) {
    let mut words = out[..WIDTH].iter_mut();
    let mut word = 0;
    macro_rules! for_pairs {
        ($($index:literal)*) => {$(
            let bit = $index * 2 * WIDTH % 64;
            word |= pairs[$index] << bit;
            if bit + 2 * WIDTH >= 64 {
                if let Some(out) = words.next() {
                    *out = word.to_le_bytes();
                }
                // The bits that did not fit.
                word = if bit + 2 * WIDTH == 64 { 0 } else { pairs[$index] >> (64 - bit) };
            }
        )*};
    }
    for_pairs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    debug_assert!(word == 0 && words.next().is_none(), "64 values of any width fill whole words");
}

/// Appends the low `width` bits of each value, for widths over 32, the first value in the lowest bits.
fn pack(values: &[u64; MINIBLOCK_VALUES], width: usize, out: &mut Vec<u8>) {
    let (mut word, mut filled) = (0_u64, 0);
    for &value in values {
        word |= value << filled;
        filled += width;
        if filled >= 64 {
            out.extend_from_slice(&word.to_le_bytes());
            filled -= 64;
            // The bits that did not fit.
            word = if filled == 0 { 0 } else { value >> (width - filled) };
        }
    }
    out.extend_from_slice(&word.to_le_bytes()[..filled / 8]);
}
