//! Errors of files that are not plain CSV, while they are decompressed, decoded and rewritten.

use super::{kind::Kind, position::Position};
use crate::model::dialect::InvalidDialect;

/// Why a file cannot be read in the dialect that was given for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialectError {
    /// The dialect has a value that it cannot have.
    #[error(transparent)]
    Invalid(#[from] InvalidDialect),
    /// The text does not have the encoding.
    #[error("byte {offset} of the file{} is not valid {encoding}", if *.decompressed { ", decompressed," } else { "" })]
    Undecodable {
        /// The encoding's name.
        encoding: &'static str,
        /// The offset of the first byte that cannot be decoded, from 0.
        offset: u64,
        /// Whether offsets count in the decompressed file.
        decompressed: bool,
    },
    /// The file is not compressed in that way, or is damaged.
    #[error("the file is not valid {format}: {problem}")]
    Decompress {
        /// The name of the format.
        format: &'static str,
        /// What the decoder says.
        problem: String,
    },
    /// White space that may have to be removed, and is too long to be kept in memory.
    #[error("row {row}, column {column}: a cell with {bytes} or more bytes of white space: upload without trim")]
    LongWhiteSpace {
        /// Data row from 1; 0 is the header.
        row: u64,
        /// The number of the column, from 1.
        column: u64,
        /// How many bytes are too many.
        bytes: usize,
    },
}

impl DialectError {
    /// An error of a decoder.
    pub fn decompress(format: &'static str, problem: impl Into<String>) -> Self {
        Self::Decompress { format, problem: problem.into() }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) | Self::Undecodable { .. } | Self::Decompress { .. } | Self::LongWhiteSpace { .. } => {
                Kind::Input
            }
        }
    }

    pub(super) fn position(&self) -> Position<'_> {
        match self {
            Self::LongWhiteSpace { row, .. } => Position { row: Some(*row), ..Position::default() },
            Self::Invalid(_) | Self::Undecodable { .. } | Self::Decompress { .. } => Position::default(),
        }
    }
}
