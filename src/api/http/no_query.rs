//! Paths without query parameters refuse them, because a parameter that is ignored is a mistake that nobody notices.

use axum::{extract::FromRequestParts, http::request::Parts};

use super::problem::Problem;

/// The request has no query parameters.
pub(super) struct NoQuery;

impl<S: Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(_) => Err(Problem::bad_request("query", "this path takes no query parameters")),
        }
    }
}
