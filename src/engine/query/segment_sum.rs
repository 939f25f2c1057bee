//! The column sum of segments from Parquet: their files have the rows of many parts, so only a few files are opened.
//!
//! The rows of parts that were removed since a segment was written are still in its Parquet files. They are summed from the CSV,
//! and subtracted. The position of a cell that cannot be added is not looked for here: the caller then reads the CSV.

use std::sync::{Arc, OnceLock};

use imbl::{OrdMap, OrdSet};

use super::csv_ranges::{Found, ScanError, Source};
use crate::{
    engine::{
        csv::stored::check_rows,
        parquet::{
            column_sum::{RowGroupStart, StoredColumn, SumError},
            wide::is_wide,
        },
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::{
            Store,
            segments::{cursor::PartCursor, reading::OpenSegment},
        },
        values::sum::Sum,
    },
    error::Error,
    limits::TASK_BYTES,
    model::{column_sum::Read, packed::Segment, part::PartId, schema::ColumnType, segment::PackedFile},
};

/// A part of a segment's Parquet files: a row group, or all of a wide file.
pub(super) struct ParquetUnit {
    segment: Arc<Segment>,
    file: usize,
    row_group: usize,
    is_wide: bool,
    of_receipt: OfReceipt,
}

/// Where the column is in each file of a segment, and its type, as the receipt says. The receipt is long, so it is read once for all
/// files whose schemas are not in memory.
type OfReceipt = Arc<OnceLock<Vec<Option<(usize, ColumnType)>>>>;

/// Why segments could not be summed.
pub(super) enum SegmentError {
    /// The CSV of the parts has to be read one by one: a cell cannot be added, the column of some parts has a type that cannot be
    /// summed, or what was read is damaged.
    NeedsParts,
    Failed(Error),
}

impl From<Error> for SegmentError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// All units of the segments.
pub(super) fn units(snapshot: &Snapshot) -> impl Iterator<Item = ParquetUnit> + use<> {
    let segments: Vec<_> = snapshot.segments.values().cloned().collect();
    segments.into_iter().flat_map(|segment| {
        let files: Vec<_> = segment
            .files
            .iter()
            .map(|file| (is_wide(&file.as_part(segment.id)), file.row_groups as usize))
            .enumerate()
            .collect();
        let of_receipt = OfReceipt::default();
        files.into_iter().flat_map(move |(file, (is_wide, row_groups))| {
            let (segment, of_receipt) = (Arc::clone(&segment), Arc::clone(&of_receipt));
            // A file without rows has no row groups, but its parts count.
            let units = if is_wide { 1 } else { row_groups.max(1) };
            (0..units).map(move |row_group| ParquetUnit {
                segment: Arc::clone(&segment),
                file,
                row_group,
                is_wide,
                of_receipt: Arc::clone(&of_receipt),
            })
        })
    })
}

impl ParquetUnit {
    /// Sums the rows on a worker, one task after another.
    pub(super) async fn sum(self, context: &Arc<Context>, column: &Arc<str>) -> Result<(Sum, Read), SegmentError> {
        let _wide = match self.is_wide {
            // There is memory for only a few footers of wide files.
            true => Some(context.wide_reads.acquire().await.ok().ok_or(Error::Draining)?),
            false => None,
        };
        let mut start = RowGroupStart { row_group: self.row_group, rows_before: 0 };
        let (mut sum, mut read, unit) = (Sum::default(), Read::default(), Arc::new(self));
        loop {
            let (store, column, of) = (Arc::clone(&context.store), Arc::clone(column), Arc::clone(&unit));
            let task = move || of.sum_now(&store, &column, start);
            let (some, of_task, next) =
                context.workers.run(Lane::Question, task).await.map_err(SegmentError::Failed)??;
            sum.merge(some);
            read.add(of_task);
            match next.filter(|_| unit.is_wide) {
                Some(next) => start = next,
                None => return Ok((sum, read)),
            }
        }
    }

    /// One task: the sum from a row group on, and where the next task begins.
    fn sum_now(
        &self,
        store: &Store,
        name: &str,
        start: RowGroupStart,
    ) -> Result<(Sum, Read, Option<RowGroupStart>), SegmentError> {
        let Self { segment, file, is_wide, of_receipt, .. } = self;
        let nothing = (Sum::default(), Read::default(), None);
        let Some(parquet) = segment.files.get(*file) else { return Ok(nothing) };
        let found = match &parquet.schema {
            Some(schema) => schema.find(name),
            None => find_in_receipt(store, segment, of_receipt, name)?.get(*file).copied().flatten(),
        };
        let Some((index, column_type)) = found else { return Ok(nothing) };
        if !matches!(column_type, ColumnType::Int64 | ColumnType::Float64 | ColumnType::Utf8) {
            return Err(SegmentError::NeedsParts);
        }
        let (reader, part) = (store.open_segment_parquet(segment, *file)?, parquet.as_part(segment.id));
        let column = StoredColumn { file: &reader, part: &part, index, name, column_type };
        let mut sum = Sum::default();
        let bytes_max = if *is_wide { TASK_BYTES as u64 } else { 1 };
        let read = column.sum(start, bytes_max, &mut sum).map_err(|error| match error {
            SumError::BadCell(_) => SegmentError::NeedsParts,
            SumError::Failed(error) => SegmentError::Failed(error),
        })?;
        let whole = if start.row_group == 0 { (parquet.parts, parquet.rows) } else { (0, 0) };
        Ok((sum, Read { parts: whole.0, rows: whole.1, bytes: read.bytes }, read.next))
    }
}

fn find_in_receipt<'a>(
    store: &Store,
    segment: &Segment,
    of_receipt: &'a OfReceipt,
    name: &str,
) -> Result<&'a [Option<(usize, ColumnType)>], Error> {
    if let Some(found) = of_receipt.get() {
        return Ok(found);
    }
    let receipt = store.receipt_of_segment(segment)?;
    let find = |file: &PackedFile| {
        let index = file.columns.iter().position(|column| column.name == name)?;
        Some((index, file.columns[index].column_type))
    };
    Ok(of_receipt.get_or_init(|| receipt.files.iter().map(find).collect()))
}

/// The removed parts whose rows are still in segments, in runs of at most [`REMOVED_AT_ONCE`] of one segment.
pub(super) fn removed_parts(snapshot: &Snapshot) -> Vec<RemovedParts> {
    let mut all: Vec<RemovedParts> = Vec::new();
    for &id in &snapshot.removed {
        let Some((_, segment)) = snapshot.segments.get_prev(&id).filter(|(_, of)| of.id.covers(id)) else { continue };
        match all.last_mut() {
            Some(run) if run.segment.id == segment.id && run.parts.len() < REMOVED_AT_ONCE => run.parts.push(id),
            _ => all.push(RemovedParts { segment: Arc::clone(segment), parts: vec![id] }),
        }
    }
    all
}

/// Removed parts that one task sums.
const REMOVED_AT_ONCE: usize = 256;

/// Removed parts of a segment that still has their rows.
pub(super) struct RemovedParts {
    segment: Arc<Segment>,
    parts: Vec<PartId>,
}

impl RemovedParts {
    /// The sum of these parts from their CSV, on a worker. Those that the segment does not have any more add nothing.
    pub(super) async fn sum(self, context: &Arc<Context>, column: &Arc<str>) -> Result<(Sum, Read), SegmentError> {
        let name = Arc::clone(column);
        let summed = context.on_worker(Lane::Question, move |store| self.sum_now(store, &name)).await;
        summed.map_err(|error| match error {
            // A cell or the damage of a removed part is no error of the table.
            Error::Cell { .. } | Error::ColumnSum(_) | Error::Damaged { .. } => SegmentError::NeedsParts,
            error => SegmentError::Failed(error),
        })
    }

    fn sum_now(self, store: &Store, column: &str) -> Result<(Sum, Read), Error> {
        let segments = [(self.segment.id.first, self.segment)].into_iter().collect();
        let mut cursor = PartCursor::new(Snapshot::of(OrdMap::new(), segments, OrdSet::new()));
        let (mut sum, mut read, mut open) = (Sum::default(), Read::default(), OpenSegment::default());
        for id in self.parts {
            let Some(part) = cursor.first_from(store, id)?.filter(|part| part.id == id) else { continue };
            let Some(source) = Source::open_with(store, &part, column, &mut open)? else {
                // A part whose column has no values counts as one that was read.
                if store.schema_with(&part, &mut open)?.find(column).is_some() {
                    read.add(Read { parts: 1, rows: part.rows, bytes: 0 });
                }
                continue;
            };
            let Found { sum: of_part, error, end, .. } = source.sum_file();
            if let Some(error) = error {
                return Err(error.into_error(&part, column, 0));
            }
            check_rows(end.rows, part.rows).map_err(|what| ScanError::Damaged(what).into_error(&part, column, 0))?;
            sum.merge(of_part);
            read.add(Read { parts: 1, rows: part.rows, bytes: 0 });
        }
        Ok((sum, read))
    }
}
