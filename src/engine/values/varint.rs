//! Variable-length integers (LEB128), as Parquet and the spilled runs of group sums write them.

use crate::{
    engine::group_by::spill::{NUMBER_BYTES_MAX, damaged},
    error::Error,
};

/// Appends a number seven bits at a time, lowest first.
pub fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

pub(crate) fn put_zigzag(value: i64, out: &mut Vec<u8>) {
    put_varint((value << 1 ^ value >> 63).cast_unsigned(), out);
}

pub(crate) fn put_number(block: &mut Vec<u8>, mut number: u128) {
    while number > 0x7f {
        block.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    block.push((number & 0x7f) as u8);
}

pub(crate) fn take_number(block: &mut &[u8]) -> Result<u128, Error> {
    let mut number = 0;
    for (index, &byte) in block.iter().take(NUMBER_BYTES_MAX).enumerate() {
        number |= u128::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *block = &block[index + 1..];
            return Ok(number);
        }
    }
    Err(damaged())
}
