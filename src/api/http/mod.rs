//! HTTP: JSON to the engine and back. Handlers are three moves: convert in, one engine call, convert out.
//!
//! Read in this order: `convert`, `body`, `download`, `survey`, `tasks`, `probes`; around them `guard` and `log`.

mod body;
mod convert;
mod download;
pub(crate) mod guard;
pub(crate) mod log;
mod openapi;
mod probes;
mod survey;
mod tasks;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware::{from_fn, from_fn_with_state},
    response::Response,
};
use tokio::sync::Semaphore;

use crate::{api::metrics::Metrics, engine::Engine, limits::LARGE_JSON_BODIES_MAX};
use guard::AdminToken;

/// What the handlers share; clones are handles on the same.
#[derive(Clone)]
pub(crate) struct Surface(Arc<Inner>);

pub(crate) struct Inner {
    engine: Engine,
    metrics: Arc<Metrics>,
    admin_token: Option<AdminToken>,
    /// JSON bodies that are too large to be held for every connection.
    large_bodies: Semaphore,
    calls: AtomicU64,
    draining: AtomicBool,
}

impl std::ops::Deref for Surface {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Surface {
    pub(crate) fn new(engine: Engine, metrics: Arc<Metrics>, admin_token: Option<AdminToken>) -> Self {
        Self(Arc::new(Inner {
            engine,
            metrics,
            admin_token,
            large_bodies: Semaphore::new(LARGE_JSON_BODIES_MAX),
            calls: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        }))
    }
}

impl Inner {
    /// From here on probes are told that the server goes down.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
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
        .layer(from_fn(guard::guard))
        .layer(from_fn_with_state(surface.clone(), log::log))
        .with_state(surface)
}

async fn no_such_path(request: Request) -> Response {
    convert::refuse(request.uri().path(), StatusCode::NOT_FOUND, "there is nothing at this path")
}

async fn no_such_method(request: Request) -> Response {
    convert::refuse(request.uri().path(), StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
}
