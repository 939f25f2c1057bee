//! Packing, in the background: small parts become segments (`storage/segments/`), and small segments larger ones, so that a table
//! can have any number of small parts.
//!
//! One segment at a time is written, in short tasks in a lane that is served after all others, and not faster than
//! `--pack-bytes-per-s`. While many segments become one, which may take minutes, newer parts are packed in between (`packer.rs`).
//! Nothing that a client sees changes. What a segment replaces is moved out of `parts/` at once; questions that began before find it
//! there for another minute, or until they end, whichever is later (`retired.rs`).
//!
//! Memory: [`PACKING_BYTES`](crate::limits::PACKING_BYTES); the reservation of one conversion while Parquet is written, and of
//! another one while newer parts are packed; and the numbers of replaced parts that still have files. If others wait for memory, a
//! Parquet file is given up and begun anew after them.

mod commit;
mod packer;
pub mod part_parquet;
mod plan;
mod retired;
mod rows;
#[cfg(test)]
mod tests;
mod write;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use self::{
    packer::{Packed, Packer},
    retired::{BATCHES_MAX, keep_deleting},
};
use crate::{
    engine::runtime::context::Context,
    error::Error,
    model::{packed::SegmentId, part::PartId},
};

/// Time between two looks for something to pack.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same after an error, such as a full disk.
const INTERVAL_AFTER_ERROR: Duration = Duration::from_secs(10);
/// How long an upload waits for parts to be packed.
const SLOWED_FOR: Duration = Duration::from_secs(2);
/// How long a look that found nothing to pack counts, unless parts were added or removed.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// A request to pack everything now. The answer is how many segments were written.
pub(crate) type PackRequest = oneshot::Sender<Result<usize, Error>>;

/// Packs all small parts now, and returns how many segments were written.
///
/// Errors: the first one that is met; the server is shutting down.
pub(crate) async fn pack_now(context: &Context) -> Result<usize, Error> {
    let (tx, rx) = oneshot::channel();
    context.pack_requests.send(tx).await.ok().ok_or(Error::Draining)?;
    rx.await.ok().ok_or(Error::Draining)?
}

/// What decides whether there is something to pack: parts that have their own files, segments, and purged parts in them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Counts {
    unpacked: usize,
    segments: usize,
    purged: usize,
}

/// The last look that found nothing to pack.
#[derive(Clone, Copy)]
struct NothingFound {
    at: Instant,
    counts: Counts,
}

/// Waits, if so many parts have their own files that there is little room for more, until some have been packed: at most
/// [`SLOWED_FOR`]. So uploads that come faster than parts are packed are slowed, and not refused.
pub(crate) async fn slow_down(context: &Context) {
    if context.state.with(|state| state.parts.is_crowded()) {
        let packed = context.packed.notified();
        let _packed_or_not = timeout(SLOWED_FOR, packed).await;
    }
}

/// What a start knows that packing needs.
pub(crate) struct FoundAtStart {
    /// Segments that may be put back at a later start.
    pub(crate) in_quarantine: Arc<[SegmentId]>,
    /// Parts in segments whose own files, which are not in `parts/` any more, are still to be deleted.
    pub(crate) replaced: Vec<PartId>,
}

/// Packs until the engine is dropped: whenever there are more small parts than `--pack-above`, and on request. Deletes what
/// segments have replaced.
pub(crate) async fn keep_packing(
    context: Weak<Context>,
    requests: mpsc::Receiver<PackRequest>,
    FoundAtStart { in_quarantine, replaced }: FoundAtStart,
) {
    let (batches, queue) = mpsc::channel(BATCHES_MAX);
    let packer = Packer::new(in_quarantine, batches);
    // The queue ends with the packer.
    tokio::join!(look_for_parts(context.clone(), requests, packer), keep_deleting(context, queue, replaced));
}

async fn look_for_parts(context: Weak<Context>, mut requests: mpsc::Receiver<PackRequest>, mut packer: Packer) {
    let (mut wait, mut nothing_found) = (INTERVAL, None);
    loop {
        let request = tokio::select! {
            request = requests.recv() => match request {
                Some(request) => Some(request),
                None => return,
            },
            () = sleep(wait) => None,
        };
        let Some(context) = context.upgrade() else { return };
        let counts = counts(&context);
        let is_same = |last: NothingFound| last.counts == counts && last.at.elapsed() < LOOK_AGAIN_AFTER;
        if request.is_none() && nothing_found.is_some_and(is_same) {
            continue; // an idle server does not go over its parts every second
        }
        let packed = packer.pack_all(&context, request.is_some()).await;
        let is_stuck = matches!(packed, Ok(Packed { segments: 0, waits: false }) | Err(_));
        context.state.with(|state| state.parts.set_packing_stuck(is_stuck));
        let found_nothing = is_stuck && packed.is_ok() && request.is_none();
        nothing_found = found_nothing.then(|| NothingFound { at: Instant::now(), counts });
        wait = if packed.is_ok() { INTERVAL } else { INTERVAL_AFTER_ERROR };
        match (request, packed) {
            (_, Err(Error::Draining)) => return,
            (Some(request), packed) => {
                let _caller_gone = request.send(packed.map(|packed| packed.segments));
            }
            (None, Err(error)) => tracing::error!(%error, "parts could not be packed; this is tried again"),
            (None, Ok(_)) => {}
        }
    }
}

fn counts(context: &Context) -> Counts {
    context.state.with(|state| {
        let parts = &state.parts;
        Counts { unpacked: parts.unpacked(), segments: parts.segments_count(), purged: parts.packed_purged().len() }
    })
}
