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
    engine::Engine,
    error::Error,
    model::idempotency_key::IdempotencyKey,
};

/// What an upload adds to the table.
pub(crate) enum Adds<'a> {
    /// A part, unless one was uploaded to this engine with its key.
    Part(&'a Engine, Option<IdempotencyKey>),
    Nothing,
}

impl Adds<'_> {
    /// Whether an upload counts as a part. One whose key was used does not, so that a client that did not get the answer can ask
    /// for it again when its quota is used up.
    async fn counts(self, meter: &Meter) -> Result<bool, Error> {
        match self {
            Self::Part(engine, Some(key)) if meter.has_no_part_left() => Ok(!engine.has_upload_with(&key).await?),
            Self::Part(..) => Ok(true),
            Self::Nothing => Ok(false),
        }
    }
}

/// Runs an upload whose request has these extensions. Each piece of its body counts as it arrives, and the part unless `run` fails or
/// `is_added` returns false. If this is dropped before, the part counts: the engine goes on with an upload whose body it has.
///
/// Errors: a quota is used up, or those of `run`.
pub(crate) async fn metered<S, T, F>(
    request: &Extensions,
    adds: Adds<'_>,
    body: S,
    run: impl FnOnce(Either<S, MeteredBody<S>>) -> F,
    is_added: impl FnOnce(&T) -> bool,
) -> Result<T, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    F: Future<Output = Result<T, Error>>,
{
    let Some(meter) = request.get::<Meter>().cloned() else { return run(Either::Left(body)).await };
    let adds_part = adds.counts(&meter).await?;
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
