//! The HTTP/1.1 server: admission and the bounds of each connection.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use futures_util::StreamExt;
use hyper::{
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use socket2::SockRef;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_io_timeout::TimeoutStream;
use tower::{Layer, Service};
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::listen::accepted;
use crate::limits::{
    HTTP_BUFFER_BYTES, HTTP_CONNECTIONS_MAX, HTTP_HEADERS_MAX, HTTP_PLACES_SPARE, HTTP_SEND_BUFFER_BYTES,
};

/// How long an HTTP connection may take to send a request's head, and so how long it may be silent between two.
const HTTP_HEAD_MAX: Duration = Duration::from_secs(10);
/// How long an HTTP client may take nothing of an answer.
const HTTP_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Serves HTTP/1.1 until `stopped`, and then until what runs has been answered.
pub(super) async fn serve_http(
    listeners: Vec<TcpListener>,
    router: Router,
    idle_max: Duration,
    stopped: impl Future<Output = ()>,
) {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_HEAD_MAX)
        .max_buf_size(HTTP_BUFFER_BYTES)
        .max_headers(HTTP_HEADERS_MAX);
    let router = RequestBodyTimeoutLayer::new(idle_max)
        .layer(tower::util::MapRequest::new(router, |request: hyper::Request<_>| request.map(Body::new)));
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    let connections = GracefulShutdown::new();
    let admitted = accepted(listeners).then(|(stream, arrival)| {
        let place = Arc::clone(&places).acquire_owned();
        async move { (stream, arrival, place.await) }
    });
    let mut admitted = std::pin::pin!(admitted.take_until(Box::pin(stopped)));
    while let Some((stream, arrival, place)) = admitted.next().await {
        let sized = SockRef::from(&stream).set_send_buffer_size(HTTP_SEND_BUFFER_BYTES);
        if let Err(error) = sized {
            tracing::debug!(%error, "a connection keeps the send buffer that it has");
        }
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(HTTP_SILENCE_MAX));
        let router = router.clone();
        let places = Arc::clone(&places);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(arrival);
            let (answer, places) = (router.clone().call(request), Arc::clone(&places));
            async move {
                let mut answer = answer.await?;
                // Clients that keep a connection while others wait for one would keep it for ever.
                if places.available_permits() < HTTP_PLACES_SPARE {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(Body::new))
            }
        });
        let connection = connections.watch(server.serve_connection(TokioIo::new(Box::pin(stream)), service));
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection broke");
            }
        });
    }
    connections.shutdown().await;
}
