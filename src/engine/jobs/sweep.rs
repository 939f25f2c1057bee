//! Removing old jobs, results that were fetched, and the oldest results if they take too much space.

use crate::{
    engine::{
        runtime::context::Context,
        state::{Lane, jobs::JobId},
        storage::names::JobFile,
    },
    error::Error,
};
use chrono::Utc;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// Removes jobs and results that are no longer needed: first from the table, then from disk.
pub(crate) async fn sweep(context: &Arc<Context>) -> Result<(), Error> {
    let limits = context.limits.jobs;
    let (jobs, results) = context.state.with(|state| state.jobs.sweep(&limits, Utc::now()));
    remove(context, jobs, results).await
}

/// Removes `jobs` with all their files, and only the results of `results`.
pub(crate) async fn remove(context: &Arc<Context>, jobs: Vec<JobId>, results: Vec<JobId>) -> Result<(), Error> {
    if jobs.is_empty() && results.is_empty() {
        return Ok(());
    }
    let store = Arc::clone(&context.store);
    let remove = move || {
        jobs.iter().for_each(|id| store.remove_job(&id.to_string()));
        results.iter().for_each(|id| store.remove_job_file(&id.to_string(), JobFile::Result));
    };
    context.workers.run(Lane::Job, remove).await
}

/// Sweeps at regular intervals until the engine is dropped.
pub(crate) async fn keep_sweeping(context: Weak<Context>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(context) = context.upgrade() else { return };
        match sweep(&context).await {
            Ok(()) => {}
            Err(Error::Draining) => return,
            Err(error) => tracing::error!(%error, "jobs that ended could not be removed"),
        }
    }
}
