//! The questions that the statistics servers answer.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, statistics::StatisticsError},
    limits::SURVEY_NAME_BYTES_MAX,
};

/// The columns of the survey, as [`Columns`] has them.
pub(super) const COLUMN_NAMES: [&str; 5] =
    ["Question", "Data_Value", "LocationDesc", "StratificationCategory1", "Stratification1"];
/// How many states `best5` and `worst5` name.
pub(super) const RANKED_MAX: usize = 5;
/// Questions with these beginnings ask for what is bad: the best is the smallest mean. For all others it is the largest.
pub(super) const SMALLEST_IS_BEST: [&str; 5] = [
    "Percent of adults aged 18 years and older who have an overweight classification",
    "Percent of adults aged 18 years and older who have obesity",
    "Percent of adults who engage in no leisure-time physical activity",
    "Percent of adults who report consuming fruit less than one time daily",
    "Percent of adults who report consuming vegetables less than one time daily",
];

/// Which statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// `{"Ohio": 34.1, ...}`, from the smallest mean to the largest, by name where means are equal.
    StatesMean,
    /// `{"Ohio": 34.1}`
    StateMean,
    /// Five states at most, the best first, by name where means are equal.
    Best5,
    /// Five states at most, the worst first, by name where means are equal.
    Worst5,
    /// `{"global_mean": 34.5}`: of all rows, not of the states' means.
    GlobalMean,
    /// `{"Ohio": 0.4, ...}`, the global mean minus the state's, by name.
    DiffFromMean,
    /// `{"Ohio": 0.4}`, the global mean minus the state's.
    StateDiffFromMean,
    /// `{"('Ohio', 'Income', '$15,000 - $24,999')": 30.4, ...}`, by key as Python sorts text: by code points.
    MeanByCategory,
    /// `{"Ohio": {"('Income', '$15,000 - $24,999')": 30.4, ...}}`, by key.
    StateMeanByCategory,
}

/// Which mean is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Best {
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

/// A question that can be answered or recorded: it has a state if and only if it is about one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct SurveyQuestion {
    pub(super) ask: Ask,
    pub(super) question: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<Best>,
}

#[derive(Deserialize)]
struct Unchecked {
    ask: Ask,
    question: String,
    state: Option<String>,
    best: Option<Best>,
}

impl TryFrom<Unchecked> for SurveyQuestion {
    type Error = Error;

    fn try_from(Unchecked { ask, question, state, best }: Unchecked) -> Result<Self, Error> {
        Self::new(ask, question, state, best)
    }
}

impl Ask {
    /// Whether it is about one state.
    pub fn is_of_state(self) -> bool {
        matches!(self, Self::StateMean | Self::StateDiffFromMean | Self::StateMeanByCategory)
    }

    pub(super) fn is_by_category(self) -> bool {
        matches!(self, Self::MeanByCategory | Self::StateMeanByCategory)
    }

    /// How many of [`COLUMN_NAMES`] it needs.
    pub(super) fn columns_count(self) -> usize {
        match self {
            Self::GlobalMean => 2,
            Self::MeanByCategory | Self::StateMeanByCategory => 5,
            _ => 3,
        }
    }
}

impl SurveyQuestion {
    /// A question. `best` says which mean is the best; without it the question's text does. It matters to `Best5` and
    /// `Worst5` alone. A state is dropped if the question is about all.
    ///
    /// Errors: a state is missing; a text is longer than 16 KiB.
    pub fn new(ask: Ask, question: String, state: Option<String>, best: Option<Best>) -> Result<Self, Error> {
        let too_long = |what| StatisticsError::TextTooLong { what, bytes_max: SURVEY_NAME_BYTES_MAX };
        let state = state.filter(|_| ask.is_of_state());
        let wrong = match &state {
            None if ask.is_of_state() => Some(StatisticsError::StateMissing),
            Some(state) if state.len() > SURVEY_NAME_BYTES_MAX => Some(too_long("state")),
            _ if question.len() > SURVEY_NAME_BYTES_MAX => Some(too_long("question")),
            _ => None,
        };
        match wrong {
            Some(wrong) => Err(wrong.into()),
            None => Ok(Self { ask, question, state, best }),
        }
    }

    /// Which statistic.
    pub fn ask(&self) -> Ask {
        self.ask
    }

    /// Which mean is the best for it.
    pub fn best(&self) -> Best {
        let smallest = || SMALLEST_IS_BEST.iter().any(|beginning| self.question.starts_with(beginning));
        self.best.unwrap_or_else(|| if smallest() { Best::Min } else { Best::Max })
    }
}
