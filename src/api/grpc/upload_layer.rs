//! The layer that takes the content of an upload past tonic, and checks the bodies of all other calls.
//!
//! tonic would hold a whole message in memory, at the length that the client announces, and copy every byte. So the
//! content of the two Upload calls, which is field 1 of their messages, travels beside the request: as a
//! [`Content`] in its extensions, while tonic gets an empty message. All other bodies pass unchanged. They are checked
//! only so that a malformed one gets the right status: tonic would say INTERNAL, as if the server were at fault.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_LENGTH};
use http_body_util::Full;
use tonic::body::Body;
use tower::Service;

use super::{
    client_body::{CheckedBody, Content, status_of},
    framing::{BodyError, Mode},
};

/// Adapts request bodies for the services below it. It needs the bodies as they come from the transport.
#[derive(Debug, Clone)]
pub(crate) struct UploadService<S> {
    pub(crate) inner: S,
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
        // It describes the body that the client sent, not the one that is passed on.
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
    let mut response = status_of(&BodyError::Compressed).into_http();
    // gRPC's compression specification: a server that answers UNIMPLEMENTED names the encodings that it accepts.
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    response
}

/// An empty message: the body that tonic gets for an upload.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// What is done to the body of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Adaptation {
    /// The content of its messages goes past tonic.
    Content(Mode),
    /// It passes unchanged if it is well formed.
    Check(Mode),
}

impl Adaptation {
    /// Every call that is not listed here consists of one message. A test compares this with the proto files.
    pub(super) fn of(path: &str) -> Adaptation {
        match path {
            "/Table/Upload" => Adaptation::Content(Mode::Unary),
            "/tally.v1.Tally/Upload" => Adaptation::Content(Mode::Stream),
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Adaptation::Check(Mode::Stream),
            _ => Adaptation::Check(Mode::Unary),
        }
    }
}

/// Whether the content of a call goes past tonic.
pub(super) fn is_upload(path: &str) -> bool {
    matches!(Adaptation::of(path), Adaptation::Content(_))
}
