//! Uploads that wait for their commit: all that wait are committed as one batch.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::{
    engine::{
        runtime::workers::Workers,
        state::Lane,
        storage::{Store, staged::Staged},
    },
    error::Error,
    limits::UPLOADS_MAX,
};

/// A staged part on its way to the next commit, and who is told what came of it.
pub(crate) struct Waiting {
    pub(super) files: Staged,
    pub(super) told: oneshot::Sender<Result<(), Error>>,
}

/// Commits what waits, all that has come while the last commit was under way together, until nobody is left who could
/// bring more.
pub(crate) async fn keep_committing(workers: Workers, store: Arc<Store>, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, UPLOADS_MAX).await > 0 {
        let (files, told): (Vec<_>, Vec<_>) = batch.drain(..).map(|waiting| (waiting.files, waiting.told)).unzip();
        let store = Arc::clone(&store);
        let committed = workers.run(Lane::Upload, move || store.commit(files)).await.flatten();
        for told in told {
            let outcome = committed.as_ref().copied().map_err(Error::again);
            // Who does not wait any more has gone with the server.
            let _nobody_waits = told.send(outcome);
        }
    }
}
