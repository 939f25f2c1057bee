//! Integers as DELTA_BINARY_PACKED (Parquet's Encodings.md): differences, less the least of their block, in as many bits
//! as the largest needs. Arithmetic alone: no pages, no files.

/// Values of a block, and of each of its four parts that has a width of its own: as Parquet's writer has them, so that
/// `pages.rs` takes them.
const BLOCK_VALUES: usize = 256;
const MINIBLOCK_VALUES: usize = 64;

/// Appends values as DELTA_BINARY_PACKED, and returns the least and the most of them. Inline, so that it is compiled for
/// whatever its caller is.
#[inline(always)]
pub fn put(values: &[i64], out: &mut Vec<u8>) -> Option<(i64, i64)> {
    put_varint(BLOCK_VALUES as u64, out);
    put_varint((BLOCK_VALUES / MINIBLOCK_VALUES) as u64, out);
    put_varint(values.len() as u64, out);
    put_zigzag(values.first().copied().unwrap_or(0), out);
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
        put_zigzag(least, out);
        // What is missing in the last block becomes 0.
        deltas[count..].fill(least);
        let (miniblocks, _) = deltas.as_chunks::<MINIBLOCK_VALUES>();
        let mut offsets = [[0; MINIBLOCK_VALUES]; BLOCK_VALUES / MINIBLOCK_VALUES];
        let widths_at = out.len();
        for (miniblock, offsets) in miniblocks.iter().zip(&mut offsets) {
            let mut all = 0;
            for (delta, offset) in miniblock.iter().zip(offsets.iter_mut()) {
                *offset = delta.wrapping_sub(least).cast_unsigned();
                all |= *offset;
            }
            out.push(64 - all.leading_zeros().to_le_bytes()[0]);
        }
        for (index, offsets) in offsets.iter().enumerate() {
            let width = usize::from(out[widths_at + index]);
            pack(offsets, width, out);
        }
        start += BLOCK_VALUES;
    }
    range
}

/// Appends the low `width` bits of each value, first value lowest.
#[inline(always)]
fn pack(values: &[u64; MINIBLOCK_VALUES], width: usize, out: &mut Vec<u8>) {
    if width == 0 {
        return;
    }
    let mut pairs = [0; MINIBLOCK_VALUES / 2];
    let (values, width) = if width <= 32 {
        // Two at once.
        for (pair, two) in pairs.iter_mut().zip(values.as_chunks::<2>().0) {
            *pair = two[0] | two[1] << width;
        }
        (&pairs[..], 2 * width)
    } else {
        (&values[..], width)
    };
    let (mut word, mut filled) = (0_u64, 0);
    for &value in values {
        word |= value << filled;
        filled += width;
        if filled >= 64 {
            out.extend_from_slice(&word.to_le_bytes());
            filled -= 64;
            // What did not fit in any more.
            word = if filled == 0 { 0 } else { value >> (width - filled) };
        }
    }
    out.extend_from_slice(&word.to_le_bytes()[..filled / 8]);
}

/// Appends a number seven bits at a time, lowest first.
pub fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_zigzag(value: i64, out: &mut Vec<u8>) {
    put_varint((value << 1 ^ value >> 63).cast_unsigned(), out);
}
