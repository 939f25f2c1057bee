//! Tally on several machines. Ballista schedules, shuffles and retries; an operator of ours reads the parts, with the readers
//! that the server uses itself; the server checks every answer against the receipts. docs/cluster.md describes it.
//!
//! ```text
//! command_line.rs    the roles and their flags
//! engine.rs          the server's side: asks the scheduler (a `PartEngine` of the tally library)
//! job.rs             one job of the scheduler, from its submission to its rows
//! scheduler.rs       the role `scheduler`
//! executor.rs        the role `executor`
//! read_parts.rs      the operator that reads parts, which runs on executors
//! merge_groups.rs    the operator that merges groups of the same key, after a shuffle by key
//! codec.rs           the operators as messages
//! tls.rs             mutual TLS between the roles
//! wire/              parts, answers and questions as rows and bytes
//! faults.rs          what tests break on purpose
//! leaf.rs            how the operator that reads parts must not be built, for a test
//! ```

pub mod codec;
pub mod command_line;
pub mod engine;
pub mod executor;
pub mod faults;
mod job;
#[cfg(feature = "faults")]
mod leaf;
pub mod merge_groups;
pub mod read_parts;
pub mod scheduler;
pub mod tls;
pub mod wire;
