//! The HTTP/1.1 server and the limits of each connection.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{AUTHORIZATION, CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tower::{Layer, Service};
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::{
    connections::{Accepted, Bounds, ConnectionIds, serve},
    tls::Acceptor,
    usage::{FollowedAnswer, FollowedBody, Usage, follow},
};
use crate::{
    access::{Access, Shown, arrival::Arrival, audit::Outcome, rules::is_page},
    api::http::{
        paths::{EVENTS_PATH, normalize},
        router::no_connection,
    },
    limits::{HTTP_BUFFER_BYTES, HTTP_HEADERS_MAX, HTTP_PERMITS_SPARE, HTTP_SEND_BUFFER_BYTES, PROBE_BUFFER_BYTES},
};

/// How long an HTTP connection may take to send a request's head, and so how long it may be idle between two requests.
const HTTP_HEAD_MAX: Duration = Duration::from_secs(10);
/// The same while few connections are left.
pub(super) const HTTP_SHORT_HEAD_MAX: Duration = Duration::from_secs(5);
/// How long an HTTP client may read nothing of an answer.
const HTTP_SILENCE_MAX: Duration = Duration::from_secs(60);
/// The paths that are answered on every connection, also if it may be used for nothing else.
const PROBE_PATHS: [&str; 2] = ["/livez", "/readyz"];

/// What answers the requests of a connection.
#[derive(Clone)]
pub(super) struct Handler {
    pub(super) router: Router,
    pub(super) access: Access,
    pub(super) acceptor: Acceptor,
    /// How long a request's body may send nothing.
    pub(super) idle_max: Duration,
}

/// Serves HTTP/1.1 until `stopped`, and then until all running calls have been answered.
pub(super) async fn serve_http(
    listeners: Vec<TcpListener>,
    bounds: Bounds,
    ids: ConnectionIds,
    handler: Handler,
    stopped: impl Future<Output = Instant>,
) {
    let server = http1_server(HTTP_BUFFER_BYTES);
    let connect = |Accepted { stream, arrival, usage, permits }: Accepted| {
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(HTTP_SEND_BUFFER_BYTES) {
            tracing::debug!(%error, "a connection keeps the send buffer that it has");
        }
        // While few connections are left, each is closed after an answer, because others wait for it.
        let ends = move || permits.available_permits() < HTTP_PERMITS_SPARE;
        connection(&server, stream, arrival, usage, handler.clone(), ends)
    };
    serve(listeners, bounds, ids, connect, stopped).await;
}

/// Serves probes alone until `stopped`, one request for each connection.
pub(super) async fn serve_probes(
    listeners: Vec<TcpListener>,
    bounds: Bounds,
    ids: ConnectionIds,
    handler: Handler,
    stopped: impl Future<Output = Instant>,
) {
    let server = http1_server(PROBE_BUFFER_BYTES);
    let connect = |Accepted { stream, arrival, usage, .. }: Accepted| {
        connection(&server, stream, arrival, usage, handler.clone(), || true)
    };
    serve(listeners, bounds, ids, connect, stopped).await;
}

fn http1_server(buffer_bytes: usize) -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_HEAD_MAX)
        .max_buf_size(buffer_bytes)
        .max_headers(HTTP_HEADERS_MAX);
    server
}

fn connection(
    server: &http1::Builder,
    stream: TcpStream,
    arrival: Arrival,
    usage: Arc<Usage>,
    handler: Handler,
    ends: impl Fn() -> bool + Clone + Send + 'static,
) -> impl GracefulConnection<Error = hyper::Error> + Send + 'static {
    let stream = handler.acceptor.accept(stream);
    let certificate = stream.certificate();
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(HTTP_SILENCE_MAX));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(arrival);
        normalize(request.uri_mut());
        let mut shown = handler.access.shown(request.headers(), certificate.name());
        // Also of a request that no ticket is for, so that the log never has one.
        let by_ticket = handler.access.shown_by_ticket(request.uri_mut());
        let has_header = request.headers().contains_key(AUTHORIZATION);
        // A browser shows its certificate with each request, and follows a link with the ticket of the tab's token.
        if request.method() == Method::GET && !has_header && !matches!(by_ticket, Shown::NoToken) {
            shown = by_ticket;
        }
        let (usage, handler, ends) = (Arc::clone(&usage), handler.clone(), ends.clone());
        async move {
            let mut answer = answer(usage, handler, shown, request).await?;
            if ends() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    server.serve_connection(TokioIo::new(Box::pin(stream)), service)
}

/// Answers one call. Probes, those who watch the events and those who will be refused are answered on every connection, other
/// calls only on those that may be used for them.
async fn answer(
    usage: Arc<Usage>,
    Handler { router, access, idle_max, .. }: Handler,
    shown: Shown,
    mut request: Request<Incoming>,
) -> Result<Response<FollowedAnswer<Body>>, Infallible> {
    let path = request.uri().path();
    let is_watch = path == EVENTS_PATH && request.method() == Method::GET;
    let is_refused = shown.is_stranger() && !is_page(path);
    let needs_permit = !is_watch && !is_refused && !PROBE_PATHS.contains(&path);
    request.extensions_mut().insert(shown);
    follow(&usage, is_watch, request, async |request: Request<FollowedBody<Incoming>>| {
        if needs_permit && usage.admit().await.is_err() {
            let answer = no_connection(request.uri().path());
            // It does not reach the router, which would give it its line in the audit log.
            let call = format_args!("{} {}", request.method(), request.uri().path());
            if let Some(audited) = access.audited(call, request.extensions().get(), usage.caller.peer) {
                audited.end(Outcome::Refused, answer.status().as_str());
            }
            return Ok(answer);
        }
        let to_axum = |request: Request<_>| request.map(Body::new);
        let bounded = tower::util::MapRequest::new(router, to_axum);
        let answered = RequestBodyTimeoutLayer::new(idle_max).layer(bounded).call(request).await?;
        if is_watch && answered.status().is_success() {
            usage.give_up_use();
        }
        Ok(answered.map(Body::new))
    })
    .await
}
