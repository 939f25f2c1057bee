//! The signals that stop the server.

use std::{future::Future, io, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::logging::Log;

/// Completes at SIGTERM or SIGINT. A second one ends the process at once.
pub(super) fn signals(log: Arc<Log>) -> io::Result<impl Future<Output = ()> + Send> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let (tx, rx) = oneshot::channel();
    tokio::spawn(async move {
        next().await;
        let _server_ended = tx.send(());
        next().await;
        tracing::warn!("second signal: not waiting for what runs");
        log.flush();
        std::process::exit(130);
    });
    Ok(async {
        let _sent_or_gone = rx.await;
    })
}
