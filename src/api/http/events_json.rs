//! The JSON of an event: what the server does at one moment.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{
    Activity, Overview, Stats,
    state::{jobs::JobCounts, transfers::TransferNow},
};

/// What the server does at one moment.
#[derive(Serialize, ToSchema)]
pub(super) struct StatsEvent {
    /// RFC 3339, UTC.
    time: String,
    /// Parts of the table.
    parts: usize,
    /// Their data rows.
    rows: u64,
    /// Different names of columns.
    columns: usize,
    /// Bytes of their CSV files.
    csv_bytes: u64,
    /// Bytes of their Parquet files.
    parquet_bytes: u64,
    /// Bytes of CSV that were received since the server was started.
    received_bytes: u64,
    /// The same in one second, since the event before.
    received_bytes_per_s: u64,
    /// The uploads that have run longest: 20 at most.
    uploads: Vec<UploadEvent>,
    uploads_count: usize,
    /// How many tasks wait for a worker, lane by lane.
    #[schema(value_type = std::collections::BTreeMap<String, usize>)]
    queue: BTreeMap<&'static str, usize>,
    jobs: JobsEvent,
    memory: MemoryEvent,
    /// Parts in quarantine.
    quarantined: usize,
    /// Whether the server is shutting down.
    draining: bool,
}

/// An upload that runs.
#[derive(Serialize, ToSchema)]
struct UploadEvent {
    id: u64,
    /// The client's address; of IPv6, its first 64 bits. Null for a file of the server's own.
    peer: Option<String>,
    /// Bytes that have arrived.
    bytes: u64,
    /// RFC 3339, UTC.
    since: String,
}

/// How many jobs there are by their state.
#[derive(Serialize, ToSchema)]
struct JobsEvent {
    queued: usize,
    running: usize,
    done: usize,
    failed: usize,
    downloaded: usize,
}

/// Memory of the process, in bytes.
#[derive(Serialize, ToSchema)]
struct MemoryEvent {
    resident: u64,
    /// The limit of the control group; null if there is none.
    limit: Option<u64>,
}

/// When the event before was made, and the bytes that had been received by then.
pub(super) type Before = Option<(Instant, u64)>;

/// The text of an event.
pub(super) fn event_text(activity: &Activity, before: Before, draining: bool) -> Bytes {
    match serde_json::to_string(&StatsEvent::of(activity, before, draining)) {
        Ok(json) => format!("event: stats\ndata: {json}\n\n").into(),
        Err(error) => format!(": {error}\n\n").into(),
    }
}

impl StatsEvent {
    fn of(activity: &Activity, before: Before, draining: bool) -> Self {
        let Activity { stats, overview, memory_bytes_max, uploads_count, uploads } = activity;
        let Stats { parts_missing, received_bytes, resident_bytes, waiting, .. } = *stats;
        let Overview { parts, rows, columns, csv_bytes, parquet_bytes, .. } = *overview;
        let now = SystemTime::now();
        Self {
            time: text_of(now),
            parts,
            rows,
            columns,
            csv_bytes,
            parquet_bytes,
            received_bytes,
            received_bytes_per_s: rate(before, received_bytes),
            uploads: uploads.iter().map(|upload| UploadEvent::of(*upload, now)).collect(),
            uploads_count: *uploads_count,
            queue: waiting.into_iter().map(|(lane, count)| (lane.name(), count)).collect(),
            jobs: JobsEvent::of(stats.jobs),
            memory: MemoryEvent { resident: resident_bytes, limit: *memory_bytes_max },
            quarantined: parts_missing,
            draining,
        }
    }
}

impl UploadEvent {
    fn of(TransferNow { id, origin, bytes, age }: TransferNow, now: SystemTime) -> Self {
        let local = || origin.connection.map(|_| "127.0.0.1".to_owned());
        let peer = origin.peer.map(|peer| peer.to_string()).or_else(local);
        Self { id, peer, bytes, since: text_of(now - age) }
    }
}

impl JobsEvent {
    fn of(JobCounts { queued, running, done, failed, downloaded }: JobCounts) -> Self {
        Self { queued, running, done, failed, downloaded }
    }
}

/// Bytes a second since the event before.
fn rate(before: Before, received_bytes: u64) -> u64 {
    let Some((at, bytes_before)) = before else { return 0 };
    let elapsed_ms = u64::try_from(at.elapsed().max(Duration::from_millis(1)).as_millis()).unwrap_or(u64::MAX);
    (received_bytes - bytes_before).saturating_mul(1000) / elapsed_ms
}

fn text_of(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}
