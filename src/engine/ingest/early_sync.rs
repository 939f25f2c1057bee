//! Syncs of a large upload while it still arrives.

use std::sync::Arc;

use tokio::{
    sync::OwnedSemaphorePermit,
    task::{JoinError, JoinSet},
};

use crate::{
    engine::{runtime::context::Context, state::Lane, storage::draft::SoFar},
    error::Error,
    limits::SYNC_STEP_BYTES,
};

/// Of the CSV file, and of the Parquet file.
pub(super) type SoFars = [Option<SoFar>; 2];

/// Syncs what has come of a file while more of it comes, so that less is left to wait for at its end. One sync at a time,
/// and none that waits for a place: syncs of files that have ended come first.
#[derive(Default)]
pub(super) struct EarlySyncs {
    /// How much had come when the last one began.
    begun_bytes: u64,
    /// The one that runs. A file that is given up does not wait for it.
    pub(super) running: JoinSet<Result<(), Error>>,
}

impl EarlySyncs {
    /// A place for the next one, if it is due now that so much has come.
    pub(super) fn place(&mut self, context: &Arc<Context>, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let is_due = bytes >= self.begun_bytes + SYNC_STEP_BYTES && self.running.is_empty();
        if !is_due || !context.store.is_synced() {
            return None;
        }
        let place = Arc::clone(&context.syncs).try_acquire_owned().ok()?;
        self.begun_bytes = bytes;
        Some(place)
    }

    pub(super) fn start(&mut self, context: &Arc<Context>, so_far: Option<(SoFars, OwnedSemaphorePermit)>) {
        let Some((so_far, place)) = so_far else { return };
        let (workers, bytes) = (context.workers.clone(), self.begun_bytes);
        let sync = move || {
            let _place = place;
            so_far.into_iter().flatten().try_for_each(SoFar::sync)
        };
        self.running.spawn(async move {
            workers.run(Lane::Upload, sync).await.flatten()?;
            tracing::debug!(bytes, "synced what has come so far");
            Ok(())
        });
    }

    /// Errors: something of the file could not be written.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        self.running.try_join_next().map_or(Ok(()), outcome_of)
    }

    /// The same once the one that runs has ended.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        self.running.join_next().await.map_or(Ok(()), outcome_of)
    }
}

fn outcome_of(ended: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}

/// A slice that syncs a large file: only so many run at once, and the other workers go on.
pub(super) async fn sync_slice<T: Send + 'static>(
    context: &Arc<Context>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let place = Arc::clone(&context.syncs).acquire_owned().await.ok().ok_or(Error::Draining)?;
    let work = move || {
        let _place = place; // whoever waits for the slice may go before it ends
        work()
    };
    context.workers.run(Lane::Upload, work).await?
}
