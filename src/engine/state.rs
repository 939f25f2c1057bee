//! THE lock: one `Mutex` around all that calls share: the registry of parts, NumStore's values, the queue of the workers.
//!
//! It is reached through [`Shared::with`] and no guard leaves this file. Inside the closure stand map operations:
//! no I/O, no parsing, no allocation that grows with data. While a thread holds the lock a thread-local flag is set,
//! and every file operation calls [`assert_unlocked`], so that "never held during file I/O" is executed in tests and
//! debug builds. A panic inside the closure poisons nothing: the state is only ever changed by single operations that
//! leave it whole, so the lock is taken back.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
#[cfg(not(feature = "model"))]
use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use imbl::OrdMap;
#[cfg(feature = "model")]
use shuttle::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{
    jobs::Jobs,
    numbers::Numbers,
    part::{Part, PartId, Schema},
    quarantine::MissingParts,
    transfers::{TransferKind, Transfers},
};
use crate::limits::{PARTS_MAX, PARTS_WARNING_PERCENT, SCHEMA_BYTES_MAX, UPLOADS_MAX, WORK_QUEUE_MAX, WORKERS};

/// Room in a queue beside the slices that somebody waits for: what a broken upload leaves to a worker to drop.
const DISCARDS_MAX: usize = 4 * UPLOADS_MAX;

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
    /// A look whether work is done at all, which must not wait behind it.
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

/// The lock and what it guards. Cloning it gives another handle on the same.
#[derive(Clone)]
pub struct Shared(Arc<Guarded>);

struct Guarded {
    state: Mutex<State>,
    /// One for each worker.
    calls: [Call; WORKERS],
}

/// How a worker that waits for work learns that it is not among the idle any more, or that the workers are to end.
struct Call {
    /// A hint for one that is awake.
    came: AtomicBool,
    /// Wakes one that sleeps.
    wake: Condvar,
}

/// What the lock guards.
pub struct State {
    /// The table: what a sum reads.
    pub parts: Registry,
    /// NumStore.
    pub numbers: Numbers,
    /// Work asked for now and fetched later.
    pub jobs: Jobs,
    /// Who sends or reads, and who waits for a permit to, a table for each [`TransferKind`].
    pub transfers: [Transfers; TransferKind::COUNT],
    /// What waits for a worker, a queue for each lane, each bounded.
    queues: [VecDeque<Work>; Lane::COUNT],
    /// The lane whose turn it is.
    turn: usize,
    /// The workers that wait for work. The last to have become idle is called first: most likely its memory is warm.
    idle: Vec<usize>,
    /// No more work is taken; workers end when the queue is empty.
    closed: bool,
}

/// All parts of the table in the order of their ids, and their headers, shared.
pub struct Registry {
    parts: OrdMap<PartId, Arc<Part>>,
    /// Headers by a hash of names and types. Two headers of one hash: the second is not shared, which is only larger.
    schemas: HashMap<u128, Arc<Schema>>,
    schema_bytes: usize,
    /// Given out for the next part to be published; never given out twice.
    next_id: PartId,
    /// Ids given out whose part is not in `parts` yet.
    reserved: usize,
    /// Parts that there may be.
    parts_max: usize,
    /// Parts that should be in `parts` and are in quarantine.
    missing: MissingParts,
    /// Parts of format version 1, which are verified whole at their first use.
    unchecked: usize,
}

/// The work queue is full or closed; the work comes back.
pub struct Refused(pub Work);

thread_local! {
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Stops a test or debug build when this thread holds the lock. Every file operation begins with it, and so does the
/// computing of a factorial.
#[inline]
pub fn assert_unlocked() {
    debug_assert!(!LOCKED.get(), "work or file I/O while the lock is held");
}

/// Sets the thread's flag for as long as the guard that it stands beside.
struct Flag;

impl Flag {
    fn set() -> Self {
        debug_assert!(!LOCKED.get(), "the lock is taken while it is held");
        LOCKED.set(true);
        Self
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        LOCKED.set(false);
    }
}

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
        // If none is idle, none will be before it has found the queues empty.
        if let Some(worker) = idle {
            self.0.calls[worker].call();
        }
        Ok(())
    }

    /// Waits for work for one of the [`WORKERS`], counted from 0, each on one thread; none when the queue is closed and empty.
    ///
    /// If all are idle, it waits awake for up to `awake_max`, once, before it sleeps.
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

    /// How many slices wait in each lane, without those that are being run.
    pub fn waiting_work(&self) -> [(Lane, usize); Lane::COUNT] {
        self.with(|state| Lane::ALL.map(|lane| (lane, state.queues[lane as usize].len())))
    }

    /// Lets the workers end once they have done what is in the queue.
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

    /// Looks for a call again and again, and offers the core to other threads in between.
    fn await_awake(&self, awake_max: Duration) {
        let (end, mut looks) = (Instant::now() + awake_max, 0);
        // The model check knows no time: a few looks stand for it, so that a schedule runs again as it ran.
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
    /// The next slice of the lane whose turn it is, or else of the next one that has any.
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

impl Registry {
    /// All parts as they are now. The copy is O(1) and does not change.
    pub fn snapshot(&self) -> OrdMap<PartId, Arc<Part>> {
        self.parts.clone()
    }

    /// How many parts.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many parts there may be from here on.
    pub fn set_parts_max(&mut self, parts_max: usize) {
        self.parts_max = parts_max;
    }

    /// How many parts there may be.
    pub fn parts_max(&self) -> usize {
        self.parts_max
    }

    /// Whether there may be no more parts than there are or are about to be.
    pub fn is_full(&self) -> bool {
        self.parts.len() + self.reserved >= self.parts_max
    }

    /// How many parts make the table nearly full.
    pub fn warning_len(&self) -> usize {
        (self.parts_max * PARTS_WARNING_PERCENT).div_ceil(100)
    }

    /// An id for a part that is about to be published; none if the table is full. It must come back by `insert` or
    /// `release`.
    pub fn reserve(&mut self) -> Option<PartId> {
        if self.is_full() || self.next_id == PartId::END {
            return None;
        }
        self.reserved += 1;
        let id = self.next_id;
        self.next_id = id.next();
        Some(id)
    }

    /// A reserved id was not used. Its number is not given out again.
    pub fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// A part under a reserved id: from here on it is in every sum. Says whether the table is nearly full with it, and
    /// was not before.
    pub fn insert(&mut self, part: Arc<Part>) -> bool {
        self.release();
        self.parts.insert(part.id, part);
        self.parts.len() == self.warning_len()
    }

    /// A part that was found at start, and the ids that must not be given out again.
    pub fn restore(&mut self, part: Arc<Part>) {
        self.skip_to(part.id);
        self.unchecked += usize::from(part.checks.is_none());
        self.parts.insert(part.id, part);
    }

    /// Whether a part is in the table.
    pub fn contains(&self, id: PartId) -> bool {
        self.parts.contains_key(&id)
    }

    /// The parts in quarantine whose loss no operator has accepted.
    pub fn missing(&self) -> &MissingParts {
        &self.missing
    }

    /// What a look at the quarantine found.
    pub fn set_missing(&mut self, missing: MissingParts) {
        self.missing = missing;
    }

    /// The loss of a missing part was accepted. Says whether the quarantine has to be looked at again.
    pub fn accept_loss(&mut self, id: PartId) -> bool {
        self.missing.remove(id)
    }

    /// How many parts are of format version 1.
    pub fn unchecked(&self) -> usize {
        self.unchecked
    }

    /// A part of format version 1 that has been verified whole, in its new version.
    pub fn replace(&mut self, part: Arc<Part>) {
        if let Some(old) = self.parts.get_mut(&part.id) {
            self.unchecked -= usize::from(old.checks.is_none() && part.checks.is_some());
            *old = part;
        }
    }

    /// Ids up to this one are not given out again. The end of the range, which is in quarantine if it is anywhere, counts
    /// for nothing.
    pub fn skip_to(&mut self, id: PartId) {
        if id != PartId::END {
            self.next_id = self.next_id.max(id.next());
        }
    }

    /// The header kept under a hash.
    pub fn schema(&self, hash: u128) -> Option<Arc<Schema>> {
        self.schemas.get(&hash).cloned()
    }

    /// Keeps a header if there is room for it, and says whether.
    pub fn keep_schema(&mut self, hash: u128, schema: &Arc<Schema>) -> bool {
        let bytes = self.schema_bytes + schema.bytes();
        let fits = bytes <= SCHEMA_BYTES_MAX && !self.schemas.contains_key(&hash);
        if fits {
            self.schema_bytes = bytes;
            self.schemas.insert(hash, Arc::clone(schema));
        }
        fits
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn file_operations_under_the_lock_stop_a_test_build() {
        let shared = Shared::new();
        let inside = catch_unwind(AssertUnwindSafe(|| shared.with(|_| assert_unlocked())));
        assert!(inside.is_err(), "a file operation under the lock went unnoticed");
        assert_unlocked();
    }

    #[test]
    fn a_panic_under_the_lock_leaves_it_usable() {
        let shared = Shared::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| shared.with(|_| panic!("on purpose"))));
        assert!(panicked.is_err());
        assert_eq!(shared.with(|state| state.parts.reserve()), Some(PartId::FIRST));
        assert_unlocked();
    }

    #[test]
    fn a_full_queue_gives_the_work_back() {
        let shared = Shared::new();
        for _ in 0..WORK_QUEUE_MAX + DISCARDS_MAX {
            assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_ok());
        }
        assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_err());
        assert!(shared.next_work(0, Duration::ZERO).is_some());
        assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_ok());
        shared.close_work();
        assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_err());
    }

    /// Workers become idle in the order of their numbers, then `put` puts work in the queue: who comes for it, if anybody.
    fn who_comes(workers: usize, awake_max: Duration, put: impl FnOnce(&Shared)) -> Option<usize> {
        /// Longer than anybody takes who comes at all.
        const NOBODY_COMES: Duration = Duration::from_secs(10);
        let (shared, (told, came)) = (Shared::new(), std::sync::mpsc::channel());
        thread::scope(|scope| {
            for worker in 0..workers {
                let (shared, told) = (&shared, told.clone());
                scope.spawn(move || {
                    let work = shared.next_work(worker, awake_max);
                    assert!(work.is_none() || told.send(worker).is_ok());
                });
                while shared.with(|state| state.idle.len()) <= worker {
                    thread::yield_now();
                }
            }
            put(&shared);
            let worker = came.recv_timeout(NOBODY_COMES);
            shared.close_work();
            worker.ok()
        })
    }

    #[test]
    fn the_last_to_become_idle_is_called_first() {
        let push = |shared: &Shared| drop(shared.push_work(Lane::Upload, Box::new(|| ())));
        assert_eq!(who_comes(3, Duration::ZERO, push), Some(2));
    }

    #[test]
    fn the_last_of_all_to_become_idle_waits_awake() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        // Nobody is woken: only one that is awake sees the hint.
        let hint = |shared: &Shared| {
            let called = shared.with(|state| {
                state.queues[Lane::Upload as usize].push_back(Box::new(|| ()));
                state.idle.pop()
            });
            called.into_iter().for_each(|worker| shared.0.calls[worker].came.store(true, Ordering::Relaxed));
        };
        assert_eq!(who_comes(WORKERS, DAY, hint), Some(WORKERS - 1));
    }

    #[test]
    fn lanes_take_turns() {
        let shared = Shared::new();
        let (told, order) = std::sync::mpsc::channel();
        for (lane, name) in [
            (Lane::Job, "j1"),
            (Lane::Job, "j2"),
            (Lane::Question, "q1"),
            (Lane::Question, "q2"),
            (Lane::Question, "q3"),
            (Lane::Upload, "u1"),
        ] {
            let told = told.clone();
            assert!(shared.push_work(lane, Box::new(move || told.send(name).expect("heard"))).is_ok());
        }
        shared.close_work();
        while let Some(work) = shared.next_work(0, Duration::ZERO) {
            work();
        }
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["u1", "q1", "j1", "q2", "j2", "q3"]);
    }
}
