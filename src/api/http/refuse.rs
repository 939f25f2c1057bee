//! Error answers to requests that no handler answers, in the form that the clients of their paths expect.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{
    errors::{StatisticsError, TaskError},
    paths::{is_problem_path, is_statistics_path},
    problem::Problem,
};

/// An error answer in the form that the clients of this path expect.
pub(super) fn refuse(path: &str, status: StatusCode, reason: impl Into<String>) -> Response {
    if is_statistics_path(path) {
        return StatisticsError::new(status, reason).into_response();
    }
    if is_problem_path(path) {
        return Problem::new(status, reason).into_response();
    }
    TaskError::new(status, "request", reason).into_response()
}
