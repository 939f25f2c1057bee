//! What a question reads, in batches: row groups of the Parquet files of segments, and then the other parts.

use std::{ops::Range, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};

use super::accumulator::Columns;
use crate::{
    engine::{
        parts::segment_rows::{Divided, FileUse, SegmentRows},
        query::part_batches::PartBatches,
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::Store,
    },
    error::Error,
    limits::{
        PACKED_CURSOR_BYTES, PACKED_QUESTION_BYTES, PACKED_REMOVED_RANGES_MAX, PART_BYTES, SURVEY_TASKS_MAX,
        TASK_PARTS_MAX,
    },
    model::{format::Format, part::Part, schema::Schema},
};

/// A question has a cursor on parts in segments, the parts of its tasks, and ranges of removed rows, of which each task has a copy.
const _: () = assert!(
    PACKED_QUESTION_BYTES
        >= PACKED_CURSOR_BYTES
            + SURVEY_TASKS_MAX * TASK_PARTS_MAX * PART_BYTES
            + (1 + SURVEY_TASKS_MAX) * PACKED_REMOVED_RANGES_MAX * size_of::<Range<u64>>()
);

/// What is read one task after another.
pub(super) enum Batch {
    /// Parts that follow each other.
    Parts(Vec<Arc<Part>>),
    RowGroup(RowGroup),
}

/// A row group of a segment's Parquet file.
#[derive(Clone)]
pub(super) struct RowGroup {
    pub(super) file: Arc<SegmentRows>,
    pub(super) row_group: usize,
}

/// The batches of a question, of which none was read.
pub(super) struct Batches {
    pub(super) stream: Pin<Box<dyn Stream<Item = Result<Batch, Error>> + Send>>,
    /// How many parts the table has.
    pub(super) parts_count: u64,
    has_row_groups: bool,
}

impl Batch {
    /// How many parts are done once the batch is. A segment's parts are counted with its first row group.
    pub(super) fn parts_count(&self) -> u64 {
        match self {
            Self::Parts(parts) => parts.len() as u64,
            Self::RowGroup(RowGroup { file, row_group: 0 }) => file.parquet().map_or(0, |parquet| parquet.parts),
            Self::RowGroup(_) => 0,
        }
    }
}

impl Batches {
    /// The batches of a question that needs `columns_count` columns. Those of segments come first.
    ///
    /// Errors: the server is shutting down.
    pub(super) async fn of(
        context: &Arc<Context>,
        lane: Lane,
        parts: Snapshot,
        columns_count: usize,
    ) -> Result<Self, Error> {
        if parts.segments.is_empty() {
            return Ok(Self::by_parts(context, lane, parts));
        }
        let parts_count = parts.len() as u64;
        let permit = Arc::clone(&context.packed_questions).acquire_owned().await;
        let permit = permit.ok().ok_or(Error::Draining)?;
        let use_of = move |_: &SegmentRows, schema: &Schema| {
            Ok(match Columns::of(schema) {
                None => FileUse::Nothing,
                Some(columns) if columns.are_exact(columns_count) => FileUse::Parquet,
                Some(_) => FileUse::Csv,
            })
        };
        let divide = move |store: &Arc<Store>| Ok(Divided::of(store, parts, use_of));
        let divided = context.on_worker(lane, divide).await?;
        let batches = PartBatches::of(divided.cursor(), Format::Parquet, Some(permit));
        let batches = batches.stream(Arc::clone(context), lane).map_ok(Batch::Parts);
        let has_row_groups = !divided.files.is_empty();
        let row_groups = divided.files.into_iter().flat_map(|file| {
            let row_groups = file.parquet().map_or(0, |parquet| parquet.row_groups as usize);
            let file = Arc::new(file);
            (0..row_groups).map(move |row_group| Ok(Batch::RowGroup(RowGroup { file: Arc::clone(&file), row_group })))
        });
        let stream = Box::pin(stream::iter(row_groups).chain(batches));
        Ok(Self { stream, parts_count, has_row_groups })
    }

    /// The batches of all parts, in their order.
    pub(super) fn by_parts(context: &Arc<Context>, lane: Lane, parts: Snapshot) -> Self {
        let parts_count = parts.len() as u64;
        let batches = PartBatches::new(parts, Format::Parquet).stream(Arc::clone(context), lane);
        Self { stream: Box::pin(batches.map_ok(Batch::Parts)), parts_count, has_row_groups: false }
    }

    /// Whether row groups of segments are read, before all parts that come earlier in the table.
    pub(super) fn read_segments(&self) -> bool {
        self.has_row_groups
    }
}
