//! Uploads of files from the disk of the server (`--load`).

use std::{hash::Hasher, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use twox_hash::XxHash3_64;

use super::{
    blocks::{Incoming, TargetSize},
    rewrite::as_csv,
};
use crate::{
    engine::{
        runtime::{context::Context, transfers::Paced},
        state::{Lane, transfers::Pace},
        storage::{Store, draft::checksum_text, reader::Reader, segments::cursor::PartCursor},
    },
    error::Error,
    limits::RECEIVE_BLOCK_BYTES,
    model::{
        dialect::Dialect,
        part::{FileInfo, Part, PartId},
    },
};

/// What became of a file that was to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// It is a new part.
    Now(PartId),
    /// This part has the same bytes, so it was loaded by an earlier start.
    Before(PartId),
    /// This part has the same bytes and was removed; it can still be restored.
    Removed(PartId),
    /// This part is in quarantine, and its file has the same bytes or may have them.
    InQuarantine(PartId),
}

pub(crate) async fn open(context: &Context, path: &Path) -> Result<Reader, Error> {
    let path = path.to_owned();
    context.on_worker(Lane::Upload, move |_store| Reader::open(&path)).await
}

/// Looks for a part with the same CSV as the file, which for a file of another dialect is what it is rewritten to. If a part in
/// quarantine or a removed one has it, the file must not be uploaded: once that part is restored, its rows would be counted twice.
pub(crate) async fn find(context: &Arc<Context>, file: &Reader, dialect: &Dialect) -> Result<Option<Loaded>, Error> {
    let rewritten = match dialect.clone().unless_plain() {
        Some(dialect) => Some(rewritten_info(context, file, &dialect).await?),
        None => None,
    };
    let bytes = rewritten.as_ref().map_or(file.bytes(), |csv| csv.bytes);
    let (parts, missing) = context.state.with(|state| (state.parts.snapshot(), state.parts.missing().clone()));
    let of_this_size = move |part: &Part| part.csv_bytes == bytes;
    let mut same_size = next_of_size(context, PartCursor::new(parts), None, bytes).await?;
    let (now_s, undo_s) = context.undo_time(SystemTime::now());
    let next_removed = |after| {
        context.state.next_removed(after, |part, removal| of_this_size(part) && !removal.is_final(now_s, undo_s))
    };
    let mut removed = next_removed(None);
    if same_size.is_none() && removed.is_none() && missing.count() == 0 {
        return Ok(None);
    }
    let checksum = match rewritten {
        Some(csv) => csv.xxh3,
        None => checksum(context, file).await?,
    };
    while let Some((part, cursor)) = same_size {
        let of = Arc::clone(&part);
        let receipt = context.on_worker(Lane::Upload, move |store| store.receipt_of(&of)).await?;
        if receipt.csv.xxh3 == checksum {
            return Ok(Some(Loaded::Before(part.id)));
        }
        same_size = next_of_size(context, cursor, Some(part.id), bytes).await?;
    }
    while let Some(id) = removed {
        let segment = context.state.with(|state| {
            let parts = &state.parts;
            parts.removed().is_packed(id).then(|| parts.segment_of(id)).flatten()
        });
        let read = move |store: &Arc<Store>| Ok(store.receipt_of_removed(id, segment.as_ref()));
        let receipt = context.on_worker(Lane::Upload, read).await?;
        // If it cannot be read, nobody knows which file it was.
        if receipt.is_none_or(|receipt| receipt.csv.xxh3 == checksum) {
            return Ok(Some(Loaded::Removed(id)));
        }
        removed = next_removed(Some(id));
    }
    for &id in missing.listed() {
        let receipt = context.on_worker(Lane::Upload, move |store| Ok(store.quarantined_receipt(id))).await?;
        if receipt.is_none_or(|receipt| receipt.csv.xxh3 == checksum) {
            return Ok(Some(Loaded::InQuarantine(id)));
        }
    }
    let some_are_not_listed = missing.count() > missing.listed().len();
    Ok(missing.listed().first().filter(|_| some_are_not_listed).map(|&id| Loaded::InQuarantine(id)))
}

/// The first part after `after` whose CSV has this size.
async fn next_of_size(
    context: &Context,
    mut cursor: PartCursor,
    mut after: Option<PartId>,
    csv_bytes: u64,
) -> Result<Option<(Arc<Part>, PartCursor)>, Error> {
    let search = move |store: &Arc<Store>| {
        while let Some(part) = cursor.next(store, after)? {
            if part.csv_bytes == csv_bytes {
                return Ok(Some((part, cursor)));
            }
            after = Some(part.id);
        }
        Ok(None)
    };
    context.on_worker(Lane::Upload, search).await
}

/// A file as a stream of blocks.
pub(crate) fn blocks_of(
    context: &Context,
    file: Reader,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + use<> {
    let workers = context.workers.clone();
    Box::pin(stream::try_unfold((workers, file, 0), |(workers, file, offset)| async move {
        let reader = file.clone();
        let read = move || reader.block(offset, RECEIVE_BLOCK_BYTES);
        let block = workers.run(Lane::Upload, read).await.flatten()?;
        let next = offset + block.len() as u64;
        Ok(if block.is_empty() { None } else { Some((Bytes::from(block), (workers, file, next))) })
    }))
}

/// Size and checksum of the CSV that a file is rewritten to. Nothing is stored.
async fn rewritten_info(context: &Arc<Context>, file: &Reader, dialect: &Dialect) -> Result<FileInfo, Error> {
    let cancel = CancellationToken::new();
    let pace = Arc::new(Pace::new(cancel.clone()));
    let body = Paced::new(blocks_of(context, file.clone()), pace, context.limits.upload_idle_max);
    let incoming = Incoming::new(context, &cancel, body);
    let (mut csv, _original) = as_csv(incoming, Some(dialect.clone())).await?;
    let (mut hash, mut bytes) = (Box::new(XxHash3_64::new()), 0);
    loop {
        let block = csv.next_block(&TargetSize::new(RECEIVE_BLOCK_BYTES), Vec::new()).await?;
        hash.write(&block.bytes);
        bytes += block.bytes.len() as u64;
        if block.at_end {
            return Ok(FileInfo { bytes, xxh3: checksum_text(&hash) });
        }
    }
}

/// The checksum of a file, in the form that receipts use.
async fn checksum(context: &Context, file: &Reader) -> Result<String, Error> {
    let mut hash = Box::new(XxHash3_64::new());
    let mut blocks = blocks_of(context, file.clone());
    while let Some(block) = blocks.next().await {
        hash.write(&block?);
    }
    Ok(checksum_text(&hash))
}
