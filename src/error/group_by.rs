//! Errors of group sums.

use super::{
    csv::CellFault,
    kind::Kind,
    quoted::{Quoted, QuotedList},
};

/// Why a group sum is refused or has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupByError {
    /// There is no column to group by.
    #[error("a group sum needs a column to group by")]
    NoBy,
    /// There is no column to sum.
    #[error("a group sum needs a column to sum")]
    NoSum,
    /// A column is named twice, so the result would have two columns with the same name.
    #[error("a group sum names column {} twice", Quoted(.name))]
    Twice {
        /// The name.
        name: String,
    },
    /// A list of columns that cannot be read.
    #[error("{} is not a list of columns: {problem}", Quoted(.list))]
    List {
        /// The list.
        list: String,
        /// What is wrong with it.
        problem: CellFault,
    },
    /// Too many columns.
    #[error("a group sum names more than {columns_max} columns")]
    TooMany {
        /// The limit.
        columns_max: usize,
    },
    /// A name that is longer than any column's.
    #[error("a group sum names a column with more than {bytes_max} bytes")]
    NameTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The names are too long together.
    #[error("the columns that a group sum names have more than {bytes_max} bytes together")]
    NamesTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The sum of a group does not fit in an int64.
    #[error("group {}, column {}: the sum {total} does not fit in 64 bits", QuotedList(group), Quoted(column))]
    GroupOverflow {
        /// The group's cells.
        group: Vec<String>,
        /// The column that is summed.
        column: String,
        /// The exact sum.
        total: i128,
    },
    /// A group is too long for an answer over the network.
    #[error("group {}: it has more than {bytes_max} bytes, which is the limit for an answer", QuotedList(group))]
    GroupTooLong {
        /// The group's cells.
        group: Vec<String>,
        /// The limit.
        bytes_max: usize,
    },
    /// The groups with the largest totals do not fit in memory.
    #[error("the {count} groups with the largest totals have more than {bytes_max} bytes: ask for fewer")]
    TopTooLong {
        /// How many were asked for.
        count: usize,
        /// The limit.
        bytes_max: usize,
    },
}

impl GroupByError {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::NoBy
            | Self::NoSum
            | Self::Twice { .. }
            | Self::List { .. }
            | Self::TooMany { .. }
            | Self::NameTooLong { .. }
            | Self::NamesTooLong { .. }
            | Self::GroupOverflow { .. }
            | Self::GroupTooLong { .. }
            | Self::TopTooLong { .. } => Kind::Input,
        }
    }
}
