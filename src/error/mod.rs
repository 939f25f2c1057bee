//! The errors: one type, [`Error`], with a variant for the error type of each domain. Facts and positions are data. There
//! are no protocol types: the APIs match on [`Error::kind`].
//!
//! Messages are lower case, have no full stop and say what is wrong, where, and what to do. Text of users is quoted, escaped
//! and cut by [`quoted::Quoted`], so that a message cannot grow with the data or forge a log line.

pub mod column_sum;
pub mod csv;
pub mod dialect;
mod engine_error;
pub mod foreign_file;
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
