//! Uploads with an idempotency key, which a client may repeat: one of them is added, and the others get its receipt.
//!
//! The registry knows from hashes of the keys whether a part may have a key; its receipt has the key itself. Removed parts count,
//! until they are purged. If there is such a part when an upload begins, the upload is only compared with it. Otherwise
//! it is received like any other, and then claims its key, until it is added or refused. Another upload that claims the same
//! key waits for that, and then looks for the part again. Whoever has a key does not depend on a client any more, so nobody
//! waits for long.

use std::{hash::Hasher, num::NonZeroU64, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use twox_hash::XxHash3_64;

use super::{
    blocks::{Incoming, TargetSize},
    receive::run_unless_cancelled,
};
use crate::{
    engine::{
        runtime::context::Context,
        state::{Lane, Shared, removed_parts::Removal, upload_keys::KeyClaim},
        storage::{Store, draft::checksum_text, segments::reading::SegmentIndex},
    },
    error::Error,
    limits::RECEIVE_BLOCK_BYTES,
    model::{
        idempotency_key::IdempotencyKey,
        packed::Segment,
        part::{FileInfo, Part, Receipt},
    },
};

/// What became of an upload.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// The receipt of its part.
    pub receipt: Receipt,
    /// Whether another upload with the same key and the same bytes added the part, so that this one added nothing.
    pub replayed: bool,
}

/// A key that no other upload can claim until this is dropped.
pub(super) struct ClaimedKey {
    state: Shared,
    key: IdempotencyKey,
}

impl Drop for ClaimedKey {
    fn drop(&mut self) {
        if let Some(released) = self.state.with(|state| state.claimed_keys.release(&self.key)) {
            released.cancel();
        }
    }
}

/// Whether an upload that was received may be added.
pub(super) enum Claim {
    /// Its key was not used: it has it now.
    New(ClaimedKey),
    /// This part has its key.
    Used(Box<Receipt>),
}

/// Claims the key of an upload that was received. If another one has it, this waits until that one is added or refused.
///
/// Errors: those of [`find`]; the call was cancelled.
pub(super) async fn claim(context: &Context, cancel: &CancellationToken, key: &IdempotencyKey) -> Result<Claim, Error> {
    let claimed = loop {
        match context.state.with(|state| state.claimed_keys.claim(key)) {
            KeyClaim::Claimed => break ClaimedKey { state: context.state.clone(), key: key.clone() },
            KeyClaim::InUse(released) => tokio::select! {
                () = released.cancelled() => {}
                () = cancel.cancelled() => return Err(Error::Cancelled),
            },
            KeyClaim::TooMany => return Err(Error::TooManyUploads { uploads_max: context.limits.uploads_max }),
        }
    };
    Ok(match find(context, cancel, key).await? {
        Some(receipt) => Claim::Used(Box::new(receipt)),
        None => Claim::New(claimed),
    })
}

/// The receipt of the part that was uploaded with a key.
///
/// Errors: a receipt whose key may be this one is damaged; the call was cancelled.
pub(crate) async fn find(
    context: &Context,
    cancel: &CancellationToken,
    key: &IdempotencyKey,
) -> Result<Option<Receipt>, Error> {
    let hash = key.hash();
    if !may_be_used(context, hash).await? {
        return Ok(None);
    }
    // Meanwhile no part is removed or restored.
    let _permit = tokio::select! {
        permit = context.part_changes.acquire() => permit.ok().ok_or(Error::Draining)?,
        () = cancel.cancelled() => return Err(Error::Cancelled),
    };
    let (state, key) = (context.state.clone(), key.clone());
    let has_hash = move |part: &Part| part.key_hash == Some(hash);
    let search = move |store: &Arc<Store>| {
        let read =
            |id| store.receipt(id).map(|receipt| Some(receipt).filter(|it| it.idempotency_key.as_ref() == Some(&key)));
        let parts = state.with(|state| state.parts.snapshot());
        for (id, _) in parts.parts.iter().filter(|(_, part)| has_hash(part)) {
            if let Some(receipt) = read(*id)? {
                return Ok(Some(receipt));
            }
        }
        for segment in parts.segments.values().filter(|segment| segment.keys.0 > 0) {
            if let Some(receipt) = find_packed(store, &state, segment, hash, &key)? {
                return Ok(Some(receipt));
            }
        }
        let mut after = None;
        while let Some(id) = state.next_removed_unpacked(after, |part, _removal| has_hash(part)) {
            if let Some(receipt) = read(id)? {
                return Ok(Some(receipt));
            }
            after = Some(id);
        }
        Ok(None)
    };
    context.on_worker(Lane::Upload, search).await
}

/// Whether a part may have a key with this hash. If not, none has. Both are looked up in the table of one moment, so that a part
/// that is packed meanwhile is not missed.
async fn may_be_used(context: &Context, hash: NonZeroU64) -> Result<bool, Error> {
    let (may_be_unpacked, segments) = context.state.with(|state| {
        let segments = state.parts.has_packed_keys().then(|| state.parts.snapshot().segments);
        (state.parts.keys().may_contain(hash), segments)
    });
    match segments {
        Some(segments) if !may_be_unpacked => {
            let search = move |store: &Arc<Store>| {
                for segment in segments.values() {
                    if store.may_have_key(segment, hash.get())? {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            context.on_worker(Lane::Upload, search).await
        }
        _ => Ok(may_be_unpacked),
    }
}

/// The receipt of the part of a segment that was uploaded with a key, unless the part is purged.
fn find_packed(
    store: &Store,
    state: &Shared,
    segment: &Arc<Segment>,
    hash: NonZeroU64,
    key: &IdempotencyKey,
) -> Result<Option<Receipt>, Error> {
    if !store.may_have_key(segment, hash.get())? {
        return Ok(None);
    }
    let mut index = SegmentIndex::open(store, segment)?;
    for number in 0..segment.index_blocks {
        let block = index.block(number)?;
        for part in block.parts.iter().filter(|part| part.key_hash == Some(hash)) {
            let is_purged = state.with(|state| state.parts.removal(part.id) == Some(Removal::Purged));
            let receipt = store.receipt_of(part)?;
            if !is_purged && receipt.idempotency_key.as_ref() == Some(key) {
                return Ok(Some(receipt));
            }
        }
    }
    Ok(None)
}

/// The answer to an upload whose key is that of a part.
///
/// Errors: the part was made of other bytes.
pub(super) fn replayed(key: &IdempotencyKey, receipt: Receipt, received: &FileInfo) -> Result<Uploaded, Error> {
    if receipt.received() == received {
        return Ok(Uploaded { receipt, replayed: true });
    }
    Err(Error::KeyUsed { key: key.to_string(), part: receipt.part })
}

/// Size and checksum of a file in memory.
pub(super) async fn info_of(
    context: &Arc<Context>,
    cancel: &CancellationToken,
    csv: Vec<u8>,
) -> Result<FileInfo, Error> {
    let hash = move || {
        let mut hash = XxHash3_64::new();
        hash.write(&csv);
        Ok(FileInfo { bytes: csv.len() as u64, xxh3: checksum_text(&hash) })
    };
    run_unless_cancelled(context, cancel, hash).await
}

/// Reads an upload whose key is that of a part, without keeping it, until it is clear whether the bytes are the same.
pub(super) async fn replay<S>(
    mut incoming: Incoming<'_, S>,
    key: &IdempotencyKey,
    receipt: Receipt,
) -> Result<Uploaded, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let Incoming { context, cancel, .. } = incoming;
    let (mut hash, mut block) = (Box::new(XxHash3_64::new()), incoming.first_block().await?);
    loop {
        let at_end = block.at_end;
        let add = move || {
            hash.write(&block.bytes);
            block.bytes.clear();
            Ok((hash, block.bytes))
        };
        let spare;
        (hash, spare) = run_unless_cancelled(context, cancel, add).await?;
        if at_end || incoming.bytes > receipt.received().bytes {
            let received = FileInfo { bytes: incoming.bytes, xxh3: checksum_text(&hash) };
            return replayed(key, receipt, &received);
        }
        block = incoming.next_block(&TargetSize::new(RECEIVE_BLOCK_BYTES), spare).await?;
    }
}
