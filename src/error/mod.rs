//! The errors: one type, [`Error`], that holds a type for each domain. Facts and positions are data. No protocol types:
//! surfaces match on [`Error::kind`].
//!
//! Texts are lower case, have no full stop and say what is wrong, where, and what to do. Text that came from a user is
//! quoted, escaped and cut by [`quoted::Quoted`], so that no message can grow with the data or forge a log line.

pub mod column_sum;
pub mod csv;
mod engine_error;
pub mod group_by;
pub mod jobs;
mod kind;
pub mod logged;
pub mod numstore;
mod position;
pub mod quoted;
pub mod statistics;
#[cfg(test)]
mod tests;

pub use self::{
    engine_error::Error,
    kind::Kind,
    position::{ColumnPosition, Position},
};
