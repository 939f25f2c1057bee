//! Checksums of the blocks of column chunks, and how the footer lists them.

use parquet::file::metadata::KeyValue;

use crate::{
    engine::storage::checksums::CHUNK_BLOCK_BYTES,
    model::{checksum::to_hex, part::SMALL_PARQUET_BYTES},
};

/// The key of the footer's entry with the checksums: 16 hexadecimal digits for each block of [`CHUNK_BLOCK_BYTES`], in the
/// order of row groups, column chunks and blocks.
pub(super) const CHUNK_CHECKSUMS_KEY: &str = "tally.chunks.xxh3";

/// Digits of the checksum of one block.
pub(super) const CHECKSUM_DIGITS: usize = 16;

/// The checksums of a file's column chunks, collected for its footer.
#[derive(Default)]
pub(crate) struct ChunkChecksums(String);

impl ChunkChecksums {
    /// An upper bound of the bytes for a file of this size.
    pub(crate) const fn bytes_max(column_chunks: usize, file_bytes: usize) -> usize {
        (column_chunks + file_bytes / CHUNK_BLOCK_BYTES) * CHECKSUM_DIGITS
    }

    /// Adds the checksum of the next block.
    pub(super) fn push(&mut self, sum: u64) {
        self.0 += &to_hex(sum);
    }

    /// The footer's entry; `None` for a small file, which has one checksum for all of its bytes.
    pub(super) fn entry(self, before_footer: usize) -> Option<KeyValue> {
        let is_small = before_footer as u64 <= SMALL_PARQUET_BYTES;
        (!is_small).then(|| KeyValue::new(CHUNK_CHECKSUMS_KEY.to_owned(), self.0))
    }
}
