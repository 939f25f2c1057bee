//! Bytes on disk: the data folder, drafts, the one way to publish a part, recovery, reading. No CSV, no Parquet, no lock.
//!
//! ```text
//! DATA/lock              held by the server that runs on DATA; its content is the holder's process id
//! DATA/tmp/              drafts of 64 KiB and more, records on their way, and files without a name: gone after any start
//! DATA/parts/N.csv       as it was sent
//! DATA/parts/N.parquet   the same rows
//! DATA/parts/N.sums      checksums of the CSV's blocks, if it has more than one (`checksums.rs`)
//! DATA/parts/N.json      the receipt; its rename to this name is the commit
//! DATA/jobs/ID.json      a job's record; its rename to this name is the commit
//! DATA/jobs/ID.input     what it works on
//! DATA/jobs/ID.result    what came of it
//! DATA/jobs/ID.input-sums, DATA/jobs/ID.result-sums    checksums of their blocks, as N.sums
//! DATA/quarantine/       parts that were found damaged at start; N.forgotten: an operator has accepted the loss of part N
//! ```
//!
//! Invariant: a receipt in `parts/` has its files beside it, complete, and a job's record those it speaks of. What was stored
//! is verified against its checksum before anyone sees it: [`reader::Reader`] hands out blocks of CSV and of jobs' files only so,
//! and records are read only so; Parquet is verified by chunks, in `engine::parquet`. Every function asserts that the lock in
//! `engine::state` is not held.

pub mod block_list;
pub mod checksums;
pub mod commit;
pub mod data_folder;
pub mod draft;
pub mod job_files;
mod lock;
pub mod names;
#[cfg(test)]
mod order_tests;
pub mod part_files;
pub mod quarantine;
pub mod reader;
pub mod receipts;
pub mod recover;
pub mod spill_file;
mod store;
pub mod sync;
pub mod temp_file;
#[cfg(test)]
mod tests;

pub use self::{lock::lock_holder, store::Store};
