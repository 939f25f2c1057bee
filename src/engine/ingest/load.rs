//! Uploads of files from the disk of the server (`--load`).

use std::{hash::Hasher, path::Path};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use twox_hash::XxHash3_64;

use crate::{
    engine::{
        runtime::context::Context,
        state::Lane,
        storage::{draft::checksum_text, reader::Reader},
    },
    error::Error,
    limits::RECEIVE_BLOCK_BYTES,
    model::part::PartId,
};

/// Whether a file still has to be uploaded.
pub(crate) enum Loadable {
    /// The table has a part with the same bytes.
    Stored(PartId),
    /// No part has the same bytes.
    New(Reader),
}

/// Opens a file, and looks for a part with the same bytes: first by size, then by checksum.
pub(crate) async fn look_up(context: &Context, path: &Path) -> Result<Loadable, Error> {
    let path = path.to_owned();
    let file = context.on_worker(Lane::Upload, move |_store| Reader::open(&path)).await?;
    let parts = context.state.with(|state| state.parts.snapshot());
    let mut same_size = parts.values().filter(|part| part.csv_bytes == file.bytes()).peekable();
    if same_size.peek().is_some() {
        let checksum = checksum(context, &file).await?;
        for part in same_size {
            let id = part.id;
            let receipt = context.on_worker(Lane::Upload, move |store| store.receipt(id)).await?;
            if receipt.csv.xxh3 == checksum {
                return Ok(Loadable::Stored(id));
            }
        }
    }
    Ok(Loadable::New(file))
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

/// The checksum of a file, in the form that receipts use.
async fn checksum(context: &Context, file: &Reader) -> Result<String, Error> {
    let mut hash = Box::new(XxHash3_64::new());
    let mut blocks = blocks_of(context, file.clone());
    while let Some(block) = blocks.next().await {
        hash.write(&block?);
    }
    Ok(checksum_text(&hash))
}
