//! The handlers of the file-processing tasks: a CSV file is uploaded, its group sums are downloaded later. Paths and JSON
//! are those of the original server.

use axum::{
    Json,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{Extensions, HeaderMap, Method, StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::post,
};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    access_log::{log_job, log_parameters},
    discard::{DISCARD_MAX, SHORT_DISCARD_MAX, discard},
    download::{Download, FileHead, NotSent, send, unsatisfiable},
    errors::{Failure, TaskError, unsupported_encoding},
    file_form::FileForm,
    paths::TASKS_PATH,
    surface::Surface,
    tasks_json::{Grouping, TaskReply, parse_task_id, to_group, to_new_task, to_task},
};
use crate::{
    api::{
        caller::Caller,
        metered::{Adds, metered},
    },
    engine::state::{
        jobs::{Job, JobId, JobState},
        transfers::Origin,
    },
    error::{Error, jobs::JobError},
};

/// The description has the path of the POST as in the original server, but requests arrive without the slash at its end.
pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(status))
        .routes(routes!(download))
        .routes(routes!(cancel))
        .route(TASKS_PATH.trim_end_matches('/'), post(create))
}

/// A form with a file, for the OpenAPI.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "it describes the body for the OpenAPI")]
struct Form {
    /// A CSV file, its name ending with `.csv`.
    #[schema(content_media_type = "text/csv", value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Takes a CSV file and sums it by groups. Its size is bounded by the disk, not by memory.
#[utoipa::path(
    post, path = "/api/v1/file-processing/tasks/", tag = "file processing", params(Grouping),
    request_body(content = Form, content_type = "multipart/form-data", encoding(("file" = (content_type = "text/csv")))),
    responses(
        (
            status = 202, description = "The task", body = TaskReply,
            links(
                ("its status" = (operation_id = "status", parameters(("task_id" = "$response.body#/task/id")))),
                ("its result" = (operation_id = "download", parameters(("task_id" = "$response.body#/task/id")))),
                ("its end" = (operation_id = "cancel", parameters(("task_id" = "$response.body#/task/id"))))
            )
        ),
        (status = 400, description = "Not one file with the extension .csv, or a wrong grouping", body = Failure),
        (status = 403, description = "The request comes from a foreign page", body = Failure),
        (status = 408, description = "The body stopped arriving", body = Failure),
        (status = 415, description = "The body or the file is compressed", body = Failure),
        (status = 429, description = "The queue or the disk is full, or too many calls with a long body or answer", body = Failure),
        (status = 503, description = "The server is shutting down", body = Failure)
    )
)]
async fn create(
    State(surface): State<Surface>,
    grouping: Result<Query<Grouping>, QueryRejection>,
    request: Request,
) -> Result<Response, TaskError> {
    let Caller { origin, .. } = Caller::of(request.extensions());
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let accepted = if surface.takes_jobs() {
        surface.long_call(origin, CancellationToken::new()).await.map_err(TaskError::from)
    } else {
        Err(Error::from(JobError::Refused).into()) // whatever the body holds
    };
    let permit = match accepted {
        Ok(permit) => permit,
        Err(error) => {
            discard(body.into_data_stream(), SHORT_DISCARD_MAX).await;
            return Err(error);
        }
    };
    if let Some(encoding) = unsupported_encoding(&headers) {
        discard(body.into_data_stream(), DISCARD_MAX).await;
        return Err(TaskError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding", encoding));
    }
    let mut form = FileForm::new(&headers, body, permit.pace(), surface.idle_max).await?;
    let submitted = submit(&surface, (origin, &extensions), grouping, &mut form).await;
    form.finish().await;
    Ok((StatusCode::ACCEPTED, Json(to_new_task(submitted?))).into_response())
}

async fn submit(
    surface: &Surface,
    (origin, request): (Origin, &Extensions),
    grouping: Result<Query<Grouping>, QueryRejection>,
    form: &mut FileForm,
) -> Result<JobId, TaskError> {
    let Query(query) = grouping.map_err(|error| TaskError::new(StatusCode::BAD_REQUEST, "query", error.body_text()))?;
    let (fields, file) = form.file().await?;
    let grouping = query.with(fields)?;
    log_parameters(&grouping);
    let (group, header) = to_group(grouping)?;
    let run = |file| surface.engine.submit_task(origin, file, group, header);
    let id = metered(request, Adds::Nothing, file, run, |_id| false).await?;
    log_job(id);
    Ok(id)
}

/// The state of a task.
#[utoipa::path(
    get, path = "/api/v1/file-processing/tasks/{task_id}/status", tag = "file processing",
    params(("task_id" = uuid::Uuid, Path, description = "The id in the answer to the POST")),
    responses(
        (status = 200, description = "The task", body = TaskReply),
        (status = 404, description = "No such task", body = Failure)
    )
)]
async fn status(
    State(surface): State<Surface>,
    task_id: Result<Path<String>, PathRejection>,
) -> Result<Json<TaskReply>, TaskError> {
    let job = find(&surface, task_id)?;
    to_task(job).map(Json).ok_or_else(TaskError::unknown_task)
}

/// The sums as a CSV file. It is removed some time after it was sent whole, in one piece.
#[utoipa::path(
    get, path = "/api/v1/file-processing/tasks/{task_id}/download", tag = "file processing",
    params(
        ("task_id" = uuid::Uuid, Path, description = "The id in the answer to the POST"),
        ("Range" = Option<String>, Header, description = "A single range of bytes", example = "bytes=0-99"),
        ("If-Range" = Option<String>, Header, description = "The ETag for which the range is meant")
    ),
    responses(
        (status = 200, description = "The whole file", body = String, content_type = "text/csv; charset=utf-8"),
        (
            status = 206, description = "The range of the file; or, as JSON, the task, when it is not completed",
            content((String = "text/csv; charset=utf-8"), (TaskReply = "application/json"))
        ),
        (status = 404, description = "No such task, or it was downloaded and removed", body = Failure),
        (status = 416, description = "The file has no such bytes", body = Failure),
        (status = 403, description = "The request comes from a foreign page", body = Failure),
        (status = 429, description = "Too many calls with a long body or answer", body = Failure)
    )
)]
async fn download(
    State(surface): State<Surface>,
    task_id: Result<Path<String>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, TaskError> {
    let job = find(&surface, task_id)?;
    match job.state {
        JobState::Done { .. } | JobState::Downloaded if job.has_result => {
            send_result(&surface, job.id, &method, &headers).await
        }
        JobState::Done { .. } | JobState::Downloaded => Err(TaskError::unknown_task()),
        JobState::Queued | JobState::Running { .. } | JobState::Failed { .. } => {
            Ok((StatusCode::PARTIAL_CONTENT, Json(to_task(job))).into_response())
        }
    }
}

/// A result, or a part of it.
async fn send_result(
    surface: &Surface,
    id: JobId,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, TaskError> {
    let file = surface.engine.open_result(id).await?;
    let head = FileHead {
        tag: format!("\"{id}\""), // a result never changes
        content_type: "text/csv; charset=utf-8",
        name: "results.csv".to_owned(),
    };
    match send(file, head, method, headers, Some(Download::new(surface.engine.clone(), id))).await {
        Ok(answer) => Ok(answer),
        Err(NotSent::Failed(error)) => Err(error.into()),
        Err(NotSent::Unsatisfiable { bytes }) => {
            let message = format!("The file has {bytes} bytes");
            Ok(unsatisfiable(bytes, TaskError::new(StatusCode::RANGE_NOT_SATISFIABLE, "Range", message)))
        }
    }
}

/// Cancels a task that has not ended.
#[utoipa::path(
    delete, path = "/api/v1/file-processing/tasks/{task_id}", tag = "file processing",
    params(("task_id" = uuid::Uuid, Path, description = "The id in the answer to the POST")),
    responses(
        (status = 204, description = "It is cancelled"),
        (status = 403, description = "The request comes from a foreign page", body = Failure),
        (status = 404, description = "No such task", body = Failure),
        (status = 409, description = "It has ended before", body = Failure)
    )
)]
async fn cancel(
    State(surface): State<Surface>,
    task_id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, TaskError> {
    let job = find(&surface, task_id)?;
    if surface.engine.cancel_job(job.id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(TaskError::new(StatusCode::CONFLICT, "task_id", "The task has ended already"))
}

fn find(surface: &Surface, task_id: Result<Path<String>, PathRejection>) -> Result<Job, TaskError> {
    let id = task_id.ok().and_then(|Path(text)| parse_task_id(&text));
    id.and_then(|id| surface.engine.job(id)).ok_or_else(TaskError::unknown_task)
}
