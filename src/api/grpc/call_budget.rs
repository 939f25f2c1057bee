//! The memory budget that the calls of all connections share, in bytes.
//!
//! Each connection has an [`Account`]. It is charged with [`Reservation`]s: for an open call, for the page of receipts
//! that it lists, and for every message of its answer that the client has not read. The first [`CONNECTION_CALL_BYTES`]
//! of a connection are reserved for it alone, so a client with few calls is served whatever the others do. The bytes
//! above them come out of [`SHARED_CALL_BYTES`], which all connections share. When those are used up the call is
//! refused, and the connection that holds the most bytes is closed unless it is the one that asks.
//!
//! Invariant: the budget is atomic counters in two arrays of fixed size. It has no lock, and nothing grows.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crossbeam_utils::atomic::AtomicCell;
use futures_util::task::AtomicWaker;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::field::display;

use crate::{
    engine::state::transfers::Pace,
    limits::{ANSWER_AHEAD_BYTES, CALLS_MAX, CONNECTION_ACCOUNTS_MAX, CONNECTION_CALL_BYTES, SHARED_CALL_BYTES},
};

/// The shortest and the longest interval between two searches for answers that are not read.
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(50);
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// The budget; clones share it.
#[derive(Clone)]
pub(crate) struct CallBudget(Arc<Inner>);

struct Inner {
    started: Instant,
    /// How long a client may read nothing of an answer.
    stall_max: Duration,
    /// The bytes of all connections above [`CONNECTION_CALL_BYTES`] each.
    shared_bytes: AtomicUsize,
    connections: Box<[ConnectionSlot]>,
    calls: Box<[CallSlot]>,
    /// The index in `calls` at which the next search for a free slot begins.
    next_call: AtomicUsize,
}

/// A connection, or a free slot for one.
#[derive(Default)]
struct ConnectionSlot {
    is_taken: AtomicBool,
    held_bytes: AtomicUsize,
    /// Taken when the connection is closed.
    close: AtomicCell<Option<Box<Close>>>,
}

/// The token that closes a connection, and the client's address for the log.
struct Close {
    token: CancellationToken,
    peer: Option<SocketAddr>,
}

/// A cell of a larger value would have a spin lock.
const _: () = assert!(AtomicCell::<Option<Box<Close>>>::is_lock_free());

/// An open call, or a free slot for one.
#[derive(Default)]
struct CallSlot {
    is_taken: AtomicBool,
    connection: AtomicUsize,
    /// Bytes of its answer that were passed to the connection and that it has not written yet, because the client does
    /// not read.
    unread_bytes: AtomicUsize,
    /// When the connection last wrote some of them, or got the first, in ms after `started`.
    progress_ms: AtomicU64,
}

impl CallBudget {
    /// A connection is closed when its client reads nothing of an answer for `stall_max`.
    pub(crate) fn new(stall_max: Duration) -> Self {
        let connections = (0..CONNECTION_ACCOUNTS_MAX).map(|_| ConnectionSlot::default()).collect();
        let calls = (0..CALLS_MAX).map(|_| CallSlot::default()).collect();
        Self(Arc::new(Inner {
            started: Instant::now(),
            stall_max,
            shared_bytes: AtomicUsize::new(0),
            connections,
            calls,
            next_call: AtomicUsize::new(0),
        }))
    }

    /// An account for a new connection of `peer`, which `close` closes. None if calls of too many closed connections
    /// still run.
    pub(crate) fn open_account(&self, close: CancellationToken, peer: Option<SocketAddr>) -> Option<Account> {
        let index = self.0.connections.iter().position(|slot| !slot.is_taken.swap(true, SeqCst))?;
        self.0.connections[index].close.store(Some(Box::new(Close { token: close, peer })));
        Some(Account(Arc::new(Lease { budget: self.clone(), index })))
    }

    /// How long a client may read nothing of an answer, and send nothing of a request.
    pub(crate) fn stall_max(&self) -> Duration {
        self.0.stall_max
    }

    /// Closes connections whose clients stopped reading an answer, for as long as the future is polled.
    pub(crate) async fn close_stalled(&self) -> Infallible {
        let interval = (self.0.stall_max / 8).clamp(CHECK_INTERVAL_MIN, CHECK_INTERVAL_MAX);
        loop {
            sleep(interval).await;
            for call in &self.0.calls {
                let progress_ms = call.progress_ms.load(SeqCst);
                let stalled_ms = self.now_ms().saturating_sub(progress_ms);
                let is_stalled =
                    call.unread_bytes.load(SeqCst) > 0 && u128::from(stalled_ms) > self.0.stall_max.as_millis();
                // If the slot has been given to another call meanwhile, its progress has changed.
                if is_stalled && call.progress_ms.load(SeqCst) == progress_ms {
                    self.close(call.connection.load(SeqCst), "an answer is not read: the connection is closed");
                }
            }
        }
    }

    /// Closes the connection that holds the most bytes, if it holds more than the one that asks.
    fn make_room(&self, asking: usize) {
        let held = |index: usize| self.0.connections[index].held_bytes.load(SeqCst);
        let most = (0..self.0.connections.len()).max_by_key(|&index| held(index)).unwrap_or(asking);
        if held(most) > held(asking) {
            self.close(most, "calls hold all memory that there is for them: the connection that holds most is closed");
        }
    }

    fn close(&self, index: usize, why: &str) {
        let slot = &self.0.connections[index];
        if let Some(close) = slot.close.take() {
            let (seconds, held_bytes) = (self.0.stall_max.as_secs(), slot.held_bytes.load(SeqCst));
            let peer = close.peer.map(display);
            tracing::warn!(peer, seconds, held_bytes, "{why}");
            close.token.cancel();
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The account of a connection. The server gives a clone to each call.
#[derive(Clone)]
pub(crate) struct Account(Arc<Lease>);

/// The slot of a connection, until the last clone of its account is dropped.
struct Lease {
    budget: CallBudget,
    index: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.slot().close.take());
        self.slot().is_taken.store(false, SeqCst);
    }
}

impl Lease {
    fn slot(&self) -> &ConnectionSlot {
        &self.budget.0.connections[self.index]
    }

    fn release(&self, bytes: usize) {
        let before = self.slot().held_bytes.fetch_sub(bytes, SeqCst);
        let from_shared = beyond_share(before) - beyond_share(before - bytes);
        self.budget.0.shared_bytes.fetch_sub(from_shared, SeqCst);
    }
}

/// The bytes of a connection that count against the shared budget.
fn beyond_share(held_bytes: usize) -> usize {
    held_bytes.saturating_sub(CONNECTION_CALL_BYTES)
}

impl Account {
    /// Reserves memory. If there is none, closes the connection that holds the most bytes unless that is this one.
    ///
    /// Errors: there is not enough memory yet.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Reservation, Exhausted> {
        self.try_reserve(bytes).inspect_err(|Exhausted| self.0.budget.make_room(self.0.index))
    }

    /// Reserves memory without closing another connection. Errors: there is not enough memory.
    fn try_reserve(&self, bytes: usize) -> Result<Reservation, Exhausted> {
        let budget = &self.0.budget;
        let before = self.0.slot().held_bytes.fetch_add(bytes, SeqCst);
        let from_shared = beyond_share(before + bytes) - beyond_share(before);
        let shared = budget.0.shared_bytes.fetch_add(from_shared, SeqCst);
        let reservation = Reservation { account: self.clone(), bytes };
        if from_shared > 0 && shared + from_shared > SHARED_CALL_BYTES {
            return Err(Exhausted); // dropping the reservation releases the bytes
        }
        Ok(reservation)
    }
}

/// Bytes of an account, released when dropped.
pub(crate) struct Reservation {
    account: Account,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.0.release(self.bytes);
    }
}

/// There is no memory left for what a call needs.
#[derive(Debug)]
pub(crate) struct Exhausted;

impl From<Exhausted> for Status {
    fn from(_: Exhausted) -> Self {
        Self::resource_exhausted(format!(
            "open calls and answers that are not read yet take {SHARED_CALL_BYTES} bytes of memory, which is the limit: try again"
        ))
    }
}

/// An open call, until it has ended and its answer has been read.
pub(crate) struct Call {
    reservation: Reservation,
    index: usize,
    /// Wakes the task that passes the answer to the connection.
    waker: AtomicWaker,
    /// The pace of the client, if the answer holds a permit that others may need.
    pace: OnceLock<Arc<Pace>>,
}

impl Call {
    /// Errors: there is no memory or no slot for it.
    pub(crate) fn open(account: &Account, bytes: usize) -> Result<Arc<Self>, Exhausted> {
        let reservation = account.reserve(bytes)?;
        let budget = &account.0.budget.0;
        let first = budget.next_call.fetch_add(1, SeqCst);
        let take = |index: &usize| {
            !budget.calls[*index].is_taken.swap(true, SeqCst) // it was free
        };
        let index = (0..CALLS_MAX).map(|step| first.wrapping_add(step) % CALLS_MAX).find(take).ok_or(Exhausted)?;
        budget.calls[index].connection.store(account.0.index, SeqCst);
        Ok(Arc::new(Self { reservation, index, waker: AtomicWaker::new(), pace: OnceLock::new() }))
    }

    /// Reserves more memory for the call, as [`Account::reserve`] does.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Reservation, Exhausted> {
        self.reservation.account.reserve(bytes)
    }

    /// Reserves more memory for the call without closing another connection.
    pub(super) fn try_reserve(&self, bytes: usize) -> Result<Reservation, Exhausted> {
        self.reservation.account.try_reserve(bytes)
    }

    /// The answer holds a permit, and begins now: from here on the server waits for the client, except while it makes the
    /// next message. The connection asks for that only when the client has room for it.
    pub(super) fn set_pace(&self, pace: Arc<Pace>) {
        pace.waits();
        let _once = self.pace.set(pace);
    }

    /// The next message of the answer is being made.
    pub(super) fn makes_message(&self) {
        if let Some(pace) = self.pace.get()
            && self.slot().unread_bytes.load(SeqCst) == 0
        {
            pace.stops_waiting();
        }
    }

    /// A message of the answer has been made.
    pub(super) fn has_message(&self) {
        if let Some(pace) = self.pace.get() {
            pace.waits();
        }
    }

    /// Bytes of the answer are passed to the connection.
    pub(super) fn add_unread(&self, bytes: usize) {
        let slot = self.slot();
        if slot.unread_bytes.load(SeqCst) == 0 {
            slot.progress_ms.store(self.budget().now_ms(), SeqCst);
        }
        slot.unread_bytes.fetch_add(bytes, SeqCst);
    }

    /// The connection wrote them or was closed.
    pub(super) fn remove_unread(&self, bytes: usize) {
        let slot = self.slot();
        slot.progress_ms.store(self.budget().now_ms(), SeqCst);
        slot.unread_bytes.fetch_sub(bytes, SeqCst);
        if let Some(pace) = self.pace.get() {
            pace.moved(bytes);
            pace.waits();
        }
        self.waker.wake();
    }

    /// Completes when the connection has written enough to be given more.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let has_room = || self.slot().unread_bytes.load(SeqCst) < ANSWER_AHEAD_BYTES;
        if has_room() {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        if has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn budget(&self) -> &CallBudget {
        &self.reservation.account.0.budget
    }

    fn slot(&self) -> &CallSlot {
        &self.budget().0.calls[self.index]
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.slot().is_taken.store(false, SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::thread;

    use super::*;

    fn budget() -> CallBudget {
        CallBudget::new(Duration::from_millis(100))
    }

    fn shared_bytes(budget: &CallBudget) -> usize {
        budget.0.shared_bytes.load(SeqCst)
    }

    /// An account, and the token that its connection is closed with.
    fn open(budget: &CallBudget) -> (Account, CancellationToken) {
        let close = CancellationToken::new();
        (budget.open_account(close.clone(), None).unwrap(), close)
    }

    #[test]
    fn a_connection_has_its_own_bytes_whatever_others_hold() {
        let budget = budget();
        let ((greedy, greedy_closed), (modest, modest_closed)) = (open(&budget), open(&budget));
        let all = greedy.reserve(CONNECTION_CALL_BYTES + SHARED_CALL_BYTES).unwrap();
        assert!(greedy.reserve(1).is_err());
        assert!(!greedy_closed.is_cancelled(), "the one that asks is refused, and no connection is closed for it");
        let share = modest.reserve(CONNECTION_CALL_BYTES).unwrap();
        assert!(modest.try_reserve(1).is_err());
        assert!(!greedy_closed.is_cancelled(), "`try_reserve` closes no connection");
        assert!(modest.reserve(1).is_err());
        assert!(greedy_closed.is_cancelled() && !modest_closed.is_cancelled(), "the one that holds most is closed");
        drop(all);
        assert!(modest.reserve(1).is_ok());
        drop(share);
        assert_eq!(shared_bytes(&budget), 0);
    }

    #[test]
    fn a_slot_is_reused_and_its_next_connection_is_not_closed() {
        let budget = budget();
        let (first, first_closed) = open(&budget);
        let held = first.reserve(1).unwrap();
        let index = first.0.index;
        budget.close(index, "a test");
        assert!(first_closed.is_cancelled());
        drop(first);
        let others: Vec<_> = std::iter::from_fn(|| budget.open_account(CancellationToken::new(), None)).collect();
        assert_eq!(others.len(), CONNECTION_ACCOUNTS_MAX - 1, "a reservation keeps the account open");
        drop(held);
        let (next, next_closed) = open(&budget);
        assert!(next.0.index == index && !next_closed.is_cancelled());
    }

    #[test]
    fn all_is_released_when_many_threads_reserve_at_once() {
        const MOST: usize = SHARED_CALL_BYTES / 8;
        let budget = budget();
        let accounts: Vec<_> = (0..4).map(|_| open(&budget).0).collect();
        thread::scope(|scope| {
            for seed in 0..8 {
                let account = accounts[seed % 4].clone();
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed as u64);
                    let mut held = Vec::new();
                    for _ in 0..10_000 {
                        held.extend(account.reserve(random.usize(..MOST)));
                        if held.len() > random.usize(..8) {
                            held.swap_remove(random.usize(..held.len()));
                        }
                    }
                });
            }
        });
        assert_eq!(shared_bytes(&budget), 0);
        assert!(budget.0.connections.iter().all(|slot| slot.held_bytes.load(SeqCst) == 0));
    }

    #[tokio::test]
    async fn a_connection_is_closed_when_an_answer_stalls_and_not_when_it_moves() {
        let budget = budget();
        let ((still, still_closed), (moving, moving_closed)) = (open(&budget), open(&budget));
        let (stalled, read) = (Call::open(&still, 1).unwrap(), Call::open(&moving, 1).unwrap());
        stalled.add_unread(10);
        read.add_unread(1000);
        let move_on = async {
            while !still_closed.is_cancelled() {
                sleep(Duration::from_millis(10)).await;
                read.add_unread(1);
                read.remove_unread(1);
            }
        };
        tokio::select! {
            never = budget.close_stalled() => match never {},
            () = move_on => {}
        }
        assert!(!moving_closed.is_cancelled());
    }

    #[test]
    fn calls_are_bounded_and_their_slots_are_reused() {
        let budget = budget();
        let (account, _closed) = open(&budget);
        let mut calls: Vec<_> = std::iter::from_fn(|| Call::open(&account, 0).ok()).collect();
        assert_eq!(calls.len(), CALLS_MAX);
        calls.pop();
        assert!(Call::open(&account, 0).is_ok());
    }
}
