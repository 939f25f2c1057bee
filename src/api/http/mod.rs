//! HTTP: JSON to the engine's types and back. A handler converts the request, makes one call to the engine, and
//! converts the answer.
//!
//! `router` has all routes and what each call passes: `access_log`, `access_layer`, then `long_calls`. The handlers are in
//! `statistics`, `tasks`, `table/`, `questions/`, `jobs`, `events` and `probes`; `console` has the files of the page that uses them. They read
//! bodies with `json_body` and `file_form`, send files with `download`, and convert with `statistics_json`, `tasks_json`, `errors`
//! and `problem`. All of them share one [`surface::Surface`].

mod access_layer;
pub(crate) mod access_log;
mod console;
mod discard;
mod download;
mod errors;
mod event_stream;
pub(crate) mod events;
mod events_json;
mod file_form;
mod jobs;
mod json_body;
mod long_calls;
mod no_query;
mod openapi;
pub(crate) mod paths;
mod probes;
mod problem;
mod questions;
mod refuse;
pub(crate) mod router;
mod statistics;
mod statistics_json;
pub(crate) mod surface;
mod table;
mod tasks;
mod tasks_json;
mod tokens;
