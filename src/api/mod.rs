//! The surfaces. They convert between a protocol and the engine's words; an `if` about tables belongs in the engine.

pub mod grpc;
pub mod http;
pub mod metrics;

use axum::http::Extensions;
use tokio_util::sync::CancellationToken;

use crate::engine::transfers::Origin;

/// Whom a request comes from. The server puts it into the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Its connection and address.
    pub(crate) origin: Origin,
    /// Closes the connection, with all calls on it.
    pub(crate) close: CancellationToken,
}

impl Caller {
    /// Whom a request comes from; the server itself if nothing says so.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or(Self { origin: Origin::SERVER, close: CancellationToken::new() })
    }
}
