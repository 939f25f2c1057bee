//! What each call needs: the one list, for both ports. Tests compare it with the descriptors of the gRPC services and with
//! the routes of HTTP.

use http::Method;

use super::scope::Scope::{self, Admin, Read, Write};

/// What a caller needs for a call, if the server has tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Nothing: the call tells no more of the table than how many parts are in quarantine.
    Open,
    /// A token of this scope or a larger one.
    Needs(Scope),
}

use Rule::{Needs, Open};

/// What removing a part for good needs. Other removals can be undone for `--undo-s`.
pub(crate) const PURGE: Scope = Admin;

/// The gRPC calls.
pub(crate) const CALLS: &[(&str, Rule)] = &[
    ("/Table/Upload", Needs(Write)),
    ("/Table/ColumnSum", Needs(Read)),
    ("/Table/ColSum", Needs(Read)),
    ("/NumStore/SetNum", Needs(Write)),
    ("/NumStore/Fact", Needs(Read)),
    ("/tally.v1.Tally/Upload", Needs(Write)),
    ("/tally.v1.Tally/ListParts", Needs(Read)),
    ("/tally.v1.Tally/ListColumns", Needs(Read)),
    ("/tally.v1.Tally/ListFiles", Needs(Read)),
    ("/tally.v1.Tally/Sum", Needs(Read)),
    ("/tally.v1.Tally/GroupSum", Needs(Read)),
    ("/tally.v1.Tally/ListQuarantine", Needs(Read)),
    ("/tally.v1.Tally/ListRemoved", Needs(Read)),
    ("/tally.v1.Tally/RemovePart", Needs(Write)),
    ("/tally.v1.Tally/RestorePart", Needs(Write)),
    ("/tally.v1.Tally/Forget", Needs(Admin)),
    ("/tally.v1.Tally/Pack", Needs(Admin)),
    ("/tally.v1.Tally/Verify", Needs(Admin)),
    ("/grpc.health.v1.Health/Check", Open),
    ("/grpc.health.v1.Health/Watch", Open),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Needs(Read)),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Needs(Read)),
];

/// The HTTP routes, by method and pattern. A question that runs as a job needs `read`, because it changes nothing of the table.
pub(crate) const ROUTES: &[(Method, &str, Rule)] = &[
    (Method::GET, "/livez", Open),
    (Method::GET, "/readyz", Open),
    (Method::GET, "/metrics", Needs(Read)),
    (Method::POST, "/api/states_mean", Needs(Read)),
    (Method::POST, "/api/state_mean", Needs(Read)),
    (Method::POST, "/api/best5", Needs(Read)),
    (Method::POST, "/api/worst5", Needs(Read)),
    (Method::POST, "/api/global_mean", Needs(Read)),
    (Method::POST, "/api/diff_from_mean", Needs(Read)),
    (Method::POST, "/api/state_diff_from_mean", Needs(Read)),
    (Method::POST, "/api/mean_by_category", Needs(Read)),
    (Method::POST, "/api/state_mean_by_category", Needs(Read)),
    (Method::GET, "/api/get_results/{job_id}", Needs(Read)),
    (Method::GET, "/api/jobs", Needs(Read)),
    (Method::GET, "/api/jobs/{job_id}", Needs(Read)),
    (Method::DELETE, "/api/jobs/{job_id}", Needs(Write)),
    (Method::GET, "/api/num_jobs", Needs(Read)),
    (Method::GET, "/api/graceful_shutdown", Needs(Admin)),
    (Method::POST, "/api/graceful_shutdown", Needs(Admin)),
    (Method::POST, "/api/v1/file-processing/tasks", Needs(Write)),
    (Method::POST, "/api/v1/file-processing/tasks/", Needs(Write)),
    (Method::DELETE, "/api/v1/file-processing/tasks/{task_id}", Needs(Write)),
    (Method::GET, "/api/v1/file-processing/tasks/{task_id}/status", Needs(Read)),
    // After it the result is removed.
    (Method::GET, "/api/v1/file-processing/tasks/{task_id}/download", Needs(Write)),
    (Method::GET, "/api/v1/table", Needs(Read)),
    (Method::GET, "/api/v1/table/columns", Needs(Read)),
    (Method::GET, "/api/v1/table/sum", Needs(Read)),
    (Method::GET, "/api/v1/table/groups", Needs(Read)),
    (Method::GET, "/api/v1/table/growth", Needs(Read)),
    (Method::GET, "/api/v1/table/removed", Needs(Read)),
    (Method::GET, "/api/v1/table/files", Needs(Read)),
    (Method::GET, "/api/v1/table/parts", Needs(Read)),
    (Method::POST, "/api/v1/table/parts", Needs(Write)),
    (Method::GET, "/api/v1/table/parts/{part}", Needs(Read)),
    (Method::DELETE, "/api/v1/table/parts/{part}", Needs(Write)),
    (Method::GET, "/api/v1/table/parts/{part}/rows", Needs(Read)),
    (Method::GET, "/api/v1/table/parts/{part}/csv", Needs(Read)),
    (Method::GET, "/api/v1/table/parts/{part}/parquet", Needs(Read)),
    (Method::POST, "/api/v1/table/parts/{part}/restore", Needs(Write)),
    (Method::GET, "/api/v1/survey/questions", Needs(Read)),
    (Method::GET, "/api/v1/survey/states", Needs(Read)),
    (Method::GET, "/api/v1/jobs", Needs(Read)),
    (Method::GET, "/api/v1/events", Needs(Read)),
    (Method::GET, "/api/v1/token", Needs(Read)),
    // It allows what the token of its owner allows.
    (Method::POST, "/api/v1/tickets", Needs(Read)),
    // The page asks for a token itself, and a browser that opens it cannot send one.
    (Method::GET, "/api/v1/openapi.json", Open),
    (Method::GET, "/api/v1/docs/openapi.json", Open),
    (Method::GET, "/api/v1/docs/redoc", Open),
    (Method::GET, "/api/v1/docs/swagger", Open),
    (Method::GET, "/api/v1/docs/swagger/", Open),
    (Method::GET, "/api/v1/docs/swagger/{*rest}", Open),
];

/// The rule of a gRPC call. `None`: there is no such call.
pub(crate) fn of_call(path: &str) -> Option<Rule> {
    CALLS.iter().find(|(call, _)| *call == path).map(|(_, rule)| *rule)
}

/// The rule of an HTTP request whose route has this pattern. `None`: the route takes no such method, or there is no such route.
pub(crate) fn of_route(method: &Method, pattern: &str) -> Option<Rule> {
    // axum gives a HEAD to the handler of GET.
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    if *method == Method::GET && is_console(pattern) {
        return Some(Open);
    }
    ROUTES.iter().find(|(known, route, _)| known == method && *route == pattern).map(|(_, _, rule)| *rule)
}

/// Whether a path has a file of the console.
fn is_console(path: &str) -> bool {
    path == "/" || path.starts_with("/console/")
}

/// Whether a path has a file of a page: of the console, or of the Swagger page with its description. They tell nothing of the
/// table, and ask for a token themselves.
pub(crate) fn is_page(path: &str) -> bool {
    is_console(path) || path == "/api/v1/openapi.json" || path.starts_with("/api/v1/docs/")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_call_of_the_descriptors_has_a_rule_and_every_rule_a_call() {
        let reflection =
            [tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET];
        let mut calls = BTreeSet::new();
        for bytes in
            [crate::proto::pb::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET].into_iter().chain(reflection)
        {
            for file in FileDescriptorSet::decode(bytes).expect("descriptors").file {
                for service in &file.service {
                    let package = file.package.as_deref().filter(|package| !package.is_empty());
                    let prefix = package.map_or(String::new(), |package| format!("{package}."));
                    for method in &service.method {
                        calls.insert(format!("/{prefix}{}/{}", service.name(), method.name()));
                    }
                }
            }
        }
        assert!(calls.len() > 20, "{calls:?}");
        let ruled: BTreeSet<_> = CALLS.iter().map(|(call, _)| (*call).to_owned()).collect();
        assert_eq!(calls, ruled);
        assert_eq!(CALLS.len(), ruled.len(), "each has one rule");
    }

    #[test]
    fn only_probes_and_pages_are_open() {
        let open_calls: Vec<_> = CALLS.iter().filter(|(_, rule)| *rule == Open).map(|(call, _)| *call).collect();
        assert_eq!(open_calls, ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]);
        let open: Vec<_> = ROUTES.iter().filter(|(_, _, rule)| *rule == Open).map(|(_, route, _)| *route).collect();
        let (probes, pages): (Vec<_>, Vec<_>) = open.into_iter().partition(|route| !is_page(route));
        assert_eq!((probes, pages.len()), (vec!["/livez", "/readyz"], 6));
        assert!(
            is_page("/") && is_page("/console/js/main.js") && !is_page("/api/v1/docs") && !is_page("/api/v1/table")
        );
        assert_eq!(of_route(&Method::HEAD, "/console/js/main.js"), Some(Open));
        assert_eq!(of_route(&Method::POST, "/"), None);
        assert_eq!(of_route(&Method::HEAD, "/metrics"), Some(Needs(Read)));
        assert_eq!((of_route(&Method::PUT, "/metrics"), of_call("/Table/Drop")), (None, None));
    }

    #[test]
    fn a_request_that_changes_something_needs_more_than_read_unless_it_is_a_question() {
        for (method, route, rule) in ROUTES {
            let is_original = route.starts_with("/api/") && !route.starts_with("/api/v1/");
            let is_question = *method == Method::POST && (is_original || *route == "/api/v1/tickets");
            let is_safe = *method == Method::GET || is_question && *route != "/api/graceful_shutdown";
            assert!(is_safe || matches!(rule, Needs(Write | Admin)), "{method} {route}");
        }
    }
}
