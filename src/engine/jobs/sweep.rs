//! Removing old jobs, results that were fetched, and the oldest results if they take too much space.

use crate::{
    engine::{
        runtime::context::Context,
        state::{
            Lane,
            jobs::{Job, JobId},
        },
        storage::{names::JobFile, unremoved::Unremoved},
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
    remove(context, jobs, results).await?;
    remove_again(context).await
}

/// What is done with files that could not be removed.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    Now,
    /// The job may still write such a file.
    Later,
    /// It is the file of a job that has ended since, and is needed.
    Never,
}

/// Tries again to remove files that could not be removed, of jobs and of parts.
async fn remove_again(context: &Arc<Context>) -> Result<(), Error> {
    let mut unremoved = context.store.take_unremoved();
    if unremoved.is_empty() {
        return Ok(());
    }
    tracing::info!(removals = unremoved.len(), "removals of files that failed are tried again");
    unremoved.retain(|&what| match again(what, |id| context.state.with(|state| state.jobs.get(id))) {
        Again::Now => true,
        Again::Later => {
            context.store.remove_later(what);
            false
        }
        Again::Never => false,
    });
    let store = Arc::clone(&context.store);
    context.workers.run(Lane::Job, move || unremoved.into_iter().for_each(|what| store.remove_again(what))).await
}

/// `job` is the job of an id that is in the table. A job that is not, or no more, does not come again.
fn again(what: Unremoved, job: impl Fn(JobId) -> Option<Job>) -> Again {
    match what {
        Unremoved::Job(id) if job(id).is_some() => Again::Never,
        Unremoved::JobFile(id, kind) => match job(id) {
            Some(job) if job.state.is_undone() => Again::Later,
            Some(job) if kind == JobFile::Result && job.has_result => Again::Never,
            _ => Again::Now,
        },
        _ => Again::Now,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::state::jobs::JobState, model::part::PartId};

    #[test]
    fn what_a_job_may_still_need_is_not_removed() {
        let id: JobId = "job_id_7".parse().expect("an id");
        let job = |state, has_result| Some(Job { id, state, has_result });
        let running = || job(JobState::Running { done: 0, total: 1 }, false);
        let failed = || job(JobState::Failed { reason: "it".into() }, false);
        for (what, job, expected) in [
            (Unremoved::JobFile(id, JobFile::Result), running(), Again::Later),
            (Unremoved::JobFile(id, JobFile::Result), job(JobState::Queued, false), Again::Later),
            (Unremoved::JobFile(id, JobFile::Input), running(), Again::Later),
            // The job was run again, and this is the result of that.
            (Unremoved::JobFile(id, JobFile::Result), job(JobState::Done { bytes: 1 }, true), Again::Never),
            (Unremoved::JobFile(id, JobFile::Result), job(JobState::Downloaded, true), Again::Never),
            (Unremoved::JobFile(id, JobFile::Result), job(JobState::Downloaded, false), Again::Now),
            (Unremoved::JobFile(id, JobFile::Result), failed(), Again::Now),
            (Unremoved::JobFile(id, JobFile::Input), job(JobState::Done { bytes: 1 }, true), Again::Now),
            (Unremoved::JobFile(id, JobFile::Result), None, Again::Now),
            (Unremoved::Job(id), None, Again::Now),
            (Unremoved::Job(id), failed(), Again::Never),
            (Unremoved::Part(PartId::FIRST), None, Again::Now),
        ] {
            assert_eq!(again(what, |asked| job.clone().filter(|job| job.id == asked)), expected, "{what:?}, {job:?}");
        }
    }
}
