//! Checksums of stored bytes: of the blocks of a file, of the pages of a block list (`N.sums`), of a record. No file is
//! read or written here.
//!
//! ```text
//! N.sums       pages; all but the last have 511 checksums
//! page         checksums of blocks, 8 bytes each, little endian; then the checksum of the page itself
//! record       {"format":2,...,"record_xxh3":"16 hexadecimal digits"}: of all bytes before `,"record_xxh3"`
//! ```
//!
//! All are XXH3 of 64 bits. The seed of a page's checksum is a random number of the file plus the index of the page, so
//! that pages of another file or in the wrong order are detected.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

use crate::{
    limits::{CHECKSUM_PAGE_BYTES, READ_BLOCK_BYTES},
    model::checksum::{from_hex, to_hex},
};

/// Bytes of a block of CSV and of jobs' files.
pub const BLOCK_BYTES: usize = READ_BLOCK_BYTES;
/// Bytes of a block of a column chunk in a Parquet file.
pub const CHUNK_BLOCK_BYTES: usize = 4 * READ_BLOCK_BYTES;
/// Checksums of blocks in a full page of `N.sums`.
pub const PAGE_SUMS_MAX: usize = PAGE_BYTES_MAX / SUM_BYTES - 1;
/// Bytes of a full page.
pub const PAGE_BYTES_MAX: usize = CHECKSUM_PAGE_BYTES;
/// Bytes of a checksum.
const SUM_BYTES: usize = 8;

/// The checksum of some bytes.
#[inline]
pub fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// How many checksums a file of this size has in its block list. A file of one block needs only its own checksum.
pub fn listed_blocks(file_bytes: u64) -> u64 {
    if file_bytes <= BLOCK_BYTES as u64 { 0 } else { file_bytes.div_ceil(BLOCK_BYTES as u64) }
}

/// Computes the checksum of each block of a byte stream.
pub struct BlockHasher {
    block_bytes: usize,
    hash: XxHash3_64,
    /// Bytes of the unfinished block.
    bytes: usize,
}

impl BlockHasher {
    /// A hasher for blocks of `block_bytes`.
    pub fn new(block_bytes: usize) -> Self {
        Self { block_bytes, hash: XxHash3_64::new(), bytes: 0 }
    }

    /// Adds bytes, and calls `each` with the checksum of every block that they complete.
    pub fn update(&mut self, mut bytes: &[u8], mut each: impl FnMut(u64)) {
        while !bytes.is_empty() {
            let taken;
            (taken, bytes) = bytes.split_at(bytes.len().min(self.block_bytes - self.bytes));
            if taken.len() == self.block_bytes {
                each(checksum(taken));
                continue;
            }
            self.hash.write(taken);
            self.bytes += taken.len();
            if self.bytes == self.block_bytes {
                self.end().into_iter().for_each(&mut each);
            }
        }
    }

    /// Ends the unfinished block and returns its checksum; `None` if it has no bytes.
    pub fn end(&mut self) -> Option<u64> {
        let has_bytes = std::mem::take(&mut self.bytes) > 0;
        has_bytes.then(|| std::mem::take(&mut self.hash).finish())
    }
}

/// Collects checksums into the pages of `N.sums`.
pub struct PageWriter {
    seed: u64,
    pages: u64,
    sums: Vec<u64>,
}

impl PageWriter {
    /// A writer of the first page of a file with this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, pages: 0, sums: Vec::new() }
    }

    /// Adds a checksum. Returns the page if this completes it.
    pub fn push(&mut self, sum: u64) -> Option<Vec<u8>> {
        self.sums.push(sum);
        if self.sums.len() == PAGE_SUMS_MAX { self.end() } else { None }
    }

    /// Ends the page and returns it; `None` if it would be empty.
    pub fn end(&mut self) -> Option<Vec<u8>> {
        if self.sums.is_empty() {
            return None;
        }
        let mut page: Vec<u8> = Vec::with_capacity((self.sums.len() + 1) * SUM_BYTES);
        self.sums.drain(..).for_each(|sum| page.extend_from_slice(&sum.to_le_bytes()));
        let sum = page_checksum(self.seed, self.pages, &page);
        page.extend_from_slice(&sum.to_le_bytes());
        self.pages += 1;
        Some(page)
    }
}

/// The checksums in a page; `None` if the page is damaged.
pub fn read_page(seed: u64, index: u64, page: &[u8]) -> Option<Vec<u64>> {
    let (sums, page_sum) = page.split_last_chunk::<SUM_BYTES>()?;
    if page_checksum(seed, index, sums) != u64::from_le_bytes(*page_sum) {
        return None;
    }
    let (sums, rest) = sums.as_chunks::<SUM_BYTES>();
    rest.is_empty().then(|| sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
}

fn page_checksum(seed: u64, index: u64, sums: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed.wrapping_add(index), sums)
}

/// A record ends with this, 16 hexadecimal digits and `"}`.
const RECORD_END: &[u8] = b",\"record_xxh3\":\"";
const RECORD_END_BYTES: usize = RECORD_END.len() + 16 + 2;

/// The checksum of a record, compared with the record's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordChecksum {
    /// It matches.
    Valid,
    /// It does not match: the record is damaged.
    Invalid,
    /// There is no checksum: the record has version 1, or its end is damaged.
    Missing,
}

/// Adds its checksum to a record, which is a JSON object with at least one field.
pub fn add_checksum(mut record: Vec<u8>) -> Vec<u8> {
    record.pop(); // the closing brace
    let sum = to_hex(checksum(&record));
    record.extend_from_slice(RECORD_END);
    record.extend_from_slice(sum.as_bytes());
    record.extend_from_slice(b"\"}");
    record
}

/// Compares a record with the checksum that it carries.
pub fn verify_record(record: &[u8]) -> RecordChecksum {
    let Some((text, end)) = record.split_at_checked(record.len().saturating_sub(RECORD_END_BYTES)) else {
        return RecordChecksum::Missing;
    };
    let digits = end.strip_prefix(RECORD_END).and_then(|rest| rest.strip_suffix(b"\"}"));
    let Some(digits) = digits.and_then(|digits| std::str::from_utf8(digits).ok()) else {
        return RecordChecksum::Missing;
    };
    if from_hex(digits) == Some(checksum(text)) { RecordChecksum::Valid } else { RecordChecksum::Invalid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_depend_on_the_size_of_the_pieces() {
        let bytes: Vec<u8> = (0..10_007_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
        let expected: Vec<_> = bytes.chunks(1000).map(checksum).collect();
        for piece_bytes in [1, 7, 999, 1000, 1001, 2500, bytes.len()] {
            let (mut hasher, mut sums) = (BlockHasher::new(1000), Vec::new());
            bytes.chunks(piece_bytes).for_each(|piece| hasher.update(piece, |sum| sums.push(sum)));
            sums.extend(hasher.end());
            assert_eq!(sums, expected, "pieces of {piece_bytes} bytes");
            assert_eq!(hasher.end(), None);
        }
    }

    #[test]
    fn a_page_that_was_changed_or_moved_is_refused() {
        let mut writer = PageWriter::new(7);
        let mut pages: Vec<_> = (0..600).filter_map(|sum| writer.push(sum)).collect();
        pages.extend(writer.end());
        assert_eq!((pages.len(), pages[0].len(), pages[1].len()), (2, PAGE_BYTES_MAX, 90 * SUM_BYTES));
        assert_eq!(writer.end(), None);
        let read: Vec<_> =
            (0..).zip(&pages).flat_map(|(index, page)| read_page(7, index, page).expect("undamaged")).collect();
        assert_eq!(read, (0..600).collect::<Vec<_>>());
        assert_eq!(read_page(8, 0, &pages[0]), None, "of another file");
        assert_eq!(read_page(7, 1, &pages[0]), None, "at another index");
        for at in 0..pages[1].len() {
            let mut page = pages[1].clone();
            page[at] ^= 1;
            assert_eq!(read_page(7, 1, &page), None, "byte {at}");
            assert_eq!(read_page(7, 1, &pages[1][..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn a_record_that_was_changed_is_refused() {
        let record = add_checksum(br#"{"format":2,"part":7}"#.to_vec());
        assert_eq!(verify_record(&record), RecordChecksum::Valid);
        assert!(serde_json::from_slice::<serde_json::Value>(&record).is_ok_and(|value| value["part"] == 7));
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut changed = record.clone();
                changed[at] ^= 1 << bit;
                assert_ne!(verify_record(&changed), RecordChecksum::Valid, "byte {at}");
            }
            assert_ne!(verify_record(&record[..at]), RecordChecksum::Valid, "cut at {at}");
        }
        assert_eq!(verify_record(br#"{"format":1}"#), RecordChecksum::Missing);
        assert_eq!(verify_record(b""), RecordChecksum::Missing);
    }

    #[test]
    fn hexadecimal_digits() {
        for sum in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(from_hex(&to_hex(sum)), Some(sum));
        }
        for text in ["", "0", "+123456789abcdef", "0123456789ABCDEF", "0123456789abcdef0"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
