//! The log line of a call that may take long.

use std::{net::SocketAddr, time::Instant};

use tonic::Extensions;
use tracing::field::DisplayValue;

use crate::api::caller::Caller;

/// Guarantees that a call leaves exactly one line in the log: the line that its handler writes after [`CallLog::end`],
/// or, if the handler is dropped before, the line that the client did not wait.
pub(super) struct CallLog {
    call: &'static str,
    peer: Option<DisplayValue<SocketAddr>>,
    started: Instant,
    ended: bool,
}

impl CallLog {
    pub(super) fn start(call: &'static str, request: &Extensions) -> Self {
        Self { call, peer: Caller::peer_of(request), started: Instant::now(), ended: false }
    }

    /// The client's address, for the handler's line.
    pub(super) fn peer(&self) -> Option<DisplayValue<SocketAddr>> {
        self.peer.clone()
    }

    /// The call's duration in ms. The caller writes the line now.
    pub(super) fn end(mut self) -> u128 {
        self.ended = true;
        self.started.elapsed().as_millis()
    }
}

impl Drop for CallLog {
    fn drop(&mut self) {
        if !self.ended {
            let duration_ms = self.started.elapsed().as_millis();
            tracing::warn!(call = self.call, peer = self.peer(), duration_ms, "cancelled by the client");
        }
    }
}
