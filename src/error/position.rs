//! Where in the data an error is.

use crate::model::part::PartId;

/// A part, a row and a column, as far as the error has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position<'a> {
    /// The part. An error in a file that is being uploaded has none.
    pub part: Option<PartId>,
    /// The data row of the part or the file, from 1; 0 is the header.
    pub row: Option<u64>,
    /// The column.
    pub column: Option<ColumnPosition<'a>>,
}

/// A column by its name, or by its index where it has no name: in the header itself, and beyond its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnPosition<'a> {
    /// Its name.
    Name(&'a str),
    /// From 0.
    Index(usize),
}
