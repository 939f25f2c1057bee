//! The probes of orchestrators, and the metrics for Prometheus.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{errors::status_of, refuse::refuse, surface::Surface};
use crate::error::Error;

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// The probes of orchestrators alone, for the address of `--probe`.
pub(super) fn probe_routes() -> Router<Surface> {
    Router::new().route("/livez", get(livez)).route("/readyz", get(readyz))
}

/// Whether the process answers.
#[utoipa::path(get, path = "/livez", tag = "probes", security(()), responses((status = 200, description = "It does", body = String)))]
async fn livez() -> &'static str {
    "alive\n"
}

/// How long a worker may take to write to the disk.
const READY_CHECK_MAX: Duration = Duration::from_secs(2);

/// Whether the server takes calls and gets work done; and how many parts are in quarantine, if there are any.
#[utoipa::path(
    get, path = "/readyz", tag = "probes", security(()),
    responses(
        (status = 200, description = "It does", body = String),
        (status = 503, description = "It is shutting down, or no worker or the disk does not answer", body = String)
    )
)]
async fn readyz(State(surface): State<Surface>) -> (StatusCode, String) {
    if surface.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    if let Err(error) = surface.engine.check_ready(READY_CHECK_MAX).await {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {error}\n"));
    }
    let text = match surface.engine.missing_parts().count() {
        0 => "ready\n".to_owned(),
        1 => "ready, 1 part in quarantine\n".to_owned(),
        count => format!("ready, {count} parts in quarantine\n"),
    };
    (StatusCode::OK, text)
}

/// The server's metrics for Prometheus, as OpenMetrics 1.0 text.
#[utoipa::path(
    get, path = "/metrics", tag = "probes",
    responses((
        status = 200, description = "The metrics", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    ))
)]
async fn metrics(State(surface): State<Surface>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = surface.engine.stats().await.and_then(|stats| {
        surface.metrics.text(&stats, &surface.access).map_err(|error| Error::Internal(format!("metrics: {error}")))
    });
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => refuse("/metrics", status_of(&error), error.to_string()),
    }
}
