//! The layer around all services that keeps what calls hold within the budget.
//!
//! A call is refused when there is no room for it. Of its headers only the one that is used is kept. Its body and its
//! answer must move: a question that stops coming ends, and an answer goes to the connection in small pieces, each
//! message of it reserved until the client has taken it; the next one is made only then. So what HTTP/2 holds of an answer
//! is bounded by us, and not by the window that the client opened.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, Uri};
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    adapter::is_upload,
    budget::{Account, Call, CallBudget, Exhausted, Reservation},
    count::is_ours,
};
use crate::limits::{
    ANSWER_FRAME_BYTES, ANSWER_PIECE_BYTES, CALL_BYTES, FOREIGN_CALL_BYTES, KEPT_PATH_BYTES_MAX, QUESTION_CALL_BYTES,
};

const ENCODING: &str = "grpc-encoding";
const TIMEOUT: &str = "grpc-timeout";
/// Why a call ended at the time that its client had set.
const LATE: &str = "the call was not done in the time that its client gave it";

/// Lets calls hold no more than the budget has.
#[derive(Clone)]
pub(crate) struct HoldLayer(pub(crate) CallBudget);

impl<S> Layer<S> for HoldLayer {
    type Service = HoldService<S>;

    fn layer(&self, inner: S) -> HoldService<S> {
        HoldService { inner, stall_max: self.0.stall_max() }
    }
}

/// A service behind [`HoldLayer`].
#[derive(Clone)]
pub(crate) struct HoldService<S> {
    inner: S,
    stall_max: Duration,
}

/// The call that a request belongs to, in its extensions: for what its handler holds beside.
#[derive(Clone)]
pub(crate) struct OpenCall(Arc<Call>);

impl OpenCall {
    /// Errors: the request did not come through [`HoldLayer`].
    pub(super) fn of(extensions: &Extensions) -> Result<Arc<Call>, Status> {
        let call = extensions.get::<OpenCall>().map(|OpenCall(call)| Arc::clone(call));
        call.ok_or_else(|| Status::internal("the call is not counted"))
    }
}

impl<S> Service<Request<Body>> for HoldService<S>
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
        // An upload has `--upload-idle-s` of its own.
        if !is_upload(request.uri().path()) {
            request = request.map(|body| Body::new(Question::new(body, self.stall_max)));
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
        "/Table/ColumnSum" | "/Table/ColSum" | "/tally.v1.Tally/GroupSum" => QUESTION_CALL_BYTES,
        path if is_ours(path) => CALL_BYTES,
        _ => FOREIGN_CALL_BYTES,
    };
    Call::open(account, bytes)
}

/// When the client has no more use for the answer, in the extensions of its request.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn of(extensions: &Extensions) -> Option<Instant> {
        extensions.get::<Deadline>().map(|Deadline(deadline)| *deadline)
    }
}

/// A request with what is used of its head: its path, its encoding and its deadline. To be called at once when it comes.
/// They are copies, for each value that came shares the memory of all headers, and a head is kept as long as its call.
pub(crate) fn without_unused_headers<B>(request: Request<B>) -> Request<B> {
    let (head, body) = request.into_parts();
    let mut kept = Request::new(body);
    *kept.method_mut() = head.method;
    *kept.version_mut() = head.version;
    *kept.extensions_mut() = head.extensions;
    let path = head.uri.path();
    if path.len() <= KEPT_PATH_BYTES_MAX
        && let Ok(path) = Uri::try_from(path.to_owned())
    {
        *kept.uri_mut() = path;
    }
    if let Some(encoding) = head.headers.get_all(ENCODING).iter().find(|encoding| *encoding != "identity") {
        let encoding = if encoding == "gzip" { "gzip" } else { "unknown" };
        kept.headers_mut().insert(ENCODING, HeaderValue::from_static(encoding));
    }
    if let Some(timeout) = timeout_of(&head.headers) {
        kept.extensions_mut().insert(Deadline(Instant::now() + timeout));
    }
    kept
}

/// What the client gave the call, as gRPC over HTTP/2 writes it: up to 8 digits and a unit.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    const DIGITS_MAX: usize = 8;
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u32 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(60 * 60) * value,
        "M" => Duration::from_secs(60) * value,
        "S" => Duration::from_secs(1) * value,
        "m" => Duration::from_millis(1) * value,
        "u" => Duration::from_micros(1) * value,
        "n" => Duration::from_nanos(1) * value,
        _ => return None,
    })
}

/// The body of a call that is no upload. It ends in an error when nothing of it comes for too long.
struct Question {
    client: Body,
    stall_max: Duration,
    /// Since when something is waited for.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Question {
    fn new(client: Body, stall_max: Duration) -> Self {
        Self { client, stall_max, patience: None }
    }
}

impl http_body::Body for Question {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.client).poll_frame(context) {
            // A frame of nothing is no progress.
            let is_empty = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
            if !frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(is_empty)) {
                self.patience = None;
            }
            return Poll::Ready(frame);
        }
        let stall_max = self.stall_max;
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(stall_max)));
        ready!(patience.as_mut().poll(context));
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
    /// What was made and is not handed on yet.
    rest: Bytes,
    /// The room of the last message. Its encoder keeps the buffer, so it is held until there is another.
    message: Option<Arc<Reservation>>,
    deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Answer {
    fn new(service: Body, call: Arc<Call>, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { service, call, rest: Bytes::new(), message: None, deadline, ended: false }
    }

    /// The next piece, or how the answer ends.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            ready!(self.call.poll_room(context));
            if !self.rest.is_empty() {
                let piece = self.rest.split_to(self.rest.len().min(ANSWER_PIECE_BYTES));
                self.call.hand_on(piece.len());
                let piece = Piece { bytes: piece, call: Arc::clone(&self.call), _message: self.message.clone() };
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))));
            }
            let Some(frame) = ready!(Pin::new(&mut self.service).poll_frame(context)).transpose()? else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => {
                    // An encoder's buffer doubles as it grows.
                    let room = self.call.reserve(2 * data.len() + ANSWER_FRAME_BYTES);
                    match room {
                        Ok(room) => self.message = Some(Arc::new(room)),
                        Err(exhausted) => return Poll::Ready(Some(Ok(self.end(&exhausted.into())))),
                    }
                    self.rest = data;
                }
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
    }

    /// Ends the answer with this status; what is left of it is never made.
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

/// Some of an answer. The connection drops it when it has written it, or is closed.
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
        self.call.taken(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn timeout(text: &'static str) -> Option<Duration> {
        timeout_of(&[(HeaderName::from_static(TIMEOUT), HeaderValue::from_static(text))].into_iter().collect())
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("3M"), Some(Duration::from_secs(180)));
        assert_eq!(timeout("4S"), Some(Duration::from_secs(4)));
        assert_eq!(timeout("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!((timeout("6u"), timeout("7n")), (Some(Duration::from_micros(6)), Some(Duration::from_nanos(7))));
        for none in ["", "S", "5", "123456789S", "1 S", "-1S", "+1S", "1s", "1.5S"] {
            assert_eq!(timeout(none), None, "{none:?}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }

    #[test]
    fn no_more_is_kept_of_a_head_than_is_used() {
        let long = "x".repeat(15_000);
        let request = Request::post(format!("http://{long}/Table/Upload?{long}"))
            .header("authorization", &long)
            .header(ENCODING, "identity")
            .header(ENCODING, &long)
            .header(TIMEOUT, "1S")
            .extension(7);
        let kept = without_unused_headers(request.body(()).expect("a request"));
        assert_eq!(kept.uri(), "/Table/Upload");
        assert_eq!(kept.headers().len(), 1);
        assert_eq!(kept.headers()[ENCODING], "unknown");
        assert_eq!(kept.extensions().get(), Some(&7));
        let left = Deadline::of(kept.extensions()).expect("a deadline") - Instant::now();
        assert!(left <= Duration::from_secs(1), "{left:?}");
        let elsewhere = Request::post(format!("/{long}")).body(()).expect("a request");
        assert_eq!(without_unused_headers(elsewhere).uri(), "/");
    }
}
