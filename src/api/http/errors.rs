//! Errors as HTTP answers, in the forms that clients expect: one on the paths of the original statistics servers, another
//! on those of the original file-processing server. `problem` has the form of the table's own paths.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::statistics_json::StatisticsStatus;
use crate::error::{Error, Kind, logged::Logged, quoted::Quoted};

/// What the original servers answer to a question while they shut down.
const SHUTTING_DOWN: &str = "shutting down";
/// Seconds after which a client that found a queue full may ask again.
pub(super) const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// The HTTP status of an error.
pub(super) fn status_of(error: &Error) -> StatusCode {
    // Its kind is Exhausted, but what is exhausted is the client's time.
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
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::DataLoss | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The error of a request's body that could not be read.
pub(super) fn interrupted(error: axum::Error) -> Error {
    Error::Aborted(error.to_string())
}

/// Why a body cannot be read: it has an encoding that is not known here. `None` if it can be read.
pub(super) fn unsupported_encoding(headers: &HeaderMap) -> Option<String> {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    let unknown = encodings.iter().find(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))?;
    let name = String::from_utf8_lossy(unknown.as_bytes());
    Some(format!("Content-Encoding {} is not supported: send it as it is", Quoted(&name)))
}

/// Why a question was refused, or has no answer.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"status": "error", "reason": "Invalid job_id"})))]
pub(super) struct StatisticsError {
    #[serde(skip)]
    code: StatusCode,
    #[serde(skip)]
    fault: Option<Fault>,
    status: StatisticsStatus,
    reason: String,
}

impl StatisticsError {
    pub(super) fn new(code: StatusCode, reason: impl Into<String>) -> Self {
        Self { code, fault: None, status: StatisticsStatus::Error, reason: reason.into() }
    }
}

impl From<Error> for StatisticsError {
    /// The original clients expect 405 from a server that is shutting down.
    fn from(error: Error) -> Self {
        match status_of(&error) {
            StatusCode::SERVICE_UNAVAILABLE => Self::new(StatusCode::METHOD_NOT_ALLOWED, SHUTTING_DOWN),
            code => Self { fault: Fault::of(code, &error), ..Self::new(code, error.to_string()) },
        }
    }
}

impl IntoResponse for StatisticsError {
    fn into_response(self) -> Response {
        let (code, is_shutting_down, fault) = (self.code, self.reason == SHUTTING_DOWN, self.fault.clone());
        let mut response = (code, Json(self)).into_response();
        fault.map(|fault| response.extensions_mut().insert(fault));
        if code == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
        }
        if is_shutting_down {
            response.extensions_mut().insert(ShuttingDown);
            // RFC 9110, section 15.5.6: a 405 lists the allowed methods, and the list may be empty.
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(""));
        }
        response
    }
}

/// Why a request about tasks was refused.
#[derive(Debug)]
pub(super) struct TaskError {
    pub(super) status: StatusCode,
    /// The part of the request that is wrong.
    pub(super) field: &'static str,
    pub(super) message: String,
    pub(super) fault: Option<Fault>,
}

impl TaskError {
    pub(super) fn new(status: StatusCode, field: &'static str, message: impl Into<String>) -> Self {
        Self { status, field, message: message.into(), fault: None }
    }

    /// The same error, of another part of the request.
    pub(super) fn of_field(self, field: &'static str) -> Self {
        Self { field, ..self }
    }

    pub(super) fn bad_file(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "file", message)
    }

    pub(super) fn unknown_task() -> Self {
        Self::new(StatusCode::NOT_FOUND, "task_id", "There is no such task, or its result is gone")
    }
}

impl From<Error> for TaskError {
    fn from(error: Error) -> Self {
        let status = status_of(&error);
        let field = if status == StatusCode::BAD_REQUEST { "file" } else { "request" };
        Self { fault: Fault::of(status, &error), ..Self::new(status, field, error.to_string()) }
    }
}

impl IntoResponse for TaskError {
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
        fault.map(|fault| response.extensions_mut().insert(fault));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.extensions_mut().insert(ShuttingDown);
        }
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
    /// The reason phrase of the status.
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

/// A request was refused because the server shuts down. It is in the extensions of the answer for `access_log`.
#[derive(Clone, Copy)]
pub(super) struct ShuttingDown;

/// What went wrong in the server itself, as the log says it. It is in the extensions of the answer for `access_log`,
/// which knows the client's address.
#[derive(Clone, Debug)]
pub(super) struct Fault(pub(super) String);

impl Fault {
    pub(super) fn of(status: StatusCode, error: &Error) -> Option<Self> {
        status.is_server_error().then(|| Self(Logged(error).to_string()))
    }
}
