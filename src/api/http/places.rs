//! Places for long calls: those whose body or answer takes its time have 24 of the 32 connections, so that probes and
//! short calls always find one.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Inner, Surface,
    convert::{Refusal, SurveyRefusal, refuse},
    survey::{RESULTS_PATH, running},
};
use crate::limits::{HTTP_LONG_CALLS_MAX, HTTP_SHORT_ANSWER_BYTES};

/// There are as many long calls as there may be.
pub(super) struct Busy;

impl Busy {
    fn message(&self) -> String {
        format!("{HTTP_LONG_CALLS_MAX} calls with a long body or answer are under way, which is the limit: try again")
    }
}

impl From<Busy> for SurveyRefusal {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, busy.message())
    }
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, field: "request", message: busy.message() }
    }
}

impl Inner {
    /// A place for a call that takes its time.
    pub(super) fn long_call(&self) -> Result<OwnedSemaphorePermit, Busy> {
        Arc::clone(&self.long_calls).try_acquire_owned().ok().ok_or(Busy)
    }
}

/// Lets an answer that the kernel does not take at once have a place until it is sent, or refuses the call.
pub(super) async fn long_answers(State(surface): State<Surface>, request: Request, next: Next) -> Response {
    let (is_head, path) = (request.method() == Method::HEAD, request.uri().path().to_owned());
    let response = next.run(request).await;
    if is_head || is_short(&response) {
        return response;
    }
    match surface.long_call() {
        Ok(place) => response.map(|body| Body::new(Long { body, _place: place })),
        // The original clients know no other way to be told to come again.
        Err(_busy) if path.starts_with(RESULTS_PATH) => running(),
        Err(busy) => refuse(&path, StatusCode::TOO_MANY_REQUESTS, busy.message()),
    }
}

fn is_short(response: &Response) -> bool {
    let told = response.headers().get(header::CONTENT_LENGTH);
    let told = told.and_then(|bytes| bytes.to_str().ok()).and_then(|bytes| bytes.parse().ok());
    let bytes: Option<u64> = told.or_else(|| http_body::Body::size_hint(response.body()).upper());
    bytes.is_some_and(|bytes| bytes <= HTTP_SHORT_ANSWER_BYTES)
}

/// A body with its place.
struct Long {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl http_body::Body for Long {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
