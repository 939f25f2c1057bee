//! Syncs of a large upload while it still arrives.

use std::sync::Arc;

use tokio::{
    sync::OwnedSemaphorePermit,
    task::{JoinError, JoinSet},
};

use crate::{
    engine::{runtime::context::Context, state::Lane, storage::draft::SyncHandle},
    error::Error,
    limits::SYNC_STEP_BYTES,
};

/// The CSV file and the Parquet file, as far as they are written.
pub(super) type PartialFiles = [Option<SyncHandle>; 2];

/// Syncs the written part of an upload while more of it arrives, so that the sync at its end is shorter. One sync runs at a
/// time, and it never waits for a permit: syncs of complete files come first.
#[derive(Default)]
pub(super) struct EarlySyncs {
    /// How many bytes had arrived when the last sync began.
    begun_bytes: u64,
    /// The sync that is running, if any. An upload that fails does not wait for it.
    pub(super) running: JoinSet<Result<(), Error>>,
}

impl EarlySyncs {
    /// A permit for the next sync, if it is due now that `bytes` have arrived and a permit is free.
    pub(super) fn permit_if_due(&mut self, context: &Arc<Context>, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let is_due = bytes >= self.begun_bytes + SYNC_STEP_BYTES && self.running.is_empty();
        if !is_due || !context.store.is_synced() {
            return None;
        }
        let permit = Arc::clone(&context.syncs).try_acquire_owned().ok()?;
        self.begun_bytes = bytes;
        Some(permit)
    }

    /// Starts a sync, if there is something to sync.
    pub(super) fn start(&mut self, context: &Arc<Context>, to_sync: Option<(PartialFiles, OwnedSemaphorePermit)>) {
        let Some((files, permit)) = to_sync else { return };
        let (workers, bytes) = (context.workers.clone(), self.begun_bytes);
        let sync = move || {
            let _permit = permit;
            files.into_iter().flatten().try_for_each(SyncHandle::sync)
        };
        self.running.spawn(async move {
            workers.run(Lane::Upload, sync).await.flatten()?;
            tracing::debug!(bytes, "synced the part of an upload that has arrived");
            Ok(())
        });
    }

    /// Removes the running sync if it has ended. Errors: it failed.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        self.running.try_join_next().map_or(Ok(()), |ended| ended.map_err(join_error).flatten())
    }

    /// Waits for the running sync. Errors: it failed.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        self.running.join_next().await.map_or(Ok(()), |ended| ended.map_err(join_error).flatten())
    }
}

fn join_error(error: JoinError) -> Error {
    Error::Internal(error.to_string())
}

/// Runs a task that syncs a large file. At most `SYNCS_MAX` of these run at once, so that the other workers stay free.
pub(super) async fn run_sync<T: Send + 'static>(
    context: &Arc<Context>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let permit = Arc::clone(&context.syncs).acquire_owned().await.ok().ok_or(Error::Draining)?;
    let work = move || {
        let _permit = permit; // kept until the task ends, even if its caller was dropped
        work()
    };
    context.workers.run(Lane::Upload, work).await?
}
