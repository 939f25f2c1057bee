//! The tables of transfers: which run, which wait for a permit, and how fast each one moves. Plain tables under the lock;
//! `runtime/transfers.rs` gives the permits. Each operation goes over the transfers once, because those of each client are
//! counted.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::limits::{TRANSFER_BYTES_PER_S_MIN, TRANSFER_SHORT_GRACE_S};

/// How far behind the least rate a transfer may be while others wait for its permit.
pub(crate) const SHORT_GRACE: Duration = Duration::from_secs(TRANSFER_SHORT_GRACE_S);

/// Where a transfer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The number of its connection; `None` for work of the server itself, which has no limit.
    pub connection: Option<u64>,
    /// The client's network address; `None` for this machine, whose clients all have the same address.
    pub peer: Option<IpAddr>,
}

impl Origin {
    /// The server itself.
    pub const SERVER: Self = Self { connection: None, peer: None };

    /// A connection from an address.
    pub fn of(connection: u64, peer: IpAddr) -> Self {
        let peer = Some(one_client(peer)).filter(|peer| !peer.is_loopback());
        Self { connection: Some(connection), peer }
    }
}

/// The part of an address that identifies a client: all of it for IPv4, the first 64 bits for IPv6, where clients choose the
/// other bits themselves.
pub fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// The kinds of transfers; each has its own limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferKind {
    /// An upload, by whatever protocol.
    Upload,
    /// A call with a long body or answer, on a connection that serves one call at a time.
    LongCall,
    /// Somebody who watches the server.
    Watch,
    /// A group sum that waits, runs or is being read.
    GroupSum,
    /// A verification of all that is stored, on request.
    Verify,
    /// A receipt with many columns that is being read.
    WideReceipt,
}

impl TransferKind {
    /// How many kinds there are.
    pub const COUNT: usize = 6;
}

/// The transfers of one kind, those that run and those that wait.
pub struct Transfers {
    max: usize,
    waits_max: usize,
    running: Vec<Running>,
    waiting: VecDeque<Waiting>,
    running_counts: Counts,
    waiting_counts: Counts,
    next_id: u64,
}

/// A transfer that has a permit.
struct Running {
    id: u64,
    origin: Origin,
    pace: Arc<Pace>,
    /// Whether its `pace.end` was cancelled.
    is_ending: bool,
}

/// A transfer that waits for a permit.
struct Waiting {
    transfer: Running,
    tx: oneshot::Sender<()>,
}

/// A transfer that runs, for those who look at the server.
#[derive(Clone, Copy, Debug)]
pub struct TransferNow {
    /// Its number among the transfers of its kind.
    pub id: u64,
    /// Where it comes from.
    pub origin: Origin,
    /// Bytes that its client has sent or read.
    pub bytes: u64,
    /// For how long it has run.
    pub age: Duration,
}

/// How many transfers a client has. Compared by `of_client` first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ClientCount {
    /// On all its connections.
    of_client: usize,
    /// On one of them.
    of_connection: usize,
}

impl Add for ClientCount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { of_client: self.of_client + other.of_client, of_connection: self.of_connection + other.of_connection }
    }
}

/// The number of transfers of each connection and each peer that has any.
#[derive(Default)]
struct Counts {
    connections: HashMap<u64, usize>,
    peers: HashMap<IpAddr, usize>,
}

impl Counts {
    fn add(&mut self, origin: Origin) {
        origin.connection.into_iter().for_each(|connection| *self.connections.entry(connection).or_default() += 1);
        origin.peer.into_iter().for_each(|peer| *self.peers.entry(peer).or_default() += 1);
    }

    fn remove(&mut self, origin: Origin) {
        decrement(&mut self.connections, origin.connection);
        decrement(&mut self.peers, origin.peer);
    }

    /// The transfers of a client. A client is all connections from its address, or one connection if there is no address.
    fn of(&self, origin: Origin) -> ClientCount {
        let count = |count: Option<&usize>| count.copied().unwrap_or_default();
        let of_connection = count(origin.connection.and_then(|connection| self.connections.get(&connection)));
        let of_client = origin.peer.map_or(of_connection, |peer| count(self.peers.get(&peer)));
        ClientCount { of_client, of_connection }
    }
}

fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: Option<K>) {
    if let Some(key) = key
        && let Entry::Occupied(mut count) = counts.entry(key)
    {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// What keeps a transfer from starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// Its connection has as many permits as one connection may have.
    Connection,
    /// Its client has as many permits as one client may have.
    Peer,
    /// All permits are taken.
    Full,
}

impl Transfers {
    /// No transfers. At most `max` run and at most `waits_max` wait at the same time.
    pub fn new(max: usize, waits_max: usize) -> Self {
        let (running, waiting) = (Vec::new(), VecDeque::new());
        let (running_counts, waiting_counts) = (Counts::default(), Counts::default());
        Self { max, waits_max, running, waiting, running_counts, waiting_counts, next_id: 0 }
    }

    /// What keeps a transfer from starting, if anything does.
    fn obstacle(&self, origin: Origin) -> Option<Obstacle> {
        let connection_max = self.max.div_ceil(2);
        let peer_max = (self.max * 3).div_ceil(4);
        let ClientCount { of_client, of_connection } = self.running_counts.of(origin);
        if origin.connection.is_some() && of_connection >= connection_max {
            return Some(Obstacle::Connection);
        }
        if origin.peer.is_some() && of_client >= peer_max {
            return Some(Obstacle::Peer);
        }
        (self.running.len() >= self.max).then_some(Obstacle::Full)
    }

    /// Starts a transfer, or puts it in the queue. Returns its id, and the channel on which it learns that it runs if it has
    /// to wait. `None` if the queue is full.
    pub(crate) fn enter(&mut self, origin: Origin, pace: Arc<Pace>) -> Option<(u64, Option<oneshot::Receiver<()>>)> {
        let transfer = Running { id: self.next_id, origin, pace, is_ending: false };
        let id = transfer.id;
        // No waiting transfer can start now, so this one does not overtake any.
        let rx = if self.obstacle(origin).is_none() {
            self.run(transfer);
            None
        } else if self.has_room_to_wait(origin) {
            let (tx, rx) = oneshot::channel();
            self.waiting_counts.add(origin);
            self.waiting.push_back(Waiting { transfer, tx });
            Some(rx)
        } else {
            return None;
        };
        self.next_id += 1;
        Some((id, rx))
    }

    /// The transfers whose client has to act and is at least so far behind.
    pub(crate) fn stalled(&self, behind_min: Duration) -> Vec<Arc<Pace>> {
        let is_stalled = |pace: &&Arc<Pace>| pace.is_waiting() && pace.behind() >= behind_min;
        self.running.iter().map(|transfer| &transfer.pace).filter(is_stalled).cloned().collect()
    }

    /// How many transfers run.
    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    /// The transfers that have run longest, at most `count_max`.
    pub fn oldest(&self, count_max: usize) -> Vec<TransferNow> {
        let now = |transfer: &Running| {
            let (bytes, age) = (transfer.pace.moved_bytes.load(Ordering::Relaxed), transfer.pace.started.elapsed());
            TransferNow { id: transfer.id, origin: transfer.origin, bytes, age }
        };
        self.running.iter().take(count_max).map(now).collect()
    }

    fn run(&mut self, transfer: Running) {
        self.running_counts.add(transfer.origin);
        self.running.push(transfer);
    }

    fn remove_waiting(&mut self, index: usize) -> Option<Waiting> {
        let removed = self.waiting.remove(index)?;
        self.waiting_counts.remove(removed.transfer.origin);
        Some(removed)
    }

    /// Whether one more may wait. If the queue is full, a transfer of the client that has most transfers is removed, or one
    /// of another connection of the same client.
    fn has_room_to_wait(&mut self, origin: Origin) -> bool {
        if self.waiting.len() < self.waits_max {
            return true;
        }
        let count = |origin: Origin| self.running_counts.of(origin) + self.waiting_counts.of(origin);
        let counts = self.waiting.iter().map(|waiting| count(waiting.transfer.origin)).enumerate();
        // If several have the most, the last in the queue.
        let Some((index, most)) = counts.max_by_key(|(_, count)| *count) else { return false };
        let own = count(origin);
        let is_same_peer = self.waiting[index].transfer.origin.peer == origin.peer;
        if most.of_client > own.of_client + 1 || (is_same_peer && most.of_connection > own.of_connection + 1) {
            self.remove_waiting(index); // the closed channel means that it was refused
            return true;
        }
        false
    }

    /// The waiting transfer that starts next: the one whose client has the fewest running transfers, then the one whose
    /// connection has the fewest, then the one that has waited longest.
    fn next_waiting(&self) -> Option<usize> {
        let may_run = |index: &usize| self.obstacle(self.waiting[*index].transfer.origin).is_none();
        let candidates = (0..self.waiting.len()).filter(may_run);
        candidates.min_by_key(|&index| self.running_counts.of(self.waiting[index].transfer.origin))
    }

    /// Removes a transfer that ran or waited. Returns the channels of those that run now.
    pub(crate) fn leave(&mut self, id: u64) -> Vec<oneshot::Sender<()>> {
        if let Some(index) = self.running.iter().position(|transfer| transfer.id == id) {
            let left = self.running.remove(index);
            self.running_counts.remove(left.origin);
        } else if let Some(index) = self.waiting.iter().position(|waiting| waiting.transfer.id == id) {
            self.remove_waiting(index);
        }
        let mut started = Vec::new();
        while self.running.len() < self.max
            && let Some(Waiting { transfer, tx }) = self.next_waiting().and_then(|index| self.remove_waiting(index))
        {
            self.run(transfer);
            started.push(tx);
        }
        started
    }

    /// The slowest of the transfers that keep `origin` from starting. Only those count that wait for their client, and that
    /// are too slow.
    pub(crate) fn slowest(&mut self, origin: Origin) -> Option<Arc<Pace>> {
        let obstacle = self.obstacle(origin)?;
        let is_in_the_way = |other: Origin| match obstacle {
            Obstacle::Connection => other.connection == origin.connection,
            Obstacle::Peer => other.peer == origin.peer,
            Obstacle::Full => true,
        };
        let may_end = |other: &&mut Running| {
            !other.is_ending
                && other.pace.is_waiting()
                && is_in_the_way(other.origin)
                && other.pace.behind() >= SHORT_GRACE
        };
        let candidates = self.running.iter_mut().filter(may_end);
        let slowest = candidates.max_by_key(|other| other.pace.behind())?;
        slowest.is_ending = true;
        Some(Arc::clone(&slowest.pace))
    }
}

/// How far a transfer is behind the minimum rate. Only the time counts in which the server waits for the client.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    /// Bytes that the client has sent or read.
    moved_bytes: AtomicU64,
    /// How many microseconds it was behind when it last moved.
    pub(crate) behind_us: AtomicU64,
    /// When the server began to wait for the client, in microseconds after `started`, plus 1; 0 if it does not wait.
    waiting_since_us: AtomicU64,
    /// Cancelled when the transfer has to end so that another can start.
    pub(crate) end: CancellationToken,
}

impl Pace {
    /// A transfer that begins now. `end` is cancelled when it has to end so that another can start.
    pub fn new(end: CancellationToken) -> Self {
        Self {
            started: Instant::now(),
            moved_bytes: AtomicU64::new(0),
            behind_us: AtomicU64::new(0),
            waiting_since_us: AtomicU64::new(0),
            end,
        }
    }

    fn now_us(&self) -> u64 {
        1 + u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }

    /// Notes that the server waits for the client from now on.
    pub fn waits(&self) {
        if self.waiting_since_us.load(Ordering::Relaxed) == 0 {
            self.waiting_since_us.store(self.now_us(), Ordering::Relaxed);
        }
    }

    /// Notes that the client has sent or read `bytes`, and that the server no longer waits for it.
    pub fn moved(&self, bytes: usize) {
        self.moved_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let earned = (bytes as u64).saturating_mul(1_000_000) / TRANSFER_BYTES_PER_S_MIN;
        let behind = self.behind_us().saturating_sub(earned);
        self.behind_us.store(behind, Ordering::Relaxed);
        self.waiting_since_us.store(0, Ordering::Relaxed);
    }

    /// Notes that the server no longer waits for the client, although no bytes have moved.
    pub fn stops_waiting(&self) {
        self.moved(0);
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting_since_us.load(Ordering::Relaxed) != 0
    }

    fn behind_us(&self) -> u64 {
        let since = self.waiting_since_us.load(Ordering::Relaxed);
        let waited = if since == 0 { 0 } else { self.now_us().saturating_sub(since) };
        self.behind_us.load(Ordering::Relaxed).saturating_add(waited)
    }

    pub(crate) fn behind(&self) -> Duration {
        Duration::from_micros(self.behind_us())
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;

    /// The numbers of transfers of each client, counted one by one.
    fn counted<'a>(transfers: impl Iterator<Item = &'a Running> + Clone, origin: Origin) -> ClientCount {
        let is_of = |known: bool, other: bool| usize::from(known && other);
        let (connection, peer) = (origin.connection, origin.peer);
        let of_connection = transfers.clone().map(|it| is_of(connection.is_some(), it.origin.connection == connection));
        let of_peer = transfers.map(|it| is_of(peer.is_some(), it.origin.peer == peer));
        let of_connection = of_connection.sum();
        ClientCount { of_client: if peer.is_some() { of_peer.sum() } else { of_connection }, of_connection }
    }

    #[test]
    fn the_counts_of_clients_are_those_of_their_transfers() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut table = Transfers::new(12, 16);
        let address = |peer: u8| IpAddr::from(if peer == 0 { [127, 0, 0, 1] } else { [192, 0, 2, peer] });
        let of = |connection: u8| Origin::of(u64::from(connection), address(connection / 3));
        let mut origins: Vec<_> = (0..12).map(of).collect();
        origins.push(Origin::SERVER);
        let mut ids = Vec::new();
        for step in 0..4000 {
            let origin = origins[random.usize(..origins.len())];
            if step < 3000 && random.bool() {
                let entered = table.enter(origin, Arc::new(Pace::new(CancellationToken::new())));
                ids.extend(entered.map(|(id, _rx)| id));
            } else if !ids.is_empty() {
                table.leave(ids.swap_remove(random.usize(..ids.len())));
            }
            for origin in &origins {
                assert_eq!(table.running_counts.of(*origin), counted(table.running.iter(), *origin));
                let waiting = table.waiting.iter().map(|waiting| &waiting.transfer);
                assert_eq!(table.waiting_counts.of(*origin), counted(waiting, *origin));
            }
        }
        while let Some(id) = ids.pop() {
            table.leave(id);
        }
        assert!(table.running.is_empty() && table.waiting.is_empty());
        for counts in [&table.running_counts, &table.waiting_counts] {
            assert!(
                counts.connections.is_empty() && counts.peers.is_empty(),
                "nothing is kept of clients that are gone"
            );
        }
    }
}
