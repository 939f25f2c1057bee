//! The handlers of the statistics: a question is answered with a job's id, and the job's result is fetched later. Paths and
//! JSON are those of the original servers.

use axum::{
    Json,
    body::Body,
    extract::{Extension, Path, State, rejection::PathRejection},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    access_log::log_job,
    download::pieces_of,
    errors::StatisticsError,
    json_body::JsonBody,
    statistics_json::{
        Accepted, Question, RankedQuestion, StateQuestion, StatisticsJob, StatisticsStatus, parse_job_id, running,
    },
    surface::Surface,
};
use crate::{
    access::{arrival::Arrival, pages::may_administer},
    engine::{
        state::jobs::{Job, JobId, JobState},
        survey::question::{Ask, SurveyQuestion},
    },
    error::Error,
};

/// What the original servers answer about an unknown job.
const UNKNOWN_JOB: &str = "Invalid job_id";

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new()
        .routes(routes!(states_mean))
        .routes(routes!(state_mean))
        .routes(routes!(best5))
        .routes(routes!(worst5))
        .routes(routes!(global_mean))
        .routes(routes!(diff_from_mean))
        .routes(routes!(state_diff_from_mean))
        .routes(routes!(mean_by_category))
        .routes(routes!(state_mean_by_category))
        .routes(routes!(get_results))
        .routes(routes!(jobs))
        .routes(routes!(job, cancel))
        .routes(routes!(num_jobs))
        .routes(routes!(graceful_shutdown, graceful_shutdown_by_post))
}

/// The answers to every POST in this module.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "it describes the answers for the OpenAPI")]
enum Submitted {
    /// The job whose result will be the answer.
    #[response(status = 200)]
    Accepted(#[to_schema] Accepted),
    /// The body is not a JSON object with these fields.
    #[response(status = 400)]
    Wrong(#[to_schema] StatisticsError),
    /// The request comes from a foreign page.
    #[response(status = 403)]
    Foreign(#[to_schema] StatisticsError),
    /// The server takes no new jobs, because it is shutting down.
    #[response(status = 405)]
    ShuttingDown(#[to_schema] StatisticsError),
    /// The body stopped arriving.
    #[response(status = 408)]
    Stopped(#[to_schema] StatisticsError),
    /// The body has more than 32 KiB.
    #[response(status = 413)]
    TooLarge(#[to_schema] StatisticsError),
    /// The body is compressed.
    #[response(status = 415)]
    Encoded(#[to_schema] StatisticsError),
    /// The queue is full, or too many calls have a long body: ask again after the seconds in Retry-After.
    #[response(status = 429)]
    Full(#[to_schema] StatisticsError),
}

/// Mean of every state, ascending by mean: `{"Ohio": 34.1, ...}`
#[utoipa::path(post, path = "/api/states_mean", tag = "statistics", request_body = Question, responses(Submitted))]
async fn states_mean(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<Question>,
) -> Result<Json<Accepted>, StatisticsError> {
    submit(&surface, SurveyQuestion::new(Ask::StatesMean, asked.question.0, None, None)).await
}

/// Mean of one state: `{"Ohio": 34.1}`
#[utoipa::path(post, path = "/api/state_mean", tag = "statistics", request_body = StateQuestion, responses(Submitted))]
async fn state_mean(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<StateQuestion>,
) -> Result<Json<Accepted>, StatisticsError> {
    submit(&surface, SurveyQuestion::new(Ask::StateMean, asked.question.0, Some(asked.state.0), None)).await
}

/// The five best states and their means, best first.
#[utoipa::path(post, path = "/api/best5", tag = "statistics", request_body = RankedQuestion, responses(Submitted))]
async fn best5(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<RankedQuestion>,
) -> Result<Json<Accepted>, StatisticsError> {
    let best = asked.best.map(Into::into);
    submit(&surface, SurveyQuestion::new(Ask::Best5, asked.question.0, None, best)).await
}

/// The five worst states and their means, worst first.
#[utoipa::path(post, path = "/api/worst5", tag = "statistics", request_body = RankedQuestion, responses(Submitted))]
async fn worst5(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<RankedQuestion>,
) -> Result<Json<Accepted>, StatisticsError> {
    let best = asked.best.map(Into::into);
    submit(&surface, SurveyQuestion::new(Ask::Worst5, asked.question.0, None, best)).await
}

/// Mean over all rows: `{"global_mean": 34.5}`
#[utoipa::path(post, path = "/api/global_mean", tag = "statistics", request_body = Question, responses(Submitted))]
async fn global_mean(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<Question>,
) -> Result<Json<Accepted>, StatisticsError> {
    submit(&surface, SurveyQuestion::new(Ask::GlobalMean, asked.question.0, None, None)).await
}

/// Global mean less the state's mean, of every state, the largest difference first.
#[utoipa::path(post, path = "/api/diff_from_mean", tag = "statistics", request_body = Question, responses(Submitted))]
async fn diff_from_mean(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<Question>,
) -> Result<Json<Accepted>, StatisticsError> {
    submit(&surface, SurveyQuestion::new(Ask::DiffFromMean, asked.question.0, None, None)).await
}

/// Global mean less the state's mean, of one state.
#[utoipa::path(
    post, path = "/api/state_diff_from_mean", tag = "statistics", request_body = StateQuestion, responses(Submitted)
)]
async fn state_diff_from_mean(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<StateQuestion>,
) -> Result<Json<Accepted>, StatisticsError> {
    submit(&surface, SurveyQuestion::new(Ask::StateDiffFromMean, asked.question.0, Some(asked.state.0), None)).await
}

/// Mean of every state, category and value: `{"('Ohio', 'Income', '$15,000 - $24,999')": 30.4, ...}`
#[utoipa::path(post, path = "/api/mean_by_category", tag = "statistics", request_body = Question, responses(Submitted))]
async fn mean_by_category(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<Question>,
) -> Result<Json<Accepted>, StatisticsError> {
    submit(&surface, SurveyQuestion::new(Ask::MeanByCategory, asked.question.0, None, None)).await
}

/// Mean of every category and value in one state: `{"Ohio": {"('Income', '$15,000 - $24,999')": 30.4, ...}}`
#[utoipa::path(
    post, path = "/api/state_mean_by_category", tag = "statistics", request_body = StateQuestion, responses(Submitted)
)]
async fn state_mean_by_category(
    surface: State<Surface>,
    JsonBody(asked): JsonBody<StateQuestion>,
) -> Result<Json<Accepted>, StatisticsError> {
    submit(&surface, SurveyQuestion::new(Ask::StateMeanByCategory, asked.question.0, Some(asked.state.0), None)).await
}

async fn submit(surface: &Surface, question: Result<SurveyQuestion, Error>) -> Result<Json<Accepted>, StatisticsError> {
    let id = surface.engine.submit_survey(question?).await?;
    log_job(id);
    Ok(Json(id.into()))
}

/// A job's state: running, done with its data, or the reason why there is none.
#[utoipa::path(
    get, path = "/api/get_results/{job_id}", tag = "statistics",
    params(("job_id" = String, Path, description = "`job_id_1` or `1`", example = "job_id_1")),
    responses((
        status = 200, description = "In each of these cases, as the original clients expect; also `running` while too many long answers are being sent",
        content_type = "application/json", body = serde_json::Value,
        examples(
            ("running" = (value = json!({"status": "running"}))),
            ("done" = (value = json!({"status": "done", "data": {"global_mean": 34.5}}))),
            ("error" = (value = json!({"status": "error", "reason": "Invalid job_id"})))
        )
    ))
)]
async fn get_results(State(surface): State<Surface>, job_id: Result<Path<String>, PathRejection>) -> Response {
    let id = job_id.ok().and_then(|Path(text)| parse_job_id(&text));
    let Some(job) = id.and_then(|id| surface.engine.job(id)) else { return no_data(UNKNOWN_JOB) };
    match job.state {
        JobState::Queued | JobState::Running { .. } => running(),
        JobState::Failed { reason } => no_data(&reason),
        JobState::Done { .. } | JobState::Downloaded if job.has_result => {
            data_of(&surface, job.id).await.unwrap_or_else(|error| no_data(&error.to_string()))
        }
        JobState::Done { .. } | JobState::Downloaded => no_data("the result was removed: ask again"),
    }
}

fn no_data(reason: &str) -> Response {
    StatisticsError::new(StatusCode::OK, reason).into_response()
}

/// The stored result, which may be long, inside the JSON object that the clients expect.
async fn data_of(surface: &Surface, id: JobId) -> Result<Response, Error> {
    const BEFORE: &[u8] = b"{\"status\":\"done\",\"data\":";
    const AFTER: &[u8] = b"}";
    let file = surface.engine.open_result(id).await?;
    let bytes = file.bytes();
    let frame = |bytes| stream::iter([Ok(Bytes::from_static(bytes))]);
    let body = frame(BEFORE).chain(pieces_of(file, 0..bytes, None).await?).chain(frame(AFTER));
    let content_length = bytes + (BEFORE.len() + AFTER.len()) as u64;
    let headers =
        [(header::CONTENT_TYPE, "application/json".to_owned()), (header::CONTENT_LENGTH, content_length.to_string())];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// All jobs in the order of their ids.
#[utoipa::path(
    get, path = "/api/jobs", tag = "statistics",
    responses((
        status = 200, description = "Each is running, done or error", content_type = "application/json", body = serde_json::Value,
        example = json!({"status": "done", "data": [{"job_id_1": "done"}, {"job_id_2": "running"}]})
    ))
)]
async fn jobs(State(surface): State<Surface>) -> Response {
    let jobs = surface.engine.survey_jobs();
    let data: Vec<_> = jobs.iter().map(|job| json!({(job.id.to_string()): StatisticsStatus::of(&job.state)})).collect();
    Json(json!({"status": StatisticsStatus::Done, "data": data})).into_response()
}

/// The state of one job.
#[utoipa::path(
    get, path = "/api/jobs/{job_id}", tag = "statistics",
    params(("job_id" = String, Path, description = "`job_id_1` or `1`", example = "job_id_1")),
    responses(
        (status = 200, description = "The job", body = StatisticsJob),
        (status = 404, description = "There is no such job", body = StatisticsError)
    )
)]
async fn job(
    State(surface): State<Surface>,
    job_id: Result<Path<String>, PathRejection>,
) -> Result<Json<StatisticsJob>, StatisticsError> {
    find(&surface, job_id).map(|job| Json(job.into()))
}

/// Cancels a job that has not ended: it ends with a reason instead of data.
#[utoipa::path(
    delete, path = "/api/jobs/{job_id}", tag = "statistics",
    params(("job_id" = String, Path, description = "`job_id_1` or `1`", example = "job_id_1")),
    responses(
        (
            status = 200, description = "It is cancelled", content_type = "application/json", body = serde_json::Value,
            example = json!({"status": "done"})
        ),
        (status = 403, description = "The request comes from a foreign page", body = StatisticsError),
        (status = 404, description = "There is no such job", body = StatisticsError),
        (status = 409, description = "It has ended before", body = StatisticsError)
    )
)]
async fn cancel(
    State(surface): State<Surface>,
    job_id: Result<Path<String>, PathRejection>,
) -> Result<Response, StatisticsError> {
    let job = find(&surface, job_id)?;
    if surface.engine.cancel_job(job.id).await? {
        return Ok(Json(json!({"status": StatisticsStatus::Done})).into_response());
    }
    Err(StatisticsError::new(StatusCode::CONFLICT, "the job has ended already"))
}

fn find(surface: &Surface, job_id: Result<Path<String>, PathRejection>) -> Result<Job, StatisticsError> {
    let id = job_id.ok().and_then(|Path(text)| parse_job_id(&text));
    let job = id.and_then(|id| surface.engine.job(id));
    job.ok_or_else(|| StatisticsError::new(StatusCode::NOT_FOUND, UNKNOWN_JOB))
}

/// How many jobs are not done yet, tasks among them.
#[utoipa::path(
    get, path = "/api/num_jobs", tag = "statistics",
    responses((
        status = 200, description = "The number", content_type = "application/json", body = serde_json::Value,
        example = json!({"num_jobs": 0})
    ))
)]
async fn num_jobs(State(surface): State<Surface>) -> Response {
    Json(json!({"num_jobs": surface.engine.jobs_undone()})).into_response()
}

/// Accepts no new jobs from now on, and finishes the accepted ones. Only for requests from this machine or, if the server
/// has an admin token, with that token.
#[utoipa::path(
    get, path = "/api/graceful_shutdown", tag = "statistics",
    security((), ("admin_token" = []), ("token" = [])),
    responses(
        (
            status = 200, description = "`running` while jobs are not done, then `done`", content_type = "application/json",
            body = serde_json::Value, example = json!({"status": "running"})
        ),
        (status = 403, description = "Not from here, and not without the token", body = StatisticsError)
    )
)]
async fn graceful_shutdown(
    surface: State<Surface>,
    arrival: Extension<Arrival>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    // axum gives a HEAD to the handler of GET.
    if method == Method::HEAD {
        let error = StatisticsError::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes GET and POST");
        return ([(header::ALLOW, "GET, POST")], error).into_response();
    }
    shut_down(surface, arrival, &uri, &headers)
}

/// The same as a POST, because it changes something.
#[utoipa::path(
    post, path = "/api/graceful_shutdown", tag = "statistics",
    security((), ("admin_token" = []), ("token" = [])),
    responses(
        (
            status = 200, description = "`running` while jobs are not done, then `done`", content_type = "application/json",
            body = serde_json::Value, example = json!({"status": "running"})
        ),
        (status = 403, description = "Not from here, and not without the token", body = StatisticsError)
    )
)]
async fn graceful_shutdown_by_post(
    surface: State<Surface>,
    arrival: Extension<Arrival>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    shut_down(surface, arrival, &uri, &headers)
}

fn shut_down(
    State(surface): State<Surface>,
    Extension(arrival): Extension<Arrival>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Response {
    if !may_administer(arrival, uri, headers, &surface.access) {
        let reason =
            "only from this machine itself and not from a browser; or with the admin token, where the server has one";
        return StatisticsError::new(StatusCode::FORBIDDEN, reason).into_response();
    }
    surface.refuse_jobs();
    let undone = surface.engine.jobs_undone();
    Json(json!({"status": if undone > 0 { StatisticsStatus::Running } else { StatisticsStatus::Done }})).into_response()
}
