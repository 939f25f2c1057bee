//! Jobs: work that is requested now and whose result is fetched later. Their states are under the lock (`state/jobs.rs`);
//! their records (`record.rs`), inputs and results are on disk.
//!
//! A job is accepted once its record is on disk. For each change of its state a new record replaces the last one, by a
//! rename as for receipts; only its first start is not recorded. A result is published before the record that says that the job is done. So the server finds every
//! accepted job when it starts: jobs that had not ended run again, and results can still be fetched. Only one caller at a
//! time writes a job's record.
//!
//! Jobs of one kind run in the order in which they were accepted, a few at once, as short tasks in the job lane of the
//! workers. What a job has to do is read from disk when it runs.
//!
//! Memory: at most `JOBS_MAX` entries, of which `JOBS_UNFINISHED_MAX` have work to do.

pub mod cancel;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod record;
pub mod record_changes;
pub mod recover;
pub mod result_file;
pub mod run;
pub mod submit;
pub mod sweep;

#[cfg(all(test, not(feature = "model")))]
mod tests;
