//! HTTP: JSON to the engine and back. Handlers are three moves: convert in, one engine call, convert out.
//!
//! Read in this order: `convert`, `body`, `download`, `survey`, `tasks`, `probes`; around them `guard`, `long_calls` and
//! `log`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware::{from_fn, from_fn_with_state},
    response::Response,
};

use self::{guard::AdminToken, log_file::LostLines};
use crate::{
    api::metrics::Metrics,
    engine::{Engine, runtime::transfers::Admission},
};

mod body;
mod convert;
mod download;
pub(crate) mod guard;
pub(crate) mod log;
pub(crate) mod log_file;
mod long_calls;
mod openapi;
mod probes;
mod survey;
mod tasks;

/// What the handlers share; clones are handles on the same.
#[derive(Clone)]
pub(crate) struct Surface(Arc<Inner>);

pub(crate) struct Inner {
    engine: Engine,
    metrics: Arc<Metrics>,
    admin_token: Option<AdminToken>,
    /// JSON bodies that are too large to be held for every connection.
    large_bodies: Admission,
    /// Calls whose body or answer takes its time.
    long_calls: Admission,
    /// How long a body may keep us waiting.
    idle_max: Duration,
    lost_lines: LostLines,
    calls: AtomicU64,
    draining: AtomicBool,
    /// So that a call need not be read to be refused; the engine has the last word.
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
        admin_token: Option<AdminToken>,
        idle_max: Duration,
        long_calls_max: usize,
        lost_lines: LostLines,
    ) -> Self {
        Self(Arc::new(Inner {
            long_calls: engine.long_calls(long_calls_max),
            large_bodies: engine.large_bodies(),
            engine,
            metrics,
            admin_token,
            idle_max,
            lost_lines,
            calls: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            jobs_refused: AtomicBool::new(false),
        }))
    }
}

impl Inner {
    /// From here on probes are told that the server goes down, and no job is accepted.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.refuse_jobs();
    }

    fn refuse_jobs(&self) {
        self.jobs_refused.store(true, Ordering::Relaxed);
        self.engine.refuse_jobs();
    }

    fn takes_jobs(&self) -> bool {
        !self.jobs_refused.load(Ordering::Relaxed)
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A number for the log.
    fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// All routes.
pub(crate) fn router(surface: Surface) -> Router {
    openapi::with_docs(survey::routes().merge(tasks::routes()).merge(probes::routes()))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(surface.clone(), long_calls::long_answers))
        .layer(from_fn(guard::guard))
        .layer(from_fn_with_state(surface.clone(), log::log))
        .with_state(surface)
}

/// The probes alone.
pub(crate) fn probe_router(surface: Surface) -> Router {
    probes::for_probes_alone().with_state(surface)
}

/// The answer to a request whose connection may not be used for it.
pub(crate) fn no_connection(path: &str) -> Response {
    convert::refuse(path, StatusCode::SERVICE_UNAVAILABLE, "as many connections are in use as may be: try again")
}

async fn no_such_path(request: Request) -> Response {
    convert::refuse(request.uri().path(), StatusCode::NOT_FOUND, "there is nothing at this path")
}

async fn no_such_method(request: Request) -> Response {
    convert::refuse(request.uri().path(), StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
}
