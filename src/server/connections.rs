//! The table of the connections of one protocol: which are admitted, which are closed for others, and how they end.
//!
//! Connections are admitted by use, not in the order of arrival. When all connections are taken, one that was used for
//! probes alone is closed for a new one. When all that may be used for more than probes are taken, the one whose client
//! has been idle longest is closed for one that needs it.
//!
//! Invariant: the task of [`serve`] owns the table and the tasks of all its connections, and ends after them.

use std::{
    collections::HashMap,
    future::Future,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use hyper_util::server::graceful::GracefulConnection;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{Id, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    listen::{accepted, is_exhaustion},
    usage::{Usage, UsePermits},
};
use crate::{
    access::arrival::Arrival,
    engine::state::transfers::Origin,
    limits::{BUSY_CONNECTION_S, STALLED_CONNECTION_MS, UNUSED_CONNECTION_MS, UNUSED_LOCAL_CONNECTION_MS},
};

/// How long a new connection waits for another one to end.
const NEW_CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the table is checked while a connection waits, or while the server drains.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How long a connection without calls from this machine may take to end by itself when it is closed for another: as long as it
/// takes to answer a ping. Meanwhile no other takes its place, so this bounds how many new clients are tried in a second.
const LOCAL_CLOSE_TIMEOUT: Duration = Duration::from_millis(10);
/// How long a drain waits for a client that sends and reads nothing.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(5);

/// The limits of the connections of one protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections that are served at once.
    pub(super) served: usize,
    /// Served connections that are used for more than probes.
    pub(super) used: usize,
    /// Connections that are accepted and wait for others to end.
    pub(super) waiting: usize,
    /// How long a connection may be without a call while permits are few.
    pub(super) silent_max: Option<Duration>,
    /// How long a connection that is closed for another may take to end by itself.
    pub(super) close_timeout: Duration,
}

/// Numbers the connections of all protocols.
#[derive(Clone, Default)]
pub(super) struct ConnectionIds(Arc<AtomicU64>);

impl ConnectionIds {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// An accepted connection, and what is needed to serve it.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) arrival: Arrival,
    pub(super) usage: Arc<Usage>,
    /// Permits for the connections that are served.
    pub(super) permits: Arc<Semaphore>,
}

struct Entry {
    usage: Arc<Usage>,
    peer: Option<IpAddr>,
    /// It was asked to close.
    is_closing: bool,
}

struct Table {
    bounds: Bounds,
    use_permits: Arc<UsePermits>,
    entries: HashMap<Id, Entry>,
}

/// Accepts connections and serves them until `stopped` completes. Returns when all of them have ended.
pub(super) async fn serve<C>(
    listeners: Vec<TcpListener>,
    bounds: Bounds,
    ids: ConnectionIds,
    connect: impl Fn(Accepted) -> C,
    stopped: impl Future<Output = Instant>,
) where
    C: GracefulConnection<Error = hyper::Error> + Send + 'static,
{
    let mut table = Table { bounds, use_permits: Arc::new(UsePermits::new(bounds.used)), entries: HashMap::new() };
    let use_permits = Arc::clone(&table.use_permits);
    let permits = Arc::new(Semaphore::new(bounds.served));
    let (mut tasks, drain) = (JoinSet::new(), CancellationToken::new());
    let mut stopped = pin!(stopped);
    let mut incoming = accepted(listeners);
    let draining_since = loop {
        tokio::select! {
            biased;
            since = &mut stopped => break since,
            Some(ended) = tasks.join_next_with_id() => table.remove(ended),
            () = use_permits.wanted.notified() => {}
            () = sleep(CHECK_INTERVAL), if table.is_short() => {}
            Some(accepted) = incoming.next(), if table.has_room() => match accepted {
                Ok((stream, arrival)) => {
                    let origin = Origin::of(ids.next(), arrival.peer.ip());
                    let usage = Arc::new(Usage::new(origin, arrival.peer, Arc::clone(&use_permits)));
                    if table.admits(origin.peer) {
                        let accepted = Accepted { stream, arrival, usage: Arc::clone(&usage), permits: Arc::clone(&permits) };
                        // Here and not in its task, so that it happens in the order of arrival.
                        let connection = connect(accepted);
                        let task = run(
                            connection,
                            Arc::clone(&usage),
                            Arc::clone(&permits),
                            bounds.close_timeout,
                            drain.clone(),
                        );
                        let id = tasks.spawn(task).id();
                        table.entries.insert(id, Entry { usage, peer: origin.peer, is_closing: false });
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "no connection could be accepted");
                    if is_exhaustion(&error) && !table.close_unused() {
                        table.close_idlest(|_any| true);
                    }
                }
            },
        }
        table.make_room();
    };
    drop(incoming);
    drain.cancel();
    while !table.entries.is_empty() {
        tokio::select! {
            Some(ended) = tasks.join_next_with_id() => table.remove(ended),
            () = sleep(CHECK_INTERVAL) => {
                if draining_since.elapsed() >= DRAIN_IDLE_MAX {
                    table.close_all(|usage| !usage.has_calls() || usage.idle() >= DRAIN_IDLE_MAX);
                }
            }
        }
    }
}

/// Waits for a permit, and then serves one connection to its end.
async fn run<C>(
    connection: C,
    usage: Arc<Usage>,
    permits: Arc<Semaphore>,
    close_timeout: Duration,
    drain: CancellationToken,
) where
    C: GracefulConnection<Error = hyper::Error>,
{
    let permit = tokio::select! {
        permit = timeout(NEW_CONNECTION_WAIT_MAX, permits.acquire_owned()) => permit,
        () = usage.caller.close.cancelled() => return,
        () = drain.cancelled() => return,
    };
    let Ok(Ok(_permit)) = permit else { return };
    usage.serve();
    let mut connection = pin!(connection);
    let mut is_draining = false;
    let ended = loop {
        tokio::select! {
            ended = &mut connection => break ended,
            () = usage.caller.close.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let is_quick = usage.is_local() && !usage.has_calls();
                let close_timeout = if is_quick { close_timeout.min(LOCAL_CLOSE_TIMEOUT) } else { close_timeout };
                let _ended_or_cut_off = timeout(close_timeout, &mut connection).await;
                break Ok(());
            }
            () = drain.cancelled(), if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

impl Table {
    fn remove(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.entries.remove(&id);
    }

    fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| !entry.is_closing)
    }

    /// Whether another connection may be accepted, if only to wait.
    fn has_room(&self) -> bool {
        self.entries.len() < self.bounds.served + self.bounds.waiting
    }

    /// Whether a connection waits for another to end, or may have to be closed for having no calls.
    fn is_short(&self) -> bool {
        self.open().count() > self.bounds.served || self.use_permits.waiting() > 0 || self.silent_max().is_some()
    }

    /// How long a connection may be without a call. There is a limit only while more than three quarters of the connections
    /// are taken.
    fn silent_max(&self) -> Option<Duration> {
        self.bounds.silent_max.filter(|_| self.open().count() > self.bounds.served * 3 / 4)
    }

    /// Whether a peer may have another connection. It may have three quarters of all; if it has them, the one that has been
    /// idle longest is closed, if any is idle.
    fn admits(&mut self, peer: Option<IpAddr>) -> bool {
        let peer_max = (self.bounds.served * 3).div_ceil(4);
        let Some(peer) = peer else { return true };
        let is_of_peer = |entry: &Entry| entry.peer == Some(peer);
        if self.open().filter(|entry| is_of_peer(entry)).count() < peer_max {
            return true;
        }
        self.close_idlest(is_of_peer)
    }

    /// Closes connections for those that wait.
    fn make_room(&mut self) {
        if let Some(silent_max) = self.silent_max() {
            self.close_all(|usage| !usage.has_calls() && usage.since_progress() >= silent_max);
        }
        while self.open().count() > self.bounds.served && self.close_unused() {}
        let is_closing = |entry: &&Entry| entry.is_closing && entry.usage.is_used();
        let mut closing = self.entries.values().filter(is_closing).count();
        while closing < self.use_permits.waiting() && self.close_idlest(|entry| entry.usage.is_used()) {
            closing += 1;
        }
    }

    fn close_all(&mut self, is_wanted: impl Fn(&Usage) -> bool) {
        for entry in self.entries.values_mut().filter(|entry| !entry.is_closing && is_wanted(&entry.usage)) {
            entry.close();
        }
    }

    /// Closes the oldest connection that was used for probes alone. If the connections that wait to be used for more have
    /// taken those that are reserved for probes, closes the newest of them instead. Returns whether one was closed.
    fn close_unused(&mut self) -> bool {
        let is_served = |entry: &Entry| entry.usage.served_for().is_some();
        let is_free = |entry: &Entry| !entry.is_closing && !entry.usage.is_used() && is_served(entry);
        let idle = self.entries.values().filter(|entry| is_free(entry) && !entry.usage.is_waiting()).count();
        let reserve = (self.bounds.served - self.bounds.used).div_ceil(4);
        let may_end = |entry: &&mut Entry| {
            let usage = &entry.usage;
            let is_idle = if usage.is_waiting() { idle < reserve } else { !usage.is_at_work() };
            let has_had_time = usage.served_for() >= Some(unused_max(usage));
            is_free(entry) && is_idle && has_had_time
        };
        let candidates = self.entries.values_mut().filter(may_end);
        let chosen = candidates.max_by_key(|entry| {
            let age = entry.usage.served_for().unwrap_or_default();
            if entry.usage.is_waiting() { (false, Duration::MAX.saturating_sub(age)) } else { (true, age) }
        });
        chosen.map(Entry::close).is_some()
    }

    /// Closes the connection whose client has been idle longest or, if none is idle, one whose call the server has worked on
    /// for too long. Returns whether one was closed.
    fn close_idlest(&mut self, is_candidate: impl Fn(&Entry) -> bool) -> bool {
        let may_end = |entry: &&mut Entry| {
            let usage = &entry.usage;
            let stalled_max = Duration::from_millis(STALLED_CONNECTION_MS);
            let is_idle = usage.idle() >= if usage.has_calls() { stalled_max } else { unused_max(usage) };
            let is_stuck = usage.is_at_work() && usage.since_progress() >= Duration::from_secs(BUSY_CONNECTION_S);
            !entry.is_closing && is_candidate(entry) && (is_idle || is_stuck)
        };
        let candidates = self.entries.values_mut().filter(may_end);
        let idlest = candidates.max_by_key(|entry| (!entry.usage.is_at_work(), entry.usage.since_progress()));
        idlest.map(Entry::close).is_some()
    }
}

/// How long a connection may be without a call while others wait for its place.
fn unused_max(usage: &Usage) -> Duration {
    Duration::from_millis(if usage.is_local() { UNUSED_LOCAL_CONNECTION_MS } else { UNUSED_CONNECTION_MS })
}

impl Entry {
    fn close(&mut self) {
        tracing::debug!(peer = ?self.peer, idle = ?self.usage.since_progress(), "a connection is closed for another");
        self.is_closing = true;
        self.usage.caller.close.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with a new connection from each of these peers.
    fn table(peers: &[&str], served: usize) -> (Table, JoinSet<()>) {
        let bounds =
            Bounds { served, used: served, waiting: 1, silent_max: None, close_timeout: Duration::from_millis(100) };
        let use_permits = Arc::new(UsePermits::new(served));
        let mut table = Table { bounds, use_permits: Arc::clone(&use_permits), entries: HashMap::new() };
        let mut tasks = JoinSet::new();
        for (connection, peer) in (0..).zip(peers) {
            let address: IpAddr = peer.parse().expect("an address");
            let origin = Origin::of(connection, address);
            let usage = Arc::new(Usage::new(origin, (address, 5440).into(), Arc::clone(&use_permits)));
            let id = tasks.spawn(std::future::pending()).id();
            table.entries.insert(id, Entry { usage, peer: origin.peer, is_closing: false });
        }
        (table, tasks)
    }

    #[tokio::test]
    async fn a_peer_has_three_quarters_of_the_connections_but_this_machine_may_have_all() {
        let peer = |text: &str| Origin::of(0, text.parse().expect("an address")).peer;
        let (mut table, _tasks) = table(&["192.0.2.1"; 6], 8);
        assert!(!table.admits(peer("192.0.2.1")), "six of eight, and none of them idle for long");
        assert!(table.admits(peer("192.0.2.2")) && table.admits(peer("127.0.0.1")));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !table.admits(peer("192.0.2.1")) {
            assert!(Instant::now() < deadline, "the one that has been idle longest is closed");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(table.open().count(), 5);
        let (mut table, _tasks) = self::table(&["127.0.0.1"; 7], 8);
        assert!(table.admits(peer("127.0.0.1")));
    }
}
