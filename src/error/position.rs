//! Where in the data an error is.

use crate::model::part::PartId;

/// A part, a row with its line, and a column, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position<'a> {
    /// The part; `None` for an error in a file that is being uploaded.
    pub part: Option<PartId>,
    /// The data row of the part or the file, from 1; 0 is the header.
    pub row: Option<u64>,
    /// The line on which the row begins, from 1, in a file that is not a part. A row may have several lines, and a line may
    /// be empty.
    pub line: Option<u64>,
    /// The column.
    pub column: Option<ColumnPosition<'a>>,
}

/// A column: its name, or its index if it has no name (in the header itself, and beyond its end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnPosition<'a> {
    /// The name.
    Name(&'a str),
    /// The index, from 0.
    Index(usize),
}
