//! The layer around all services that keeps the memory of calls within the budget.
//!
//! A call for which there is no memory is refused. A request that stops arriving ends in an error. An answer goes to the
//! connection in small pieces, and the next message is encoded only when the connection has written most of the last
//! one, whose memory is reserved until then. So the server, and not the window that the client opens, bounds the bytes
//! of an answer that HTTP/2 buffers.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, HeaderMap, Request, Response};
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::{Status, body::Body};
use tower::Service;

use super::{
    call_budget::{Account, Call, CallBudget, Exhausted, Reservation},
    metrics_layer::is_own_method,
    request_head::Deadline,
    upload_layer::is_upload,
};
use crate::limits::{ANSWER_FRAME_BYTES, ANSWER_PIECE_BYTES, CALL_BYTES, FOREIGN_CALL_BYTES, QUESTION_CALL_BYTES};

/// The message of a call whose client set a deadline that has passed.
const LATE: &str = "the call did not finish before its deadline";

/// Keeps the memory of the calls of the services below it within a budget.
#[derive(Clone)]
pub(crate) struct BudgetService<S> {
    inner: S,
    stall_max: Duration,
}

impl<S> BudgetService<S> {
    pub(crate) fn new(inner: S, budget: &CallBudget) -> Self {
        Self { inner, stall_max: budget.stall_max() }
    }
}

/// The call that a request belongs to, in its extensions, so that its handler can reserve more memory.
#[derive(Clone)]
pub(crate) struct OpenCall(Arc<Call>);

impl OpenCall {
    /// Errors: the request did not come through [`BudgetService`].
    pub(super) fn of(extensions: &Extensions) -> Result<Arc<Call>, Status> {
        let call = extensions.get::<OpenCall>().map(|OpenCall(call)| Arc::clone(call));
        call.ok_or_else(|| Status::internal("the call is not counted"))
    }
}

impl<S> Service<Request<Body>> for BudgetService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let call = match open_call(&request) {
            Ok(call) => call,
            Err(exhausted) => return Box::pin(async move { Ok(Status::from(exhausted).into_http()) }),
        };
        request.extensions_mut().insert(OpenCall(Arc::clone(&call)));
        let deadline = Deadline::of(request.extensions());
        // Uploads have their own limit, `--upload-idle-s`.
        if !is_upload(request.uri().path()) {
            request = request.map(|body| Body::new(TimedBody::new(body, self.stall_max)));
        }
        let answered = self.inner.call(request);
        Box::pin(async move {
            let response = answered.await?;
            if response.body().is_end_stream() {
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(Answer::new(body, call, deadline))))
        })
    }
}

fn open_call(request: &Request<Body>) -> Result<Arc<Call>, Exhausted> {
    let account = request.extensions().get::<Account>().ok_or(Exhausted)?;
    let bytes = match request.uri().path() {
        "/Table/ColumnSum" | "/Table/ColSum" | "/tally.v1.Tally/Sum" | "/tally.v1.Tally/GroupSum" => {
            QUESTION_CALL_BYTES
        }
        path if is_own_method(path) => CALL_BYTES,
        _ => FOREIGN_CALL_BYTES,
    };
    Call::open(account, bytes)
}

/// The body of a call that is not an upload. It ends in an error when no bytes arrive for too long.
struct TimedBody {
    client: Body,
    stall_max: Duration,
    /// Runs while the next frame is awaited.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    fn new(client: Body, stall_max: Duration) -> Self {
        Self { client, stall_max, timeout: None }
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.client).poll_frame(context) {
            // An empty frame is no progress.
            let is_empty = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
            if !frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(is_empty)) {
                self.timeout = None;
            }
            return Poll::Ready(frame);
        }
        let stall_max = self.stall_max;
        let timeout = self.timeout.get_or_insert_with(|| Box::pin(sleep(stall_max)));
        ready!(timeout.as_mut().poll(context));
        let seconds = stall_max.as_secs();
        Poll::Ready(Some(Err(Status::deadline_exceeded(format!("nothing of the call came for {seconds} s")))))
    }

    fn is_end_stream(&self) -> bool {
        self.client.is_end_stream()
    }
}

/// The body of an answer.
struct Answer {
    service: Body,
    call: Arc<Call>,
    /// Encoded bytes that have not been passed to the connection.
    rest: Bytes,
    /// The memory of the last message. Its encoder keeps the buffer, so it is reserved until there is another message.
    message: Option<Arc<Reservation>>,
    deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Answer {
    fn new(service: Body, call: Arc<Call>, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { service, call, rest: Bytes::new(), message: None, deadline, ended: false }
    }

    /// The next piece, or the end of the answer.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            ready!(self.call.poll_room(context));
            if !self.rest.is_empty() {
                let piece = self.rest.split_to(self.rest.len().min(ANSWER_PIECE_BYTES));
                self.call.add_unread(piece.len());
                let piece = Piece { bytes: piece, call: Arc::clone(&self.call), _message: self.message.clone() };
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))));
            }
            self.call.makes_message();
            let Some(frame) = ready!(Pin::new(&mut self.service).poll_frame(context)).transpose()? else {
                return Poll::Ready(None);
            };
            self.call.has_message();
            match frame.into_data() {
                Ok(data) => {
                    // Twice, because an encoder's buffer doubles as it grows.
                    match self.call.reserve(2 * data.len() + ANSWER_FRAME_BYTES) {
                        Ok(reservation) => self.message = Some(Arc::new(reservation)),
                        Err(exhausted) => return Poll::Ready(Some(Ok(self.end(&exhausted.into())))),
                    }
                    self.rest = data;
                }
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
    }

    /// Ends the answer with this status. The rest of the answer is not encoded.
    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        self.service = Body::empty();
        self.rest = Bytes::new();
        let mut trailers = HeaderMap::new();
        if let Err(status) = status.add_header(&mut trailers) {
            tracing::error!(%status, "a status cannot be sent");
        }
        Frame::trailers(trailers)
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = self.poll_next(context) {
            return Poll::Ready(frame);
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Some(Ok(self.end(&Status::deadline_exceeded(LATE)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.rest.is_empty() && self.service.is_end_stream())
    }
}

/// A piece of an answer. The connection drops it when it has written it or is closed.
struct Piece {
    bytes: Bytes,
    call: Arc<Call>,
    _message: Option<Arc<Reservation>>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.call.remove_unread(self.bytes.len());
    }
}
