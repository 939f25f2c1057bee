//! Reading and changing a job's record on disk together with its entry in the table of jobs.

use super::record::{Record, RecordState};
use crate::{
    engine::{
        runtime::context::Context,
        state::{
            Lane,
            jobs::{JOB_EVENTS, JobId, JobState},
        },
        storage::{draft::Draft, names::JobFile},
    },
    error::{Error, jobs::JobError},
    limits::JOB_REASON_BYTES_MAX,
};
use chrono::{DateTime, Utc};

use std::sync::Arc;

/// Decides whether to try again after a job's record could not be read or its end could not be written, and waits before it
/// returns `true`. Only the shutdown of the server and a damaged record are final.
pub(super) async fn is_tried_again(context: &Arc<Context>, id: JobId, error: &Error) -> bool {
    match error {
        Error::Draining => return false,
        Error::Job(JobError::Damaged { .. }) => {
            tracing::error!(%id, %error, "a damaged job is moved to quarantine: it is unknown after the next start");
            let store = Arc::clone(&context.store);
            let quarantine = move || store.move_job_to_quarantine(&id.to_string());
            if let Err(error) = context.workers.run(Lane::Job, quarantine).await.flatten() {
                tracing::error!(%id, %error, "a damaged job could not be moved to quarantine");
            }
            change_entry(context, id, JobState::Failed { reason: reason_of(error).into() }, Utc::now(), None);
            return false;
        }
        _ => {}
    }
    tracing::error!(%id, %error, "a job could not be read or written; this is retried");
    tokio::time::sleep(context.limits.jobs.sweep_interval).await;
    true
}

pub(super) async fn read_record(context: &Arc<Context>, id: JobId) -> Result<Record, Error> {
    let store = Arc::clone(&context.store);
    context.workers.run(Lane::Job, move || Record::read(&store, &id.to_string())).await.flatten()
}

/// Publishes a job's result, if it has one, and then its record; then changes its state in the table. The input of a job
/// that has ended is removed.
pub(crate) async fn change_record(
    context: &Arc<Context>,
    record: &mut Record,
    state: RecordState,
    result: Option<Draft>,
) -> Result<(), Error> {
    (record.state, record.since) = (state, Utc::now());
    let (store, record) = (Arc::clone(&context.store), record.clone());
    let publish = move || {
        let name = record.id.to_string();
        if let Some(result) = result {
            store.publish_job_file(result, &name, JobFile::Result)?;
        }
        // If the record cannot be written, the result is removed, because the next record may need its disk space.
        record.publish(&store).inspect_err(|_| match record.state {
            RecordState::Done { .. } | RecordState::Failed { .. } => store.remove_job_file(&name, JobFile::Result),
            RecordState::Queued | RecordState::Running | RecordState::Downloaded => {}
        })?;
        if !matches!(record.state, RecordState::Queued | RecordState::Running) {
            store.remove_job_file(&name, JobFile::Input);
        }
        Ok(record)
    };
    let record = context.workers.run(Lane::Job, publish).await.flatten()?;
    let check = record.state.result_check();
    change_entry(context, record.id, record.state.into(), record.since, check);
    Ok(())
}

/// Changes a job's state in the table, and logs the end of a job and of the last one.
pub(super) fn change_entry(
    context: &Context,
    id: JobId,
    state: JobState,
    since: DateTime<Utc>,
    result_check: Option<u64>,
) {
    let has_result = matches!(state, JobState::Done { .. });
    let (has_ended, is_drained) = context.state.with(|tables| {
        let has_ended = tables.jobs.change(id, state, since, result_check);
        (has_ended, tables.jobs.is_drained())
    });
    if has_ended {
        tracing::debug!(target: JOB_EVENTS, job_id = %id, "{}", if has_result { "the result is ready" } else { "the job failed" });
    }
    if has_ended && is_drained {
        log_drained();
    }
}

/// Accepts no more jobs from now on. Those that were accepted are finished.
pub(crate) fn refuse_jobs(context: &Context) {
    let (is_first, is_drained) = context.state.with(|state| (state.jobs.refuse(), state.jobs.is_drained()));
    if is_first {
        tracing::debug!(target: JOB_EVENTS, "no more jobs are accepted");
    }
    if is_first && is_drained {
        log_drained();
    }
}

fn log_drained() {
    tracing::debug!(target: JOB_EVENTS, "the last job has ended");
}

/// Why a job failed, cut to [`JOB_REASON_BYTES_MAX`].
pub(super) fn reason_of(error: &Error) -> String {
    let mut reason = error.to_string();
    if reason.len() > JOB_REASON_BYTES_MAX {
        let is_boundary = |at: &usize| reason.is_char_boundary(*at);
        let end = (0..=JOB_REASON_BYTES_MAX).rev().find(is_boundary).unwrap_or(0);
        reason.truncate(end);
        reason.push('…');
    }
    reason
}
