//! Runs jobs: whose turn it is, the work, the end.

use std::{io::Write, panic::AssertUnwindSafe, sync::Arc};

use chrono::Utc;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::record::{Record, RecordState, Work};
use crate::{
    engine::{
        Engine,
        group_by::spec::GroupBy,
        runtime::workers::panic_text,
        state::{
            Lane,
            jobs::{JobId, JobState},
        },
        storage::{draft::Draft, names::JobFile},
        survey,
    },
    error::Error,
    limits::{JOB_REASON_BYTES_MAX, JOB_STARTS_MAX},
    model::checksum::to_hex,
};

/// Starts what has its turn.
pub(crate) fn dispatch(engine: &Engine) {
    while let Some((id, cancel)) = engine.0.state.with(|state| state.jobs.start_next()) {
        let engine = engine.clone();
        tokio::spawn(async move {
            run(&engine, id, cancel).await;
            engine.0.state.with(|state| state.jobs.ended(id));
            dispatch(&engine);
        });
    }
}

/// One job from its turn to its end. It ends without a word when the server does: then the next start runs it.
pub(super) async fn run(engine: &Engine, id: JobId, cancel: CancellationToken) {
    if !engine.0.state.with(|state| state.jobs.claim(id, JobState::is_undone)) {
        return;
    }
    let mut record = loop {
        match read(engine, id).await {
            Ok(record) => break record,
            Err(error) if is_tried_again(engine, id, &error).await => {}
            Err(_) => return,
        }
    };
    let mut result = work(engine, &mut record, &cancel).await;
    // From here on it cannot be cancelled; until here it could.
    engine.0.state.with(|state| state.jobs.claim(id, JobState::is_undone));
    if cancel.is_cancelled() && result.is_ok() {
        engine.0.workers.discard(std::mem::replace(&mut result, Err(Error::JobCancelled)));
    }
    end(engine, record, result).await;
}

/// After a job could not be read or written: whether that is to be tried again, once some time has passed. What fails
/// now, on a full disk perhaps, does not end a job. Only the end of the server does, and a record that is none.
pub(super) async fn is_tried_again(engine: &Engine, id: JobId, error: &Error) -> bool {
    match error {
        Error::Draining => return false,
        Error::DamagedJob { .. } => {
            tracing::error!(%id, %error, "set aside in quarantine: the next start does not know it any more");
            let store = Arc::clone(&engine.0.store);
            let set_aside = move || store.set_aside_job(&id.to_string());
            if let Err(error) = engine.0.workers.run(Lane::Job, set_aside).await.flatten() {
                tracing::error!(%id, %error, "and could not be moved there");
            }
            let failed = JobState::Failed { reason: reason_of(error).into() };
            engine.0.state.with(|state| state.jobs.change(id, failed, Utc::now(), None));
            return false;
        }
        _ => {}
    }
    tracing::error!(%id, %error, "a job could not be read or written, and this is tried again");
    tokio::time::sleep(engine.0.limits.jobs.sweep_interval).await;
    true
}

pub(super) async fn read(engine: &Engine, id: JobId) -> Result<Record, Error> {
    let store = Arc::clone(&engine.0.store);
    engine.0.workers.run(Lane::Job, move || Record::read(&store, &id.to_string())).await.flatten()
}

pub(super) async fn work(engine: &Engine, record: &mut Record, cancel: &CancellationToken) -> Result<Draft, Error> {
    if record.starts >= JOB_STARTS_MAX {
        return Err(Error::JobGivenUp { starts: record.starts });
    }
    record.starts += 1;
    change(engine, record, RecordState::Running, None).await?;
    let computed =
        AssertUnwindSafe(compute(engine, record.id, record.work.clone(), record.input_check())).catch_unwind();
    tokio::select! {
        () = cancel.cancelled() => Err(Error::JobCancelled),
        computed = computed => computed.unwrap_or_else(|panic| {
            Err(Error::Internal(format!("a job panicked: {}", panic_text(&*panic))))
        }),
    }
}

/// Writes how a job ended. Until that is written, the job has not ended.
async fn end(engine: &Engine, mut record: Record, result: Result<Draft, Error>) {
    let mut failure = match result {
        Ok(draft) => {
            let done = RecordState::Done { bytes: draft.bytes(), check: Some(to_hex(draft.check())) };
            change(engine, &mut record, done, Some(draft)).await.err()
        }
        Err(error) => Some(error),
    };
    let Some(reason) = failure.as_ref().map(reason_of) else { return };
    while !matches!(failure, Some(Error::Draining)) {
        let failed = RecordState::Failed { reason: reason.clone() };
        failure = change(engine, &mut record, failed, None).await.err();
        let Some(error) = &failure else { return };
        if !is_tried_again(engine, record.id, error).await {
            return;
        }
    }
}

/// Publishes a job's record, a result before it, and then tells of its state. What an ended job does not need goes.
pub(crate) async fn change(
    engine: &Engine,
    record: &mut Record,
    state: RecordState,
    result: Option<Draft>,
) -> Result<(), Error> {
    (record.state, record.since) = (state, Utc::now());
    let (store, record) = (Arc::clone(&engine.0.store), record.clone());
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
    let record = engine.0.workers.run(Lane::Job, publish).await.flatten()?;
    let check = record.state.result_check();
    engine.0.state.with(|state| state.jobs.change(record.id, record.state.into(), record.since, check));
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

/// Does the work, and answers with the result in a draft.
async fn compute(engine: &Engine, id: JobId, work: Work, input_check: Option<u64>) -> Result<Draft, Error> {
    let progress = |done, total| engine.0.state.with(|state| state.jobs.progress(id, done, total));
    let store = Arc::clone(&engine.0.store);
    match work {
        Work::Survey(question) => {
            let answer = survey::answer(engine, &question, Lane::Job, progress).await?;
            let write = move || {
                let mut draft = store.listed_draft()?;
                let text = serde_json::to_vec(&answer).map_err(|error| Error::Internal(format!("answer: {error}")))?;
                draft.write_all(&text).map_err(Error::io("a job's result"))?;
                Ok(draft)
            };
            engine.0.workers.run(Lane::Job, write).await?
        }
        Work::GroupSum { by, sum, header } => {
            let group = GroupBy::new(by, sum)?;
            let inputs = Arc::clone(&store);
            let open = move || inputs.open_job_file(&id.to_string(), JobFile::Input, input_check);
            let file = engine.0.workers.run(Lane::Job, open).await??;
            let bytes = file.bytes();
            let groups = engine.group_sum_file(Lane::Job, file, group, |done| progress(done, bytes)).await?;
            let draft = engine.0.workers.run(Lane::Job, move || store.listed_draft()).await??;
            groups.write_csv(&header, draft).await
        }
    }
}
