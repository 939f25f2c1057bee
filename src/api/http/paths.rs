//! Paths that more than one module has to know, and the one form that they are compared in.

use axum::http::{Uri, uri::PathAndQuery};

use crate::limits::URI_BYTES_MAX;

/// Where the results of statistics are fetched; a job's id follows.
pub(super) const RESULTS_PATH: &str = "/api/get_results/";
/// The file-processing tasks; a task's id may follow.
pub(super) const TASKS_PATH: &str = "/api/v1/file-processing/tasks/";
/// The events, which a client watches for as long as it likes.
pub(crate) const EVENTS_PATH: &str = "/api/v1/events";
/// The beginnings of paths whose errors are problem details.
const PROBLEM_PATHS: [&str; 6] =
    ["/api/v1/table", "/api/v1/survey", EVENTS_PATH, "/api/v1/jobs", "/api/v1/token", "/api/v1/tickets"];

/// Whether a path's errors are problem details.
pub(super) fn is_problem_path(path: &str) -> bool {
    let mut rests = PROBLEM_PATHS.iter().filter_map(|start| path.strip_prefix(start));
    rests.any(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path is one of the original statistics servers', whose clients expect another form of error.
pub(super) fn is_statistics_path(path: &str) -> bool {
    path.starts_with("/api/") && !path.starts_with("/api/v1/")
}

/// The Swagger page. Its own links are relative, so the slash at the end of its path has to stay.
pub(super) const SWAGGER_PATH: &str = "/api/v1/docs/swagger";

/// Writes repeated slashes in a request's path as one, and removes the slash at its end. The documentation of the original
/// statistics servers has `//api/states_mean`.
///
/// A path that is too long stays as it is: it is refused later.
pub(crate) fn normalize(uri: &mut Uri) {
    let (path, query) = (uri.path(), uri.query());
    let has_slash_at_end = path.len() > 1 && path.ends_with('/') && !path.starts_with(SWAGGER_PATH);
    let bytes = path.len() + query.map_or(0, |query| 1 + query.len());
    if bytes > URI_BYTES_MAX || !(path.contains("//") || has_slash_at_end) {
        return;
    }
    let mut text = String::with_capacity(bytes);
    for character in path.chars() {
        if character != '/' || !text.ends_with('/') {
            text.push(character);
        }
    }
    if text.len() > 1 && text.ends_with('/') && !text.starts_with(SWAGGER_PATH) {
        text.pop();
    }
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    if let Ok(target) = PathAndQuery::try_from(text) {
        parts.path_and_query = Some(target);
        if let Ok(normalized) = Uri::from_parts(parts) {
            *uri = normalized;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form() {
        for (given, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/api/jobs", "/api/jobs"),
            ("//api///jobs//", "/api/jobs"),
            ("/api/jobs/?a=//b/", "/api/jobs?a=//b/"),
            ("/api/v1/file-processing/tasks/", "/api/v1/file-processing/tasks"),
            ("/api/v1/docs/swagger/", "/api/v1/docs/swagger/"),
            ("/api//v1/docs/swagger//", "/api/v1/docs/swagger/"),
            ("http://localhost:5000//api//jobs/", "http://localhost:5000/api/jobs"),
            ("*", "*"),
        ] {
            let mut uri = Uri::from_static(given);
            normalize(&mut uri);
            assert_eq!(uri, expected, "{given}");
        }
        let long = format!("/{}", "/".repeat(URI_BYTES_MAX));
        let mut uri: Uri = long.parse().expect("a path");
        normalize(&mut uri);
        assert_eq!(uri.path().len(), URI_BYTES_MAX + 1);
    }
}
