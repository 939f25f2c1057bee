//! The ends of the connection on which a request came.

use std::net::SocketAddr;

/// The ends of the connection on which a request came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The client.
    pub(crate) peer: SocketAddr,
    /// The address that the listener is bound to.
    pub(crate) listener: SocketAddr,
}

impl Arrival {
    /// Whether the client is on this machine.
    pub(crate) fn is_from_here(&self) -> bool {
        is_loopback(self.peer)
    }

    /// Whether only clients on this machine can reach the listener.
    pub(crate) fn is_for_here(&self) -> bool {
        is_loopback(self.listener)
    }
}

/// Whether only this machine can reach an address.
pub(crate) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
