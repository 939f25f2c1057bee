//! Checksums as text: how receipts and job records write them.

/// A checksum as records have it: 16 lower case hexadecimal digits.
pub fn to_hex(checksum: u64) -> String {
    format!("{checksum:016x}")
}

/// What [`to_hex`] wrote; none if it is anything else.
pub fn from_hex(text: &str) -> Option<u64> {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() == 16 && text.bytes().all(is_digit) { u64::from_str_radix(text, 16).ok() } else { None }
}
