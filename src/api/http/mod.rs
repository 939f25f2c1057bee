//! HTTP: JSON to the engine's types and back. A handler converts the request, makes one call to the engine, and
//! converts the answer.
//!
//! `router` has all routes and what each call passes: `access_log`, `access`, then `long_calls`. The handlers are in
//! `statistics`, `tasks`, `parts` and `probes`; `console` has the files of the page that uses them. They read bodies with `json_body` and `file_form`, send results with `download`, and
//! convert with `statistics_json`, `tasks_json`, `parts_json` and `errors`. All of them share one [`surface::Surface`].

pub(crate) mod access;
pub(crate) mod access_log;
mod console;
mod discard;
mod download;
mod errors;
mod file_form;
mod json_body;
mod long_calls;
mod openapi;
mod part_upload;
mod parts;
mod parts_json;
pub(crate) mod paths;
mod probes;
pub(crate) mod router;
mod statistics;
mod statistics_json;
pub(crate) mod surface;
mod tasks;
mod tasks_json;
