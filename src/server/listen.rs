//! Binds the addresses that the server listens on, and accepts connections there.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use crate::{access::arrival::Arrival, error::Error};

/// How long a listener pauses after a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
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

/// Whether an address exists on every machine that has IPv6, and so may be left out on a machine without.
fn may_be_missing(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_loopback() || v6.ip().is_unspecified())
}

fn is_no_such_family(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

pub(super) fn addresses_of(listeners: &[TcpListener]) -> Result<String, Error> {
    let mut addresses = Vec::new();
    for listener in listeners {
        addresses.push(listener.local_addr().map_err(Error::io("a bound address"))?.to_string());
    }
    Ok(addresses.join(", "))
}

/// The connections of all listeners. After an error a listener pauses, and continues.
pub(super) fn accepted(listeners: Vec<TcpListener>) -> impl Stream<Item = io::Result<(TcpStream, Arrival)>> {
    stream::select_all(listeners.into_iter().map(|listener| {
        stream::unfold(listener, |listener| async {
            let accepted = accept(&listener).await;
            if accepted.is_err() {
                sleep(ACCEPT_RETRY).await;
            }
            Some((accepted, listener))
        })
        .boxed()
    }))
}

async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, Arrival)> {
    let (stream, peer) = listener.accept().await?;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone at once");
    }
    Ok((stream, Arrival { peer, listener: listener.local_addr()? }))
}

/// Whether an error means that the system has no resources for another connection until others end.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    matches!(error.raw_os_error(), Some(ENOMEM | ENFILE | EMFILE | ENOBUFS))
}
