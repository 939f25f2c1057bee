//! Errors of CSV files, with row and column as data.

use std::fmt;

use super::{
    position::{ColumnPosition, Position},
    quoted::Quoted,
};

/// Why a file is refused. Rows count from 1 after the header; row 0 is the header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// The file is empty or has only empty lines.
    #[error("the file has no header row")]
    NoHeader,
    /// The header has too many columns.
    #[error("the header has more than {columns_max} columns")]
    TooManyColumns {
        /// The limit.
        columns_max: usize,
    },
    /// The header has too many bytes.
    #[error("the header is longer than {bytes_max} bytes")]
    HeaderTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// Two columns have the same name.
    #[error("the header names two columns {}", Quoted(.name))]
    DuplicateColumn {
        /// The name.
        name: String,
    },
    /// A row with too few or too many cells.
    #[error("row {row} has {cells} cell{}, the header has {header_cells}", if *.cells == 1 { "" } else { "s" })]
    Ragged {
        /// The row.
        row: u64,
        /// The number of its cells.
        cells: usize,
        /// The number of columns.
        header_cells: usize,
    },
    /// A row has too many bytes.
    #[error("row {row} is longer than {bytes_max} bytes; is a quote not closed?")]
    RowTooLong {
        /// The row.
        row: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// A cell is not valid.
    #[error("{position}: {problem}")]
    Cell {
        /// Where it is.
        position: CellPosition,
        /// What is wrong with it.
        problem: CellFault,
    },
    /// The column that was asked for does not exist.
    #[error("the file has no column {}", Quoted(.name))]
    NoColumn {
        /// The name.
        name: String,
    },
    /// A cell that cannot be added.
    #[error("row {row}, column {}: {} {problem}", Quoted(.column), Quoted(.cell))]
    Summand {
        /// The row.
        row: u64,
        /// The column's name.
        column: String,
        /// The cell's text.
        cell: String,
        /// Why it cannot be added.
        problem: CellProblem,
    },
}

impl CsvError {
    /// Where in the file the error is.
    pub fn position(&self) -> Position<'_> {
        let (row, column) = match self {
            Self::Ragged { row, .. } | Self::RowTooLong { row, .. } => (Some(*row), None),
            Self::Summand { row, column, .. } => (Some(*row), Some(ColumnPosition::Name(column))),
            Self::Cell { position: CellPosition { row, column_index, column }, .. } => {
                let index = ColumnPosition::Index(*column_index);
                (Some(*row), Some(column.as_deref().map_or(index, ColumnPosition::Name)))
            }
            Self::DuplicateColumn { name } => (Some(0), Some(ColumnPosition::Name(name))),
            Self::NoHeader | Self::TooManyColumns { .. } | Self::HeaderTooLong { .. } | Self::NoColumn { .. } => {
                (None, None)
            }
        };
        Position { part: None, row, column }
    }

    /// The same error with `rows_before` added to the row, for a file whose rows were not counted from the start.
    #[must_use]
    pub fn after_rows(mut self, rows_before: u64) -> Self {
        match &mut self {
            Self::Ragged { row, .. } | Self::RowTooLong { row, .. } | Self::Summand { row, .. } => *row += rows_before,
            Self::Cell { position, .. } if position.row > 0 => position.row += rows_before,
            Self::Cell { .. }
            | Self::NoHeader
            | Self::TooManyColumns { .. }
            | Self::HeaderTooLong { .. }
            | Self::DuplicateColumn { .. }
            | Self::NoColumn { .. } => {}
        }
        self
    }
}

/// What can be wrong with one cell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CellFault {
    /// The file ends inside a quoted cell.
    #[error("a quoted cell is not closed")]
    UnclosedQuote,
    /// `"a"b`
    #[error("text after a closing quote")]
    TextAfterQuote,
    /// The cell is not valid UTF-8.
    #[error("invalid UTF-8")]
    NotUtf8,
    /// A NUL byte.
    #[error("a NUL byte")]
    Nul,
    /// The cell has too many bytes.
    #[error("the cell is longer than {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
}

/// Where a cell is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellPosition {
    /// Data row from 1; 0 is the header.
    pub row: u64,
    /// The index of the column, from 0.
    pub column_index: usize,
    /// The column's name; `None` in the header itself and beyond its end.
    pub column: Option<String>,
}

impl fmt::Display for CellPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            0 => write!(f, "header")?,
            row => write!(f, "row {row}")?,
        }
        match &self.column {
            Some(name) => write!(f, ", column {}", Quoted(name)),
            None => write!(f, ", column {}", self.column_index + 1),
        }
    }
}

/// Why a cell's text cannot be added to a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellProblem {
    /// It is not an integer.
    NotAnInteger,
    /// It is an integer of more than 64 bits.
    TooLarge,
    /// It is not a number, or not one that a double can represent.
    NotANumber,
}

impl fmt::Display for CellProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnInteger => "is not an integer",
            Self::TooLarge => "does not fit in 64 bits",
            Self::NotANumber => "is not a number that a double holds",
        })
    }
}
