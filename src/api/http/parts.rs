//! The handlers of the table's parts.

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    errors::{Failure, TaskError},
    surface::Surface,
};
use crate::{engine::RemovedPart, error::Error, model::part::PartId};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(remove))
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
    /// Until when `tally restore` can bring it back; null if it was purged.
    restorable_until: Option<String>,
}

/// Removes a part from the table. Its files are kept for some time, so that it can be restored.
#[utoipa::path(
    delete, path = "/api/v1/table/parts/{part}", tag = "table",
    params(("part" = u64, Path, description = "The number of the part"), Removal),
    responses(
        (status = 200, description = "It is removed, or was before", body = Removed),
        (status = 400, description = "The query is wrong", body = Failure),
        (status = 403, description = "The request comes from a foreign page", body = Failure),
        (status = 404, description = "No such part", body = Failure),
        (status = 409, description = "It is in quarantine", body = Failure)
    )
)]
async fn remove(
    State(surface): State<Surface>,
    part: Result<Path<String>, PathRejection>,
    removal: Result<Query<Removal>, QueryRejection>,
) -> Result<Json<Removed>, TaskError> {
    let wrong = |error: QueryRejection| TaskError::new(StatusCode::BAD_REQUEST, "query", error.body_text());
    let Query(Removal { purge }) = removal.map_err(wrong)?;
    let id = part.ok().and_then(|Path(text)| PartId::parse(&text)).ok_or(Error::NoSuchPart { part: 0 });
    let removed = async {
        let id = id?;
        Ok::<_, Error>((id, surface.engine.remove_part(id, purge).await?))
    };
    let (id, removed) = removed.await.map_err(|error| TaskError::from(error).of_field("part"))?;
    let RemovedPart { parts, restorable_until } = removed;
    Ok(Json(Removed { part: id.get(), parts, restorable_until }))
}
