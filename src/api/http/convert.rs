//! The only place where engine words become HTTP and JSON words, and back.

use std::fmt;

use axum::{
    Json,
    extract::Query,
    http::{Extensions, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, Serialize, de::Visitor};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    engine::{
        group_by::spec::GroupBy,
        state::jobs::{Job, JobId, JobState},
        survey::question::Best,
    },
    error::{Error, GroupByError, Kind, logged::Logged},
    limits::TEXT_CHARS_MAX,
};

/// What the original groups by and sums, and its header.
const DEFAULT_BY: [&str; 2] = ["Song", "Date"];
const DEFAULT_SUM: &str = "Number of Plays";
const DEFAULT_TOTAL: &str = "Total Number of Plays for Date";
/// What the original servers say to a question that comes too late.
const SHUTTING_DOWN: &str = "shutting down";
/// When a client that found a queue full may ask again.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// A failure as an HTTP status.
pub(super) fn status_of(error: &Error) -> StatusCode {
    // There is room, but not for a client that takes so long.
    if matches!(error, Error::TooSlow { .. }) {
        return StatusCode::REQUEST_TIMEOUT;
    }
    match error.kind() {
        Kind::Input | Kind::Malformed | Kind::OutOfRange => StatusCode::BAD_REQUEST,
        Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Kind::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Kind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::OtherServer => StatusCode::CONFLICT,
        Kind::DataLoss | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A refusal in the words of the path's own clients: the statistics servers have one form, the rest has another.
pub(super) fn refuse(path: &str, status: StatusCode, reason: impl Into<String>) -> Response {
    if is_of_surveys(path) {
        return SurveyRefusal::new(status, reason).into_response();
    }
    Refusal::new(status, "request", reason).into_response()
}

/// Whether a path is one of the statistics servers'.
pub(super) fn is_of_surveys(path: &str) -> bool {
    path.starts_with("/api/") && !path.starts_with("/api/v1/")
}

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
    /// Which mean is the best. Without it, what is known of the question decides, and of others the largest.
    pub(super) best: Option<BestMean>,
}

/// A text in a question: what is kept of a body that may be much longer, and never a copy of more.
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

/// Why a question was refused, or has no answer.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"status": "error", "reason": "Invalid job_id"})))]
pub(super) struct SurveyRefusal {
    #[serde(skip)]
    code: StatusCode,
    #[serde(skip)]
    fault: Option<Fault>,
    status: SurveyStatus,
    reason: String,
}

impl SurveyRefusal {
    pub(super) fn new(code: StatusCode, reason: impl Into<String>) -> Self {
        Self { code, fault: None, status: SurveyStatus::Error, reason: reason.into() }
    }
}

impl From<Error> for SurveyRefusal {
    /// The original clients know 405 as the word for "shutting down".
    fn from(error: Error) -> Self {
        match status_of(&error) {
            StatusCode::SERVICE_UNAVAILABLE => Self::new(StatusCode::METHOD_NOT_ALLOWED, SHUTTING_DOWN),
            code => Self { fault: Fault::of(code, &error), ..Self::new(code, error.to_string()) },
        }
    }
}

impl IntoResponse for SurveyRefusal {
    fn into_response(self) -> Response {
        let (code, is_shutting_down, fault) = (self.code, self.reason == SHUTTING_DOWN, self.fault.clone());
        let mut response = (code, Json(self)).into_response();
        response.extensions_mut().extend(Fault::extension(fault));
        if code == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
        }
        if is_shutting_down {
            // RFC 9110, section 15.5.6: a 405 says what is allowed, which may be nothing.
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(""));
        }
        response
    }
}

/// Where a survey job stands.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum SurveyStatus {
    /// Queued or being worked on.
    Running,
    /// Answered.
    Done,
    /// Refused or failed.
    Error,
}

impl SurveyStatus {
    pub(super) fn of(state: &JobState) -> Self {
        match state {
            JobState::Queued | JobState::Running { .. } => Self::Running,
            JobState::Done { .. } | JobState::Downloaded => Self::Done,
            JobState::Failed { .. } => Self::Error,
        }
    }
}

/// One statistic.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"job_id": "job_id_1", "state": "running", "progress": {"done": 3, "total": 10}})))]
pub(super) struct OneJob {
    job_id: String,
    state: OneState,
    /// Parts of the table: so many of all are done. While it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    progress: Option<Progress>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// The state of a statistic.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum OneState {
    /// It waits for its turn.
    Queued,
    /// It is being worked on.
    Running,
    /// Answered.
    Done,
    /// There is no answer.
    Failed,
}

/// How far a job is that runs.
#[derive(Clone, Copy, Serialize, ToSchema)]
struct Progress {
    /// So much is done ...
    done: u64,
    /// ... of so much.
    total: u64,
}

impl Progress {
    /// None: it does not run, or does not know yet how much there is.
    fn of(state: &JobState) -> Option<Self> {
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

impl From<Job> for OneJob {
    fn from(Job { id, state, .. }: Job) -> Self {
        let progress = Progress::of(&state);
        let (state, reason) = match state {
            JobState::Queued => (OneState::Queued, None),
            JobState::Running { .. } => (OneState::Running, None),
            JobState::Done { .. } | JobState::Downloaded => (OneState::Done, None),
            JobState::Failed { reason } => (OneState::Failed, Some(reason.to_string())),
        };
        Self { job_id: id.to_string(), state, progress, reason }
    }
}

/// `job_id_1` or `1`.
pub(super) fn survey_id(text: &str) -> Option<JobId> {
    let number: u64 = text.strip_prefix("job_id_").unwrap_or(text).parse().ok()?;
    let id = JobId::Survey(number);
    (id.to_string().ends_with(text)).then_some(id) // no sign, no zeros before it
}

/// The id of a task.
pub(super) fn task_id(text: &str) -> Option<JobId> {
    Uuid::try_parse(text).ok().map(JobId::Task)
}

/// Which columns to group by and which to sum.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Grouping {
    /// Columns to group by, as one CSV record of their names; `Song,Date` if it is not given.
    #[param(required = false, example = "Song,Date")]
    group_by: Option<String>,
    /// Columns to sum, as one CSV record of their names; `Number of Plays` if it is not given.
    #[param(required = false, example = "Number of Plays")]
    sum: Option<String>,
}

/// What was asked for and the header of its answer.
pub(super) fn to_group(Query(grouping): Query<Grouping>) -> Result<(GroupBy, Vec<String>), Refusal> {
    let by = match grouping.group_by {
        Some(names) => to_names("group_by", &names)?,
        None => DEFAULT_BY.map(String::from).to_vec(),
    };
    let sum = match grouping.sum {
        Some(names) => to_names("sum", &names)?,
        None => vec![DEFAULT_SUM.to_owned()],
    };
    let is_default = by == DEFAULT_BY && sum == [DEFAULT_SUM];
    let totals = if is_default { vec![DEFAULT_TOTAL.to_owned()] } else { sum.clone() };
    let header = by.iter().cloned().chain(totals).collect();
    let refused = |error: GroupByError| Refusal { field: "group_by", ..Refusal::from(Error::from(error)) };
    Ok((GroupBy::new(by, sum).map_err(refused)?, header))
}

fn to_names(field: &'static str, record: &str) -> Result<Vec<String>, Refusal> {
    let refused = |message: String| Refusal::new(StatusCode::BAD_REQUEST, field, message);
    let mut records = csv::ReaderBuilder::new().has_headers(false).from_reader(record.as_bytes()).into_records();
    let names = records.next().transpose().map_err(|error| refused(error.to_string()))?.unwrap_or_default();
    if names.is_empty() || records.next().is_some() {
        return Err(refused("It holds names of columns, separated by commas".to_owned()));
    }
    Ok(names.iter().map(String::from).collect())
}

/// A task and where to go next.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskReply {
    task: Task,
    /// The path to ask next; none when nothing more is to come.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("/api/v1/file-processing/tasks/67e55044-10b1-426f-9247-bb680e5fe0c8/status"))]
    next: Option<String>,
}

/// A file on its way to its sums.
#[derive(Serialize, ToSchema)]
struct Task {
    id: Uuid,
    status: TaskStatus,
    /// Bytes of its file: so many of all are read. While it is in progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    progress: Option<Progress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    errors: Option<TaskErrors>,
}

/// What is wrong with a task's input.
#[derive(Serialize, ToSchema)]
struct TaskErrors {
    /// With row and column.
    #[schema(examples(json!(["row 7, column \"Number of Plays\": \"x\" is not an integer"])))]
    file: Vec<String>,
}

/// Where a task stands.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum TaskStatus {
    /// Its file is here.
    Queued,
    /// It is being worked on.
    InProgress,
    /// Its result can be downloaded.
    Completed,
    /// Its file cannot be summed.
    Failed,
    /// Its result was sent whole.
    Downloaded,
}

/// The task of a job; none for a job of another kind.
pub(super) fn to_task(Job { id, state, .. }: Job) -> Option<TaskReply> {
    let JobId::Task(id) = id else { return None };
    let next = |step| Some(format!("{TASKS_PATH}{id}/{step}"));
    let progress = Progress::of(&state);
    let (status, next, reason) = match state {
        JobState::Queued => (TaskStatus::Queued, next("status"), None),
        JobState::Running { .. } => (TaskStatus::InProgress, next("status"), None),
        JobState::Done { .. } => (TaskStatus::Completed, next("download"), None),
        JobState::Failed { reason } => (TaskStatus::Failed, None, Some(reason)),
        JobState::Downloaded => (TaskStatus::Downloaded, None, None),
    };
    let errors = reason.map(|reason| TaskErrors { file: vec![reason.to_string()] });
    Some(TaskReply { task: Task { id, status, progress, errors }, next })
}

/// The task of a file that has just come.
pub(super) fn to_new_task(id: JobId) -> Option<TaskReply> {
    to_task(Job { id, state: JobState::Queued, has_result: false })
}

/// Where tasks live.
pub(super) const TASKS_PATH: &str = "/api/v1/file-processing/tasks/";

/// Why a request about tasks was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// What of the request is wrong.
    pub(super) field: &'static str,
    pub(super) message: String,
    fault: Option<Fault>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, field: &'static str, message: impl Into<String>) -> Self {
        Self { status, field, message: message.into(), fault: None }
    }

    pub(super) fn bad_file(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "file", message)
    }

    pub(super) fn unknown_task() -> Self {
        Self::new(StatusCode::NOT_FOUND, "task_id", "There is no such task, or its result is gone")
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = status_of(&error);
        Self { fault: Fault::of(status, &error), ..Self::new(status, "file", error.to_string()) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, field, message, fault } = self;
        let general = match status {
            StatusCode::BAD_REQUEST => "The request is invalid or missing required data.",
            StatusCode::NOT_FOUND => "The requested resource was not found.",
            _ => "The request could not be answered.",
        };
        let failure = Failure {
            code: status.canonical_reason().unwrap_or_default(),
            message: general,
            details: [Detail { field, message }],
        };
        let mut response = (status, Json(failure)).into_response();
        response.extensions_mut().extend(Fault::extension(fault));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
        }
        response
    }
}

/// What is wrong with a request.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "code": "Bad Request",
    "message": "The request is invalid or missing required data.",
    "details": [{"field": "file", "message": "No file part in the request"}]
})))]
pub(super) struct Failure {
    /// The status in words.
    #[schema(value_type = String)]
    code: &'static str,
    #[schema(value_type = String)]
    message: &'static str,
    #[schema(value_type = Vec<Detail>)]
    details: [Detail; 1],
}

/// One thing that is wrong with it.
#[derive(Serialize, ToSchema)]
pub(super) struct Detail {
    #[schema(value_type = String)]
    field: &'static str,
    message: String,
}

/// What went wrong in the server itself, in the words of the log. It is in the extensions of the answer, for the log of
/// calls, which knows the client's address.
#[derive(Clone, Debug)]
pub(super) struct Fault(pub(super) String);

impl Fault {
    fn of(status: StatusCode, error: &Error) -> Option<Self> {
        status.is_server_error().then(|| Self(Logged(error).to_string()))
    }

    fn extension(fault: Option<Self>) -> Extensions {
        let mut extensions = Extensions::new();
        if let Some(fault) = fault {
            extensions.insert(fault);
        }
        extensions
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for text in ["job_id_1", "1", "job_id_18446744073709551615"] {
            let id = survey_id(text).expect(text).to_string();
            assert!(id.ends_with(text), "{text}");
        }
        for text in ["", "0x1", "+1", "-1", "01", "job_id_", "job_id_01", "job_id_+1", "job_id_job_id_1", "_1", "1 "] {
            assert_eq!(survey_id(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_job_that_runs_tells_its_progress() {
        let running = JobState::Running { done: 3, total: 10 };
        let told = |id, state| serde_json::to_value(OneJob::from(Job { id, state, has_result: false })).expect("JSON");
        let job = JobId::Survey(1);
        let progress = json!({"done": 3, "total": 10});
        let expected = json!({"job_id": "job_id_1", "state": "running", "progress": progress});
        assert_eq!(told(job, running.clone()), expected);
        let begun = JobState::Running { done: 0, total: 0 };
        assert_eq!(told(job, begun), json!({"job_id": "job_id_1", "state": "running"}));
        assert_eq!(told(job, JobState::Queued), json!({"job_id": "job_id_1", "state": "queued"}));
        assert_eq!(told(job, JobState::Done { bytes: 1 }), json!({"job_id": "job_id_1", "state": "done"}));
        let failed = JobState::Failed { reason: "why".into() };
        assert_eq!(told(job, failed), json!({"job_id": "job_id_1", "state": "failed", "reason": "why"}));

        let id = Uuid::nil();
        let told = |state| to_task(Job { id: JobId::Task(id), state, has_result: false }).map(|task| task.task);
        let told = |state| serde_json::to_value(told(state)).expect("JSON");
        assert_eq!(told(running), json!({"id": id, "status": "IN_PROGRESS", "progress": progress}));
        assert_eq!(told(JobState::Queued), json!({"id": id, "status": "QUEUED"}));
    }

    #[test]
    fn groupings_and_their_headers() {
        let grouping = |by: Option<&str>, sum: Option<&str>| {
            let grouping = Grouping { group_by: by.map(String::from), sum: sum.map(String::from) };
            to_group(Query(grouping)).map(|(_, header)| header.join("|")).map_err(|refusal| refusal.field)
        };
        let default = Ok("Song|Date|Total Number of Plays for Date".to_owned());
        assert_eq!(grouping(None, None), default);
        assert_eq!(grouping(Some("Song,Date"), Some("Number of Plays")), default);
        assert_eq!(grouping(Some("Date"), None), Ok("Date|Number of Plays".to_owned()));
        assert_eq!(grouping(Some("\"a,b\",\"c\"\"d\""), Some("x,y")), Ok("a,b|c\"d|x|y".to_owned()));
        assert_eq!(grouping(Some(""), None), Err("group_by"));
        assert_eq!(grouping(None, Some("a\nb")), Err("sum"));
    }
}
