//! Requests that a browser sends for another site's page, and who may shut a server without tokens down.
//!
//! A server on loopback may have no tokens, so a page that its user visits must not be able to use it: neither by sending
//! forms to it (CSRF) nor through a name of the page's own domain that resolves to this machine (DNS rebinding).

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, Uri, header, uri::Authority};

use super::{Access, arrival::Arrival, rules::Rule, scope::Scope};

/// What flags allow besides.
#[derive(Clone)]
pub(crate) struct PageRules {
    /// Other origins whose pages may do what the server's own pages may do, as browsers write them.
    allowed_origins: Arc<[String]>,
    /// Names by which proxies on this machine reach a server on loopback.
    allowed_hosts: Arc<[String]>,
}

impl PageRules {
    pub(crate) fn new(allowed_origins: Vec<String>, allowed_hosts: Vec<String>) -> Self {
        Self { allowed_origins: allowed_origins.into(), allowed_hosts: allowed_hosts.into() }
    }

    pub(crate) fn allowed_origins(&self) -> &[String] {
        &self.allowed_origins
    }
}

/// Whether a request may shut the server down. If there are tokens, the rule of the call has decided. Otherwise it has to have the
/// token of `--admin-token-file` or, if there is none, come from this machine itself: not through a proxy on this machine, not
/// from a page by a name that it made resolve to this machine, and not from a browser at all, because not every page that a
/// browser shows here may do this.
pub(crate) fn may_administer(arrival: Arrival, uri: &Uri, headers: &HeaderMap, access: &Access) -> bool {
    if access.has_tokens() {
        return true;
    }
    access.has_admin_token(headers).unwrap_or_else(|| {
        let is_passed_on = NOT_OF_A_CLIENT.iter().any(|name| headers.contains_key(*name));
        arrival.is_from_here() && !is_passed_on && !names_another_host(uri, headers, &[])
    })
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

/// Whether a request may change something. Some GETs do, because the original servers had them, such as the shutdown: those
/// need more than `read`.
pub(crate) fn changes_state(method: &Method, rule: Option<Rule>) -> bool {
    let is_safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    !is_safe || matches!(rule, Some(Rule::Needs(scope)) if scope > Scope::Read)
}

/// Why a request must not reach its handler, because of the page or the name that it comes from.
pub(crate) fn refused_page(
    rules: &PageRules,
    arrival: Option<&Arrival>,
    (method, rule): (&Method, Option<Rule>),
    (uri, headers): (&Uri, &HeaderMap),
) -> Option<&'static str> {
    // Which names resolve to another listener is not known.
    if arrival.is_none_or(Arrival::is_for_here) && names_another_host(uri, headers, &rules.allowed_hosts) {
        return Some(
            "the Host header must be localhost or a loopback address; for a proxy, start the server with \
             --allowed-host NAME",
        );
    }
    if changes_state(method, rule) { foreign_page(uri, headers, &rules.allowed_origins) } else { None }
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
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::{
        access::{rules::of_route, secret::SecretHash},
        limits::Quotas,
    };

    const SHUTDOWN: &str = "/api/graceful_shutdown";

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
        let changes = |method: Method, route| changes_state(&method, of_route(&method, route));
        assert!(changes(Method::POST, "/api/states_mean") && changes(Method::DELETE, "/x"));
        assert!(changes(Method::GET, SHUTDOWN) && changes(Method::HEAD, SHUTDOWN));
        assert!(changes(Method::GET, "/api/v1/file-processing/tasks/{task_id}/download"));
        assert!(!changes(Method::GET, "/api/v1/file-processing/tasks/{task_id}/status"));
        assert!(!changes(Method::GET, "/api/jobs") && !changes(Method::HEAD, "/api/jobs"));
    }

    #[test]
    fn the_shutdown_is_for_this_machine_or_for_the_token() {
        let (none, token) = (
            Access::new(None, None, Quotas::default(), None),
            Access::new(None, Some(SecretHash::of(b"s3cret")), Quotas::default(), None),
        );
        let from = |peer: &str| Arrival {
            peer: peer.parse().expect("an address"),
            listener: "0.0.0.0:5000".parse().expect("an address"),
        };
        let uri = Uri::from_static(SHUTDOWN);
        let may = |peer, list: &[_]| may_administer(from(peer), &uri, &headers(list), &none);
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

        let may = |peer, list: &[_]| may_administer(from(peer), &uri, &headers(list), &token);
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
