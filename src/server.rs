//! Listeners, admission of connections, drain. No request logic.

use std::{
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, StreamExt, future::select, stream};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Sleep, sleep},
};
use tonic::transport::{Server, server::Connected};

use crate::{
    api::grpc::{self, adapter::UploadLayer, pb},
    config::{Config, LogFormat, ServeArgs},
    engine::{Engine, Found},
    error::Error,
    limits::{
        CONNECTION_WINDOW_BYTES, CONNECTIONS_MAX, HEADER_LIST_BYTES_MAX, STREAM_WINDOW_BYTES,
        STREAMS_PER_CONNECTION_MAX,
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
/// How long to wait when no connection could be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// What the health service answers for; the empty name is the server as a whole.
const SERVICES: [&str; 4] = ["", "Table", "NumStore", "tally.v1.Tally"];

/// `tally serve`: until a signal, then drained. Exit code 0, or 1 with a line on standard error.
pub async fn serve_command(args: ServeArgs) -> ExitCode {
    let result = async {
        start_logging(&args)?;
        let config = Config::of(&args);
        let shutdown = signals().map_err(|error| format!("signal handlers: {error}"))?;
        serve(config, shutdown).await.map_err(|error| error.to_string())
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
pub async fn serve(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let (engine, found) = Engine::open(&config.data, config.durability, config.limits).await?;
    report(&found);
    let listeners = bind(&config.grpc)?;
    say_ready(&config, &listeners, &engine, &found)?;

    let (health_reporter, health) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health_reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let internal = |error: tonic_reflection::server::Error| Error::Internal(format!("reflection: {error}"));
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .initial_stream_window_size(u32::try_from(STREAM_WINDOW_BYTES).ok())
        .initial_connection_window_size(u32::try_from(CONNECTION_WINDOW_BYTES).ok())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(UploadLayer)
        .add_service(health)
        .add_service(reflection().build_v1().map_err(internal)?)
        .add_service(reflection().build_v1alpha().map_err(internal)?)
        .add_service(grpc::table_server(engine.clone()))
        .add_service(grpc::numstore_server(engine.clone()))
        .add_service(grpc::tally_server(engine.clone()))
        .serve_with_incoming_shutdown(connections(listeners), async {
            let _either_way = stopped.await;
        });

    let shutdown = Box::pin(async {
        shutdown.await;
        tracing::info!("draining");
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
    result.map_err(|error| Error::Internal(format!("server: {error}")))
}

fn start_logging(args: &ServeArgs) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).map_err(|error| format!("--log: {error}"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match args.log_format {
        LogFormat::Text => logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("logging: {error}"))
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
    for (part, reason) in &found.quarantined {
        tracing::error!(%part, %reason, "set aside in quarantine: it is in no sum");
    }
}

/// The one line on standard output, for people and for programs that wait for it.
fn say_ready(config: &Config, listeners: &[TcpListener], engine: &Engine, found: &Found) -> Result<(), Error> {
    let mut addresses = Vec::new();
    for listener in listeners {
        addresses.push(listener.local_addr().map_err(Error::io("a bound address"))?.to_string());
    }
    let (addresses, parts, data) = (addresses.join(", "), engine.parts_count(), config.data.display());
    let plural = if parts == 1 { "" } else { "s" };
    let mut line = format!("ready: grpc {addresses}; {parts} part{plural} in {data}");
    if !found.in_quarantine.is_empty() {
        line += &format!(", {} in quarantine", found.in_quarantine.len());
    }
    let mut out = io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::io("standard output"))
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

/// Accepted connections of all listeners, at most [`CONNECTIONS_MAX`] at once.
fn connections(listeners: Vec<TcpListener>) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepted = stream::select_all(listeners.into_iter().map(|listener| {
        stream::unfold(listener, |listener| async {
            let stream = accept(&listener).await;
            Some((stream, listener))
        })
        .boxed()
    }));
    accepted.filter_map(move |stream| {
        let places = Arc::clone(&places);
        async move {
            let place = places.acquire_owned().await.ok()?;
            let silence_max = Some(Box::pin(sleep(PREFACE_MAX)));
            Some(Ok(Connection { stream, silence_max, preface_bytes_left: PREFACE_BYTES, _place: place }))
        }
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was gone at once");
                }
                return stream;
            }
            Err(error) => {
                // Out of file descriptors, perhaps: others must end before it can go on.
                tracing::error!(%error, "no connection could be accepted");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// A connection that holds its place among them.
struct Connection {
    stream: TcpStream,
    /// Until the client's preface has come: HTTP/2's own pings begin only then.
    silence_max: Option<Pin<Box<Sleep>>>,
    preface_bytes_left: usize,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
