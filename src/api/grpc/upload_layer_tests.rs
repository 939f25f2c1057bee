//! Tests of `upload_layer` and `client_body` together: a request goes in, and what its handler gets comes out.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes};
use futures_util::StreamExt as _;
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, header::CONTENT_LENGTH};
use http_body::Frame;
use http_body_util::BodyExt as _;
use prost::{Message, encoding::encode_varint};
use tonic::{Code, Status, Streaming, body::Body, codec::Codec as _};
use tower::Service;

use super::{
    client_body::{CheckedBody, Content, ContentStream},
    framing::Mode,
    upload_layer::{Adaptation, UploadService},
};
use crate::{
    limits::{FRAME_BYTES_MAX, REQUEST_BYTES_MAX},
    proto::{codec::Codec, message::CONTENT_KEY},
};

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

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
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
    UploadService { inner: Handler }.call(request).await.unwrap()
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
    let ours = descriptor::Files::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))[..]).unwrap();
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
