//! The JSON of the statistics: questions, and the state of their jobs. Paths, fields and texts are those of the original
//! servers.

use std::fmt;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, Serialize, de::Visitor};
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    engine::{
        state::jobs::{Job, JobId, JobState},
        survey::question::Best,
    },
    limits::TEXT_CHARS_MAX,
};

/// A question over all rows that have it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
#[schema(examples(json!({"question": "Percent of adults aged 18 years and older who have obesity"})))]
pub(super) struct Question {
    #[schema(value_type = String, max_length = 4096)]
    pub(super) question: Text,
}

/// A question over the rows of one state.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
#[schema(examples(json!({"question": "Percent of adults aged 18 years and older who have obesity", "state": "Ohio"})))]
pub(super) struct StateQuestion {
    #[schema(value_type = String, max_length = 4096)]
    pub(super) question: Text,
    #[schema(value_type = String, max_length = 4096)]
    pub(super) state: Text,
}

/// A question whose answers are ranked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
#[schema(examples(json!({"question": "Percent of adults aged 18 years and older who have obesity", "best": "min"})))]
pub(super) struct RankedQuestion {
    #[schema(value_type = String, max_length = 4096)]
    pub(super) question: Text,
    /// Which mean is the best. Without it the known questions have their own order, and for others the largest is the best.
    pub(super) best: Option<BestMean>,
}

/// A text in a question. A longer one is an error before it is copied, because a body may be much longer than a question
/// can be.
pub(super) struct Text(pub(super) String);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
        if text.chars().count() > TEXT_CHARS_MAX {
            return Err(E::custom(format!("a text has more than {TEXT_CHARS_MAX} characters")));
        }
        Ok(Text(text.to_owned()))
    }
}

/// Which mean is the best.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum BestMean {
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

impl From<BestMean> for Best {
    fn from(best: BestMean) -> Self {
        match best {
            BestMean::Min => Self::Min,
            BestMean::Max => Self::Max,
        }
    }
}

/// A job that was accepted.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"job_id": "job_id_1"})))]
pub(super) struct Accepted {
    job_id: String,
}

impl From<JobId> for Accepted {
    fn from(id: JobId) -> Self {
        Self { job_id: id.to_string() }
    }
}

/// The state of a statistics job, as the original servers name it.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StatisticsStatus {
    /// Queued or running.
    Running,
    /// Answered.
    Done,
    /// Refused or failed.
    Error,
}

impl StatisticsStatus {
    pub(super) fn of(state: &JobState) -> Self {
        match state {
            JobState::Queued | JobState::Running { .. } => Self::Running,
            JobState::Done { .. } | JobState::Downloaded => Self::Done,
            JobState::Failed { .. } => Self::Error,
        }
    }
}

/// A statistics job.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"job_id": "job_id_1", "state": "running", "progress": {"done": 3, "total": 10}})))]
pub(super) struct StatisticsJob {
    job_id: String,
    state: StatisticsJobState,
    /// How many parts of the table are done, of all. Only while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    progress: Option<Progress>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// The state of a statistics job.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum StatisticsJobState {
    /// It waits to be run.
    Queued,
    /// It is running.
    Running,
    /// Answered.
    Done,
    /// There is no answer.
    Failed,
}

/// The progress of a running job.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(super) struct Progress {
    /// How much is done.
    done: u64,
    /// How much there is to do.
    total: u64,
}

impl Progress {
    /// None if the job does not run, or does not know yet how much there is to do.
    pub(super) fn of(state: &JobState) -> Option<Self> {
        match *state {
            JobState::Running { done, total } if total > 0 => Some(Self { done, total }),
            JobState::Queued
            | JobState::Running { .. }
            | JobState::Done { .. }
            | JobState::Failed { .. }
            | JobState::Downloaded => None,
        }
    }
}

impl From<Job> for StatisticsJob {
    fn from(Job { id, state, .. }: Job) -> Self {
        let progress = Progress::of(&state);
        let (state, reason) = match state {
            JobState::Queued => (StatisticsJobState::Queued, None),
            JobState::Running { .. } => (StatisticsJobState::Running, None),
            JobState::Done { .. } | JobState::Downloaded => (StatisticsJobState::Done, None),
            JobState::Failed { reason } => (StatisticsJobState::Failed, Some(reason.to_string())),
        };
        Self { job_id: id.to_string(), state, progress, reason }
    }
}

/// Parses `job_id_1` or `1`.
pub(super) fn parse_job_id(text: &str) -> Option<JobId> {
    let number: u64 = text.strip_prefix("job_id_").unwrap_or(text).parse().ok()?;
    let id = JobId::Survey(number);
    (id.to_string().ends_with(text)).then_some(id) // without a sign and leading zeros
}

/// The answer while a job has no result yet: the client asks again.
pub(super) fn running() -> Response {
    Json(json!({"status": StatisticsStatus::Running})).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for text in ["job_id_1", "1", "job_id_18446744073709551615"] {
            let id = parse_job_id(text).expect(text).to_string();
            assert!(id.ends_with(text), "{text}");
        }
        for text in ["", "0x1", "+1", "-1", "01", "job_id_", "job_id_01", "job_id_+1", "job_id_job_id_1", "_1", "1 "] {
            assert_eq!(parse_job_id(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_running_job_shows_its_progress() {
        let running = JobState::Running { done: 3, total: 10 };
        let json_of =
            |id, state| serde_json::to_value(StatisticsJob::from(Job { id, state, has_result: false })).expect("JSON");
        let job = JobId::Survey(1);
        let progress = json!({"done": 3, "total": 10});
        let expected = json!({"job_id": "job_id_1", "state": "running", "progress": progress});
        assert_eq!(json_of(job, running), expected);
        let begun = JobState::Running { done: 0, total: 0 };
        assert_eq!(json_of(job, begun), json!({"job_id": "job_id_1", "state": "running"}));
        assert_eq!(json_of(job, JobState::Queued), json!({"job_id": "job_id_1", "state": "queued"}));
        assert_eq!(json_of(job, JobState::Done { bytes: 1 }), json!({"job_id": "job_id_1", "state": "done"}));
        let failed = JobState::Failed { reason: "why".into() };
        assert_eq!(json_of(job, failed), json!({"job_id": "job_id_1", "state": "failed", "reason": "why"}));
    }
}
