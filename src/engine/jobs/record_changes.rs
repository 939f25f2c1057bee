//! Reading and changing the record of a job on disk, and with it what the table says of the job.

use super::record::{Record, RecordState};
use crate::{
    engine::{
        runtime::context::Context,
        state::{
            Lane,
            jobs::{JobId, JobState},
        },
        storage::{draft::Draft, names::JobFile},
    },
    error::{Error, jobs::JobError},
    limits::JOB_REASON_BYTES_MAX,
};
use chrono::Utc;

use std::sync::Arc;

/// After a job could not be read or written: whether that is to be tried again, once some time has passed. What fails
/// now, on a full disk perhaps, does not end a job. Only the end of the server does, and a record that is none.
pub(super) async fn is_tried_again(context: &Arc<Context>, id: JobId, error: &Error) -> bool {
    match error {
        Error::Draining => return false,
        Error::Job(JobError::Damaged { .. }) => {
            tracing::error!(%id, %error, "set aside in quarantine: the next start does not know it any more");
            let store = Arc::clone(&context.store);
            let set_aside = move || store.move_job_to_quarantine(&id.to_string());
            if let Err(error) = context.workers.run(Lane::Job, set_aside).await.flatten() {
                tracing::error!(%id, %error, "and could not be moved there");
            }
            let failed = JobState::Failed { reason: reason_of(error).into() };
            context.state.with(|state| state.jobs.change(id, failed, Utc::now(), None));
            return false;
        }
        _ => {}
    }
    tracing::error!(%id, %error, "a job could not be read or written, and this is tried again");
    tokio::time::sleep(context.limits.jobs.sweep_interval).await;
    true
}

pub(super) async fn read_record(context: &Arc<Context>, id: JobId) -> Result<Record, Error> {
    let store = Arc::clone(&context.store);
    context.workers.run(Lane::Job, move || Record::read(&store, &id.to_string())).await.flatten()
}

/// Publishes a job's record, a result before it, and then tells of its state. What an ended job does not need goes.
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
        // A result that no record tells of would fill the disk on which the next record needs room.
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
    context.state.with(|state| state.jobs.change(record.id, record.state.into(), record.since, check));
    Ok(())
}

/// Why a job failed, no longer than an entry may hold.
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
