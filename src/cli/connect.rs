//! The way to a server: its address, the connection, and what is said when there is none.

use std::{error::Error, fmt, io, str::FromStr, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::Failure;

/// The port where none is given.
const PORT: u16 = 5440;
/// A server that does not accept by then is not there.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// A long answer may take any time, but the server's HTTP/2 answers pings meanwhile: this finds a dead connection.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIME_MAX: Duration = Duration::from_secs(20);

/// Bytes of one receipt that we take. It names every column, and a header may have 1 MiB.
pub(super) const RECEIPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What every client subcommand takes.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The server's gRPC address; http:// may stand before it, and the port is 5440 unless given
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "TALLY_SERVER",
        hide_env_values = true,
        default_value = "localhost:5440"
    )]
    pub server: ServerAddr,

    /// Print JSON, one object a line
    #[arg(long, env = "TALLY_JSON", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// The address of a server, checked: `http://HOST:PORT/`.
#[derive(Clone, Debug)]
pub struct ServerAddr(Uri);

impl FromStr for ServerAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.strip_prefix("http://").unwrap_or(text);
        if address.contains("://") {
            return Err("only http:// addresses are served, encryption is a proxy's work".into());
        }
        let address = address.strip_suffix('/').unwrap_or(address);
        let authority = Authority::from_str(address).map_err(|error| error.to_string())?;
        let authority = if authority.host() == address {
            Authority::from_str(&format!("{address}:{PORT}")).map_err(|error| error.to_string())?
        } else {
            authority
        };
        // What is more than host and port, a user's name for one, has no meaning here.
        let (host, port) = (authority.host(), authority.port_u16().unwrap_or(0));
        if host.is_empty() || port == 0 || authority.as_str() != format!("{host}:{port}") {
            return Err("expected HOST or HOST:PORT".into());
        }
        Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(authority)
            .path_and_query(PathAndQuery::from_static("/"))
            .build()
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.authority().map_or("", Authority::as_str))
    }
}

/// A connection that stands.
pub(super) async fn connect(server: &ServerAddr) -> Result<Channel, Failure> {
    Endpoint::from(server.0.clone())
        .connect_timeout(CONNECT_TIME_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME_MAX)
        .connect()
        .await
        .map_err(|error| Failure::NoServer { server: server.clone(), reason: root_cause(&error) })
}

/// What a call that failed means to the user.
pub(super) fn call_failure(server: &ServerAddr, status: &Status) -> Failure {
    // A status that this side made up for want of an answer has a cause; one that the server sent has none.
    match status.source() {
        Some(cause) => Failure::NoAnswer { server: server.clone(), reason: root_cause(cause) },
        None if status.message().is_empty() => Failure::Refused(status.code().to_string()),
        None => Failure::Refused(status.message().to_owned()),
    }
}

/// The last error of the chain: those before it only say that there is one.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<io::Error>() {
        // Without "(os error 111)", which helps nobody at a terminal.
        Some(error) if error.raw_os_error().is_some() => error.kind().to_string(),
        _ => last.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let good = [
            ("localhost:5440", "localhost:5440"),
            ("localhost", "localhost:5440"),
            ("http://localhost:5440", "localhost:5440"),
            ("http://tally_server:80/", "tally_server:80"),
            ("127.0.0.1:41234", "127.0.0.1:41234"),
            ("[::1]", "[::1]:5440"),
            ("http://[::1]:7", "[::1]:7"),
        ];
        for (text, expected) in good {
            assert_eq!(ServerAddr::from_str(text).map(|server| server.to_string()), Ok(expected.to_owned()), "{text}");
        }
        let bad = [
            "",
            ":5440",
            "localhost:",
            "localhost:x",
            "localhost:0",
            "localhost:99999",
            "localhost:0005440",
            "::1:5440",
            "user@host:1",
            "https://localhost:5440",
            "localhost:5440/path",
            "http://",
            "a b:1",
            "a\nb:1",
        ];
        for text in bad {
            assert!(ServerAddr::from_str(text).is_err(), "{text:?} is no address");
        }
    }
}
