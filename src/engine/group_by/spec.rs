//! What a group sum is asked for, and how much memory it may take.

use std::thread::available_parallelism;

use crate::{
    engine::csv::header::split_record,
    error::group_by::GroupByError,
    limits::{GROUP_COLUMNS_MAX, GROUP_NAMES_BYTES_MAX, MIB, NAME_BYTES_MAX, SLICE_BYTES, WORKERS},
};

/// A strand with less memory would write runs all the time.
const STRAND_MEMORY_BYTES_MIN: usize = 8 * MIB;

/// The columns of a group sum: no name twice, at least one to group by and one to sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupBy {
    pub(super) by: Vec<String>,
    pub(super) sum: Vec<String>,
}

impl GroupBy {
    /// Groups by some columns and sums others. A column is named once: the result is a table, too.
    pub fn new(by: Vec<String>, sum: Vec<String>) -> Result<Self, GroupByError> {
        if by.is_empty() {
            return Err(GroupByError::NoBy);
        }
        if sum.is_empty() {
            return Err(GroupByError::NoSum);
        }
        if by.len() + sum.len() > GROUP_COLUMNS_MAX {
            return Err(GroupByError::TooMany { columns_max: GROUP_COLUMNS_MAX });
        }
        let names: Vec<_> = by.iter().chain(&sum).collect();
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(GroupByError::NameTooLong { bytes_max: NAME_BYTES_MAX });
        }
        if names.iter().map(|name| name.len()).sum::<usize>() > GROUP_NAMES_BYTES_MAX {
            return Err(GroupByError::NamesTooLong { bytes_max: GROUP_NAMES_BYTES_MAX });
        }
        if let Some((_, twice)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
            return Err(GroupByError::Twice { name: (*twice).clone() });
        }
        Ok(Self { by, sum })
    }

    /// Groups by the columns of some lists and sums those of others; a list is columns as a row of a CSV file has them.
    pub fn parse(by: &[String], sum: &[String]) -> Result<Self, GroupByError> {
        let names = |lists: &[String]| {
            let mut names = Vec::new();
            for list in lists {
                names.extend(split_record(list).map_err(|problem| GroupByError::List { list: list.clone(), problem })?);
            }
            Ok(names)
        };
        Self::new(names(by)?, names(sum)?)
    }

    /// The columns to group by.
    pub fn by(&self) -> &[String] {
        &self.by
    }

    /// The columns to sum.
    pub fn sum(&self) -> &[String] {
        &self.sum
    }
}

/// What a group sum may take. The answer does not depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes for groups: tables, what sorts them, blocks of runs; and for a long row being read, unless that would
    /// leave less than a quarter for groups. A merge holds two rows of the longest and what it writes of one, even where
    /// that is more.
    pub bytes_max: usize,
    /// Strands at most.
    pub strands_max: usize,
    /// Bytes of CSV that are worth a strand of their own.
    pub strand_bytes_min: u64,
    /// Bytes of CSV that a slice reads.
    pub slice_bytes: usize,
}

impl Plan {
    /// For this machine, in so many bytes.
    pub fn with_bytes(bytes_max: usize) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            bytes_max,
            strands_max: cores.min(WORKERS).min(bytes_max / STRAND_MEMORY_BYTES_MIN).max(1),
            strand_bytes_min: 2 * SLICE_BYTES as u64,
            slice_bytes: SLICE_BYTES,
        }
    }
}
