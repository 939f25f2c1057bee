//! Files on disk: the data folder, drafts, publishing parts and jobs, recovery, reading. No CSV, no Parquet, no lock.
//!
//! ```text
//! DATA/lock              locked by the server that uses DATA; contains its process id
//! DATA/tmp/              drafts of 64 KiB and more, unfinished records, files without a name; emptied at every start
//! DATA/parts/N.csv       the CSV as it was uploaded
//! DATA/parts/N.parquet   the same rows
//! DATA/parts/N.sums      checksums of the CSV's blocks, if it has more than one (`checksums.rs`)
//! DATA/parts/N.json      the receipt; the rename to this name is the commit
//! DATA/parts/A-B-V.*     a segment: many small parts in a few files (`segments/`); the rename of A-B-V.segment is its commit
//! DATA/jobs/ID.json      a job's record; the rename to this name is the commit
//! DATA/jobs/ID.input     the job's input
//! DATA/jobs/ID.result    the job's result
//! DATA/jobs/ID.input-sums, DATA/jobs/ID.result-sums    checksums of their blocks, as N.sums
//! DATA/removed/          the files of removed parts; `removed_parts.rs`
//! DATA/quarantine/       damaged parts and jobs; N.forgotten: an operator has accepted the loss of part N
//! ```
//!
//! Invariants: the files that a receipt or a job's record describes are complete and next to it. Stored bytes are verified
//! against their checksum before they are used: [`reader::Reader`] verifies the blocks of CSV and of jobs' files, records
//! carry their own checksum, and `engine::parquet` verifies Parquet by chunks. Every function that touches files asserts
//! that the lock in `engine::state` is not held.

pub mod block_list;
pub mod checksums;
pub mod commit;
pub mod data_folder;
pub mod draft;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
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
pub mod remove_again;
pub mod removed_parts;
pub mod segments;
pub mod spill_file;
mod store;
pub mod sync;
pub mod temp_file;
#[cfg(test)]
mod tests;
pub mod unremoved;

pub use self::{lock::lock_holder, store::Store};
