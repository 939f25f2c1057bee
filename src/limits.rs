//! Every bound of the server, its unit in its name, and the sum that they may reach.
//!
//! What a user may change is a field of [`Limits`], set by a flag and never above its ceiling here, so that the sum
//! below holds whatever the flags say. Nothing else lives here: no logic, no I/O.

use std::{num::NonZeroUsize, time::Duration};

/// 1 KiB in bytes.
pub const KIB: usize = 1024;
/// 1 MiB in bytes.
pub const MIB: usize = 1024 * KIB;

/// Threads that touch files and compute.
pub const WORKERS: usize = 8;
/// Slices of work that wait for a worker; whoever brings one more waits its turn without a thread.
pub const WORK_QUEUE_MAX: usize = 1024;
/// Slices that one question keeps in the queue or in work, so that others get their turn.
pub const SLICES_IN_FLIGHT_MAX: usize = WORKERS;
/// Rows of Parquet that one slice decodes: a constant column has millions in a few KiB.
pub const SLICE_ROWS: u64 = 4 * 1024 * 1024;
/// Bytes of CSV that one slice reads, about 10 ms of work. A slice goes on past it to the end of a row.
pub const SLICE_BYTES: usize = 8 * MIB;
/// Small parts that one slice takes together.
pub const SLICE_PARTS_MAX: usize = 64;

/// File descriptors that the process must be allowed, or the server does not start.
pub const DESCRIPTORS_MIN: usize = 64;
/// File descriptors that are for neither connections nor uploads: listeners, the runtime, the log, the files that the
/// workers read.
pub const DESCRIPTORS_BASE: usize = 34;
/// File descriptors that are kept for each upload: its CSV, the list of its checksums, and while it is converted its
/// Parquet, and pages that wait on disk. Each is open once, for writing and for reading.
pub const DESCRIPTORS_PER_UPLOAD: usize = 4;
/// File descriptors that a long call takes: a result and the list of its checksums.
pub const DESCRIPTORS_PER_LONG_CALL: usize = 2;

/// TCP connections that are served at once; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 128;
/// Bytes that one connection may have on the way to us, over all its streams (HTTP/2 flow control).
pub const CONNECTION_WINDOW_BYTES: usize = 152 * KIB;
/// Bytes that one call may have on the way to us (HTTP/2 flow control). An upload whose bytes wait for a worker leaves the
/// rest of its connection's to other calls.
pub const STREAM_WINDOW_BYTES: usize = 136 * KIB;
/// Bytes of one HTTP/2 frame that comes in: the longer they are, the fewer reads and writes of a socket an upload takes.
pub const FRAME_BYTES_MAX: usize = 48 * KIB;
/// Connections at once for which the three bounds above are wider, as follows: each that is accepted while fewer are.
/// An upload over one of them waits less often for the server to say that it may go on.
pub const WIDE_CONNECTIONS_MAX: usize = 12;
/// Bytes that one of them may have on the way to us, over all its streams.
pub const WIDE_CONNECTION_WINDOW_BYTES: usize = 512 * KIB;
/// Bytes that one call on one of them may have on the way to us.
pub const WIDE_STREAM_WINDOW_BYTES: usize = 448 * KIB;
/// Bytes of one HTTP/2 frame there: with its head of 9 bytes it fills the longest TCP segment that loopback carries.
pub const WIDE_FRAME_BYTES_MAX: usize = 65_483 - 9;
/// Connections for gRPC that are kept for newcomers and probes: the others may be used for more than probes.
pub const CONNECTIONS_SPARE: usize = 16;
/// Connections that are accepted and not served yet, while others end for them.
pub const CONNECTION_WAITS_MAX: usize = 16;
/// Milliseconds for which a connection has had no call before it ends for another.
pub const UNUSED_CONNECTION_MS: u64 = 250;
/// Milliseconds for which no call of a connection has moved before it ends for another.
pub const STALLED_CONNECTION_MS: u64 = 1000;
/// Seconds that a call may keep the server at work, with no byte moved, before its connection may end for another.
pub const BUSY_CONNECTION_S: u64 = 30;
/// Milliseconds within which a call that its client resets counts as reset at once, ...
pub const EARLY_RESET_MS: u64 = 1000;
/// ... and so many such calls a connection may have beyond those that it saw through.
pub const EARLY_RESETS_MAX: usize = 500;
/// Calls that a client resets before the server has looked at them.
pub const UNSEEN_RESETS_MAX: usize = 20;
/// Calls at once on one connection; a client keeps further ones back until then. HTTP/2 makes room for as many as there
/// were at once, refused ones too, and keeps it as long as the connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 24;
/// The same on a wide one: all uploads that there may be, and some calls beside.
pub const WIDE_STREAMS_PER_CONNECTION_MAX: u32 = 136;
/// Bytes that HTTP/2 has for each of them, its answer's head and end among them.
pub const STREAM_BYTES: usize = KIB + KIB / 4;
/// Calls of a connection that we reset for what the client did to them (RFC 9113, section 5.4.2), in all its time: HTTP/2
/// remembers them for a while.
pub const STREAM_ERRORS_MAX: usize = 500;
/// Bytes of a request's HTTP headers.
pub const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of a request that is not an upload.
pub const REQUEST_BYTES_MAX: usize = 16 * KIB;

/// Bytes that the calls of one connection may make the server hold whatever those of others do.
pub const CONNECTION_CALL_BYTES: usize = 24 * KIB;
/// Bytes that calls hold beyond that, over all connections: open calls, and answers that are not read yet.
pub const SHARED_CALL_BYTES: usize = 5 * MIB;
/// Bytes of an open call of our own services: its task, and what waits for its answer.
pub const CALL_BYTES: usize = 8 * KIB;
/// Bytes of an open call of health and reflection, whose two buffers are made larger.
pub const FOREIGN_CALL_BYTES: usize = 16 * KIB;
/// Bytes of an open call for a sum, with what it has in the queue of the workers. So few hundred of them wait.
pub const QUESTION_CALL_BYTES: usize = 20 * KIB;
/// Open calls.
pub const CALLS_MAX: usize = (CONNECTIONS_MAX * CONNECTION_CALL_BYTES + SHARED_CALL_BYTES) / CALL_BYTES;
/// Connections whose calls are counted. Those of a connection that is closed can go on for a moment.
pub const CONNECTION_ACCOUNTS_MAX: usize = 2 * CONNECTIONS_MAX;
/// Bytes of a call's path that are kept; no path of ours is longer.
pub const KEPT_PATH_BYTES_MAX: usize = 128;
/// Bytes that each of a call's two buffers begins with, for messages that come and that go.
pub const CALL_BUFFER_BYTES: usize = 256;
/// Bytes of an answer that go to the connection at once.
pub const ANSWER_PIECE_BYTES: usize = 16 * KIB;
/// Bytes of an answer after which no more go to the connection, which has not written them yet.
pub const ANSWER_AHEAD_BYTES: usize = 4 * ANSWER_PIECE_BYTES;
/// Bytes of a message of an answer beside its text.
pub const ANSWER_FRAME_BYTES: usize = 512;
/// Bytes of receipts that are read at once to be listed; one receipt may have more.
pub const RECEIPTS_PAGE_BYTES: usize = 64 * KIB;
/// The same while there is little room: what a connection has of its own is enough for it.
pub const RECEIPTS_PAGE_BYTES_MIN: usize = 6 * KIB;
/// Bytes of a receipt in memory without its columns.
pub const RECEIPT_BYTES: usize = 256;
/// Bytes of a column of it, beside its name.
pub const RECEIPT_COLUMN_BYTES: usize = 64;

/// TCP connections for HTTP that are served at once; more wait in the kernel's queue.
pub const HTTP_CONNECTIONS_MAX: usize = 40;
/// Such connections that are kept for newcomers and probes.
pub const HTTP_CONNECTIONS_SPARE: usize = 8;
/// Connections that are accepted and not served yet, while others end for them.
pub const HTTP_CONNECTION_WAITS_MAX: usize = 4;
/// Connections of `--probe` that are served at once.
pub const PROBE_CONNECTIONS_MAX: usize = 8;
/// Bytes that hyper holds of one of them in each direction.
pub const PROBE_BUFFER_BYTES: usize = 8 * KIB;
/// Calls whose body or answer takes its time, of those connections: the rest is for probes and short calls.
pub const HTTP_LONG_CALLS_MAX: usize = 20;
/// Such calls that wait for their turn: each keeps a connection meanwhile.
pub const HTTP_LONG_CALL_WAITS_MAX: usize = 12;
/// Permits for those connections that are kept free: while fewer are, a connection ends with its answer.
pub const HTTP_PERMITS_SPARE: usize = 8;
/// Bytes of an answer that the kernel takes at once, so that its call is a short one.
pub const HTTP_SHORT_ANSWER_BYTES: u64 = 64 * KIB as u64;
/// Bytes of an answer that the kernel holds for a client; the room that it makes for them is twice as large.
pub const HTTP_SEND_BUFFER_BYTES: usize = 256 * KIB;
/// Bytes that a form has to bring in a second in which they are waited for.
pub const FORM_BYTES_PER_S_MIN: u64 = KIB as u64;
/// Bytes that hyper holds of one connection in each direction, and so the most that a request's head may have.
pub const HTTP_BUFFER_BYTES: usize = 48 * KIB;
/// Header fields of a request.
pub const HTTP_HEADERS_MAX: usize = 64;
/// Bytes of a request's target.
pub const URI_BYTES_MAX: usize = 8 * KIB;
/// Bytes of a JSON body.
pub const JSON_BYTES_MAX: usize = MIB;
/// Bytes of a JSON body that is read without a permit.
pub const SMALL_JSON_BYTES_MAX: usize = 8 * KIB;
/// Larger JSON bodies that are held at once; one more is refused.
pub const LARGE_JSON_BODIES_MAX: usize = 1;
/// Larger JSON bodies that wait to be read.
pub const LARGE_JSON_BODY_WAITS_MAX: usize = 4;
/// Seconds for which one may be read while another waits.
pub const LARGE_JSON_BODY_S: u64 = 5;
/// How often a JSON body is in memory while it is parsed: as it came, and what its parser makes of a text with escapes,
/// in a buffer that doubles while the one before it is still there.
pub const JSON_COPIES_MAX: usize = 4;
/// Characters of a question, and of a state's name, in such a body.
pub const TEXT_CHARS_MAX: usize = 4096;
/// Bytes of a multipart body around its file: part heads, fields that nobody asked for.
pub const FORM_BYTES_MAX: usize = 128 * KIB;
/// Bytes of a refused body that are read and thrown away, so that the client gets to read why.
pub const REFUSED_BYTES_MAX: u64 = 4 * MIB as u64;
/// Lines that wait to be written to the file of `--log-file`; one more is dropped, and counted.
pub const LOG_LINES_MAX: usize = 90;
/// Characters of a text that is logged there.
pub const LOG_TEXT_CHARS_MAX: usize = 512;
/// Bytes of a line there: two texts, each character escaped, and what stands around them.
pub const LOG_LINE_BYTES_MAX: usize = 2 * 10 * LOG_TEXT_CHARS_MAX + KIB;

/// Lines that wait to be written to standard error, and their bytes with what is kept beside them; one more is dropped,
/// and counted.
pub const LOG_QUEUE_LINES_MAX: usize = 1024;
/// See [`LOG_QUEUE_LINES_MAX`].
pub const LOG_QUEUE_BYTES_MAX: usize = 192 * KIB;
/// Bytes that a place in that queue takes, used or not.
pub const LOG_QUEUE_SLOT_BYTES: usize = 64;
/// Bytes of such a line; a longer one is cut.
pub const STDERR_LINE_BYTES_MAX: usize = 8 * KIB;
/// Bytes of lines that are written there at once, but for the last of them.
pub const LOG_BATCH_BYTES: usize = 32 * KIB;
/// Lines of one kind, of one call and one client for example, that are written there in 10 s; the others are summed up.
pub const LOG_LINES_PER_KIND_MAX: usize = 20;
/// Kinds that are told apart.
pub const LOG_KINDS_MAX: usize = 256;
/// Bytes that a kind takes: its place in a hash table that may be half empty, and what its lines are like.
pub const LOG_KIND_BYTES: usize = 384;
/// What all of that takes.
const LOG_BYTES_MAX: usize = LOG_QUEUE_BYTES_MAX
    + LOG_QUEUE_LINES_MAX * LOG_QUEUE_SLOT_BYTES
    + 2 * (LOG_BATCH_BYTES + STDERR_LINE_BYTES_MAX)
    + LOG_KINDS_MAX * LOG_KIND_BYTES;

/// Uploads that are received at once, by default and at most.
pub const UPLOADS_MAX: usize = 128;
/// Uploads that wait for a permit; one more is refused at once.
pub const UPLOAD_WAITS_MAX: usize = UPLOADS_MAX;
/// Milliseconds that an upload, a long call over HTTP or a large JSON body waits for a permit before it is refused.
pub const TRANSFER_WAIT_MS_MAX: u64 = 3000;
/// Bytes that a transfer moves in a second in which its client is waited for, ...
pub const TRANSFER_BYTES_PER_S_MIN: u64 = KIB as u64;
/// ... and the seconds that it may be behind that ...
pub const TRANSFER_GRACE_S: u64 = 60;
/// ... or, while others wait for a permit, before it ends for one of them.
pub const TRANSFER_SHORT_GRACE_S: u64 = 2;
/// Bytes of memory that a transfer takes beside what it moves, whether it runs or waits.
pub const TRANSFER_ENTRY_BYTES: usize = KIB / 2;
/// Bytes between a stream and its spool file. Shorter files are in memory with their first block, and stay there.
pub const RECEIVE_BLOCK_BYTES: usize = 64 * KIB;
/// The most that such a block may have if there is memory for it: the fewer blocks, the less often threads wake others.
pub const READ_AHEAD_BLOCK_BYTES: usize = 512 * KIB;
/// What it should have then, though a worker waits for it.
pub const READ_AHEAD_BLOCK_BYTES_MIN: usize = 128 * KIB;
/// Bytes of a stream from one sync of what is written of its files to the next, at least, where files are to be safe.
pub const SYNC_STEP_BYTES: u64 = 8 * MIB as u64;
/// Syncs of files of large uploads that run at once, each on a worker: the others go on.
pub const SYNCS_MAX: usize = 2;
/// Bytes of a file that are held until it is made: most files of small uploads are written at once, where they stay. Later
/// as many are held again, so that short pieces are written as one.
pub const DRAFT_BUFFER_BYTES: usize = 64 * KIB;
/// Bytes of room on disk that a growing file asks for at once. What it does not need goes back when it is whole.
pub const RESERVED_BYTES: u64 = 4 * MIB as u64;
/// Bytes that must be free for that: four times what the files of all uploads at once may ask for and not need.
pub const RESERVE_FREE_BYTES_MIN: u64 = 4 * 2 * UPLOADS_MAX as u64 * RESERVED_BYTES;
/// Checksums of an upload's blocks that are in memory until their page is full.
pub const CHECKSUM_PAGE_BYTES: usize = 4 * KIB;
/// Bytes that a worker reads from a file at once: small enough to be still in its core's cache when they are scanned.
pub const READ_BLOCK_BYTES: usize = 64 * KIB;

/// Columns of a table, by default and at most.
pub const COLUMNS_MAX: usize = 4096;
/// Bytes of a cell, by default.
pub const CELL_BYTES_MAX: usize = MIB;
/// Bytes of a row, by default.
pub const ROW_BYTES_MAX: usize = 4 * MIB;
/// The most that `--cell-bytes-max` and `--row-bytes-max` may say.
pub const ROW_BYTES_CEILING: usize = 8 * MIB;
/// Bytes of a column's name: a Parquet footer repeats it for every row group.
pub const NAME_BYTES_MAX: usize = KIB;
/// Bytes of the header row: every part's receipt and Parquet footer repeats the names.
pub const HEADER_BYTES_MAX: usize = MIB;
/// Bytes of one upload, by default.
pub const UPLOAD_BYTES_MAX: u64 = 64 * 1024 * MIB as u64;

/// Parts of a table: the registry is the one thing that grows with it.
pub const PARTS_MAX: usize = 100_000;
/// The share of the parts that there may be, in percent, from which a table is nearly full: the log says so once.
pub const PARTS_WARNING_PERCENT: usize = 80;
/// Bytes that the registry spends on a part: the `Part`, with what its files are verified against, and its place in the map.
pub const PART_BYTES: usize = 160;
/// Ids that are held of parts in quarantine, the smallest; more are only counted.
pub const MISSING_PARTS_LISTED_MAX: usize = 4096;
/// Bytes of distinct headers that the registry keeps; what is beyond is read from the receipts when asked.
pub const SCHEMA_BYTES_MAX: usize = 8 * MIB;

/// Bytes of a key of NumStore.
pub const KEY_BYTES_MAX: usize = 128;
/// Keys of NumStore.
pub const KEYS_MAX: usize = 50_000;
/// Bytes that a key takes: of the hash table, which has 65,536 slots of 25 bytes for so many, and its text.
pub const KEY_ENTRY_BYTES: usize = 25 * 65_536 / KEYS_MAX + 1 + KEY_BYTES_MAX;
/// Results that NumStore's cache holds.
#[allow(clippy::unwrap_used, reason = "it is checked when compiling")]
pub const FACTORIALS_MAX: NonZeroUsize = NonZeroUsize::new(10).unwrap();
/// Calls of NumStore that compute at once: P2's threads. More wait their turn.
pub const NUMSTORE_CALLS_MAX: usize = 4;

/// Jobs that wait or run, by default and at most; one more is refused.
pub const JOBS_UNFINISHED_MAX: usize = 1000;
/// Jobs that are known; the oldest that ended make room.
pub const JOBS_MAX: usize = 2000;
/// Bytes of a job in memory: its entry, with why it failed.
pub const JOB_BYTES: usize = KIB;
/// Bytes of a running job: what it is to do, twice, and where it stands.
pub const JOB_RUN_BYTES: usize = MIB;
/// Statistics that are computed at once.
pub const SURVEYS_AT_ONCE: usize = 2;
/// Files that are grouped and summed at once: each takes what there is for it.
pub const TASKS_AT_ONCE: usize = 1;
/// Jobs that make room at once when there are as many as may be known.
pub const EVICTED_JOBS: usize = 64;
/// Times that a job is begun: one that the server did not survive so often is given up.
pub const JOB_STARTS_MAX: u32 = 10;
/// Bytes of the reason why a job failed.
pub const JOB_REASON_BYTES_MAX: usize = KIB / 2;
/// Bytes of all names of columns in a task.
pub const JOB_NAMES_BYTES_MAX: usize = 8 * KIB;

/// Rows that are turned into one record batch.
pub const BATCH_ROWS_MAX: usize = 16 * KIB;
/// Cells of one record batch: wide tables have shorter batches.
pub const BATCH_CELLS_MAX: usize = 128 * KIB;
/// Bytes of cell text in one record batch, but for its last row.
pub const BATCH_BYTES_MAX: usize = MIB;
/// Rows of one row group.
pub const ROW_GROUP_ROWS_MAX: usize = 1024 * KIB;
/// Bytes of encoded pages in a row group, which are in memory until it is written out.
pub const ROW_GROUP_BYTES: usize = 8 * MIB;
/// The same for tables so wide and long that small groups would make more than [`COLUMN_CHUNKS_MAX`] column chunks.
/// Their pages wait on disk.
pub const ROW_GROUP_BYTES_CEILING: usize = 16 * 1024 * MIB;
/// Bytes of a page.
pub const PAGE_BYTES: usize = MIB / 2;
/// Bytes of unfinished pages in memory while the finished ones wait on disk, over all columns ...
pub const SPILL_PAGES_BYTES: usize = 16 * MIB;
/// ... but never so little of a column that pages would be mostly header.
pub const PAGE_BYTES_MIN: usize = 4 * KIB;
/// Column chunks (columns x row groups) of one part: each has an entry in the footer, which readers hold in memory.
pub const COLUMN_CHUNKS_MAX: usize = 32 * KIB;
/// Bytes in memory of a footer's entry for one column chunk.
pub const COLUMN_CHUNK_ENTRY_BYTES: usize = 640;
/// Tables with more columns are written without dictionaries: each column's starts with a table of 4,096 slots.
pub const DICTIONARY_COLUMNS_MAX: usize = 128;
/// Bytes of one column's dictionary before the writer falls back to plain values.
pub const DICTIONARY_BYTES_MAX: usize = 256 * KIB;

/// Bytes of CSV that one slice of typing or conversion reads: about 10 ms of work.
pub const CONVERT_SLICE_BYTES: usize = MIB;
/// Files that were held until they were whole, and that one slice types, converts and puts in place.
pub const SMALL_FILES_PER_SLICE_MAX: usize = CONVERT_SLICE_BYTES / DRAFT_BUFFER_BYTES;

/// Uploads up to this size are typed and converted beside the large ones, so that they never wait for those.
pub const SMALL_UPLOAD_BYTES: u64 = 512 * KIB as u64;
/// Memory for the conversion of large uploads, and for what is read ahead of it, over all of them.
pub const LARGE_CONVERSION_BYTES: usize = 89 * MIB;
/// Memory for the conversion of small uploads, over all of them.
pub const SMALL_CONVERSION_BYTES: usize = 29 * MIB;

/// Parquet parts with more column chunks count as wide, ...
pub const WIDE_CHUNKS: usize = 2 * KIB;
/// ... as do those with a longer footer, ...
pub const WIDE_FOOTER_BYTES: usize = MIB / 2;
/// ... and so many of them are open for reading at once.
pub const WIDE_READS_MAX: usize = 1;
/// Bytes that the scan of one column needs: a block, the longest row at its end or a page, decoded values.
pub const SCAN_BYTES: usize = READ_BLOCK_BYTES + ROW_BYTES_CEILING + MIB / 2;

/// Bytes of a survey's question and of a state's name, in a request.
pub const SURVEY_NAME_BYTES_MAX: usize = 16 * KIB;
/// Bytes of the groups of one survey question: some 3,500 of a state, a category and a stratification.
pub const SURVEY_BYTES_MAX: usize = 2 * MIB;
/// Bytes that a group takes beside its texts: an exact sum, its place in the map, its line of the answer.
pub const SURVEY_GROUP_BYTES: usize = 512;
/// Bytes that a distinct state, category or stratification takes beside its text.
pub const SURVEY_TEXT_BYTES: usize = 192;
/// Slices that one survey question keeps in the queue or in work: each has groups of its own until they are merged.
pub const SURVEY_SLICES_MAX: usize = 2;
/// Rows of a survey that one slice goes through, a column at a time, about 10 ms of work.
pub const SURVEY_SLICE_ROWS: usize = 32 * KIB;
/// Bytes that a row takes between two columns.
pub const SURVEY_ROW_BYTES: usize = 32;
/// What one survey question may take: the groups of its slices and those that they are merged into, and the slices' rows.
pub const SURVEY_MEMORY_BYTES: usize =
    (SURVEY_SLICES_MAX + 1) * SURVEY_BYTES_MAX + SURVEY_SLICES_MAX * SURVEY_SLICE_ROWS * SURVEY_ROW_BYTES;
/// Bytes of the one group sum that may run: its groups in memory, then the merge of what it spilled.
pub const GROUP_BYTES_MAX: usize = 40 * MIB;
/// Columns that a group sum may name.
pub const GROUP_COLUMNS_MAX: usize = 64;
/// Bytes of all the names of these columns together.
pub const GROUP_NAMES_BYTES_MAX: usize = 4 * KIB;
/// Calls for a verification of all that is stored; one more is refused. That of the background is beside them.
pub const VERIFY_CALLS_MAX: usize = 1;
/// Calls for group sums that wait for their turn; one more is refused. Jobs, of which one runs, wait beside them.
pub const GROUP_WAITS_MAX: usize = 8;
/// Calls for group sums that wait, run, or have an answer that their client still reads; one more is refused.
pub const GROUP_CALLS_MAX: usize = 16;
/// Bytes of groups that are handed on at once, and so of the longest group of an answer.
pub const GROUP_BLOCK_BYTES: usize = 128 * KIB;

/// What a wide connection may have on the way beyond what any other may.
const WIDE_CONNECTION_MORE_BYTES: usize =
    (WIDE_CONNECTION_WINDOW_BYTES + WIDE_FRAME_BYTES_MAX) - (CONNECTION_WINDOW_BYTES + FRAME_BYTES_MAX);
/// All of the above at its worst, in one sum: what the server may hold in memory at once.
pub const MEMORY_BYTES_MAX: usize = CONNECTIONS_MAX * (CONNECTION_WINDOW_BYTES + FRAME_BYTES_MAX) // came in, not yet taken by a call
    + WIDE_CONNECTIONS_MAX * WIDE_CONNECTION_MORE_BYTES                       // more of it over wide connections
    + CONNECTIONS_MAX * CONNECTION_CALL_BYTES + SHARED_CALL_BYTES             // open calls, answers not read yet
    + ((CONNECTIONS_MAX - WIDE_CONNECTIONS_MAX) * STREAMS_PER_CONNECTION_MAX as usize
        + WIDE_CONNECTIONS_MAX * WIDE_STREAMS_PER_CONNECTION_MAX as usize) * STREAM_BYTES // what HTTP/2 knows of calls
    + HTTP_CONNECTIONS_MAX * 2 * HTTP_BUFFER_BYTES + HTTP_LONG_CALLS_MAX * FORM_BYTES_MAX // over HTTP, both ways
    + PROBE_CONNECTIONS_MAX * 2 * PROBE_BUFFER_BYTES                          // probes
    + (UPLOADS_MAX + UPLOAD_WAITS_MAX + HTTP_LONG_CALLS_MAX + HTTP_LONG_CALL_WAITS_MAX
        + LARGE_JSON_BODIES_MAX + LARGE_JSON_BODY_WAITS_MAX) * TRANSFER_ENTRY_BYTES // who sends and reads
    + HTTP_CONNECTIONS_MAX * JSON_COPIES_MAX * SMALL_JSON_BYTES_MAX           // asked over HTTP
    + LARGE_JSON_BODIES_MAX * JSON_COPIES_MAX * JSON_BYTES_MAX + LOG_LINES_MAX * LOG_LINE_BYTES_MAX // and logged of it
    + LOG_BYTES_MAX                                                           // logged to standard error
    + UPLOADS_MAX * (RECEIVE_BLOCK_BYTES + WIDE_FRAME_BYTES_MAX + CHECKSUM_PAGE_BYTES) // on the way to a spool file
    + LARGE_CONVERSION_BYTES + SMALL_CONVERSION_BYTES                         // read ahead, typed and written
    + WORKERS * SCAN_BYTES                                                    // being summed
    + (WORKERS * WIDE_CHUNKS + WIDE_READS_MAX * COLUMN_CHUNKS_MAX) * COLUMN_CHUNK_ENTRY_BYTES // open footers
    + PARTS_MAX * PART_BYTES + SCHEMA_BYTES_MAX + MISSING_PARTS_LISTED_MAX * 8 // the registry
    + (VERIFY_CALLS_MAX + 1) * (READ_BLOCK_BYTES + CHECKSUM_PAGE_BYTES)           // being verified
    + KEYS_MAX * KEY_ENTRY_BYTES                                              // NumStore
    + SURVEYS_AT_ONCE * SURVEY_MEMORY_BYTES                                    // statistics
    + JOBS_MAX * JOB_BYTES + (SURVEYS_AT_ONCE + TASKS_AT_ONCE) * JOB_RUN_BYTES // jobs
    + GROUP_BYTES_MAX //                                                         groups, in memory or being merged
    + GROUP_CALLS_MAX * GROUP_BLOCK_BYTES; //                                    groups that wait to become a message

/// What is left of 512 MiB is the program itself, its stacks and what the allocator keeps.
const _: () = assert!(MEMORY_BYTES_MAX <= 384 * MIB);
const _: () = assert!(UPLOADS_MAX < WIDE_STREAMS_PER_CONNECTION_MAX as usize);
const _: () = assert!(STREAM_WINDOW_BYTES + REQUEST_BYTES_MAX <= CONNECTION_WINDOW_BYTES);
const _: () = assert!(WIDE_STREAM_WINDOW_BYTES + REQUEST_BYTES_MAX <= WIDE_CONNECTION_WINDOW_BYTES);
const _: () = assert!(HTTP_LONG_CALLS_MAX + HTTP_PERMITS_SPARE <= HTTP_CONNECTIONS_MAX);
/// On every connection that may be used a long call can wait for its turn: if more came than may wait, those that are ended
/// for being slow would come again at once, and keep others from waiting. A short call then needs one of them to be idle.
const _: () = assert!(HTTP_LONG_CALLS_MAX + HTTP_LONG_CALL_WAITS_MAX + HTTP_CONNECTIONS_SPARE == HTTP_CONNECTIONS_MAX);
const _: () = assert!(CELL_BYTES_MAX <= ROW_BYTES_MAX && ROW_BYTES_MAX <= ROW_BYTES_CEILING);
/// A slice of a scan ends at the end of a row, so it must be able to hold one to get on.
const _: () = assert!(SLICE_BYTES >= ROW_BYTES_CEILING);
/// A merge holds two rows that it compares, the one that it writes, and its text, in which every byte may be a quote.
const _: () = assert!(GROUP_BYTES_MAX >= 5 * ROW_BYTES_CEILING);
/// Half of it is for groups while the longest row is read: its bytes, and its cells without their quotes.
const _: () = assert!(GROUP_BYTES_MAX / 2 >= 2 * (ROW_BYTES_CEILING + READ_BLOCK_BYTES));
/// The message of a block is no longer than four of it, and clients refuse more than 4 MiB unless told otherwise.
const _: () = assert!(GROUP_BLOCK_BYTES < 4 * MIB / 4);

/// A buffer that grows by doubling ends there.
const _: () = assert!(DRAFT_BUFFER_BYTES.is_power_of_two());
/// What is in memory with its first block can stay there.
const _: () = assert!(RECEIVE_BLOCK_BYTES <= DRAFT_BUFFER_BYTES);

/// The bounds that flags can change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What a CSV file may measure.
    pub csv: CsvLimits,
    /// Bytes of one upload.
    pub upload_bytes_max: u64,
    /// Uploads that are received at once.
    pub uploads_max: usize,
    /// Parts of the table; one that has more at start is served, and takes no more.
    pub parts_max: usize,
    /// How long an upload may send nothing before its permit goes to another.
    pub upload_idle_max: Duration,
    /// How long a question may send nothing, and an answer go unread.
    pub call_idle_max: Duration,
    /// How many jobs are taken, and how long they are kept.
    pub jobs: JobLimits,
    /// Time between two verifications of all that is stored; none if there are none in the background.
    pub scrub_interval: Option<Duration>,
    /// What questions about all of the table get while a part of it is in quarantine.
    pub incomplete: Incomplete,
}

/// Whether questions about all of the table are answered while a part of it is in quarantine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Incomplete {
    /// No: they are told which part is missing.
    #[default]
    Refuse,
    /// Yes, from the parts that are there.
    Answer,
}

/// How many jobs are taken, and how long those that ended are kept.
#[derive(Clone, Copy, Debug)]
pub struct JobLimits {
    /// The age at which those that ended are forgotten.
    pub age_max: Duration,
    /// Jobs that wait or run.
    pub unfinished_max: usize,
    /// Bytes of the inputs and results of those that ended; over it the oldest are forgotten.
    pub bytes_max: u64,
    /// Time between two looks.
    pub sweep_interval: Duration,
}

/// What a CSV file may measure.
#[derive(Clone, Copy, Debug)]
pub struct CsvLimits {
    /// Columns in the header.
    pub columns_max: usize,
    /// Bytes of a cell's text, without its quotes.
    pub cell_bytes_max: usize,
    /// Bytes of a row as it stands in the file, without its row end.
    pub row_bytes_max: usize,
}

impl Default for CsvLimits {
    fn default() -> Self {
        Self { columns_max: COLUMNS_MAX, cell_bytes_max: CELL_BYTES_MAX, row_bytes_max: ROW_BYTES_MAX }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            csv: CsvLimits::default(),
            upload_bytes_max: UPLOAD_BYTES_MAX,
            uploads_max: UPLOADS_MAX,
            parts_max: PARTS_MAX,
            upload_idle_max: Duration::from_secs(60),
            call_idle_max: Duration::from_secs(60),
            jobs: JobLimits::default(),
            scrub_interval: None,
            incomplete: Incomplete::default(),
        }
    }
}

impl Default for JobLimits {
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(24 * 60 * 60),
            unfinished_max: JOBS_UNFINISHED_MAX,
            bytes_max: 10 * 1024 * MIB as u64,
            sweep_interval: Duration::from_secs(30),
        }
    }
}
