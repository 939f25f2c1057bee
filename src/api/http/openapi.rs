//! The OpenAPI 3.1 description, made from the handlers, and the page that shows it. Its assets are in the binary.

use axum::{
    Router,
    http::{HeaderValue, header},
    response::Response,
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use super::Surface;

const OPENAPI_PATH: &str = "/api/v1/openapi.json";
const SWAGGER_PATH: &str = "/api/v1/docs/swagger";

#[derive(OpenApi)]
#[openapi(
    info(title = "Tally", description = "Jobs over HTTP: ask now, fetch the answer later."),
    tags(
        (name = "statistics", description = "Means of a survey over all parts of the table"),
        (name = "file processing", description = "Group sums of a file that is sent along"),
        (name = "probes", description = "For orchestrators and Prometheus")
    ),
    modifiers(&AdminTokenScheme)
)]
struct Description;

struct AdminTokenScheme;

impl Modify for AdminTokenScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("admin_token", bearer);
    }
}

/// The routes with their description beside them.
pub(super) fn with_docs(routes: OpenApiRouter<Surface>) -> Router<Surface> {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi()).merge(routes).split_for_parts();
    let page = Router::from(SwaggerUi::new(SWAGGER_PATH).url(OPENAPI_PATH, description));
    router.merge(page.layer(axum::middleware::map_response(harden)))
}

/// The page may run and load what is served here, and no other page may show it in a frame.
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
