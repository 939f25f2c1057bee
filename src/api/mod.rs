//! The surfaces. They convert between a protocol and the engine's words; an `if` about tables belongs in the engine.

use std::net::SocketAddr;

use axum::http::Extensions;
use tokio_util::sync::CancellationToken;
use tracing::field::{DisplayValue, display};

use crate::engine::state::transfers::Origin;

pub mod grpc;
pub mod http;
pub mod metrics;

/// Whom a request comes from. The server puts it into the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Its connection and address.
    pub(crate) origin: Origin,
    /// The client's address and port, for the log.
    pub(crate) peer: Option<SocketAddr>,
    /// Closes the connection, with all calls on it.
    pub(crate) close: CancellationToken,
}

impl Caller {
    /// Whom a request comes from; the server itself if nothing says so.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        let server = || Self { origin: Origin::SERVER, peer: None, close: CancellationToken::new() };
        extensions.get().cloned().unwrap_or_else(server)
    }

    /// Where a request comes from, for the log.
    pub(crate) fn peer_of(extensions: &Extensions) -> Option<DisplayValue<SocketAddr>> {
        extensions.get::<Self>().and_then(|caller| caller.peer).map(display)
    }
}
