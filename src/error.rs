//! The one error type, its facts and its positions. No protocol types: surfaces match on [`Error::kind`].
//!
//! Texts are lower case, have no full stop and say where and what. Text that came from a user is quoted, escaped and
//! cut by [`Quoted`], so that no message can grow with the data or forge a log line.

use std::{fmt, io};

use crate::engine::part::{ColumnType, PartId};

/// What went wrong, with the facts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no CSV as Tally understands it.
    #[error(transparent)]
    Csv(#[from] CsvError),
    /// A format that does not exist.
    #[error("unknown format {}: it is \"csv\" or \"parquet\"", Quoted(.0))]
    UnknownFormat(String),
    /// A cell that cannot be added.
    #[error("part {part}, row {row}, column {}: {} {problem}", Quoted(column), Quoted(cell))]
    Cell {
        /// Where it stands.
        part: PartId,
        /// Data row, from 1.
        row: u64,
        /// The column asked for.
        column: String,
        /// The cell's text.
        cell: String,
        /// Why it cannot be added.
        problem: CellProblem,
    },
    /// A column of a type that is no integer.
    #[error("part {part}, column {}: its type is {column_type}, not an integer", Quoted(column))]
    NotSummable {
        /// The first part that has it so.
        part: PartId,
        /// The column asked for.
        column: String,
        /// Its type there.
        column_type: ColumnType,
    },
    /// The sum is exact, but no int64.
    #[error("column {}: the sum {total} does not fit in 64 bits", Quoted(column))]
    SumOverflow {
        /// The column asked for.
        column: String,
        /// The exact sum.
        total: i128,
    },
    /// An upload over the limit.
    #[error("the upload has more than {bytes_max} bytes")]
    UploadTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// A table so wide and so long that its Parquet footer would not fit in memory.
    #[error("{columns} columns and {file_bytes} bytes are too much for one part: send it in smaller files")]
    TooWideAndLong {
        /// Columns of the file.
        columns: usize,
        /// Its size.
        file_bytes: u64,
    },

    /// A key over the limit.
    #[error("the key has {bytes} bytes, at most {bytes_max} are allowed")]
    KeyTooLong {
        /// What it has.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A key that was never given a value.
    #[error("key {} is not set", Quoted(key))]
    KeyNotSet {
        /// Which.
        key: String,
    },
    /// A value below 0.
    #[error("key {}: {value} has no factorial", Quoted(key))]
    NoFactorial {
        /// Whose.
        key: String,
        /// The value.
        value: i64,
    },
    /// A value above 20.
    #[error("key {}: the factorial of {value} does not fit in 64 bits", Quoted(key))]
    FactorialTooLarge {
        /// Whose.
        key: String,
        /// The value.
        value: i64,
    },
    /// A value with which the total of all would be no int64.
    #[error("key {}: the total {total} would not fit in 64 bits", Quoted(key))]
    TotalOverflow {
        /// Whose.
        key: String,
        /// The exact total.
        total: i128,
    },

    /// What came is no gRPC upload.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// A form of request that the protocol has and Tally has not.
    #[error("{0}")]
    Unsupported(String),
    /// The client went away or sent nothing for too long.
    #[error("the upload stopped: {0}")]
    Aborted(String),
    /// The caller no longer waits for the answer.
    #[error("cancelled")]
    Cancelled,

    /// As many uploads as there may be.
    #[error("{uploads_max} uploads are under way, which is the limit: try again")]
    TooManyUploads {
        /// The limit.
        uploads_max: usize,
    },
    /// As many parts as there may be.
    #[error("the table has {parts_max} parts, which is the limit")]
    TooManyParts {
        /// The limit.
        parts_max: usize,
    },
    /// As many keys as there may be.
    #[error("there are {keys_max} keys, which is the limit")]
    TooManyKeys {
        /// The limit.
        keys_max: usize,
    },
    /// No room on the disk.
    #[error("the disk is full: {what}")]
    DiskFull {
        /// What was being written.
        what: String,
    },
    /// The server is going down.
    #[error("the server is shutting down")]
    Draining,
    /// A stored file is not what its receipt says.
    #[error("part {part} is damaged: {what}")]
    Damaged {
        /// Which.
        part: PartId,
        /// How it shows.
        what: String,
    },
    /// A data folder that cannot be served.
    #[error("{0}")]
    DataFolder(String),
    /// Any other failure of a file operation.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's word.
        cause: io::Error,
    },
    /// A bug: work panicked.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What callers do differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller can mend its data or its question.
    Input,
    /// What was asked for would pass the range of a number that is kept.
    OutOfRange,
    /// The request is no valid message.
    Malformed,
    /// The request is of a form that is not supported.
    Unsupported,
    /// The caller went away.
    Cancelled,
    /// Something is used up: try later or make room.
    Exhausted,
    /// The server is going down.
    Unavailable,
    /// A stored file is damaged.
    DataLoss,
    /// Anything else is our fault or the machine's.
    Internal,
}

impl Error {
    /// What a surface should make of it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Csv(_)
            | Self::UnknownFormat(_)
            | Self::Cell { .. }
            | Self::NotSummable { .. }
            | Self::SumOverflow { .. }
            | Self::UploadTooLarge { .. }
            | Self::TooWideAndLong { .. }
            | Self::KeyTooLong { .. }
            | Self::KeyNotSet { .. }
            | Self::NoFactorial { .. }
            | Self::FactorialTooLarge { .. } => Kind::Input,
            Self::TotalOverflow { .. } => Kind::OutOfRange,
            Self::Malformed(_) => Kind::Malformed,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Aborted(_) | Self::Cancelled => Kind::Cancelled,
            Self::TooManyUploads { .. }
            | Self::TooManyParts { .. }
            | Self::TooManyKeys { .. }
            | Self::DiskFull { .. } => Kind::Exhausted,
            Self::Draining => Kind::Unavailable,
            Self::Damaged { .. } => Kind::DataLoss,
            Self::DataFolder(_) | Self::Io { .. } | Self::Internal(_) => Kind::Internal,
        }
    }

    /// Wraps a failed file operation; a full disk or quota becomes its own variant.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { what },
            _ => Self::Io { what, cause },
        }
    }
}

/// Why a file is refused. Rows count from 1 after the header; row 0 is the header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// Nothing but empty lines.
    #[error("the file has no header row")]
    NoHeader,
    /// A header over the limit.
    #[error("the header has more than {columns_max} columns")]
    TooManyColumns {
        /// The limit.
        columns_max: usize,
    },
    /// A header over the limit.
    #[error("the header is longer than {bytes_max} bytes")]
    HeaderTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// Two columns of one name.
    #[error("the header names two columns {}", Quoted(.name))]
    DuplicateColumn {
        /// The name.
        name: String,
    },
    /// A row with too few or too many cells.
    #[error("row {row} has {cells} cell{}, the header has {header_cells}", if *.cells == 1 { "" } else { "s" })]
    Ragged {
        /// Which row.
        row: u64,
        /// What it has.
        cells: usize,
        /// What it should have.
        header_cells: usize,
    },
    /// A row over the limit.
    #[error("row {row} is longer than {bytes_max} bytes; is a quote not closed?")]
    RowTooLong {
        /// Which row.
        row: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// A cell that is wrong in itself.
    #[error("{place}: {problem}")]
    Cell {
        /// Where it stands.
        place: Place,
        /// What is wrong with it.
        problem: CellFault,
    },
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
    /// Bytes that are no UTF-8.
    #[error("invalid UTF-8")]
    NotUtf8,
    /// A NUL byte.
    #[error("a NUL byte")]
    Nul,
    /// A cell over the limit.
    #[error("the cell is longer than {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
}

/// A cell's place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Data row from 1; 0 is the header.
    pub row: u64,
    /// From 0.
    pub column_index: usize,
    /// The column's name; none in the header itself and beyond its end.
    pub column: Option<String>,
}

impl fmt::Display for Place {
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
    /// It is something else.
    NotAnInteger,
    /// It is an integer of more than 64 bits.
    TooLarge,
}

impl fmt::Display for CellProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnInteger => "is not an integer",
            Self::TooLarge => "does not fit in 64 bits",
        })
    }
}

/// Text of a user for a message: in quotes, control characters escaped, cut after 64 characters.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 64;
        f.write_str("\"")?;
        for c in self.0.chars().take(CHARS_MAX) {
            match c {
                '\'' => f.write_str("'")?,
                c => write!(f, "{}", c.escape_debug())?,
            }
        }
        f.write_str(if self.0.chars().nth(CHARS_MAX).is_some() { "…\"" } else { "\"" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_text_is_escaped_and_cut() {
        assert_eq!(Quoted("a\nb\u{1b}[31m'\"").to_string(), r#""a\nb\u{1b}[31m'\"""#);
        assert_eq!(Quoted(&"é".repeat(65)).to_string(), format!("\"{}…\"", "é".repeat(64)));
        assert_eq!(Quoted(&"é".repeat(64)).to_string(), format!("\"{}\"", "é".repeat(64)));
    }

    #[test]
    fn positions_read_as_promised() {
        let cell = |row, column: Option<&str>| {
            let place = Place { row, column_index: 2, column: column.map(String::from) };
            CsvError::Cell { place, problem: CellFault::Nul }.to_string()
        };
        assert_eq!(cell(7, Some("qty")), "row 7, column \"qty\": a NUL byte");
        assert_eq!(cell(0, None), "header, column 3: a NUL byte");
        let ragged = CsvError::Ragged { row: 7, cells: 3, header_cells: 4 };
        assert_eq!(ragged.to_string(), "row 7 has 3 cells, the header has 4");
    }
}
