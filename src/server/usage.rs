//! How a connection is used: its calls, whether the server or the client has to act next in each of them, and when the
//! client last made progress.
//!
//! Progress is bytes of a request's body that a call read, or bytes of an answer that the client read, if they move at the
//! minimum rate; and a call that has completed. HTTP/2's pings, empty frames and heads are not progress. Time in which the
//! server works on a call does not count as idle.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_utils::atomic::AtomicCell;
use http_body::{Body, Frame, SizeHint};
use hyper::{Request, Response};
use tokio::{
    sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::field::display;

use crate::{
    api::caller::Caller,
    engine::state::transfers::Origin,
    limits::{EARLY_RESET_MS, EARLY_RESETS_MAX, TRANSFER_BYTES_PER_S_MIN, TRANSFER_SHORT_GRACE_S},
};

/// How long a call waits until its connection may be used for it.
const ADMIT_WAIT_MAX: Duration = Duration::from_secs(2);

/// Permits for connections that are used for more than probes. Shared by all connections of one protocol.
pub(super) struct UsePermits {
    permits: Arc<Semaphore>,
    /// Connections that wait for a permit.
    waiting: AtomicUsize,
    /// Notified when another connection waits.
    pub(super) wanted: Notify,
}

impl UsePermits {
    pub(super) fn new(connections_max: usize) -> Self {
        let permits = Arc::new(Semaphore::new(connections_max));
        Self { permits, waiting: AtomicUsize::new(0), wanted: Notify::new() }
    }

    /// How many connections wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits for a permit. `is_waiting` is true while it waits.
    async fn acquire(self: &Arc<Self>, is_waiting: &AtomicBool) -> Result<OwnedSemaphorePermit, NotAdmitted> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::new(self, is_waiting);
        Arc::clone(&self.permits).acquire_owned().await.ok().ok_or(NotAdmitted)
    }
}

/// Counts a connection as waiting until it is dropped.
struct Waiting<'a> {
    permits: &'a UsePermits,
    is_waiting: &'a AtomicBool,
}

impl<'a> Waiting<'a> {
    fn new(permits: &'a UsePermits, is_waiting: &'a AtomicBool) -> Self {
        is_waiting.store(true, Ordering::Relaxed);
        permits.waiting.fetch_add(1, Ordering::Relaxed);
        permits.wanted.notify_one();
        Self { permits, is_waiting }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.is_waiting.store(false, Ordering::Relaxed);
        self.permits.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// No other connection could be closed in time.
#[derive(Debug)]
pub(super) struct NotAdmitted;

/// Boxed, so that it can be taken without a lock.
type PermitCell = AtomicCell<Option<Box<OwnedSemaphorePermit>>>;

const _: () = assert!(PermitCell::is_lock_free());

/// The use of one connection.
pub(super) struct Usage {
    /// A clone is in the extensions of every request.
    pub(super) caller: Caller,
    opened: Instant,
    /// Microseconds from `opened` to the last progress. Time in which the server worked is added.
    progress_us: AtomicU64,
    calls: AtomicUsize,
    /// Calls that the server works on, and since when there are any.
    at_work: AtomicUsize,
    at_work_since_us: AtomicU64,
    /// Calls that the client reset early, minus those that it let complete.
    early_resets: AtomicUsize,
    use_permits: Arc<UsePermits>,
    /// Empty again once the connection has given it up.
    use_permit: OnceCell<PermitCell>,
    has_given_up_use: AtomicBool,
    /// A call on it waits for the permit.
    is_waiting: AtomicBool,
    /// When it began to be served, if it did.
    served_at: OnceLock<Instant>,
}

impl Usage {
    pub(super) fn new(origin: Origin, peer: SocketAddr, use_permits: Arc<UsePermits>) -> Self {
        Self {
            caller: Caller { origin, peer: Some(peer), close: CancellationToken::new() },
            opened: Instant::now(),
            progress_us: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            at_work_since_us: AtomicU64::new(0),
            early_resets: AtomicUsize::new(0),
            use_permits,
            use_permit: OnceCell::new(),
            has_given_up_use: AtomicBool::new(false),
            is_waiting: AtomicBool::new(false),
            served_at: OnceLock::new(),
        }
    }

    /// Gets the permit to use the connection for more than probes.
    ///
    /// Errors: all permits are taken and none of their connections is idle, or this connection is being closed.
    pub(super) async fn admit(&self) -> Result<(), NotAdmitted> {
        if self.is_used() {
            return Ok(());
        }
        if self.has_given_up_use.load(Ordering::Relaxed) {
            return Err(NotAdmitted);
        }
        let acquired = self.use_permit.get_or_try_init(async || {
            tokio::select! {
                acquired = self.use_permits.acquire(&self.is_waiting) => {
                    acquired.map(|permit| AtomicCell::new(Some(Box::new(permit))))
                }
                () = self.caller.close.cancelled() => Err(NotAdmitted),
            }
        });
        // The timeout includes the wait for other calls of this connection, which wait for the same permit.
        match timeout(ADMIT_WAIT_MAX, acquired).await {
            Ok(Ok(_permit)) => Ok(()),
            Ok(Err(NotAdmitted)) | Err(_) => Err(NotAdmitted),
        }
    }

    /// Gives up that permit, for the rest of the connection: its last call watches the server for as long as the client wants.
    pub(super) fn give_up_use(&self) {
        self.has_given_up_use.store(true, Ordering::Relaxed);
        drop(self.use_permit.get().and_then(AtomicCell::take));
    }

    /// Whether its client is on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.caller.origin.peer.is_none()
    }

    /// Whether a call on it waits for the permit.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// It is served from now on.
    pub(super) fn serve(&self) {
        let _once = self.served_at.set(Instant::now());
    }

    /// For how long it has been served, or None if it still waits.
    pub(super) fn served_for(&self) -> Option<Duration> {
        self.served_at.get().map(Instant::elapsed)
    }

    /// Whether it may be used for more than probes.
    pub(super) fn is_used(&self) -> bool {
        self.use_permit.initialized() && !self.has_given_up_use.load(Ordering::Relaxed)
    }

    pub(super) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    /// Whether the server works on any of its calls.
    pub(super) fn is_at_work(&self) -> bool {
        self.at_work.load(Ordering::Relaxed) > 0
    }

    /// For how long its client has made no progress while it had to act.
    pub(super) fn idle(&self) -> Duration {
        if self.is_at_work() { Duration::ZERO } else { self.since_progress() }
    }

    /// For how long there has been no progress, though the server may be working.
    pub(super) fn since_progress(&self) -> Duration {
        Duration::from_micros(self.now_us().saturating_sub(self.progress_us.load(Ordering::Relaxed)))
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Counts bytes that were sent or read as the time that they take at the minimum rate.
    fn moved(&self, bytes: usize) {
        let now = self.now_us();
        let earned = (bytes as u64).saturating_mul(1_000_000) / TRANSFER_BYTES_PER_S_MIN;
        let before =
            self.progress_us.load(Ordering::Relaxed).max(now.saturating_sub(TRANSFER_SHORT_GRACE_S * 1_000_000));
        self.progress_us.store(now.min(before.saturating_add(earned)), Ordering::Relaxed);
    }

    fn begin_work(&self) {
        if self.at_work.fetch_add(1, Ordering::Relaxed) == 0 {
            self.at_work_since_us.store(self.now_us(), Ordering::Relaxed);
        }
    }

    fn end_work(&self) {
        if self.at_work.fetch_sub(1, Ordering::Relaxed) == 1 {
            let since = self.at_work_since_us.load(Ordering::Relaxed).max(self.progress_us.load(Ordering::Relaxed));
            let worked = self.now_us().saturating_sub(since);
            self.progress_us.fetch_add(worked, Ordering::Relaxed);
        }
    }

    fn call_ended(&self, is_complete: bool, lasted: Duration) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        if is_complete {
            self.progress_us.store(self.now_us(), Ordering::Relaxed);
            let decremented = |resets: usize| resets.checked_sub(1);
            let _zero_stays_zero = self.early_resets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, decremented);
        } else if lasted < Duration::from_millis(EARLY_RESET_MS)
            && self.early_resets.fetch_add(1, Ordering::Relaxed) == EARLY_RESETS_MAX
        {
            let peer = self.caller.peer.map(display);
            tracing::warn!(peer, "a client resets its calls at once: its connection is closed");
            self.caller.close.cancel();
        }
    }
}

/// Serves a request, and tracks the call until the client has read its answer. `is_watch`: the call waits for news for as
/// long as the client wants, which does not count as work.
pub(super) async fn follow<B, R, E, F>(
    usage: &Arc<Usage>,
    is_watch: bool,
    mut request: Request<B>,
    serve: impl FnOnce(Request<FollowedBody<B>>) -> F,
) -> Result<Response<FollowedAnswer<R>>, E>
where
    B: Body<Data = Bytes>,
    R: Body<Data = Bytes>,
    F: Future<Output = Result<Response<R>, E>>,
{
    let call = Arc::new(Call::begin(usage, is_watch));
    request.extensions_mut().insert(usage.caller.clone());
    let response = serve(request.map(|body| FollowedBody::new(body, Arc::clone(&call)))).await?;
    Ok(response.map(|body| FollowedAnswer::new(body, call)))
}

/// The call waits for more of the request's body.
const BODY_AWAITED: u8 = 1;
/// A piece of the answer was passed on that the client has not read.
const ANSWER_UNREAD: u8 = 2;
/// The call counts as work of the server.
const AT_WORK: u8 = 4;

/// One call of a connection.
struct Call {
    usage: Arc<Usage>,
    began: Instant,
    is_watch: bool,
    /// A set of the bits above.
    turn: AtomicU8,
    is_complete: AtomicBool,
}

impl Call {
    fn begin(usage: &Arc<Usage>, is_watch: bool) -> Self {
        usage.calls.fetch_add(1, Ordering::Relaxed);
        let call = Self {
            usage: Arc::clone(usage),
            began: Instant::now(),
            is_watch,
            turn: AtomicU8::new(0),
            is_complete: AtomicBool::new(false),
        };
        call.turn(0, 0);
        call
    }

    /// Sets and clears bits, and updates whether the call counts as work.
    fn turn(&self, set: u8, clear: u8) {
        let next = |turn: u8| {
            let turn = (turn | set) & !clear & !AT_WORK;
            let is_clients = turn & (BODY_AWAITED | ANSWER_UNREAD) != 0 || self.is_watch;
            if is_clients { turn } else { turn | AT_WORK }
        };
        let change = |turn| Some(next(turn));
        let before = self.turn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).unwrap_or_default();
        match (before & AT_WORK != 0, next(before) & AT_WORK != 0) {
            (false, true) => self.usage.begin_work(),
            (true, false) => self.usage.end_work(),
            (false, false) | (true, true) => {}
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.turn.load(Ordering::Relaxed) & AT_WORK != 0 {
            self.usage.end_work();
        }
        self.usage.call_ended(self.is_complete.load(Ordering::Relaxed), self.began.elapsed());
    }
}

/// A request's body.
pub(super) struct FollowedBody<B> {
    body: B,
    call: Arc<Call>,
}

impl<B> FollowedBody<B> {
    fn new(body: B, call: Arc<Call>) -> Self {
        Self { body, call }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for FollowedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                self.call.turn(BODY_AWAITED, 0);
                Poll::Pending
            }
            Poll::Ready(frame) => {
                let bytes = bytes_of(&frame);
                if bytes > 0 {
                    self.call.usage.moved(bytes);
                }
                self.call.turn(0, BODY_AWAITED);
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for FollowedBody<B> {
    fn drop(&mut self) {
        self.call.turn(0, BODY_AWAITED); // the call does not wait for it any more
    }
}

/// An answer's body.
pub(super) struct FollowedAnswer<B> {
    body: B,
    call: Arc<Call>,
    /// Bytes of the last piece. The client has read them when another piece is asked for.
    unread: usize,
}

impl<B: Body<Data = Bytes>> FollowedAnswer<B> {
    fn new(body: B, call: Arc<Call>) -> Self {
        call.is_complete.store(body.is_end_stream(), Ordering::Relaxed);
        call.turn(ANSWER_UNREAD, 0); // the head of the answer is unread too
        Self { body, call, unread: 0 }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for FollowedAnswer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let read = std::mem::take(&mut self.unread);
        if read > 0 {
            self.call.usage.moved(read);
        }
        self.call.turn(0, ANSWER_UNREAD);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.unread = bytes_of(&frame);
        self.call.turn(ANSWER_UNREAD, 0);
        if self.body.is_end_stream() || frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers))
        {
            self.call.is_complete.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn bytes_of<E>(frame: &Option<Result<Frame<Bytes>, E>>) -> usize {
    let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
    data.map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_calls_of_a_connection_wait_for_admission_at_the_same_time() {
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let usage = Usage::new(Origin::of(1, peer.ip()), peer, Arc::new(UsePermits::new(0)));
        let calls = futures_util::future::join_all((0..8).map(|_| usage.admit()));
        let refused = timeout(4 * ADMIT_WAIT_MAX, calls).await;
        assert!(refused.is_ok_and(|calls| calls.iter().all(Result::is_err)));
        assert!(!usage.is_waiting() && usage.use_permits.waiting() == 0);
    }
}
