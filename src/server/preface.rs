//! A connection that has to send HTTP/2's preface in time. HTTP/2's own pings begin only after it.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::tls::Transport;

/// How long a new connection may take to send its HTTP/2 preface (RFC 9113, section 3.4) before it is closed.
const PREFACE_MAX: Duration = Duration::from_secs(10);
const PREFACE_BYTES: usize = 24;

/// A connection that fails if its preface does not arrive in time.
pub(super) struct Prefaced {
    stream: Transport,
    /// Until the preface has arrived.
    timeout: Option<Pin<Box<Sleep>>>,
    preface_bytes_left: usize,
}

impl Prefaced {
    pub(super) fn new(stream: Transport) -> Self {
        let timeout = Some(Box::pin(sleep(PREFACE_MAX)));
        Self { stream, timeout, preface_bytes_left: PREFACE_BYTES }
    }
}

impl AsyncRead for Prefaced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.preface_bytes_left = self.preface_bytes_left.saturating_sub(buffer.filled().len() - filled);
            if self.preface_bytes_left == 0 {
                self.timeout = None;
            }
        } else if let Some(timeout) = &mut self.timeout {
            ready!(timeout.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Prefaced {
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
