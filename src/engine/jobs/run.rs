//! Running jobs.

use super::{
    record::{Record, RecordState, Work},
    record_changes::{change_entry, change_record, is_tried_again, read_record, reason_of},
};
use crate::{
    engine::{
        group_by::{calls::group_sum_file, spec::GroupBy},
        runtime::{context::Context, workers::panic_text},
        state::{
            Lane,
            jobs::{JobId, JobState},
        },
        storage::{draft::Draft, names::JobFile},
        survey,
    },
    error::{Error, jobs::JobError},
    limits::JOB_STARTS_MAX,
    model::checksum::to_hex,
};

use chrono::Utc;
use futures_util::FutureExt;
use std::{io::Write, panic::AssertUnwindSafe, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Starts as many waiting jobs as may run.
pub(crate) fn dispatch(context: &Arc<Context>) {
    while let Some((id, cancel)) = context.state.with(|state| state.jobs.start_next()) {
        let context = Arc::clone(context);
        tokio::spawn(async move {
            run(&context, id, cancel).await;
            context.state.with(|state| state.jobs.ended(id));
            dispatch(&context);
        });
    }
}

/// Runs one job to its end. If the server shuts down meanwhile, this returns without writing a state, and the job runs
/// again after the next start.
pub(super) async fn run(context: &Arc<Context>, id: JobId, cancel: CancellationToken) {
    if !context.state.with(|state| state.jobs.begin_write(id, JobState::is_undone)) {
        return;
    }
    let mut record = loop {
        match read_record(context, id).await {
            Ok(record) => break record,
            Err(_) if cancel.is_cancelled() => {
                // Its end cannot be recorded while its record cannot be read: the next start runs it again.
                let cancelled = JobState::Failed { reason: JobError::Cancelled.to_string().into() };
                change_entry(context, id, cancelled, Utc::now(), None);
                return;
            }
            Err(error) if is_tried_again(context, id, &error).await => {}
            Err(_) => return,
        }
    };
    let mut result = work(context, &mut record, &cancel).await;
    // From here on the job cannot be cancelled. If it was cancelled before, its result is dropped.
    context.state.with(|state| state.jobs.begin_write(id, JobState::is_undone));
    if cancel.is_cancelled() && result.is_ok() {
        context.workers.discard(std::mem::replace(&mut result, Err(JobError::Cancelled.into())));
    }
    end(context, record, result).await;
}

pub(super) async fn work(
    context: &Arc<Context>,
    record: &mut Record,
    cancel: &CancellationToken,
) -> Result<Draft, Error> {
    if record.starts >= JOB_STARTS_MAX {
        return Err(JobError::GivenUp { starts: record.starts }.into());
    }
    if context.state.with(|state| state.jobs.was_found(record.order)) {
        record.starts += 1;
        change_record(context, record, RecordState::Running, None).await?;
    } else {
        // Its record says that it waits, after which it would run again just the same.
        change_entry(context, record.id, JobState::Running { done: 0, total: 0 }, Utc::now(), None);
    }
    let computed =
        AssertUnwindSafe(compute(context, record.id, record.work.clone(), record.input_check())).catch_unwind();
    tokio::select! {
        () = cancel.cancelled() => Err(JobError::Cancelled.into()),
        computed = computed => computed.unwrap_or_else(|panic| {
            Err(Error::Internal(format!("a job panicked: {}", panic_text(&*panic))))
        }),
    }
}

/// Writes a job's last state. The job has not ended until that is on disk, so failures are retried.
async fn end(context: &Arc<Context>, mut record: Record, result: Result<Draft, Error>) {
    let mut failure = match result {
        Ok(draft) => {
            let done = RecordState::Done { bytes: draft.bytes(), check: Some(to_hex(draft.check())) };
            change_record(context, &mut record, done, Some(draft)).await.err()
        }
        Err(error) => Some(error),
    };
    let Some(reason) = failure.as_ref().map(reason_of) else { return };
    while !matches!(failure, Some(Error::Draining)) {
        let failed = RecordState::Failed { reason: reason.clone() };
        failure = change_record(context, &mut record, failed, None).await.err();
        let Some(error) = &failure else { return };
        if !is_tried_again(context, record.id, error).await {
            return;
        }
    }
}

/// Does a job's work, and returns the result as a draft.
async fn compute(context: &Arc<Context>, id: JobId, work: Work, input_check: Option<u64>) -> Result<Draft, Error> {
    let progress = |done, total| context.state.with(|state| state.jobs.progress(id, done, total));
    let store = Arc::clone(&context.store);
    match work {
        Work::Survey(question) => {
            let answer = survey::answer(context, &question, Lane::Job, progress).await?;
            let write = move || {
                let mut draft = store.draft_with_block_checksums()?;
                let text = serde_json::to_vec(&answer).map_err(|error| Error::Internal(format!("answer: {error}")))?;
                draft.write_all(&text).map_err(Error::io("a job's result"))?;
                Ok(draft)
            };
            context.workers.run(Lane::Job, write).await?
        }
        Work::GroupSum { by, sum, header } => {
            let group = GroupBy::new(by, sum)?.with_trimmed_names();
            let inputs = Arc::clone(&store);
            let open = move || inputs.open_job_file(&id.to_string(), JobFile::Input, input_check);
            let file = context.workers.run(Lane::Job, open).await??;
            let bytes = file.bytes();
            let groups = group_sum_file(context, Lane::Job, file, group, |done| progress(done, bytes)).await?;
            let draft = context.workers.run(Lane::Job, move || store.draft_with_block_checksums()).await??;
            groups.write_csv(&header, draft).await
        }
    }
}
