//! What both surfaces count of their calls, and the text that Prometheus reads.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tokio::runtime::Handle;

use crate::engine::Stats;

/// Counters of calls, and places for the engine's figures, which are read when somebody asks.
pub(crate) struct Metrics {
    registry: Registry,
    grpc_calls: Family<GrpcCall, Counter>,
    http_calls: Family<HttpCall, Counter>,
    received: Counter<u64, AtomicU64>,
    spilled: Counter<u64, AtomicU64>,
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

/// What the log did not write to standard error; clones count the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogCounts {
    /// Lines that could not be written in time.
    pub(crate) lost: Counter<u64, AtomicU64>,
    /// Lines that were summed up in another.
    pub(crate) summed: Counter<u64, AtomicU64>,
}

/// A gRPC call and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct GrpcCall {
    /// `Table/Upload`, or `other`: never what a client made up.
    pub(crate) method: &'static str,
    /// The name of gRPC's code; `Cancelled` too for a client that did not wait for its answer.
    pub(crate) code: String,
}

/// An HTTP call and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HttpCall {
    /// The route's pattern, those of the Swagger page and of a slash at the end among them; `other` if there is none.
    pub(crate) route: String,
    /// The method, or `other`: never what a client made up.
    pub(crate) method: &'static str,
    /// What was answered; 499 for a client that did not wait for it.
    pub(crate) status: u16,
}

impl Metrics {
    /// All of them at 0, but for those of the log, which counts itself.
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

    /// Everything as OpenMetrics 1.0 text, with the engine's figures, the log file's and the runtime's as they are now. It is called from an
    /// asynchronous task.
    pub(crate) fn text(&self, stats: &Stats, log_lines_lost: u64) -> Result<String, fmt::Error> {
        let Stats { parts, parts_max, parts_missing, damaged_files, jobs, waiting, .. } = stats;
        let Stats { received_bytes, spilled_bytes, resident_bytes, .. } = stats;
        self.received.inner().store(*received_bytes, Ordering::Relaxed);
        self.log_lines_lost.inner().store(log_lines_lost, Ordering::Relaxed);
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
