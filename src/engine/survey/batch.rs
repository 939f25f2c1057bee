//! Reads the parts of a batch, or a row group of a segment, one task after another.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    accumulator::{Columns, Row},
    batches::{Batch, RowGroup},
    collector::Collector,
    csv_part::{CsvPart, CsvPosition, CsvStep},
};
use crate::{
    engine::{
        parquet::{
            column_reader::{PartColumns, Position},
            wide::is_wide,
        },
        runtime::{context::Context, workers::Workers},
        state::Lane,
        storage::{Store, segments::reading::OpenSegment},
    },
    error::Error,
    limits::{SURVEY_ROW_BYTES, TASK_BYTES},
    model::{
        format::Format,
        part::{Part, PartId},
        schema::Schema,
    },
};

/// As many rows are read as codes in the time in which one is read as text.
const CODED_ROWS_PER_ROW: usize = 16;

const _: () = assert!(size_of::<(u32, Row)>() <= SURVEY_ROW_BYTES);

/// What batches are read with.
#[derive(Clone)]
pub(crate) struct ReadWith {
    pub(crate) store: Arc<Store>,
    pub(crate) workers: Workers,
    pub(crate) lane: Lane,
    /// Permits for wide parts and for long rows.
    pub(crate) wide_reads: Arc<Semaphore>,
}

impl ReadWith {
    /// The workers of this server.
    pub(crate) fn of(context: &Context, lane: Lane) -> Self {
        let (store, wide_reads) = (Arc::clone(&context.store), Arc::clone(&context.wide_reads));
        Self { store, workers: context.workers.clone(), lane, wide_reads }
    }
}

/// A batch that was read.
pub(super) struct Read<C> {
    pub(super) parts_count: u64,
    /// The rows of each part that was not read from a segment's Parquet file; `None` for those that lack a column.
    pub(super) parts: Vec<(PartId, Option<u64>)>,
    pub(super) collector: C,
}

/// Reads a batch, one task after another, and adds its rows to `collector`.
pub(super) async fn read_batch<C: Collector>(
    with: ReadWith,
    batch: Batch,
    collector: C,
    task_rows: usize,
) -> Result<Read<C>, Error> {
    // There is memory for only a few footers of wide parts.
    let mut needs_permit = match &batch {
        Batch::Parts(parts) => parts.iter().any(|part| is_wide(part)),
        Batch::RowGroup(group) => is_wide(&group.file.part()?),
    };
    let parts_count = batch.parts_count();
    let (position, csv_position) = (Position::default(), CsvPosition::default());
    let mut work = BatchRead {
        batch,
        next: 0,
        position,
        csv_position,
        rows: None,
        parts: Vec::new(),
        open: OpenSegment::default(),
        collector,
        task_rows,
        permit: None,
    };
    while !work.is_done() {
        if needs_permit && work.permit.is_none() {
            let permit = Arc::clone(&with.wide_reads).acquire_owned().await;
            work.permit = Some(permit.ok().ok_or(Error::Draining)?);
        }
        let store = Arc::clone(&with.store);
        let task = move || {
            let is_before_long_row = work.step(&store)?;
            Ok((work, is_before_long_row))
        };
        (work, needs_permit) = with.workers.run(with.lane, task).await.flatten()?;
    }
    Ok(Read { parts_count, parts: work.parts, collector: work.collector })
}

/// A batch that is being read.
struct BatchRead<C> {
    batch: Batch,
    /// How many of its parts, or row groups, were read.
    next: usize,
    position: Position,
    /// The same in a part whose CSV is read.
    csv_position: CsvPosition,
    /// The rows that were read of the current part; `None` if it lacks a column.
    rows: Option<u64>,
    /// What [`Read::parts`] will be.
    parts: Vec<(PartId, Option<u64>)>,
    open: OpenSegment,
    collector: C,
    /// Rows that one task reads.
    task_rows: usize,
    /// For a wide part, or for a long row of a CSV. Kept here because a task may still run after its call was cancelled.
    permit: Option<OwnedSemaphorePermit>,
}

/// What a task may still read.
struct Left {
    rows: usize,
    bytes: u64,
}

impl Left {
    fn is_none(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }
}

/// Where a task has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// At the end of the part, or of the row group.
    Complete,
    Inside,
    /// Before a row of a CSV for which it needs a permit.
    BeforeLongRow,
}

impl<C: Collector> BatchRead<C> {
    fn is_done(&self) -> bool {
        match &self.batch {
            Batch::Parts(parts) => self.next == parts.len(),
            Batch::RowGroup(_) => self.next == 1,
        }
    }

    /// One task: reads parts, or row ranges of a large part, up to about `task_rows` or `TASK_BYTES`. Returns whether it ended
    /// before a row of a CSV for which it needs a permit.
    fn step(&mut self, store: &Store) -> Result<bool, Error> {
        let mut left = Left { rows: self.task_rows, bytes: TASK_BYTES as u64 };
        while !self.is_done() && !left.is_none() {
            let ended = match &self.batch {
                Batch::Parts(parts) => {
                    let part = Arc::clone(&parts[self.next]);
                    self.read_part(store, &part, &mut left)?
                }
                Batch::RowGroup(group) => {
                    let group = group.clone();
                    self.read_row_group(store, &group, &mut left)?
                }
            };
            if ended != Ended::Complete {
                return Ok(ended == Ended::BeforeLongRow);
            }
            let rows = self.rows.take();
            if let Batch::Parts(parts) = &self.batch {
                self.parts.push((parts[self.next].id, rows));
            }
            (self.next, self.position, self.csv_position) =
                (self.next + 1, Position::default(), CsvPosition::default());
        }
        Ok(false)
    }

    fn read_part(&mut self, store: &Store, part: &Part, left: &mut Left) -> Result<Ended, Error> {
        let schema = store.schema_with(part, &mut self.open)?;
        let Some(columns) = Columns::of(&schema) else { return Ok(Ended::Complete) };
        if part.packed.is_some() || !columns.are_exact(self.collector.columns_count()) {
            return self.read_csv(store, part, &schema, &columns, left);
        }
        let file = store.open_part(part, Format::Parquet)?;
        let open = PartColumns::open(&file, part)?;
        self.read_parquet(&open, part, &columns, None, left)
    }

    fn read_row_group(&mut self, store: &Store, group: &RowGroup, left: &mut Left) -> Result<Ended, Error> {
        let RowGroup { file: rows, row_group } = group;
        let (part, schema) = (rows.part()?, rows.schema(store)?);
        let Some(columns) = Columns::of(&schema) else { return Ok(Ended::Complete) };
        let file = rows.open(store)?;
        let open = PartColumns::open(&file, &part)?.without(&rows.removed);
        if self.position == Position::default() {
            self.position = open.row_group_start(*row_group);
        }
        self.read_parquet(&open, &part, &columns, Some(*row_group), left)
    }

    fn read_csv(
        &mut self,
        store: &Store,
        part: &Part,
        schema: &Schema,
        columns: &Columns,
        left: &mut Left,
    ) -> Result<Ended, Error> {
        let csv = CsvPart { part, schema, columns };
        let file = store.open_part_with(part, Format::Csv, &mut self.open)?;
        match csv.read(file, self.csv_position, &mut self.collector, self.permit.is_some())? {
            CsvStep::End { rows } => {
                self.rows = Some(rows);
                left.bytes = left.bytes.saturating_sub(part.csv_bytes);
                Ok(Ended::Complete)
            }
            CsvStep::Pause(position) => {
                self.csv_position = position;
                Ok(Ended::Inside)
            }
            CsvStep::LongRow(position) => {
                self.csv_position = position;
                Ok(Ended::BeforeLongRow)
            }
        }
    }

    /// Reads on in a Parquet file, up to its end, or up to that of a row group.
    fn read_parquet(
        &mut self,
        open: &PartColumns<'_>,
        part: &Part,
        columns: &Columns,
        row_group: Option<usize>,
        left: &mut Left,
    ) -> Result<Ended, Error> {
        let needed = columns.first(self.collector.columns_count());
        let mut rows_read = self.rows.unwrap_or(0);
        self.rows = Some(rows_read);
        while let Some((mut range, mut after)) = open.next_rows(self.position, &needed, left.rows)? {
            if row_group.is_some_and(|row_group| range.row_group() != row_group) {
                break;
            }
            let longer = || {
                // Nothing is kept of a row, so there may be more of them.
                let rows = open.next_rows(self.position, &needed, left.rows * CODED_ROWS_PER_ROW)?;
                rows.ok_or_else(|| Error::Internal("a range of rows has disappeared".to_owned()))
            };
            if let Some(read) = self.collector.read_coded(open, part, columns, range.row_group(), longer)? {
                (range, after) = read;
                left.rows -= range.rows_count().div_ceil(CODED_ROWS_PER_ROW);
            } else {
                self.collector.read(open, part, columns, &range)?;
                left.rows -= range.rows_count();
            }
            left.bytes = left.bytes.saturating_sub(range.bytes());
            rows_read += range.rows_count() as u64;
            (self.position, self.rows) = (after, Some(rows_read));
            if left.is_none() {
                return Ok(Ended::Inside);
            }
        }
        Ok(Ended::Complete)
    }
}
