//! All routes, and what each call passes before it reaches its handler.

use axum::{Router, extract::Request, http::StatusCode, middleware::from_fn_with_state, response::Response};
use tower::util::option_layer;

use super::{
    access, access_log, console, events, jobs, long_calls, openapi, probes, questions, refuse, statistics,
    surface::Surface, table, tasks,
};

/// All routes.
pub(crate) fn router(surface: Surface) -> Router {
    openapi::with_docs(
        statistics::routes()
            .merge(tasks::routes())
            .merge(table::routes())
            .merge(questions::routes())
            .merge(jobs::routes())
            .merge(events::routes())
            .merge(probes::routes()),
    )
    .merge(console::routes())
    .fallback(no_such_path)
    .method_not_allowed_fallback(no_such_method)
    .layer(from_fn_with_state(surface.clone(), long_calls::long_answers))
    .layer(from_fn_with_state(surface.access.clone(), access::check))
    .layer(option_layer(access::cors(&surface.access))) // also around refusals, so that the page can read them
    .layer(from_fn_with_state(surface.clone(), access_log::log))
    .with_state(surface)
}

/// The probes alone.
pub(crate) fn probe_router(surface: Surface) -> Router {
    probes::probe_routes().with_state(surface)
}

/// The answer to a request on a connection that may be used for probes alone.
pub(crate) fn no_connection(path: &str) -> Response {
    refuse::refuse(path, StatusCode::SERVICE_UNAVAILABLE, "too many connections are in use: try again")
}

async fn no_such_path(request: Request) -> Response {
    refuse::refuse(request.uri().path(), StatusCode::NOT_FOUND, "there is nothing at this path")
}

async fn no_such_method(request: Request) -> Response {
    refuse::refuse(request.uri().path(), StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
}
