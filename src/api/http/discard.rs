//! Reads what a client still sends after its request was refused: it would take a closed connection for the answer.

use std::time::Duration;

use axum::body::BodyDataStream;
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::limits::REFUSED_BYTES_MAX;

/// How long the rest of a refused body is read.
pub(super) const DISCARD_MAX: Duration = Duration::from_secs(5);
/// How long it is read where permits are few.
pub(super) const SHORT_DISCARD_MAX: Duration = Duration::from_secs(1);

/// Reads the rest of a body and drops it, within bounds of time and bytes.
pub(super) async fn discard(mut body: BodyDataStream, time_max: Duration) {
    let mut left = REFUSED_BYTES_MAX;
    let read = async {
        while let Some(Ok(piece)) = body.next().await
            && piece.len() as u64 <= left
        {
            left -= piece.len() as u64;
        }
    };
    let _enough_either_way = timeout(time_max, read).await;
}
