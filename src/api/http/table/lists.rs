//! The handlers of lists: the parts page by page, the removed parts, and how the table has grown.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    ids::{checked_limit, checked_number},
    parts_json::{GrowthReply, PartsReply, RemovedReply},
};
use crate::{
    api::http::{
        problem::{Problem, ProblemDetails},
        surface::Surface,
    },
    engine::parts::listing::Order,
    limits::{GROWTH_POINTS_MAX, PARTS_LIST_BYTES, PARTS_LISTED_MAX, REMOVED_LISTED_MAX},
    model::part::PartId,
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(removed)).routes(routes!(growth))
}

/// Which parts are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Parts with larger numbers: `next` of the page before. Not with `order=newest`.
    after: Option<u64>,
    /// Parts with smaller numbers: `next` of the page before. Only with `order=newest`.
    before: Option<u64>,
    /// Parts in the page, at most. A page may have fewer: `next` says whether more follow.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// The order of the parts.
    #[param(inline)]
    order: Option<ListOrder>,
}

/// The order of a list of parts.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ListOrder {
    /// By number.
    Oldest,
    /// By number, the largest first.
    Newest,
}

impl ListQuery {
    /// The order, and the part beyond which the page begins.
    fn beginning(&self) -> Result<(Order, Option<PartId>), Problem> {
        match (self.order.unwrap_or(ListOrder::Oldest), self.after, self.before) {
            (ListOrder::Oldest, after, None) => Ok((Order::OldestFirst, after_part(after)?)),
            // No part is before the first one.
            (ListOrder::Newest, None, before) => {
                let before = checked_number("before", before)?;
                Ok((Order::NewestFirst, before.map(|id| PartId::new(id).unwrap_or(PartId::FIRST))))
            }
            (ListOrder::Oldest, _, Some(_)) => Err(Problem::bad_request("before", "before is for order=newest")),
            (ListOrder::Newest, Some(_), _) => {
                Err(Problem::bad_request("after", "after is not for order=newest, which takes before"))
            }
        }
    }
}

/// The part after which a page begins; `None` for the first page.
fn after_part(after: Option<u64>) -> Result<Option<PartId>, Problem> {
    Ok(checked_number("after", after)?.and_then(PartId::new))
}

/// The parts of the table, page by page.
#[utoipa::path(
    get, path = "/api/v1/table/parts", tag = "table", params(ListQuery),
    responses(
        (status = 200, description = "A page of them", body = PartsReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails)
    )
)]
async fn list(
    State(surface): State<Surface>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<PartsReply>, Problem> {
    let Query(query) = query?;
    let (order, beyond) = query.beginning()?;
    let limit = checked_limit("limit", query.limit, 100, PARTS_LISTED_MAX)?;
    let list = surface.engine.list_parts(order, beyond, limit, PARTS_LIST_BYTES).await?;
    Ok(Json(PartsReply::of(list)))
}

/// Which removed parts are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct RemovedQuery {
    /// Parts with larger numbers: `next` of the page before.
    after: Option<u64>,
}

/// The removed parts that can be restored, page by page.
#[utoipa::path(
    get, path = "/api/v1/table/removed", tag = "table", params(RemovedQuery),
    responses(
        (status = 200, description = "A page of them", body = RemovedReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails)
    )
)]
async fn removed(
    State(surface): State<Surface>,
    query: Result<Query<RemovedQuery>, QueryRejection>,
) -> Result<Json<RemovedReply>, Problem> {
    let Query(RemovedQuery { after }) = query?;
    let removed = surface.engine.removed_parts(after_part(after)?, REMOVED_LISTED_MAX);
    Ok(Json(RemovedReply::of(removed)))
}

/// How many points the growth has.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct GrowthQuery {
    /// Points, at most.
    #[param(minimum = 1, maximum = 200, default = 200)]
    points: Option<usize>,
}

/// The size of the table after some of its parts, in even steps. Removed parts do not count.
#[utoipa::path(
    get, path = "/api/v1/table/growth", tag = "table", params(GrowthQuery),
    responses(
        (status = 200, description = "The points", body = GrowthReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails)
    )
)]
async fn growth(
    State(surface): State<Surface>,
    query: Result<Query<GrowthQuery>, QueryRejection>,
) -> Result<Json<GrowthReply>, Problem> {
    let Query(GrowthQuery { points }) = query?;
    let points = checked_limit("points", points, GROWTH_POINTS_MAX, GROWTH_POINTS_MAX)?;
    Ok(Json(GrowthReply::of(surface.engine.growth(points).await?)))
}
