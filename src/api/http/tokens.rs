//! What a page has to know of its token, and tickets for its downloads.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{Extensions, StatusCode},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    no_query::NoQuery,
    problem::{Problem, ProblemDetails},
    surface::Surface,
};
use crate::{
    access::Allowed,
    error::Error,
    limits::{TICKET_S, URI_BYTES_MAX},
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(token)).routes(routes!(ticket))
}

/// The token of a request.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"name": "viewer", "scope": "read"})))]
struct TokenReply {
    /// Its name; null if the server has no tokens.
    name: Option<String>,
    /// What it allows: read, write or admin; null if the server has no tokens, and anyone may do anything.
    scope: Option<&'static str>,
}

/// Which token the request has, and what it allows.
#[utoipa::path(
    get, path = "/api/v1/token", tag = "server",
    responses(
        (status = 200, description = "The token", body = TokenReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails)
    )
)]
async fn token(_no_query: NoQuery, extensions: Extensions) -> Json<TokenReply> {
    let identity = extensions.get().and_then(|Allowed(identity)| identity.as_ref());
    let name = identity.map(|identity| identity.name.to_string());
    Json(TokenReply { name, scope: identity.map(|identity| identity.scope.name()) })
}

/// What a ticket is for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct TicketQuery {
    /// The path, with its query, that will be downloaded with it.
    #[param(example = "/api/v1/table/parts/1/csv", pattern = "^/", max_length = 1024)]
    target: String,
}

/// A ticket.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"ticket": "0.6b5f", "seconds": 30})))]
struct TicketReply {
    /// To be added to the target as the query parameter `ticket`. Null if the server has no tokens.
    ticket: Option<String>,
    /// How long it can be used, once.
    seconds: u64,
}

/// A ticket for one download by a browser, which sends no header when it follows a link. It can be used once.
#[utoipa::path(
    post, path = "/api/v1/tickets", tag = "server", params(TicketQuery),
    responses(
        (status = 201, description = "The ticket", body = TicketReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails)
    )
)]
async fn ticket(
    State(surface): State<Surface>,
    extensions: Extensions,
    query: Result<Query<TicketQuery>, QueryRejection>,
) -> Result<(StatusCode, Json<TicketReply>), Problem> {
    let Query(TicketQuery { target }) = query?;
    if !target.starts_with('/') || target.len() > URI_BYTES_MAX {
        return Err(Problem::bad_request("target", "it must be a path of this server"));
    }
    let owner = extensions.get().and_then(|Allowed(identity)| identity.clone());
    let issued = owner.map(|owner| surface.access.tickets().issue(owner, &target)).transpose();
    let ticket = issued.map_err(|error| Problem::from(Error::io("random numbers")(error)))?;
    Ok((StatusCode::CREATED, Json(TicketReply { ticket, seconds: TICKET_S })))
}
