//! The one lock: a `Mutex` around all state that calls share, such as the registry of parts, the jobs, and the queues of the
//! workers.
//!
//! It is reached through [`Shared::with`] and no guard leaves this file. Inside the closure there are only map operations:
//! no I/O, no parsing, no allocation that grows with data. While a thread holds the lock, a thread-local flag is set.
//! Every file operation calls [`lock_check::assert_unlocked`], so that tests and debug builds check that the lock is not
//! held. A panic inside the closure does not make the lock unusable: every single change leaves the state consistent, so
//! the poisoned lock is taken anyway.

pub mod jobs;
pub mod lock_check;
pub mod missing_parts;
pub mod numbers;
pub mod registry;
#[cfg(all(test, not(feature = "model")))]
mod tests;
pub mod transfers;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use imbl::OrdMap;

use self::{
    jobs::Jobs,
    lock_check::Flag,
    missing_parts::MissingParts,
    numbers::Numbers,
    registry::Registry,
    transfers::{TransferKind, Transfers},
};
use crate::{
    limits::{PARTS_MAX, UPLOADS_MAX, WORK_QUEUE_MAX, WORKERS},
    model::part::PartId,
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

/// Extra room in each queue for values that a worker has to drop, such as the files of broken uploads.
pub(super) const DISCARDS_MAX: usize = 4 * UPLOADS_MAX;

/// A slice of work for a worker.
pub type Work = Box<dyn FnOnce() + Send>;

/// What a slice is for. The workers take from the lanes in turn, so that a step of an upload does not wait behind
/// all slices of all questions, nor a question behind all uploads, nor either behind jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Receiving, typing, converting, publishing; start and receipts too.
    Upload,
    /// Reading stored parts to answer.
    Question,
    /// Work that is asked for now and fetched later.
    Job,
    /// A health check, which must not wait behind other work.
    Probe,
}

impl Lane {
    /// How many lanes there are.
    pub const COUNT: usize = 4;
    /// Every lane, in the order of their queues.
    pub const ALL: [Self; Self::COUNT] = [Self::Upload, Self::Question, Self::Job, Self::Probe];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Question => "question",
            Self::Job => "job",
            Self::Probe => "probe",
        }
    }
}

/// The lock and what it guards. A clone is another handle on the same state.
#[derive(Clone)]
pub struct Shared(Arc<Guarded>);

struct Guarded {
    state: Mutex<State>,
    /// One for each worker.
    calls: [Call; WORKERS],
}

/// How an idle worker learns that it has been chosen for new work, or that the workers have to end.
struct Call {
    /// Set for a worker that polls.
    came: AtomicBool,
    /// Wakes a worker that sleeps.
    wake: Condvar,
}

/// What the lock guards.
pub struct State {
    /// The table: what a sum reads.
    pub parts: Registry,
    /// The values of the key/value service.
    pub numbers: Numbers,
    /// Work asked for now and fetched later.
    pub jobs: Jobs,
    /// The transfers that run or wait, one table for each [`TransferKind`].
    pub transfers: [Transfers; TransferKind::COUNT],
    /// Work that waits for a worker: one bounded queue for each lane.
    queues: [VecDeque<Work>; Lane::COUNT],
    /// The lane from which the next work is taken, if it has any.
    turn: usize,
    /// The workers that wait for work. New work goes to the worker that became idle last, because its data is most likely
    /// still in the CPU's cache.
    idle: Vec<usize>,
    /// No more work is taken; workers end when the queue is empty.
    closed: bool,
}

/// The work queue is full or closed; the work comes back.
pub struct Refused(pub Work);

impl Shared {
    /// An empty table and an empty queue.
    pub fn new() -> Self {
        let parts = Registry {
            parts: OrdMap::new(),
            schemas: HashMap::new(),
            schema_bytes: 0,
            next_id: PartId::FIRST,
            reserved: 0,
            parts_max: PARTS_MAX,
            missing: MissingParts::default(),
            unchecked: 0,
        };
        let queues = [(); Lane::COUNT].map(|()| VecDeque::with_capacity(WORK_QUEUE_MAX + DISCARDS_MAX));
        let idle = Vec::with_capacity(WORKERS);
        let transfers = [(); TransferKind::COUNT].map(|()| Transfers::new(0, 0));
        let state = State {
            parts,
            numbers: Numbers::new(),
            jobs: Jobs::new(),
            transfers,
            queues,
            turn: 0,
            idle,
            closed: false,
        };
        Self(Arc::new(Guarded { state: Mutex::new(state), calls: [(); WORKERS].map(|()| Call::new()) }))
    }

    /// Runs `f` with the lock held. Lock, copy, unlock, work: what `f` returns is a copy.
    pub fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let _flag = Flag::set();
        f(&mut state)
    }

    /// Puts work in its lane's queue for the next free worker.
    pub fn push_work(&self, lane: Lane, work: Work) -> Result<(), Refused> {
        let idle = self.with(|state| {
            let queue = &mut state.queues[lane as usize];
            if state.closed || queue.len() >= WORK_QUEUE_MAX + DISCARDS_MAX {
                return Err(Refused(work));
            }
            queue.push_back(work);
            Ok(state.idle.pop())
        })?;
        // If no worker is idle, each will look into the queues again before it becomes idle.
        if let Some(worker) = idle {
            self.0.calls[worker].call();
        }
        Ok(())
    }

    /// Waits for work for a worker, which is a number below [`WORKERS`] and has its own thread. Returns `None` when the queues
    /// are closed and empty.
    ///
    /// If all workers are idle, this one polls for up to `awake_max`, once per call, before it sleeps.
    pub fn next_work(&self, worker: usize, mut awake_max: Duration) -> Option<Work> {
        let call = &self.0.calls[worker];
        let mut state = self.lock();
        loop {
            if let Some(work) = state.pop_work() {
                return Some(work);
            }
            if state.closed {
                return None;
            }
            state.idle.push(worker);
            call.came.store(false, Ordering::Relaxed);
            if state.idle.len() == WORKERS && !awake_max.is_zero() {
                drop(state);
                call.await_awake(std::mem::take(&mut awake_max));
                state = self.lock();
            }
            while state.idle.contains(&worker) && !state.closed {
                state = call.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// How many slices wait in each lane. Slices that are running do not count.
    pub fn waiting_work(&self) -> [(Lane, usize); Lane::COUNT] {
        self.with(|state| Lane::ALL.map(|lane| (lane, state.queues[lane as usize].len())))
    }

    /// Closes the queues: the workers end when these are empty.
    pub fn close_work(&self) {
        self.with(|state| state.closed = true);
        self.0.calls.iter().for_each(Call::call);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    fn new() -> Self {
        Self { came: AtomicBool::new(false), wake: Condvar::new() }
    }

    fn call(&self) {
        self.came.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Polls for a call, and yields to other threads in between.
    fn await_awake(&self, awake_max: Duration) {
        let (end, mut looks) = (Instant::now() + awake_max, 0);
        // The model checker has no clock. It polls a fixed number of times instead, so that a schedule can be repeated.
        let is_over = |looks| if cfg!(feature = "model") { looks == 3 } else { Instant::now() >= end };
        while !self.came.load(Ordering::Relaxed) && !is_over(looks) {
            thread::yield_now();
            looks += 1;
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Takes the next slice from the lane whose turn it is, or from the next lane that has one.
    fn pop_work(&mut self) -> Option<Work> {
        let lanes = self.queues.len();
        for later in 0..lanes {
            let lane = (self.turn + later) % lanes;
            if let Some(work) = self.queues[lane].pop_front() {
                self.turn = (lane + 1) % lanes;
                return Some(work);
            }
        }
        None
    }
}
