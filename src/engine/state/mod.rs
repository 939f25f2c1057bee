//! The one lock: a `Mutex` around all state that calls share, such as the registry of parts, the jobs, and the queues of the
//! workers.
//!
//! It is taken in [`Shared::with`], and no guard leaves this file. Inside the closure there are only map operations: no I/O,
//! no parsing, no allocation that grows with data. Every file operation calls [`lock_check::assert_unlocked`], which panics
//! in tests and debug builds if the thread holds the lock. After a panic inside the closure the poisoned lock is taken
//! anyway, because every single change leaves the state consistent.

pub mod column_types;
pub mod jobs;
pub mod lock_check;
pub mod missing_parts;
pub mod numbers;
mod packed;
pub mod registry;
pub mod removed_parts;
mod room;
pub mod schemas;
pub mod sums;
#[cfg(all(test, not(feature = "model")))]
mod tests;
pub mod transfers;
pub mod upload_keys;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use imbl::{OrdMap, OrdSet};

use self::{
    column_types::ColumnNames,
    jobs::Jobs,
    lock_check::Flag,
    missing_parts::MissingParts,
    numbers::Numbers,
    registry::{Registry, Totals},
    removed_parts::{Removal, RemovedPart, RemovedParts, Search},
    sums::Sums,
    transfers::{TransferKind, Transfers},
    upload_keys::{ClaimedKeys, PartKeys},
};
use crate::{
    limits::{PACK_ABOVE, PARTS_MAX, UPLOADS_MAX, WORK_QUEUE_MAX, WORKERS},
    model::part::{Part, PartId},
};

#[cfg(feature = "model")]
use shuttle::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
#[cfg(not(feature = "model"))]
use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Extra capacity of each queue for values that a worker has to drop, such as the files of aborted uploads.
pub(super) const DISCARDS_MAX: usize = 4 * UPLOADS_MAX;

/// A task for a worker.
pub type Work = Box<dyn FnOnce() + Send>;

/// The purpose of a task. Each lane has its own queue. The workers take tasks from the lanes in turn, so that uploads do not
/// wait behind all questions, nor questions behind all uploads, nor either behind jobs. Only packing comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Uploads, reading receipts, and the start of the server.
    Upload,
    /// Reading stored parts for answers.
    Question,
    /// Work that is requested now and whose result is fetched later.
    Job,
    /// A health check, which must not wait behind other work.
    Probe,
    /// Packing, which is served only if no other lane has a task.
    Pack,
}

impl Lane {
    /// The number of lanes.
    pub const COUNT: usize = 5;
    /// Every lane, in the order of their queues.
    pub const ALL: [Self; Self::COUNT] = [Self::Upload, Self::Question, Self::Job, Self::Probe, Self::Pack];

    /// The lane's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Question => "question",
            Self::Job => "job",
            Self::Probe => "probe",
            Self::Pack => "pack",
        }
    }
}

/// The lock and what it guards. A clone is another handle on the same state.
#[derive(Clone)]
pub struct Shared(Arc<Guarded>);

struct Guarded {
    state: Mutex<State>,
    /// One for each worker.
    signals: [WakeSignal; WORKERS],
}

/// Notifies an idle worker that it has been chosen for new work, or that it has to end.
struct WakeSignal {
    /// Read by a worker that polls.
    is_set: AtomicBool,
    /// Wakes a worker that sleeps.
    condvar: Condvar,
}

/// What the lock guards.
pub struct State {
    /// The parts of the table.
    pub parts: Registry,
    /// The idempotency keys that uploads have claimed.
    pub claimed_keys: ClaimedKeys,
    /// The values of the key/value service.
    pub numbers: Numbers,
    /// The jobs.
    pub jobs: Jobs,
    /// The transfers that run or wait, one table for each [`TransferKind`].
    pub transfers: [Transfers; TransferKind::COUNT],
    /// The column sums that are being computed.
    pub sums: Sums,
    /// Tasks that wait for a worker: one bounded queue for each lane.
    queues: [VecDeque<Work>; Lane::COUNT],
    /// The lane from which the next task is taken, if it has one.
    turn: usize,
    /// The idle workers. A new task goes to the worker that became idle last, because its data is most likely still in the
    /// CPU's cache.
    idle: Vec<usize>,
    /// No more tasks are accepted; workers end when the queues are empty.
    closed: bool,
}

/// The error of a full or closed queue. It returns the task.
pub struct Refused(pub Work);

/// How long a worker sleeps before it gives its free memory back.
const IDLE_AFTER: Duration = Duration::from_secs(1);

impl Shared {
    /// An empty table and an empty queue.
    pub fn new() -> Self {
        let parts = Registry {
            parts: OrdMap::new(),
            segments: OrdMap::new(),
            packed: 0,
            packed_removed: OrdSet::new(),
            packed_purged: OrdSet::new(),
            segments_weight: 0,
            packable: 0,
            is_packing_stuck: false,
            schemas: BTreeMap::new(),
            schema_bytes: 0,
            without_schema: 0,
            totals: Totals::default(),
            next_id: PartId::FIRST,
            reserved: 0,
            parts_max: PARTS_MAX,
            pack_above: PACK_ABOVE,
            missing: MissingParts::default(),
            unchecked: 0,
            column_names: ColumnNames::new(),
            removed: RemovedParts::default(),
            keys: PartKeys::new(),
        };
        let queues = [(); Lane::COUNT].map(|()| VecDeque::with_capacity(WORK_QUEUE_MAX + DISCARDS_MAX));
        let idle = Vec::with_capacity(WORKERS);
        let transfers = [(); TransferKind::COUNT].map(|()| Transfers::new(0, 0));
        let state = State {
            parts,
            claimed_keys: ClaimedKeys::new(),
            numbers: Numbers::new(),
            jobs: Jobs::new(),
            transfers,
            sums: Sums::default(),
            queues,
            turn: 0,
            idle,
            closed: false,
        };
        Self(Arc::new(Guarded { state: Mutex::new(state), signals: [(); WORKERS].map(|()| WakeSignal::new()) }))
    }

    /// The first removed part after `after` whose files can be deleted.
    pub fn next_to_delete(&self, after: Option<PartId>, now_s: u32, undo_s: u32) -> Option<PartId> {
        self.next_removed_part(after, |removed| removed.can_be_deleted(now_s, undo_s))
    }

    /// The first removed part after `after` that `matches` and is not purged.
    pub fn next_removed(&self, after: Option<PartId>, matches: impl Fn(&Part, Removal) -> bool) -> Option<PartId> {
        let is_kept = |removed: &RemovedPart| removed.removal != Removal::Purged;
        self.next_removed_part(after, |removed| is_kept(removed) && matches(&removed.part, removed.removal))
    }

    /// As [`Self::next_removed`], of parts that have their own files.
    pub fn next_removed_unpacked(
        &self,
        after: Option<PartId>,
        matches: impl Fn(&Part, Removal) -> bool,
    ) -> Option<PartId> {
        let is_kept = |removed: &RemovedPart| removed.removal != Removal::Purged && !removed.is_packed;
        self.next_removed_part(after, |removed| is_kept(removed) && matches(&removed.part, removed.removal))
    }

    /// Takes the lock again for each step of the search.
    fn next_removed_part(&self, mut after: Option<PartId>, is_wanted: impl Fn(&RemovedPart) -> bool) -> Option<PartId> {
        loop {
            match self.with(|state| state.parts.removed().search(after, &is_wanted)) {
                Search::Found(id) => return Some(id),
                Search::After(id) => after = Some(id),
                Search::End => return None,
            }
        }
    }

    /// Runs `f` with the lock held. `f` returns a copy of what its caller needs.
    pub fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let _flag = Flag::set();
        f(&mut state)
    }

    /// Puts a task in the queue of its lane, and wakes a worker if one is idle.
    pub fn push_work(&self, lane: Lane, work: Work) -> Result<(), Refused> {
        let idle = self.with(|state| {
            let queue = &mut state.queues[lane as usize];
            if state.closed || queue.len() >= WORK_QUEUE_MAX + DISCARDS_MAX {
                return Err(Refused(work));
            }
            queue.push_back(work);
            Ok(state.idle.pop())
        })?;
        // If no worker is idle, each will check the queues again before it becomes idle.
        if let Some(worker) = idle {
            self.0.signals[worker].notify();
        }
        Ok(())
    }

    /// Waits for a task for a worker (a number below [`WORKERS`]). Returns `None` when the queues are closed and empty.
    ///
    /// If all workers are idle, this one polls for up to `poll_max`, once per call, before it sleeps. If it then has slept for
    /// a second, it calls `on_idle`, once per call.
    pub fn next_work(&self, worker: usize, mut poll_max: Duration, on_idle: impl FnOnce()) -> Option<Work> {
        let mut on_idle = Some(on_idle).filter(|_| cfg!(not(feature = "model"))); // the model checker has no clock
        let signal = &self.0.signals[worker];
        let mut state = self.lock();
        loop {
            if let Some(work) = state.pop_work() {
                return Some(work);
            }
            if state.closed {
                return None;
            }
            state.idle.push(worker);
            signal.is_set.store(false, Ordering::Relaxed);
            if state.idle.len() == WORKERS && !poll_max.is_zero() {
                drop(state);
                signal.poll(std::mem::take(&mut poll_max));
                state = self.lock();
            }
            while state.idle.contains(&worker) && !state.closed {
                state = match on_idle.take() {
                    None => signal.condvar.wait(state).unwrap_or_else(PoisonError::into_inner),
                    Some(on_idle) => self.wait_or_idle(worker, state, on_idle),
                };
            }
        }
    }

    /// Waits for the worker's signal, and calls `on_idle` without the lock if there is none for some time.
    fn wait_or_idle<'a>(
        &'a self,
        worker: usize,
        state: MutexGuard<'a, State>,
        on_idle: impl FnOnce(),
    ) -> MutexGuard<'a, State> {
        let signal = &self.0.signals[worker].condvar;
        let (state, waited) = signal.wait_timeout(state, IDLE_AFTER).unwrap_or_else(PoisonError::into_inner);
        if !waited.timed_out() {
            return state;
        }
        drop(state);
        on_idle();
        self.lock()
    }

    /// How many tasks wait in each lane, without those that are running.
    pub fn waiting_work(&self) -> [(Lane, usize); Lane::COUNT] {
        self.with(|state| Lane::ALL.map(|lane| (lane, state.queues[lane as usize].len())))
    }

    /// Closes the queues. The workers end when the queues are empty.
    pub fn close_work(&self) {
        self.with(|state| state.closed = true);
        self.0.signals.iter().for_each(WakeSignal::notify);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WakeSignal {
    fn new() -> Self {
        Self { is_set: AtomicBool::new(false), condvar: Condvar::new() }
    }

    fn notify(&self) {
        self.is_set.store(true, Ordering::Relaxed);
        self.condvar.notify_one();
    }

    /// Waits for the signal for up to `poll_max` without sleeping, and yields to other threads meanwhile.
    fn poll(&self, poll_max: Duration) {
        let (end, mut polls) = (Instant::now() + poll_max, 0);
        // The model checker has no clock. It polls a fixed number of times instead, so that a schedule can be repeated.
        let is_over = |polls| if cfg!(feature = "model") { polls == 3 } else { Instant::now() >= end };
        while !self.is_set.load(Ordering::Relaxed) && !is_over(polls) {
            thread::yield_now();
            polls += 1;
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Takes the next task from the lane whose turn it is, or from the next lane that has one; one of packing only if no other
    /// lane has one.
    fn pop_work(&mut self) -> Option<Work> {
        let lanes = Lane::Pack as usize;
        for later in 0..lanes {
            let lane = (self.turn + later) % lanes;
            if let Some(work) = self.queues[lane].pop_front() {
                self.turn = (lane + 1) % lanes;
                return Some(work);
            }
        }
        self.queues[lanes].pop_front()
    }
}
