//! The moment at which a segment takes the place of parts and smaller segments, on the disk and in the registry.

use std::sync::Arc;

use super::{plan::Run, retired::Batch};
use crate::{
    engine::{
        runtime::{context::Context, detached::detached},
        state::Lane,
        storage::{
            Store,
            segments::{replaced::has_list, writing::PreparedSegment},
        },
    },
    error::Error,
    model::{
        packed::{ReplacedSegment, Segment},
        part::PartId,
        schema::Schema,
    },
};

/// Parts whose files one task moves.
const TASK_PARTS: usize = 64;

/// Removes a segment all of whose parts are purged. `None`, and nothing has changed, if it was replaced meanwhile.
pub(super) async fn drop_segment(
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
pub(super) async fn commit(
    context: &Arc<Context>,
    run: Run,
    prepared: PreparedSegment,
) -> Result<Option<Batch>, Error> {
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
    let mut are_moved = true;
    for parts in run.parts.chunks(TASK_PARTS) {
        let ids: Vec<_> = parts.iter().map(|part| (part.id, has_list(part))).collect();
        let move_out = move |store: &Arc<Store>| {
            Ok(ids.iter().fold(true, |are_moved, (id, has_list)| store.set_aside_part(*id, *has_list) && are_moved))
        };
        // The segment is in the table: whatever happens, the batch is handed on.
        are_moved &= context.on_worker(Lane::Pack, move_out).await.unwrap_or(false);
    }
    let batch = Batch::new(run.parts, run.segments);
    Ok(Some(if are_moved { batch } else { batch.with_some_not_moved() }))
}
