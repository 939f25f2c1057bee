//! JSON bodies, which are read into memory.
//!
//! Invariant: the bytes in memory are bounded by `limits.rs`, whatever the client announces or sends.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::BodyDataStream,
    extract::{FromRequest, Request},
    http::StatusCode,
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    access_log::{log_parameters, shortened},
    discard::{DISCARD_MAX, SHORT_DISCARD_MAX, discard},
    errors::{StatisticsError, interrupted, unsupported_encoding},
    surface::Surface,
};
use crate::{
    api::caller::Caller,
    engine::state::transfers::{Origin, Pace},
    error::{Error, jobs::JobError},
    limits::{JSON_BYTES_MAX, TRANSFER_SHORT_GRACE_S},
};

/// How long a JSON body may take before its call counts as a long one.
const SHORT_BODY_MAX: Duration = Duration::from_secs(1);

/// Some programs write it before the JSON. RFC 8259, section 8.1, lets a reader ignore it.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A request's body as a JSON object. Its content type is ignored, as the original servers did.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned + std::fmt::Debug> FromRequest<Surface> for JsonBody<T> {
    type Rejection = StatisticsError;

    async fn from_request(request: Request, surface: &Surface) -> Result<Self, StatisticsError> {
        let Caller { origin, .. } = Caller::of(request.extensions());
        let encoding = unsupported_encoding(request.headers());
        let body = request.into_body().into_data_stream();
        if !surface.takes_jobs() {
            discard(body, SHORT_DISCARD_MAX).await;
            return Err(Error::from(JobError::Refused).into()); // whatever the body says
        }
        if let Some(encoding) = encoding {
            discard(body, DISCARD_MAX).await;
            return Err(StatisticsError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, encoding));
        }
        let bytes = read_in_time(body, origin, surface).await?;
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
        let refused = |reason: String| StatisticsError::new(StatusCode::BAD_REQUEST, reason);
        // serde would accept an array with the values of the fields in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(refused("the body is no JSON object".to_owned()));
        }
        // serde's text may quote a part of the body, whatever its length.
        let text_of = |error: serde_json::Error| format!("the body: {}", shortened(&error.to_string()));
        let parameters = serde_json::from_slice(bytes).map_err(|error| refused(text_of(error)))?;
        log_parameters(&parameters);
        Ok(Self(parameters))
    }
}

/// Reads the body of a client that may be slow. If it takes more than a moment, the call needs the permit of a long call.
async fn read_in_time(body: BodyDataStream, origin: Origin, surface: &Surface) -> Result<Vec<u8>, StatisticsError> {
    let long_call = PaceReporter::default();
    let mut reading = std::pin::pin!(read_json(body, &long_call));
    if let Ok(read) = timeout(SHORT_BODY_MAX, &mut reading).await {
        return read;
    }
    let end = CancellationToken::new();
    let permit = tokio::select! {
        read = &mut reading => return read,
        permit = surface.long_call(origin, end.clone()) => permit.map_err(StatisticsError::from)?,
    };
    long_call.begin(permit.pace());
    let seconds = surface.idle_max.as_secs();
    let reason = format!("the body did not come within {seconds} s");
    let too_slow = StatisticsError::new(StatusCode::REQUEST_TIMEOUT, reason);
    tokio::select! {
        read = timeout(surface.idle_max, reading) => read.unwrap_or(Err(too_slow)),
        () = end.cancelled() => Err(Error::TooSlow { seconds: TRANSFER_SHORT_GRACE_S }.into()),
    }
}

/// Reports to the pace of a permit whether the call waits for its client. The call may get the permit later: until then
/// only the state is kept.
#[derive(Default)]
struct PaceReporter {
    pace: OnceLock<Arc<Pace>>,
    is_waiting: AtomicBool,
}

impl PaceReporter {
    /// The call has got its permit.
    fn begin(&self, pace: Arc<Pace>) {
        let pace = self.pace.get_or_init(|| pace);
        if self.is_waiting.load(Ordering::Relaxed) {
            pace.waits();
        }
    }

    /// The call waits for its client from now on.
    fn waits(&self) {
        self.is_waiting.store(true, Ordering::Relaxed);
        self.pace.get().into_iter().for_each(|pace| pace.waits());
    }

    /// Bytes have arrived. The call does not wait any more.
    fn received(&self, bytes: usize) {
        self.is_waiting.store(false, Ordering::Relaxed);
        self.pace.get().into_iter().for_each(|pace| pace.moved(bytes));
    }
}

/// Reads the body of a call, and reports to `long_call` while it waits for the client.
async fn read_json(mut body: BodyDataStream, long_call: &PaceReporter) -> Result<Vec<u8>, StatisticsError> {
    let mut bytes = Vec::new();
    loop {
        long_call.waits();
        let piece = body.next().await.transpose().map_err(|error| StatisticsError::from(interrupted(error)))?;
        long_call.received(piece.as_ref().map_or(0, Bytes::len));
        let Some(piece) = piece else { return Ok(bytes) };
        if bytes.len() + piece.len() > JSON_BYTES_MAX {
            drop(bytes);
            discard(body, DISCARD_MAX).await;
            let reason = format!("the body has more than {JSON_BYTES_MAX} bytes");
            return Err(StatisticsError::new(StatusCode::PAYLOAD_TOO_LARGE, reason));
        }
        // Exactly the limit: a vector that grows by itself takes up to twice as much.
        bytes.reserve_exact(JSON_BYTES_MAX - bytes.len());
        bytes.extend_from_slice(&piece);
    }
}
