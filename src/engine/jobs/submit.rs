//! Accepting jobs: a reservation in the table, then the input, then the first record, then the entry.

use super::{
    record::{Record, Work},
    run::dispatch,
    sweep::remove,
};
use crate::{
    engine::{
        group_by::spec::GroupBy,
        ingest::receive,
        runtime::{context::Context, transfers::Paced},
        state::{
            Lane, Shared,
            jobs::{Entry, JobId, JobState},
        },
        storage::{draft::Draft, names::JobFile},
        survey::question::SurveyQuestion,
    },
    error::{Error, jobs::JobError},
    limits::JOB_NAMES_BYTES_MAX,
};
use bytes::Bytes;
use futures_util::Stream;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Reserves an entry in the table for a job that is about to be accepted, until it is dropped.
struct JobReservation {
    shared: Shared,
    order: u64,
}

impl Drop for JobReservation {
    fn drop(&mut self) {
        // If the job was accepted, its entry is already counted in `undone`.
        self.shared.with(|state| {
            state.jobs.reserved -= 1;
            state.jobs.undone -= 1;
        });
    }
}

/// Accepts a statistic.
pub(crate) async fn submit_survey(context: Arc<Context>, question: SurveyQuestion) -> Result<JobId, Error> {
    let reservation = reserve(&context)?;
    let id = context.state.with(|state| state.jobs.next_survey());
    accept(context, id, reservation, Work::Survey(question), None).await
}

/// Accepts a file to be grouped and summed, once it has been received completely.
pub(crate) async fn submit_task<S>(
    context: Arc<Context>,
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
        return Err(JobError::NamesTooLong { bytes_max: JOB_NAMES_BYTES_MAX }.into());
    }
    let reservation = reserve(&context)?;
    let id = JobId::Task(Uuid::new_v4());
    let store = Arc::clone(&context.store);
    let publish = move |draft: Draft| store.publish_job_file(draft, &id.to_string(), JobFile::Input);
    let input_check = receive::receive(&context, &cancel, body, publish).await?;
    if cancel.is_cancelled() {
        remove(&context, vec![id], Vec::new()).await?;
        return Err(Error::Cancelled);
    }
    accept(context, id, reservation, Work::GroupSum { by, sum, header }, Some(input_check)).await
}

/// Reserves an entry for one more job. The oldest jobs that have ended may be removed to make room.
fn reserve(context: &Arc<Context>) -> Result<JobReservation, Error> {
    let undone_max = context.limits.jobs.unfinished_max;
    let (order, evicted) = context.state.with(|state| state.jobs.reserve(undone_max))?;
    if !evicted.is_empty() {
        let context = Arc::clone(context);
        tokio::spawn(async move { remove(&context, evicted, Vec::new()).await });
    }
    Ok(JobReservation { shared: context.state.clone(), order })
}

/// Writes a job's first record, adds the job to the table, and starts the jobs that may run.
async fn accept(
    context: Arc<Context>,
    id: JobId,
    reservation: JobReservation,
    work: Work,
    input_check: Option<u64>,
) -> Result<JobId, Error> {
    let record = Record::new(id, reservation.order, work, input_check);
    let entry = Entry::new(record.order, JobState::Queued, record.since, None);
    let store = Arc::clone(&context.store);
    let publish = move || record.publish(&store);
    let published = match context.state.with(|state| state.jobs.refused) {
        true => Err(JobError::Refused.into()), // the server began to shut down while the input was received
        false => context.workers.run(Lane::Job, publish).await.flatten(),
    };
    if let Err(error) = published {
        remove(&context, vec![id], Vec::new()).await?;
        return Err(error);
    }
    context.state.with(|state| state.jobs.insert(id, entry));
    drop(reservation);
    dispatch(&context);
    Ok(id)
}
