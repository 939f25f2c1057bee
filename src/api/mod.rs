//! What clients talk to: gRPC and HTTP. Each converts between its protocol and the engine's types; a decision about
//! tables, parts or jobs belongs in the engine.
//!
//! Invariant: nothing here knows src/server/, which opens the connections and calls in here.

pub(crate) mod caller;
pub mod grpc;
pub(crate) mod http;
pub(crate) mod idempotency;
pub(crate) mod metered;
pub(crate) mod metrics;
