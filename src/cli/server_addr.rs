//! The address of a server, as `--server` takes it.

use std::{fmt, net::IpAddr, str::FromStr};

use http::uri::{Authority, PathAndQuery, Scheme, Uri};

/// The port if none is given.
const PORT: u16 = 5440;

/// The address of a server: a host, a port other than 0, and whether it has TLS, if that is said.
#[derive(Clone, Debug)]
pub struct ServerAddr {
    authority: Authority,
    has_tls: Option<bool>,
}

impl ServerAddr {
    pub(super) fn uri(&self, has_tls: bool) -> Result<Uri, http::Error> {
        let scheme = if has_tls { Scheme::HTTPS } else { Scheme::HTTP };
        let root = PathAndQuery::from_static("/");
        Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(root).build()
    }

    /// Whether it begins with https:// (or http://). `None` if it has neither.
    pub(super) fn has_tls(&self) -> Option<bool> {
        self.has_tls
    }

    /// Whether only this machine can have it.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl FromStr for ServerAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (has_tls, address) = match text.split_once("://") {
            Some(("http", address)) => (Some(false), address),
            Some(("https", address)) => (Some(true), address),
            Some(_other) => return Err("expected https:// or http://, or neither".into()),
            None => (None, text),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        let authority = Authority::from_str(address).map_err(|error| error.to_string())?;
        let authority = if authority.host() == address {
            Authority::from_str(&format!("{address}:{PORT}")).map_err(|error| error.to_string())?
        } else {
            authority
        };
        // Anything besides host and port, for example a user name, has no meaning here.
        let (host, port) = (authority.host(), authority.port_u16().unwrap_or(0));
        if host.is_empty() || port == 0 || authority.as_str() != format!("{host}:{port}") {
            return Err("expected HOST or HOST:PORT".into());
        }
        Ok(Self { authority, has_tls })
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.authority.as_str())
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
            ("https://tally.example/", "tally.example:5440"),
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
            "ftp://localhost:5440",
            "localhost:5440/path",
            "http://",
            "a b:1",
            "a\nb:1",
        ];
        for text in bad {
            assert!(ServerAddr::from_str(text).is_err(), "{text:?} is not an address");
        }
    }
}
