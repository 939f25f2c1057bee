//! Jobs: work asked for now and fetched later. Their states under the lock, their records and results on disk, the order
//! in which they run.
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
    group::GroupBy,
    state::{Lane, Shared},
    store::{Draft, JobFile, JobFiles, Reader, Store},
    survey::{self, SurveyQuestion},
    upload,
    workers::{Workers, panic_text},
};
use crate::{
    error::Error,
    limits::{
        EVICTED_JOBS, JOB_NAMES_BYTES_MAX, JOB_REASON_BYTES_MAX, JOB_STARTS_MAX, JOBS_MAX, JobLimits, SURVEYS_AT_ONCE,
        TASKS_AT_ONCE,
    },
};

/// The version of the records that this program writes.
const RECORD_VERSION: u32 = 1;

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
        /// Why.
        reason: String,
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

/// What a job is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    Survey(SurveyQuestion),
    GroupSum { by: Vec<String>, sum: Vec<String>, header: Vec<String> },
}

/// A job on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    format: u32,
    id: JobId,
    /// The order in which jobs were accepted, over both kinds.
    order: u64,
    /// How often it was begun.
    starts: u32,
    work: Work,
    state: RecordState,
    /// When it came to this state.
    #[serde(with = "rfc3339")]
    since: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecordState {
    Queued,
    Running,
    Done { bytes: u64 },
    Failed { reason: String },
    Downloaded,
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

    /// How many have not ended.
    pub fn undone(&self) -> usize {
        self.undone
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
            evicted = self.removable().into_iter().take(EVICTED_JOBS).map(|(_, id)| id).collect();
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

    /// A job that was accepted, or found at start: it waits if it has not ended.
    fn insert(&mut self, id: JobId, entry: Entry) {
        if let JobId::Survey(number) = id {
            self.next_number = self.next_number.max(number + 1);
        }
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
    fn change(&mut self, id: JobId, state: JobState, since: DateTime<Utc>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match state {
            JobState::Done { bytes } => entry.result_bytes = Some(bytes),
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
            if entry.state == JobState::Downloaded && entry.result_bytes.take().is_some() {
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
        let read = move || file.block(offset, bytes_max).map_err(Error::io("a job's result"));
        self.workers.run(Lane::Question, read).await.flatten().map(Bytes::from)
    }
}

/// Accepts a statistic.
pub(super) async fn submit_survey(engine: Engine, question: SurveyQuestion) -> Result<JobId, Error> {
    let place = reserve(&engine)?;
    let id = engine.0.state.with(|state| state.jobs.next_survey());
    accept(engine, id, place, Work::Survey(question)).await
}

/// Accepts a file to be grouped and summed, once all of it has come.
pub(super) async fn submit_task<S>(
    engine: Engine,
    cancel: CancellationToken,
    body: S,
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
    upload::receive(&engine, &cancel, body, keep).await?;
    if cancel.is_cancelled() {
        remove(&engine, vec![id], Vec::new()).await?;
        return Err(Error::Cancelled);
    }
    accept(engine, id, place, Work::GroupSum { by, sum, header }).await
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
async fn accept(engine: Engine, id: JobId, place: Place, work: Work) -> Result<JobId, Error> {
    let (order, since) = (place.order, Utc::now());
    let record = Record { format: RECORD_VERSION, id, order, starts: 0, work, state: RecordState::Queued, since };
    let store = Arc::clone(&engine.0.store);
    let publish = move || record.publish(&store);
    if let Err(error) = engine.0.workers.run(Lane::Job, publish).await.flatten() {
        remove(&engine, vec![id], Vec::new()).await?;
        return Err(error);
    }
    let cancel = CancellationToken::new();
    let entry = Entry { order, state: JobState::Queued, since, result_bytes: None, being_written: false, cancel };
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
    let Some(mut record) = read_undone(engine, id).await else { return };
    let result = work(engine, &mut record, &cancel).await;
    engine.0.state.with(|state| state.jobs.claim(id, JobState::is_undone));
    end(engine, record, result).await;
}

/// The record of a job that has not ended. None: the server ends, or what is on disk is no job any more; then there is
/// nothing to write, and it has failed.
async fn read_undone(engine: &Engine, id: JobId) -> Option<Record> {
    let store = Arc::clone(&engine.0.store);
    let read = move || Record::read(&store, &id.to_string());
    match engine.0.workers.run(Lane::Job, read).await.flatten() {
        Ok(record) => Some(record),
        Err(Error::Draining) => None,
        Err(error) => {
            let failed = JobState::Failed { reason: reason_of(&error) };
            engine.0.state.with(|state| state.jobs.change(id, failed, Utc::now()));
            None
        }
    }
}

async fn work(engine: &Engine, record: &mut Record, cancel: &CancellationToken) -> Result<Draft, Error> {
    if record.starts >= JOB_STARTS_MAX {
        return Err(Error::JobGivenUp { starts: record.starts });
    }
    record.starts += 1;
    change(engine, record, RecordState::Running, None).await?;
    let computed = AssertUnwindSafe(compute(engine, record.id, record.work.clone())).catch_unwind();
    tokio::select! {
        () = cancel.cancelled() => Err(Error::JobCancelled),
        computed = computed => computed.unwrap_or_else(|panic| {
            Err(Error::Internal(format!("a job panicked: {}", panic_text(&*panic))))
        }),
    }
}

/// Writes how a job ended. What cannot be written is tried again: until it is, the job has not ended.
async fn end(engine: &Engine, mut record: Record, result: Result<Draft, Error>) {
    let id = record.id;
    let mut failure = match result {
        Ok(draft) => {
            let done = RecordState::Done { bytes: draft.bytes() };
            change(engine, &mut record, done, Some(draft)).await.err()
        }
        Err(error) => Some(error),
    };
    while let Some(error) = failure {
        if matches!(error, Error::Draining) {
            return;
        }
        let failed = RecordState::Failed { reason: reason_of(&error) };
        failure = change(engine, &mut record, failed, None).await.err();
        if let Some(error) = &failure {
            tracing::error!(%id, %error, "the end of a job could not be written, and is tried again");
            tokio::time::sleep(engine.0.limits.jobs.sweep_interval).await;
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
        record.publish(&store)?;
        if !matches!(record.state, RecordState::Queued | RecordState::Running) {
            store.remove_job_file(&name, JobFile::Input);
        }
        Ok(record)
    };
    let record = engine.0.workers.run(Lane::Job, publish).await.flatten()?;
    engine.0.state.with(|state| state.jobs.change(record.id, record.state.into(), record.since));
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
async fn compute(engine: &Engine, id: JobId, work: Work) -> Result<Draft, Error> {
    let progress = |done, total| engine.0.state.with(|state| state.jobs.progress(id, done, total));
    let store = Arc::clone(&engine.0.store);
    match work {
        Work::Survey(question) => {
            let answer = survey::answer(engine, &question, Lane::Job, progress).await?;
            let write = move || {
                let mut draft = store.draft()?;
                let text = serde_json::to_vec(&answer).map_err(|error| Error::Internal(format!("answer: {error}")))?;
                draft.write_all(&text).map_err(Error::io("a job's result"))?;
                Ok(draft)
            };
            engine.0.workers.run(Lane::Job, write).await?
        }
        Work::GroupSum { by, sum, header } => {
            let group = GroupBy::new(by, sum)?;
            let inputs = Arc::clone(&store);
            let open = move || inputs.open_job_file(&id.to_string(), JobFile::Input);
            let file = engine.0.workers.run(Lane::Job, open).await??;
            let bytes = file.bytes();
            let groups = engine.group_sum_file(Lane::Job, file, group, |done| progress(done, bytes)).await?;
            let draft = engine.0.workers.run(Lane::Job, move || store.draft()).await??;
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
            if let Some(record) = read_undone(&engine, id).await {
                end(&engine, record, Err(Error::JobCancelled)).await;
            }
            Ok(true)
        }
    }
}

/// Opens the result of a job that is done.
pub(super) async fn open_result(engine: &Engine, id: JobId) -> Result<ResultFile, Error> {
    let gone = || Error::NoSuchJob { id: id.to_string() };
    if !engine.0.state.with(|state| state.jobs.get(id)).is_some_and(|job| job.has_result) {
        return Err(gone());
    }
    let store = Arc::clone(&engine.0.store);
    let open = move || store.open_job_file(&id.to_string(), JobFile::Result);
    match engine.0.workers.run(Lane::Question, open).await.flatten() {
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
    let store = Arc::clone(&engine.0.store);
    let read = move || Record::read(&store, &id.to_string());
    let marked = async {
        let mut record = engine.0.workers.run(Lane::Job, read).await.flatten()?;
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

/// What a start found of jobs, before anything is changed.
pub(super) struct FoundJobs {
    records: Vec<(Record, JobFiles)>,
    /// Names whose record is damaged, and how.
    damaged: Vec<(String, String)>,
    /// Names that have files and no record.
    strays: Vec<String>,
}

/// Reads all records.
///
/// Errors: one of a newer version; the folder cannot be read.
pub(super) fn find(store: &Store) -> Result<FoundJobs, Error> {
    let mut found = FoundJobs { records: Vec::new(), damaged: Vec::new(), strays: Vec::new() };
    for (name, files) in store.list_jobs()? {
        if !files.record {
            found.strays.push(name);
            continue;
        }
        match Record::read(store, &name) {
            Ok(record) => found.records.push((record, files)),
            Err(Error::DamagedJob { what, .. }) => found.damaged.push((name, what)),
            Err(error) => return Err(error),
        }
    }
    found.records.sort_unstable_by_key(|(record, _)| record.order);
    Ok(found)
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
    for (record, files) in found.records {
        let name = record.id.to_string();
        let mut result_bytes = None;
        let state = match record.state.into() {
            JobState::Done { bytes } if files.result == Some(bytes) => {
                result_bytes = Some(bytes);
                JobState::Done { bytes }
            }
            JobState::Done { .. } => JobState::Failed { reason: "its result is gone".to_owned() },
            JobState::Queued | JobState::Running { .. } => JobState::Queued,
            state @ (JobState::Failed { .. } | JobState::Downloaded) => state,
        };
        if files.result.is_some() && result_bytes.is_none() {
            store.remove_job_file(&name, JobFile::Result); // of a run that did not come to its end
        }
        if files.input.is_some() && !state.is_undone() {
            store.remove_job_file(&name, JobFile::Input);
        }
        let (order, since, cancel) = (record.order, record.since, CancellationToken::new());
        jobs.insert(record.id, Entry { order, state, since, result_bytes, being_written: false, cancel });
    }
    for name in &found.strays {
        store.remove_job(name);
    }
    for (name, _) in &found.damaged {
        store.set_aside_job(name)?;
    }
    Ok(Recovered { jobs, leftovers: found.strays.len(), set_aside: found.damaged })
}

impl Record {
    fn read(store: &Store, name: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let text = store.read_job(name)?;
        let damaged = |what: String| Error::DamagedJob { name: name.to_owned(), what };
        if let Ok(Version { format }) = serde_json::from_slice(&text)
            && format > RECORD_VERSION
        {
            return Err(Error::DataFolder(format!(
                "job {name} has format version {format}, this program knows {RECORD_VERSION}: use a newer one"
            )));
        }
        let record: Self = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if record.id.to_string() != name {
            return Err(damaged("it is of another job".to_owned()));
        }
        Ok(record)
    }

    fn publish(&self, store: &Store) -> Result<(), Error> {
        let text = serde_json::to_vec(self).map_err(|error| Error::Internal(format!("job record: {error}")))?;
        store.publish_job(&self.id.to_string(), &text)
    }
}

impl From<RecordState> for JobState {
    fn from(state: RecordState) -> Self {
        match state {
            RecordState::Queued => Self::Queued,
            RecordState::Running => Self::Running { done: 0, total: 0 },
            RecordState::Done { bytes } => Self::Done { bytes },
            RecordState::Failed { reason } => Self::Failed { reason },
            RecordState::Downloaded => Self::Downloaded,
        }
    }
}

/// Times as receipts have them.
mod rfc3339 {
    use chrono::{DateTime, SecondsFormat, Utc};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(deserializer)?;
        DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).map_err(D::Error::custom)
    }
}
