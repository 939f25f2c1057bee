//! The surfaces. They convert between a protocol and the engine's words; an `if` about tables belongs in the engine.

pub mod grpc;
pub mod http;
pub mod metrics;
