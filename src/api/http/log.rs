//! The entry and the exit of each call, for `--log-file`, and its count for the metrics.

use std::{fmt::Debug, net::SocketAddr, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, Span, field::display};

use super::{Surface, convert::Fault, guard::Arrival};
use crate::{api::metrics::HttpCall, limits::LOG_TEXT_CHARS_MAX};

/// The target of these lines: what is written to the file of `--log-file`.
pub(crate) const ROUTES: &str = "tally::routes";

/// Logs and counts a call. Texts of the client are escaped and cut, so that no line can be forged.
pub(super) async fn log(State(surface): State<Surface>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let call = surface.next_call();
    let target = cut(request.uri().path_and_query().map_or("", |target| target.as_str()));
    let span = tracing::info_span!(target: ROUTES, "http", call, method, target = ?target);
    let peer = request.extensions().get::<Arrival>().map(|arrival| arrival.peer);
    tracing::debug!(target: ROUTES, parent: &span, peer = peer.map(display), "entry");
    let mut call = Call { surface, span: span.clone(), started, route, method, peer, status: None };
    let response = next.run(request).instrument(span).await;
    call.status = Some(response.status());
    if let Some(Fault(error)) = response.extensions().get() {
        tracing::error!(parent: &call.span, peer = peer.map(display), error, "a request failed");
    }
    response
}

/// Sees to it that every call that entered has an exit, also one whose client did not wait for it.
struct Call {
    surface: Surface,
    span: Span,
    started: Instant,
    route: String,
    method: &'static str,
    /// None in tests that have no connection.
    peer: Option<SocketAddr>,
    status: Option<StatusCode>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let Self { surface, span, started, route, method, peer, status } = self;
        let peer = peer.map(display);
        let ms = started.elapsed().as_millis();
        // nginx's number for a client that went away; it is in the metrics and in the log alone.
        let status = status.map_or(499, |status| status.as_u16());
        // Clients poll: what they read is logged to standard error on demand only.
        if *method == "GET" || *method == "HEAD" {
            tracing::debug!(target: ROUTES, parent: &*span, status, ms, peer, "exit");
        } else {
            tracing::info!(target: ROUTES, parent: &*span, status, ms, peer, "exit");
        }
        surface.metrics.count_http(&HttpCall { route: std::mem::take(route), method, status });
    }
}

/// What a body asked for.
pub(super) fn parameters(asked: &impl Debug) {
    let asked = cut(&format!("{asked:?}"));
    tracing::debug!(target: ROUTES, %asked, "parameters");
}

/// Text of a client, so long that it says what it is about.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(LOG_TEXT_CHARS_MAX).collect()
}

/// Clients may make up methods; the metrics count those as one.
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
