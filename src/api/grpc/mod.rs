//! gRPC: protobuf to the engine's types and back. A handler converts the request, makes one call to the engine, and
//! converts the answer.
//!
//! A call passes `metrics_layer`, `access_layer`, `budget_layer` and `upload_layer` before it reaches `table`, `numstore` or
//! `tally`.
//! `upload_layer`, with `client_body`, `content_parser` and `framing` below it, makes every upload a stream, whatever its
//! messages are on the wire. `call_budget` bounds the memory of all calls, and `budget_layer` holds each call to it.

pub(crate) mod access_layer;
pub(crate) mod budget_layer;
pub(crate) mod call_budget;
mod call_log;
mod client_body;
mod columns;
mod content_parser;
mod convert;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub(crate) mod metrics_layer;
pub(crate) mod numstore;
pub(crate) mod request_head;
mod sums;
pub(crate) mod table;
mod table_files;
pub(crate) mod tally;
mod upload;
pub(crate) mod upload_layer;

#[cfg(test)]
mod content_parser_tests;
#[cfg(test)]
mod upload_layer_tests;
