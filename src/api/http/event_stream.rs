//! The events that all watchers share, and the stream of them that each gets.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Engine, runtime::transfers::Admission},
    limits::EVENT_WATCHERS_MAX,
};

/// The events, and those who watch them.
pub(super) struct Events {
    /// The last event; `None` while nobody watches.
    pub(super) tx: watch::Sender<Option<Bytes>>,
    /// Notified when somebody begins to watch.
    pub(super) wanted: Notify,
    pub(super) watchers: Admission,
    /// Cancelled when the server drains.
    pub(super) ended: CancellationToken,
}

impl Events {
    pub(super) fn new(engine: &Engine) -> Self {
        Self {
            tx: watch::Sender::new(None),
            wanted: Notify::new(),
            watchers: engine.watchers(EVENT_WATCHERS_MAX),
            ended: CancellationToken::new(),
        }
    }

    /// Ends all streams of events.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    /// The events from now on. The first is that of the moment, if others watch already.
    pub(super) fn watch(&self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
        let mut rx = self.tx.subscribe();
        rx.mark_changed();
        self.wanted.notify_one();
        stream::unfold((rx, self.ended.clone()), |(mut rx, ended)| async move {
            loop {
                tokio::select! {
                    biased;
                    () = ended.cancelled() => return None,
                    changed = rx.changed() => changed.ok()?,
                }
                let event = rx.borrow_and_update().clone();
                if let Some(event) = event {
                    return Some((Ok(event), (rx, ended)));
                }
            }
        })
    }
}
