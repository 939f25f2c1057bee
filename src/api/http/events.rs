//! What the server does, once a second, as server-sent events (HTML standard, section 9.2).
//!
//! An event is computed once for all watchers, by [`compute_events`], and only while there are any. A watcher holds a permit of
//! its own kind, none of those for long calls. It gets the event of the moment: what it does not take in time is not kept for it.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::time::{MissedTickBehavior, interval};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    events_json::{StatsEvent, event_text},
    long_calls::{OwnPermit, with_permit},
    no_query::NoQuery,
    problem::{Problem, ProblemDetails},
    surface::Surface,
};
use crate::{
    api::caller::Caller,
    limits::{EVENT_STALL_S, EVENT_WATCHERS_MAX},
};

/// The time between two events.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(events))
}

/// What the server does: an event `stats` at once, and then one each second, until the server drains.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "server",
    responses(
        (status = 200, description = "Events, whose data is this JSON", body = StatsEvent, content_type = "text/event-stream"),
        (status = 400, description = "The request has query parameters", body = ProblemDetails),
        (status = 429, description = "Too many others watch", body = ProblemDetails),
        (status = 503, description = "The server is shutting down", body = ProblemDetails)
    )
)]
async fn events(State(surface): State<Surface>, _no_query: NoQuery, request: Request) -> Result<Response, Problem> {
    let Caller { origin, close, .. } = Caller::of(request.extensions());
    if surface.is_draining() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down"));
    }
    let permit = surface.events.watchers.enter(origin, close).await.ok_or_else(|| {
        let detail = format!("as many watch the events as may, which is {EVENT_WATCHERS_MAX}: try again");
        Problem::new(StatusCode::TOO_MANY_REQUESTS, detail)
    })?;
    let body = with_permit(Body::from_stream(surface.events.watch()), permit);
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    let mut response = (headers, body).into_response();
    response.extensions_mut().insert(OwnPermit);
    Ok(response)
}

/// Computes an event each second while somebody watches, and drops watchers that do not read. Ends when the server drains.
pub(crate) async fn compute_events(surface: &Surface) {
    let events = &surface.events;
    loop {
        tokio::select! {
            () = events.ended.cancelled() => return,
            () = events.wanted.notified() => {}
        }
        let mut ticks = interval(EVENT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = None;
        while events.tx.receiver_count() > 0 {
            tokio::select! {
                () = events.ended.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let stalled = events.watchers.end_stalled(Duration::from_secs(EVENT_STALL_S));
            if stalled > 0 {
                tracing::debug!(stalled, "watchers of the events that read nothing are dropped");
            }
            match surface.engine.activity().await {
                Ok(activity) => {
                    let now = (Instant::now(), activity.stats.received_bytes);
                    let event = event_text(&activity, before, surface.is_draining());
                    before = Some(now);
                    events.tx.send_replace(Some(event));
                }
                Err(error) => tracing::warn!(%error, "no event could be made"),
            }
        }
        events.tx.send_replace(None);
    }
}
