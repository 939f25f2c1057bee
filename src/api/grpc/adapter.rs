//! What stands between HTTP/2 and the generated servers: uploads go past them, broken messages become errors.
//!
//! tonic holds a whole message in memory, at the length that the client announces, and copies all that comes. So the
//! content of the two Upload calls, field 1 of whatever messages the client sends, travels beside the request, as a
//! [`ContentStream`] in its extensions; tonic gets an empty message. All other bodies pass unchanged, but for a check
//! that gives errors in them the right status: tonic would call them INTERNAL, as if they were ours.
//!
//! Invariant: a call's content ends without an error only if the client ended it so. An upload that was broken off can
//! never be taken for a short one.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use crossbeam_utils::atomic::AtomicCell;
use futures_util::{Stream, future::Either};
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, header::CONTENT_LENGTH};
use http_body::{Body as _, Frame};
use http_body_util::Full;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::frames::{FrameError, FrameParser, Framing, Mode};
use crate::limits::REQUEST_BYTES_MAX;

/// Adapts request bodies for the services below it. It has to see the bodies as they come from the transport.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UploadLayer;

impl<S> Layer<S> for UploadLayer {
    type Service = UploadService<S>;

    fn layer(&self, inner: S) -> UploadService<S> {
        UploadService { inner }
    }
}

/// A service behind [`UploadLayer`].
#[derive(Debug, Clone)]
pub(crate) struct UploadService<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for UploadService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if asks_for_decompression(request.headers()) {
            return Either::Right(ready(Ok(refuse_compression())));
        }
        let (mut head, body) = request.into_parts();
        // It tells of the body that came, and nothing here or below goes by it.
        head.headers.remove(CONTENT_LENGTH);
        let body = match Adaptation::of(head.uri.path()) {
            Adaptation::Content(mode) => {
                head.extensions.insert(Content::of(mode, body));
                Body::new(Full::new(Bytes::from_static(EMPTY_MESSAGE)))
            }
            Adaptation::Check(mode) => Body::new(CheckedBody::new(mode, body)),
        };
        Either::Left(self.inner.call(Request::from_parts(head, body)))
    }
}

fn asks_for_decompression(headers: &HeaderMap) -> bool {
    headers.get_all("grpc-encoding").iter().any(|encoding| encoding != "identity")
}

fn refuse_compression() -> Response<Body> {
    let mut response = status_of(&FrameError::Compressed).into_http();
    // gRPC's compression spec: UNIMPLEMENTED names what would have been accepted.
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    response
}

/// Health and reflection decode whole messages too, and tonic would let each announce 4 MiB.
#[allow(clippy::cast_possible_truncation, reason = "it is a small constant")]
const QUESTION_BYTES_MAX: u32 = REQUEST_BYTES_MAX as u32;

/// What the generated servers get for an upload whose content goes past them.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// What is done to the body of a call.
#[derive(Debug, PartialEq, Eq)]
enum Adaptation {
    Content(Mode),
    Check(Mode),
}

impl Adaptation {
    /// Every call takes one message but for those named here. A test compares this with the proto files.
    fn of(path: &str) -> Adaptation {
        match path {
            "/Table/Upload" => Adaptation::Content(Mode::Unary),
            "/tally.v1.Tally/Upload" => Adaptation::Content(Mode::Stream),
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Adaptation::Check(Mode::Stream),
            _ => Adaptation::Check(Mode::Unary),
        }
    }
}

/// Whether a call's content goes past tonic.
pub(super) fn is_upload(path: &str) -> bool {
    matches!(Adaptation::of(path), Adaptation::Content(_))
}

/// gRPC's code for a malformed body.
fn status_of(error: &FrameError) -> Status {
    let code = match error {
        FrameError::Compressed => Code::Unimplemented,
        FrameError::MessageTooLong { .. } => Code::ResourceExhausted,
        FrameError::Flag(_)
        | FrameError::EndsInPrefix
        | FrameError::EndsInMessage { .. }
        | FrameError::NoMessage
        | FrameError::SecondMessage
        | FrameError::VarintTooLong
        | FrameError::FieldNumber(_)
        | FrameError::WireType { .. }
        | FrameError::ContentWireType { .. }
        | FrameError::SecondContent
        | FrameError::ContentTooLong { .. }
        | FrameError::FieldTooLong { .. }
        | FrameError::EndsInField
        | FrameError::EndsInGroup { .. }
        | FrameError::GroupMismatch { .. }
        | FrameError::GroupsTooDeep => Code::InvalidArgument,
    };
    Status::new(code, error.to_string())
}

/// A client that resets its call or is gone. ABORTED, for nobody is left to read the status but our log, and because
/// tonic's `Streaming` takes a request body that fails with CANCELLED for one that has ended well.
fn broken_off(cause: &str) -> Status {
    Status::aborted(format!("the client broke the call off: {cause}"))
}

/// The next frame from the client. None is the end that the client meant: hyper ends a body without an error also
/// when the client resets the call with NO_ERROR, but then the body does not call itself ended.
fn poll_client(body: &mut Body, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
    Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(context)) {
        Some(Ok(frame)) => Some(Ok(frame)),
        // It stopped coming, as `hold` says of it.
        Some(Err(status)) if status.code() == Code::DeadlineExceeded => Some(Err(status)),
        Some(Err(status)) => Some(Err(broken_off(status.message()))),
        None if body.is_end_stream() => None,
        None => Some(Err(broken_off("reset without an error"))),
    })
}

/// What an Upload call brings, for its handler to take out of the request's extensions: they must be cloneable.
#[derive(Clone)]
pub(crate) struct Content(Arc<AtomicCell<Option<Box<ContentStream>>>>);

impl Content {
    fn of(mode: Mode, client: Body) -> Content {
        let parser = FrameParser::new(mode);
        let stream = ContentStream { client, parser, input: Bytes::new(), ended: false };
        Content(Arc::new(AtomicCell::new(Some(Box::new(stream)))))
    }

    /// The content of this call. Errors: it did not come through [`UploadLayer`], or was taken.
    pub(crate) fn take(extensions: &Extensions) -> Result<ContentStream, Status> {
        let content = extensions.get::<Content>().and_then(|content| content.0.take());
        content.map(|stream| *stream).ok_or_else(|| Status::internal("the upload has no content"))
    }
}

/// Field 1 of all messages of a call, in pieces, as it comes. In memory is one frame of the client's body, which it
/// passes on without copying it.
#[derive(Debug)]
pub(crate) struct ContentStream {
    client: Body,
    parser: FrameParser,
    /// What came from the client and is not parsed yet.
    input: Bytes,
    ended: bool,
}

impl ContentStream {
    /// The next piece from the client, None after its last one.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            match self.parser.next(&mut self.input) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(status_of(&error)))),
            }
            let Some(frame) = ready!(poll_client(&mut self.client, context)) else {
                return Poll::Ready(self.parser.finish().err().map(|error| Err(status_of(&error))));
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => self.input = data,
                Ok(Err(_trailers)) => {
                    let status = Status::invalid_argument("the request has trailers");
                    return Poll::Ready(Some(Err(status)));
                }
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
    }
}

impl Stream for ContentStream {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.poll_piece(context));
        self.ended = !matches!(piece, Some(Ok(_)));
        Poll::Ready(piece)
    }
}

/// A body that passes unchanged, and ends in an error where its framing is wrong.
#[derive(Debug)]
struct CheckedBody {
    client: Body,
    framing: Framing,
    ended: bool,
}

impl CheckedBody {
    fn new(mode: Mode, client: Body) -> CheckedBody {
        CheckedBody { client, framing: Framing::with_message_bytes_max(mode, QUESTION_BYTES_MAX), ended: false }
    }

    fn poll_checked(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(poll_client(&mut self.client, context)).transpose()?;
        let check = match frame.as_ref().map(Frame::data_ref) {
            Some(Some(data)) => self.framing.check(data),
            Some(None) | None => self.framing.finish(),
        };
        Poll::Ready(check.map_err(|error| status_of(&error)).map(|()| frame).transpose())
    }
}

impl http_body::Body for CheckedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_checked(context));
        self.ended = !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::{collections::VecDeque, convert::Infallible, future::Future};

    use bytes::BufMut as _;
    use futures_util::StreamExt as _;
    use http_body_util::BodyExt as _;
    use prost::{Message, encoding::encode_varint};
    use tonic::{Streaming, codec::Codec as _};

    use crate::{
        limits::FRAME_BYTES_MAX,
        proto::{codec::Codec, message::CONTENT_KEY},
    };

    use super::*;

    const TABLE_UPLOAD: &str = "/Table/Upload";
    const TALLY_UPLOAD: &str = "/tally.v1.Tally/Upload";
    const COLUMN_SUM: &str = "/Table/ColumnSum";

    /// Like UploadReq and UploadChunk.
    #[derive(Clone, PartialEq, Message)]
    struct Upload {
        #[prost(bytes = "bytes", tag = "1")]
        content: Bytes,
    }

    /// Like ColSumReq.
    #[derive(Clone, PartialEq, Message)]
    struct Question {
        #[prost(string, tag = "1")]
        column: String,
    }

    /// How a client's body ends after its frames.
    #[derive(Clone, Copy, PartialEq)]
    enum End {
        Stream,
        /// RST_STREAM with NO_ERROR, as hyper shows it.
        QuietReset,
        /// What must not be looked at.
        Panic,
    }

    /// A client's body, which keeps its reader waiting before each frame.
    struct Client {
        frames: VecDeque<Result<Frame<Bytes>, Status>>,
        end: End,
        ready: bool,
    }

    impl http_body::Body for Client {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.ready = !self.ready;
            if self.ready {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let frame = self.frames.pop_front();
            assert!(frame.is_some() || self.end != End::Panic, "the body was read");
            Poll::Ready(frame)
        }

        fn is_end_stream(&self) -> bool {
            self.frames.is_empty() && self.end == End::Stream
        }
    }

    fn client(frames: impl IntoIterator<Item = Result<Frame<Bytes>, Status>>, end: End) -> Body {
        Body::new(Client { frames: frames.into_iter().collect(), end, ready: false })
    }

    /// A body that arrives in frames of `frame_bytes`, an empty one before each.
    fn body(bytes: &[u8], frame_bytes: usize) -> Body {
        let frames = bytes.chunks(frame_bytes).flat_map(|chunk| [&[], chunk]);
        client(frames.map(|data| Ok(Frame::data(Bytes::copy_from_slice(data)))), End::Stream)
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        let mut message = vec![0];
        message.put_u32(u32::try_from(payload.len()).unwrap());
        message.extend_from_slice(payload);
        message
    }

    fn upload(content: &[u8]) -> Vec<u8> {
        message(&Upload { content: Bytes::copy_from_slice(content) }.encode_to_vec())
    }

    /// What a handler below the layer saw, as an extension of its response.
    #[derive(Clone, Debug, PartialEq)]
    struct Seen {
        /// What came beside the request, if anything could.
        content: Option<Vec<u8>>,
        messages: Vec<Question>,
        error: Option<(Code, String)>,
        content_length: Option<HeaderValue>,
    }

    /// A handler that reads its messages the way the generated servers do, and then the content.
    struct Handler;

    impl Service<Request<Body>> for Handler {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let content_length = request.headers().get(CONTENT_LENGTH).cloned();
            let content = Content::take(request.extensions()).ok();
            let decoder = Codec::<Question, Question>::default().decoder();
            let mut stream = Streaming::new_request(decoder, request.into_body(), None, Some(REQUEST_BYTES_MAX));
            Box::pin(async move {
                let mut seen = Seen { content: None, messages: Vec::new(), error: None, content_length };
                let mut ended = Ok(());
                while ended.is_ok() {
                    match stream.message().await {
                        Ok(Some(message)) => seen.messages.push(message),
                        Ok(None) => break,
                        Err(status) => ended = Err(status),
                    }
                }
                if let Some(mut pieces) = content {
                    let content = seen.content.insert(Vec::new());
                    while let Some(piece) = pieces.next().await {
                        match piece {
                            Ok(piece) => content.extend_from_slice(&piece),
                            Err(status) => ended = Err(status),
                        }
                    }
                }
                seen.error = ended.err().map(|status| (status.code(), status.message().to_owned()));
                let mut response = Response::new(Body::empty());
                response.extensions_mut().insert(seen);
                Ok(response)
            })
        }
    }

    async fn respond(request: Request<Body>) -> Response<Body> {
        UploadLayer.layer(Handler).call(request).await.unwrap()
    }

    async fn see(path: &str, body: Body) -> Seen {
        let request = Request::post(path).header(CONTENT_LENGTH, "7").body(body).unwrap();
        respond(request).await.extensions_mut().remove().unwrap()
    }

    /// The bytes that an upload's handler gets, and the error after them.
    async fn receive(path: &str, body: Body) -> (Vec<u8>, Option<(Code, String)>) {
        let seen = see(path, body).await;
        assert_eq!(seen.messages, [Question::default()], "the generated server gets one empty message");
        (seen.content.unwrap(), seen.error)
    }

    fn content(mode: Mode, client: Body) -> ContentStream {
        let mut extensions = Extensions::new();
        extensions.insert(Content::of(mode, client));
        Content::take(&extensions).unwrap()
    }

    fn error(code: Code, message: &str) -> Option<(Code, String)> {
        Some((code, message.to_owned()))
    }

    #[tokio::test]
    async fn an_upload_arrives_whole_in_frames_of_any_size() {
        let mut random = fastrand::Rng::with_seed(1);
        let content: Vec<u8> = (0..300_000).map(|_| random.u8(..)).collect();
        let (half, rest) = content.split_at(100_000);
        for frame_bytes in [7, 16 * 1024, FRAME_BYTES_MAX, usize::MAX] {
            assert_eq!(receive(TABLE_UPLOAD, body(&upload(&content), frame_bytes)).await, (content.clone(), None));
            let stream = [upload(half), upload(b""), upload(rest)].concat();
            assert_eq!(receive(TALLY_UPLOAD, body(&stream, frame_bytes)).await, (content.clone(), None));
        }
        let (short, _) = content.split_at(300);
        assert_eq!(receive(TABLE_UPLOAD, body(&upload(short), 1)).await, (short.to_vec(), None));
    }

    #[tokio::test]
    async fn an_upload_of_nothing_is_an_empty_stream() {
        let nothing = (vec![], None);
        for bytes in [message(b""), message(b"\x0a\x00"), message(b"\x10\x07")] {
            assert_eq!(receive(TABLE_UPLOAD, body(&bytes, 1)).await, nothing);
            assert_eq!(receive(TALLY_UPLOAD, body(&bytes, 1)).await, nothing);
        }
        assert_eq!(receive(TALLY_UPLOAD, body(b"", 1)).await, nothing);
        assert_eq!(receive(TALLY_UPLOAD, Body::empty()).await, nothing);
    }

    #[tokio::test]
    async fn content_shares_the_memory_of_the_frames() {
        let frame = Bytes::from(upload(&vec![b'7'; 10 * FRAME_BYTES_MAX]));
        let memory = frame.as_ptr_range();
        let mut content = content(Mode::Unary, client([Ok(Frame::data(frame.clone()))], End::Stream));
        let piece = content.next().await.unwrap().unwrap();
        assert!(memory.contains(&piece.as_ptr()), "it was copied");
        assert_eq!(piece.len(), 10 * FRAME_BYTES_MAX);
        assert!(content.next().await.is_none());
    }

    #[test]
    fn content_is_taken_once() {
        let mut extensions = Extensions::new();
        let nothing = |extensions: &Extensions| Content::take(extensions).unwrap_err().code() == Code::Internal;
        assert!(nothing(&extensions), "a request that did not come through the layer");
        extensions.insert(Content::of(Mode::Unary, Body::empty()));
        let again = extensions.clone();
        assert!(Content::take(&extensions).is_ok());
        assert!(nothing(&extensions) && nothing(&again));
    }

    /// The largest unary upload, from one block of memory that is sent again and again.
    #[tokio::test]
    async fn two_gib_less_one_fit_in_one_message() {
        let block = Bytes::from(vec![0; 1 << 20]);
        for (length, expected) in [
            ((1_u64 << 31) - 1, Ok((1_u64 << 31) - 1)),
            (1 << 31, Err("field 1 is 2147483648 bytes long, at most 2147483647 fit in one message")),
        ] {
            let mut head = vec![CONTENT_KEY];
            encode_varint(length, &mut head);
            let message_bytes = head.len() as u64 + length;
            head.splice(0..0, [&[0][..], &message_bytes.to_be_bytes()[4..]].concat());
            let mut frames = vec![Ok(Frame::data(Bytes::from(head)))];
            let mut left = length;
            while left > 0 {
                let data = block.slice(..usize::try_from(left).unwrap().min(block.len()));
                left -= data.len() as u64;
                frames.push(Ok(Frame::data(data)));
            }
            let mut content = content(Mode::Unary, client(frames, End::Stream));
            let mut received = Ok(0);
            while let Some(piece) = content.next().await {
                match piece {
                    Ok(piece) => received = received.map(|bytes| bytes + piece.len() as u64),
                    Err(status) => received = Err(status.message().to_owned()),
                }
            }
            assert_eq!(received, expected.map_err(str::to_owned));
        }
    }

    #[tokio::test]
    async fn malformed_uploads_end_in_their_error() {
        use Code::{InvalidArgument, Unimplemented};
        let beginning = upload(b"a,b\n1,2\n");
        let cut = beginning.split_last().unwrap().1.to_vec();
        for (bytes, code, text) in [
            (b"\x02\0\0\0\0".to_vec(), InvalidArgument, "a message begins with flag byte 2, it must be 0"),
            (b"\x01\0\0\0\x02\x0a\0".to_vec(), Unimplemented, "compressed messages are not supported"),
            (cut, InvalidArgument, "the body ends 1 bytes before its message does"),
            (message(b"\x0a\x00\x0a\x00"), InvalidArgument, "field 1 occurs twice in one message"),
            (message(b"\x0a\x02a"), InvalidArgument, "field 1 is 2 bytes long, its message has only 1 more"),
            (message(b"\xff"), InvalidArgument, "the message ends inside a field"),
        ] {
            for frame_bytes in [1, usize::MAX] {
                for path in [TABLE_UPLOAD, TALLY_UPLOAD] {
                    let (_content, seen) = receive(path, body(&bytes, frame_bytes)).await;
                    assert_eq!(seen, error(code, text), "{path} {bytes:?}");
                }
            }
        }
        let twice = [upload(b"a"), upload(b"b")].concat();
        let text = "the body goes on after its one message";
        assert_eq!(receive(TABLE_UPLOAD, body(&twice, 5)).await, (b"a".to_vec(), error(InvalidArgument, text)));
        for nothing in [body(b"", 1), Body::empty()] {
            let text = "the body holds no message";
            assert_eq!(receive(TABLE_UPLOAD, nothing).await, (vec![], error(InvalidArgument, text)));
        }
    }

    /// tonic would have shown the handler a stream that ended well, and half a file would have become a part.
    #[tokio::test]
    async fn a_cancelled_upload_does_not_end_like_a_finished_one() {
        let sent = || Ok(Frame::data(Bytes::from(upload(b"a\n1\n"))));
        for path in [TABLE_UPLOAD, TALLY_UPLOAD] {
            let cancelled = client([sent(), Err(Status::cancelled("stream reset"))], End::Stream);
            let text = "the client broke the call off: stream reset";
            assert_eq!(receive(path, cancelled).await, (b"a\n1\n".to_vec(), error(Code::Aborted, text)));

            let gone = client([sent(), Err(Status::unknown("broken pipe"))], End::Stream);
            let text = "the client broke the call off: broken pipe";
            assert_eq!(receive(path, gone).await, (b"a\n1\n".to_vec(), error(Code::Aborted, text)));

            let reset = client([sent()], End::QuietReset);
            let text = "the client broke the call off: reset without an error";
            assert_eq!(receive(path, reset).await, (b"a\n1\n".to_vec(), error(Code::Aborted, text)));

            let trailers = client([sent(), Ok(Frame::trailers(HeaderMap::new()))], End::Stream);
            let text = "the request has trailers";
            assert_eq!(receive(path, trailers).await, (b"a\n1\n".to_vec(), error(Code::InvalidArgument, text)));
        }
    }

    #[tokio::test]
    async fn a_body_that_ended_stays_ended() {
        let mut ended = content(Mode::Stream, body(&upload(b"a"), 3));
        while ended.next().await.is_some() {}
        assert!(ended.next().await.is_none());
        let mut failed = content(Mode::Unary, body(b"\x02\x02", 1));
        assert!(failed.next().await.unwrap().is_err());
        assert!(failed.next().await.is_none());
        let mut refused = CheckedBody::new(Mode::Unary, body(b"\x02\x02", usize::MAX));
        assert!(refused.frame().await.unwrap().unwrap().into_data().unwrap().is_empty());
        assert!(refused.frame().await.unwrap().is_err());
        assert!(refused.frame().await.is_none());
    }

    #[tokio::test]
    async fn other_encodings_are_refused_unread() {
        for path in [TABLE_UPLOAD, TALLY_UPLOAD, COLUMN_SUM] {
            let request = Request::post(path).header("grpc-encoding", "gzip");
            let response = respond(request.body(client([], End::Panic)).unwrap()).await;
            assert_eq!(response.headers()["grpc-status"], "12");
            assert_eq!(response.headers()["grpc-message"], "compressed%20messages%20are%20not%20supported");
            assert_eq!(response.headers()["grpc-accept-encoding"], "identity");

            let request = Request::post(path).header("grpc-encoding", "identity");
            let response = respond(request.body(body(&upload(b"a"), 9)).unwrap()).await;
            assert_eq!(response.extensions().get::<Seen>().unwrap().messages.len(), 1);
        }
    }

    #[tokio::test]
    async fn a_content_length_goes_no_further() {
        for path in [TABLE_UPLOAD, TALLY_UPLOAD, COLUMN_SUM] {
            let seen = see(path, body(&upload(b"a,b\n"), 2)).await;
            assert_eq!((seen.content_length, seen.error), (None, None));
        }
    }

    #[tokio::test]
    async fn other_calls_pass_unchanged_unless_malformed() {
        use Code::{Aborted, InvalidArgument, Unimplemented};
        let question = Question { column: "qty".into() };
        let asked = message(&question.encode_to_vec());
        let seen = see(COLUMN_SUM, body(&asked, 3)).await;
        assert_eq!((seen.messages, seen.error), (vec![question], None));

        let twice = [&asked[..], &asked].concat();
        let (_, cut) = asked.split_last().unwrap();
        for (bytes, code, text) in [
            (&b"\x07"[..], InvalidArgument, "a message begins with flag byte 7, it must be 0"),
            (b"\x01\0\0\0\0", Unimplemented, "compressed messages are not supported"),
            (b"\0\0", InvalidArgument, "the body ends inside the 5 bytes before a message"),
            (cut, InvalidArgument, "the body ends 1 bytes before its message does"),
            (b"", InvalidArgument, "the body holds no message"),
            (&twice, InvalidArgument, "the body goes on after its one message"),
        ] {
            for frame_bytes in [1, usize::MAX] {
                let seen = see(COLUMN_SUM, body(bytes, frame_bytes)).await;
                assert_eq!(seen.error, error(code, text), "{bytes:?}");
            }
        }
        let reset = client([Ok(Frame::data(Bytes::from(asked)))], End::QuietReset);
        let text = "the client broke the call off: reset without an error";
        assert_eq!(see(COLUMN_SUM, reset).await.error, error(Aborted, text));
    }

    #[tokio::test]
    async fn garbage_is_the_callers_fault() {
        for garbage in [&b"\x0a\x01\xff"[..], b"\x08\x01", b"\x0a\x05a", b"\xff\xff"] {
            let (code, text) = see(COLUMN_SUM, body(&message(garbage), 9)).await.error.unwrap();
            assert_eq!(code, Code::InvalidArgument, "{garbage:?}: {text}");
        }
    }

    /// As much of google/protobuf/descriptor.proto as says which calls are streams.
    mod descriptor {
        use prost::Message;

        #[derive(Clone, PartialEq, Message)]
        pub(super) struct Files {
            #[prost(message, repeated, tag = "1")]
            pub(super) files: Vec<File>,
        }

        #[derive(Clone, PartialEq, Message)]
        pub(super) struct File {
            #[prost(string, tag = "2")]
            pub(super) package: String,
            #[prost(message, repeated, tag = "6")]
            pub(super) services: Vec<Service>,
        }

        #[derive(Clone, PartialEq, Message)]
        pub(super) struct Service {
            #[prost(string, tag = "1")]
            pub(super) name: String,
            #[prost(message, repeated, tag = "2")]
            pub(super) methods: Vec<Method>,
        }

        #[derive(Clone, PartialEq, Message)]
        pub(super) struct Method {
            #[prost(string, tag = "1")]
            pub(super) name: String,
            #[prost(bool, tag = "5")]
            pub(super) client_streaming: bool,
        }
    }

    #[test]
    fn modes_are_those_of_the_proto_files() {
        let ours =
            descriptor::Files::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))[..]).unwrap();
        let health = descriptor::Files::decode(tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap();
        let reflection = descriptor::Files::decode(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET).unwrap();
        let older = descriptor::Files::decode(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET).unwrap();
        let mut uploads = Vec::new();
        for file in [ours.files, health.files, reflection.files, older.files].concat() {
            for service in file.services {
                for method in service.methods {
                    let package = if file.package.is_empty() { String::new() } else { format!("{}.", file.package) };
                    let path = format!("/{package}{}/{}", service.name, method.name);
                    let mode = if method.client_streaming { Mode::Stream } else { Mode::Unary };
                    match Adaptation::of(&path) {
                        Adaptation::Check(checked) => assert_eq!(checked, mode, "{path}"),
                        Adaptation::Content(parsed) => {
                            assert_eq!(parsed, mode, "{path}");
                            uploads.push(path);
                        }
                    }
                }
            }
        }
        assert_eq!(uploads, [TABLE_UPLOAD, TALLY_UPLOAD]);
    }
}
