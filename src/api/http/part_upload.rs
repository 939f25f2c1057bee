//! The handler that adds a part to the table: a file is the body of the request, or a field of a form.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    discard::{DISCARD_MAX, SHORT_DISCARD_MAX, discard},
    errors::{Failure, TaskError, interrupted, unsupported_encoding},
    file_form::FileForm,
    parts_json::{DialectQuery, PartReply, to_dialect},
    surface::Surface,
};
use crate::{
    api::{
        caller::Caller,
        idempotency::{REPLAYED_HEADER, RequestKey},
    },
    engine::{
        DialectFrom, UploadFrom, Uploaded,
        runtime::transfers::{Paced, Permit},
        state::transfers::Origin,
    },
    error::{Error, logged::Logged},
    model::part::Receipt,
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(add))
}

/// A form with a file, for the OpenAPI.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "it describes the body for the OpenAPI")]
struct PartForm {
    /// The file. Its name does not matter.
    #[schema(content_media_type = "text/csv", value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Adds a file of any size to the table, as one part. When the answer comes, the part is stored.
#[utoipa::path(
    post, path = "/api/v1/table/parts", tag = "table",
    params(DialectQuery, ("Idempotency-Key" = Option<String>, Header, description = "A repeated upload adds nothing")),
    request_body(
        content((String = "text/csv"), (PartForm = "multipart/form-data")),
        description = "The file itself, or a form with it in the field `file`"
    ),
    responses(
        (status = 201, description = "The part", body = PartReply),
        (status = 400, description = "The file is not valid, or a parameter is not known", body = Failure),
        (status = 403, description = "The request comes from a foreign page", body = Failure),
        (status = 408, description = "The body stopped arriving", body = Failure),
        (status = 409, description = "The Idempotency-Key was used for another file", body = Failure),
        (status = 415, description = "The body has a Content-Encoding", body = Failure),
        (status = 429, description = "The table or the disk is full, or too many calls with a long body or answer", body = Failure),
        (status = 503, description = "The server is shutting down", body = Failure)
    )
)]
async fn add(
    State(surface): State<Surface>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: Request,
) -> Result<Response, TaskError> {
    let Caller { origin, .. } = Caller::of(request.extensions());
    let (Parts { headers, .. }, body) = request.into_parts();
    let accepted = async {
        let from = to_upload(origin, parameters, &headers)?;
        Ok::<_, TaskError>((from, surface.long_call(origin, CancellationToken::new()).await?))
    };
    let (from, permit) = match accepted.await {
        Ok(accepted) => accepted,
        Err(error) => {
            discard(body.into_data_stream(), SHORT_DISCARD_MAX).await;
            return Err(error);
        }
    };
    let added = if is_form(&headers) {
        add_form(&surface, from, &headers, body, &permit).await
    } else {
        add_body(&surface, from, body, &permit).await
    };
    let Uploaded { receipt, replayed } = added?;
    let mut response = (StatusCode::CREATED, Json(PartReply::of(receipt))).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// What is known of an upload before its body is read.
fn to_upload(
    origin: Origin,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<UploadFrom, TaskError> {
    if let Some(encoding) = unsupported_encoding(headers) {
        let reason = format!("{encoding}, with the parameter decompress=auto");
        return Err(TaskError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding", reason));
    }
    let wrong = |error: QueryRejection| TaskError::new(StatusCode::BAD_REQUEST, "query", error.body_text());
    let Query(parameters) = parameters.map_err(wrong)?;
    let key = RequestKey::in_headers(headers).map(RequestKey::key).transpose();
    let key = key.map_err(|error| TaskError::from(error).of_field("Idempotency-Key"))?;
    Ok(UploadFrom { origin, key, dialect: DialectFrom::Call(to_dialect(parameters)?) })
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

async fn add_form(
    surface: &Surface,
    from: UploadFrom,
    headers: &HeaderMap,
    body: Body,
    permit: &Permit,
) -> Result<Uploaded, TaskError> {
    let mut form = FileForm::new(headers, body, permit.pace(), surface.idle_max).await?;
    let added = match form.only_file().await {
        Ok(file) => upload(surface, from, file).await,
        Err(error) => Err(error),
    };
    form.finish().await;
    added
}

async fn add_body(surface: &Surface, from: UploadFrom, body: Body, permit: &Permit) -> Result<Uploaded, TaskError> {
    let (tx, rx) = oneshot::channel();
    let body = LentBody { body: Some(body.into_data_stream()), lender: Some(tx) };
    let added = upload(surface, from, Paced::new(body, permit.pace(), surface.idle_max)).await;
    if added.is_err()
        && let Ok(rest) = rx.await
    {
        discard(rest, DISCARD_MAX).await;
    }
    added
}

async fn upload<S>(surface: &Surface, from: UploadFrom, file: S) -> Result<Uploaded, TaskError>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
{
    let added = surface.engine.upload_from(from, file).await;
    let refused = |error: &Error| tracing::warn!(call = "POST table/parts", error = %Logged(error), "refused");
    let uploaded = added.inspect_err(refused)?;
    let Receipt { part, rows, columns, csv, .. } = &uploaded.receipt;
    let (columns, bytes, replayed) = (columns.len(), csv.bytes, uploaded.replayed);
    tracing::info!(call = "POST table/parts", %part, rows, columns, bytes, replayed, "uploaded");
    Ok(uploaded)
}

/// A body that is given back when it has been read, or is not read any more: the rest is then dropped within bounds, so that
/// the client gets to read the answer.
struct LentBody {
    body: Option<BodyDataStream>,
    lender: Option<oneshot::Sender<BodyDataStream>>,
}

impl Stream for LentBody {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        body.poll_next_unpin(context).map(|piece| piece.map(|piece| piece.map_err(interrupted)))
    }
}

impl Drop for LentBody {
    fn drop(&mut self) {
        if let (Some(body), Some(lender)) = (self.body.take(), self.lender.take()) {
            // The lender is gone if the call was cancelled.
            let _nobody_waits = lender.send(body);
        }
    }
}
