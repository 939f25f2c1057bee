//! Jobs: work asked for now and fetched later. Their states under the lock, their results on disk, the order in which
//! they run. Their records are in `job_records.rs`.
//!
//! A job is accepted once its record is on disk. Each change of its state is a record published in place of the last one,
//! as a receipt is; its result is published before the record that says it is done. So a start finds every job that was
//! accepted: what had not ended runs again, what was done still answers. At any time one task alone writes a job's record.
//!
//! Jobs run in the order in which they were accepted, a few of each kind at once; what they compute are slices on the
//! workers, in a lane of their own. What a job is to do stays on disk until its turn, and its result stays there.
//!
//! Memory: at most [`JOBS_MAX`] entries, of which `JOBS_UNFINISHED_MAX` have work to do.

pub mod cancel;
pub mod record;
pub mod record_changes;
pub mod recover;
pub mod result_file;
pub mod run;
pub mod submit;
pub mod sweep;

#[cfg(all(test, not(feature = "model")))]
mod tests;
