//! The idempotency key in a request's head, whatever its protocol: gRPC's metadata are HTTP headers.

use axum::http::{Extensions, HeaderMap};

use crate::{
    error::Error,
    model::idempotency_key::{IdempotencyKey, InvalidKey},
};

/// The header of a key.
pub(crate) const KEY_HEADER: &str = "idempotency-key";
/// The header of an answer to an upload whose key was used before, so that it added nothing.
pub(crate) const REPLAYED_HEADER: &str = "idempotency-replayed";

/// The key of a request, or that what it has is no key. It is in the extensions of gRPC requests, which do not keep their
/// headers.
#[derive(Clone, Debug)]
pub(crate) struct RequestKey(Result<IdempotencyKey, InvalidKey>);

impl RequestKey {
    /// The key in the headers of a request, if it has one.
    pub(crate) fn in_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(KEY_HEADER).iter();
        let key = IdempotencyKey::parse(values.next()?.as_bytes());
        Some(Self(if values.next().is_none() { key } else { Err(InvalidKey) }))
    }

    /// The key of a gRPC request. Errors: it is invalid.
    pub(crate) fn of(extensions: &Extensions) -> Result<Option<IdempotencyKey>, Error> {
        extensions.get::<Self>().cloned().map(Self::key).transpose()
    }

    /// Errors: it is invalid, or there is more than one.
    pub(crate) fn key(self) -> Result<IdempotencyKey, Error> {
        self.0.map_err(|invalid| Error::Malformed(invalid.to_string()))
    }
}
