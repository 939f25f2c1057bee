//! The OpenAPI 3.1 description, generated from the handlers, and the Swagger page that shows it, whose assets are in the
//! binary.

use axum::{
    Router,
    http::{HeaderValue, header},
    response::{Redirect, Response},
    routing::get,
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, ContentBuilder, HeaderBuilder, Object, Ref, RefOr, ResponseBuilder, Type,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use super::{
    paths::{SWAGGER_PATH, is_problem_path, is_statistics_path},
    problem::PROBLEM_JSON,
    surface::Surface,
};
use crate::limits::{HTTP_BUFFER_BYTES, HTTP_HEADERS_MAX, KIB, URI_BYTES_MAX};

const OPENAPI_PATH: &str = "/api/v1/openapi.json";
/// Where the original file-processing server has its description and its second page: they lead to ours.
const ORIGINAL_PATHS: [(&str, &str); 2] =
    [("/api/v1/docs/openapi.json", OPENAPI_PATH), ("/api/v1/docs/redoc", SWAGGER_PATH)];

#[derive(OpenApi)]
#[openapi(
    info(title = "Tally", description = "A table of CSV files: upload them, look at them, and ask."),
    tags(
        (name = "statistics", description = "Means of a survey over all parts of the table"),
        (name = "table", description = "The parts of the table"),
        (name = "file processing", description = "Group sums of a file that is sent along"),
        (name = "server", description = "What the server does: all jobs, and events"),
        (name = "probes", description = "For orchestrators and Prometheus")
    ),
    security((), ("token" = [])),
    modifiers(&TokenSchemes)
)]
struct Description;

struct TokenSchemes;

impl Modify for TokenSchemes {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for name in ["token", "admin_token"] {
            let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
            openapi.components.get_or_insert_default().add_security_scheme(name, bearer);
        }
    }
}

/// The routes, with those of their description and of the Swagger page.
pub(super) fn with_docs(routes: OpenApiRouter<Surface>) -> Router<Surface> {
    let (router, mut description) = OpenApiRouter::with_openapi(Description::openapi()).merge(routes).split_for_parts();
    add_shared_answers(&mut description);
    // By default the page asks a server on the internet to validate the description.
    let config = utoipa_swagger_ui::Config::default().validator_url("none");
    let page = Router::from(SwaggerUi::new(SWAGGER_PATH).config(config).url(OPENAPI_PATH, description));
    let router = router.merge(page.layer(axum::middleware::map_response(harden)));
    ORIGINAL_PATHS
        .into_iter()
        .fold(router, |router, (from, to)| router.route(from, get(async || Redirect::temporary(to))))
}

/// Adds the answers that do not come from the handlers: refusals before them, failures, and `Retry-After`.
fn add_shared_answers(description: &mut utoipa::openapi::OpenApi) {
    for (path, item) in &mut description.paths.paths {
        let is_statistics = is_statistics_path(path);
        let is_problem = is_problem_path(path);
        let (form, media_type) = match () {
            () if is_statistics => ("StatisticsError", "application/json"),
            () if is_problem => ("ProblemDetails", PROBLEM_JSON),
            () => ("Failure", "application/json"),
        };
        let in_form = |what: &str| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(form))).build();
            ResponseBuilder::new().description(what).content(media_type, content)
        };
        for operation in [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            if is_problem {
                responses.values_mut().for_each(name_problem_type);
            }
            let mut add = |status: &str, response: ResponseBuilder| {
                responses.entry(status.to_owned()).or_insert_with(|| response.build().into());
            };
            if !["/livez", "/readyz"].contains(&path.as_str()) {
                add("401", in_form("The server has tokens, and the request has none of them"));
                add(
                    "403",
                    in_form("The token does not allow this, or the request comes from a page that may not send it"),
                );
            }
            add("414", in_form(&format!("The path and the query have more than {} KiB", URI_BYTES_MAX / KIB)));
            let (head_kib, fields_max) = (HTTP_BUFFER_BYTES / KIB, HTTP_HEADERS_MAX);
            let head = format!("The request's head has more than {head_kib} KiB or {fields_max} fields");
            add("431", ResponseBuilder::new().description(head));
            if ["/livez", "/readyz"].contains(&path.as_str()) {
                continue;
            }
            add("500", in_form("The server failed: its log says why"));
            if !is_statistics {
                add("503", in_form("The server is shutting down"));
            }
            for status in ["429", "503"] {
                if let Some(RefOr::T(response)) = responses.get_mut(status) {
                    let header = HeaderBuilder::new().schema(Some(Object::with_type(Type::Integer)));
                    let header = header.description(Some("Seconds after which to ask again"));
                    response.headers.insert("Retry-After".to_owned(), header.build().into());
                }
            }
        }
    }
}

/// Gives the content of an error answer, which is JSON unless its handler says otherwise, the media type of problem details.
fn name_problem_type(response: &mut RefOr<utoipa::openapi::Response>) {
    let RefOr::T(response) = response else { return };
    let is_problem = |content: &RefOr<Content>| {
        let RefOr::T(content) = content else { return false };
        matches!(&content.schema, Some(RefOr::Ref(schema)) if schema.ref_location.ends_with("/ProblemDetails"))
    };
    if response.content.get("application/json").is_some_and(is_problem)
        && let Some(content) = response.content.shift_remove("application/json")
    {
        response.content.insert(PROBLEM_JSON.to_owned(), content);
    }
}

/// Restricts the page to scripts and data from this server, and forbids others to show it in a frame.
async fn harden(mut response: Response) -> Response {
    const POLICY: HeaderValue = HeaderValue::from_static(
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
    );
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
