//! Bounds of what is done with files besides reading and writing them.

/// Bytes of a stream between two syncs of its draft, if uploads are synced.
pub const SYNC_STEP_BYTES: u64 = 8 * 1024 * 1024;
/// Such syncs that run at once. Each keeps a worker busy; the other workers go on.
pub const SYNCS_MAX: usize = 2;
/// Removals of files that failed and are tried again: of a draft, or of a part, a segment or a job with all its files. More are
/// left to the next start.
pub const UNREMOVED_MAX: usize = 512;
/// Bytes of such a removal: while it waits, and while it is tried again.
pub const UNREMOVED_ENTRY_BYTES: usize = 128;
/// Bytes of all of them.
pub(super) const UNREMOVED_BYTES: usize = UNREMOVED_MAX * UNREMOVED_ENTRY_BYTES;
