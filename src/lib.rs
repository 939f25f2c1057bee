//! Tally, a table server. Clients upload CSV files over gRPC or HTTP; each file is a part of one growing table. Sums are
//! computed by reading the stored files: exactly, and in bounded memory. ARCHITECTURE.md describes the modules.

pub mod access;
pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod limits;
pub mod model;
pub mod proto;
pub mod server;
