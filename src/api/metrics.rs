//! The metrics: counters of calls over both protocols, and the engine's figures, as Prometheus reads them.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tokio::runtime::Handle;
use tracing_appender::non_blocking::ErrorCounter;

use crate::{
    access::{Access, TokenUse, audit::Audit},
    engine::Stats,
};

/// Counters of calls, and gauges of the engine's figures, which are read when the metrics are asked for.
pub(crate) struct Metrics {
    registry: Registry,
    grpc_calls: Family<GrpcCall, Counter>,
    http_requests: Family<HttpRequest, Counter>,
    received: Counter<u64, AtomicU64>,
    spilled: Counter<u64, AtomicU64>,
    log_file: DroppedFileLines,
    log_file_dropped: Counter<u64, AtomicU64>,
    audit_lost: Counter<u64, AtomicU64>,
    parts: Gauge<u64, AtomicU64>,
    parts_max: Gauge<u64, AtomicU64>,
    unpacked: Gauge<u64, AtomicU64>,
    segments: Gauge<u64, AtomicU64>,
    parts_quarantined: Gauge<u64, AtomicU64>,
    damaged_files: Gauge<u64, AtomicU64>,
    jobs: Family<[(&'static str, &'static str); 1], Gauge<u64, AtomicU64>>,
    queue_lengths: Family<[(&'static str, &'static str); 1], Gauge<u64, AtomicU64>>,
    resident: Gauge<u64, AtomicU64>,
    tokio_alive_tasks: Gauge<u64, AtomicU64>,
}

/// How many lines the log has not written; clones share the counters.
#[derive(Clone, Default)]
pub(crate) struct LogCounts {
    /// Lines that standard error did not take in time.
    pub(crate) dropped: Counter<u64, AtomicU64>,
    /// Lines that a summary on standard error replaced.
    pub(crate) suppressed: Counter<u64, AtomicU64>,
    /// Lines that are missing from the file of `--log-file`.
    pub(crate) file: DroppedFileLines,
}

/// How many lines are missing from the file of `--log-file`; clones share the counters.
#[derive(Clone, Default)]
pub(crate) struct DroppedFileLines(Arc<DroppedFileCounters>);

#[derive(Default)]
struct DroppedFileCounters {
    /// Lines that could not be written.
    failed: AtomicU64,
    /// Counts the lines that came faster than the disk could take them.
    dropped: OnceLock<ErrorCounter>,
}

impl DroppedFileLines {
    /// A line could not be written.
    pub(crate) fn add_failed(&self) {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the lines that this writer drops, too.
    pub(crate) fn count_dropped_of(&self, writer: ErrorCounter) {
        self.0.dropped.get_or_init(|| writer);
    }

    pub(crate) fn count(&self) -> u64 {
        let dropped = self.0.dropped.get().map_or(0, ErrorCounter::dropped_lines);
        self.0.failed.load(Ordering::Relaxed) + dropped as u64
    }
}

/// A gRPC call and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct GrpcCall {
    /// `Table/Upload`, or `other` for a method that does not exist.
    pub(crate) method: &'static str,
    /// The name of gRPC's code; `Cancelled` also if the client did not wait for its answer.
    pub(crate) code: String,
}

/// An HTTP request and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HttpRequest {
    /// The pattern of the route, also of the Swagger page and of paths with a slash at the end; `other` if there is none.
    pub(crate) route: String,
    /// The method, or `other` for one that a client made up.
    pub(crate) method: &'static str,
    /// The status of the answer; 499 if the client did not wait for it.
    pub(crate) status: u16,
}

impl Metrics {
    /// All metrics at 0, except those of the log, which counts by itself.
    pub(crate) fn new(log: &LogCounts) -> Self {
        let mut registry = Registry::with_prefix("tally");
        let (grpc_calls, http_requests) = (Family::default(), Family::default());
        let (received, spilled, log_file_dropped) = (Counter::default(), Counter::default(), Counter::default());
        let audit_lost = Counter::default();
        let (parts, parts_max, jobs, queue_lengths) =
            (Gauge::default(), Gauge::default(), Family::default(), Family::default());
        let (resident, tokio_alive_tasks, parts_quarantined) = (Gauge::default(), Gauge::default(), Gauge::default());
        let (damaged_files, unpacked, segments) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("grpc_calls", "gRPC calls by method and code", grpc_calls.clone());
        registry.register("http_requests", "HTTP requests by route, method and status", http_requests.clone());
        registry.register_with_unit("received", "CSV that was received", Unit::Bytes, received.clone());
        registry.register_with_unit(
            "spilled",
            "Data that was written to temporary files",
            Unit::Bytes,
            spilled.clone(),
        );
        let dropped = "Lines that were not written to the file of --log-file, because its disk was too slow or failed";
        registry.register("log_file_lines_dropped", dropped, log_file_dropped.clone());
        let dropped = "Log lines that were not written to standard error, because it was too slow or failed";
        registry.register("stderr_lines_dropped", dropped, log.dropped.clone());
        let suppressed = "Log lines that a summary on standard error replaced, because many were similar";
        registry.register("stderr_lines_suppressed", suppressed, log.suppressed.clone());
        let lost = "Lines that were not written to the file of --audit-log, because its disk was too slow or failed";
        registry.register("audit_lines_lost", lost, audit_lost.clone());
        registry.register("parts", "Parts of the table", parts.clone());
        registry.register("parts_max", "Limit of the parts of the table", parts_max.clone());
        registry.register("unpacked_parts", "Parts that have their own files", unpacked.clone());
        registry.register("segments", "Segments, each with the files of many parts", segments.clone());
        let quarantined = "Parts in quarantine, missing from the table, whose loss no operator has accepted";
        registry.register("parts_quarantined", quarantined, parts_quarantined.clone());
        let damaged = "Damaged files that the last verification found (tally verify, --scrub-interval)";
        registry.register("damaged_files", damaged, damaged_files.clone());
        registry.register("jobs", "Jobs by state", jobs.clone());
        registry.register("worker_queue_length", "Tasks that wait for a worker, by lane", queue_lengths.clone());
        registry.register_with_unit("resident_memory", "Memory of the process", Unit::Bytes, resident.clone());
        registry.register("tokio_alive_tasks", "Asynchronous tasks that have not ended", tokio_alive_tasks.clone());
        Self {
            registry,
            grpc_calls,
            http_requests,
            received,
            spilled,
            log_file: log.file.clone(),
            log_file_dropped,
            audit_lost,
            parts,
            parts_max,
            unpacked,
            segments,
            parts_quarantined,
            damaged_files,
            jobs,
            queue_lengths,
            resident,
            tokio_alive_tasks,
        }
    }

    pub(crate) fn count_grpc(&self, call: &GrpcCall) {
        self.grpc_calls.get_or_create(call).inc();
    }

    pub(crate) fn count_http(&self, request: &HttpRequest) {
        self.http_requests.get_or_create(request).inc();
    }

    /// All metrics as OpenMetrics 1.0 text, with the current figures of the engine, the tokens, the logs and the runtime. It has
    /// to be called from an asynchronous task.
    pub(crate) fn text(&self, stats: &Stats, access: &Access) -> Result<String, fmt::Error> {
        let Stats { parts, parts_max, parts_missing, damaged_files, jobs, waiting, .. } = stats;
        let Stats { unpacked, segments, received_bytes, spilled_bytes, resident_bytes, .. } = stats;
        self.received.inner().store(*received_bytes, Ordering::Relaxed);
        self.log_file_dropped.inner().store(self.log_file.count(), Ordering::Relaxed);
        self.audit_lost.inner().store(access.audit().map_or(0, Audit::lost), Ordering::Relaxed);
        self.spilled.inner().store(*spilled_bytes, Ordering::Relaxed);
        self.resident.set(*resident_bytes);
        self.tokio_alive_tasks.set(Handle::current().metrics().num_alive_tasks() as u64);
        self.parts.set(*parts as u64);
        self.parts_max.set(*parts_max as u64);
        self.unpacked.set(*unpacked as u64);
        self.segments.set(*segments as u64);
        self.parts_quarantined.set(*parts_missing as u64);
        self.damaged_files.set(*damaged_files);
        for (state, count) in [
            ("queued", jobs.queued),
            ("running", jobs.running),
            ("done", jobs.done),
            ("failed", jobs.failed),
            ("downloaded", jobs.downloaded),
        ] {
            self.jobs.get_or_create(&[("state", state)]).set(count as u64);
        }
        for (lane, count) in waiting {
            self.queue_lengths.get_or_create(&[("lane", lane.name())]).set(*count as u64);
        }
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)?;
        text::encode_registry(&mut text, &of_tokens(access.token_uses()))?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

/// The metrics of tokens by their names; none without tokens. They are made anew each time, because tokens come and go.
fn of_tokens(uses: Vec<TokenUse>) -> Registry {
    type ByToken = Family<[(&'static str, String); 1], Counter<u64, AtomicU64>>;
    let mut registry = Registry::with_prefix("tally");
    if uses.is_empty() {
        return registry;
    }
    let (all, refused_calls, added) = (ByToken::default(), ByToken::default(), ByToken::default());
    registry.register("token_calls", "Calls by the name of their token", all.clone());
    let refused = "Calls that were refused for their token, its scope or a quota, by the name of the token";
    registry.register("token_refused_calls", refused, refused_calls.clone());
    let bytes = "CSV that was added to the table, by the name of the token";
    registry.register_with_unit("token_added", bytes, Unit::Bytes, added.clone());
    for TokenUse { name, calls, refused, bytes } in uses {
        let token = [("token", name.map(|name| name.to_string()).unwrap_or_default())];
        for (family, count) in [(&all, calls), (&refused_calls, refused), (&added, bytes)] {
            family.get_or_create(&token).inner().store(count, Ordering::Relaxed);
        }
    }
    registry
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&LogCounts::default())
    }
}
