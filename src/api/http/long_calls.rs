//! Permits for long calls, those whose body or answer takes long. They may have 20 of the 40 connections, so that probes
//! and short calls always find one. When all permits are taken, the slowest client's call is ended for a new one.

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
    errors::{StatisticsError, TaskError},
    paths::RESULTS_PATH,
    problem::Problem,
    refuse::refuse,
    statistics_json::running,
    surface::{Inner, Surface},
};
use crate::{
    api::caller::Caller,
    engine::{
        runtime::transfers::Permit,
        state::transfers::{Origin, Pace},
    },
    limits::HTTP_SHORT_ANSWER_BYTES,
};

/// All permits are taken.
pub(super) struct Busy;

impl Busy {
    fn message(&self) -> String {
        "too many calls with a long body or answer are running: try again".to_owned()
    }
}

impl From<Busy> for StatisticsError {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, busy.message())
    }
}

impl From<Busy> for TaskError {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "request", busy.message())
    }
}

impl From<Busy> for Problem {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, busy.message())
    }
}

impl Inner {
    /// A permit for a long call. `end` is cancelled if the call has to end for another.
    pub(super) async fn long_call(&self, origin: Origin, end: CancellationToken) -> Result<Permit, Busy> {
        self.long_calls.enter(origin, end).await.ok_or(Busy)
    }
}

/// The middleware that gets a permit for an answer that the kernel does not buffer whole, until it is sent. Without a permit
/// the call is refused.
pub(super) async fn long_answers(State(surface): State<Surface>, request: Request, next: Next) -> Response {
    let (is_head, path) = (request.method() == Method::HEAD, request.uri().path().to_owned());
    let Caller { origin, close, .. } = Caller::of(request.extensions());
    let response = next.run(request).await;
    if is_head || is_short(&response) || response.extensions().get::<OwnPermit>().is_some() {
        return response;
    }
    // The body of a client that does not read is not polled, so the connection is closed if the answer has to end.
    match surface.long_call(origin, close).await {
        Ok(permit) => response.map(|body| with_permit(body, permit)),
        // The only answer after which the original clients ask again.
        Err(_busy) if path.starts_with(RESULTS_PATH) => running(),
        Err(busy) => refuse(&path, StatusCode::TOO_MANY_REQUESTS, busy.message()),
    }
}

/// An answer has a permit of another kind. It is in the extensions of the answer for [`long_answers`].
#[derive(Clone, Copy)]
pub(super) struct OwnPermit;

/// An answer that keeps a permit until it was sent, and updates its pace.
pub(super) fn with_permit(body: Body, permit: Permit) -> Body {
    Body::new(LongAnswer { body, pace: permit.pace(), bytes: 0, _permit: permit })
}

fn is_short(response: &Response) -> bool {
    let length = response.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|bytes| bytes.to_str().ok()).and_then(|bytes| bytes.parse().ok());
    let bytes: Option<u64> = length.or_else(|| http_body::Body::size_hint(response.body()).upper());
    bytes.is_some_and(|bytes| bytes <= HTTP_SHORT_ANSWER_BYTES)
}

/// An answer with its permit.
struct LongAnswer {
    body: Body,
    pace: Arc<Pace>,
    /// Bytes of the last piece. The client has read them when hyper polls for more.
    bytes: usize,
    _permit: Permit,
}

impl http_body::Body for LongAnswer {
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
