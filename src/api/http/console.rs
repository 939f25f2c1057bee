//! The console: a page that shows the table, and takes files for it. Its files are those of `web/`, in the binary.
//!
//! The page uses the HTTP API alone. Its policy lets it load scripts, styles and data from this server only, and run no
//! script that is written into the page, so that no text of a table is ever run.

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::{download::is_known, surface::Surface};

/// Paths with the content of their files, which build.rs collects.
const FILES: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/console_files.rs"));

/// W3C Content Security Policy. Styles that the page's scripts set on elements are not inline styles.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      font-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// What all answers have. A browser asks again each time whether a file has changed, so that a page never mixes two versions.
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

/// One route for each file.
pub(super) fn routes() -> Router<Surface> {
    FILES.iter().fold(Router::new(), |router, &(path, content)| {
        let tag = format!("\"{:016x}\"", XxHash3_64::oneshot(content));
        router.route(path, get(async move |headers: HeaderMap| answer(path, content, &tag, &headers)))
    })
}

fn answer(path: &str, content: &'static [u8], tag: &str, headers: &HeaderMap) -> Response {
    let mut response = if is_known(headers, tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, content_type(path))], Bytes::from_static(content)).into_response()
    };
    let answered = response.headers_mut();
    answered.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        answered.insert(header::ETAG, tag);
    }
    response
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("html", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "svg" => "image/svg+xml",
        _text => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES_MAX: usize = 250 * 1024;

    fn content(wanted: &str) -> &'static [u8] {
        FILES.iter().find(|(path, _)| *path == wanted).expect("the file").1
    }

    fn page_files() -> impl Iterator<Item = &'static (&'static str, &'static [u8])> {
        FILES.iter().filter(|(path, _)| !path.starts_with("/console/demo/"))
    }

    #[test]
    fn the_page_is_small() {
        let bytes: usize = page_files().map(|(_, content)| content.len()).sum();
        assert!(bytes <= PAGE_BYTES_MAX, "{bytes} bytes");
    }

    /// The policy would not run them, and text from data must never become HTML.
    #[test]
    fn the_page_has_no_inline_code_and_writes_no_html() {
        for (path, content) in page_files().filter(|(path, _)| !path.contains("/vendor/")) {
            let text = str::from_utf8(content).expect("UTF-8");
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "onclick=",
                "://cdn",
            ] {
                assert!(!text.contains(forbidden), "{path} has {forbidden}");
            }
        }
        let page = str::from_utf8(content("/")).expect("UTF-8");
        assert_eq!(page.matches("<script").count(), page.matches("<script src=\"/console/").count());
    }

    /// A module that is missing would be noticed by a browser alone.
    #[test]
    fn all_files_that_are_named_exist() {
        let exists = |wanted: &str| FILES.iter().any(|(path, _)| *path == wanted);
        let page = str::from_utf8(content("/")).expect("UTF-8");
        let quoted = page.split('"').filter(|text| text.starts_with("/console/"));
        let mut count = 0;
        for path in quoted {
            assert!(exists(path), "{path}");
            count += 1;
        }
        for (path, content) in page_files().filter(|(path, _)| path.ends_with(".js") && !path.contains("/vendor/")) {
            let text = str::from_utf8(content).expect("UTF-8");
            for import in text.lines().filter_map(|line| line.split_once(" from '")?.1.strip_suffix("';")) {
                let mut folders: Vec<_> = path.split('/').collect();
                folders.pop();
                for step in import.split('/') {
                    match step {
                        "." => {}
                        ".." => drop(folders.pop()),
                        name => folders.push(name),
                    }
                }
                assert!(exists(&folders.join("/")), "{path} imports {import}");
                count += 1;
            }
        }
        assert!(count > 50, "{count} files were looked for");
    }

    #[test]
    fn a_file_that_the_client_has_is_not_sent_again() {
        let of = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            }
            answer("/console/icon.svg", b"<svg/>", "\"12\"", &headers)
        };
        for (value, status) in [
            (None, 200),
            (Some("\"13\""), 200),
            (Some("\"12\""), 304),
            (Some("W/\"12\""), 304),
            (Some("\"1\", \"12\""), 304),
            (Some("*"), 304),
        ] {
            let response = of(value);
            assert_eq!(response.status().as_u16(), status, "{value:?}");
            assert_eq!(response.headers()[header::ETAG], "\"12\"");
            assert_eq!(response.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        }
        assert_eq!(of(None).headers()[header::CONTENT_TYPE], "image/svg+xml");
    }
}
