//! Which of 64 bytes are quotes, commas and line ends, as bit masks.

use crate::engine::csv::scanner::LANES;

/// One bit for each of the 64 bytes from `base` that is a comma, a row end or a quote. Bytes past the end have none.
pub(crate) fn structure(block: &[u8], base: usize) -> u64 {
    if let Some(lanes) = block[base..].first_chunk::<LANES>() {
        structure_of(lanes)
    } else {
        let mut lanes = [0; LANES];
        lanes[..block.len() - base].copy_from_slice(&block[base..]);
        structure_of(&lanes)
    }
}

/// The comparisons become vector instructions; the multiplication gathers the lowest bit of each of eight bytes in the
/// highest byte, first byte first.
pub(crate) fn structure_of(lanes: &[u8; LANES]) -> u64 {
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let is_mark = lanes.map(|byte| u8::from((byte == b',') | (byte == b'\n') | (byte == b'\r') | (byte == b'"')));
    let (eights, _) = is_mark.as_chunks::<8>();
    let gathered = eights.iter().map(|eight| u64::from_le_bytes(*eight).wrapping_mul(GATHER) >> 56);
    gathered.enumerate().fold(0, |marks, (index, bits)| marks | bits << (8 * index))
}

/// What `structure_of` means, byte by byte.
#[cfg(test)]
pub(crate) fn structure_plain(lanes: &[u8; LANES]) -> u64 {
    let is_mark = |byte: &u8| matches!(byte, b',' | b'\n' | b'\r' | b'"');
    lanes.iter().enumerate().fold(0, |marks, (index, byte)| marks | u64::from(is_mark(byte)) << index)
}
