//! The settings of an HTTP/2 server.

use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::limits::{HEADER_LIST_BYTES_CEILING, STREAM_ERRORS_MAX, UNSEEN_RESETS_MAX};

/// How often a silent connection is sent a ping, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// An HTTP/2 server with these limits, in bytes: those of a call and those of a connection that a client may send before we
/// have read them, and those of a frame.
pub(super) fn http2_server(
    stream_window: usize,
    connection_window: usize,
    frame: usize,
) -> http2::Builder<TokioExecutor> {
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(u32::try_from(stream_window).ok())
        .initial_connection_window_size(u32::try_from(connection_window).ok())
        .max_frame_size(u32::try_from(frame).ok())
        .max_header_list_size(u32::try_from(HEADER_LIST_BYTES_CEILING).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(UNSEEN_RESETS_MAX)
        .max_local_error_reset_streams(STREAM_ERRORS_MAX)
        .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    server
}
