//! Checksums as text in receipts and job records.

/// A checksum as 16 lower-case hexadecimal digits.
pub fn to_hex(checksum: u64) -> String {
    format!("{checksum:016x}")
}

/// Parses what [`to_hex`] writes, and nothing else.
pub fn from_hex(text: &str) -> Option<u64> {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() == 16 && text.bytes().all(is_digit) { u64::from_str_radix(text, 16).ok() } else { None }
}
