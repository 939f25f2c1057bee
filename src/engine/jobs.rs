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
//! Memory: at most [`JOBS_MAX`] entries, of which `JOBS_UNDONE_MAX` have work to do.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    io::{self, Write},
    panic::AssertUnwindSafe,
    str::FromStr,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{FutureExt, Stream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Engine, Inner,
    checksums::to_hex,
    group::GroupBy,
    job_records::{FoundJob, FoundJobs, Record, RecordState, Work, is_beyond_all},
    spool,
    state::{Lane, Shared},
    store::{Draft, JobFile, Reader, Store},
    survey::{self, SurveyQuestion},
    transfers::Paced,
    workers::{Workers, panic_text},
};
use crate::{
    error::Error,
    limits::{
        EVICTED_JOBS, JOB_NAMES_BYTES_MAX, JOB_REASON_BYTES_MAX, JOB_STARTS_MAX, JOBS_MAX, JobLimits, SURVEYS_AT_ONCE,
        TASKS_AT_ONCE,
    },
};

/// A job's name: by number for a statistic, as the statistics servers count them, by UUID for a file-processing task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum JobId {
    /// A statistic; from 1.
    Survey(u64),
    /// A file that is grouped and summed.
    Task(Uuid),
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It is being worked on: parts of a statistic, bytes of a task's file.
    Running {
        /// So much is done ...
        done: u64,
        /// ... of so much.
        total: u64,
    },
    /// Its result can be fetched.
    Done {
        /// The result's size.
        bytes: u64,
    },
    /// It has no result.
    Failed {
        /// Why. Shared, as states are told with the lock held.
        reason: Arc<str>,
    },
    /// Its result was fetched whole.
    Downloaded,
}

/// What is told of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// How far it is.
    pub state: JobState,
    /// Whether its result is on disk.
    pub has_result: bool,
}

/// How many jobs are in which state.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobCounts {
    /// Those that wait.
    pub queued: usize,
    /// Those that run.
    pub running: usize,
    /// Those with a result.
    pub done: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those whose result was fetched.
    pub downloaded: usize,
}

/// All jobs that are known.
pub struct Jobs {
    entries: BTreeMap<JobId, Entry>,
    /// Those that wait, by kind, in the order in which they run.
    queues: [VecDeque<JobId>; 2],
    /// How many of each kind run.
    running: [usize; 2],
    /// Queued, running, and those whose first record is being written.
    undone: usize,
    /// Those of `undone` that are not in `entries` yet.
    reserved: usize,
    next_number: u64,
    next_order: u64,
    refused: bool,
}

struct Entry {
    order: u64,
    state: JobState,
    since: DateTime<Utc>,
    /// Bytes of the result on disk; none if there is none.
    result_bytes: Option<u64>,
    /// What that is verified against.
    result_check: Option<u64>,
    /// Somebody writes its record: it can be neither cancelled nor removed now.
    being_written: bool,
    /// Stops its work.
    cancel: CancellationToken,
}

/// A place among the jobs for one that is about to be accepted; free again when dropped.
struct Place {
    shared: Shared,
    order: u64,
}

/// A result, open for reading.
pub struct ResultFile {
    file: Reader,
    workers: Workers,
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Survey(number) => write!(f, "job_id_{number}"),
            Self::Task(uuid) => write!(f, "{uuid}"),
        }
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for JobId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for JobId {
    type Err = Error;

    /// Takes what `Display` writes, and nothing else.
    fn from_str(text: &str) -> Result<Self, Error> {
        let id = match text.strip_prefix("job_id_") {
            Some(number) => number.parse().ok().map(Self::Survey),
            None => Uuid::try_parse(text).ok().map(Self::Task),
        };
        id.filter(|id| id.to_string() == text).ok_or_else(|| Error::NoSuchJob { id: text.to_owned() })
    }
}

impl JobState {
    fn is_undone(&self) -> bool {
        matches!(self, Self::Queued | Self::Running { .. })
    }
}

impl JobId {
    /// Which queue it stands in.
    fn kind(self) -> usize {
        match self {
            Self::Survey(_) => 0,
            Self::Task(_) => 1,
        }
    }
}

/// How many of each kind run at once.
const AT_ONCE: [usize; 2] = [SURVEYS_AT_ONCE, TASKS_AT_ONCE];

impl Jobs {
    /// None.
    pub fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            queues: [(); 2].map(|()| VecDeque::new()),
            running: [0; 2],
            undone: 0,
            reserved: 0,
            next_number: 1,
            next_order: 1,
            refused: false,
        }
    }

    /// What is told of a job.
    pub fn get(&self, id: JobId) -> Option<Job> {
        self.entries.get(&id).map(|entry| entry.told(id))
    }

    /// All statistics, in the order of their numbers.
    pub fn surveys(&self) -> Vec<Job> {
        let surveys = self.entries.range(JobId::Survey(0)..=JobId::Survey(u64::MAX));
        surveys.map(|(&id, entry)| entry.told(id)).collect()
    }

    /// How many were accepted and have not ended.
    pub fn undone(&self) -> usize {
        self.undone - self.reserved
    }

    /// How many are in which state.
    pub fn counts(&self) -> JobCounts {
        let mut counts = JobCounts::default();
        for entry in self.entries.values() {
            *match entry.state {
                JobState::Queued => &mut counts.queued,
                JobState::Running { .. } => &mut counts.running,
                JobState::Done { .. } => &mut counts.done,
                JobState::Failed { .. } => &mut counts.failed,
                JobState::Downloaded => &mut counts.downloaded,
            } += 1;
        }
        counts
    }

    /// From here on no job is accepted.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    /// Room for a job that is about to be accepted: its order, and the jobs that were forgotten to make it, whose files
    /// are to be removed.
    fn reserve(&mut self, undone_max: usize) -> Result<(u64, Vec<JobId>), Error> {
        if self.refused {
            return Err(Error::JobsRefused);
        }
        if self.undone >= undone_max {
            return Err(Error::TooManyJobs { jobs_max: undone_max });
        }
        let mut evicted = Vec::new();
        if self.entries.len() + self.reserved >= JOBS_MAX {
            let mut removable = self.removable();
            // First what nobody can fetch anything of.
            removable.sort_by_key(|(_, id)| self.entries[id].result_bytes.is_some());
            evicted = removable.into_iter().take(EVICTED_JOBS).map(|(_, id)| id).collect();
            evicted.iter().for_each(|id| drop(self.entries.remove(id)));
        }
        self.undone += 1;
        self.reserved += 1;
        let order = self.next_order;
        self.next_order += 1;
        Ok((order, evicted))
    }

    fn next_survey(&mut self) -> JobId {
        let id = JobId::Survey(self.next_number);
        self.next_number += 1;
        id
    }

    /// The number of a statistic is not given out, or not again.
    pub(super) fn skip_to(&mut self, id: JobId) {
        if let JobId::Survey(number) = id {
            self.next_number = self.next_number.max(number + 1);
        }
    }

    /// A job that was accepted, or found at start: it waits if it has not ended.
    fn insert(&mut self, id: JobId, entry: Entry) {
        self.skip_to(id);
        self.next_order = self.next_order.max(entry.order + 1);
        if entry.state.is_undone() {
            self.undone += 1;
            self.queues[id.kind()].push_back(id);
        }
        self.entries.insert(id, entry);
    }

    /// The next job whose turn it is; it runs from here on, until `ended`.
    fn start_next(&mut self) -> Option<(JobId, CancellationToken)> {
        let kind = (0..2).find(|&kind| self.running[kind] < AT_ONCE[kind] && !self.queues[kind].is_empty())?;
        let id = self.queues[kind].pop_front()?;
        let entry = self.entries.get(&id)?;
        self.running[kind] += 1;
        Some((id, entry.cancel.clone()))
    }

    /// A job that ran does so no longer.
    fn ended(&mut self, id: JobId) {
        self.running[id.kind()] -= 1;
    }

    /// Lets the caller alone write a job's record, if nobody does and `when` says so of its state.
    fn claim(&mut self, id: JobId, when: impl FnOnce(&JobState) -> bool) -> bool {
        match self.entries.get_mut(&id) {
            Some(entry) if !entry.being_written && when(&entry.state) => {
                entry.being_written = true;
                true
            }
            _ => false,
        }
    }

    /// A job's new state is on disk.
    fn change(&mut self, id: JobId, state: JobState, since: DateTime<Utc>, result_check: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match state {
            JobState::Done { bytes } => (entry.result_bytes, entry.result_check) = (Some(bytes), result_check),
            JobState::Queued | JobState::Running { .. } | JobState::Failed { .. } | JobState::Downloaded => {}
        }
        self.undone -= usize::from(entry.state.is_undone() && !state.is_undone());
        (entry.state, entry.since, entry.being_written) = (state, since, false);
    }

    /// Nobody writes a job's record any more, and it is what it was.
    fn let_go(&mut self, id: JobId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.being_written = false;
        }
    }

    fn progress(&mut self, id: JobId, done: u64, total: u64) {
        if let Some(Entry { state: state @ JobState::Running { .. }, .. }) = self.entries.get_mut(&id) {
            *state = JobState::Running { done, total };
        }
    }

    /// Takes a job that waits out of the queue, or tells one that runs to stop. In the first case the caller writes its
    /// end. None: there is nothing to stop.
    fn cancel(&mut self, id: JobId) -> Option<Cancelled> {
        let entry = self.entries.get_mut(&id)?;
        let queue = &mut self.queues[id.kind()];
        match entry.state {
            JobState::Queued => match queue.iter().position(|queued| *queued == id) {
                Some(at) => {
                    queue.remove(at);
                    entry.being_written = true;
                    Some(Cancelled::Waiting)
                }
                None => {
                    entry.cancel.cancel(); // its turn has come, and it is about to run
                    Some(Cancelled::Running)
                }
            },
            JobState::Running { .. } if entry.being_written => None, // its end is
            JobState::Running { .. } => {
                entry.cancel.cancel();
                Some(Cancelled::Running)
            }
            JobState::Done { .. } | JobState::Failed { .. } | JobState::Downloaded => None,
        }
    }

    /// Jobs that may be forgotten, the one first that ended first. The newest statistic is not among them, or a start
    /// would give its number out again.
    fn removable(&self) -> Vec<(DateTime<Utc>, JobId)> {
        let newest = self.entries.range(..=JobId::Survey(u64::MAX)).next_back().map(|(&id, _)| id);
        let ended = self
            .entries
            .iter()
            .filter(|(id, entry)| !entry.state.is_undone() && !entry.being_written && Some(**id) != newest);
        let mut ended: Vec<_> = ended.map(|(&id, entry)| (entry.since, id)).collect();
        ended.sort_unstable();
        ended
    }

    /// Forgets what is too old or too much, and says what is to be removed: whole jobs, and results alone.
    fn sweep(&mut self, limits: &JobLimits, now: DateTime<Utc>) -> (Vec<JobId>, Vec<JobId>) {
        let mut results = Vec::new();
        for (&id, entry) in &mut self.entries {
            // What the client's side of the connection has not read may be lost yet, and be asked for again.
            let is_settled = (now - entry.since).to_std().is_ok_and(|age| age >= limits.sweep_interval);
            if entry.state == JobState::Downloaded && is_settled && entry.result_bytes.take().is_some() {
                results.push(id);
            }
        }
        let mut jobs = Vec::new();
        let mut bytes: u64 = self.entries.values().filter_map(|entry| entry.result_bytes).sum();
        let removable = self.removable();
        // The newest result stays, however large it is: somebody waits for it.
        let newest = removable.iter().rev().find(|(_, id)| self.entries[id].result_bytes.is_some()).copied();
        for (since, id) in removable {
            let result_bytes = self.entries[&id].result_bytes.unwrap_or(0);
            let is_old = (now - since).to_std().is_ok_and(|age| age > limits.age_max);
            let is_too_much = bytes > limits.bytes_max && result_bytes > 0 && newest != Some((since, id));
            if is_old || is_too_much {
                bytes -= result_bytes;
                self.entries.remove(&id);
                results.retain(|other| *other != id);
                jobs.push(id);
            }
        }
        (jobs, results)
    }
}

/// What a cancelled job was doing.
enum Cancelled {
    Waiting,
    Running,
}

impl Entry {
    /// Of a job whose record is on disk.
    fn new(order: u64, state: JobState, since: DateTime<Utc>, result_bytes: Option<u64>) -> Self {
        Self {
            order,
            state,
            since,
            result_bytes,
            result_check: None,
            being_written: false,
            cancel: CancellationToken::new(),
        }
    }

    fn told(&self, id: JobId) -> Job {
        Job { id, state: self.state.clone(), has_result: self.result_bytes.is_some() }
    }
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

impl Default for Jobs {
    fn default() -> Self {
        Self::new()
    }
}

impl ResultFile {
    /// The result's size.
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// What the result has from `offset` on, at most so many bytes, and less only at its end.
    pub async fn read(&self, offset: u64, bytes_max: usize) -> Result<Bytes, Error> {
        let file = self.file.clone();
        let read = move || file.block(offset, bytes_max);
        self.workers.run(Lane::Question, read).await.flatten().map(Bytes::from)
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
    let input_check = spool::receive(&engine, &cancel, body, keep).await?;
    if cancel.is_cancelled() {
        remove(&engine, vec![id], Vec::new()).await?;
        return Err(Error::Cancelled);
    }
    accept(engine, id, place, Work::GroupSum { by, sum, header }, Some(input_check)).await
}

/// A place for one more job, for which the oldest that ended may have to go.
fn reserve(engine: &Engine) -> Result<Place, Error> {
    let undone_max = engine.0.limits.jobs.undone_max;
    let (order, evicted) = engine.0.state.with(|state| state.jobs.reserve(undone_max))?;
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

/// Starts what has its turn.
pub(super) fn dispatch(engine: &Engine) {
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
async fn run(engine: &Engine, id: JobId, cancel: CancellationToken) {
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
async fn is_tried_again(engine: &Engine, id: JobId, error: &Error) -> bool {
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

async fn read(engine: &Engine, id: JobId) -> Result<Record, Error> {
    let store = Arc::clone(&engine.0.store);
    engine.0.workers.run(Lane::Job, move || Record::read(&store, &id.to_string())).await.flatten()
}

async fn work(engine: &Engine, record: &mut Record, cancel: &CancellationToken) -> Result<Draft, Error> {
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
async fn change(engine: &Engine, record: &mut Record, state: RecordState, result: Option<Draft>) -> Result<(), Error> {
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
fn reason_of(error: &Error) -> String {
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

/// Opens the result of a job that is done.
pub(super) async fn open_result(engine: &Engine, id: JobId) -> Result<ResultFile, Error> {
    let gone = || Error::NoSuchJob { id: id.to_string() };
    let result = |entry: &Entry| Some((entry.result_bytes?, entry.result_check));
    let Some((bytes, check)) = engine.0.state.with(|state| result(state.jobs.entries.get(&id)?)) else {
        return Err(gone());
    };
    let store = Arc::clone(&engine.0.store);
    let open = move || store.open_job_file(&id.to_string(), JobFile::Result, check);
    match engine.0.workers.run(Lane::Question, open).await.flatten() {
        Ok(file) if file.bytes() != bytes => {
            let what = format!("its result has {} bytes, and had {bytes}", file.bytes());
            Err(Error::DamagedJob { name: id.to_string(), what })
        }
        Ok(file) => Ok(ResultFile { file, workers: engine.0.workers.clone() }),
        Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Err(gone()),
        Err(error) => Err(error),
    }
}

/// Notes that a result was fetched whole: the next sweep removes it.
pub(super) async fn mark_downloaded(engine: Engine, id: JobId) -> Result<(), Error> {
    if !engine.0.state.with(|state| state.jobs.claim(id, |state| matches!(state, JobState::Done { .. }))) {
        return Ok(()); // fetched by another one first, or gone
    }
    let marked = async {
        let mut record = read(&engine, id).await?;
        change(&engine, &mut record, RecordState::Downloaded, None).await
    };
    let marked = marked.await;
    if marked.is_err() {
        engine.0.state.with(|state| state.jobs.let_go(id));
    }
    marked
}

/// Removes what is no longer wanted: first from what is told, then from disk.
async fn sweep(engine: &Engine) -> Result<(), Error> {
    let limits = engine.0.limits.jobs;
    let (jobs, results) = engine.0.state.with(|state| state.jobs.sweep(&limits, Utc::now()));
    remove(engine, jobs, results).await
}

/// Removes whole jobs, and results alone.
async fn remove(engine: &Engine, jobs: Vec<JobId>, results: Vec<JobId>) -> Result<(), Error> {
    if jobs.is_empty() && results.is_empty() {
        return Ok(());
    }
    let store = Arc::clone(&engine.0.store);
    let remove = move || {
        jobs.iter().for_each(|id| store.remove_job(&id.to_string()));
        results.iter().for_each(|id| store.remove_job_file(&id.to_string(), JobFile::Result));
    };
    engine.0.workers.run(Lane::Job, remove).await
}

/// Sweeps until the engine is gone.
pub(super) async fn keep_sweeping(engine: Weak<Inner>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(inner) = engine.upgrade() else { return };
        match sweep(&Engine(inner)).await {
            Ok(()) => {}
            Err(Error::Draining) => return,
            Err(error) => tracing::error!(%error, "jobs that ended could not be removed"),
        }
    }
}

/// Jobs after a start.
pub(super) struct Recovered {
    /// All of them; those that had not ended wait again.
    pub(super) jobs: Jobs,
    /// Jobs of which there were files and no record; they were removed.
    pub(super) leftovers: usize,
    /// Names of those that were set aside, and why.
    pub(super) set_aside: Vec<(String, String)>,
}

/// Puts the folder in order.
pub(super) fn recover(store: &Store, found: FoundJobs) -> Result<Recovered, Error> {
    let mut jobs = Jobs::new();
    for FoundJob { id, order, state, since, files } in found.jobs {
        let name = id.to_string();
        let (mut result_bytes, result_check) = (None, state.result_check());
        let state = match state.into() {
            // Of another size it is damaged, which whoever asks for it is told, as long as it is not put back.
            JobState::Done { bytes } if files.result.is_some() => {
                result_bytes = Some(bytes);
                JobState::Done { bytes }
            }
            JobState::Done { .. } => JobState::Failed { reason: "its result is gone".into() },
            JobState::Queued | JobState::Running { .. } => JobState::Queued,
            state @ (JobState::Failed { .. } | JobState::Downloaded) => state,
        };
        if files.result.is_some() && result_bytes.is_none() {
            store.remove_job_file(&name, JobFile::Result); // of a run that did not come to its end
        }
        if files.input.is_some() && !state.is_undone() {
            store.remove_job_file(&name, JobFile::Input);
        }
        jobs.insert(id, Entry { result_check, ..Entry::new(order, state, since, result_bytes) });
    }
    for name in &found.strays {
        store.remove_job(name);
    }
    for (name, _) in &found.damaged {
        store.set_aside_job(name)?;
    }
    // Who asked for them may ask again, and must not be told of another job.
    found.in_quarantine.iter().for_each(|id| jobs.skip_to(*id));
    let damaged = found.damaged.iter().filter_map(|(name, _)| name.parse().ok());
    damaged.filter(|id| !is_beyond_all(*id)).for_each(|id| jobs.skip_to(id));
    Ok(Recovered { jobs, leftovers: found.strays.len(), set_aside: found.damaged })
}

#[cfg(all(test, not(feature = "model")))]
mod tests;
