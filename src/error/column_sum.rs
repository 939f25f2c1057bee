//! Errors of column sums, except errors of cells.

use super::{
    kind::Kind,
    position::{ColumnPosition, Position},
    quoted::Quoted,
};
use crate::model::{part::PartId, schema::ColumnType};

/// Why a column has no sum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnSumError {
    /// The column has neither numbers nor text.
    #[error("part {part}, column {}: its type is {column_type}, not an integer", Quoted(column))]
    NotSummable {
        /// The first part in which the column has another type.
        part: PartId,
        /// The column asked for.
        column: String,
        /// The column's type in that part.
        column_type: ColumnType,
    },
    /// The exact sum does not fit in an int64.
    #[error("column {}: the sum {total} does not fit in 64 bits", Quoted(column))]
    Overflow {
        /// The column asked for.
        column: String,
        /// The exact sum.
        total: i128,
    },
}

impl ColumnSumError {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::NotSummable { .. } | Self::Overflow { .. } => Kind::Input,
        }
    }

    pub(super) fn position(&self) -> Position<'_> {
        match self {
            Self::NotSummable { part, column, .. } => {
                Position { part: Some(*part), column: Some(ColumnPosition::Name(column)), ..Position::default() }
            }
            Self::Overflow { column, .. } => {
                Position { column: Some(ColumnPosition::Name(column)), ..Position::default() }
            }
        }
    }
}
