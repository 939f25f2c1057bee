//! Errors in the log: without the values of cells, unless `--log-values` is set.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{csv::CsvError, engine_error::Error, group_by::GroupByError, quoted::Quoted, statistics::StatisticsError};

static LOGS_VALUES: AtomicBool = AtomicBool::new(false);

/// Sets whether [`Logged`] shows the values of cells. By default it does not.
pub fn log_values(may_be_logged: bool) {
    LOGS_VALUES.store(may_be_logged, Ordering::Relaxed);
}

/// Displays an error for the log.
pub struct Logged<'a>(pub &'a Error);

impl fmt::Display for Logged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if LOGS_VALUES.load(Ordering::Relaxed) {
            return self.0.fmt(f);
        }
        match self.0 {
            Error::Cell { part, row, column, cell, problem } => {
                let (column, bytes) = (Quoted(column), cell.len());
                write!(f, "part {part}, row {row}, column {column}: a cell of {bytes} bytes {problem}")
            }
            Error::Csv(CsvError::Summand { row, column, cell, problem }) => {
                let (column, bytes) = (Quoted(column), cell.len());
                write!(f, "{row}, column {column}: a cell of {bytes} bytes {problem}")
            }
            Error::GroupBy(GroupByError::GroupOverflow { column, .. }) => {
                write!(f, "column {}: the sum of a group does not fit in 64 bits", Quoted(column))
            }
            Error::GroupBy(GroupByError::GroupTooLong { bytes_max, .. }) => {
                write!(f, "a group has more than {bytes_max} bytes, which is the limit for an answer")
            }
            Error::Statistics(StatisticsError::DifferenceOverflow { .. }) => {
                f.write_str("the global mean minus that of a state does not fit in a double")
            }
            other => other.fmt(f),
        }
    }
}
