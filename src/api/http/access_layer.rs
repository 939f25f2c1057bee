//! The layer that refuses requests that must not reach a handler: see `src/access/`.

use std::time::Duration;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use tower_http::cors::CorsLayer;

use super::{
    discard::{SHORT_DISCARD_MAX, discard},
    refuse::refuse,
    surface::Surface,
};
use crate::{
    access::{
        Refusal, Shown,
        arrival::Arrival,
        pages::{PageRules, refused_page},
        rules::of_route,
    },
    api::{
        caller::Caller,
        idempotency::{KEY_HEADER, REPLAYED_HEADER},
    },
    limits::URI_BYTES_MAX,
};

/// Refuses a request that is too long, that comes from a page that may not send it, or whose token does not allow it.
pub(super) async fn check(State(surface): State<Surface>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let pattern = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let rule = pattern.and_then(|pattern| of_route(request.method(), pattern));
    let page = refused_page(
        &surface.pages,
        request.extensions().get::<Arrival>(),
        (request.method(), rule),
        (request.uri(), request.headers()),
    );
    if let Some(reason) = page {
        return refuse(path, StatusCode::FORBIDDEN, reason);
    }
    let shown = match request.extensions().get::<Shown>() {
        Some(shown) => shown.clone(),
        None => surface.access.shown(request.headers(), None),
    };
    let peer = request.extensions().get::<Arrival>().map(|arrival| arrival.peer.ip());
    let is_too_long = request.uri().path_and_query().is_some_and(|target| target.as_str().len() > URI_BYTES_MAX);
    match surface.access.admit(rule, &shown, peer) {
        Ok(_) | Err(Refusal::NoSuchCall) if is_too_long => {
            let reason = format!("the path and the query have more than {URI_BYTES_MAX} bytes");
            refuse(path, StatusCode::URI_TOO_LONG, reason)
        }
        Ok((allowed, meter)) => {
            request.extensions_mut().insert(allowed);
            let Some(meter) = meter else { return next.run(request).await };
            request.extensions_mut().insert(meter.clone());
            let mut answer = next.run(request).await;
            if answer.status() == StatusCode::TOO_MANY_REQUESTS
                && let Some(seconds) = meter.retry_s()
            {
                answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            answer
        }
        // What answers says that there is nothing at this path, or that the path does not take this method.
        Err(Refusal::NoSuchCall) if pattern.is_none() => next.run(request).await,
        Err(refusal) => {
            let peer = Caller::peer_of(request.extensions());
            let method = request.method().as_str();
            tracing::warn!(call = pattern, method, peer, reason = %refusal, "refused");
            let answer = refused(path, &refusal);
            // The client would take a connection that is closed while it sends for the answer.
            discard(request.into_body().into_data_stream(), SHORT_DISCARD_MAX).await;
            answer
        }
    }
}

/// The answer to a request that its caller may not make (RFC 6750, section 3).
pub(super) fn refused(path: &str, refusal: &Refusal) -> Response {
    let (status, challenge) = match refusal {
        Refusal::NoToken { .. } => (StatusCode::UNAUTHORIZED, "Bearer".to_owned()),
        Refusal::Unknown { .. } => (StatusCode::UNAUTHORIZED, "Bearer error=\"invalid_token\"".to_owned()),
        Refusal::TooSmall { needed, .. } => {
            (StatusCode::FORBIDDEN, format!("Bearer error=\"insufficient_scope\", scope=\"{needed}\""))
        }
        Refusal::TooMany(reason) => return refuse(path, StatusCode::TOO_MANY_REQUESTS, reason),
        Refusal::NoSuchCall => {
            return refuse(path, StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method");
        }
    };
    let mut answer = refuse(path, status, refusal.to_string());
    if let Ok(challenge) = HeaderValue::from_str(&challenge) {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    answer
}

/// Adds what lets pages of the allowed origins read the answers, and answers their preflights (Fetch standard, section 3.3).
/// `None` if no origin is allowed.
pub(super) fn cors(rules: &PageRules) -> Option<CorsLayer> {
    let origins: Vec<_> =
        rules.allowed_origins().iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    let headers = [
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::RANGE,
        header::IF_RANGE,
        header::IF_NONE_MATCH,
        HeaderName::from_static(KEY_HEADER),
    ];
    let exposed = [
        header::CONTENT_DISPOSITION,
        header::CONTENT_RANGE,
        header::ETAG,
        header::RETRY_AFTER,
        HeaderName::from_static(REPLAYED_HEADER),
    ];
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(headers)
        .expose_headers(exposed)
        .max_age(PREFLIGHT_AGE_MAX);
    (!rules.allowed_origins().is_empty()).then_some(layer)
}

/// How long a browser may keep the answer to a preflight.
const PREFLIGHT_AGE_MAX: Duration = Duration::from_secs(600);
