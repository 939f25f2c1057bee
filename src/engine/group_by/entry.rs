//! How a group is written as bytes, in memory and in runs: the length of its key, a total for each summed column, and the
//! key. Numbers are variable-length integers (`values/varint.rs`).

use crate::{
    engine::values::{
        sum::Sum,
        varint::{self, put_i128, put_u64, take_i64, take_i128, take_u64},
    },
    limits::GROUP_COLUMNS_MAX,
};

/// The bytes of an entry before its key, at most.
pub(super) const HEAD_BYTES_MAX: usize = varint::BYTES_MAX * (1 + GROUP_COLUMNS_MAX);

/// Numbers of so many bytes have at most 63 bits.
const SHORT_BYTES: usize = 9;

/// A group with its complete totals.
pub struct MergedGroup<'a> {
    /// Its cells with a NUL between them.
    pub key: &'a [u8],
    /// Its totals, in the order of the columns.
    pub totals: &'a [Sum],
}

/// Appends what comes before a key.
pub(super) fn put_head(key_bytes: usize, totals: impl Iterator<Item = Sum>, out: &mut Vec<u8>) {
    put_u64(key_bytes as u64, out);
    for total in totals {
        put_i128(total.exact(), out);
    }
}

/// Appends a whole entry.
pub(super) fn put_entry(group: &MergedGroup<'_>, out: &mut Vec<u8>) {
    put_head(group.key.len(), group.totals.iter().copied(), out);
    out.extend_from_slice(group.key);
}

/// Takes what comes before a key from the start of `bytes`, fills `totals`, and returns the length of the key. `None` if the
/// bytes are not an entry.
#[inline]
pub(super) fn take_head(bytes: &mut &[u8], totals: &mut [Sum]) -> Option<usize> {
    let key_bytes = usize::try_from(take_u64(bytes)?).ok()?;
    for total in totals {
        *total = Sum::of(take_total(bytes)?);
    }
    Some(key_bytes)
}

/// Takes a number. Nearly all are short, and 64 bits are faster than 128.
#[inline]
fn take_total(bytes: &mut &[u8]) -> Option<i128> {
    let is_short = bytes.iter().take(SHORT_BYTES).any(|byte| *byte < 0x80);
    if is_short { take_i64(bytes).map(i128::from) } else { take_i128(bytes) }
}

/// The key of the entry at the start of `bytes`, and the entry's length. `None` if the bytes are not an entry.
#[inline]
pub(super) fn key_of(bytes: &[u8], sums_count: usize) -> Option<(&[u8], usize)> {
    let mut rest = bytes;
    let key_bytes = usize::try_from(take_u64(&mut rest)?).ok()?;
    for _ in 0..sums_count {
        let last = rest.iter().position(|byte| *byte < 0x80)?;
        rest = &rest[last + 1..];
    }
    Some((rest.get(..key_bytes)?, bytes.len() - rest.len() + key_bytes))
}

/// Takes an entry from the start of `bytes`, fills `totals`, and returns the key. `None` if the bytes are not an entry.
#[inline]
pub(super) fn take_entry<'a>(bytes: &mut &'a [u8], totals: &mut [Sum]) -> Option<&'a [u8]> {
    let key_bytes = take_head(bytes, totals)?;
    let (key, rest) = bytes.split_at_checked(key_bytes)?;
    *bytes = rest;
    Some(key)
}
