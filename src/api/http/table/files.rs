//! The handlers that send the files of a part.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::ids::{of_part, part_id};
use crate::{
    api::http::{
        download::{FileHead, NotSent, is_known, send, unsatisfiable},
        no_query::NoQuery,
        problem::{Problem, ProblemDetails},
        surface::Surface,
    },
    model::format::Format,
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(csv)).routes(routes!(parquet))
}

/// The CSV of a part, byte for byte, or a range of it. No byte is sent that is not what was stored.
#[utoipa::path(
    get, path = "/api/v1/table/parts/{part}/csv", tag = "table",
    params(
        ("part" = u64, Path, description = "The number of the part"),
        ("Range" = Option<String>, Header, description = "A single range of bytes", example = "bytes=0-99"),
        ("If-Range" = Option<String>, Header, description = "The ETag for which the range is meant"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of the file that the client has")
    ),
    responses(
        (status = 200, description = "The whole file", body = String, content_type = "text/csv; charset=utf-8"),
        (status = 206, description = "The range of the file", body = String, content_type = "text/csv; charset=utf-8"),
        (status = 304, description = "The client has the file"),
        (status = 400, description = "The request has query parameters", body = ProblemDetails),
        (status = 404, description = "No such part, or it was removed", body = ProblemDetails),
        (status = 409, description = "It is in quarantine", body = ProblemDetails),
        (status = 416, description = "The file has no such bytes", body = ProblemDetails),
        (status = 429, description = "Too many calls with a long body or answer", body = ProblemDetails)
    )
)]
async fn csv(
    State(surface): State<Surface>,
    _no_query: NoQuery,
    part: Result<Path<String>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    send_file(&surface, part, Format::Csv, &method, &headers).await
}

/// The Parquet file of a part, or a range of it. No byte is sent that is not what was stored.
#[utoipa::path(
    get, path = "/api/v1/table/parts/{part}/parquet", tag = "table",
    params(
        ("part" = u64, Path, description = "The number of the part"),
        ("Range" = Option<String>, Header, description = "A single range of bytes", example = "bytes=0-99"),
        ("If-Range" = Option<String>, Header, description = "The ETag for which the range is meant"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of the file that the client has")
    ),
    responses(
        (status = 200, description = "The whole file", body = [u8], content_type = "application/vnd.apache.parquet"),
        (status = 206, description = "The range of the file", body = [u8], content_type = "application/vnd.apache.parquet"),
        (status = 304, description = "The client has the file"),
        (status = 400, description = "The request has query parameters", body = ProblemDetails),
        (status = 404, description = "No such part, or it was removed", body = ProblemDetails),
        (status = 409, description = "It is in quarantine", body = ProblemDetails),
        (status = 416, description = "The file has no such bytes", body = ProblemDetails),
        (status = 429, description = "Too many calls with a long body or answer", body = ProblemDetails)
    )
)]
async fn parquet(
    State(surface): State<Surface>,
    _no_query: NoQuery,
    part: Result<Path<String>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    send_file(&surface, part, Format::Parquet, &method, &headers).await
}

async fn send_file(
    surface: &Surface,
    part: Result<Path<String>, PathRejection>,
    format: Format,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let id = part_id(part)?;
    let file = surface.engine.open_part_file(id, format).await.map_err(of_part)?;
    let tag = format!("\"{}\"", file.xxh3());
    if is_known(headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let content_type = match format {
        Format::Csv => "text/csv; charset=utf-8",
        Format::Parquet => "application/vnd.apache.parquet",
    };
    let head = FileHead { tag, content_type, name: format!("\"{id}.{format}\"") };
    match send(file, head, method, headers, None).await {
        Ok(answer) => Ok(answer),
        Err(NotSent::Failed(error)) => Err(of_part(error)),
        Err(NotSent::Unsatisfiable { bytes }) => {
            let detail = format!("the file has {bytes} bytes");
            Ok(unsatisfiable(bytes, Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, detail).of_field("Range")))
        }
    }
}
