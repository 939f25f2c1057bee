//! Tally, a table server: CSV files come in over gRPC, each a further portion of one growing table; column sums are
//! answered by reading the files, exactly, in bounded memory. ARCHITECTURE.md is the map.

pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod limits;
pub mod model;
pub mod proto;
pub mod server;
