//! Streamed answers that their client stops reading: the connection is closed.
//!
//! A stream whose client takes nothing is not polled again, and what was encoded of it stays in memory, as does all that
//! the call holds. A client that answers HTTP/2's pings could keep it there for ever.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

/// Closes a connection, with all calls on it. The server gives one to each call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closer(pub(crate) CancellationToken);

/// A stream of which somebody watches that it is read.
pub(super) struct Watched<S> {
    stream: S,
    pace: watch::Sender<Pace>,
}

#[derive(Clone, Copy, Default)]
struct Pace {
    /// How often more was wanted.
    polls: u64,
    /// Whether what was handed over last has to be sent before more is wanted.
    is_sending: bool,
}

impl<S> Watched<S> {
    /// From here on, `closer` is used when nothing is read of what was handed over for `idle_max`.
    pub(super) fn new(stream: S, call: &'static str, closer: Option<&Closer>, idle_max: Duration) -> Self {
        let (pace, mut told) = watch::channel(Pace::default());
        if let Some(Closer(close)) = closer.cloned() {
            // Ends with the stream, whose end drops the sender.
            tokio::spawn(async move {
                while let Ok(before) = told.wait_for(|pace| pace.is_sending).await.map(|pace| pace.polls) {
                    match timeout(idle_max, told.wait_for(|pace| pace.polls > before)).await {
                        Ok(Ok(_more_is_wanted)) => {}
                        Ok(Err(_ended)) => return,
                        Err(_elapsed) => {
                            tracing::warn!(call, seconds = idle_max.as_secs(), "not read: the connection is closed");
                            return close.cancel();
                        }
                    }
                }
            });
        }
        Self { stream, pace }
    }
}

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.pace.send_modify(|pace| *pace = Pace { polls: pace.polls + 1, is_sending: false });
        let next = ready!(Pin::new(&mut self.stream).poll_next(context));
        self.pace.send_modify(|pace| pace.is_sending = true);
        Poll::Ready(next)
    }
}
