//! Marks commas, row ends and quotes of 64 bytes in one bit mask, without intrinsics. For code that visits the marks one
//! by one; the vector kernels compute a mask for each kind of byte.

use super::types::LANES;

/// A bit for each of the 64 bytes from `base` that is a comma, a row end or a quote. Bytes past the end have none.
#[inline]
pub(crate) fn structure(block: &[u8], base: usize) -> u64 {
    if let Some(lanes) = block[base..].first_chunk::<LANES>() {
        structure_of(lanes)
    } else {
        let mut lanes = [0; LANES];
        lanes[..block.len() - base].copy_from_slice(&block[base..]);
        structure_of(&lanes)
    }
}

/// As [`structure`], for 64 bytes. The compiler turns the comparisons into vector instructions. The multiplication collects
/// the lowest bits of eight bytes in the highest byte.
#[inline]
pub(super) fn structure_of(lanes: &[u8; LANES]) -> u64 {
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let is_mark = lanes.map(|byte| u8::from((byte == b',') | (byte == b'\n') | (byte == b'\r') | (byte == b'"')));
    let (eights, _) = is_mark.as_chunks::<8>();
    let gathered = eights.iter().map(|eight| u64::from_le_bytes(*eight).wrapping_mul(GATHER) >> 56);
    gathered.enumerate().fold(0, |marks, (index, bits)| marks | bits << (8 * index))
}

/// As [`structure_of`], byte by byte.
#[cfg(test)]
pub(super) fn structure_plain(lanes: &[u8; LANES]) -> u64 {
    let is_mark = |byte: &u8| matches!(byte, b',' | b'\n' | b'\r' | b'"');
    lanes.iter().enumerate().fold(0, |marks, (index, byte)| marks | u64::from(is_mark(byte)) << index)
}
