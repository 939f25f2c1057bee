//! Which of 64 bytes are commas, row ends or quotes, as one bit mask, without vector instructions of a certain
//! processor.
//!
//! For code that looks at one mark after the other. The vector kernels compare for themselves, as they need a mask for
//! each kind of byte and have the bytes in registers.

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

/// The same for 64 bytes. The compiler makes the comparisons vector instructions; the multiplication gathers the lowest
/// bit of each of eight bytes in the highest byte, first byte first.
#[inline]
pub(super) fn structure_of(lanes: &[u8; LANES]) -> u64 {
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let is_mark = lanes.map(|byte| u8::from((byte == b',') | (byte == b'\n') | (byte == b'\r') | (byte == b'"')));
    let (eights, _) = is_mark.as_chunks::<8>();
    let gathered = eights.iter().map(|eight| u64::from_le_bytes(*eight).wrapping_mul(GATHER) >> 56);
    gathered.enumerate().fold(0, |marks, (index, bits)| marks | bits << (8 * index))
}

/// The scalar twin of [`structure_of`].
#[cfg(test)]
pub(super) fn structure_plain(lanes: &[u8; LANES]) -> u64 {
    let is_mark = |byte: &u8| matches!(byte, b',' | b'\n' | b'\r' | b'"');
    lanes.iter().enumerate().fold(0, |marks, (index, byte)| marks | u64::from(is_mark(byte)) << index)
}
