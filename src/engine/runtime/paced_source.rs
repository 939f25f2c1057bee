//! Sources that a client reads piece by piece, as fast as it likes, while it holds a permit.
//!
//! A source is kept by a task of its own, because the stream of an answer is not polled while its client does not read: if
//! another transfer needs the permit, the task drops both the source and the permit at once.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::transfers::Permit;
use crate::{engine::state::transfers::Pace, error::Error, limits::TRANSFER_SHORT_GRACE_S};

/// What a client reads piece by piece.
pub(crate) trait Source: Send + 'static {
    /// What is read at once.
    type Piece: Send + 'static;

    /// The next piece.
    fn next(&mut self) -> impl Future<Output = Result<Self::Piece, Error>> + Send;
}

/// A source with its permit. Dropping it drops both.
pub(crate) struct PacedSource<P> {
    /// Each request has the channel for its reply.
    requests: mpsc::Sender<oneshot::Sender<Result<P, Error>>>,
    pace: Arc<Pace>,
}

impl<P: Send + 'static> PacedSource<P> {
    /// Keeps `source` and `permit` until this is dropped, or until the transfer has to end for another.
    pub(crate) fn new<S: Source<Piece = P>>(source: S, permit: Permit) -> Self {
        let (tx, rx) = mpsc::channel(1);
        let pace = permit.pace();
        tokio::spawn(keep(source, permit, rx));
        Self { requests: tx, pace }
    }

    /// The pace of the client, to be updated by the code that moves its bytes.
    pub(crate) fn pace(&self) -> Arc<Pace> {
        Arc::clone(&self.pace)
    }

    /// Reads the next piece.
    ///
    /// Errors: those of the source; the transfer was ended, because another waited and its client was too slow.
    pub(crate) async fn next(&mut self) -> Result<P, Error> {
        let (tx, rx) = oneshot::channel();
        let reply = match self.requests.send(tx).await {
            Ok(()) => rx.await.ok(),
            Err(_ended) => None,
        };
        reply.unwrap_or_else(|| {
            let is_ended = self.pace.end.is_cancelled();
            Err(if is_ended { Error::TooSlow { seconds: TRANSFER_SHORT_GRACE_S } } else { Error::Cancelled })
        })
    }
}

/// The task of a [`PacedSource`]. The source is dropped before the permit.
async fn keep<S: Source>(
    mut source: S,
    permit: Permit,
    mut requests: mpsc::Receiver<oneshot::Sender<Result<S::Piece, Error>>>,
) {
    let pace = permit.pace();
    loop {
        let request = tokio::select! {
            biased;
            () = pace.end.cancelled() => None,
            request = requests.recv() => request,
        };
        let Some(tx) = request else { break };
        if tx.send(source.next().await).is_err() {
            break; // the reader is gone
        }
    }
    drop(source);
    drop(permit);
}
