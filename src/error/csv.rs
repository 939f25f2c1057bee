//! Errors of CSV files, with row, line and column as data.

use std::fmt;

use super::{
    foreign_file::{ForeignFile, Use},
    position::{ColumnPosition, Position},
    quoted::Quoted,
};

/// Why a file is refused. Rows count from 1 after the header; row 0 is the header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// The file is not CSV with commas in UTF-8.
    #[error("{}", file.hint(*used_for))]
    Foreign {
        /// What it seems to be.
        file: ForeignFile,
        /// What it was sent for.
        used_for: Use,
    },
    /// The file is empty or has only empty lines.
    #[error("the file has no header row")]
    NoHeader,
    /// The header has too many columns.
    #[error("the {row} has more than {columns_max} columns")]
    TooManyColumns {
        /// The header.
        row: FileRow,
        /// The limit.
        columns_max: usize,
    },
    /// The header has too many bytes.
    #[error("the {row} is longer than {bytes_max} bytes")]
    HeaderTooLong {
        /// The header.
        row: FileRow,
        /// The limit.
        bytes_max: usize,
    },
    /// Two columns have the same name.
    #[error("the {row} names two columns {}", Quoted(.name))]
    DuplicateColumn {
        /// The header.
        row: FileRow,
        /// The name.
        name: String,
    },
    /// A row with too few or too many cells.
    #[error(
        "{row} has {cells} cell{}, the header has {header_cells}{}",
        if *.cells == 1 { "" } else { "s" },
        match (*.extra_are_empty, *.used_for) {
            (false, _) => "",
            (true, Use::Upload) => ": its extra cells are empty; upload with --drop-trailing-empty",
            (true, Use::GroupSum) => ": its extra cells are empty; remove them",
        }
    )]
    Ragged {
        /// The row.
        row: FileRow,
        /// The number of its cells.
        cells: usize,
        /// The number of columns.
        header_cells: usize,
        /// If it has too many cells, the index of the first one too many that has a text, or of the first one.
        first_extra: usize,
        /// Whether it has too many cells, and those beyond the header's have no text.
        extra_are_empty: bool,
        /// What the file was sent for.
        used_for: Use,
    },
    /// A row has too many bytes.
    #[error("{row} is longer than {bytes_max} bytes; is a quote not closed?")]
    RowTooLong {
        /// The row.
        row: FileRow,
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
    #[error("{row}, column {}: {} {problem}", Quoted(.column), Quoted(.cell))]
    Summand {
        /// The row.
        row: FileRow,
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
        let column = match self {
            Self::Summand { column, .. } => Some(ColumnPosition::Name(column)),
            Self::Cell { position: CellPosition { column_index, column, .. }, .. } => {
                Some(column.as_deref().map_or(ColumnPosition::Index(*column_index), ColumnPosition::Name))
            }
            Self::DuplicateColumn { name, .. } => Some(ColumnPosition::Name(name)),
            _no_column => None,
        };
        let row = self.row();
        Position { part: None, row: row.map(|row| row.number), line: row.and_then(|row| row.line), column }
    }

    /// The row that the error is in.
    pub fn row(&self) -> Option<FileRow> {
        self.clone().row_mut().copied()
    }

    /// The same error with `rows_before` added to the row, for a file whose rows were not counted from the start.
    #[must_use]
    pub fn after_rows(mut self, rows_before: u64) -> Self {
        if let Some(row) = self.row_mut()
            && row.number > 0
        {
            row.number += rows_before;
        }
        self
    }

    /// The same error for a file that was sent for this, with a remedy that its sender has.
    #[must_use]
    pub fn of_use(mut self, now: Use) -> Self {
        match &mut self {
            Self::Ragged { used_for, .. }
            | Self::Foreign { used_for, .. }
            | Self::Cell { problem: CellFault::NotUtf8 { used_for, .. }, .. } => *used_for = now,
            _no_remedy => {}
        }
        self
    }

    /// The same error with the line on which its row begins.
    #[must_use]
    pub fn on_line(mut self, line: u64) -> Self {
        if let Some(row) = self.row_mut() {
            row.line = Some(line);
        }
        self
    }

    fn row_mut(&mut self) -> Option<&mut FileRow> {
        match self {
            Self::Ragged { row, .. }
            | Self::RowTooLong { row, .. }
            | Self::Summand { row, .. }
            | Self::TooManyColumns { row, .. }
            | Self::HeaderTooLong { row, .. }
            | Self::DuplicateColumn { row, .. }
            | Self::Cell { position: CellPosition { row, .. }, .. } => Some(row),
            Self::Foreign { .. } | Self::NoHeader | Self::NoColumn { .. } => None,
        }
    }
}

/// A row of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRow {
    /// Data rows count from 1; 0 is the header.
    pub number: u64,
    /// The line of the file on which the row begins, from 1. It is counted after an error has occurred; `None` until then.
    pub line: Option<u64>,
}

impl FileRow {
    /// The header.
    pub const HEADER: Self = Self { number: 0, line: None };
}

impl From<u64> for FileRow {
    fn from(number: u64) -> Self {
        Self { number, line: None }
    }
}

impl fmt::Display for FileRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.number, self.line) {
            (0, None) => f.write_str("header"),
            (0, Some(line)) => write!(f, "header (line {line})"),
            (number, None) => write!(f, "row {number}"),
            (number, Some(line)) => write!(f, "row {number} (line {line})"),
        }
    }
}

/// What can be wrong with one cell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CellFault {
    /// The file ends inside a quoted cell.
    #[error("a quoted cell is not closed")]
    UnclosedQuote,
    /// `"a"b`
    #[error("text after a closing quote: a quote inside a quoted cell is written twice")]
    TextAfterQuote,
    /// The cell is not valid UTF-8.
    #[error(
        "invalid UTF-8 (byte 0x{byte:02x}), perhaps Windows-1252: {}",
        match .used_for {
            Use::Upload => "upload with --encoding windows-1252",
            Use::GroupSum => "save the file as UTF-8",
        }
    )]
    NotUtf8 {
        /// The first byte that is not part of a character.
        byte: u8,
        /// What the file was sent for.
        used_for: Use,
    },
    /// A NUL byte.
    #[error("a NUL byte")]
    Nul,
    /// A value where only one column may be without a name.
    #[error("a value in one of several columns without a name: give each of them a name in the header")]
    Unnamed,
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
    /// The row.
    pub row: FileRow,
    /// The index of the column, from 0.
    pub column_index: usize,
    /// The column's name; `None` in the header itself and beyond its end, and for a column without a name.
    pub column: Option<String>,
}

impl CellPosition {
    /// The position of a cell in a row of a file whose columns have these names, which are none yet in the header.
    pub fn new(row: FileRow, column_index: usize, names: &[String]) -> Self {
        let column = names.get(column_index).filter(|name| !name.is_empty()).cloned();
        Self { row, column_index, column }
    }
}

impl fmt::Display for CellPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            Some(name) => write!(f, "{}, column {}", self.row, Quoted(name)),
            None => write!(f, "{}, column {}", self.row, self.column_index + 1),
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
    /// It is a double of 2^53 or more in magnitude, so its text may have been another integer.
    NotExact,
    /// It is not a number, or not one that a double can represent.
    NotANumber,
}

impl fmt::Display for CellProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnInteger => "is not an integer",
            Self::TooLarge => "does not fit in 64 bits",
            Self::NotExact => "is not below 2^53, where a double is exact",
            Self::NotANumber => "is not a number that a double holds",
        })
    }
}
