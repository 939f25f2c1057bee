//! The job table: which jobs are known, in which state, and whose turn it is. A plain table under the lock; it starts
//! nothing and touches no file.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    str::FromStr,
    sync::Arc,
};

use chrono::{DateTime, Utc};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    error::{Error, jobs::JobError},
    limits::{EVICTED_JOBS, JOBS_MAX, JobLimits, SURVEYS_AT_ONCE, TASKS_AT_ONCE},
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
    pub(crate) entries: BTreeMap<JobId, Entry>,
    /// Those that wait, by kind, in the order in which they run.
    pub(crate) queues: [VecDeque<JobId>; 2],
    /// How many of each kind run.
    running: [usize; 2],
    /// Queued, running, and those whose first record is being written.
    pub(crate) undone: usize,
    /// Those of `undone` that are not in `entries` yet.
    pub(crate) reserved: usize,
    next_number: u64,
    next_order: u64,
    pub(crate) refused: bool,
}

pub(crate) struct Entry {
    pub(crate) order: u64,
    pub(crate) state: JobState,
    pub(crate) since: DateTime<Utc>,
    /// Bytes of the result on disk; none if there is none.
    pub(crate) result_bytes: Option<u64>,
    /// What that is verified against.
    pub(crate) result_check: Option<u64>,
    /// Somebody writes its record: it can be neither cancelled nor removed now.
    pub(crate) being_written: bool,
    /// Stops its work.
    pub(crate) cancel: CancellationToken,
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
        id.filter(|id| id.to_string() == text).ok_or_else(|| JobError::NotFound { id: text.to_owned() }.into())
    }
}

impl JobState {
    pub(crate) fn is_undone(&self) -> bool {
        matches!(self, Self::Queued | Self::Running { .. })
    }
}

impl JobId {
    /// Which queue it stands in.
    pub(crate) fn kind(self) -> usize {
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
    pub(crate) fn reserve(&mut self, unfinished_max: usize) -> Result<(u64, Vec<JobId>), Error> {
        if self.refused {
            return Err(JobError::Refused.into());
        }
        if self.undone >= unfinished_max {
            return Err(JobError::TooMany { jobs_max: unfinished_max }.into());
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

    pub(crate) fn next_survey(&mut self) -> JobId {
        let id = JobId::Survey(self.next_number);
        self.next_number += 1;
        id
    }

    /// The number of a statistic is not given out, or not again.
    pub(crate) fn skip_to(&mut self, id: JobId) {
        if let JobId::Survey(number) = id {
            self.next_number = self.next_number.max(number + 1);
        }
    }

    /// A job that was accepted, or found at start: it waits if it has not ended.
    pub(crate) fn insert(&mut self, id: JobId, entry: Entry) {
        self.skip_to(id);
        self.next_order = self.next_order.max(entry.order + 1);
        if entry.state.is_undone() {
            self.undone += 1;
            self.queues[id.kind()].push_back(id);
        }
        self.entries.insert(id, entry);
    }

    /// The next job whose turn it is; it runs from here on, until `ended`.
    pub(crate) fn start_next(&mut self) -> Option<(JobId, CancellationToken)> {
        let kind = (0..2).find(|&kind| self.running[kind] < AT_ONCE[kind] && !self.queues[kind].is_empty())?;
        let id = self.queues[kind].pop_front()?;
        let entry = self.entries.get(&id)?;
        self.running[kind] += 1;
        Some((id, entry.cancel.clone()))
    }

    /// A job that ran does so no longer.
    pub(crate) fn ended(&mut self, id: JobId) {
        self.running[id.kind()] -= 1;
    }

    /// Lets the caller alone write a job's record, if nobody does and `when` says so of its state.
    pub(crate) fn claim(&mut self, id: JobId, when: impl FnOnce(&JobState) -> bool) -> bool {
        match self.entries.get_mut(&id) {
            Some(entry) if !entry.being_written && when(&entry.state) => {
                entry.being_written = true;
                true
            }
            _ => false,
        }
    }

    /// A job's new state is on disk.
    pub(crate) fn change(&mut self, id: JobId, state: JobState, since: DateTime<Utc>, result_check: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match state {
            JobState::Done { bytes } => (entry.result_bytes, entry.result_check) = (Some(bytes), result_check),
            JobState::Queued | JobState::Running { .. } | JobState::Failed { .. } | JobState::Downloaded => {}
        }
        self.undone -= usize::from(entry.state.is_undone() && !state.is_undone());
        (entry.state, entry.since, entry.being_written) = (state, since, false);
    }

    /// Nobody writes a job's record any more, and it is what it was.
    pub(crate) fn let_go(&mut self, id: JobId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.being_written = false;
        }
    }

    pub(crate) fn progress(&mut self, id: JobId, done: u64, total: u64) {
        if let Some(Entry { state: state @ JobState::Running { .. }, .. }) = self.entries.get_mut(&id) {
            *state = JobState::Running { done, total };
        }
    }

    /// Takes a job that waits out of the queue, or tells one that runs to stop. In the first case the caller writes its
    /// end. None: there is nothing to stop.
    pub(crate) fn cancel(&mut self, id: JobId) -> Option<Cancelled> {
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
    pub(crate) fn sweep(&mut self, limits: &JobLimits, now: DateTime<Utc>) -> (Vec<JobId>, Vec<JobId>) {
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
pub(crate) enum Cancelled {
    Waiting,
    Running,
}

impl Entry {
    /// Of a job whose record is on disk.
    pub(crate) fn new(order: u64, state: JobState, since: DateTime<Utc>, result_bytes: Option<u64>) -> Self {
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

impl Default for Jobs {
    fn default() -> Self {
        Self::new()
    }
}
