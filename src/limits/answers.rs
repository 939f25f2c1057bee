//! Bounds of answers over HTTP about the table.

/// Characters of a text from a client in an error answer.
pub const PROBLEM_TEXT_CHARS_MAX: usize = 256;
/// Files of a form that become parts.
pub const FORM_FILES_MAX: usize = 100;
/// Bytes of the receipts in the answer to an upload as JSON, about; beyond it their columns are left out.
pub const FORM_ANSWER_BYTES: usize = 64 * 1024;
/// Parts in a page of the list of parts.
pub const PARTS_LISTED_MAX: usize = 1000;
/// Bytes of such a page as JSON, about; it ends after the part that exceeds it.
pub const PARTS_LIST_BYTES: usize = 56 * 1024;
/// Bytes of a file of the table in a list, in memory and as a message or JSON: its path has at most 60.
pub const FILE_ENTRY_BYTES: usize = 384;
/// Points of the growth of the table.
pub const GROWTH_POINTS_MAX: usize = 200;
/// Jobs in an answer.
pub const JOBS_LISTED_MAX: usize = 100;
/// Uploads that an event lists; the others are counted.
pub const UPLOADS_LISTED_MAX: usize = 20;
/// Those who watch the events at once; one more is refused.
pub const EVENT_WATCHERS_MAX: usize = 16;
/// Seconds after which a watcher that has not taken an event is dropped.
pub const EVENT_STALL_S: u64 = 5;
/// Bytes of a part's CSV that are read for its first rows.
pub const PREVIEW_BYTES: usize = 64 * 1024;
/// Rows of a preview.
pub const PREVIEW_ROWS_MAX: usize = 100;
/// Columns of a preview; the others are counted.
pub const PREVIEW_COLUMNS_MAX: usize = 256;
/// Cells of a preview: one of a wide part has fewer rows, but at least one.
pub const PREVIEW_CELLS_MAX: usize = 4096;
/// Characters of a cell in a preview.
pub const PREVIEW_TEXT_CHARS_MAX: usize = 256;
/// Bytes of the names in a preview as JSON, and of its rows. It ends before the name or the row that would exceed it.
pub const PREVIEW_JSON_BYTES_MAX: usize = 96 * 1024;
/// Bytes of a receipt in memory up to which it is sent at once.
pub const NARROW_RECEIPT_BYTES: usize = 16 * 1024;
/// Longer receipts that are in memory at once, while they are sent. Up to `HTTP_LONG_CALL_WAITS_MAX` more wait.
pub const WIDE_RECEIPTS_MAX: usize = 1;
/// Bytes of a file that a download has read and verified, and not sent yet.
pub const DOWNLOAD_BLOCK_BYTES: usize = 256 * 1024;
/// Blocks of a Parquet file whose checksums a download has in memory. Its footer is parsed again for those after them.
pub const DOWNLOAD_BLOCKS_MAX: usize = 256;
/// Bytes of the entry of such a block.
pub const DOWNLOAD_BLOCK_ENTRY_BYTES: usize = 24;
/// Bytes of a download.
pub(super) const DOWNLOAD_BYTES: usize = DOWNLOAD_BLOCK_BYTES + DOWNLOAD_BLOCKS_MAX * DOWNLOAD_BLOCK_ENTRY_BYTES;
