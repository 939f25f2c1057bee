//! The handler that all Upload calls share.

use futures_util::TryStreamExt;
use tonic::Extensions;

use super::{call_log::CallLog, client_body::ContentStream, convert::from_status};
use crate::{
    api::caller::Caller,
    engine::Engine,
    error::{Error, logged::Logged},
    model::part::Receipt,
};

/// Passes the content of an upload to the engine, and logs how it ended. `request`: its extensions.
pub(super) async fn upload(
    engine: &Engine,
    request: &Extensions,
    content: ContentStream,
    call: &'static str,
) -> Result<Receipt, Error> {
    let log = CallLog::start(call, request);
    let Caller { origin, .. } = Caller::of(request);
    let body = content.map_err(|status| from_status(&status));
    let result = engine.upload_from(origin, body).await;
    let (peer, duration_ms) = (log.peer(), log.end());
    match &result {
        Ok(receipt) => {
            let (part, rows, bytes) = (receipt.part, receipt.rows, receipt.csv.bytes);
            tracing::info!(call, peer, %part, rows, columns = receipt.columns.len(), bytes, duration_ms, "uploaded");
        }
        Err(error) => tracing::warn!(call, peer, error = %Logged(error), duration_ms, "refused"),
    }
    result
}
