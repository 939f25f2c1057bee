//! Jobs: work asked for now and fetched later. Their states under the lock, their results on disk, the order in which
//! they run. Their records are in `job_records.rs`.
//!
//! A job is accepted once its record is on disk. Each change of its state is a record published in place of the last one,
//! as a receipt is; its result is published before the record that says it is done. So a start finds every job that was
//! accepted: what had not ended runs again, what was done still answers. At any time one task alone writes a job's record.
//!
//! Jobs run in the order in which they were accepted, a few of each kind at once; what they compute are slices on the
//! workers, in a lane of their own. What a job is to do stays on disk until its turn, and its result stays there.
//!
//! Memory: at most [`JOBS_MAX`] entries, of which `JOBS_UNFINISHED_MAX` have work to do.

pub mod record;
pub mod recover;
pub mod result_file;
pub mod run;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    record::{Record, RecordState, Work},
    recover::remove,
    run::{change, dispatch, is_tried_again, read, reason_of},
};
use crate::{
    engine::{
        Engine,
        group_by::spec::GroupBy,
        ingest::receive,
        runtime::transfers::Paced,
        state::{
            Lane, Shared,
            jobs::{Cancelled, Entry, JobId, JobState},
        },
        storage::{draft::Draft, names::JobFile},
        survey::question::SurveyQuestion,
    },
    error::Error,
    limits::JOB_NAMES_BYTES_MAX,
};

/// A place among the jobs for one that is about to be accepted; free again when dropped.
struct Place {
    shared: Shared,
    order: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        // If it was used, the job counts among the entries by now.
        self.shared.with(|state| {
            state.jobs.reserved -= 1;
            state.jobs.undone -= 1;
        });
    }
}

/// Accepts a statistic.
pub(super) async fn submit_survey(engine: Engine, question: SurveyQuestion) -> Result<JobId, Error> {
    let place = reserve(&engine)?;
    let id = engine.0.state.with(|state| state.jobs.next_survey());
    accept(engine, id, place, Work::Survey(question), None).await
}

/// Accepts a file to be grouped and summed, once all of it has come.
pub(super) async fn submit_task<S>(
    engine: Engine,
    cancel: CancellationToken,
    body: Paced<S>,
    group: GroupBy,
    header: Vec<String>,
) -> Result<JobId, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let (by, sum) = (group.by().to_vec(), group.sum().to_vec());
    let names_bytes: usize = [&by, &sum, &header].into_iter().flatten().map(String::len).sum();
    if names_bytes > JOB_NAMES_BYTES_MAX {
        return Err(Error::NamesTooLong { bytes_max: JOB_NAMES_BYTES_MAX });
    }
    let place = reserve(&engine)?;
    let id = JobId::Task(Uuid::new_v4());
    let store = Arc::clone(&engine.0.store);
    let keep = move |draft: Draft| store.publish_job_file(draft, &id.to_string(), JobFile::Input);
    let input_check = receive::receive(&engine, &cancel, body, keep).await?;
    if cancel.is_cancelled() {
        remove(&engine, vec![id], Vec::new()).await?;
        return Err(Error::Cancelled);
    }
    accept(engine, id, place, Work::GroupSum { by, sum, header }, Some(input_check)).await
}

/// A place for one more job, for which the oldest that ended may have to go.
fn reserve(engine: &Engine) -> Result<Place, Error> {
    let unfinished_max = engine.0.limits.jobs.unfinished_max;
    let (order, evicted) = engine.0.state.with(|state| state.jobs.reserve(unfinished_max))?;
    if !evicted.is_empty() {
        let engine = engine.clone();
        tokio::spawn(async move { remove(&engine, evicted, Vec::new()).await });
    }
    Ok(Place { shared: engine.0.state.clone(), order })
}

/// Writes a job's first record, and only then lets it be known and run.
async fn accept(engine: Engine, id: JobId, place: Place, work: Work, input_check: Option<u64>) -> Result<JobId, Error> {
    let record = Record::new(id, place.order, work, input_check);
    let entry = Entry::new(record.order, JobState::Queued, record.since, None);
    let store = Arc::clone(&engine.0.store);
    let publish = move || record.publish(&store);
    let published = match engine.0.state.with(|state| state.jobs.refused) {
        true => Err(Error::JobsRefused), // while its file came
        false => engine.0.workers.run(Lane::Job, publish).await.flatten(),
    };
    if let Err(error) = published {
        remove(&engine, vec![id], Vec::new()).await?;
        return Err(error);
    }
    engine.0.state.with(|state| state.jobs.insert(id, entry));
    drop(place);
    dispatch(&engine);
    Ok(id)
}

/// Stops a job's work, or takes it from the queue. Says whether there was something to stop.
pub(super) async fn cancel(engine: Engine, id: JobId) -> Result<bool, Error> {
    match engine.0.state.with(|state| state.jobs.cancel(id)) {
        None => Ok(false),
        Some(Cancelled::Running) => Ok(true),
        Some(Cancelled::Waiting) => {
            if let Err(error) = end_waiting(&engine, id).await {
                // It runs no more; that it is told on disk may take long.
                tokio::spawn(async move {
                    let mut failure = Some(error);
                    while let Some(error) = failure
                        && is_tried_again(&engine, id, &error).await
                    {
                        failure = end_waiting(&engine, id).await.err();
                    }
                });
            }
            Ok(true)
        }
    }
}

/// Writes the end of a job that did not run.
async fn end_waiting(engine: &Engine, id: JobId) -> Result<(), Error> {
    let mut record = read(engine, id).await?;
    let failed = RecordState::Failed { reason: reason_of(&Error::JobCancelled) };
    change(engine, &mut record, failed, None).await
}

#[cfg(all(test, not(feature = "model")))]
mod tests;
