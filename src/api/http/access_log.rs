//! The middleware that logs the entry and the exit of each call, for `--log-file`, counts the call for the metrics, and
//! gives it its line in the audit log.

use std::{fmt::Debug, net::SocketAddr, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, Span, field::display};

use super::{
    errors::{Fault, ShuttingDown},
    surface::Surface,
};
use crate::{
    access::{
        arrival::Arrival,
        audit::{AuditedCall, Outcome},
        rules::{Rule, of_route},
    },
    api::metrics::HttpRequest,
    engine::state::jobs::JobId,
    limits::LOG_TEXT_CHARS_MAX,
};

/// The target of these lines. The file of `--log-file` has the lines of this target.
pub(crate) const ROUTES: &str = "tally::routes";

/// Logs and counts a call. Text from the client is escaped and shortened, so that it cannot forge a line.
pub(super) async fn log(State(surface): State<Surface>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let request_id = surface.next_request_id();
    let target = shortened(request.uri().path_and_query().map_or("", |target| target.as_str()));
    let span = tracing::info_span!(target: ROUTES, "http", request_id, method, target = ?target);
    let peer = request.extensions().get::<Arrival>().map(|arrival| arrival.peer);
    tracing::debug!(target: ROUTES, parent: &span, peer = peer.map(display), "entry");
    let audited = audited(&surface, &request, &route);
    if let Some(audited) = &audited {
        request.extensions_mut().insert(audited.clone());
    }
    let mut call = Call { surface, span: span.clone(), started, route, method, peer, status: None, audited };
    let response = next.run(request).instrument(span).await;
    call.status = Some(response.status());
    if response.extensions().get::<ShuttingDown>().is_some() {
        tracing::error!(target: ROUTES, parent: &call.span, peer = peer.map(display), "refused: the server is shutting down");
    } else if let Some(Fault(error)) = response.extensions().get() {
        tracing::error!(parent: &call.span, peer = peer.map(display), error, "a request failed");
    }
    response
}

/// The call's line in the audit log, if there is one. Probes and the files of pages have none.
fn audited(surface: &Surface, request: &Request, route: &str) -> Option<AuditedCall> {
    if matches!(of_route(request.method(), route), Some(Rule::Open)) {
        return None;
    }
    let address = request.extensions().get::<Arrival>().map(|arrival| arrival.peer);
    let call = format_args!("{} {}", request.method(), request.uri().path());
    surface.access.audited(call, request.extensions().get(), address)
}

fn outcome_of(status: u16) -> Outcome {
    match status {
        ..=399 => Outcome::Ok,
        CLIENT_GONE => Outcome::Cancelled,
        401 | 403 | 429 => Outcome::Refused,
        _ => Outcome::Error,
    }
}

/// nginx's status for a client that closed the connection. It appears only in the metrics and in the logs.
const CLIENT_GONE: u16 = 499;

/// A call that has entered. Dropping it logs the exit, also if the client did not wait for the answer.
struct Call {
    surface: Surface,
    span: Span,
    started: Instant,
    route: String,
    method: &'static str,
    /// None in tests that have no connection.
    peer: Option<SocketAddr>,
    status: Option<StatusCode>,
    audited: Option<AuditedCall>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let Self { surface, span, started, route, method, peer, status, audited } = self;
        let peer = peer.map(display);
        let duration_ms = started.elapsed().as_millis();
        let status = status.map_or(CLIENT_GONE, |status| status.as_u16());
        if let Some(audited) = audited {
            audited.end(outcome_of(status), &status.to_string());
        }
        // Clients poll, so reads are logged to standard error on demand only.
        if *method == "GET" || *method == "HEAD" {
            tracing::debug!(target: ROUTES, parent: &*span, status, duration_ms, peer, "exit");
        } else {
            tracing::info!(target: ROUTES, parent: &*span, status, duration_ms, peer, "exit");
        }
        surface.metrics.count_http(&HttpRequest { route: std::mem::take(route), method, status });
    }
}

/// Logs the parameters in the body of a request.
pub(super) fn log_parameters(parameters: &impl Debug) {
    let body = shortened(&format!("{parameters:?}"));
    tracing::debug!(target: ROUTES, %body, "parameters");
}

/// Logs the id of the job that a request has started.
pub(super) fn log_job(id: JobId) {
    tracing::debug!(target: ROUTES, job_id = %id, "accepted");
}

/// The beginning of a text from a client, long enough to recognize it.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(LOG_TEXT_CHARS_MAX).collect()
}

/// The name of a method for the metrics. Clients can make up methods, which are counted as one.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
