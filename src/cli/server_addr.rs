//! The address of a server, as `--server` takes it.

use std::{fmt, str::FromStr};

use http::uri::{Authority, PathAndQuery, Scheme, Uri};

/// The port if none is given.
const PORT: u16 = 5440;

/// The address of a server: `http://HOST:PORT/`, with a host and a port other than 0.
#[derive(Clone, Debug)]
pub struct ServerAddr(Uri);

impl ServerAddr {
    pub(super) fn uri(&self) -> Uri {
        self.0.clone()
    }
}

impl FromStr for ServerAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.strip_prefix("http://").unwrap_or(text);
        if address.contains("://") {
            return Err("only http:// is supported; for encryption, put a proxy in front of the server".into());
        }
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
            assert!(ServerAddr::from_str(text).is_err(), "{text:?} is not an address");
        }
    }
}
