//! Removing parts from the table, and the way back.
//!
//! A part is out of the table once its receipt was moved (`storage/removed_parts.rs`). A question that began before still has
//! it in its snapshot, and finishes: files that were moved are found in both folders, and files are deleted only when no
//! snapshot has the part. Until then, and for `--undo-s` seconds unless it is purged, a removed part counts as a part of the
//! table, so that memory is bounded and there is room to restore it.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::time::{Instant, sleep};

use super::find::find_part;
use crate::{
    engine::{
        runtime::{
            context::{Context, unix_seconds},
            detached::detached,
        },
        state::{
            Lane, Shared,
            removed_parts::{KeptPart, Removal},
        },
        storage::{
            Store,
            segments::cursor::{find_in, find_now},
        },
    },
    error::Error,
    limits::REMOVED_LISTED_MAX,
    model::part::{Part, PartFigures, PartId},
};

/// How long a purge waits for questions that read the part. After that its files are deleted in the background.
const PURGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often it checks whether they have ended.
const PURGE_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Time between two searches for files that can be deleted, unless parts are kept for less, or `--jobs-sweep-s` is less.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// A part that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedPart {
    /// How many parts the table has now.
    pub parts: usize,
    /// Until when the part can be restored, RFC 3339, UTC; `None` if it was purged.
    pub restorable_until: Option<String>,
}

/// A removed part that can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorablePart {
    /// Its number.
    pub part: PartId,
    /// Data rows.
    pub rows: u64,
    /// Bytes of its CSV file.
    pub csv_bytes: u64,
    /// Bytes of its Parquet file.
    pub parquet_bytes: u64,
    /// When it was removed, RFC 3339, UTC.
    pub removed_at: String,
    /// Until when it can be restored, RFC 3339, UTC.
    pub restorable_until: String,
}

/// The removed parts after `after` that can be restored, in order: at most `count_max` and [`REMOVED_LISTED_MAX`].
pub(crate) fn removed_parts(context: &Context, after: Option<PartId>, count_max: usize) -> Vec<RestorablePart> {
    let mut kept = Vec::with_capacity(count_max.min(REMOVED_LISTED_MAX));
    context.state.with(|state| state.parts.removed().list(after, &mut kept));
    let listed = kept.into_iter().map(|KeptPart { part, rows, csv_bytes, parquet_bytes, since_s }| RestorablePart {
        part,
        rows,
        csv_bytes,
        parquet_bytes,
        removed_at: text_of(SystemTime::UNIX_EPOCH + Duration::from_secs(since_s.into())),
        restorable_until: restorable_until(context, since_s),
    });
    listed.collect()
}

/// Until when a part can be restored that was removed at this time, in seconds since 1970.
pub(super) fn restorable_until(context: &Context, since_s: u32) -> String {
    text_of(SystemTime::UNIX_EPOCH + Duration::from_secs(since_s.into()) + context.limits.undo)
}

/// Removes a part from the table, durably. With `purge`, its files are deleted as soon as no question reads them, and it
/// cannot be restored. Removing it again changes nothing, unless it was purged: then there is no such part any more, even if its
/// files are not deleted yet.
///
/// Errors, after which nothing has changed: there is no such part; it is in quarantine; a file operation fails.
pub(crate) async fn remove_part(context: &Arc<Context>, id: PartId, purge: bool) -> Result<RemovedPart, Error> {
    let context = Arc::clone(context);
    detached(move |_cancel| async move {
        let kept_since_s = remove_now(&context, id, purge).await?;
        if purge {
            delete_when_unread(&context, id).await?;
        }
        let parts = context.state.with(|state| state.parts.len());
        let restorable_until = kept_since_s.map(|since_s| restorable_until(&context, since_s));
        Ok(RemovedPart { parts, restorable_until })
    })
    .await
}

/// Returns since when it is removed, if it is kept.
async fn remove_now(context: &Arc<Context>, id: PartId, purge: bool) -> Result<Option<u32>, Error> {
    let _permit = context.part_changes.acquire().await.ok().ok_or(Error::Draining)?;
    let part = find_part(context, id).await?;
    let removal = context.state.with(|state| state.parts.removal(id));
    let is_in_table = part.is_some();
    if let Some(part) = part.filter(|part| part.packed.is_some()) {
        return remove_packed(context, part, purge).await;
    }
    let state = context.state.clone();
    match removal {
        None if is_in_table && !purge => {
            let remove = move |store: &Arc<Store>| take_out(store, &state, id);
            context.on_worker(Lane::Upload, remove).await.map(Some)
        }
        None if is_in_table => {
            let purge = move |store: &Arc<Store>| {
                let columns = columns_of(store, &state, id);
                store.purge_part(id, false, &text_of(SystemTime::now()))?;
                state.with(|state| state.parts.remove(id, columns.as_ref(), Removal::Purged));
                Ok(None)
            };
            context.on_worker(Lane::Upload, purge).await
        }
        Some(Removal::Kept { .. }) if purge => purge_removed(context, id).await.map(|()| None),
        Some(Removal::Kept { since_s }) => Ok(Some(since_s)),
        Some(Removal::Purged) => Err(Error::NoSuchPart { part: id.get() }),
        None => {
            let is_damaged = context.on_worker(Lane::Upload, move |store| match store.is_in_quarantine(id)? {
                (true, false) => Err(Error::InQuarantine { part: id }),
                _ => Ok(store.has_removed_receipt(id)),
            });
            match is_damaged.await? {
                // A removed part with a damaged receipt can only be purged.
                true if purge => purge_removed(context, id).await.map(|()| None),
                _ => Err(Error::NoSuchPart { part: id.get() }),
            }
        }
    }
}

/// Removes a part that is in a segment. The caller has the permit for changes of parts.
///
/// Errors: there is no room for one more removed part, which is in memory until its segment is written without it.
async fn remove_packed(context: &Context, part: Arc<Part>, purge: bool) -> Result<Option<u32>, Error> {
    let state = context.state.clone();
    let remove = move |store: &Arc<Store>| {
        let full = state.with(|state| {
            let parts = &state.parts;
            parts.is_full().then(|| parts.too_many_parts())
        });
        full.map_or(Ok(()), Err)?;
        let now = SystemTime::now();
        let receipt = store.receipt_of(&part);
        let receipt = receipt
            .inspect_err(|error| tracing::warn!(part = %part.id, %error, "figures of columns are inexact now"))
            .ok();
        let columns = receipt.map(|receipt| PartFigures::of(&receipt, part.schema.as_ref()));
        store.mark_removed(part.id, purge, now)?;
        let removal = if purge { Removal::Purged } else { Removal::Kept { since_s: unix_seconds(now) } };
        // Without its segment, which may be replaced meanwhile.
        let part = Arc::new(Part { packed: None, ..Part::clone(&part) });
        state.with(|state| state.parts.remove_packed(part, columns.as_ref(), removal));
        Ok(match removal {
            Removal::Kept { since_s } => Some(since_s),
            Removal::Purged => None,
        })
    };
    context.on_worker(Lane::Upload, remove).await
}

/// What a part of the table has in the figures of the columns; `None` if its receipt cannot be read, which does not keep it from
/// being removed.
fn columns_of(store: &Store, state: &Shared, id: PartId) -> Option<PartFigures> {
    let part = find_now(store, state.with(|state| state.parts.locate(id)), id).ok()??;
    let receipt = store.receipt_of(&part);
    let receipt = receipt.inspect_err(|error| tracing::warn!(part = %id, %error, "figures of columns are inexact now"));
    Some(PartFigures::of(&receipt.ok()?, part.schema.as_ref()))
}

/// Moves a part out of the table, and returns when. The caller has the permit for changes of parts.
fn take_out(store: &Store, state: &Shared, id: PartId) -> Result<u32, Error> {
    let now = SystemTime::now();
    let since_s = unix_seconds(now);
    let columns = columns_of(store, state, id);
    store.remove_part(id, now)?;
    state.with(|state| state.parts.remove(id, columns.as_ref(), Removal::Kept { since_s }));
    store.move_removed_files(id);
    Ok(since_s)
}

/// Purges a removed part. The caller has the permit for changes of parts.
async fn purge_removed(context: &Context, id: PartId) -> Result<(), Error> {
    let state = context.state.clone();
    let purge = move |store: &Arc<Store>| {
        let schema = state.with(|state| state.parts.removed().schema(id));
        let is_packed = state.with(|state| state.parts.removed().is_packed(id));
        let segment = state.with(|state| {
            let parts = &state.parts;
            parts.removed().is_packed(id).then(|| parts.segment_of(id)).flatten()
        });
        let columns =
            store.receipt_of_removed(id, segment.as_ref()).map(|receipt| PartFigures::of(&receipt, schema.as_ref()));
        if is_packed {
            store.mark_purged(id, &text_of(SystemTime::now()))?;
        } else {
            store.purge_part(id, true, &text_of(SystemTime::now()))?;
        }
        state.with(|state| state.parts.purge(id, columns.as_ref()));
        Ok(())
    };
    context.on_worker(Lane::Upload, purge).await
}

/// Deletes the files of a purged part. If questions read it for too long or a file cannot be deleted, the next sweep tries again.
async fn delete_when_unread(context: &Context, id: PartId) -> Result<(), Error> {
    let deadline = Instant::now() + PURGE_WAIT_MAX;
    while context.state.with(|state| state.parts.removed().is_read(id)) {
        if Instant::now() >= deadline {
            tracing::info!(part = %id, "the files of the purged part are deleted when no question reads them");
            return Ok(());
        }
        sleep(PURGE_CHECK_INTERVAL).await;
    }
    if let Err(error) = delete(context, id).await {
        tracing::error!(part = %id, %error, "the files of the purged part are not deleted yet; this is tried again");
    }
    Ok(())
}

async fn delete(context: &Context, id: PartId) -> Result<(), Error> {
    let state = context.state.clone();
    let delete = move |store: &Arc<Store>| {
        if state.with(|state| state.parts.packed_purged().contains(&id)) {
            return Ok(()); // its rows go when its segment is written anew
        }
        store.delete_purged(id)?;
        state.with(|state| state.parts.end_purge(id));
        Ok(())
    };
    context.on_worker(Lane::Upload, delete).await
}

/// Puts a removed part back into the table, and returns how many parts the table has then. Restoring it again changes nothing.
///
/// Errors, after which nothing has changed: it was not removed, or its files are gone; they are damaged; a file operation fails.
pub(crate) async fn restore_part(context: &Arc<Context>, id: PartId) -> Result<usize, Error> {
    let context = Arc::clone(context);
    detached(move |_cancel| async move {
        let _permit = context.part_changes.acquire().await.ok().ok_or(Error::Draining)?;
        let is_in_table = find_part(&context, id).await?.is_some();
        let removal = context.state.with(|state| state.parts.removal(id));
        let state = context.state.clone();
        let (now_s, undo_s) = context.undo_time(SystemTime::now());
        let is_final = |removal: Removal| removal.is_final(now_s, undo_s);
        match removal {
            _ if is_in_table => {}
            Some(removal @ Removal::Kept { .. }) if !is_final(removal) => {
                let restore = move |store: &Arc<Store>| {
                    if state.with(|state| state.parts.removed().is_packed(id)) {
                        return restore_packed(store, &state, id, removal);
                    }
                    let receipt = store.restore_part(id)?;
                    let schema = state.with(|state| state.parts.removed().schema(id));
                    let columns = PartFigures::of(&receipt, schema.as_ref());
                    state.with(|state| state.parts.put_back(id, &columns));
                    Ok(())
                };
                context.on_worker(Lane::Upload, restore).await?;
            }
            Some(_is_final) => return Err(Error::NoSuchPart { part: id.get() }),
            None => {
                let is_damaged =
                    context.on_worker(Lane::Upload, move |store| Ok(store.has_removed_receipt(id))).await?;
                let what = "its receipt in removed/ is not what was written".to_owned();
                return Err(if is_damaged {
                    Error::Damaged { part: id, what }
                } else {
                    Error::NoSuchPart { part: id.get() }
                });
            }
        }
        Ok(context.state.with(|state| state.parts.len()))
    })
    .await
}

/// Puts a removed part of a segment back. The caller has the permit for changes of parts.
fn restore_packed(store: &Store, state: &Shared, id: PartId, removal: Removal) -> Result<(), Error> {
    let segment = state.with(|state| state.parts.segment_of(id)).ok_or(Error::NoSuchPart { part: id.get() })?;
    let part = find_in(store, &segment, id)?.ok_or(Error::NoSuchPart { part: id.get() })?;
    let columns = PartFigures::of(&store.receipt_of(&part)?, part.schema.as_ref());
    let since_s = match removal {
        Removal::Kept { since_s } => since_s,
        Removal::Purged => return Err(Error::NoSuchPart { part: id.get() }),
    };
    store.unmark_removed(id, SystemTime::UNIX_EPOCH + Duration::from_secs(since_s.into()))?;
    state.with(|state| state.parts.put_back(id, &columns));
    Ok(())
}

/// Deletes the files of parts that were removed long ago, or purged while they were read, until the engine is dropped.
pub(crate) async fn keep_sweeping(context: Weak<Context>, interval: Duration) {
    loop {
        sleep(interval.min(SWEEP_INTERVAL)).await;
        let Some(context) = context.upgrade() else { return };
        if let Err(Error::Draining) = sweep(&context, SystemTime::now()).await {
            return;
        }
    }
}

async fn sweep(context: &Context, now: SystemTime) -> Result<(), Error> {
    let (now_s, undo_s) = context.undo_time(now);
    let mut after = None;
    while let Some(id) = context.state.next_to_delete(after, now_s, undo_s) {
        after = Some(id);
        match sweep_part(context, id, now_s, undo_s).await {
            Err(Error::Draining) => return Err(Error::Draining),
            Err(error) => tracing::error!(part = %id, %error, "the files of a removed part could not be deleted"),
            Ok(()) => {}
        }
    }
    Ok(())
}

async fn sweep_part(context: &Context, id: PartId, now_s: u32, undo_s: u32) -> Result<(), Error> {
    let permit = context.part_changes.acquire().await.ok().ok_or(Error::Draining)?;
    // It may have been restored, and removed again, while this waited.
    if !context.state.with(|state| state.parts.removed().can_be_deleted(id, now_s, undo_s)) {
        return Ok(());
    }
    match context.state.with(|state| state.parts.removal(id)) {
        None => return Ok(()), // it was restored meanwhile
        Some(Removal::Kept { .. }) => {
            purge_removed(context, id).await?;
            tracing::info!(part = %id, "the removed part cannot be restored any more");
        }
        Some(Removal::Purged) => {}
    }
    drop(permit);
    delete(context, id).await
}

fn text_of(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}
