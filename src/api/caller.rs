//! The client that a request comes from, whatever its protocol.

use std::net::SocketAddr;

use axum::http::Extensions;
use tokio_util::sync::CancellationToken;
use tracing::field::{DisplayValue, display};

use crate::engine::state::transfers::Origin;

/// The client that a request comes from. The server puts it into the extensions of each request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The connection and the address, as the engine counts transfers by them.
    pub(crate) origin: Origin,
    /// The client's address and port, for the log.
    pub(crate) peer: Option<SocketAddr>,
    /// Closes the connection, with all calls on it.
    pub(crate) close: CancellationToken,
}

impl Caller {
    /// The client of a request; the server itself if the request came through no connection.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        let server = || Self { origin: Origin::SERVER, peer: None, close: CancellationToken::new() };
        extensions.get().cloned().unwrap_or_else(server)
    }

    /// The address that a request comes from, for the log.
    pub(crate) fn peer_of(extensions: &Extensions) -> Option<DisplayValue<SocketAddr>> {
        extensions.get::<Self>().and_then(|caller| caller.peer).map(display)
    }
}
