//! What the handlers of one server share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::event_stream::Events;
use crate::{
    access::{Access, pages::PageRules},
    api::metrics::Metrics,
    engine::{Engine, runtime::transfers::Admission},
};

/// What the handlers share; clones refer to the same.
#[derive(Clone)]
pub(crate) struct Surface(Arc<Inner>);

pub(crate) struct Inner {
    pub(super) engine: Engine,
    pub(super) metrics: Arc<Metrics>,
    pub(super) access: Access,
    pub(super) pages: PageRules,
    /// Admits calls whose body or answer takes long.
    pub(super) long_calls: Admission,
    /// How long a body may send nothing.
    pub(super) idle_max: Duration,
    pub(super) events: Events,
    /// Admits receipts with many columns to be in memory.
    pub(super) wide_receipts: Admission,
    requests: AtomicU64,
    draining: AtomicBool,
    /// Lets a call be refused before its body is read. The engine checks again.
    jobs_refused: AtomicBool,
}

impl std::ops::Deref for Surface {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Surface {
    pub(crate) fn new(
        engine: Engine,
        metrics: Arc<Metrics>,
        access: Access,
        pages: PageRules,
        idle_max: Duration,
        long_calls_max: usize,
    ) -> Self {
        Self(Arc::new(Inner {
            long_calls: engine.long_calls(long_calls_max),
            events: Events::new(&engine),
            wide_receipts: engine.wide_receipts(),
            engine,
            metrics,
            access,
            pages,
            idle_max,
            requests: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            jobs_refused: AtomicBool::new(false),
        }))
    }
}

impl Inner {
    /// From now on probes answer that the server is shutting down, and no job is accepted. Streams of events end.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.events.end();
        self.refuse_jobs();
    }

    pub(super) fn refuse_jobs(&self) {
        self.jobs_refused.store(true, Ordering::Relaxed);
        self.engine.refuse_jobs();
    }

    pub(super) fn takes_jobs(&self) -> bool {
        !self.jobs_refused.load(Ordering::Relaxed)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The number of a request, for the log.
    pub(super) fn next_request_id(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }
}
