//! Bounds of the logs.

/// Lines that wait to be written to the file of `--log-file`; one more is dropped and counted.
pub const LOG_LINES_MAX: usize = 90;
/// Characters of a text in such a line.
pub const LOG_TEXT_CHARS_MAX: usize = 512;
/// Bytes of such a line: two texts in which every character is escaped, and the rest of the line.
pub const LOG_LINE_BYTES_MAX: usize = 2 * 10 * LOG_TEXT_CHARS_MAX + 1024;

/// Lines that wait to be written to standard error; one more is dropped and counted.
pub const LOG_QUEUE_LINES_MAX: usize = 1024;
/// Bytes of these lines, with what is kept for each; a line beyond that is dropped and counted.
pub const LOG_QUEUE_BYTES_MAX: usize = 192 * 1024;
/// Bytes of a slot of that queue, used or not.
pub const LOG_QUEUE_SLOT_BYTES: usize = 64;
/// Bytes of a line on standard error; a longer one is cut.
pub const STDERR_LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of lines that are written together. The last line may exceed it.
pub const LOG_BATCH_BYTES: usize = 32 * 1024;
/// Lines of one group (for example of one call and one client) that are written within 10 s; a summary replaces the others.
pub const LOG_LINES_PER_GROUP_MAX: usize = 20;
/// Groups of lines that are counted separately.
pub const LOG_GROUPS_MAX: usize = 256;
/// Bytes of a group: its entry in a hash table that may be half empty, and its description.
pub const LOG_GROUP_BYTES: usize = 384;

/// Lines that wait to be written to the file of `--audit-log`; one more is lost and counted.
pub const AUDIT_LINES_MAX: usize = 2048;
/// Bytes of these lines, with what is kept for each; a line beyond that is lost and counted.
pub const AUDIT_QUEUE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a slot of that queue, used or not.
pub const AUDIT_SLOT_BYTES: usize = 32;
/// Bytes of lines that are written together. The last line may exceed it.
pub const AUDIT_BATCH_BYTES: usize = 32 * 1024;
/// Bytes of a text from a client in such a line.
pub const AUDIT_TEXT_BYTES_MAX: usize = 256;
/// Refused calls that have a line, in a second: of callers with a known token, and of all others. More are only counted.
pub const AUDIT_REFUSALS_PER_S_MAX: u64 = 100;

/// The queues of the logs, the lines that are being written, and the groups.
pub(super) const LOG_BYTES: usize = LOG_LINES_MAX * LOG_LINE_BYTES_MAX
    + LOG_QUEUE_BYTES_MAX
    + LOG_QUEUE_LINES_MAX * LOG_QUEUE_SLOT_BYTES
    + 2 * (LOG_BATCH_BYTES + STDERR_LINE_BYTES_MAX)
    + LOG_GROUPS_MAX * LOG_GROUP_BYTES
    + AUDIT_QUEUE_BYTES_MAX
    + AUDIT_LINES_MAX * AUDIT_SLOT_BYTES
    + 2 * AUDIT_BATCH_BYTES;
