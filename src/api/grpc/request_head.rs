//! The part of a request's head that a call keeps. Clients choose how long a head is, so all else of it is dropped.

use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderValue, Request, Uri, request::Parts, uri::Authority};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    api::idempotency::RequestKey,
    limits::{HEADER_LIST_BYTES_MAX, KEPT_PATH_BYTES_MAX},
};

const ENCODING: &str = "grpc-encoding";
const TIMEOUT: &str = "grpc-timeout";

/// The time after which the client does not want the answer any more, in the extensions of its request.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn of(extensions: &Extensions) -> Option<Instant> {
        extensions.get::<Deadline>().map(|Deadline(deadline)| *deadline)
    }
}

/// In the extensions of a request whose head was longer than [`HEADER_LIST_BYTES_MAX`].
#[derive(Clone, Copy)]
pub(crate) struct TooLong;

impl TooLong {
    /// The answer to such a request.
    pub(crate) fn refusal_of(extensions: &Extensions) -> Option<Status> {
        extensions.get::<Self>().map(|Self| {
            Status::resource_exhausted(format!(
                "the call's metadata has more than {HEADER_LIST_BYTES_MAX} bytes: send less"
            ))
        })
    }
}

/// A request with the part of its head that is used: path, encoding, deadline and key. The server calls this as soon as a
/// request arrives. The values are copied, because each of the original ones keeps the memory of all headers alive, and
/// a head lives as long as its call.
pub(crate) fn without_unused_headers<B>(request: Request<B>) -> Request<B> {
    let (head, body) = request.into_parts();
    let is_too_long = head_bytes(&head) > HEADER_LIST_BYTES_MAX;
    let mut kept = Request::new(body);
    *kept.method_mut() = head.method;
    *kept.version_mut() = head.version;
    *kept.extensions_mut() = head.extensions;
    if is_too_long {
        kept.extensions_mut().insert(TooLong);
    }
    let path = head.uri.path();
    if path.len() <= KEPT_PATH_BYTES_MAX
        && let Ok(path) = Uri::try_from(path.to_owned())
    {
        *kept.uri_mut() = path;
    }
    if let Some(encoding) = head.headers.get_all(ENCODING).iter().find(|encoding| *encoding != "identity") {
        let encoding = if encoding == "gzip" { "gzip" } else { "unknown" };
        kept.headers_mut().insert(ENCODING, HeaderValue::from_static(encoding));
    }
    if let Some(timeout) = timeout_of(&head.headers) {
        kept.extensions_mut().insert(Deadline(Instant::now() + timeout));
    }
    if let Some(key) = RequestKey::in_headers(&head.headers) {
        kept.extensions_mut().insert(key);
    }
    kept
}

/// The size of a head as RFC 9113, section 6.5.2, counts it: 32 bytes for each field besides its name and value.
fn head_bytes(head: &Parts) -> usize {
    const FIELD_BYTES: usize = 32;
    let target = [head.uri.scheme_str(), head.uri.authority().map(Authority::as_str), Some(head.uri.path())];
    let pseudo = target.into_iter().flatten().chain([head.method.as_str()]);
    let pseudo = pseudo.map(|value| ":authority".len() + value.len() + FIELD_BYTES);
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES);
    pseudo.chain(fields).sum()
}

/// The time that the client gives the call, as gRPC's PROTOCOL-HTTP2.md writes it: up to 8 digits and a unit.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    const DIGITS_MAX: usize = 8;
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u32 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(60 * 60) * value,
        "M" => Duration::from_secs(60) * value,
        "S" => Duration::from_secs(1) * value,
        "m" => Duration::from_millis(1) * value,
        "u" => Duration::from_micros(1) * value,
        "n" => Duration::from_nanos(1) * value,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn timeout(text: &'static str) -> Option<Duration> {
        timeout_of(&[(HeaderName::from_static(TIMEOUT), HeaderValue::from_static(text))].into_iter().collect())
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("3M"), Some(Duration::from_secs(180)));
        assert_eq!(timeout("4S"), Some(Duration::from_secs(4)));
        assert_eq!(timeout("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!((timeout("6u"), timeout("7n")), (Some(Duration::from_micros(6)), Some(Duration::from_nanos(7))));
        for wrong in ["", "S", "5", "123456789S", "1 S", "-1S", "+1S", "1s", "1.5S"] {
            assert_eq!(timeout(wrong), None, "{wrong:?}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }

    #[test]
    fn no_more_is_kept_of_a_head_than_is_used() {
        let long = "x".repeat(15_000);
        let request = Request::post(format!("http://{long}/Table/Upload?{long}"))
            .header("authorization", &long)
            .header(ENCODING, "identity")
            .header(ENCODING, &long)
            .header(TIMEOUT, "1S")
            .extension(7);
        let kept = without_unused_headers(request.body(()).expect("a request"));
        assert_eq!(kept.uri(), "/Table/Upload");
        assert_eq!(kept.headers().len(), 1);
        assert_eq!(kept.headers()[ENCODING], "unknown");
        assert_eq!(kept.extensions().get(), Some(&7));
        assert!(TooLong::refusal_of(kept.extensions()).is_some(), "it has more than 45,000 bytes");
        let left = Deadline::of(kept.extensions()).expect("a deadline") - Instant::now();
        assert!(left <= Duration::from_secs(1), "{left:?}");
        let elsewhere = Request::post(format!("/{long}")).body(()).expect("a request");
        let kept = without_unused_headers(elsewhere);
        assert_eq!(kept.uri(), "/");
        assert!(TooLong::refusal_of(kept.extensions()).is_none());
    }
}
