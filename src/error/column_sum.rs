//! What can be wrong with the sum of a column, beside its cells.

use super::{
    kind::Kind,
    position::{ColumnPosition, Position},
    quoted::Quoted,
};
use crate::model::{part::PartId, schema::ColumnType};

/// Why a column has no sum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnSumError {
    /// A column that is neither of integers nor of text.
    #[error("part {part}, column {}: its type is {column_type}, not an integer", Quoted(column))]
    NotSummable {
        /// The first part in which it is not.
        part: PartId,
        /// The column asked for.
        column: String,
        /// Its type there.
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
                Position { part: Some(*part), row: None, column: Some(ColumnPosition::Name(column)) }
            }
            Self::Overflow { column, .. } => {
                Position { column: Some(ColumnPosition::Name(column)), ..Position::default() }
            }
        }
    }
}
