//! The question of a group sum, and the resources that it may use.

use std::thread::available_parallelism;

use crate::{
    engine::csv::header::split_record,
    error::group_by::GroupByError,
    limits::{GROUP_COLUMNS_MAX, GROUP_NAMES_BYTES_MAX, GROUP_RANGE_BYTES, MIB, NAME_BYTES_MAX, TASK_BYTES, WORKERS},
};

/// With less memory, a partition would spill very often.
const PARTITION_MEMORY_BYTES_MIN: usize = 8 * MIB;
/// Reading the CSV of a smaller part is faster than opening its Parquet file. A part of this size also takes no more memory
/// when it is read from Parquet: a long row of it, for which there is room, is as long as the part.
pub(super) const COLUMNAR_BYTES_MIN: u64 = MIB as u64;

/// The columns of a group sum: no name is repeated, at least one is grouped by, and at least one is summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupBy {
    pub(super) by: Vec<String>,
    pub(super) sum: Vec<String>,
    /// Whether a column is also found by its name without the white space around it.
    pub(super) trims_names: bool,
    /// Whether each group's rows are counted, in a total after those of the columns, and also which parts were read. That is so if
    /// its groups are only some of an answer.
    pub(super) counts_rows: bool,
}

impl GroupBy {
    /// Groups by the columns `by` and sums the columns `sum`. No name may be repeated, because the result is a table, too.
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
        Ok(Self { by, sum, trims_names: false, counts_rows: false })
    }

    /// As [`GroupBy::new`], from lists of names that are separated by commas and quoted as in a CSV file.
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

    /// Finds a column also by its name without the white space around it, unless another one has exactly the name.
    #[must_use]
    pub fn with_trimmed_names(self) -> Self {
        Self { trims_names: true, ..self }
    }

    /// Counts the rows of each group.
    pub(crate) fn counting_rows(self) -> Self {
        Self { counts_rows: true, ..self }
    }

    /// How many totals a group has.
    pub(super) fn totals_count(&self) -> usize {
        self.sum.len() + usize::from(self.counts_rows)
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

/// The resources that a group sum may use. The answer does not depend on them.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Memory for groups (tables, sorting them, blocks of runs) and for a long row while it is read, except that groups
    /// have at least a quarter of it. A merge keeps two of the longest groups and a block that it writes, even if that is
    /// more.
    pub bytes_max: usize,
    /// The number of partitions, at most.
    pub partitions_max: usize,
    /// Bytes of CSV that make a separate partition worthwhile.
    pub partition_bytes_min: u64,
    /// Bytes of CSV that one task reads.
    pub task_bytes: usize,
    /// A part whose CSV has fewer bytes is not read from Parquet.
    pub columnar_bytes_min: u64,
    /// Bytes of runs that are merged as one range, if there is memory for several.
    pub range_bytes: usize,
}

impl Plan {
    /// The plan for this machine, with `bytes_max` bytes of memory.
    pub fn with_bytes(bytes_max: usize) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            bytes_max,
            partitions_max: cores.min(WORKERS).min(bytes_max / PARTITION_MEMORY_BYTES_MIN).max(1),
            partition_bytes_min: 2 * TASK_BYTES as u64,
            task_bytes: TASK_BYTES,
            columnar_bytes_min: COLUMNAR_BYTES_MIN,
            range_bytes: GROUP_RANGE_BYTES,
        }
    }

    /// What a merge may use; the rest is for the marks in the runs, and for dividing these into ranges.
    pub(super) fn merge_bytes(&self) -> usize {
        self.bytes_max - self.bytes_max / 8
    }
}
