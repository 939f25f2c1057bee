//! Every bound of the server, and the sum of memory that they allow.
//!
//! The unit of a bound is in its name: `_BYTES`, `_ROWS`, `_MS` for milliseconds, `_S` for seconds. A bound without a unit
//! counts things. `_MAX` and `_MIN` mark the end of a range.
//!
//! What a user may change is a field of [`Limits`], set by a flag. No flag can exceed the ceiling that is used here, so the
//! memory sum at the end holds for all flags. There is no logic and no I/O in this file.
//!
//! A task is a piece of work that a worker runs without a pause, about 10 ms long. A permit is what a call must get before
//! it starts; there are as many permits as may run at once.

mod access;
mod answers;
mod logs;
mod numstore;
mod questions;
mod storage;
mod tls;
mod uploads;
pub use self::{access::*, answers::*, logs::*, numstore::*, questions::*, storage::*, tls::*, uploads::*};

use std::time::Duration;

/// 1 KiB in bytes.
pub const KIB: usize = 1024;
/// 1 MiB in bytes.
pub const MIB: usize = 1024 * KIB;

// ---- Workers ----
/// Threads that read and write files and compute.
pub const WORKERS: usize = 8;
/// Tasks in the queue of a lane. A call with one more waits, without blocking a thread.
pub const WORK_QUEUE_MAX: usize = 1024;
/// Tasks of one question that are queued or running at the same time, so that other calls get their turn.
pub const TASKS_IN_FLIGHT_MAX: usize = WORKERS;
/// Rows of Parquet that one task decodes. A column of equal values has millions of rows in a few KiB.
pub const TASK_ROWS: u64 = 4 * 1024 * 1024;
/// Bytes of CSV that one task reads. It reads on from there to the end of the row.
pub const TASK_BYTES: usize = 8 * MIB;
/// Small parts that one task reads.
pub const TASK_PARTS_MAX: usize = 64;
/// Columns of parts that one task adds to a list of the table's columns.
pub const TASK_COLUMNS: usize = 64 * KIB;

/// A task ends at the end of a row, so it must have room for the longest row.
const _: () = assert!(TASK_BYTES >= ROW_BYTES_CEILING);

// ---- File descriptors ----
/// File descriptors that the process must be allowed to open; the server does not start with fewer.
pub const DESCRIPTORS_MIN: usize = 64;
/// File descriptors for everything but connections and uploads: listeners, runtime, log, files that workers read or decompress.
pub const DESCRIPTORS_BASE: usize = 34 + DECODERS_MAX;
/// File descriptors of an upload: its CSV, the list of its checksums, and while it is converted its Parquet file and a
/// temporary file for pages. Each is opened once, for writing and reading.
pub const DESCRIPTORS_PER_UPLOAD: usize = 4;
/// File descriptors of a long call: a result and the list of its checksums.
pub const DESCRIPTORS_PER_LONG_CALL: usize = 2;

// ---- gRPC connections ----

/// gRPC connections that are served at once; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 128;
/// Bytes that the client of one connection may send before the server has read them, over all streams (HTTP/2 flow control).
pub const CONNECTION_WINDOW_BYTES: usize = 152 * KIB;
/// The same for one stream. It is smaller, so that an upload that waits for a worker leaves room for other calls on its
/// connection.
pub const STREAM_WINDOW_BYTES: usize = 136 * KIB;
/// Bytes of an incoming HTTP/2 frame. Longer frames mean fewer reads and writes of a socket.
pub const FRAME_BYTES_MAX: usize = 48 * KIB;
/// Connections with wider windows and longer frames, as follows. A connection is wide if fewer wide ones are open when it is
/// accepted. An upload on a wide connection waits less often for the flow control of HTTP/2.
pub const WIDE_CONNECTIONS_MAX: usize = 12;
/// As [`CONNECTION_WINDOW_BYTES`], for a wide connection.
pub const WIDE_CONNECTION_WINDOW_BYTES: usize = 512 * KIB;
/// As [`STREAM_WINDOW_BYTES`], for a wide connection.
pub const WIDE_STREAM_WINDOW_BYTES: usize = 448 * KIB;
/// As [`FRAME_BYTES_MAX`], for a wide connection. With its head of 9 bytes, the frame fills the longest TCP segment on the
/// loopback interface.
pub const WIDE_FRAME_BYTES_MAX: usize = 65_483 - 9;
/// Connections that are kept free for new clients and probes.
pub const CONNECTIONS_SPARE: usize = 16;
/// Connections that are accepted but not yet served, because others must end first.
pub const CONNECTION_WAITS_MAX: usize = 32;
/// If connections are scarce, one that had no call for this time is closed so that another can be served.
pub const UNUSED_CONNECTION_MS: u64 = 250;
/// The same for a client on this machine, whose first call is not on its way for long.
pub const UNUSED_LOCAL_CONNECTION_MS: u64 = 100;
/// The same for a connection whose calls have moved no bytes for this time.
pub const STALLED_CONNECTION_MS: u64 = 1000;
/// As [`STALLED_CONNECTION_MS`], if the server is working on a call of the connection.
pub const BUSY_CONNECTION_S: u64 = 30;
/// A call that its client resets within this time counts as an early reset.
pub const EARLY_RESET_MS: u64 = 1000;
/// Early resets of one connection, beyond the number of its calls that were completed.
pub const EARLY_RESETS_MAX: usize = 500;
/// Calls of one connection that the client has reset before the server looked at them.
pub const UNSEEN_RESETS_MAX: usize = 20;
/// Calls at once on one connection; the client holds back more. HTTP/2 allocates room for the largest number that there was,
/// refused calls included, and keeps it as long as the connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 24;
/// The same for a wide connection: enough for all uploads and some other calls.
pub const WIDE_STREAMS_PER_CONNECTION_MAX: u32 = 136;
/// Bytes that HTTP/2 keeps for each call, with the head and the end of its answer.
pub const STREAM_BYTES: usize = KIB + KIB / 4;
/// Calls of one connection, over all its time, that the server resets because of the client's errors (RFC 9113, section
/// 5.4.2). HTTP/2 remembers such calls for a while.
pub const STREAM_ERRORS_MAX: usize = 500;
/// Bytes of a call's headers, as RFC 9113, section 6.5.2, counts them. A call with more is refused.
pub const HEADER_LIST_BYTES_MAX: usize = 16 * KIB;
/// Bytes of headers that HTTP/2 reads of a call. It ends a call with more by itself, with an answer that gRPC does not know;
/// and the whole connection if they are four times as long.
pub const HEADER_LIST_BYTES_CEILING: usize = 48 * KIB;
/// Bytes of a request that is not an upload.
pub const REQUEST_BYTES_MAX: usize = 16 * KIB;

const _: () = assert!(UPLOADS_MAX < WIDE_STREAMS_PER_CONNECTION_MAX as usize);
const _: () = assert!(STREAM_WINDOW_BYTES + REQUEST_BYTES_MAX <= CONNECTION_WINDOW_BYTES);
const _: () = assert!(WIDE_STREAM_WINDOW_BYTES + REQUEST_BYTES_MAX <= WIDE_CONNECTION_WINDOW_BYTES);

/// Connections that are not wide.
const PLAIN_CONNECTIONS_MAX: usize = CONNECTIONS_MAX - WIDE_CONNECTIONS_MAX;
/// Bytes that have arrived and that no call has taken yet.
const ARRIVED_BYTES: usize = PLAIN_CONNECTIONS_MAX * (CONNECTION_WINDOW_BYTES + FRAME_BYTES_MAX)
    + WIDE_CONNECTIONS_MAX * (WIDE_CONNECTION_WINDOW_BYTES + WIDE_FRAME_BYTES_MAX);
/// What HTTP/2 keeps for calls.
const STREAMS_BYTES: usize = STREAM_BYTES
    * (PLAIN_CONNECTIONS_MAX * STREAMS_PER_CONNECTION_MAX as usize
        + WIDE_CONNECTIONS_MAX * WIDE_STREAMS_PER_CONNECTION_MAX as usize);

/// Bytes of a connection, and of a wide one, if no call answers.
const PLAIN_CONNECTION_BYTES: usize = CONNECTION_WINDOW_BYTES
    + FRAME_BYTES_MAX
    + STREAM_BYTES * STREAMS_PER_CONNECTION_MAX as usize
    + (HEADER_LIST_BYTES_CEILING + CONNECTION_CALL_BYTES);
const WIDE_CONNECTION_BYTES: usize = WIDE_CONNECTION_WINDOW_BYTES
    + WIDE_FRAME_BYTES_MAX
    + STREAM_BYTES * WIDE_STREAMS_PER_CONNECTION_MAX as usize
    + (HEADER_LIST_BYTES_CEILING + CONNECTION_CALL_BYTES);
/// TLS takes what fewer connections leave. Those that only wait have made no handshake.
const _: () = assert!(
    (TLS_CONNECTIONS_MAX + HTTP_CONNECTIONS_MAX) * TLS_CONNECTION_BYTES
        <= (CONNECTIONS_MAX - TLS_CONNECTIONS_MAX) * PLAIN_CONNECTION_BYTES
            + (WIDE_CONNECTIONS_MAX - TLS_WIDE_CONNECTIONS_MAX) * (WIDE_CONNECTION_BYTES - PLAIN_CONNECTION_BYTES)
);

// ---- gRPC calls ----

/// Bytes that the calls of one connection may use, whatever other connections use.
pub const CONNECTION_CALL_BYTES: usize = 24 * KIB;
/// Bytes that calls of all connections share beyond that, for open calls and answers that are not read yet.
pub const SHARED_CALL_BYTES: usize = 5 * MIB;
/// Bytes of an open call of our services: its task, and what waits for its answer.
pub const CALL_BYTES: usize = 8 * KIB;
/// Bytes of an open call of the health and reflection services. Their buffers are larger, because a library makes them.
pub const FOREIGN_CALL_BYTES: usize = 16 * KIB;
/// Bytes of an open call for a sum, with its tasks in the queue of the workers.
pub const QUESTION_CALL_BYTES: usize = 20 * KIB;
/// Open calls.
pub const CALLS_MAX: usize = (CONNECTIONS_MAX * CONNECTION_CALL_BYTES + SHARED_CALL_BYTES) / CALL_BYTES;
/// Connections whose calls are counted. Calls of a closed connection may go on for a moment.
pub const CONNECTION_ACCOUNTS_MAX: usize = 2 * CONNECTIONS_MAX;
/// Bytes of a call's path that are kept.
pub const KEPT_PATH_BYTES_MAX: usize = 128;
/// Initial size of each of a call's two buffers, for incoming and outgoing messages.
pub const CALL_BUFFER_BYTES: usize = 256;
/// Bytes of an answer that are passed to the connection at once.
pub const ANSWER_PIECE_BYTES: usize = 16 * KIB;
/// Bytes of an answer that are passed to the connection and not written yet; it gets no more until some are written.
pub const ANSWER_AHEAD_BYTES: usize = 4 * ANSWER_PIECE_BYTES;
/// Bytes of an answer's message besides its text.
pub const ANSWER_FRAME_BYTES: usize = 512;
/// Bytes of receipts that are read together to be listed; a single receipt may be longer.
pub const RECEIPTS_PAGE_BYTES: usize = 64 * KIB;
/// The same if little memory is left. It fits into [`CONNECTION_CALL_BYTES`].
pub const RECEIPTS_PAGE_BYTES_MIN: usize = 6 * KIB;
/// Bytes of a receipt in memory, without its columns.
pub const RECEIPT_BYTES: usize = 256;
/// Bytes of one of its columns, without the name.
pub const RECEIPT_COLUMN_BYTES: usize = 64;
/// Parts that are listed for a type of a column of the table; the others are only counted.
pub const LISTED_TYPE_PARTS_MAX: usize = 5;
/// Bytes of a column of the table in memory, with the parts that are listed for each of its types, without the name.
pub const TABLE_COLUMN_BYTES: usize = 768;

// ---- HTTP ----

/// HTTP connections that are served at once; more wait in the kernel's queue. Those who watch the events take none of 40.
pub const HTTP_CONNECTIONS_MAX: usize = 40 + EVENT_WATCHERS_MAX;
/// HTTP connections that are kept free for new clients, for probes, and for those who watch the events.
pub const HTTP_CONNECTIONS_SPARE: usize = 8 + EVENT_WATCHERS_MAX;
/// HTTP connections that are accepted but not yet served, because others must end first.
pub const HTTP_CONNECTION_WAITS_MAX: usize = 4;
/// Connections of `--probe` that are served at once.
pub const PROBE_CONNECTIONS_MAX: usize = 8;
/// Bytes that hyper buffers for one of them, in each direction.
pub const PROBE_BUFFER_BYTES: usize = 8 * KIB;
/// Long calls (with a large body or answer) that run at once. The other connections are for probes and short calls.
pub const HTTP_LONG_CALLS_MAX: usize = 20;
/// Long calls that wait for a permit. Each keeps its connection while it waits.
pub const HTTP_LONG_CALL_WAITS_MAX: usize = 12;
/// If fewer permits for connections than this are free, a connection is closed after its answer.
pub const HTTP_PERMITS_SPARE: usize = 8;
/// Bytes of an answer that the kernel takes at once; a call with such an answer is a short one.
pub const HTTP_SHORT_ANSWER_BYTES: u64 = 64 * KIB as u64;
/// Bytes of an answer that the kernel buffers for a client. The kernel allocates twice as many.
pub const HTTP_SEND_BUFFER_BYTES: usize = 256 * KIB;
/// Bytes a second that the client of a form must send while the server waits for it.
pub const FORM_BYTES_PER_S_MIN: u64 = KIB as u64;
/// Bytes that hyper buffers for one connection, in each direction. A request's head cannot be longer.
pub const HTTP_BUFFER_BYTES: usize = 48 * KIB;
/// Header fields of a request.
pub const HTTP_HEADERS_MAX: usize = 64;
/// Bytes of a request's target.
pub const URI_BYTES_MAX: usize = 8 * KIB;
/// Bytes of a JSON body: enough for a question and a state of [`TEXT_CHARS_MAX`] characters, unless nearly all are escaped.
pub const JSON_BYTES_MAX: usize = 32 * KIB;
/// Copies of a JSON body in memory while it is parsed: the body, and a text without its escapes, in a buffer that doubles
/// while the old one still exists.
pub const JSON_COPIES_MAX: usize = 4;
/// Characters of a question and of a state's name in a JSON body.
pub const TEXT_CHARS_MAX: usize = 4096;
/// Bytes of a multipart body besides its file: heads of the parts, and unknown fields.
pub const FORM_BYTES_MAX: usize = 128 * KIB;
/// Bytes of a refused body that are read and dropped, so that the client reads the answer.
pub const REFUSED_BYTES_MAX: u64 = 4 * MIB as u64;

const _: () = assert!(HTTP_LONG_CALLS_MAX + HTTP_PERMITS_SPARE <= HTTP_CONNECTIONS_MAX);
/// A long call can wait on every connection that is not kept free. If fewer could wait, clients whose slow calls were ended
/// would call again at once and keep others from waiting. A short call needs an idle connection then.
const _: () = assert!(HTTP_LONG_CALLS_MAX + HTTP_LONG_CALL_WAITS_MAX + HTTP_CONNECTIONS_SPARE == HTTP_CONNECTIONS_MAX);

/// Bytes of a short call, or of a long one that waits for its permit: a JSON body, or an answer about the table.
const HTTP_CALL_BYTES: usize = JSON_COPIES_MAX * JSON_BYTES_MAX;
/// A long call is a form or a download.
const _: () = assert!(FORM_BYTES_MAX + HTTP_CALL_BYTES <= DOWNLOAD_BYTES);

/// Buffers of connections; long calls; a short call for each other connection that is used for more than probes; receipts with
/// many columns.
const HTTP_BYTES: usize = HTTP_CONNECTIONS_MAX * 2 * HTTP_BUFFER_BYTES
    + PROBE_CONNECTIONS_MAX * 2 * PROBE_BUFFER_BYTES
    + HTTP_LONG_CALLS_MAX * DOWNLOAD_BYTES
    + (HTTP_CONNECTIONS_MAX - HTTP_CONNECTIONS_SPARE - HTTP_LONG_CALLS_MAX) * HTTP_CALL_BYTES
    + WIDE_RECEIPTS_MAX * (HEADER_BYTES_MAX + COLUMNS_MAX * RECEIPT_COLUMN_BYTES);

// ---- Uploads and downloads ----

/// Uploads that are received at once: the default and the ceiling of `--uploads-max`.
pub const UPLOADS_MAX: usize = 128;
/// Uploads that wait for a permit; one more is refused at once.
pub const UPLOAD_WAITS_MAX: usize = UPLOADS_MAX;
/// A transfer (an upload, a long call over HTTP, a group sum, a verification) waits this long for a permit before it is
/// refused.
pub const TRANSFER_WAIT_MS_MAX: u64 = 3000;
/// Bytes a second that a transfer must move while the server waits for its client.
pub const TRANSFER_BYTES_PER_S_MIN: u64 = KIB as u64;
/// A transfer that is this far behind that rate is ended.
pub const TRANSFER_GRACE_S: u64 = 60;
/// The same while another transfer waits for a permit.
pub const TRANSFER_SHORT_GRACE_S: u64 = 2;
/// Bytes that are collected from a stream before they are written to a draft. A file that is shorter stays in memory.
pub const RECEIVE_BLOCK_BYTES: usize = 64 * KIB;
/// The same if there is memory for it: fewer blocks wake threads less often.
pub const READ_AHEAD_BLOCK_BYTES: usize = 512 * KIB;
/// The target size of such a block while a worker waits for it.
pub const READ_AHEAD_BLOCK_BYTES_MIN: usize = 128 * KIB;
/// Bytes of a draft that are collected before they are written. Most small uploads are written once, to their final file.
pub const DRAFT_BUFFER_BYTES: usize = 64 * KIB;
/// Bytes of an upload's checksums that are collected before they are written.
pub const CHECKSUM_PAGE_BYTES: usize = 4 * KIB;
/// Bytes that a worker reads from a file at once: few enough to be still in the core's cache when they are scanned.
pub const READ_BLOCK_BYTES: usize = 64 * KIB;

/// The draft's buffer grows by doubling and must end at this size.
const _: () = assert!(DRAFT_BUFFER_BYTES.is_power_of_two());
/// A file that is in memory with its first block can stay there.
const _: () = assert!(RECEIVE_BLOCK_BYTES <= DRAFT_BUFFER_BYTES);

/// Uploads that run, with a block, a frame and a page of checksums each; entries of all transfers that run or wait.
const TRANSFERS_BYTES: usize = UPLOADS_MAX * (RECEIVE_BLOCK_BYTES + WIDE_FRAME_BYTES_MAX + CHECKSUM_PAGE_BYTES)
    + TRANSFER_ENTRY_BYTES
        * (UPLOADS_MAX + UPLOAD_WAITS_MAX + HTTP_LONG_CALLS_MAX + HTTP_LONG_CALL_WAITS_MAX + EVENT_WATCHERS_MAX)
    + TRANSFER_ENTRY_BYTES * (GROUP_CALLS_MAX + GROUP_CALL_WAITS_MAX + VERIFY_CALLS_MAX + VERIFY_CALL_WAITS_MAX);

// ---- CSV files ----

/// Columns of a file: the default and the ceiling of `--columns-max`.
pub const COLUMNS_MAX: usize = 4096;
/// Bytes of a cell: the default of `--cell-bytes-max`.
pub const CELL_BYTES_MAX: usize = MIB;
/// Bytes of a row: the default of `--row-bytes-max`.
pub const ROW_BYTES_MAX: usize = 4 * MIB;
/// The ceiling of `--cell-bytes-max` and `--row-bytes-max`.
pub const ROW_BYTES_CEILING: usize = 8 * MIB;
/// Bytes of a column's name. A Parquet footer repeats it for every row group.
pub const NAME_BYTES_MAX: usize = KIB;
/// Bytes of the header row. The receipt and the Parquet footer of every part repeat the names.
pub const HEADER_BYTES_MAX: usize = MIB;
/// Bytes of an upload: the default of `--upload-bytes-max`.
pub const UPLOAD_BYTES_MAX: u64 = 64 * 1024 * MIB as u64;

const _: () = assert!(CELL_BYTES_MAX <= ROW_BYTES_MAX && ROW_BYTES_MAX <= ROW_BYTES_CEILING);

// ---- The registry ----

/// Parts of the table: the default and the ceiling of `--parts-max`. Only the registry's memory grows with them.
pub const PARTS_MAX: usize = 100_000;
/// Percentage of the allowed parts at which the log warns, once.
pub const PARTS_WARNING_PERCENT: usize = 80;
/// Bytes of a part in the registry: the `Part`, and its entry in the map of parts or of removed parts.
pub const PART_BYTES: usize = 144;
/// Ids of parts in quarantine that are kept, the smallest ones; the others are only counted.
pub const MISSING_PARTS_LISTED_MAX: usize = 4096;
/// Bytes of distinct schemas that the registry keeps. Others are read from the receipts when they are needed.
pub const SCHEMA_BYTES_MAX: usize = 2 * MIB;
/// Names of columns whose types are kept for columns without any value: seven eighths of the slots of a hash table.
pub const COLUMN_NAMES_MAX: usize = 32 * KIB / 8 * 7;
/// Bytes of a slot of that table.
pub const COLUMN_NAME_BYTES: usize = 16 + 1;
/// The hash table of all parts' keys, which has 131,072 slots for half a hash and a count, and the claimed keys.
const KEYS_BYTES: usize = 131_072 * (4 + 4 + 1) + UPLOADS_MAX * 2 * IDEMPOTENCY_KEY_BYTES_MAX;
/// Parts (of the table and removed ones), missing (8 bytes each) and replaced ones, schemas, slots of the table of names, keys.
const REGISTRY_BYTES: usize = (PARTS_MAX * PART_BYTES + MISSING_PARTS_LISTED_MAX * 8)
    + (SCHEMA_BYTES_MAX + COLUMN_NAMES_MAX / 7 * 8 * COLUMN_NAME_BYTES)
    + KEYS_BYTES
    + PACKED_RETIRED_BYTES;

// ---- Jobs ----

/// Jobs that wait or run: the default and the ceiling of `--jobs-max`.
pub const JOBS_UNFINISHED_MAX: usize = 1000;
/// Jobs that are known. If there are more, the oldest that have ended are removed.
pub const JOBS_MAX: usize = 2000;
/// Bytes of a job in memory: its entry, with the reason if it failed.
pub const JOB_BYTES: usize = KIB;
/// Bytes of a running job: two copies of its question, whose texts have 32 KiB at most, and its progress.
pub const JOB_RUN_BYTES: usize = 256 * KIB;
/// Statistics jobs that run at once: the ceiling of `--statistics-at-once`.
pub const SURVEYS_AT_ONCE_MAX: usize = 8;
/// File-processing tasks that run at once. A task takes all the memory for group sums.
pub const TASKS_AT_ONCE: usize = 1;
/// Jobs that are removed together if there are too many.
pub const EVICTED_JOBS: usize = 64;
/// Attempts per job. A job that was interrupted this often, by a stop or a crash of the server, has failed.
pub const JOB_STARTS_MAX: u32 = 10;
/// Bytes of the reason why a job failed.
pub const JOB_REASON_BYTES_MAX: usize = KIB / 2;
/// Bytes of all column names of a task.
pub const JOB_NAMES_BYTES_MAX: usize = 8 * KIB;

/// Jobs that are known and jobs that run.
const JOBS_BYTES: usize = JOBS_MAX * JOB_BYTES + (SURVEYS_AT_ONCE_MAX + TASKS_AT_ONCE) * JOB_RUN_BYTES;

// ---- Writing Parquet ----

/// Rows of a record batch.
pub const BATCH_ROWS_MAX: usize = 16 * KIB;
/// Cells of a record batch: batches of wide tables have fewer rows.
pub const BATCH_CELLS_MAX: usize = 128 * KIB;
/// Bytes of cell text in a record batch. The last row may exceed it.
pub const BATCH_BYTES_MAX: usize = MIB;
/// Rows of a row group.
pub const ROW_GROUP_ROWS_MAX: usize = 1024 * KIB;
/// Bytes of encoded pages in a row group. They are in memory until the row group is written.
pub const ROW_GROUP_BYTES: usize = 8 * MIB;
/// The same for tables so wide and long that small row groups would have more than [`COLUMN_CHUNKS_MAX`] column chunks. Their
/// pages are kept in a temporary file.
pub const ROW_GROUP_BYTES_CEILING: usize = 16 * 1024 * MIB;
/// Bytes of a page.
pub const PAGE_BYTES: usize = MIB / 2;
/// Bytes of unfinished pages in memory, over all columns, while the finished pages are in a temporary file.
pub const SPILL_PAGES_BYTES: usize = 16 * MIB;
/// The least size of a column's page then, because smaller pages would be mostly headers.
pub const PAGE_BYTES_MIN: usize = 4 * KIB;
/// Column chunks (columns times row groups) of a part. Each has an entry in the footer, which readers keep in memory.
pub const COLUMN_CHUNKS_MAX: usize = 32 * KIB;
/// Bytes of such an entry in memory.
pub const COLUMN_CHUNK_ENTRY_BYTES: usize = 640;
/// Columns of a table that is written with dictionaries. Each dictionary begins with a table of 4,096 slots.
pub const DICTIONARY_COLUMNS_MAX: usize = 128;
/// Bytes of a column's dictionary; above it the writer uses plain values.
pub const DICTIONARY_BYTES_MAX: usize = 256 * KIB;

/// Bytes of CSV that one task types or converts.
pub const CONVERT_TASK_BYTES: usize = MIB;
/// Small files (those that stay in memory until they are complete) that one task types, converts and commits.
pub const SMALL_FILES_PER_TASK_MAX: usize = CONVERT_TASK_BYTES / DRAFT_BUFFER_BYTES;
/// Bytes of a small upload. Small uploads have their own memory for conversion, so that they never wait for large ones.
pub const SMALL_UPLOAD_BYTES: u64 = 512 * KIB as u64;
/// Memory for the conversion of all large uploads, for what is read ahead of it, and for decompression.
pub const LARGE_CONVERSION_BYTES: usize = 89 * MIB;
/// Memory for the conversion of all small uploads.
pub const SMALL_CONVERSION_BYTES: usize = 15 * MIB;

// ---- Reading parts ----

/// Column chunks above which a Parquet file counts as wide.
pub const WIDE_CHUNKS: usize = 2 * KIB;
/// Bytes of its footer above which a Parquet file counts as wide.
pub const WIDE_FOOTER_BYTES: usize = MIB / 2;
/// Wide Parquet files that are open for reading at once.
pub const WIDE_READS_MAX: usize = 1;
/// Bytes that the scan of a column needs: a block, the longest row at its end or a page, and decoded values.
pub const SCAN_BYTES: usize = READ_BLOCK_BYTES + ROW_BYTES_CEILING + MIB / 2;
/// Bytes of a receipt's text, which is in memory while it is verified and parsed.
pub const RECEIPT_TEXT_BYTES_MAX: usize = 7 * MIB;
/// Bytes of a receipt's text besides the names of the columns: of each column, and of everything else.
const RECEIPT_TEXT_COLUMN_BYTES: usize = 96;
const RECEIPT_TEXT_REST_BYTES: usize = 16 * KIB;
/// Calls that verify everything that is stored. The verification in the background is not counted.
pub const VERIFY_CALLS_MAX: usize = 1;
/// Such calls that wait until another has ended; one more is refused at once.
pub const VERIFY_CALL_WAITS_MAX: usize = 4;

/// JSON may write each byte of a name with six.
const _: () = assert!(
    6 * HEADER_BYTES_MAX + COLUMNS_MAX * RECEIPT_TEXT_COLUMN_BYTES + RECEIPT_TEXT_REST_BYTES <= RECEIPT_TEXT_BYTES_MAX
);
/// A worker reads a receipt before it scans the part, so the text and what is parsed of it are in the memory for the scan.
const _: () = assert!(
    RECEIPT_TEXT_BYTES_MAX + HEADER_BYTES_MAX + COLUMNS_MAX * RECEIPT_COLUMN_BYTES + RECEIPT_BYTES <= SCAN_BYTES
);
/// The same for the receipt of a segment. What is parsed of it, in buffers that double, is three times as long at most.
const _: () =
    assert!(4 * SEGMENT_RECEIPT_BYTES_MAX <= SCAN_BYTES && SEGMENT_RECEIPT_BYTES_MAX <= RECEIPT_TEXT_BYTES_MAX);
/// A segment has room for the columns of any two small parts, so that they can be packed.
const _: () = assert!(
    2 * (6 * PACKED_CSV_BYTES_MAX + (COLUMNS_MAX * PACKED_COLUMN_TEXT_BYTES + PACKED_FILE_TEXT_BYTES) as u64)
        + PACKED_REST_TEXT_BYTES as u64
        <= SEGMENT_RECEIPT_BYTES_MAX as u64
);

/// Footers of Parquet files that are open: each worker may have one that is not wide.
const FOOTERS_BYTES: usize = (WORKERS * WIDE_CHUNKS + WIDE_READS_MAX * COLUMN_CHUNKS_MAX) * COLUMN_CHUNK_ENTRY_BYTES;
/// Verifications: those that were asked for, and the one in the background.
const VERIFY_BYTES: usize = (VERIFY_CALLS_MAX + 1) * (READ_BLOCK_BYTES + CHECKSUM_PAGE_BYTES);

// ---- Statistics ----

/// Bytes of a question: the groups of its tasks, the groups that they are merged into, and the rows of the tasks.
pub const SURVEY_MEMORY_BYTES: usize =
    (SURVEY_TASKS_MAX + 1) * SURVEY_BYTES_MAX + SURVEY_TASKS_MAX * SURVEY_TASK_ROWS * SURVEY_ROW_BYTES;
/// Rows that a task reads of a question that has one task at a time.
pub const SMALL_SURVEY_TASK_ROWS: usize = 4 * KIB;
/// Bytes of a question that has one task at a time, which adds to the question's groups directly.
pub const SMALL_SURVEY_MEMORY_BYTES: usize = SURVEY_BYTES_MAX + SMALL_SURVEY_TASK_ROWS * SURVEY_ROW_BYTES;
/// Bytes that all questions share: enough for two that have all their tasks, or for seven that have one task each.
pub const SURVEYS_BYTES: usize = 2 * SURVEY_MEMORY_BYTES;

const _: () = assert!(SURVEYS_BYTES >= (SURVEYS_AT_ONCE_MAX - 1) * SMALL_SURVEY_MEMORY_BYTES);

// ---- Questions about the table (limits/questions.rs) ----

const _: () = assert!(PACKED_CURSOR_BYTES >= 2 * (READ_BLOCK_BYTES + CHECKSUM_PAGE_BYTES) + 256 * PART_BYTES);
const _: () = assert!(PACKED_QUESTION_BYTES >= PACKED_CURSOR_BYTES + TASKS_IN_FLIGHT_MAX * TASK_PARTS_MAX * PART_BYTES);
/// A connection whose request has no body uses the memory for one: for figures of columns, or for a sum's tasks.
const _: () = assert!(2 * COLUMNS_PAGE_BYTES <= JSON_COPIES_MAX * JSON_BYTES_MAX);
const _: () = assert!(QUESTION_CALL_BYTES <= JSON_COPIES_MAX * JSON_BYTES_MAX);
const _: () = assert!(2 * SURVEY_LIST_BYTES <= JSON_COPIES_MAX * JSON_BYTES_MAX);
/// A merge has two rows that it compares, the row that it writes, and the row's text, in which every byte may be a quote.
const _: () = assert!(GROUP_BYTES_MAX >= 5 * ROW_BYTES_CEILING);
/// Half of the memory must do for reading the longest row: its bytes, and its cells without their quotes.
const _: () = assert!(GROUP_BYTES_MAX / 2 >= 2 * (ROW_BYTES_CEILING + READ_BLOCK_BYTES));
/// The same if groups are found by rank. They are not written as text.
const _: () = assert!(GROUP_BYTES_MAX - GROUP_TOP_BYTES >= 4 * ROW_BYTES_CEILING);
const _: () = assert!((GROUP_BYTES_MAX - GROUP_TOP_BYTES) / 2 >= 2 * (ROW_BYTES_CEILING + READ_BLOCK_BYTES));
/// A block's message is at most four times as long as the block, and clients accept 4 MiB by default.
const _: () = assert!(GROUP_BLOCK_BYTES < 4 * MIB / 4);

// ---- The sum ----

/// What the server may have in memory at once, in the worst case.
pub const MEMORY_BYTES_MAX: usize = ARRIVED_BYTES
    + STREAMS_BYTES
    + CONNECTIONS_MAX * HEADER_LIST_BYTES_CEILING
    + CONNECTIONS_MAX * CONNECTION_CALL_BYTES
    + SHARED_CALL_BYTES
    + HTTP_BYTES
    + LOG_BYTES
    + ACCESS_BYTES
    + storage::UNREMOVED_BYTES
    + TRANSFERS_BYTES
    + UPLOADS_MAX * REWRITE_BYTES
    + LARGE_CONVERSION_BYTES
    + SMALL_CONVERSION_BYTES
    + REGISTRY_BYTES
    + WORKERS * SCAN_BYTES
    + FOOTERS_BYTES
    + VERIFY_BYTES
    + KEYS_MAX * KEY_ENTRY_BYTES
    + JOBS_BYTES
    + SURVEYS_BYTES
    + GROUP_BYTES_MAX
    + GROUP_CALLS_MAX * GROUP_BLOCK_BYTES
    + questions::QUESTIONS_BYTES
    + PACKING_BYTES;

/// The rest of 512 MiB is for the program, its stacks and what the allocator keeps.
const _: () = assert!(MEMORY_BYTES_MAX <= 384 * MIB);

/// The bounds that flags can change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The size of a CSV file's pieces.
    pub csv: CsvLimits,
    /// Bytes of one upload.
    pub upload_bytes_max: u64,
    /// Uploads that are received at once.
    pub uploads_max: usize,
    /// Parts of the table. A table that has more at start is served, but accepts no uploads.
    pub parts_max: usize,
    /// How long an upload may send nothing before it is ended.
    pub upload_idle_max: Duration,
    /// How long a call may go without a byte of its request or of its answer.
    pub call_idle_max: Duration,
    /// How many jobs are accepted, and how long they are kept.
    pub jobs: JobLimits,
    /// Time between two verifications in the background, if there are any.
    pub scrub_interval: Option<Duration>,
    /// How long a removed part can be restored.
    pub undo: Duration,
    /// Whether questions are answered while a part is in quarantine.
    pub incomplete: Incomplete,
    /// How many small parts may have their own files before the oldest are packed.
    pub pack_above: usize,
    /// Bytes of CSV that packing reads in a second, at most.
    pub pack_bytes_per_s: u64,
}

/// Whether sums, group sums and statistics are answered while a part is in quarantine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Incomplete {
    /// No: the error names the part that is missing.
    #[default]
    Refuse,
    /// Yes, from the other parts.
    Answer,
}

/// How many jobs are accepted, and how long jobs that have ended are kept.
#[derive(Clone, Copy, Debug)]
pub struct JobLimits {
    /// The age at which jobs that have ended are removed.
    pub age_max: Duration,
    /// Jobs that may wait or run.
    pub unfinished_max: usize,
    /// Statistics that run at once, up to [`SURVEYS_AT_ONCE_MAX`].
    pub statistics_at_once: usize,
    /// Bytes of the inputs and results of jobs that have ended; above it the oldest jobs are removed.
    pub bytes_max: u64,
    /// Time between two removals.
    pub sweep_interval: Duration,
}

/// The size of a CSV file's pieces.
#[derive(Clone, Copy, Debug)]
pub struct CsvLimits {
    /// Columns in the header.
    pub columns_max: usize,
    /// Bytes of a cell's text, without its quotes.
    pub cell_bytes_max: usize,
    /// Bytes of a row in the file, without its row end.
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
            undo: Duration::from_secs(24 * 60 * 60),
            incomplete: Incomplete::default(),
            pack_above: PACK_ABOVE,
            pack_bytes_per_s: PACK_BYTES_PER_S,
        }
    }
}

impl Default for JobLimits {
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(24 * 60 * 60),
            unfinished_max: JOBS_UNFINISHED_MAX,
            statistics_at_once: 2,
            bytes_max: 10 * 1024 * MIB as u64,
            sweep_interval: Duration::from_secs(30),
        }
    }
}
