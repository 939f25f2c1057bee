//! The list of all jobs, statistics and file-processing tasks.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use chrono::SecondsFormat;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    paths::{RESULTS_PATH, TASKS_PATH},
    problem::{Problem, ProblemDetails},
    surface::Surface,
    table::checked_limit,
};
use crate::{
    engine::state::jobs::{Job, JobId, JobState, ListedJob},
    limits::JOBS_LISTED_MAX,
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(jobs))
}

/// How many jobs are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct JobsQuery {
    /// Jobs, at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<usize>,
}

/// The newest jobs.
#[derive(Serialize, ToSchema)]
struct JobsReply {
    jobs: Vec<JobEntry>,
    /// How many jobs have not ended.
    undone: usize,
}

/// A job.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "id": "job_id_1", "kind": "statistic", "state": "running", "done": 2, "total": 5, "since": "2026-12-01T08:48:57Z", "result": null
})))]
struct JobEntry {
    id: String,
    kind: JobKind,
    state: JobStateName,
    /// Parts that a running statistic has read, or bytes of a task's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    done: Option<u64>,
    /// How many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    total: Option<u64>,
    /// The size of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    bytes: Option<u64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
    /// When it got its state: RFC 3339, UTC.
    since: String,
    /// The path of its result, if it has one.
    result: Option<String>,
}

/// What a job computes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum JobKind {
    Statistic,
    Task,
}

/// The state of a job.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum JobStateName {
    Queued,
    Running,
    Done,
    Failed,
    Downloaded,
}

/// The jobs of both kinds that were accepted last, the newest first.
#[utoipa::path(
    get, path = "/api/v1/jobs", tag = "server", params(JobsQuery),
    responses(
        (status = 200, description = "The jobs", body = JobsReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails)
    )
)]
async fn jobs(
    State(surface): State<Surface>,
    query: Result<Query<JobsQuery>, QueryRejection>,
) -> Result<Json<JobsReply>, Problem> {
    let Query(JobsQuery { limit }) = query?;
    let limit = checked_limit("limit", limit, JOBS_LISTED_MAX, JOBS_LISTED_MAX)?;
    let jobs = surface.engine.newest_jobs(limit).into_iter().map(JobEntry::of).collect();
    Ok(Json(JobsReply { jobs, undone: surface.engine.jobs_undone() }))
}

impl JobEntry {
    fn of(ListedJob { job: Job { id, state, has_result }, since }: ListedJob) -> Self {
        let (kind, path) = match id {
            JobId::Survey(_) => (JobKind::Statistic, format!("{RESULTS_PATH}{id}")),
            JobId::Task(_) => (JobKind::Task, format!("{TASKS_PATH}{id}/download")),
        };
        let entry = Self {
            id: id.to_string(),
            kind,
            state: JobStateName::Queued,
            done: None,
            total: None,
            bytes: None,
            reason: None,
            since: since.to_rfc3339_opts(SecondsFormat::Millis, true),
            result: has_result.then_some(path),
        };
        match state {
            JobState::Queued => entry,
            JobState::Running { done, total } => {
                Self { state: JobStateName::Running, done: Some(done), total: Some(total), ..entry }
            }
            JobState::Done { bytes } => Self { state: JobStateName::Done, bytes: Some(bytes), ..entry },
            JobState::Failed { reason } => {
                Self { state: JobStateName::Failed, reason: Some(reason.to_string()), ..entry }
            }
            JobState::Downloaded => Self { state: JobStateName::Downloaded, ..entry },
        }
    }
}
