//! Packing, in the background: small parts become segments (`storage/segments/`), and small segments larger ones, so that a table
//! can have any number of small parts.
//!
//! One segment at a time is written, in short tasks in a lane that is served after all others, and not faster than
//! `--pack-bytes-per-s`. Nothing that a client sees changes. What a segment replaces is moved out of `parts/` at once; questions
//! that began before find it there for another minute, or until they end, whichever is later.
//!
//! Memory: [`PACKING_BYTES`](crate::limits::PACKING_BYTES); the reservation of one conversion while Parquet is written; and the
//! numbers of replaced parts that still have files (`retired.rs`). If others wait for memory, a Parquet file is given up and begun
//! anew after them.

pub mod part_parquet;
mod plan;
mod retired;
mod rows;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use self::{
    plan::{Circumstances, Next, Run, next},
    retired::{Batch, Retired},
    write::{Packing, Step},
};
use crate::{
    engine::{
        ingest::memory_plan,
        runtime::{context::Context, detached::detached},
        state::Lane,
        storage::{
            Store,
            segments::{replaced::ReplacedSegment, writing::PreparedSegment},
        },
    },
    error::Error,
    limits::{COLUMNS_MAX, READ_BLOCK_BYTES, SEGMENT_RECEIPT_BYTES_MAX, SMALL_UPLOAD_BYTES},
    model::{
        packed::{Segment, SegmentId},
        part::PartId,
        schema::Schema,
    },
};

/// Time between two looks for something to pack.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same after an error, such as a full disk.
const INTERVAL_AFTER_ERROR: Duration = Duration::from_secs(10);
/// Damaged parts that are remembered, so that others are packed.
const DAMAGED_MAX: usize = 1024;
/// How long an upload waits for parts to be packed.
const SLOWED_FOR: Duration = Duration::from_secs(2);
/// How long a look that found nothing to pack counts, unless parts were added or removed.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Parts whose files one task moves or deletes.
const TASK_PARTS: usize = 64;

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

/// Packs until the engine is dropped: whenever there are more small parts than `--pack-above`, and on request. `in_quarantine` are
/// the segments that may be put back at a later start.
pub(crate) async fn keep_packing(
    context: Weak<Context>,
    mut requests: mpsc::Receiver<PackRequest>,
    in_quarantine: Arc<[SegmentId]>,
) {
    let (mut retired, mut damaged) = (Retired::default(), BTreeSet::new());
    let (mut wait, mut nothing_found, mut is_disk_too_full) = (INTERVAL, None, false);
    loop {
        let request = tokio::select! {
            request = requests.recv() => match request {
                Some(request) => Some(request),
                None => return,
            },
            () = sleep(wait) => None,
        };
        let Some(context) = context.upgrade() else { return };
        delete_retired(&context, &mut retired).await;
        let counts = counts(&context);
        let is_same = |last: NothingFound| last.counts == counts && last.at.elapsed() < LOOK_AGAIN_AFTER;
        if request.is_none() && nothing_found.is_some_and(is_same) {
            continue; // an idle server does not go over its parts every second
        }
        let special = (&damaged, &in_quarantine);
        let packed = pack_all(&context, request.is_some(), special, &mut retired, &mut is_disk_too_full).await;
        let found_nothing = matches!(packed, Ok(0)) && request.is_none();
        context.state.with(|state| state.parts.set_packing_stuck(!matches!(packed, Ok(1..))));
        nothing_found = found_nothing.then(|| NothingFound { at: Instant::now(), counts });
        wait = if packed.is_ok() { INTERVAL } else { INTERVAL_AFTER_ERROR };
        if let Err(Error::Damaged { part, .. }) = &packed {
            damaged.insert(*part); // it is tried again after the next start
            damaged = damaged.into_iter().take(DAMAGED_MAX).collect();
        }
        match (request, packed) {
            (_, Err(Error::Draining)) => return,
            (Some(request), packed) => {
                let _caller_gone = request.send(packed);
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

/// Writes segments until there is nothing to pack, and returns how many. `is_disk_too_full`: whether the last look found too little
/// room on the disk, of which the log has a line.
async fn pack_all(
    context: &Arc<Context>,
    is_forced: bool,
    (damaged, in_quarantine): (&BTreeSet<PartId>, &Arc<[SegmentId]>),
    retired: &mut Retired,
    is_disk_too_full: &mut bool,
) -> Result<usize, Error> {
    let unpacked_max = if is_forced { 0 } else { context.limits.pack_above };
    let mut written = 0;
    loop {
        if !retired.has_room() {
            tracing::warn!("so much was packed within a minute that packing waits");
            return Ok(written);
        }
        let free_bytes = context.on_worker(Lane::Pack, Store::free_bytes).await?;
        let (table, purged, is_urgent) = context.state.with(|state| {
            let parts = &state.parts;
            let is_urgent = parts.is_nearly_full() || parts.packed_purged().len() >= parts.parts_max() / PURGED_URGENT;
            (parts.snapshot(), parts.packed_purged().clone(), is_urgent)
        });
        let (damaged, in_quarantine) = (damaged.clone(), Arc::clone(in_quarantine));
        let now = Circumstances { purged, damaged, in_quarantine, unpacked_max, is_forced, is_urgent, free_bytes };
        match context.workers.run(Lane::Pack, move || next(&table, &now)).await? {
            Next::Write(run) => {
                context.state.with(|state| state.parts.set_packing_stuck(false));
                written += usize::from(pack(context, run, retired).await?);
            }
            Next::Drop(segment, purged) => {
                if let Some(batch) = drop_segment(context, segment, purged).await? {
                    retired.push(batch);
                }
            }
            Next::Nothing { is_disk_too_full: is_full } => {
                if is_full && !*is_disk_too_full {
                    tracing::warn!(free_bytes, "the disk has too little room for packing; parts keep their own files");
                }
                *is_disk_too_full = is_full;
                return Ok(written);
            }
        }
        delete_retired(context, retired).await;
    }
}

/// Segments are written anew for any purged part if one for so many parts of `--parts-max` is in them.
const PURGED_URGENT: usize = 4;

/// Writes and commits one segment. `false`, and nothing has changed, if a part of it was removed meanwhile.
async fn pack(context: &Arc<Context>, run: Run, retired: &mut Retired) -> Result<bool, Error> {
    let columns = run
        .parts
        .iter()
        .map(|part| part.columns_count)
        .chain(run.segments.iter().flat_map(|segment| segment.files.iter().map(|file| file.columns_count)));
    let columns = columns.max().unwrap_or(1) as usize;
    let plan = memory_plan::Plan::for_file(run.csv_bytes(), columns.min(COLUMNS_MAX), READ_BLOCK_BYTES)?;
    let is_small = run.csv_bytes() <= SMALL_UPLOAD_BYTES;
    let pool = if is_small { &context.small_conversions } else { &context.large_conversions };
    // When the Parquet files are written, the same memory does for the text of the receipt, in a buffer that doubles.
    let memory_bytes = plan.memory_bytes.max(2 * SEGMENT_RECEIPT_BYTES_MAX);
    let layout = plan.layout;
    let begin = move |store: &Arc<Store>| Packing::new(store, run, layout).map(Box::new);
    let mut packing = context.on_worker(Lane::Pack, begin).await?;
    let started = Instant::now();
    let (mut bytes, mut memory) = (0, None);
    let (prepared, run) = loop {
        if packing.converts() && memory.is_none() {
            memory = Some(pool.reserve(memory_bytes).await?);
        }
        match context.workers.run(Lane::Pack, move || packing.step()).await.flatten()? {
            Step::Prepared(prepared, run) => break (prepared, run),
            Step::More(more, read) => {
                packing = more;
                bytes += read;
            }
        }
        if !packing.has_open_parquet() {
            memory = None;
        }
        let pace = Duration::from_millis(bytes * 1000 / context.limits.pack_bytes_per_s.max(1));
        sleep(pace.saturating_sub(started.elapsed())).await;
        if memory.is_some() && pool.is_waited_for() && packing.may_give_up() {
            let give_up = move || {
                packing.give_up();
                packing
            };
            packing = context.workers.run(Lane::Pack, give_up).await?;
            memory = None;
        }
    };
    drop(memory);
    let of = Arc::clone(context);
    // Detached, so that a segment on the disk is also in the registry.
    let replaced = detached(move |_cancel| async move { commit(&of, run, *prepared).await }).await?;
    context.packed.notify_waiters();
    let is_written = replaced.is_some();
    if let Some(batch) = replaced {
        retired.push(batch);
    }
    Ok(is_written)
}

/// Removes a segment all of whose parts are purged. `None`, and nothing has changed, if it was replaced meanwhile.
async fn drop_segment(
    context: &Arc<Context>,
    segment: Arc<Segment>,
    purged: Vec<PartId>,
) -> Result<Option<Batch>, Error> {
    let context = Arc::clone(context);
    detached(move |_cancel| async move {
        let _permit = context.part_changes.acquire().await.ok().ok_or(Error::Draining)?;
        let state = context.state.clone();
        let drop_now = move |store: &Arc<Store>| {
            let segments = vec![segment];
            if !state.with(|state| state.parts.has_all(&[], &segments)) {
                return Ok(None);
            }
            store.drop_segment(segments[0].id)?;
            state.with(|state| state.parts.drop_segment(&segments[0], &purged));
            store.set_aside_segment(&ReplacedSegment::of(&segments[0]));
            purged.iter().for_each(|id| store.delete_mark(*id));
            tracing::info!(segment = %segments[0].id, "all parts of the segment are purged; it is deleted");
            Ok(Some(Batch::new(Vec::new(), segments)))
        };
        context.on_worker(Lane::Pack, drop_now).await
    })
    .await
}

/// Commits a segment, and moves what it replaces out of `parts/`. `None`, and nothing has changed, if a part of it was removed
/// meanwhile.
async fn commit(context: &Arc<Context>, run: Run, prepared: PreparedSegment) -> Result<Option<Batch>, Error> {
    let _permit = context.part_changes.acquire().await.ok().ok_or(Error::Draining)?;
    let state = context.state.clone();
    let commit = move |store: &Arc<Store>| {
        if !state.with(|state| state.parts.has_all(&run.parts, &run.segments)) {
            return Ok(None);
        }
        let receipt = prepared.receipt();
        let schemas = receipt.files.iter().map(|file| {
            let schema = Schema::of(&file.columns);
            state.with(|state| state.parts.schema(schema.hash())).filter(|kept| **kept == schema)
        });
        let segment = Segment::of(receipt, schemas.collect());
        let segment = segment.ok_or_else(|| Error::Internal("the receipt of a new segment is invalid".to_owned()))?;
        let (id, parts) = (segment.id, segment.parts);
        prepared.commit()?;
        state.with(|state| state.parts.replace_by_segment(Arc::new(segment), &run.parts, &run.segments, &run.purged));
        run.segments.iter().for_each(|segment| store.set_aside_segment(&ReplacedSegment::of(segment)));
        run.purged.iter().for_each(|id| store.delete_mark(*id));
        tracing::info!(segment = %id, parts, "packed");
        Ok(Some(run))
    };
    let Some(run) = context.on_worker(Lane::Pack, commit).await? else { return Ok(None) };
    for parts in run.parts.chunks(TASK_PARTS) {
        let ids: Vec<_> = parts.iter().map(|part| part.id).collect();
        let move_out = move |store: &Arc<Store>| {
            ids.iter().for_each(|id| store.set_aside_part(*id));
            Ok(())
        };
        context.on_worker(Lane::Pack, move_out).await?;
    }
    Ok(Some(Batch::new(run.parts, run.segments)))
}

/// Deletes what was replaced some time ago and is not read any more.
async fn delete_retired(context: &Context, retired: &mut Retired) {
    while let Some(batch) = retired.pop(Instant::now()) {
        let mut ids = batch.parts();
        loop {
            let some: Vec<_> = ids.by_ref().take(TASK_PARTS).collect();
            if some.is_empty() {
                break;
            }
            let delete = move |store: &Arc<Store>| {
                some.iter().for_each(|id| store.delete_replaced_part(*id));
                Ok(())
            };
            if context.on_worker(Lane::Pack, delete).await.is_err() {
                return; // shutting down: the next start deletes them
            }
        }
        drop(ids);
        let segments = batch.into_segments();
        let delete = move |store: &Arc<Store>| {
            segments.iter().for_each(|segment| store.delete_replaced_segment(segment));
            Ok(())
        };
        if context.on_worker(Lane::Pack, delete).await.is_err() {
            return;
        }
    }
}
