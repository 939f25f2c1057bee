//! Detached tasks: work that runs to its end, including its clean-up, even if the call that started it goes away.

use tokio_util::sync::CancellationToken;

use super::workers::panic_text;
use crate::error::Error;

/// Runs `work` as a task and waits for it. If the returned future is dropped, the token that `work` gets is cancelled,
/// and the task goes on until `work` returns.
///
/// Errors: those of `work`; a panic in it; the runtime is shutting down.
pub async fn detached<T, F>(work: impl FnOnce(CancellationToken) -> F) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let cancel = CancellationToken::new();
    let _cancel_on_drop = cancel.clone().drop_guard();
    let task = tokio::spawn(work(cancel));
    task.await.unwrap_or_else(|stopped| {
        Err(match stopped.try_into_panic() {
            Ok(panic) => Error::Internal(format!("a call panicked: {}", panic_text(&*panic))),
            Err(_cancelled) => Error::Draining,
        })
    })
}
