//! Uploads that count for the quota of their caller, whatever their protocol.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::http::Extensions;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::Either};

use crate::{
    access::quotas::{Meter, MeteredUpload},
    error::Error,
};

/// Runs an upload whose request has these extensions. Each piece of its body counts as it arrives, and the part unless `run` fails or
/// `is_added` denies it. If this is dropped before, the part counts: the engine goes on with an upload whose body it has.
///
/// Errors: a quota is used up, or those of `run`.
pub(crate) async fn metered<S, T, F>(
    request: &Extensions,
    adds_part: bool,
    body: S,
    run: impl FnOnce(Either<S, MeteredBody<S>>) -> F,
    is_added: impl FnOnce(&T) -> bool,
) -> Result<T, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    F: Future<Output = Result<T, Error>>,
{
    let Some(meter) = request.get::<Meter>().cloned() else { return run(Either::Left(body)).await };
    let upload = Arc::new(meter.begin_upload(adds_part)?);
    let answer = run(Either::Right(MeteredBody { body, upload: Arc::clone(&upload) })).await;
    if !answer.as_ref().is_ok_and(is_added) {
        upload.added_nothing();
    }
    answer
}

/// A body whose bytes count.
pub(crate) struct MeteredBody<S> {
    body: S,
    /// It runs as long as its body is read, also if the client is gone.
    upload: Arc<MeteredUpload>,
}

impl<S: Stream<Item = Result<Bytes, Error>> + Unpin> Stream for MeteredBody<S> {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = ready!(self.body.poll_next_unpin(context));
        let counted = |piece: Bytes| self.upload.meter().bytes(piece.len()).map(|()| piece);
        Poll::Ready(piece.map(|piece| piece.and_then(counted)))
    }
}
