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

use crate::engine::Stats;

/// Counters of calls, and gauges of the engine's figures, which are read when the metrics are asked for.
pub(crate) struct Metrics {
    registry: Registry,
    grpc_calls: Family<GrpcCall, Counter>,
    http_calls: Family<HttpCall, Counter>,
    received: Counter<u64, AtomicU64>,
    spilled: Counter<u64, AtomicU64>,
    log_file: LostFileLines,
    log_lines_lost: Counter<u64, AtomicU64>,
    parts: Gauge<u64, AtomicU64>,
    parts_max: Gauge<u64, AtomicU64>,
    parts_quarantined: Gauge<u64, AtomicU64>,
    damaged_files: Gauge<u64, AtomicU64>,
    jobs: Family<[(&'static str, &'static str); 1], Gauge<u64, AtomicU64>>,
    waiting: Family<[(&'static str, &'static str); 1], Gauge<u64, AtomicU64>>,
    resident: Gauge<u64, AtomicU64>,
    tokio_tasks: Gauge<u64, AtomicU64>,
}

/// How many lines the log has not written; clones share the counters.
#[derive(Clone, Default)]
pub(crate) struct LogCounts {
    /// Lines that standard error did not take in time.
    pub(crate) lost: Counter<u64, AtomicU64>,
    /// Lines that a summary on standard error stands for.
    pub(crate) summed: Counter<u64, AtomicU64>,
    /// Lines that are missing from the file of `--log-file`.
    pub(crate) file: LostFileLines,
}

/// How many lines are missing from the file of `--log-file`; clones share the counters.
#[derive(Clone, Default)]
pub(crate) struct LostFileLines(Arc<LostFileCounters>);

#[derive(Default)]
struct LostFileCounters {
    /// Lines that could not be written.
    failed: AtomicU64,
    /// Counts the lines that came faster than the disk could take them.
    dropped: OnceLock<ErrorCounter>,
}

impl LostFileLines {
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

/// An HTTP call and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HttpCall {
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
        let (grpc_calls, http_calls) = (Family::default(), Family::default());
        let (received, spilled, log_lines_lost) = (Counter::default(), Counter::default(), Counter::default());
        let (parts, parts_max, jobs, waiting) =
            (Gauge::default(), Gauge::default(), Family::default(), Family::default());
        let (resident, tokio_tasks, parts_quarantined) = (Gauge::default(), Gauge::default(), Gauge::default());
        let damaged_files = Gauge::default();
        registry.register("grpc_calls", "gRPC calls by method and code", grpc_calls.clone());
        registry.register("http_calls", "HTTP calls by route, method and status", http_calls.clone());
        registry.register_with_unit("received", "CSV that came in", Unit::Bytes, received.clone());
        registry.register_with_unit("spilled", "What went to scratch files", Unit::Bytes, spilled.clone());
        let lost = "Lines that are not in the file of --log-file, as its disk was too slow or failed";
        registry.register("log_lines_lost", lost, log_lines_lost.clone());
        let lost = "Log lines that are not on standard error, as it took them too slowly or failed";
        registry.register("stderr_lines_lost", lost, log.lost.clone());
        let summed = "Log lines that were summed up on standard error, as there were many more like them";
        registry.register("stderr_lines_summed", summed, log.summed.clone());
        registry.register("parts", "Parts of the table", parts.clone());
        registry.register("parts_max", "Parts that the table may have", parts_max.clone());
        let quarantined = "Parts in quarantine, missing from the table, whose loss no operator has accepted";
        registry.register("parts_quarantined", quarantined, parts_quarantined.clone());
        let damaged = "Damaged files that the last verification found (tally verify, --scrub-interval)";
        registry.register("damaged_files", damaged, damaged_files.clone());
        registry.register("jobs", "Jobs by state", jobs.clone());
        registry.register("slices_waiting", "Slices of work that wait for a worker, by lane", waiting.clone());
        registry.register_with_unit("resident_memory", "Memory of the process", Unit::Bytes, resident.clone());
        registry.register("tokio_tasks", "Asynchronous tasks that have not ended", tokio_tasks.clone());
        Self {
            registry,
            grpc_calls,
            http_calls,
            received,
            spilled,
            log_file: log.file.clone(),
            log_lines_lost,
            parts,
            parts_max,
            parts_quarantined,
            damaged_files,
            jobs,
            waiting,
            resident,
            tokio_tasks,
        }
    }

    pub(crate) fn count_grpc(&self, call: &GrpcCall) {
        self.grpc_calls.get_or_create(call).inc();
    }

    pub(crate) fn count_http(&self, call: &HttpCall) {
        self.http_calls.get_or_create(call).inc();
    }

    /// All metrics as OpenMetrics 1.0 text, with the current figures of the engine, the log and the runtime. It has to be
    /// called from an asynchronous task.
    pub(crate) fn text(&self, stats: &Stats) -> Result<String, fmt::Error> {
        let Stats { parts, parts_max, parts_missing, damaged_files, jobs, waiting, .. } = stats;
        let Stats { received_bytes, spilled_bytes, resident_bytes, .. } = stats;
        self.received.inner().store(*received_bytes, Ordering::Relaxed);
        self.log_lines_lost.inner().store(self.log_file.count(), Ordering::Relaxed);
        self.spilled.inner().store(*spilled_bytes, Ordering::Relaxed);
        self.resident.set(*resident_bytes);
        self.tokio_tasks.set(Handle::current().metrics().num_alive_tasks() as u64);
        self.parts.set(*parts as u64);
        self.parts_max.set(*parts_max as u64);
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
            self.waiting.get_or_create(&[("lane", lane.name())]).set(*count as u64);
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&LogCounts::default())
    }
}
