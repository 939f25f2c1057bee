//! Bounds of questions about the table: the columns of the table, statistics, group sums, and parts in segments.

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

// ---- Sums of columns ----

/// Sums that other calls may join while they are computed; one more is computed for its call alone.
pub const SHARED_SUMS_MAX: usize = 128;
/// Bytes of such a sum besides its column's name, which its call has: its entry, and the channel for its answer.
pub const SHARED_SUM_BYTES: usize = 768;

// ---- Statistics (more in limits.rs) ----

/// Bytes of a question and of a state's name, in a request.
pub const SURVEY_NAME_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the groups of a question: about 3,500 groups by state, category and stratification.
pub const SURVEY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of a group besides its texts: an exact sum, its entry in the map, its line of the answer.
pub const SURVEY_GROUP_BYTES: usize = 512;
/// Bytes of a distinct state, category or stratification besides its text.
pub const SURVEY_TEXT_BYTES: usize = 192;
/// Tasks of a statistics question that are queued or running at the same time. Each has its own groups until they are merged.
pub const SURVEY_TASKS_MAX: usize = 2;
/// Rows that one task reads, one column after the other.
pub const SURVEY_TASK_ROWS: usize = 32 * 1024;
/// Bytes that are kept of a row while a task reads its next column.
pub const SURVEY_ROW_BYTES: usize = 32;

// ---- Group sums ----

/// Bytes of the one group sum that may run: its groups in memory, then the merge of its temporary files.
pub const GROUP_BYTES_MAX: usize = 40 * 1024 * 1024;
/// Bytes of the rows that a partition of a group sum collects before it sorts them, if nearly every row has a group of its own: few
/// enough to be sorted and written in about 30 ms.
pub const GROUP_ROWS_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of the runs that one task of a group sum merges.
pub const GROUP_RANGE_BYTES: usize = 1024 * 1024;
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

/// Bytes of the groups that one machine of a cluster sends to another together. A longer group is sent by itself.
pub const GROUPS_SENT_BYTES: usize = 256 * 1024;

/// Groups that may be asked for by rank.
pub const GROUP_TOP_MAX: usize = 10_000;
/// Bytes of these groups while they are found. They are taken from [`GROUP_BYTES_MAX`].
pub const GROUP_TOP_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of one of them, without its cells and totals: its entry in the heap, which doubles as it grows, and two allocations.
pub const GROUP_TOP_ENTRY_BYTES: usize = 128;

// ---- Segments ----

/// Parts in a block of a segment's index: what a question reads of the index at once.
pub const PACKED_BLOCK_PARTS: usize = 256;
/// Bytes of the CSV of a part that is packed, at most: one block, so that it is verified by its own checksum.
pub const PACKED_CSV_BYTES_MAX: u64 = 64 * 1024;
/// Parquet files of a segment, at most: it has one for each distinct list of columns and types.
pub const PACKED_FILES_MAX: usize = 1024;
/// Bytes of a segment's receipt, which has all lists of columns. A worker that reads it needs up to four times as much.
pub const SEGMENT_RECEIPT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes in such a receipt besides the names: of a column, of a Parquet file, and of everything else.
pub const PACKED_COLUMN_TEXT_BYTES: usize = 112;
/// See [`PACKED_COLUMN_TEXT_BYTES`].
pub const PACKED_FILE_TEXT_BYTES: usize = 512;
/// See [`PACKED_COLUMN_TEXT_BYTES`].
pub const PACKED_REST_TEXT_BYTES: usize = 1024;
/// Parts of a Parquet file whose numbers are remembered while a segment is written. For files with more parts, all are looked at.
pub const PACKED_FEW_PARTS: usize = 64;
/// Bytes of the CSV of a segment, at most, unless it is made of parts.
pub const PACKED_SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Bytes of the numbers of parts that were replaced and whose files are kept for a minute. A run of parts without gaps takes a few
/// bytes, 1,024 parts with a large one between any two take 2 KiB. When there is no room, packing waits: so packing 3,000 parts a
/// second for a minute must fit whatever is between them.
pub const PACKED_RETIRED_BYTES: usize = 576 * 1024;
/// Bytes of what one more segment can add to that: the numbers of its parts, and the segments that it is made of.
pub const PACKED_RETIRED_BATCH_BYTES: u32 = 32 * 1024;
/// Bytes of the CSV of packed parts that are summed together. They are copied without their headers, so a task needs twice as many.
pub const PACKED_SUM_BYTES: usize = 256 * 1024;
/// Questions that read parts in segments one by one at once; more wait.
pub const PACKED_QUESTIONS_MAX: usize = 6;
/// Bytes of a cursor on the parts of segments: a block of an index and of its fences, each with a page of checksums, and the
/// parts of a block of the index.
pub const PACKED_CURSOR_BYTES: usize = 2 * (64 + 4) * 1024 + PACKED_BLOCK_PARTS * 144;
/// Ranges of rows of removed parts that a question passes over in the Parquet files of segments, 16 bytes each. If there are more,
/// it reads the CSV of the parts.
pub const PACKED_REMOVED_RANGES_MAX: usize = 1024;
/// Bytes of such a question: a cursor, and the parts of its tasks.
pub const PACKED_QUESTION_BYTES: usize = PACKED_CURSOR_BYTES + 8 * 64 * 144;
/// Bytes of the sums and of these questions.
pub(super) const QUESTIONS_BYTES: usize =
    PACKED_QUESTIONS_MAX * PACKED_QUESTION_BYTES + SHARED_SUMS_MAX * SHARED_SUM_BYTES;
/// Bytes that packing needs besides a conversion: the buffers of five files; the receipts of a block that is read and of one
/// that is written; the lists of columns, with a quarter for vectors that are longer than their content; and numbers of parts.
pub const PACKING_BYTES: usize = 5 * 64 * 1024
    + 4 * PACKED_RECEIPTS_BYTES
    + SEGMENT_RECEIPT_BYTES_MAX / 4 * 5
    + 8 * PACKED_FILES_MAX * PACKED_FEW_PARTS;
/// Parts that are enough for a segment if the table is nearly full.
pub const URGENT_RUN_PARTS: usize = 16;
/// The default of `--pack-above`.
pub const PACK_ABOVE: usize = 10_000;
/// The default of `--pack-bytes-per-s`.
pub const PACK_BYTES_PER_S: u64 = 64 * 1024 * 1024;
/// Bytes of the receipts in such a block, as text. The last receipt may exceed it.
pub const PACKED_RECEIPTS_BYTES: usize = 256 * 1024;
