//! The JSON of the file-processing tasks. Paths, fields and texts are those of the original server.

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{errors::TaskError, paths::TASKS_PATH, statistics_json::Progress};
use crate::{
    engine::{
        group_by::spec::GroupBy,
        state::jobs::{Job, JobId, JobState},
    },
    error::{Error, group_by::GroupByError},
};

/// The columns that the original server groups by and sums, and the name of the sums in its result.
const DEFAULT_BY: [&str; 2] = ["Song", "Date"];
const DEFAULT_SUM: &str = "Number of Plays";
const DEFAULT_TOTAL: &str = "Total Number of Plays for Date";

/// Parses the id of a task.
pub(super) fn parse_task_id(text: &str) -> Option<JobId> {
    Uuid::try_parse(text).ok().map(JobId::Task)
}

/// Which columns to group by and which to sum.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Grouping {
    /// Columns to group by, as one CSV record of their names; `Song,Date` if it is not given.
    #[param(required = false, example = "Song,Date")]
    group_by: Option<String>,
    /// Columns to sum, as one CSV record of their names; `Number of Plays` if it is not given.
    #[param(required = false, example = "Number of Plays")]
    sum: Option<String>,
}

impl Grouping {
    /// The names of the fields, which are also those of form fields.
    const FIELDS: [&str; 2] = ["group_by", "sum"];

    /// The name of a form field if it is one of these fields.
    pub(super) fn field_name(name: Option<&str>) -> Option<&'static str> {
        Self::FIELDS.into_iter().find(|field| Some(*field) == name)
    }

    /// Sets a field to the text of a form field. Errors: it is set already.
    pub(super) fn set(&mut self, name: &'static str, text: String) -> Result<(), TaskError> {
        let field = if name == Self::FIELDS[0] { &mut self.group_by } else { &mut self.sum };
        match field.replace(text) {
            None => Ok(()),
            Some(_before) => Err(TaskError::new(StatusCode::BAD_REQUEST, name, "It is given twice")),
        }
    }

    /// Adds the fields of a form to those of the query. Errors: both have the same field.
    pub(super) fn with(mut self, form: Self) -> Result<Self, TaskError> {
        for (name, text) in Self::FIELDS.into_iter().zip([form.group_by, form.sum]) {
            if let Some(text) = text {
                self.set(name, text)?;
            }
        }
        Ok(self)
    }
}

/// The columns that a request asks for, and the header of its result.
pub(super) fn to_group(grouping: Grouping) -> Result<(GroupBy, Vec<String>), TaskError> {
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
    let refused = |error: GroupByError| TaskError::from(Error::from(error)).of_field("group_by");
    Ok((GroupBy::new(by, sum).map_err(refused)?, header))
}

fn to_names(field: &'static str, record: &str) -> Result<Vec<String>, TaskError> {
    let refused = |message: String| TaskError::new(StatusCode::BAD_REQUEST, field, message);
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
    /// The path to ask next; absent when the task has ended without a result, or its result was downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, examples("/api/v1/file-processing/tasks/67e55044-10b1-426f-9247-bb680e5fe0c8/status"))]
    next: Option<String>,
}

/// A task: a file whose group sums are computed.
#[derive(Serialize, ToSchema)]
struct Task {
    id: Uuid,
    status: TaskStatus,
    /// How many bytes of its file are read, of all. Only while it is in progress.
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
    /// Errors with row and column.
    #[schema(examples(json!(["row 7 (line 8), column \"Number of Plays\": \"x\" is not an integer"])))]
    file: Vec<String>,
}

/// The state of a task.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum TaskStatus {
    /// Its file was received.
    Queued,
    /// It is running.
    InProgress,
    /// Its result can be downloaded.
    Completed,
    /// Its file cannot be summed.
    Failed,
    /// Its whole result was sent.
    Downloaded,
}

/// The task that a job is, or None for a job of another kind.
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

/// The task of a file that has just been received.
pub(super) fn to_new_task(id: JobId) -> Option<TaskReply> {
    to_task(Job { id, state: JobState::Queued, has_result: false })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_running_task_shows_its_progress() {
        let id = Uuid::nil();
        let task_of = |state| to_task(Job { id: JobId::Task(id), state, has_result: false }).map(|task| task.task);
        let json_of = |state| serde_json::to_value(task_of(state)).expect("JSON");
        let progress = json!({"done": 3, "total": 10});
        let running = JobState::Running { done: 3, total: 10 };
        assert_eq!(json_of(running), json!({"id": id, "status": "IN_PROGRESS", "progress": progress}));
        assert_eq!(json_of(JobState::Queued), json!({"id": id, "status": "QUEUED"}));
    }

    #[test]
    fn groupings_and_their_headers() {
        let grouping = |by: Option<&str>, sum: Option<&str>| {
            let grouping = Grouping { group_by: by.map(String::from), sum: sum.map(String::from) };
            to_group(grouping).map(|(_, header)| header.join("|")).map_err(|error| error.field)
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
