//! The queue of uploads that wait for their commit. All that wait are committed as one batch, which shares its syncs.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::{
    engine::{
        runtime::workers::Workers,
        state::Lane,
        storage::{Store, commit::PreparedPart},
    },
    error::Error,
    limits::UPLOADS_MAX,
};

/// A staged part that waits for the next commit, and the channel for its outcome.
pub(crate) struct WaitingCommit {
    pub(super) files: PreparedPart,
    pub(super) tx: oneshot::Sender<Result<(), Error>>,
}

/// Commits staged parts in batches: those that arrive during one commit are the next batch. Ends when all senders are dropped.
pub(crate) async fn commit_batches(workers: Workers, store: Arc<Store>, mut queue: mpsc::Receiver<WaitingCommit>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, UPLOADS_MAX).await > 0 {
        let (files, replies): (Vec<_>, Vec<_>) = batch.drain(..).map(|waiting| (waiting.files, waiting.tx)).unzip();
        let store = Arc::clone(&store);
        let committed = workers.run(Lane::Upload, move || store.commit(files)).await.flatten();
        for tx in replies {
            let outcome = committed.as_ref().copied().map_err(Error::again);
            // The receiver is gone only when the server shuts down.
            let _receiver_gone = tx.send(outcome);
        }
    }
}
