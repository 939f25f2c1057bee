//! Batches of parts, each of which is about enough for one task.

use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    engine::{
        parquet::wide::is_wide,
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::{Store, segments::cursor::PartCursor},
    },
    error::Error,
    limits::{TASK_BYTES, TASK_PARTS_MAX},
    model::{
        format::Format,
        part::{Part, PartId},
    },
};

/// Splits the parts of a snapshot into batches of consecutive parts that one task can read. A larger part is a batch by itself. A
/// wide part is the first of its batch.
pub(crate) struct PartBatches {
    cursor: PartCursor,
    format: Format,
    /// The first part of the next batch, if it was found already.
    peeked: Option<Arc<Part>>,
    after: Option<PartId>,
    /// The permit for reading parts in segments.
    permit: Option<OwnedSemaphorePermit>,
}

impl PartBatches {
    /// The batches of all parts. `format` is the one that is read of parts that have their own files.
    pub(crate) fn new(parts: Snapshot, format: Format) -> Self {
        Self::of(PartCursor::new(parts), format, None)
    }

    /// The batches of a cursor's parts. `permit`: that for reading parts in segments, if the caller has it.
    pub(crate) fn of(cursor: PartCursor, format: Format, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { cursor, format, peeked: None, after: None, permit }
    }

    /// All batches, in order. After an error there are no more.
    ///
    /// Errors: the index of a segment is damaged or cannot be read.
    pub(crate) fn stream(
        self,
        context: Arc<Context>,
        lane: Lane,
    ) -> impl Stream<Item = Result<Vec<Arc<Part>>, Error>> + Send {
        Box::pin(stream::try_unfold(self, move |mut batches| {
            let context = Arc::clone(&context);
            async move {
                if batches.cursor.is_in_memory() {
                    let batch = batches.next_now(&context.store)?;
                    return Ok(batch.map(|batch| (batch, batches)));
                }
                if batches.permit.is_none() {
                    let permit = Arc::clone(&context.packed_questions).acquire_owned().await;
                    batches.permit = Some(permit.ok().ok_or(Error::Draining)?);
                }
                let step = move |store: &Arc<Store>| {
                    let batch = batches.next_now(store)?;
                    Ok(batch.map(|batch| (batch, batches)))
                };
                context.on_worker(lane, step).await
            }
        }))
    }

    /// The next batch, on a worker unless all parts have their own files.
    fn next_now(&mut self, store: &Store) -> Result<Option<Vec<Arc<Part>>>, Error> {
        let Some(first) = self.take(store)? else { return Ok(None) };
        let mut bytes = self.bytes(&first);
        let mut batch = vec![first];
        while batch.len() < TASK_PARTS_MAX {
            let Some(part) = self.take(store)? else { break };
            if bytes + self.bytes(&part) > TASK_BYTES as u64 || is_wide(&part) {
                self.peeked = Some(part);
                break;
            }
            bytes += self.bytes(&part);
            batch.push(part);
        }
        Ok(Some(batch))
    }

    fn take(&mut self, store: &Store) -> Result<Option<Arc<Part>>, Error> {
        let part = match self.peeked.take() {
            Some(part) => Some(part),
            None => self.cursor.next(store, self.after)?,
        };
        if let Some(part) = &part {
            self.after = Some(part.id);
        }
        Ok(part)
    }

    fn bytes(&self, part: &Part) -> u64 {
        match self.format {
            Format::Csv => part.csv_bytes,
            Format::Parquet => part.parquet_bytes,
        }
    }
}
