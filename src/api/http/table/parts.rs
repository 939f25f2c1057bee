//! The handlers of single parts: their receipts and first rows, and how they are removed and restored.

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{Extensions, StatusCode},
    response::Response,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ids::{checked_limit, of_part, part_id},
    parts_json::{PartReply, PreviewReply},
    wide_receipt,
};
use crate::{
    access::{Allowed, audit, rules::PURGE},
    api::{
        caller::Caller,
        http::{
            no_query::NoQuery,
            problem::{Problem, ProblemDetails},
            surface::Surface,
        },
    },
    engine::RemovedPart,
    limits::PREVIEW_ROWS_MAX,
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(receipt, remove)).routes(routes!(rows)).routes(routes!(restore))
}

/// The receipt of a part.
#[utoipa::path(
    get, path = "/api/v1/table/parts/{part}", tag = "table",
    params(("part" = u64, Path, description = "The number of the part")),
    responses(
        (status = 200, description = "The receipt", body = PartReply),
        (status = 400, description = "The request has query parameters", body = ProblemDetails),
        (status = 404, description = "No such part, or it was removed", body = ProblemDetails),
        (status = 409, description = "It is in quarantine", body = ProblemDetails),
        (status = 429, description = "Too many receipts with many columns are read", body = ProblemDetails)
    )
)]
async fn receipt(
    State(surface): State<Surface>,
    _no_query: NoQuery,
    part: Result<Path<String>, PathRejection>,
    extensions: Extensions,
) -> Result<Response, Problem> {
    let id = part_id(part)?;
    let Caller { origin, .. } = Caller::of(&extensions);
    let permit = wide_receipt::permit(&surface, origin, id).await?;
    let receipt = surface.engine.receipt(id).await.map_err(of_part)?;
    Ok(wide_receipt::answer(PartReply::of(receipt), permit))
}

/// How many rows a preview has.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PreviewQuery {
    /// Rows, at most.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<usize>,
}

/// The first rows of a part, as texts of its CSV. A preview of a wide part or of long rows has fewer than were asked for.
#[utoipa::path(
    get, path = "/api/v1/table/parts/{part}/rows", tag = "table",
    params(("part" = u64, Path, description = "The number of the part"), PreviewQuery),
    responses(
        (status = 200, description = "The rows", body = PreviewReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails),
        (status = 404, description = "No such part, or it was removed", body = ProblemDetails),
        (status = 409, description = "It is in quarantine", body = ProblemDetails)
    )
)]
async fn rows(
    State(surface): State<Surface>,
    part: Result<Path<String>, PathRejection>,
    query: Result<Query<PreviewQuery>, QueryRejection>,
) -> Result<Json<PreviewReply>, Problem> {
    let id = part_id(part)?;
    let Query(PreviewQuery { limit }) = query?;
    let limit = checked_limit("limit", limit, 20, PREVIEW_ROWS_MAX)?;
    let preview = surface.engine.preview(id, limit).await.map_err(of_part)?;
    Ok(Json(PreviewReply::of(preview)))
}

/// How a part is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Removal {
    /// Delete its files at once, so that it cannot be restored.
    #[serde(default)]
    #[param(required = false)]
    purge: bool,
}

/// A part that was removed.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"part": 3, "parts": 11, "restorable_until": "2026-12-01T08:48:57Z"})))]
struct Removed {
    part: u64,
    /// How many parts the table has now.
    parts: usize,
    /// Until when it can be restored; null if it was purged.
    restorable_until: Option<String>,
}

/// Removes a part from the table. Its files are kept for some time, so that it can be restored.
#[utoipa::path(
    delete, path = "/api/v1/table/parts/{part}", tag = "table",
    params(("part" = u64, Path, description = "The number of the part"), Removal),
    responses(
        (status = 200, description = "It is removed, or was before", body = Removed),
        (status = 400, description = "The query is wrong", body = ProblemDetails),
        (status = 403, description = "The request comes from a foreign page, or its token does not allow this", body = ProblemDetails),
        (status = 404, description = "No such part, or it was purged", body = ProblemDetails),
        (status = 409, description = "It is in quarantine", body = ProblemDetails)
    )
)]
async fn remove(
    State(surface): State<Surface>,
    part: Result<Path<String>, PathRejection>,
    removal: Result<Query<Removal>, QueryRejection>,
    extensions: Extensions,
) -> Result<Json<Removed>, Problem> {
    let Query(Removal { purge }) = removal?;
    let id = part_id(part)?;
    audit::about_part(&extensions, id.get());
    if purge {
        Allowed::to(&extensions, PURGE).map_err(|refusal| Problem::new(StatusCode::FORBIDDEN, refusal.to_string()))?;
    }
    let removed = surface.engine.remove_part(id, purge).await;
    let RemovedPart { parts, restorable_until } = removed.map_err(of_part)?;
    Ok(Json(Removed { part: id.get(), parts, restorable_until }))
}

/// A part that was put back into the table.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"part": 3, "parts": 12})))]
struct Restored {
    part: u64,
    /// How many parts the table has now.
    parts: usize,
}

/// Puts a removed part back into the table. Restoring it again changes nothing.
#[utoipa::path(
    post, path = "/api/v1/table/parts/{part}/restore", tag = "table",
    params(("part" = u64, Path, description = "The number of the part")),
    responses(
        (status = 200, description = "It is in the table", body = Restored),
        (status = 400, description = "The request has query parameters", body = ProblemDetails),
        (status = 403, description = "The request comes from a foreign page", body = ProblemDetails),
        (status = 404, description = "It was not removed, or its files are gone", body = ProblemDetails)
    )
)]
async fn restore(
    State(surface): State<Surface>,
    _no_query: NoQuery,
    part: Result<Path<String>, PathRejection>,
    extensions: Extensions,
) -> Result<Json<Restored>, Problem> {
    let id = part_id(part)?;
    audit::about_part(&extensions, id.get());
    let parts = surface.engine.restore_part(id).await.map_err(of_part)?;
    Ok(Json(Restored { part: id.get(), parts }))
}
