//! Errors of statistics questions.

use super::{kind::Kind, quoted::Quoted};

/// Why a statistics question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatisticsError {
    /// A question about one state does not name it.
    #[error("the state is missing")]
    StateMissing,
    /// A text is too long.
    #[error("the {what} is longer than {bytes_max} bytes")]
    TextTooLong {
        /// The name of the text.
        what: &'static str,
        /// The limit.
        bytes_max: usize,
    },
    /// No row with a value has this question.
    #[error("no row with a value for question {}", Quoted(question))]
    NoSuchQuestion {
        /// The question.
        question: String,
    },
    /// No row with a value has this question and this state.
    #[error("no row with a value for question {} in state {}", Quoted(question), Quoted(state))]
    NoSuchState {
        /// The question.
        question: String,
        /// The state.
        state: String,
    },
    /// The states and categories do not fit in the memory for a question.
    #[error("the states and categories of question {} take more than {bytes_max} bytes", Quoted(question))]
    TooManyGroups {
        /// The question.
        question: String,
        /// The limit.
        bytes_max: usize,
    },
    /// The difference of two means is too large for a double.
    #[error("the global mean minus that of state {} does not fit in a double", Quoted(state))]
    DifferenceOverflow {
        /// The first such state by name.
        state: String,
    },
}

impl StatisticsError {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::StateMissing
            | Self::TextTooLong { .. }
            | Self::NoSuchQuestion { .. }
            | Self::NoSuchState { .. }
            | Self::TooManyGroups { .. }
            | Self::DifferenceOverflow { .. } => Kind::Input,
        }
    }
}
