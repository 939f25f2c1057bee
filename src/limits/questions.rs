//! Bounds of questions about the table: the columns of the table, and group sums.

// ---- Columns of the table ----

/// Bytes of the figures of columns that are sent together over HTTP: in memory, and then as JSON.
pub const COLUMNS_PAGE_BYTES: usize = 64 * 1024;
/// Bytes of a column's figures in either form, without its types and its name.
pub const COLUMN_FIGURES_BYTES: usize = 176;
/// Bytes of one of its types.
pub const COLUMN_FIGURES_TYPE_BYTES: usize = 48;
/// Bytes of JSON that a byte of text can become.
pub const ESCAPED_BYTES_MAX: usize = 6;
/// Columns that a request for figures may ask for.
pub const COLUMNS_LISTED_MAX: usize = 1000;
/// Receipts that are read for the figures of columns, of parts whose schemas the registry has no room for.
pub const COLUMN_RECEIPTS_MAX: usize = 256;

/// Bytes of the names of the survey that are listed over HTTP, in memory or as JSON: its questions, or its states.
pub const SURVEY_LIST_BYTES: usize = 64 * 1024;
/// Questions that a request may ask for.
pub const SURVEY_LISTED_MAX: usize = 1000;
/// Bytes of such a name besides its text.
pub const SURVEY_LISTED_BYTES: usize = 96;

// ---- Group sums ----

/// Bytes of the one group sum that may run: its groups in memory, then the merge of its temporary files.
pub const GROUP_BYTES_MAX: usize = 40 * 1024 * 1024;
/// Columns that a group sum may name.
pub const GROUP_COLUMNS_MAX: usize = 64;
/// Columns of a group sum that is read from Parquet: a page and a dictionary of each are in memory.
pub const GROUP_PARQUET_COLUMNS_MAX: usize = 8;
/// Bytes of the names of these columns together.
pub const GROUP_NAMES_BYTES_MAX: usize = 4 * 1024;
/// Calls for group sums that wait for their turn, run, or have an answer that is being read. Jobs wait separately.
pub const GROUP_CALLS_MAX: usize = 16;
/// Calls for group sums that wait to be one of these; one more is refused at once.
pub const GROUP_CALL_WAITS_MAX: usize = 16;
/// Bytes of the groups that are sent together, and so of the longest group.
pub const GROUP_BLOCK_BYTES: usize = 128 * 1024;

/// Groups that may be asked for by rank.
pub const GROUP_TOP_MAX: usize = 10_000;
/// Bytes of these groups while they are found. They are taken from [`GROUP_BYTES_MAX`].
pub const GROUP_TOP_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of one of them, without its cells and totals: its entry in the heap, which doubles as it grows, and two allocations.
pub const GROUP_TOP_ENTRY_BYTES: usize = 128;
