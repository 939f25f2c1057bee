//! Bounds of what a call says of its upload, and of files that are not plain CSV.

/// Bytes of memory for a transfer that runs or waits, besides what it moves.
pub const TRANSFER_ENTRY_BYTES: usize = 512;
/// Bytes of an idempotency key. One that an upload has claimed takes twice as much, in a hash table that may be half empty.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// Texts that mean no value, of one upload.
pub const NULL_TEXTS_MAX: usize = 32;
/// Bytes of these texts together.
pub const NULL_TEXTS_BYTES_MAX: usize = 1024;
/// Bytes of the message with the options of an upload over gRPC.
pub const UPLOAD_OPTIONS_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a cell that are collected before it is written. A longer cell is written as it comes, in quotes.
pub const CELL_START_BYTES: usize = 2 * 1024;
/// Bytes that are collected from a stream before they are rewritten as plain CSV.
pub const REWRITE_BLOCK_BYTES: usize = 16 * 1024;
/// Bytes that are rewritten in one step, between two looks at the length of the output.
pub const REWRITE_STEP_BYTES: usize = 4 * 1024;
/// Bytes of output at which a task that rewrites ends. The last step may exceed it.
pub const REWRITE_OUTPUT_BYTES: usize = 16 * 1024;
/// Bytes that one byte of a file can become: one byte of another encoding can be a character with three bytes of UTF-8, and a
/// quote is doubled.
pub const REWRITE_GROWTH_MAX: usize = 3;
/// Empty cells at the end of a row that are written if a value follows them.
pub const REWRITE_EMPTY_CELLS_MAX: usize = 4 * 1024 + 1;
/// Bytes of the buffer for rewritten text: the last step may also write the start of a cell, in which every byte is a quote, and
/// the commas of empty cells that were not written before.
pub const REWRITE_BUFFER_BYTES: usize =
    REWRITE_OUTPUT_BYTES + REWRITE_GROWTH_MAX * REWRITE_STEP_BYTES + 2 * CELL_START_BYTES + REWRITE_EMPTY_CELLS_MAX;
/// Bytes that rewriting needs for an upload: a block, the start of a cell, and output that is not received yet.
pub const REWRITE_BYTES: usize = REWRITE_BLOCK_BYTES + CELL_START_BYTES + REWRITE_BUFFER_BYTES;
/// Files that are decompressed at once; more wait.
pub const DECODERS_MAX: usize = 2;
/// The binary logarithm of the bytes of the largest Zstandard window.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Bytes that decompression and the rewriting after it may need: a window of 8 MiB, and 2 MiB for the decoder, a few blocks and
/// what they become.
pub const DECODER_BYTES: usize = (1 << ZSTD_WINDOW_LOG_MAX) + 2 * 1024 * 1024;
/// Bytes of decompressed text that one task makes. The last step may exceed it.
pub const DECOMPRESS_TASK_BYTES: usize = 512 * 1024;

/// A text that means no value is compared with a cell that is collected as a whole.
const _: () = assert!(NULL_TEXTS_BYTES_MAX < CELL_START_BYTES);
/// Removed parts that are listed in one answer.
pub const REMOVED_LISTED_MAX: usize = 32;
