//! Who may ask: what a browser sends for a foreign page is refused, and the shutdown is for those who run the server.
//!
//! A server on loopback has no password, so a page that the user happens to read must not be able to use it: neither
//! by sending forms to it (CSRF) nor by a name of its own that it makes point here (DNS rebinding).

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq;

use super::{
    convert::{TASKS_PATH, refuse},
    survey::SHUTDOWN_PATH,
};
use crate::limits::URI_BYTES_MAX;

/// The ends of the connection on which a request came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The client.
    pub(crate) peer: SocketAddr,
    /// What the listener is bound to.
    pub(crate) listener: SocketAddr,
}

/// What `--admin-token-file` holds.
#[derive(Clone)]
pub(crate) struct AdminToken(String);

impl AdminToken {
    pub(crate) fn new(token: String) -> Self {
        Self(token)
    }

    /// Whether a request shows it. Compared in constant time, but for its length.
    fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let token = shown.and_then(|shown| shown.split_at_checked("Bearer ".len()));
        token.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.ct_eq(self.0.as_bytes()))
        })
    }
}

/// Whether a request may shut the server's queue: it shows the token or, where there is none, comes from this machine
/// itself. What a proxy here passes on does not, and neither does what a page sends by a name that it makes point here.
pub(super) fn may_administer(arrival: Arrival, uri: &Uri, headers: &HeaderMap, token: Option<&AdminToken>) -> bool {
    match token {
        Some(token) => token.is_shown(headers),
        None => {
            let is_passed_on = PROXY_HEADERS.iter().any(|name| headers.contains_key(*name));
            is_loopback(arrival.peer) && !is_passed_on && names_another(uri, headers).is_none()
        }
    }
}

/// What proxies add to a request (RFC 7239; RFC 9110, section 7.6.3; and what was usual before).
const PROXY_HEADERS: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// Refuses what must not reach a handler.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > URI_BYTES_MAX) {
        let reason = format!("the path and the query have more than {URI_BYTES_MAX} bytes");
        return refuse(path, StatusCode::URI_TOO_LONG, reason);
    }
    let on_loopback = request.extensions().get::<Arrival>().is_none_or(|arrival| is_loopback(arrival.listener));
    if changes_state(request.method(), path)
        && let Some(reason) = foreign(request.uri(), request.headers(), on_loopback)
    {
        return refuse(path, StatusCode::FORBIDDEN, reason);
    }
    next.run(request).await
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Whether a call may change something. Two GETs do, as the originals have them: the shutdown, and the download of a
/// task, whose result is removed after it.
fn changes_state(method: &Method, path: &str) -> bool {
    let is_download = path.starts_with(TASKS_PATH) && path.trim_end_matches('/').ends_with("/download");
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) || path == SHUTDOWN_PATH || is_download
}

/// Why a request is taken for one that a foreign page sent.
fn foreign(uri: &Uri, headers: &HeaderMap, on_loopback: bool) -> Option<&'static str> {
    // Fetch Metadata, W3C: browsers say so themselves, also where they send no Origin.
    if headers.get_all("sec-fetch-site").iter().any(|site| site != "same-origin" && site != "none") {
        return Some("a page of another origin may not do this");
    }
    // The names that lead to another listener are not known.
    if on_loopback { names_another(uri, headers) } else { None }
}

/// Why a request is not for this machine by the names in it, or not from its own pages.
fn names_another(uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    if hosts.any(|host| !is_local(host.as_bytes())) || uri.authority().is_some_and(|name| !is_us(name)) {
        return Some("the Host is not this machine, by a name that leads here from it alone");
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_local_origin = |origin: &[u8]| {
        let name = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        name.is_some_and(is_local)
    };
    if origins.any(|origin| !is_local_origin(origin.as_bytes())) {
        return Some("the Origin is not this machine, by a name that leads here from it alone");
    }
    None
}

fn is_local(name: &[u8]) -> bool {
    str::from_utf8(name).is_ok_and(|name| name.parse().is_ok_and(|name| is_us(&name)))
}

/// A name that leads here from this machine alone, with any port.
fn is_us(name: &Authority) -> bool {
    let host = name.host();
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_address = literal.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback());
    (is_address || host.eq_ignore_ascii_case("localhost")) && !name.as_str().contains('@')
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        list.iter().map(pair).collect()
    }

    #[test]
    fn foreign_pages_are_told_apart() {
        let check = |list: &[(&'static str, &'static str)]| {
            foreign(&Uri::from_static("/api/states_mean"), &headers(list), true).is_none()
        };
        for local in [
            "localhost",
            "LOCALHOST:5000",
            "127.0.0.1",
            "127.0.0.1:41234",
            "127.0.0.2:5000",
            "127.255.255.254",
            "[::1]",
            "[::1]:5000",
            "[::ffff:127.0.0.1]:5000",
        ] {
            assert!(check(&[("host", local)]), "{local}");
        }
        for strange in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:5000",
            "128.0.0.1",
            "127.1",
            "0.0.0.0",
            "[::]",
            "[::ffff:192.0.2.1]",
            "x@localhost",
            "",
            "::1",
        ] {
            assert!(!check(&[("host", strange)]), "{strange}");
        }
        assert!(!check(&[("host", "localhost"), ("host", "evil.example")]));
        assert!(check(&[("host", "localhost"), ("origin", "http://localhost:3000")]));
        assert!(check(&[("host", "localhost"), ("origin", "https://[::1]")]));
        for origin in ["http://evil.example", "null", "localhost", "file://", "http://localhost.evil.example"] {
            assert!(!check(&[("host", "localhost"), ("origin", origin)]), "{origin}");
        }
        assert!(check(&[("sec-fetch-site", "same-origin")]) && check(&[("sec-fetch-site", "none")]));
        assert!(!check(&[("sec-fetch-site", "cross-site")]) && !check(&[("sec-fetch-site", "same-site")]));
        assert!(foreign(&Uri::from_static("http://evil.example/api/states_mean"), &headers(&[]), true).is_some());
        assert!(foreign(&Uri::from_static("/"), &headers(&[("host", "evil.example")]), false).is_none());
    }

    #[test]
    fn what_changes_state() {
        assert!(changes_state(&Method::POST, "/api/states_mean") && changes_state(&Method::DELETE, "/x"));
        assert!(changes_state(&Method::GET, SHUTDOWN_PATH) && changes_state(&Method::HEAD, SHUTDOWN_PATH));
        let task = "/api/v1/file-processing/tasks/67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert!(changes_state(&Method::GET, &format!("{task}/download")));
        assert!(changes_state(&Method::GET, &format!("{task}/download/")));
        assert!(!changes_state(&Method::GET, &format!("{task}/status")));
        assert!(!changes_state(&Method::GET, "/api/jobs") && !changes_state(&Method::HEAD, "/api/jobs"));
    }

    #[test]
    fn the_shutdown_is_for_this_machine_and_for_the_token() {
        let token = AdminToken::new("s3cret".to_owned());
        let from = |peer: &str| Arrival {
            peer: peer.parse().expect("an address"),
            listener: "0.0.0.0:5000".parse().expect("an address"),
        };
        let uri = Uri::from_static(SHUTDOWN_PATH);
        let may = |peer, list: &[_]| may_administer(from(peer), &uri, &headers(list), None);
        for here in ["127.0.0.1:9", "127.0.0.2:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert!(
                may(here, &[]) && may(here, &[("host", "localhost:5000"), ("origin", "http://127.0.0.1")]),
                "{here}"
            );
            // A proxy beside the server passes on what comes from elsewhere.
            for proxy in ["forwarded", "x-forwarded-for", "x-real-ip", "via"] {
                assert!(!may(here, &[("host", "localhost"), (proxy, "127.0.0.1")]), "{proxy}");
            }
            // A name that a foreign page made point here, whatever the listener.
            assert!(!may(here, &[("host", "evil.example:5000")]));
            assert!(!may(here, &[("host", "localhost"), ("origin", "http://evil.example")]));
        }
        assert!(!may("192.0.2.1:9", &[]) && !may("192.0.2.1:9", &[("authorization", "Bearer s3cret")]));

        let may = |peer, list: &[_]| may_administer(from(peer), &uri, &headers(list), Some(&token));
        for peer in ["192.0.2.1:9", "127.0.0.1:9"] {
            assert!(may(peer, &[("authorization", "Bearer s3cret"), ("host", "tally.example"), ("via", "1.1 x")]));
            assert!(may(peer, &[("authorization", "bearer s3cret")]));
            for wrong in ["Bearer s3cre", "Bearer s3cret ", "Bearer S3cret", "Basic s3cret", "s3cret", "Bearer ", ""] {
                assert!(!may(peer, &[("authorization", wrong)]), "{wrong:?}");
            }
            assert!(!may(peer, &[]), "{peer}");
        }
    }
}
