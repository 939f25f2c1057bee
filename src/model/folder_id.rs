//! What tells a data folder from others while a server uses it. A server says it with a list of its files, and a program that makes
//! links to these files compares it.

/// From the lock file, which the server wrote when it started: its inode, and seconds and nanoseconds of its last modification.
pub(crate) fn folder_id(inode: u64, seconds: i64, nanoseconds: i64) -> String {
    format!("{inode}-{seconds}-{nanoseconds}")
}
