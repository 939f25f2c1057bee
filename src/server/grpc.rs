//! The gRPC server: its services, the bounds of each connection, and what each call passes on its way.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::HeaderMap;
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tonic::{Status, body::Body, service::Routes};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::{Layer, Service, ServiceExt};

use super::{
    connections::{Accepted, Bounds, ConnectionIds, Stopped, serve},
    preface::Prefaced,
    usage::{FollowedAnswer, Usage, follow},
};
use crate::{
    api::{
        grpc::{self, adapter::UploadLayer, count::CountLayer, pb, unread::Closer},
        metrics::Metrics,
    },
    engine::Engine,
    error::Error,
    limits::{
        CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HEADER_LIST_BYTES_MAX, STREAM_ERRORS_MAX, STREAM_WINDOW_BYTES,
        STREAMS_PER_CONNECTION_MAX, UNSEEN_RESETS_MAX, WIDE_CONNECTION_WINDOW_BYTES, WIDE_CONNECTIONS_MAX,
        WIDE_FRAME_BYTES_MAX, WIDE_STREAM_WINDOW_BYTES,
    },
};

/// How often a silent connection is asked whether it is still there, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The health check, which finds a connection whatever else goes on.
const PROBE_PATH: &str = "/grpc.health.v1.Health/Check";
/// Waits for news for as long as the client likes.
const WATCH_PATH: &str = "/grpc.health.v1.Health/Watch";

/// Serves gRPC until `stopped`, and then until what runs has been answered.
pub(super) async fn serve_grpc(
    listeners: Vec<TcpListener>,
    bounds: Bounds,
    ids: ConnectionIds,
    services: impl CallService,
    stopped: impl Stopped,
) {
    let usual = http2_server(STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX);
    let wide = http2_server(WIDE_STREAM_WINDOW_BYTES, WIDE_CONNECTION_WINDOW_BYTES, WIDE_FRAME_BYTES_MAX);
    let wide_permits = Arc::new(Semaphore::new(WIDE_CONNECTIONS_MAX));
    let connect = |Accepted { stream, usage, .. }: Accepted| {
        let wide_permit = Arc::clone(&wide_permits).try_acquire_owned().ok();
        let server = if wide_permit.is_some() { &wide } else { &usual };
        connection(server, Prefaced::new(stream, wide_permit), usage, services.clone())
    };
    serve(listeners, bounds, ids, connect, stopped).await;
}

/// What answers calls.
pub(super) trait CallService:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> CallService for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// All services, and what each call passes before it reaches them.
pub(super) fn services(
    engine: &Engine,
    metrics: Arc<Metrics>,
    health: HealthServer<impl Health>,
) -> Result<impl CallService, Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let internal = |error: tonic_reflection::server::Error| Error::Internal(format!("reflection: {error}"));
    let routes = Routes::new(health)
        .add_service(reflection().build_v1().map_err(internal)?)
        .add_service(reflection().build_v1alpha().map_err(internal)?)
        .add_service(grpc::table_server(engine.clone()))
        .add_service(grpc::numstore_server(engine.clone()))
        .add_service(grpc::tally_server(engine.clone()))
        .prepare();
    Ok(CountLayer(metrics).layer(UploadLayer.layer(routes)))
}

/// The bounds of a connection: of bytes on the way to us in a call, in all calls, and in a frame.
fn http2_server(stream_window: usize, connection_window: usize, frame: usize) -> http2::Builder<TokioExecutor> {
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(u32::try_from(stream_window).ok())
        .initial_connection_window_size(u32::try_from(connection_window).ok())
        .max_frame_size(u32::try_from(frame).ok())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(UNSEEN_RESETS_MAX)
        .max_local_error_reset_streams(STREAM_ERRORS_MAX)
        .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    server
}

fn connection(
    server: &http2::Builder<TokioExecutor>,
    stream: Prefaced,
    usage: Arc<Usage>,
    services: impl CallService,
) -> impl GracefulConnection<Error = hyper::Error> + Send + 'static {
    let service = service_fn(move |request| answer(Arc::clone(&usage), services.clone(), request));
    server.serve_connection(TokioIo::new(Box::pin(stream)), service)
}

/// One call. A health check is answered on any connection, anything else on those that may be used for it.
async fn answer(
    usage: Arc<Usage>,
    services: impl CallService,
    request: Request<Incoming>,
) -> Result<Response<FollowedAnswer<Body>>, Infallible> {
    let is_probe = request.uri().path() == PROBE_PATH;
    let is_watch = request.uri().path() == WATCH_PATH;
    follow(&usage, is_watch, request, async |mut request| {
        if !is_probe && usage.admit().await.is_err() {
            let status = Status::resource_exhausted("as many connections are in use as may be: try again");
            return Ok(status.into_http());
        }
        let time_max = grpc_timeout(request.headers());
        request.extensions_mut().insert(Closer(usage.caller.close.clone()));
        let answered = services.oneshot(request.map(Body::new));
        match time_max {
            None => answered.await,
            Some(time_max) => timeout(time_max, answered)
                .await
                .unwrap_or_else(|_elapsed| Ok(Status::deadline_exceeded("the call's time is up").into_http())),
        }
    })
    .await
}

/// How long the client waits for its answer, by the gRPC protocol's header. One that cannot be read is none.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 60 * 60)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        let read = |text: &str| {
            let value = text.parse().expect("a header's value");
            grpc_timeout(&[(http::HeaderName::from_static("grpc-timeout"), value)].into_iter().collect())
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("4S"), Some(Duration::from_secs(4)));
        assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!((read("6u"), read("7n")), (Some(Duration::from_micros(6)), Some(Duration::from_nanos(7))));
        for none in ["", "S", "5", "123456789S", "1 S", "-1S", "+1S", "1s", "1.5S"] {
            assert_eq!(read(none), None, "{none:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
