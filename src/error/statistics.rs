//! What can be wrong with a statistics question, and with its answer.

use super::{kind::Kind, quoted::Quoted};

/// Why a statistics question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatisticsError {
    /// A question about one state that names none.
    #[error("the state is missing")]
    StateMissing,
    /// A text over the limit.
    #[error("the {what} is longer than {bytes_max} bytes")]
    TextTooLong {
        /// Which text.
        what: &'static str,
        /// The limit.
        bytes_max: usize,
    },
    /// A survey's question that no row with a value has.
    #[error("no row with a value for question {}", Quoted(question))]
    NoSuchQuestion {
        /// As it was asked.
        question: String,
    },
    /// A state in which no row with a value has the survey's question.
    #[error("no row with a value for question {} in state {}", Quoted(question), Quoted(state))]
    NoSuchState {
        /// As it was asked.
        question: String,
        /// As it was asked.
        state: String,
    },
    /// More states and categories than fit in the memory that there is for them.
    #[error("the states and categories of question {} take more than {bytes_max} bytes", Quoted(question))]
    TooManyGroups {
        /// The question.
        question: String,
        /// The limit.
        bytes_max: usize,
    },
    /// A difference of two means that no double holds.
    #[error("the global mean minus that of state {} does not fit in a double", Quoted(state))]
    DifferenceOverflow {
        /// The first state, by name, for which it is so.
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
