//! Checksums of the blocks of column chunks, and how the footer lists them.

use parquet::file::metadata::KeyValue;

use crate::{
    engine::storage::checksums::CHUNK_BLOCK_BYTES,
    model::{checksum::to_hex, part::SMALL_PARQUET_BYTES},
};

/// What a footer calls the checksums of its column chunks: for each chunk, row group after row group, those of its blocks
/// of [`CHUNK_BLOCK_BYTES`], 16 hexadecimal digits each.
pub(super) const CHUNK_SUMS_KEY: &str = "tally.chunks.xxh3";

/// Bytes that the checksum of one block takes there.
pub(super) const CHUNK_SUM_DIGITS: usize = 16;

/// The checksums of a file's column chunks on their way into its footer.
#[derive(Default)]
pub(crate) struct ChunkSums(String);

impl ChunkSums {
    /// Bytes for a file of so many column chunks and so many bytes.
    pub(crate) const fn bytes_max(column_chunks: usize, file_bytes: usize) -> usize {
        (column_chunks + file_bytes / CHUNK_BLOCK_BYTES) * CHUNK_SUM_DIGITS
    }

    /// That of the next block.
    pub(super) fn push(&mut self, sum: u64) {
        self.0 += &to_hex(sum);
    }

    /// The footer's entry; none where the whole file has a checksum.
    pub(super) fn entry(self, before_footer: usize) -> Option<KeyValue> {
        let is_small = before_footer as u64 <= SMALL_PARQUET_BYTES;
        (!is_small).then(|| KeyValue::new(CHUNK_SUMS_KEY.to_owned(), self.0))
    }
}
