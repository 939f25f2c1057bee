//! A second HTTP/2 server with larger windows and frames, for the first connections. Uploads take fewer system calls on
//! them; memory does not allow such windows for all connections.

use std::sync::Arc;

use hyper::server::conn::http2;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::http2::http2_server;
use crate::limits::{
    WIDE_CONNECTION_WINDOW_BYTES, WIDE_FRAME_BYTES_MAX, WIDE_STREAM_WINDOW_BYTES, WIDE_STREAMS_PER_CONNECTION_MAX,
};

/// The server for wide connections, and their permits.
pub(super) struct WideServer {
    pub(super) server: http2::Builder<TokioExecutor>,
    permits: Arc<Semaphore>,
}

impl WideServer {
    pub(super) fn new(connections_max: usize) -> Self {
        let mut server = http2_server(WIDE_STREAM_WINDOW_BYTES, WIDE_CONNECTION_WINDOW_BYTES, WIDE_FRAME_BYTES_MAX);
        server.max_concurrent_streams(WIDE_STREAMS_PER_CONNECTION_MAX);
        Self { server, permits: Arc::new(Semaphore::new(connections_max)) }
    }

    /// A permit for a wide connection, to be kept until it ends. None if there are enough of them.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }
}
