//! Who may do what: requests that a browser sends for another site's page are refused, and only those who run the server
//! may shut it down.
//!
//! A server on loopback has no password, so a page that its user visits must not be able to use it: neither by sending
//! forms to it (CSRF) nor through a name of the page's own domain that resolves to this machine (DNS rebinding).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq;
use tower_http::cors::CorsLayer;

use super::{
    paths::{SHUTDOWN_PATH, TASKS_PATH},
    refuse::refuse,
};
use crate::{
    api::idempotency::{KEY_HEADER, REPLAYED_HEADER},
    limits::URI_BYTES_MAX,
};

/// The ends of the connection on which a request came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The client.
    pub(crate) peer: SocketAddr,
    /// The address that the listener is bound to.
    pub(crate) listener: SocketAddr,
}

/// What flags allow besides.
#[derive(Clone)]
pub(crate) struct AccessRules {
    /// Other origins whose pages may do what the server's own pages may do, as browsers write them.
    allowed_origins: Arc<[String]>,
    /// Names by which proxies on this machine reach a server on loopback.
    allowed_hosts: Arc<[String]>,
}

impl AccessRules {
    pub(crate) fn new(allowed_origins: Vec<String>, allowed_hosts: Vec<String>) -> Self {
        Self { allowed_origins: allowed_origins.into(), allowed_hosts: allowed_hosts.into() }
    }
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
/// itself: not through a proxy on this machine, not from a page by a name that it made resolve to this machine, and not from
/// a browser at all, because not every page that a browser shows here may do this.
pub(super) fn may_administer(arrival: Arrival, uri: &Uri, headers: &HeaderMap, token: Option<&AdminToken>) -> bool {
    match token {
        Some(token) => token.is_in(headers),
        None => {
            let is_passed_on = NOT_OF_A_CLIENT.iter().any(|name| headers.contains_key(*name));
            is_loopback(arrival.peer) && !is_passed_on && !names_another_host(uri, headers, &[])
        }
    }
}

/// Headers that the original clients do not send: those that proxies add to a request (RFC 7239; RFC 9110, section 7.6.3; and
/// the ones in use before), and those that browsers add.
const NOT_OF_A_CLIENT: [&str; 11] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-real-ip",
    "origin",
    "referer",
    "cookie",
    "sec-fetch-site",
    "sec-fetch-mode",
    "sec-fetch-dest",
    "sec-fetch-user",
];

/// The middleware that refuses requests that must not reach a handler.
pub(super) async fn check(State(rules): State<AccessRules>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > URI_BYTES_MAX) {
        let reason = format!("the path and the query have more than {URI_BYTES_MAX} bytes");
        return refuse(path, StatusCode::URI_TOO_LONG, reason);
    }
    // Which names resolve to another listener is not known.
    let on_loopback = request.extensions().get::<Arrival>().is_none_or(|arrival| is_loopback(arrival.listener));
    if on_loopback && names_another_host(request.uri(), request.headers(), &rules.allowed_hosts) {
        let reason = "the Host header must be localhost or a loopback address; for a proxy, start the server with \
                      --allowed-host NAME";
        return refuse(path, StatusCode::FORBIDDEN, reason);
    }
    if changes_state(request.method(), path)
        && let Some(reason) = foreign_page(request.uri(), request.headers(), &rules.allowed_origins)
    {
        return refuse(path, StatusCode::FORBIDDEN, reason);
    }
    next.run(request).await
}

/// Adds what lets pages of the allowed origins read the answers, and answers their preflights (Fetch standard, section 3.3).
/// `None` if no origin is allowed.
pub(super) fn cors(AccessRules { allowed_origins, .. }: &AccessRules) -> Option<CorsLayer> {
    let origins: Vec<_> = allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    let headers = [
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::RANGE,
        header::IF_RANGE,
        header::IF_NONE_MATCH,
        HeaderName::from_static(KEY_HEADER),
    ];
    let exposed = [
        header::CONTENT_DISPOSITION,
        header::CONTENT_RANGE,
        header::ETAG,
        header::RETRY_AFTER,
        HeaderName::from_static(REPLAYED_HEADER),
    ];
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(headers)
        .expose_headers(exposed)
        .max_age(PREFLIGHT_AGE_MAX);
    (!allowed_origins.is_empty()).then_some(layer)
}

/// How long a browser may keep the answer to a preflight.
const PREFLIGHT_AGE_MAX: Duration = Duration::from_secs(600);

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Whether a call may change something. Two GETs do, because the original servers had them: the shutdown, and the download
/// of a task, after which its result is removed.
fn changes_state(method: &Method, path: &str) -> bool {
    let is_download = path.starts_with(TASKS_PATH) && path.ends_with("/download");
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) || path == SHUTDOWN_PATH || is_download
}

/// Why a request seems to come from a page of another site that is not allowed, if it does.
fn foreign_page(uri: &Uri, headers: &HeaderMap, allowed_origins: &[String]) -> Option<&'static str> {
    let origins: Vec<_> = headers.get_all(header::ORIGIN).iter().map(HeaderValue::as_bytes).collect();
    let is_allowed = |origin: &[u8]| allowed_origins.iter().any(|allowed| allowed.as_bytes() == origin);
    if !origins.is_empty() && origins.iter().all(|origin| is_allowed(origin)) {
        return None;
    }
    // W3C Fetch Metadata: browsers send it themselves, also with requests that have no Origin.
    if headers.get_all("sec-fetch-site").iter().any(|site| site != "same-origin" && site != "none") {
        return Some("a page of another origin may not do this, unless --allowed-origin names it");
    }
    if origins.iter().any(|origin| !is_own(origin, uri, headers)) {
        return Some("the Origin is not this server, and --allowed-origin does not name it");
    }
    None
}

/// Whether host and port of an Origin are those that the request was sent to.
fn is_own(origin: &[u8], uri: &Uri, headers: &HeaderMap) -> bool {
    let Some(origin) = str::from_utf8(origin).ok().and_then(|origin| Uri::try_from(origin).ok()) else { return false };
    let default_port = match origin.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return false,
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let (Some(origin), Some(host)) = (origin.authority(), host.as_ref().or(uri.authority())) else { return false };
    let port = |name: &Authority| name.port_u16().unwrap_or(default_port);
    origin.host().eq_ignore_ascii_case(host.host()) && port(origin) == port(host)
}

/// Whether the Host of a request names neither this machine nor an allowed host.
fn names_another_host(uri: &Uri, headers: &HeaderMap, allowed_hosts: &[String]) -> bool {
    let is_local = |name: &Authority| is_loopback_name(name) || is_allowed(name, allowed_hosts);
    let is_local_text =
        |name: &[u8]| str::from_utf8(name).is_ok_and(|name| name.parse().is_ok_and(|name| is_local(&name)));
    let mut hosts = headers.get_all(header::HOST).iter();
    hosts.any(|host| !is_local_text(host.as_bytes())) || uri.authority().is_some_and(|name| !is_local(name))
}

/// Whether a name is one of the allowed hosts. It may have any port.
fn is_allowed(name: &Authority, allowed_hosts: &[String]) -> bool {
    !name.as_str().contains('@') && allowed_hosts.iter().any(|host| host.eq_ignore_ascii_case(name.host()))
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
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        list.iter().map(pair).collect()
    }

    #[test]
    fn hosts_of_other_machines_are_recognized() {
        let is_foreign = |list: &[(&'static str, &'static str)]| {
            names_another_host(&Uri::from_static("/api/states_mean"), &headers(list), &[])
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
            assert!(!is_foreign(&[("host", local)]), "{local}");
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
            assert!(is_foreign(&[("host", strange)]), "{strange}");
        }
        assert!(is_foreign(&[("host", "localhost"), ("host", "evil.example")]));
        assert!(names_another_host(&Uri::from_static("http://evil.example/api/states_mean"), &headers(&[]), &[]));
    }

    #[test]
    fn pages_of_other_origins_are_recognized() {
        let allowed = ["http://front.example:3000".to_owned()];
        let is_foreign = |list: &[(&'static str, &'static str)]| {
            foreign_page(&Uri::from_static("/api/states_mean"), &headers(list), &allowed).is_some()
        };
        for (host, origin) in [
            ("localhost:5000", "http://localhost:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("tally.example", "https://tally.example"),
            ("tally.example", "http://tally.example"),
            ("tally.example:443", "https://TALLY.example"),
            ("tally.example", "http://front.example:3000"),
        ] {
            assert!(!is_foreign(&[("host", host), ("origin", origin)]), "{host}, {origin}");
        }
        for origin in [
            "http://localhost:3000",
            "http://localhost",
            "http://127.0.0.1:5000",
            "http://evil.example:5000",
            "http://front.example",
            "https://front.example:3000",
            "null",
            "localhost:5000",
            "file://",
            "http://localhost.evil.example:5000",
            "",
        ] {
            assert!(is_foreign(&[("host", "localhost:5000"), ("origin", origin)]), "{origin}");
        }
        let two =
            [("host", "tally.example"), ("origin", "http://front.example:3000"), ("origin", "http://evil.example")];
        assert!(is_foreign(&two));
        assert!(!is_foreign(&[("sec-fetch-site", "same-origin")]) && !is_foreign(&[("sec-fetch-site", "none")]));
        assert!(is_foreign(&[("sec-fetch-site", "cross-site")]) && is_foreign(&[("sec-fetch-site", "same-site")]));
        assert!(!is_foreign(&[("origin", "http://front.example:3000"), ("sec-fetch-site", "cross-site")]));
        assert!(!is_foreign(&[]), "a program that is no browser");
        let absolute = Uri::from_static("http://tally.example/api/states_mean");
        assert!(foreign_page(&absolute, &headers(&[("origin", "http://tally.example")]), &[]).is_none());
    }

    #[test]
    fn what_changes_state() {
        assert!(changes_state(&Method::POST, "/api/states_mean") && changes_state(&Method::DELETE, "/x"));
        assert!(changes_state(&Method::GET, SHUTDOWN_PATH) && changes_state(&Method::HEAD, SHUTDOWN_PATH));
        let task = "/api/v1/file-processing/tasks/67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert!(changes_state(&Method::GET, &format!("{task}/download")));
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
            assert!(may(here, &[]) && may(here, &[("host", "localhost:5000"), ("user-agent", "curl")]), "{here}");
            // Pages that a browser shows on this machine, whoever wrote them.
            for browser in ["origin", "referer", "cookie", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"] {
                assert!(!may(here, &[("host", "localhost"), (browser, "same-origin")]), "{browser}");
            }
            // A proxy on this machine passes on requests from elsewhere.
            for proxy in ["forwarded", "x-forwarded-for", "x-real-ip", "via"] {
                assert!(!may(here, &[("host", "localhost"), (proxy, "127.0.0.1")]), "{proxy}");
            }
            // A name that a foreign page made resolve to this machine, whatever the listener.
            assert!(!may(here, &[("host", "evil.example:5000")]));
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
