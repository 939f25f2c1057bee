//! The job table: which jobs are known, the state of each, and which job runs next. A plain table under the lock: it
//! starts no job and touches no file.

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
    limits::{EVICTED_JOBS, JOBS_MAX, JobLimits, SURVEYS_AT_ONCE_MAX, TASKS_AT_ONCE},
};

/// The target of the log lines about what becomes of jobs. The file of `--log-file` has them, too.
pub const JOB_EVENTS: &str = "tally::jobs";

/// A job's id: a number for a statistic, as in the original statistics servers, or a UUID for a file-processing task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum JobId {
    /// A statistic. The first is 1.
    Survey(u64),
    /// A file that is grouped and summed.
    Task(Uuid),
}

/// The state of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It runs. Progress is counted in parts for a statistic, and in bytes of the file for a task.
    Running {
        /// How much is done.
        done: u64,
        /// How much there is to do.
        total: u64,
    },
    /// Its result can be fetched.
    Done {
        /// The result's size.
        bytes: u64,
    },
    /// It has ended without a result.
    Failed {
        /// Why. Shared, because states are copied while the lock is held.
        reason: Arc<str>,
    },
    /// Its whole result has been fetched.
    Downloaded,
}

/// A job as callers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// Whether its result is on disk.
    pub has_result: bool,
}

/// A job in a list of all jobs.
#[derive(Clone, Debug)]
pub struct ListedJob {
    /// The job.
    pub job: Job,
    /// When it got its state.
    pub since: DateTime<Utc>,
}

/// How many jobs are in which state.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobCounts {
    /// Jobs that wait.
    pub queued: usize,
    /// Jobs that run.
    pub running: usize,
    /// Jobs with a result.
    pub done: usize,
    /// Jobs that failed.
    pub failed: usize,
    /// Jobs whose result was fetched.
    pub downloaded: usize,
}

/// All jobs that are known.
pub struct Jobs {
    pub(crate) entries: BTreeMap<JobId, Entry>,
    /// Statistics that wait or run.
    surveys: KindQueue,
    /// File-processing tasks that wait or run.
    tasks: KindQueue,
    /// How many jobs are queued, running, or reserved.
    pub(crate) undone: usize,
    /// How many of `undone` are not in `entries` yet, because their first record is being written.
    pub(crate) reserved: usize,
    next_number: u64,
    next_order: u64,
    /// The order of the first job that was accepted since the start.
    first_accepted: u64,
    /// Whether new jobs are refused.
    pub(crate) refused: bool,
}

/// The jobs of one kind that wait, and how many of that kind run.
struct KindQueue {
    /// In the order in which they will run.
    waiting: VecDeque<JobId>,
    running: usize,
    /// How many of them run at once.
    at_once: usize,
}

/// What a job computes. Each kind has its own queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobKind {
    /// A statistic.
    Survey,
    /// A file that is grouped and summed.
    Task,
}

/// A job in memory. What it has to do is only in its record on disk.
pub(crate) struct Entry {
    /// The order in which jobs were accepted.
    pub(crate) order: u64,
    pub(crate) state: JobState,
    /// When it got this state.
    pub(crate) since: DateTime<Utc>,
    /// The size of the result; `None` if no result is on disk.
    pub(crate) result_bytes: Option<u64>,
    /// The checksum that the result is verified against.
    pub(crate) result_check: Option<u64>,
    /// Whether its record is being written: until that ends, the job can be neither cancelled nor removed.
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

    /// Accepts exactly what `Display` writes.
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
    pub(crate) fn kind(self) -> JobKind {
        match self {
            Self::Survey(_) => JobKind::Survey,
            Self::Task(_) => JobKind::Task,
        }
    }
}

impl JobKind {
    /// All kinds; jobs of the first start first.
    const ALL: [Self; 2] = [Self::Survey, Self::Task];
}

impl KindQueue {
    fn new(at_once: usize) -> Self {
        Self { waiting: VecDeque::new(), running: 0, at_once }
    }
}

impl Jobs {
    /// No jobs.
    pub fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            surveys: KindQueue::new(SURVEYS_AT_ONCE_MAX),
            tasks: KindQueue::new(TASKS_AT_ONCE),
            undone: 0,
            reserved: 0,
            next_number: 1,
            next_order: 1,
            first_accepted: 1,
            refused: false,
        }
    }

    /// Sets how many statistics run at once.
    pub(crate) fn set_surveys_at_once(&mut self, at_once: usize) {
        self.surveys.at_once = at_once;
    }

    /// A job; `None` if it is not known.
    pub fn get(&self, id: JobId) -> Option<Job> {
        self.entries.get(&id).map(|entry| entry.to_job(id))
    }

    /// All statistics, in the order of their numbers.
    pub fn surveys(&self) -> Vec<Job> {
        let surveys = self.entries.range(JobId::Survey(0)..=JobId::Survey(u64::MAX));
        surveys.map(|(&id, entry)| entry.to_job(id)).collect()
    }

    /// The jobs of both kinds that were accepted last, the newest first.
    pub fn newest(&self, count_max: usize) -> Vec<ListedJob> {
        let mut found: Vec<_> = self.entries.iter().map(|(&id, entry)| (entry.order, id)).collect();
        found.sort_unstable_by_key(|&(order, _)| std::cmp::Reverse(order));
        found.truncate(count_max);
        let listed = |id: JobId| {
            let entry = self.entries.get(&id)?;
            Some(ListedJob { job: entry.to_job(id), since: entry.since })
        };
        found.into_iter().filter_map(|(_, id)| listed(id)).collect()
    }

    /// How many jobs were accepted and have not ended.
    pub fn undone(&self) -> usize {
        self.undone - self.reserved
    }

    /// How many jobs are in each state.
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

    /// Refuses jobs from now on. Returns whether they were accepted until now.
    pub fn refuse(&mut self) -> bool {
        !std::mem::replace(&mut self.refused, true)
    }

    /// Whether all jobs have ended and no more are accepted.
    pub(crate) fn is_drained(&self) -> bool {
        self.refused && self.undone() == 0
    }

    /// Reserves an entry for a job that is about to be accepted. Returns the job's order, and the jobs that were removed to
    /// make room, whose files the caller removes.
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
            // Jobs without a result are removed first.
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

    /// Makes sure that the number of a statistic is not given to a new one.
    pub(crate) fn skip_to(&mut self, id: JobId) {
        if let JobId::Survey(number) = id {
            self.next_number = self.next_number.max(number + 1);
        }
    }

    /// Adds a job that was accepted, or found at start. It waits in the queue if it has not ended.
    pub(crate) fn insert(&mut self, id: JobId, entry: Entry) {
        self.skip_to(id);
        self.next_order = self.next_order.max(entry.order + 1);
        if entry.state.is_undone() {
            self.undone += 1;
            self.queue(id.kind()).waiting.push_back(id);
        }
        self.entries.insert(id, entry);
    }

    /// Notes that the jobs so far were found at the start.
    pub(crate) fn all_were_found(&mut self) {
        self.first_accepted = self.next_order;
    }

    /// Whether the job with this order was found at the start, and not accepted since.
    pub(crate) fn was_found(&self, order: u64) -> bool {
        order < self.first_accepted
    }

    /// Takes the next job that may run from its queue, if there is one. It counts as running until `ended`.
    pub(crate) fn start_next(&mut self) -> Option<(JobId, CancellationToken)> {
        let may_start = |kind: &JobKind| {
            let queue = self.queue(*kind);
            queue.running < queue.at_once && !queue.waiting.is_empty()
        };
        let kind = JobKind::ALL.into_iter().find(may_start)?;
        let id = self.queue(kind).waiting.pop_front()?;
        let cancel = self.entries.get(&id)?.cancel.clone();
        self.queue(kind).running += 1;
        Some((id, cancel))
    }

    fn queue(&mut self, kind: JobKind) -> &mut KindQueue {
        match kind {
            JobKind::Survey => &mut self.surveys,
            JobKind::Task => &mut self.tasks,
        }
    }

    /// Whether a job waits in its queue.
    #[cfg(all(test, not(feature = "model")))]
    pub(crate) fn is_waiting(&mut self, id: JobId) -> bool {
        self.queue(id.kind()).waiting.contains(&id)
    }

    /// Notes that a job no longer runs.
    pub(crate) fn ended(&mut self, id: JobId) {
        self.queue(id.kind()).running -= 1;
    }

    /// Gives the caller the exclusive right to write a job's record until `change` or `end_write`. Returns `false` if another
    /// one has that right, or if `when` returns `false` for the job's state.
    pub(crate) fn begin_write(&mut self, id: JobId, when: impl FnOnce(&JobState) -> bool) -> bool {
        match self.entries.get_mut(&id) {
            Some(entry) if !entry.being_written && when(&entry.state) => {
                entry.being_written = true;
                true
            }
            _ => false,
        }
    }

    /// Notes a job's new state, which has been written to disk, and ends the right to write its record. Returns whether the job
    /// has ended with this state.
    pub(crate) fn change(
        &mut self,
        id: JobId,
        state: JobState,
        since: DateTime<Utc>,
        result_check: Option<u64>,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        match state {
            JobState::Done { bytes } => (entry.result_bytes, entry.result_check) = (Some(bytes), result_check),
            JobState::Queued | JobState::Running { .. } | JobState::Failed { .. } | JobState::Downloaded => {}
        }
        let has_ended = entry.state.is_undone() && !state.is_undone();
        self.undone -= usize::from(has_ended);
        (entry.state, entry.since, entry.being_written) = (state, since, false);
        has_ended
    }

    /// Gives up the right to write a job's record, which was not changed.
    pub(crate) fn end_write(&mut self, id: JobId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.being_written = false;
        }
    }

    pub(crate) fn progress(&mut self, id: JobId, done: u64, total: u64) {
        if let Some(Entry { state: state @ JobState::Running { .. }, .. }) = self.entries.get_mut(&id) {
            *state = JobState::Running { done, total };
        }
    }

    /// Removes a waiting job from its queue, or cancels a running job. After the first, the caller has to write the job's new
    /// state to disk. `None` if the job has ended or does not exist.
    pub(crate) fn cancel(&mut self, id: JobId) -> Option<Cancelled> {
        let entry = self.entries.get_mut(&id)?;
        let queue = match id.kind() {
            JobKind::Survey => &mut self.surveys,
            JobKind::Task => &mut self.tasks,
        };
        match entry.state {
            JobState::Queued => match queue.waiting.iter().position(|waiting| *waiting == id) {
                Some(index) => {
                    queue.waiting.remove(index);
                    entry.being_written = true;
                    Some(Cancelled::Waiting)
                }
                None => {
                    entry.cancel.cancel(); // it has left the queue and is about to run
                    Some(Cancelled::Running)
                }
            },
            JobState::Running { .. } if entry.being_written => None, // its end is being written
            JobState::Running { .. } => {
                entry.cancel.cancel();
                Some(Cancelled::Running)
            }
            JobState::Done { .. } | JobState::Failed { .. } | JobState::Downloaded => None,
        }
    }

    /// Jobs that may be removed, in the order in which they ended. The newest statistic is not among them: if it were
    /// removed, the next start of the server would give its number to another one.
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

    /// Removes jobs and results that are too old or too many. Returns the jobs whose files the caller has to remove, and the
    /// jobs of which only the result has to be removed.
    pub(crate) fn sweep(&mut self, limits: &JobLimits, now: DateTime<Utc>) -> (Vec<JobId>, Vec<JobId>) {
        let mut results = Vec::new();
        for (&id, entry) in &mut self.entries {
            // Not at once: if the last bytes did not reach the client, it may ask again.
            let is_settled = (now - entry.since).to_std().is_ok_and(|age| age >= limits.sweep_interval);
            if entry.state == JobState::Downloaded && is_settled && entry.result_bytes.take().is_some() {
                results.push(id);
            }
        }
        let mut jobs = Vec::new();
        let mut bytes: u64 = self.entries.values().filter_map(|entry| entry.result_bytes).sum();
        let removable = self.removable();
        // The newest result is kept whatever its size, because a client waits for it.
        let newest = removable.iter().rev().find(|(_, id)| self.entries[id].result_bytes.is_some()).copied();
        for (since, id) in removable {
            let result_bytes = self.entries[&id].result_bytes.unwrap_or(0);
            let is_old = (now - since).to_std().is_ok_and(|age| age > limits.age_max);
            let takes_too_much = bytes > limits.bytes_max && result_bytes > 0 && newest != Some((since, id));
            if is_old || takes_too_much {
                bytes -= result_bytes;
                self.entries.remove(&id);
                results.retain(|other| *other != id);
                jobs.push(id);
            }
        }
        (jobs, results)
    }
}

/// The state of a job when it was cancelled.
pub(crate) enum Cancelled {
    Waiting,
    Running,
}

impl Entry {
    /// The entry of a job whose record is on disk.
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

    fn to_job(&self, id: JobId) -> Job {
        Job { id, state: self.state.clone(), has_result: self.result_bytes.is_some() }
    }
}

impl Default for Jobs {
    fn default() -> Self {
        Self::new()
    }
}
