//! All routes, and what each call passes before it reaches its handler.

use axum::{Router, extract::Request, http::StatusCode, middleware::from_fn_with_state, response::Response};
use tower::util::option_layer;
use utoipa_axum::router::OpenApiRouter;

use super::{
    access_layer, access_log, console, events, jobs, long_calls, openapi, probes, questions, refuse, statistics,
    surface::Surface, table, tasks, tokens,
};

/// All routes.
pub(crate) fn router(surface: Surface) -> Router {
    openapi::with_docs(described_routes())
        .merge(console::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(surface.clone(), long_calls::long_answers))
        .layer(from_fn_with_state(surface.clone(), access_layer::check))
        .layer(option_layer(access_layer::cors(&surface.pages))) // also around refusals, so that the page can read them
        .layer(from_fn_with_state(surface.clone(), access_log::log))
        .with_state(surface)
}

/// The routes that the OpenAPI description lists.
fn described_routes() -> OpenApiRouter<Surface> {
    statistics::routes()
        .merge(tasks::routes())
        .merge(table::routes())
        .merge(questions::routes())
        .merge(jobs::routes())
        .merge(events::routes())
        .merge(tokens::routes())
        .merge(probes::routes())
}

/// The probes alone.
pub(crate) fn probe_router(surface: Surface) -> Router {
    probes::probe_routes().with_state(surface)
}

/// The answer to a request on a connection that may be used for probes alone.
pub(crate) fn no_connection(path: &str) -> Response {
    refuse::refuse(path, StatusCode::SERVICE_UNAVAILABLE, "too many connections are in use: try again")
}

async fn no_such_path(request: Request) -> Response {
    refuse::refuse(request.uri().path(), StatusCode::NOT_FOUND, "there is nothing at this path")
}

async fn no_such_method(request: Request) -> Response {
    refuse::refuse(request.uri().path(), StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use axum::http::Method;
    use utoipa::OpenApi as _;

    use super::*;
    use crate::access::rules::{ROUTES, of_route};

    #[derive(utoipa::OpenApi)]
    struct Nothing;

    /// Routes that the description does not list, with the code that adds them.
    const UNDESCRIBED: [(&str, &str, &[&str]); 4] = [
        ("console.rs", ".route(path,", &["/", "/console/js/main.js"]),
        ("tasks.rs", ".route(TASKS_PATH", &["/api/v1/file-processing/tasks"]),
        ("openapi.rs", "router.route(from,", &["/api/v1/docs/openapi.json", "/api/v1/docs/redoc"]),
        (
            "openapi.rs",
            "SwaggerUi::new(",
            &["/api/v1/openapi.json", "/api/v1/docs/swagger", "/api/v1/docs/swagger/", "/api/v1/docs/swagger/{*rest}"],
        ),
    ];

    fn described() -> BTreeSet<(Method, String)> {
        let routes: OpenApiRouter<Surface> = OpenApiRouter::with_openapi(Nothing::openapi()).merge(described_routes());
        let mut found = BTreeSet::new();
        for (path, item) in &routes.get_openapi().paths.paths {
            for (method, operation) in [
                ("GET", &item.get),
                ("POST", &item.post),
                ("DELETE", &item.delete),
                ("PUT", &item.put),
                ("PATCH", &item.patch),
            ] {
                if operation.is_some() {
                    found.insert((method.parse().expect("a method"), path.clone()));
                }
            }
        }
        found
    }

    #[test]
    fn every_route_has_a_rule_and_every_rule_a_route() {
        let mut routes = described();
        assert!(routes.len() > 35, "{routes:?}");
        for (_, _, paths) in UNDESCRIBED {
            for path in paths {
                let method = if path.ends_with("/tasks") { Method::POST } else { Method::GET };
                routes.insert((method, (*path).to_owned()));
            }
        }
        for (method, path) in &routes {
            assert!(of_route(method, path).is_some(), "{method} {path} has no rule in src/access/rules.rs");
        }
        for (method, path, _) in ROUTES {
            assert!(routes.contains(&(method.clone(), (*path).to_owned())), "{method} {path} is no route");
        }
    }

    /// A route that is added in another way than through its description has to be listed above.
    #[test]
    fn no_other_code_adds_routes() {
        fn files(folder: &Path, found: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    files(&path, found);
                } else if !path.ends_with("router.rs") {
                    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                    found.push((name, fs::read_to_string(&path).expect("readable")));
                }
            }
        }
        let mut sources = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/http"), &mut sources);
        let count = |text: &str| sources.iter().map(|(_, source)| source.matches(text).count()).sum::<usize>();
        for (file, code, _) in UNDESCRIBED {
            let is_there = sources.iter().any(|(name, source)| name == file && source.contains(code));
            assert!(is_there, "{file}: {code}");
        }
        // The three above, and the two of --probe, which has nothing else.
        assert_eq!(count(".route(") + count("route_service(") + count(".nest("), 5);
        assert_eq!(count("SwaggerUi::new("), 1);
    }
}
