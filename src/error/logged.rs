//! An error as the log shows it: without the text of cells, unless `--log-values` asks for it.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{csv::CsvError, engine_error::Error, group_by::GroupByError, quoted::Quoted, statistics::StatisticsError};

/// Whether what is in cells may be logged.
static LOGS_VALUES: AtomicBool = AtomicBool::new(false);

/// Says whether [`Logged`] shows what is in cells. It does not until it is told to.
pub fn log_values(may_be_logged: bool) {
    LOGS_VALUES.store(may_be_logged, Ordering::Relaxed);
}

/// An error as the log has it: without what is in cells, unless that may be logged.
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
                write!(f, "row {row}, column {column}: a cell of {bytes} bytes {problem}")
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
