//! The table of connections of one protocol: who is let in, who makes room, and how they end.
//!
//! Admission goes by use, not by arrival. A connection that was used for nothing but probes makes room for a newcomer
//! when there is no other place; one that wants more than probes, when all that may are taken, gets the place of the one
//! whose client has been idle longest. The task of [`serve`] owns the table and all its connections' tasks.

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
    api::http::access::Arrival,
    engine::state::transfers::Origin,
    limits::{BUSY_CONNECTION_S, STALLED_CONNECTION_MS, UNUSED_CONNECTION_MS},
};

/// How long a newcomer waits for another connection to end.
const NEWCOMER_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the table is looked at while somebody waits, or while the server drains.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long a drain waits for a client that moves nothing.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(5);

/// How many connections of a protocol there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// That are served.
    pub(super) served: usize,
    /// That are served and used for more than probes.
    pub(super) used: usize,
    /// That are accepted and wait for others to end.
    pub(super) waiting: usize,
    /// How long one may be without a call while permits are few.
    pub(super) silent_max: Option<Duration>,
    /// How long one that has to make room may take to end by itself.
    pub(super) close_timeout: Duration,
}

/// Numbers connections, of all protocols.
#[derive(Clone, Default)]
pub(super) struct ConnectionIds(Arc<AtomicU64>);

impl ConnectionIds {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// A connection that was accepted, and what it takes to serve it.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) arrival: Arrival,
    pub(super) usage: Arc<Usage>,
    /// For connections that are served.
    pub(super) permits: Arc<Semaphore>,
}

struct Entry {
    usage: Arc<Usage>,
    peer: Option<IpAddr>,
    /// It was told to end.
    is_closing: bool,
}

struct Table {
    bounds: Bounds,
    use_permits: Arc<UsePermits>,
    entries: HashMap<Id, Entry>,
}

/// Completes when the server is to stop, and says since when.
pub(super) trait Stopped: Future<Output = Instant> + Send {}

impl<F: Future<Output = Instant> + Send> Stopped for F {}

/// Accepts connections and serves them until `stopped` says since when the server drains; returns when all have ended.
pub(super) async fn serve<C>(
    listeners: Vec<TcpListener>,
    bounds: Bounds,
    ids: ConnectionIds,
    connect: impl Fn(Accepted) -> C,
    stopped: impl Stopped,
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
            () = sleep(LOOK_INTERVAL), if table.is_short() => {}
            Some(came) = incoming.next(), if table.has_room() => match came {
                Ok((stream, arrival)) => {
                    let origin = Origin::of(ids.next(), arrival.peer.ip());
                    let usage = Arc::new(Usage::new(origin, arrival.peer, Arc::clone(&use_permits)));
                    if table.admits(origin.peer) {
                        let accepted = Accepted { stream, arrival, usage: Arc::clone(&usage), permits: Arc::clone(&permits) };
                        // Made here, in the order of arrival.
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
            () = sleep(LOOK_INTERVAL) => {
                if draining_since.elapsed() >= DRAIN_IDLE_MAX {
                    table.close_all(|usage| !usage.has_calls() || usage.idle() >= DRAIN_IDLE_MAX);
                }
            }
        }
    }
}

/// One connection, from when it has a permit to its end.
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
        permit = timeout(NEWCOMER_WAIT_MAX, permits.acquire_owned()) => permit,
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

    /// Whether one more may be accepted, if only to wait.
    fn has_room(&self) -> bool {
        self.entries.len() < self.bounds.served + self.bounds.waiting
    }

    /// Whether somebody waits for another to end.
    fn is_short(&self) -> bool {
        self.open().count() > self.bounds.served || self.use_permits.waiting() > 0 || self.silent_max().is_some()
    }

    /// How long a connection may be without a call, if it is bounded now: while more than three quarters are taken.
    fn silent_max(&self) -> Option<Duration> {
        self.bounds.silent_max.filter(|_| self.open().count() > self.bounds.served * 3 / 4)
    }

    /// Whether a peer may have one more, of which it then has three quarters at most.
    fn admits(&mut self, peer: Option<IpAddr>) -> bool {
        let peer_max = (self.bounds.served * 3).div_ceil(4);
        let Some(peer) = peer else { return true };
        let is_of_peer = |entry: &Entry| entry.peer == Some(peer);
        if self.open().filter(|entry| is_of_peer(entry)).count() < peer_max {
            return true;
        }
        self.close_idlest(is_of_peer)
    }

    /// Closes what has to make room for those that wait.
    fn make_room(&mut self) {
        if let Some(silent_max) = self.silent_max() {
            self.close_all(|usage| !usage.has_calls() && usage.since_progress() >= silent_max);
        }
        while self.open().count() > self.bounds.served && self.close_unused() {}
        let is_leaving = |entry: &&Entry| entry.is_closing && entry.usage.is_used();
        let mut leaving = self.entries.values().filter(is_leaving).count();
        while leaving < self.use_permits.waiting() && self.close_idlest(|entry| entry.usage.is_used()) {
            leaving += 1;
        }
    }

    fn close_all(&mut self, is_wanted: impl Fn(&Usage) -> bool) {
        for entry in self.entries.values_mut().filter(|entry| !entry.is_closing && is_wanted(&entry.usage)) {
            entry.close();
        }
    }

    /// Closes the oldest of those that were used for nothing but probes; or the youngest of those that wait to be used
    /// for more, if they have taken what is kept for probes. Says whether there was one.
    fn close_unused(&mut self) -> bool {
        let is_served = |entry: &Entry| entry.usage.served_for().is_some();
        let is_free = |entry: &Entry| !entry.is_closing && !entry.usage.is_used() && is_served(entry);
        let idle = self.entries.values().filter(|entry| is_free(entry) && !entry.usage.is_waiting()).count();
        let reserve = (self.bounds.served - self.bounds.used).div_ceil(4);
        let may_end = |entry: &&mut Entry| {
            let usage = &entry.usage;
            let is_idle = if usage.is_waiting() { idle < reserve } else { !usage.is_at_work() };
            let has_had_time = usage.served_for() >= Some(Duration::from_millis(UNUSED_CONNECTION_MS));
            is_free(entry) && is_idle && has_had_time
        };
        let candidates = self.entries.values_mut().filter(may_end);
        let chosen = candidates.max_by_key(|entry| {
            let age = entry.usage.served_for().unwrap_or_default();
            if entry.usage.is_waiting() { (false, Duration::MAX.saturating_sub(age)) } else { (true, age) }
        });
        chosen.map(Entry::close).is_some()
    }

    /// Closes the one whose client has been idle longest; or else one for which the server has worked for too long.
    /// Says whether there was one.
    fn close_idlest(&mut self, is_candidate: impl Fn(&Entry) -> bool) -> bool {
        let may_end = |entry: &&mut Entry| {
            let usage = &entry.usage;
            let idle_min = if usage.has_calls() { STALLED_CONNECTION_MS } else { UNUSED_CONNECTION_MS };
            let is_idle = usage.idle() >= Duration::from_millis(idle_min);
            let is_stuck = usage.is_at_work() && usage.since_progress() >= Duration::from_secs(BUSY_CONNECTION_S);
            !entry.is_closing && is_candidate(entry) && (is_idle || is_stuck)
        };
        let candidates = self.entries.values_mut().filter(may_end);
        let idlest = candidates.max_by_key(|entry| (!entry.usage.is_at_work(), entry.usage.since_progress()));
        idlest.map(Entry::close).is_some()
    }
}

impl Entry {
    fn close(&mut self) {
        tracing::debug!(peer = ?self.peer, idle = ?self.usage.since_progress(), "a connection makes room");
        self.is_closing = true;
        self.usage.caller.close.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with a connection from each of these peers, which has just come.
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
            assert!(Instant::now() < deadline, "the one that is idle longest makes room");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(table.open().count(), 5);
        let (mut table, _tasks) = self::table(&["127.0.0.1"; 7], 8);
        assert!(table.admits(peer("127.0.0.1")));
    }
}
