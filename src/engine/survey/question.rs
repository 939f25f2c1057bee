//! The questions that the statistics servers answer.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, statistics::StatisticsError},
    limits::SURVEY_NAME_BYTES_MAX,
};

/// The columns of the survey, in the order of the fields of [`Columns`](super::accumulator::Columns).
pub(super) const COLUMN_NAMES: [&str; 5] =
    ["Question", "Data_Value", "LocationDesc", "StratificationCategory1", "Stratification1"];
/// States in the answer to `best5` and `worst5`.
pub(super) const RANKED_MAX: usize = 5;
/// For questions that begin with one of these, the smallest mean is the best; for all others, the largest.
pub(super) const SMALLEST_IS_BEST: [&str; 5] = [
    "Percent of adults aged 18 years and older who have an overweight classification",
    "Percent of adults aged 18 years and older who have obesity",
    "Percent of adults who engage in no leisure-time physical activity",
    "Percent of adults who report consuming fruit less than one time daily",
    "Percent of adults who report consuming vegetables less than one time daily",
];

/// A statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// `{"Ohio": 34.1, ...}`, ordered by mean, smallest first, then by name.
    StatesMean,
    /// `{"Ohio": 34.1}`
    StateMean,
    /// The five best states, the best first; equal means are ordered by name.
    Best5,
    /// The five worst states, the worst first; equal means are ordered by name.
    Worst5,
    /// `{"global_mean": 34.5}`: the mean of all rows, not of the states' means.
    GlobalMean,
    /// `{"Ohio": 0.4, ...}`: the global mean minus the state's, the largest first; equal means by name.
    DiffFromMean,
    /// `{"Ohio": 0.4}`: the global mean minus the state's.
    StateDiffFromMean,
    /// `{"('Ohio', 'Income', '$15,000 - $24,999')": 30.4, ...}`, ordered by key, by code points as in Python.
    MeanByCategory,
    /// `{"Ohio": {"('Income', '$15,000 - $24,999')": 30.4, ...}}`, ordered by key.
    StateMeanByCategory,
}

/// Whether the smallest or the largest mean is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Best {
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

impl Best {
    /// Which mean is the best for a question, by its text.
    pub fn of(question: &str) -> Self {
        let smallest = SMALLEST_IS_BEST.iter().any(|beginning| question.starts_with(beginning));
        if smallest { Self::Min } else { Self::Max }
    }
}

/// A valid question: it has a state if and only if it is about one state.
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
    const ALL: [Self; 9] = [
        Self::StatesMean,
        Self::StateMean,
        Self::Best5,
        Self::Worst5,
        Self::GlobalMean,
        Self::DiffFromMean,
        Self::StateDiffFromMean,
        Self::MeanByCategory,
        Self::StateMeanByCategory,
    ];

    /// Whether the statistic is about one state.
    pub fn is_of_state(self) -> bool {
        matches!(self, Self::StateMean | Self::StateDiffFromMean | Self::StateMeanByCategory)
    }

    pub(super) fn is_by_category(self) -> bool {
        matches!(self, Self::MeanByCategory | Self::StateMeanByCategory)
    }

    /// The statistic needs this many of the first [`COLUMN_NAMES`].
    pub(super) fn columns_count(self) -> usize {
        match self {
            Self::GlobalMean => 2,
            Self::MeanByCategory | Self::StateMeanByCategory => 5,
            _ => 3,
        }
    }
}

impl SurveyQuestion {
    /// Checks a question. `best` matters only to `Best5` and `Worst5`; if it is `None`, it follows from the question's text.
    /// `state` is ignored if the question is about all states.
    ///
    /// Errors: the state is missing; a text is longer than 16 KiB.
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

    /// The texts by which another machine knows what to read: which statistic it is, the question, and the state if there is one.
    pub(super) fn to_texts(&self) -> Vec<String> {
        let index = Ask::ALL.iter().position(|ask| *ask == self.ask).unwrap_or(Ask::ALL.len());
        [index.to_string(), self.question.clone()].into_iter().chain(self.state.clone()).collect()
    }

    /// The question of these texts. `None` if [`Self::to_texts`] did not make them.
    pub(super) fn of_texts(texts: &[String]) -> Option<Self> {
        let (ask, question, state) = match texts {
            [ask, question] => (ask, question, None),
            [ask, question, state] => (ask, question, Some(state.clone())),
            _ => return None,
        };
        let ask = *Ask::ALL.get(ask.parse::<usize>().ok()?)?;
        Self::new(ask, question.clone(), state, None).ok()
    }

    /// The statistic that is asked for.
    pub fn ask(&self) -> Ask {
        self.ask
    }

    /// Which mean is the best.
    pub fn best(&self) -> Best {
        self.best.unwrap_or_else(|| Best::of(&self.question))
    }
}
