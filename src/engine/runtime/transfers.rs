//! Transfers: uploads, and other calls that hold a permit for as long as their client sends or reads. This module gives the
//! permits and ends transfers that are too slow. The tables behind it are plain data in `engine/state`.
//!
//! Permits are shared fairly, not first come, first served. If all are taken, a new transfer waits for a few seconds.
//! Meanwhile the transfer that is furthest behind the minimum rate is ended, if any is too slow, and a free permit goes to
//! the waiting client with the fewest transfers. One connection holds at most half of the permits, one peer three quarters.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    engine::state::{
        Shared,
        transfers::{Origin, Pace, TransferKind, Transfers},
    },
    error::Error,
    limits::{
        HTTP_LONG_CALL_WAITS_MAX, TRANSFER_GRACE_S, TRANSFER_SHORT_GRACE_S, TRANSFER_WAIT_MS_MAX, WIDE_RECEIPTS_MAX,
    },
};

/// How far a transfer may be behind the minimum rate, unless its client may be silent for longer.
const GRACE: Duration = Duration::from_secs(TRANSFER_GRACE_S);
/// How much longer this module waits than the idle timeout, so that a silent client always gets the error of that timeout.
const AFTER_IDLE: Duration = Duration::from_secs(1);
/// How long a new transfer waits for a permit.
const WAIT_MAX: Duration = Duration::from_millis(TRANSFER_WAIT_MS_MAX);
/// How often a waiting transfer checks whether another one is too slow.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Gives permits for transfers of one kind.
#[derive(Clone)]
pub struct Admission {
    state: Shared,
    kind: TransferKind,
}

impl Admission {
    /// Puts `transfers` into the state as the table of this kind.
    pub fn new(state: &Shared, kind: TransferKind, transfers: Transfers) -> Self {
        state.with(|state| state.transfers[kind as usize] = transfers);
        Self { state: state.clone(), kind }
    }

    /// Permits for HTTP calls that hold a connection for as long as their client sends or reads.
    pub fn for_long_calls(state: &Shared, calls_max: usize) -> Self {
        Self::new(state, TransferKind::LongCall, Transfers::new(calls_max, HTTP_LONG_CALL_WAITS_MAX))
    }

    /// Permits for receipts with many columns.
    pub fn for_wide_receipts(state: &Shared) -> Self {
        Self::new(state, TransferKind::WideReceipt, Transfers::new(WIDE_RECEIPTS_MAX, HTTP_LONG_CALL_WAITS_MAX))
    }

    /// Permits for those who watch the server: none of them waits for one, and none is ended for another.
    pub fn for_watchers(state: &Shared, watchers_max: usize) -> Self {
        Self::new(state, TransferKind::Watch, Transfers::new(watchers_max, 0))
    }

    /// Ends the transfers whose client has taken nothing for this long, and returns how many there are.
    pub fn end_stalled(&self, behind_max: Duration) -> usize {
        let stalled = self.state.with(|state| state.transfers[self.kind as usize].stalled(behind_max));
        stalled.iter().for_each(|pace| pace.end.cancel());
        stalled.len()
    }

    /// Waits for a permit, and gives up after a few seconds. `end` is cancelled if the transfer has to end later, so that
    /// another can start.
    pub async fn enter(&self, origin: Origin, end: CancellationToken) -> Option<Permit> {
        let pace = Arc::new(Pace::new(end));
        let entered = self.state.with(|state| state.transfers[self.kind as usize].enter(origin, Arc::clone(&pace)));
        let (id, rx) = entered?;
        let permit = Permit { admission: self.clone(), id, pace };
        let Some(mut rx) = rx else { return Some(permit) };
        let deadline = Instant::now() + WAIT_MAX;
        // Each waiting call ends at most one transfer.
        let mut has_ended_one = false;
        while Instant::now() < deadline {
            if !has_ended_one {
                let slowest = self.state.with(|state| state.transfers[self.kind as usize].slowest(origin));
                has_ended_one = slowest.is_some();
                if let Some(pace) = slowest {
                    pace.end.cancel();
                }
            }
            tokio::select! {
                started = &mut rx => return started.ok().map(|()| permit),
                () = sleep(CHECK_INTERVAL) => {}
            }
        }
        None
    }
}

/// Lets a transfer run until it is dropped.
pub struct Permit {
    admission: Admission,
    id: u64,
    pace: Arc<Pace>,
}

impl Permit {
    /// The pace of the transfer, to be updated by the code that moves its bytes.
    pub fn pace(&self) -> Arc<Pace> {
        Arc::clone(&self.pace)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Admission { state, kind, .. } = &self.admission;
        for tx in state.with(|state| state.transfers[*kind as usize].leave(self.id)) {
            // A transfer that has just stopped waiting drops its own permit.
            let _gave_up = tx.send(());
        }
    }
}

/// Finds out whether a transfer has to end because it is too slow. It is polled while the server waits for the client.
pub struct TooSlow {
    pace: Arc<Pace>,
    /// How far it may be behind.
    behind_max: Duration,
    /// Created at the first poll, because most transfers never wait for their client.
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl TooSlow {
    /// Watches a transfer with the idle timeout `idle_max`, which is checked elsewhere.
    pub fn new(pace: Arc<Pace>, idle_max: Duration) -> Self {
        Self { pace, behind_max: GRACE.max(idle_max), ended: None, timer: None }
    }

    /// The pace that is watched.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Ready when the transfer has to end so that another can start.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        let pace = &self.pace;
        let ended = self.ended.get_or_insert_with(|| Box::pin(pace.end.clone().cancelled_owned()));
        ended.as_mut().poll(context).map(|()| Error::TooSlow { seconds: TRANSFER_SHORT_GRACE_S })
    }

    /// Ready when the transfer has to end so that another can start, or because it is too slow.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        if let Poll::Ready(error) = self.poll_ended(context) {
            return Poll::Ready(error);
        }
        let pace = &self.pace;
        // The timer is not reset when bytes move. When it fires, the transfer may have caught up, so this checks again.
        loop {
            let left = (self.behind_max + AFTER_IDLE).saturating_sub(pace.behind());
            if left.is_zero() {
                return Poll::Ready(Error::TooSlow { seconds: self.behind_max.as_secs() });
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(left)));
            std::task::ready!(timer.as_mut().poll(context));
            self.timer = None;
        }
    }
}

/// The content of an upload, whose pace is measured as it is read.
pub(crate) struct Paced<S> {
    body: S,
    too_slow: TooSlow,
}

impl<S> Paced<S> {
    pub(crate) fn new(body: S, pace: Arc<Pace>, idle_max: Duration) -> Self {
        Self { body, too_slow: TooSlow::new(pace, idle_max) }
    }

    /// The pace of the client.
    pub(crate) fn pace(&self) -> Arc<Pace> {
        Arc::clone(&self.too_slow.pace)
    }

    /// Notes that the server does not wait for the client until the stream is polled again.
    pub(crate) fn stops_waiting(&self) {
        self.too_slow.pace().stops_waiting();
    }
}

impl<S: Stream<Item = Result<Bytes, Error>> + Unpin> Stream for Paced<S> {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { body, too_slow } = &mut *self;
        match Pin::new(body).poll_next(context) {
            Poll::Ready(piece) => {
                too_slow.pace().moved(piece.as_ref().map_or(0, |piece| piece.as_ref().map_or(0, Bytes::len)));
                Poll::Ready(piece)
            }
            Poll::Pending => {
                too_slow.pace().waits();
                too_slow.poll(context).map(|error| Some(Err(error)))
            }
        }
    }
}

#[cfg(all(test, not(feature = "model")))]
#[allow(clippy::expect_used, reason = "a panic fails the test")]
mod tests {
    use std::sync::atomic::Ordering;

    use futures_util::FutureExt as _;

    use super::*;

    fn admission(max: usize) -> Admission {
        Admission::new(&Shared::new(), TransferKind::Upload, Transfers::new(max, 8))
    }

    fn origin(connection: u64, peer: &str) -> Origin {
        Origin::of(connection, peer.parse().expect("an address"))
    }

    /// A permit, if one is free now.
    fn now(admission: &Admission, origin: Origin) -> Option<Permit> {
        admission.enter(origin, CancellationToken::new()).now_or_never().flatten()
    }

    #[tokio::test]
    async fn a_connection_has_half_and_a_peer_three_quarters() {
        let admission = admission(8);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(now(&admission, origin(1, "192.0.2.1")).expect("within its share"));
        }
        assert!(now(&admission, origin(1, "192.0.2.1")).is_none(), "half of 8");
        for _ in 0..2 {
            held.push(now(&admission, origin(2, "192.0.2.1")).expect("within its share"));
        }
        assert!(now(&admission, origin(3, "192.0.2.1")).is_none(), "three quarters of 8");
        held.push(now(&admission, origin(4, "192.0.2.2")).expect("another peer"));
        held.push(now(&admission, Origin::SERVER).expect("the server itself"));
        assert!(now(&admission, origin(5, "192.0.2.3")).is_none(), "all of 8");
        held.remove(0);
        held.push(now(&admission, origin(1, "192.0.2.1")).expect("its share again"));
    }

    #[test]
    fn the_limit_of_a_peer_does_not_apply_to_this_machine() {
        let admission = admission(8);
        let connections = (0..8).map(|connection| origin(connection, "::ffff:127.0.0.1"));
        let held: Vec<_> = connections.map(|origin| now(&admission, origin)).collect();
        assert!(held.iter().all(Option::is_some));
    }

    #[test]
    fn a_single_permit_can_be_taken() {
        assert!(now(&admission(1), origin(1, "192.0.2.1")).is_some());
    }

    #[tokio::test]
    async fn a_free_permit_goes_to_the_next_transfer_that_still_waits() {
        let admission = admission(1);
        let held = now(&admission, origin(1, "192.0.2.1"));
        let enter = |origin| Box::pin(admission.enter(origin, CancellationToken::new()));
        let (mut first, mut second) = (enter(origin(2, "192.0.2.2")), enter(origin(3, "192.0.2.3")));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        drop(first);
        drop(held);
        let permit = second.await.expect("its turn");
        assert!(now(&admission, Origin::SERVER).is_none());
        drop(permit);
        assert!(now(&admission, Origin::SERVER).is_some());
    }

    #[tokio::test]
    async fn the_slowest_transfer_is_ended_once_it_is_too_far_behind() {
        let admission = admission(2);
        let (fast, slow) = (now(&admission, origin(1, "192.0.2.1")), now(&admission, origin(2, "192.0.2.2")));
        let (fast, slow) = (fast.expect("a permit"), slow.expect("a permit"));
        // As if the server had waited for both.
        fast.pace.waits();
        slow.pace.waits();
        fast.pace.behind_us.store(1_000_000, Ordering::Relaxed);
        slow.pace.behind_us.store(1_500_000, Ordering::Relaxed);
        let early = admission.enter(origin(3, "192.0.2.3"), CancellationToken::new()).now_or_never();
        assert!(early.is_none() && !slow.pace.end.is_cancelled(), "neither is too far behind");
        // Now both are.
        fast.pace.behind_us.store(2_000_001, Ordering::Relaxed);
        slow.pace.behind_us.store(3_000_000, Ordering::Relaxed);
        let mut newcomer = Box::pin(admission.enter(origin(3, "192.0.2.3"), CancellationToken::new()));
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert!(slow.pace.end.is_cancelled() && !fast.pace.end.is_cancelled());
        drop(slow);
        assert!(newcomer.await.is_some());
        fast.pace.stops_waiting();
        fast.pace.behind_us.store(5_000_000, Ordering::Relaxed);
        fast.pace.moved(4 * 1024);
        assert_eq!(fast.pace.behind(), Duration::from_secs(1));
        // A slow transfer is not ended while the server does not wait for its client.
        fast.pace.behind_us.store(5_000_000, Ordering::Relaxed);
        let _other = now(&admission, origin(4, "192.0.2.4"));
        let mut newcomer = Box::pin(admission.enter(origin(5, "192.0.2.5"), CancellationToken::new()));
        assert!(newcomer.as_mut().now_or_never().is_none() && !fast.pace.end.is_cancelled());
    }

    #[tokio::test]
    async fn a_watcher_that_reads_nothing_is_ended_and_one_more_is_refused_at_once() {
        let watchers = Admission::for_watchers(&Shared::new(), 2);
        let (reading, stalled) = (now(&watchers, origin(1, "192.0.2.1")), now(&watchers, origin(2, "192.0.2.2")));
        let (reading, stalled) = (reading.expect("a permit"), stalled.expect("a permit"));
        let one_more = watchers.enter(origin(3, "192.0.2.3"), CancellationToken::new());
        assert!(matches!(one_more.now_or_never(), Some(None)), "refused without waiting");
        for pace in [&reading.pace, &stalled.pace] {
            pace.waits();
            pace.behind_us.store(5_000_000, Ordering::Relaxed);
        }
        reading.pace.stops_waiting();
        assert_eq!(watchers.end_stalled(Duration::from_secs(3600)), 0);
        assert_eq!(watchers.end_stalled(Duration::from_secs(5)), 1);
        assert!(stalled.pace.end.is_cancelled() && !reading.pace.end.is_cancelled());
        drop(stalled);
        assert!(now(&watchers, origin(3, "192.0.2.3")).is_some());
    }

    #[tokio::test]
    async fn a_client_may_be_silent_for_as_long_as_its_upload_may_be_idle() {
        for (idle_s, ends_after_s) in [(10, 61), (60, 61), (120, 121)] {
            let pace = Arc::new(Pace::new(CancellationToken::new()));
            let mut too_slow = TooSlow::new(Arc::clone(&pace), Duration::from_secs(idle_s));
            let mut ends_with = |behind: Duration| {
                pace.behind_us.store(u64::try_from(behind.as_micros()).expect("few"), Ordering::Relaxed);
                too_slow.timer = None;
                std::future::poll_fn(|context| Poll::Ready(too_slow.poll(context).is_ready())).now_or_never()
            };
            let end = Duration::from_secs(ends_after_s);
            assert_eq!(ends_with(end - Duration::from_millis(1)), Some(false), "{idle_s}");
            assert_eq!(ends_with(end), Some(true), "{idle_s}");
        }
    }

    #[test]
    fn a_client_is_identified_by_64_bits_of_ipv6() {
        let peer = |text: &str| origin(1, text).peer;
        assert_eq!(peer("2001:db8:1:2:3::4"), peer("2001:db8:1:2:ffff::5"));
        assert_ne!(peer("2001:db8:1:2::4"), peer("2001:db8:1:3::4"));
        assert_eq!((peer("::1"), peer("::ffff:192.0.2.1")), (None, peer("192.0.2.1")));
    }

    #[tokio::test]
    async fn a_peer_with_many_connections_does_not_keep_others_from_waiting() {
        let admission = admission(1);
        let _held = now(&admission, Origin::SERVER);
        let enter = |origin| Box::pin(admission.enter(origin, CancellationToken::new()));
        let mut waiting: Vec<_> = (0..8).map(|connection| enter(origin(connection, "192.0.2.1"))).collect();
        assert!(waiting.iter_mut().all(|enter| enter.as_mut().now_or_never().is_none()));
        let mut newcomer = enter(origin(8, "192.0.2.2"));
        assert!(newcomer.as_mut().now_or_never().is_none(), "it waits");
        assert!(matches!(waiting[7].as_mut().now_or_never(), Some(None)), "one of the first peer is refused");
    }

    #[tokio::test]
    async fn the_connection_with_the_fewest_runs_next_and_the_one_with_the_most_is_refused() {
        let admission = admission(4);
        let enter = |connection| Box::pin(admission.enter(origin(connection, "127.0.0.1"), CancellationToken::new()));
        let mut held: Vec<_> = [1, 1, 2, 2].map(|connection| now(&admission, origin(connection, "127.0.0.1"))).into();
        assert!(held.iter().all(Option::is_some));
        let mut waiting: Vec<_> = [1, 1, 1, 2, 2, 2, 2, 2].map(enter).into();
        assert!(waiting.iter_mut().all(|enter| enter.as_mut().now_or_never().is_none()));
        let mut newcomer = enter(3);
        assert!(newcomer.as_mut().now_or_never().is_none(), "it waits");
        assert!(matches!(waiting[7].as_mut().now_or_never(), Some(None)), "the last of connection 2 is refused");
        held.remove(0);
        assert!(newcomer.await.is_some(), "before those that have waited longer");
    }

    #[tokio::test]
    async fn a_connection_with_many_waiting_transfers_makes_room_for_another_of_its_peer() {
        let admission = admission(1);
        let _held = now(&admission, Origin::SERVER);
        let enter = |connection| Box::pin(admission.enter(origin(connection, "192.0.2.1"), CancellationToken::new()));
        let mut waiting: Vec<_> = (0..8).map(|_| enter(1)).collect();
        assert!(waiting.iter_mut().all(|enter| enter.as_mut().now_or_never().is_none()));
        let mut newcomer = enter(2);
        assert!(newcomer.as_mut().now_or_never().is_none(), "it waits");
        assert!(matches!(waiting[7].as_mut().now_or_never(), Some(None)), "the last of connection 1 is refused");
    }

    #[tokio::test]
    async fn the_number_of_waiting_transfers_is_limited() {
        let admission = admission(1);
        let _held = now(&admission, Origin::SERVER);
        let enter = || Box::pin(admission.enter(Origin::SERVER, CancellationToken::new()));
        let mut waiting: Vec<_> = (0..8).map(|_| enter()).collect();
        assert!(waiting.iter_mut().all(|enter| enter.as_mut().now_or_never().is_none()));
        assert!(matches!(enter().now_or_never(), Some(None)), "refused at once");
    }
}
