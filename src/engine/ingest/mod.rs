//! An upload, step by step: receive, find the column types, convert, commit. `upload.rs` has the order of the steps.

pub mod blocks;
pub mod commit;
pub mod commit_queue;
pub mod convert;
pub mod early_sync;
pub mod empty_columns;
pub mod integer_attempt;
pub mod integers;
pub mod keyed;
pub mod load;
pub mod memory_plan;
pub mod queues;
pub mod receive;
pub mod reread;
pub mod rewrite;
pub mod small_files;
pub mod upload;

#[cfg(test)]
mod integers_tests;
