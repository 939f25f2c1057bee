//! The handler that all Upload calls share.

use futures_util::TryStreamExt;
use tonic::{Extensions, Response, metadata::MetadataValue};

use super::{call_log::CallLog, client_body::ContentStream, convert::from_status};
use crate::{
    access::{
        Allowed,
        audit::{self, Added},
    },
    api::{
        caller::Caller,
        idempotency::{REPLAYED_HEADER, RequestKey},
        metered::{Adds, metered},
    },
    engine::{DialectFrom, Engine, UploadFrom, Uploaded},
    error::{Error, logged::Logged},
};

/// An answer to an upload. If it added nothing because its key was used, the metadata say so.
pub(super) fn answer<T>(message: T, replayed: bool) -> Response<T> {
    let mut response = Response::new(message);
    if replayed {
        response.metadata_mut().insert(REPLAYED_HEADER, MetadataValue::from_static("true"));
    }
    response
}

/// Passes the content of an upload to the engine, and logs how it ended. `request`: its extensions.
pub(super) async fn upload(
    engine: &Engine,
    request: &Extensions,
    content: ContentStream,
    dialect: DialectFrom,
    call: &'static str,
) -> Result<Uploaded, Error> {
    let log = CallLog::start(call, request);
    let Caller { origin, .. } = Caller::of(request);
    let body = content.map_err(|status| from_status(&status));
    let result = async {
        let from = UploadFrom { origin, key: RequestKey::of(request)?, dialect };
        let adds = Adds::Part(engine, from.key.clone());
        metered(request, adds, body, |body| engine.upload_from(from, body), |uploaded| !uploaded.replayed).await
    };
    let result = result.await;
    let (peer, duration_ms) = (log.peer(), log.end());
    match &result {
        Ok(Uploaded { receipt, replayed }) => {
            let (part, rows, bytes) = (receipt.part.get(), receipt.rows, receipt.csv.bytes);
            Allowed::added(request, Added { part, rows, bytes, replayed: *replayed });
        }
        Err(_) => audit::failed(request),
    }
    match &result {
        Ok(Uploaded { receipt, replayed: true }) => {
            tracing::info!(call, peer, part = %receipt.part, duration_ms, "uploaded before with the same key");
        }
        Ok(Uploaded { receipt, replayed: false }) => {
            let (part, rows, bytes) = (receipt.part, receipt.rows, receipt.csv.bytes);
            tracing::info!(call, peer, %part, rows, columns = receipt.columns.len(), bytes, duration_ms, "uploaded");
        }
        Err(error) => tracing::warn!(call, peer, error = %Logged(error), duration_ms, "refused"),
    }
    result
}
