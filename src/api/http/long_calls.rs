//! Permits for long calls: those whose body or answer takes its time have 20 of the 40 connections, so that probes and
//! short calls always find one. When all are taken, the one whose client is furthest behind makes room.

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
use tokio_util::sync::CancellationToken;

use super::{
    Inner, Surface,
    convert::{Refusal, SurveyRefusal, refuse},
    survey::{RESULTS_PATH, running},
};
use crate::{
    api::caller::Caller,
    engine::{
        runtime::transfers::Permit,
        state::transfers::{Origin, Pace},
    },
    limits::HTTP_SHORT_ANSWER_BYTES,
};

/// There are as many long calls as there may be.
pub(super) struct Busy;

impl Busy {
    fn message(&self) -> String {
        "as many calls with a long body or answer are under way as may be, which is the limit: try again".to_owned()
    }
}

impl From<Busy> for SurveyRefusal {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, busy.message())
    }
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "request", busy.message())
    }
}

impl Inner {
    /// A permit for a call that takes its time. `end` is cancelled if it has to end for another.
    pub(super) async fn long_call(&self, origin: Origin, end: CancellationToken) -> Result<Permit, Busy> {
        self.long_calls.enter(origin, end).await.ok_or(Busy)
    }
}

/// Lets an answer that the kernel does not take at once have a permit until it is sent, or refuses the call.
pub(super) async fn long_answers(State(surface): State<Surface>, request: Request, next: Next) -> Response {
    let (is_head, path) = (request.method() == Method::HEAD, request.uri().path().to_owned());
    let Caller { origin, close, .. } = Caller::of(request.extensions());
    let response = next.run(request).await;
    if is_head || is_short(&response) {
        return response;
    }
    // A client that does not read is not polled, so its connection is closed if the answer has to end.
    match surface.long_call(origin, close).await {
        Ok(permit) => response.map(|body| Body::new(Long { body, pace: permit.pace(), bytes: 0, _permit: permit })),
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

/// An answer with its permit.
struct Long {
    body: Body,
    pace: Arc<Pace>,
    /// Bytes that were handed over last, and are taken when more is asked for.
    bytes: usize,
    _permit: Permit,
}

impl http_body::Body for Long {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let bytes = std::mem::take(&mut self.bytes);
        self.pace.moved(bytes);
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.bytes = frame.data_ref().map_or(0, Bytes::len);
            self.pace.waits();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
