//! The gRPC interface as Rust types: what build.rs generates from proto/, and how its messages are encoded.
//!
//! The server and the command line both use it, so nothing here knows either of them, nor the engine.

pub mod codec;
pub mod message;

/// The messages, clients and servers that build.rs generates from proto/.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod pb {
    // table.proto and numstore.proto have no package.
    tonic::include_proto!("_");
    /// tally.proto
    pub mod tally {
        tonic::include_proto!("tally.v1");
    }
    /// The descriptors of all three files, which reflection serves.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");
}
