//! The handler that adds parts to the table: a file is the body of the request, or files are fields of a form.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{Extensions, HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dialect::{DialectQuery, to_dialect},
    parts_json::PartReply,
};
use crate::{
    access::{Allowed, audit::Added},
    api::{
        caller::Caller,
        http::{
            discard::{DISCARD_MAX, SHORT_DISCARD_MAX, discard},
            errors::interrupted,
            file_form::{FileForm, NamedFile, no_file},
            problem::{Problem, ProblemDetails},
            surface::Surface,
        },
        idempotency::{REPLAYED_HEADER, RequestKey},
        metered::{Adds, metered},
    },
    engine::{
        DialectFrom, UploadFrom, Uploaded,
        runtime::transfers::{Paced, Permit},
        state::transfers::Origin,
    },
    error::{Error, logged::Logged, quoted::Quoted},
    limits::{FORM_ANSWER_BYTES, FORM_FILES_MAX},
    model::{
        dialect::{Decompress, Dialect},
        idempotency_key::{IdempotencyKey, InvalidKey},
        part::Receipt,
    },
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(add))
}

/// A form with files, for the OpenAPI.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "it describes the body for the OpenAPI")]
struct PartForm {
    /// One or more files, each in a field with this name. The names of the files do not matter.
    #[schema(content_media_type = "text/csv", value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Adds a file of any size to the table, as one part, or several files of a form. When the answer comes, they are stored.
#[utoipa::path(
    post, path = "/api/v1/table/parts", tag = "table",
    params(
        DialectQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "A repeated upload adds nothing"),
        ("Content-Encoding" = Option<String>, Header, description = "gzip or zstd: the stored CSV is the decoded body")
    ),
    request_body(
        content((String = "text/csv"), (PartForm = "multipart/form-data")),
        description = "The file itself, or a form with files, each in a field `file`"
    ),
    responses(
        (status = 201, description = "The part, or the parts of several files", body = UploadReply),
        (status = 400, description = "The file is not valid, or a parameter is not known", body = ProblemDetails),
        (status = 403, description = "The request comes from a foreign page", body = ProblemDetails),
        (status = 408, description = "The body stopped arriving", body = ProblemDetails),
        (status = 409, description = "The Idempotency-Key was used for another file", body = ProblemDetails),
        (status = 415, description = "The body has another Content-Encoding", body = ProblemDetails),
        (status = 429, description = "The table or the disk is full, or too many calls with a long body or answer", body = ProblemDetails),
        (status = 503, description = "The server is shutting down", body = ProblemDetails)
    )
)]
async fn add(
    State(surface): State<Surface>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Caller { origin, .. } = Caller::of(request.extensions());
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let accepted = async {
        let call = UploadCall::of(origin, parameters, &headers, extensions)?;
        Ok::<_, Problem>((call, surface.long_call(origin, CancellationToken::new()).await?))
    };
    match accepted.await {
        Ok((call, permit)) if is_form(&headers) => add_form(&surface, &call, &headers, body, &permit).await,
        Ok((call, permit)) => add_body(&surface, &call, body, &permit).await,
        Err(problem) => {
            discard(body.into_data_stream(), SHORT_DISCARD_MAX).await;
            Err(problem)
        }
    }
}

/// What is known of an upload before its body is read.
struct UploadCall {
    origin: Origin,
    key: Option<IdempotencyKey>,
    dialect: Option<Dialect>,
    /// Those of the request, for the quota of its caller.
    extensions: Extensions,
}

impl UploadCall {
    fn of(
        origin: Origin,
        parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
        headers: &HeaderMap,
        extensions: Extensions,
    ) -> Result<Self, Problem> {
        let encoding = encoding_of(headers)?;
        let Query(parameters) = parameters?;
        let mut dialect = to_dialect(parameters)?;
        if encoding.is_some() {
            let of_file = &mut dialect.get_or_insert_default().decompress;
            if of_file.is_some() {
                let detail = "the body has a Content-Encoding, and the parameter decompress is for a file that is compressed \
                              in itself: send one of the two";
                return Err(Problem::bad_request("decompress", detail));
            }
            *of_file = encoding;
        }
        let key = RequestKey::in_headers(headers).map(RequestKey::key).transpose();
        let key = key.map_err(|error| Problem::from(error).of_field("Idempotency-Key"))?;
        Ok(Self { origin, key, dialect, extensions })
    }

    /// The upload of a file at an index of the form. The first file has the key of the call, so that it does not matter whether
    /// a single file is sent in a form.
    fn upload(&self, index: usize) -> Result<UploadFrom, Problem> {
        let key = match &self.key {
            Some(key) if index > 0 => {
                let invalid = |error: InvalidKey| {
                    let detail = format!("with /{index} after it for this file, it is too long: {error}");
                    Problem::bad_request("Idempotency-Key", detail)
                };
                Some(IdempotencyKey::parse(format!("{key}/{index}").as_bytes()).map_err(invalid)?)
            }
            key => key.clone(),
        };
        Ok(UploadFrom { origin: self.origin, key, dialect: DialectFrom::Call(self.dialect.clone()) })
    }
}

/// The Content-Encoding of a request. Errors: one that is not known here, or several.
fn encoding_of(headers: &HeaderMap) -> Result<Option<Decompress>, Problem> {
    let values =
        headers.get_all(header::CONTENT_ENCODING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let list = values.collect::<Vec<_>>().join(",").to_ascii_lowercase();
    let mut names = list.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "identity");
    let encoding = match (names.next(), names.next()) {
        (None, _) => return Ok(None),
        (Some("gzip" | "x-gzip"), None) => Decompress::Gzip,
        (Some("zstd"), None) => Decompress::Zstd,
        _unknown => {
            let detail =
                format!("Content-Encoding {} is not supported: send gzip, zstd, or the file as it is", Quoted(&list));
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).of_field("Content-Encoding"));
        }
    };
    if is_form(headers) {
        let detail = "a form cannot have a Content-Encoding: compress its files, and send them with decompress=auto";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).of_field("Content-Encoding"));
    }
    Ok(Some(encoding))
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

async fn add_form(
    surface: &Surface,
    call: &UploadCall,
    headers: &HeaderMap,
    body: Body,
    permit: &Permit,
) -> Result<Response, Problem> {
    let mut form = FileForm::new(headers, body, permit.pace(), surface.idle_max).await?;
    let mut added = AddedFiles::default();
    let result = add_files(surface, call, &mut form, &mut added).await;
    form.finish().await;
    result.map(|()| added.answer())
}

/// Adds the files of a form in their order, until one is refused.
async fn add_files(
    surface: &Surface,
    call: &UploadCall,
    form: &mut FileForm,
    added: &mut AddedFiles,
) -> Result<(), Problem> {
    loop {
        let (index, uploaded) = (added.parts.len(), added.numbers());
        let Some(NamedFile { name, content }) = form.next_file().await.map_err(|error| match index {
            0 => Problem::from(error),
            _ => Problem::from(error).of_file(None, index, uploaded.clone()),
        })?
        else {
            return if index > 0 { Ok(()) } else { Err(no_file().into()) };
        };
        let of_file = |problem: Problem| problem.of_file(Some(&name), index, uploaded.clone());
        if index == FORM_FILES_MAX {
            let detail = format!("the form has more than {FORM_FILES_MAX} files: send the others in another request");
            return Err(of_file(Problem::bad_request("file", detail)));
        }
        let from = call.upload(index).map_err(of_file)?;
        added.push(upload(surface, &call.extensions, from, content).await.map_err(of_file)?);
    }
}

/// The parts that were added by a request.
#[derive(Default)]
struct AddedFiles {
    parts: Vec<PartReply>,
    /// Bytes of their receipts as JSON, about.
    json_bytes: usize,
    /// How many were added before, with the same key.
    replayed: usize,
}

impl AddedFiles {
    /// Keeps a receipt for the answer. If they are too long together, their columns are left out: an answer that is not read
    /// stays in memory.
    fn push(&mut self, uploaded: Uploaded) {
        self.replayed += usize::from(uploaded.replayed);
        self.parts.push(PartReply::of(uploaded.receipt));
        self.json_bytes = self.parts.iter().map(PartReply::json_bytes).sum();
        if self.json_bytes > FORM_ANSWER_BYTES {
            self.parts.iter_mut().for_each(PartReply::leave_columns_out);
        }
    }

    fn numbers(&self) -> Vec<u64> {
        self.parts.iter().map(PartReply::part).collect()
    }

    fn answer(mut self) -> Response {
        let is_replayed = self.replayed == self.parts.len();
        match self.parts.len() {
            1 => created(UploadReply::One(Box::new(self.parts.remove(0))), is_replayed),
            _ => created(UploadReply::Several(AddedReply { parts: self.parts }), is_replayed),
        }
    }
}

/// What was added: the receipt of the part, or of each of several. Columns are left out if they take more than 64 KiB.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum UploadReply {
    One(Box<PartReply>),
    Several(AddedReply),
}

/// The parts of several files, in their order. The columns of receipts are left out if they are too many.
#[derive(Serialize, utoipa::ToSchema)]
struct AddedReply {
    parts: Vec<PartReply>,
}

fn created(reply: UploadReply, is_replayed: bool) -> Response {
    let mut response = (StatusCode::CREATED, Json(reply)).into_response();
    if is_replayed {
        response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    response
}

async fn add_body(surface: &Surface, call: &UploadCall, body: Body, permit: &Permit) -> Result<Response, Problem> {
    let (tx, rx) = oneshot::channel();
    let body = LentBody { body: Some(body.into_data_stream()), lender: Some(tx) };
    let body = Paced::new(body, permit.pace(), surface.idle_max);
    let added = upload(surface, &call.extensions, call.upload(0)?, body).await;
    if added.is_err()
        && let Ok(rest) = rx.await
    {
        discard(rest, DISCARD_MAX).await;
    }
    let mut files = AddedFiles::default();
    files.push(added?);
    Ok(files.answer())
}

async fn upload<S>(surface: &Surface, request: &Extensions, from: UploadFrom, file: S) -> Result<Uploaded, Problem>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
{
    let adds = Adds::Part(&surface.engine, from.key.clone());
    let run = |file| surface.engine.upload_from(from, file);
    let added = metered(request, adds, file, run, |uploaded| !uploaded.replayed).await;
    let refused = |error: &Error| tracing::warn!(call = "POST table/parts", error = %Logged(error), "refused");
    let uploaded = added.inspect_err(refused).map_err(|error| Problem::from(error).of_input("file"))?;
    let Receipt { part, rows, columns, csv, .. } = &uploaded.receipt;
    let (columns, bytes, replayed) = (columns.len(), csv.bytes, uploaded.replayed);
    Allowed::added(request, Added { part: part.get(), rows: *rows, bytes, replayed });
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
