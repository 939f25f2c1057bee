//! Who may do what: requests that a browser sends for another site's page are refused, and only those who run the server
//! may shut it down.
//!
//! A server on loopback has no password, so a page that its user visits must not be able to use it: neither by sending
//! forms to it (CSRF) nor through a name of the page's own domain that resolves to this machine (DNS rebinding).

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq;

use super::{
    errors::refuse,
    paths::{SHUTDOWN_PATH, TASKS_PATH},
};
use crate::limits::URI_BYTES_MAX;

/// The ends of the connection on which a request came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The client.
    pub(crate) peer: SocketAddr,
    /// The address that the listener is bound to.
    pub(crate) listener: SocketAddr,
}

/// The token in `--admin-token-file`.
#[derive(Clone)]
pub(crate) struct AdminToken(String);

impl AdminToken {
    pub(crate) fn new(token: String) -> Self {
        Self(token)
    }

    /// Whether a request has it. The comparison takes constant time, except for the length.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let token = value.and_then(|value| value.split_at_checked("Bearer ".len()));
        token.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.ct_eq(self.0.as_bytes()))
        })
    }
}

/// Whether a request may shut the server down. It has to have the token or, if the server has none, come from this machine
/// itself: not through a proxy on this machine, and not from a page by a name that it made resolve to this machine.
pub(super) fn may_administer(arrival: Arrival, uri: &Uri, headers: &HeaderMap, token: Option<&AdminToken>) -> bool {
    match token {
        Some(token) => token.is_in(headers),
        None => {
            let is_proxied = PROXY_HEADERS.iter().any(|name| headers.contains_key(*name));
            is_loopback(arrival.peer) && !is_proxied && names_another(uri, headers).is_none()
        }
    }
}

/// Headers that proxies add to a request (RFC 7239; RFC 9110, section 7.6.3; and the ones in use before).
const PROXY_HEADERS: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// The middleware that refuses requests that must not reach a handler.
pub(super) async fn check(request: Request, next: Next) -> Response {
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

/// Whether a call may change something. Two GETs do, because the original servers had them: the shutdown, and the download
/// of a task, after which its result is removed.
fn changes_state(method: &Method, path: &str) -> bool {
    let is_download = path.starts_with(TASKS_PATH) && path.trim_end_matches('/').ends_with("/download");
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) || path == SHUTDOWN_PATH || is_download
}

/// Why a request seems to come from another site's page, if it does.
fn foreign(uri: &Uri, headers: &HeaderMap, on_loopback: bool) -> Option<&'static str> {
    // W3C Fetch Metadata: browsers send it themselves, also with requests that have no Origin.
    if headers.get_all("sec-fetch-site").iter().any(|site| site != "same-origin" && site != "none") {
        return Some("a page of another origin may not do this");
    }
    // Which names resolve to another listener is not known.
    if on_loopback { names_another(uri, headers) } else { None }
}

/// Why the Host of a request does not name this machine, or its Origin is not one of this machine's pages.
fn names_another(uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    if hosts.any(|host| !is_local(host.as_bytes())) || uri.authority().is_some_and(|name| !is_loopback_name(name)) {
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
    str::from_utf8(name).is_ok_and(|name| name.parse().is_ok_and(|name| is_loopback_name(&name)))
}

/// Whether a name resolves to this machine on this machine alone. It may have any port.
fn is_loopback_name(name: &Authority) -> bool {
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
    fn requests_of_foreign_pages_are_recognized() {
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
    fn the_shutdown_is_for_this_machine_or_for_the_token() {
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
            // A proxy on this machine passes on requests from elsewhere.
            for proxy in ["forwarded", "x-forwarded-for", "x-real-ip", "via"] {
                assert!(!may(here, &[("host", "localhost"), (proxy, "127.0.0.1")]), "{proxy}");
            }
            // A name that a foreign page made resolve to this machine, whatever the listener.
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
