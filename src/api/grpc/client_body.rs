//! The body of a request as the client sends it: checked as it passes, or read for the content of an upload.
//!
//! Invariant: a call's content ends without an error only if the client ended it. An upload that was interrupted is
//! never mistaken for a shorter one.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use crossbeam_utils::atomic::AtomicCell;
use futures_util::Stream;
use http::Extensions;
use http_body::{Body as _, Frame};
use tokio::sync::oneshot;
use tonic::{Code, Status, body::Body};

use super::{
    content_parser::ContentParser,
    convert::to_stream_options,
    framing::{BodyError, Framing, Mode},
};
use crate::{
    engine::{DialectFrom, StreamOptions},
    error::Error,
    limits::REQUEST_BYTES_MAX,
};

/// The length limit of a message that is decoded whole. The health and reflection services need it too: tonic alone
/// would let each of their messages announce 4 MiB.
#[allow(clippy::cast_possible_truncation, reason = "it is a small constant")]
const MESSAGE_BYTES_MAX: u32 = REQUEST_BYTES_MAX as u32;

/// The content of an Upload call, for its handler to take out of the request's extensions. It can be cloned because
/// extensions have to be, but it can be taken only once.
#[derive(Clone)]
pub(crate) struct Content(Arc<AtomicCell<Option<Box<ContentStream>>>>);

impl Content {
    pub(super) fn of(mode: Mode, client: Body) -> Content {
        let parser = ContentParser::new(mode);
        let stream = ContentStream { client, parser, input: Bytes::new(), options: None, ended: false };
        Content(Arc::new(AtomicCell::new(Some(Box::new(stream)))))
    }

    /// The content of this call. Errors: the request did not pass through `UploadService`, or its content was taken
    /// before.
    pub(crate) fn take(extensions: &Extensions) -> Result<ContentStream, Status> {
        let content = extensions.get::<Content>().and_then(|content| content.0.take());
        content.map(|stream| *stream).ok_or_else(|| Status::internal("the upload has no content"))
    }
}

/// Field 1 of all messages of a call, in pieces as they arrive. It holds one frame of the client's body, and returns
/// slices of it without a copy.
#[derive(Debug)]
pub(crate) struct ContentStream {
    client: Body,
    parser: ContentParser,
    /// Bytes from the client that are not parsed yet.
    input: Bytes,
    /// Gets the options, if the client sends any.
    options: Option<oneshot::Sender<Result<StreamOptions, Error>>>,
    ended: bool,
}

impl ContentStream {
    /// The dialect and the key of the content, which are known when the first piece is.
    pub(super) fn dialect(&mut self) -> DialectFrom {
        let (tx, rx) = oneshot::channel();
        self.options = Some(tx);
        DialectFrom::Stream(rx)
    }

    /// The next piece from the client, None after its last one.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            let parsed = self.parser.next(&mut self.input);
            if let Some(options) = self.parser.take_options()
                && let Some(tx) = self.options.take()
            {
                // The receiver is gone only if the upload has ended.
                let _receiver_gone = tx.send(to_stream_options(&options));
            }
            match parsed {
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
pub(super) struct CheckedBody {
    client: Body,
    framing: Framing,
    ended: bool,
}

impl CheckedBody {
    pub(super) fn new(mode: Mode, client: Body) -> CheckedBody {
        CheckedBody { client, framing: Framing::with_message_bytes_max(mode, MESSAGE_BYTES_MAX), ended: false }
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

/// The next frame from the client, or None after a body that the client itself ended. hyper also ends a body without
/// an error when the client resets the call with NO_ERROR, but then `is_end_stream` is false.
fn poll_client(body: &mut Body, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
    Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(context)) {
        Some(Ok(frame)) => Some(Ok(frame)),
        // `budget_layer` gave up waiting for it.
        Some(Err(status)) if status.code() == Code::DeadlineExceeded => Some(Err(status)),
        Some(Err(status)) => Some(Err(interrupted(status.message()))),
        None if body.is_end_stream() => None,
        None => Some(Err(interrupted("reset without an error"))),
    })
}

/// The status of a call that its client has reset, or whose client is gone. ABORTED, because tonic's `Streaming`
/// treats a request body that fails with CANCELLED as one that has ended well. Only our log shows this status: the
/// client no longer reads it.
fn interrupted(cause: &str) -> Status {
    Status::aborted(format!("the client broke the call off: {cause}"))
}

/// gRPC's status for a malformed body.
pub(super) fn status_of(error: &BodyError) -> Status {
    let code = match error {
        BodyError::Compressed => Code::Unimplemented,
        BodyError::MessageTooLong { .. } => Code::ResourceExhausted,
        BodyError::Flag(_)
        | BodyError::EndsInPrefix
        | BodyError::EndsInMessage { .. }
        | BodyError::NoMessage
        | BodyError::SecondMessage
        | BodyError::VarintTooLong
        | BodyError::FieldNumber(_)
        | BodyError::WireType { .. }
        | BodyError::ContentWireType { .. }
        | BodyError::SecondContent
        | BodyError::ContentTooLong { .. }
        | BodyError::LateOptions
        | BodyError::OptionsTooLong { .. }
        | BodyError::FieldTooLong { .. }
        | BodyError::EndsInField
        | BodyError::EndsInGroup { .. }
        | BodyError::GroupMismatch { .. }
        | BodyError::GroupsTooDeep => Code::InvalidArgument,
    };
    Status::new(code, error.to_string())
}
