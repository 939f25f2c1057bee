//! Connections for gRPC: how many are served at once, and what each may do before it has said anything.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::listen::accepted;
use crate::{
    api::grpc::unread::Closer,
    limits::{CONNECTIONS_MAX, WIDE_CONNECTIONS_MAX},
};

/// How long a new connection may take to send its HTTP/2 preface (RFC 9113, section 3.4) before it is closed.
const PREFACE_MAX: Duration = Duration::from_secs(10);
const PREFACE_BYTES: usize = 24;

/// Accepted connections of all listeners, at most [`CONNECTIONS_MAX`] at once, of which [`WIDE_CONNECTIONS_MAX`] are wide.
pub(super) fn connections(listeners: Vec<TcpListener>) -> impl Stream<Item = Connection> {
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

/// A connection that holds its place among them.
pub(super) struct Connection {
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
    pub(super) fn is_wide(&self) -> bool {
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
