//! Listeners, admission of connections, drain, logging. No request logic.

use std::{
    convert::Infallible,
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body};
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{select, try_join3},
    stream,
};
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
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Sleep, sleep},
};
use tokio_io_timeout::TimeoutStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::{Server, server::Connected};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::{Layer, Service};
use tower_http::timeout::RequestBodyTimeoutLayer;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{EnvFilter, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    api::{
        grpc::{self, adapter::UploadLayer, count::CountLayer, pb, unread::Closer},
        http::{
            self, Surface,
            guard::{AdminToken, Arrival},
            log::ROUTES,
            log_file::{self, LostLines},
        },
        metrics::Metrics,
    },
    config::{Config, LogFile, LogFormat, ServeArgs},
    engine::{Engine, Found},
    error::Error,
    limits::{
        CONNECTION_WINDOW_BYTES, CONNECTIONS_MAX, FRAME_BYTES_MAX, HEADER_LIST_BYTES_MAX, HTTP_BUFFER_BYTES,
        HTTP_CONNECTIONS_MAX, HTTP_HEADERS_MAX, HTTP_PLACES_SPARE, HTTP_SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES,
        STREAMS_PER_CONNECTION_MAX, WIDE_CONNECTION_WINDOW_BYTES, WIDE_CONNECTIONS_MAX, WIDE_FRAME_BYTES_MAX,
        WIDE_STREAM_WINDOW_BYTES,
    },
};

/// How long running calls may take to finish after a signal.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How often a silent connection is asked whether it is still there, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a new connection may take to send its HTTP/2 preface (RFC 9113, section 3.4) before it is closed.
const PREFACE_MAX: Duration = Duration::from_secs(10);
const PREFACE_BYTES: usize = 24;
/// How long an HTTP connection may take to send a request's head, and so how long it may be silent between two.
const HTTP_HEAD_MAX: Duration = Duration::from_secs(10);
/// How long an HTTP client may take nothing of an answer.
const HTTP_SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long to wait when no connection could be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// What the health service answers for; the empty name is the server as a whole.
const SERVICES: [&str; 4] = ["", "Table", "NumStore", "tally.v1.Tally"];

/// `tally serve`: until a signal, then drained. Exit code 0, or with a line on standard error 1, or 2 for flags that do
/// not go together.
pub async fn serve_command(args: ServeArgs) -> ExitCode {
    let config = match Config::of(&args) {
        Ok(config) => config,
        Err(error) => {
            let _nobody_reads_it = writeln!(io::stderr(), "error: {error}");
            return ExitCode::from(2);
        }
    };
    let result = async {
        let (_log_file, lost_lines) = start_logging(&args, config.log_file.as_ref())?;
        let shutdown = signals().map_err(|error| format!("signal handlers: {error}"))?;
        serve(config, lost_lines, shutdown).await.map_err(|error| error.to_string())
    };
    match result.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_reads_it = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until `shutdown` completes and what runs then has finished, or 30 s have passed.
///
/// Errors: the data folder or an address cannot be taken.
async fn serve(config: Config, lost_lines: LostLines, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let (engine, found) = Engine::open(&config.data, config.durability, config.limits).await?;
    report(&found);
    load(&engine, &config.load).await?;
    let admin_token = match config.admin_token_file.clone() {
        Some(path) => Some(AdminToken::new(engine.read_secret(path).await?)),
        None => None,
    };
    let metrics = Arc::new(Metrics::new());
    let idle_max = config.limits.upload_idle_max;
    let surface = Surface::new(engine.clone(), Arc::clone(&metrics), admin_token, idle_max, lost_lines);
    let (listeners, http_listeners) = (bind(&config.grpc)?, bind(&config.http)?);
    say_ready(&config, [&listeners, &http_listeners], &engine, &found)?;

    let (health_reporter, health) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health_reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve_grpc(listeners, &engine, metrics, health, async {
        let _either_way = stopped.await;
    });
    let (stop_http, http_stopped) = oneshot::channel::<()>();
    let http = serve_http(http_listeners, http::router(surface.clone()), idle_max, async {
        let _either_way = http_stopped.await;
    });
    // HTTP outlives gRPC a little, so that probes see the drain and jobs' states can be asked.
    let server = async {
        let grpc = async {
            let result = server.await;
            let _ended_already = stop_http.send(());
            result
        };
        tokio::join!(grpc, http).0
    };

    let shutdown = Box::pin(async {
        shutdown.await;
        tracing::info!("draining");
        surface.drain();
        for service in SERVICES {
            health_reporter.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
        }
        let _ended_already = stop.send(());
        sleep(DRAIN_MAX).await;
        tracing::warn!("calls still ran after {} s and were cut off", DRAIN_MAX.as_secs());
    });
    let result = match select(Box::pin(server), shutdown).await {
        futures_util::future::Either::Left((result, _)) => result,
        futures_util::future::Either::Right(((), _)) => Ok(()),
    };
    engine.close();
    tracing::info!("stopped");
    result
}

/// Serves gRPC until `stopped`, and then until what runs has been answered.
async fn serve_grpc(
    listeners: Vec<TcpListener>,
    engine: &Engine,
    metrics: Arc<Metrics>,
    health: HealthServer<impl Health>,
    stopped: impl Future<Output = ()>,
) -> Result<(), Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let internal = |error: tonic_reflection::server::Error| Error::Internal(format!("reflection: {error}"));
    let (v1, v1alpha) = (reflection().build_v1().map_err(internal)?, reflection().build_v1alpha().map_err(internal)?);
    let stopped = stopped.shared();
    // All connections of a tonic server have the same bounds, so there are two of them.
    let serve_all = |stream_window, connection_window, frame, connections| {
        Server::builder()
            .initial_stream_window_size(u32::try_from(stream_window).ok())
            .initial_connection_window_size(u32::try_from(connection_window).ok())
            .max_frame_size(u32::try_from(frame).ok())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(CountLayer(Arc::clone(&metrics)))
            .layer(UploadLayer)
            .add_service(health.clone())
            .add_service(v1.clone())
            .add_service(v1alpha.clone())
            .add_service(grpc::table_server(engine.clone()))
            .add_service(grpc::numstore_server(engine.clone()))
            .add_service(grpc::tally_server(engine.clone()))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections).map(Ok::<_, Infallible>), stopped.clone())
    };
    let ((to_wide, wide), (to_others, others)) = (mpsc::channel(1), mpsc::channel(1));
    let wide = serve_all(WIDE_STREAM_WINDOW_BYTES, WIDE_CONNECTION_WINDOW_BYTES, WIDE_FRAME_BYTES_MAX, wide);
    let others = serve_all(STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, others);
    let admit = async {
        let mut admitted = std::pin::pin!(connections(listeners).take_until(stopped.clone()));
        while let Some(connection) = admitted.next().await {
            let to = if connection.is_wide() { &to_wide } else { &to_others };
            // If nobody takes it, that server has stopped.
            let _taken_or_closed = to.send(connection).await;
        }
        drop((to_wide, to_others));
        Ok(())
    };
    let served = try_join3(wide, others, admit).await;
    served.map(|((), (), ())| ()).map_err(|error| Error::Internal(format!("server: {error}")))
}

/// Logs to standard error, and the calls of HTTP to a file too. What was logged there is written when the guard is
/// dropped.
fn start_logging(args: &ServeArgs, file: Option<&LogFile>) -> Result<(Option<WorkerGuard>, LostLines), String> {
    use tracing_subscriber::Layer as _;
    let filter = EnvFilter::try_new(&args.log).map_err(|error| format!("--log: {error}"))?;
    let logs = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let logs = match args.log_format {
        LogFormat::Text => logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    let (routes, guard, lost_lines) = match file {
        Some(file) => {
            let (writer, guard, lost_lines) = log_file::open(file).map_err(|error| format!("--log-file: {error}"))?;
            let routes = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_target(false)
                .with_level(false)
                .with_writer(writer);
            let routes = routes.with_filter(Targets::new().with_target(ROUTES, tracing::Level::DEBUG));
            (Some(routes), Some(guard), lost_lines)
        }
        None => (None, None, LostLines::default()),
    };
    let started = tracing_subscriber::registry().with(logs.with_filter(filter)).with(routes).try_init();
    started.map(|()| (guard, lost_lines)).map_err(|error| format!("logging: {error}"))
}

/// Completes at SIGTERM or SIGINT. A second one ends the process at once.
fn signals() -> io::Result<impl Future<Output = ()> + Send> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let (first, came) = oneshot::channel();
    tokio::spawn(async move {
        next().await;
        let _server_ended = first.send(());
        next().await;
        tracing::warn!("second signal: not waiting for what runs");
        std::process::exit(130);
    });
    Ok(async {
        let _sent_or_gone = came.await;
    })
}

fn report(found: &Found) {
    if found.leftovers > 0 {
        tracing::warn!(files = found.leftovers, "removed leftovers of uploads that were never acknowledged");
    }
    for (job, reason) in &found.jobs_set_aside {
        tracing::error!(job, reason, "set aside in quarantine: it is not known any more");
    }
    for (part, reason) in &found.quarantined {
        tracing::error!(%part, %reason, "set aside in quarantine: it is in no sum");
    }
}

async fn load(engine: &Engine, files: &[PathBuf]) -> Result<(), Error> {
    for file in files {
        let told = |error| Error::Load { file: file.clone(), cause: Box::new(error) };
        match engine.load(file).await.map_err(told)? {
            (part, true) => tracing::info!(%part, file = %file.display(), "loaded"),
            (part, false) => tracing::info!(%part, file = %file.display(), "is in the table already"),
        }
    }
    Ok(())
}

/// The one line on standard output, for people and for programs that wait for it.
fn say_ready(config: &Config, [grpc, http]: [&[TcpListener]; 2], engine: &Engine, found: &Found) -> Result<(), Error> {
    let mut line = format!("ready: grpc {}", addresses_of(grpc)?);
    if !http.is_empty() {
        line += &format!("; http {}", addresses_of(http)?);
    }
    let (parts, data) = (engine.parts_count(), config.data.display());
    let plural = if parts == 1 { "" } else { "s" };
    line += &format!("; {parts} part{plural} in {data}");
    if !found.in_quarantine.is_empty() {
        line += &format!(", {} in quarantine", found.in_quarantine.len());
    }
    let mut out = io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::io("standard output"))
}

fn addresses_of(listeners: &[TcpListener]) -> Result<String, Error> {
    let mut addresses = Vec::new();
    for listener in listeners {
        addresses.push(listener.local_addr().map_err(Error::io("a bound address"))?.to_string());
    }
    Ok(addresses.join(", "))
}

fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
    const BACKLOG: i32 = 1024;
    let mut listeners = Vec::new();
    let mut without = Vec::new();
    for &address in addresses {
        let bound = (|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        })();
        match bound {
            Ok(listener) => listeners.push(listener),
            Err(error) if may_be_missing(address) && is_no_such_family(&error) => without.push((address, error)),
            Err(error) => return Err(Error::io(format!("address {address}"))(error)),
        }
    }
    for (address, error) in without {
        if listeners.is_empty() {
            return Err(Error::io(format!("address {address}"))(error));
        }
        tracing::warn!(%address, %error, "this machine has no IPv6: left out");
    }
    Ok(listeners)
}

/// The addresses that every machine with IPv6 has.
fn may_be_missing(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_loopback() || v6.ip().is_unspecified())
}

fn is_no_such_family(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Accepted connections of all listeners, at most [`CONNECTIONS_MAX`] at once, of which [`WIDE_CONNECTIONS_MAX`] are wide.
fn connections(listeners: Vec<TcpListener>) -> impl Stream<Item = Connection> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let wide_places = Arc::new(Semaphore::new(WIDE_CONNECTIONS_MAX));
    accepted(listeners).filter_map(move |(stream, _arrival)| {
        let (places, wide_places) = (Arc::clone(&places), Arc::clone(&wide_places));
        async move {
            let place = places.acquire_owned().await.ok()?;
            let wide_place = wide_places.try_acquire_owned().ok();
            let silence_max = Some(Box::pin(sleep(PREFACE_MAX)));
            let closer = Closer::default();
            let closed = Box::pin(closer.0.clone().cancelled_owned());
            let preface_bytes_left = PREFACE_BYTES;
            Some(Connection { stream, silence_max, preface_bytes_left, closer, closed, wide_place, _place: place })
        }
    })
}

/// What comes in on all listeners, one after another.
fn accepted(listeners: Vec<TcpListener>) -> impl Stream<Item = (TcpStream, Arrival)> {
    stream::select_all(listeners.into_iter().map(|listener| {
        stream::unfold(listener, |listener| async {
            let accepted = accept(&listener).await;
            Some((accepted, listener))
        })
        .boxed()
    }))
}

async fn accept(listener: &TcpListener) -> (TcpStream, Arrival) {
    loop {
        let accepted = listener.accept().await;
        match accepted.and_then(|(stream, peer)| Ok((stream, Arrival { peer, listener: listener.local_addr()? }))) {
            Ok((stream, arrival)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was gone at once");
                }
                return (stream, arrival);
            }
            Err(error) => {
                // Out of file descriptors, perhaps: others must end before it can go on.
                tracing::error!(%error, "no connection could be accepted");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Serves HTTP/1.1 until `stopped`, and then until what runs has been answered.
async fn serve_http(
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

/// A connection that holds its place among them.
struct Connection {
    stream: TcpStream,
    /// Until the client's preface has come: HTTP/2's own pings begin only then.
    silence_max: Option<Pin<Box<Sleep>>>,
    preface_bytes_left: usize,
    /// Given to every call.
    closer: Closer,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    wide_place: Option<OwnedSemaphorePermit>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Whether more may be on its way than on most.
    fn is_wide(&self) -> bool {
        self.wide_place.is_some()
    }
}

impl Connected for Connection {
    type ConnectInfo = Closer;

    fn connect_info(&self) -> Closer {
        self.closer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let filled = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.preface_bytes_left = self.preface_bytes_left.saturating_sub(buffer.filled().len() - filled);
            if self.preface_bytes_left == 0 {
                self.silence_max = None;
            }
        } else if let Some(silence_max) = &mut self.silence_max {
            ready!(silence_max.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
