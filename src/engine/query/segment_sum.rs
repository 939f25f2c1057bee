//! The column sum of segments from Parquet: their files have the rows of many parts, so only a few files are opened.
//!
//! The rows of parts that were removed since a segment was written are still in its Parquet files. They are summed from the CSV,
//! and subtracted. The position of a cell that cannot be added is not looked for here: the caller then reads the CSV.

use std::sync::Arc;

use super::{
    csv_ranges::{Found, ScanError, Source},
    read::Read,
};
use crate::{
    engine::{
        csv::stored::check_rows,
        parquet::column_sum::{RowGroupStart, StoredColumn, SumError},
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::{Store, segments::cursor::find_in},
        values::sum::Sum,
    },
    error::Error,
    model::{
        packed::Segment,
        part::{Part, PartId},
        schema::{ColumnType, Schema},
    },
};

/// A part of a segment's Parquet files that one task sums.
#[derive(Clone)]
pub(super) struct SegmentUnit {
    segment: Arc<Segment>,
    file: usize,
    row_group: usize,
}

/// Why a segment could not be summed from Parquet.
pub(super) enum SegmentError {
    /// The CSV has to be read: a cell cannot be added, or the column of some parts has a type that cannot be summed.
    NeedsCsv,
    Failed(Error),
}

impl From<Error> for SegmentError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// All units of the segments, one for each row group.
pub(super) fn units(snapshot: &Snapshot) -> impl Iterator<Item = SegmentUnit> + use<> {
    let segments: Vec<_> = snapshot.segments.values().cloned().collect();
    segments.into_iter().flat_map(|segment| {
        let files: Vec<_> =
            segment.files.iter().enumerate().map(|(file, parquet)| (file, parquet.row_groups)).collect();
        files.into_iter().flat_map(move |(file, row_groups)| {
            let segment = Arc::clone(&segment);
            // A file without rows has no row groups, but its parts count.
            (0..(row_groups as usize).max(1)).map(move |row_group| SegmentUnit {
                segment: Arc::clone(&segment),
                file,
                row_group,
            })
        })
    })
}

impl SegmentUnit {
    /// Sums one row group on a worker.
    pub(super) async fn sum(self, context: &Arc<Context>, column: &Arc<str>) -> Result<(Sum, Read), SegmentError> {
        let (store, column) = (Arc::clone(&context.store), Arc::clone(column));
        let summed = context.workers.run(Lane::Question, move || self.sum_now(&store, &column)).await;
        summed.map_err(SegmentError::Failed)?
    }

    fn sum_now(&self, store: &Store, name: &str) -> Result<(Sum, Read), SegmentError> {
        let Self { segment, file, row_group } = self;
        let nothing = (Sum::default(), Read::default());
        let Some(parquet) = segment.files.get(*file) else { return Ok(nothing) };
        let schema = schema_of(store, segment, *file)?;
        let Some((index, column_type)) = schema.find(name) else { return Ok(nothing) };
        if !matches!(column_type, ColumnType::Int64 | ColumnType::Float64 | ColumnType::Utf8) {
            return Err(SegmentError::NeedsCsv);
        }
        let (reader, part) = (store.open_segment_parquet(segment, *file)?, parquet.as_part(segment.id));
        let column = StoredColumn { file: &reader, part: &part, index, name, column_type };
        let mut sum = Sum::default();
        let start = RowGroupStart { row_group: *row_group, rows_before: 0 };
        let read = column.sum(start, 1, &mut sum).map_err(|error| match error {
            SumError::BadCell(_) => SegmentError::NeedsCsv,
            SumError::Failed(error) => SegmentError::Failed(error),
        })?;
        let whole = if *row_group == 0 { (parquet.parts, parquet.rows) } else { (0, 0) };
        Ok((sum, Read { parts: whole.0, rows: whole.1, bytes: read.bytes }))
    }
}

fn schema_of(store: &Store, segment: &Segment, file: usize) -> Result<Arc<Schema>, Error> {
    if let Some(schema) = segment.files.get(file).and_then(|parquet| parquet.schema.clone()) {
        return Ok(schema);
    }
    let damaged =
        |what: String| Error::Damaged { part: segment.id.first, what: format!("segment {}: {what}", segment.id) };
    let receipt = store.segment_receipt(segment.id)?.map_err(damaged)?;
    let packed = receipt.files.get(file).ok_or_else(|| damaged("its receipt is of another segment".to_owned()))?;
    Ok(Arc::new(Schema::of(&packed.columns)))
}

/// The removed parts whose rows are still in segments.
pub(super) fn removed_parts(snapshot: &Snapshot) -> Vec<(Arc<Segment>, PartId)> {
    let segment_of = |id: PartId| snapshot.segments.get_prev(&id).map(|(_, segment)| Arc::clone(segment));
    snapshot.removed.iter().filter_map(|id| Some((segment_of(*id)?, *id))).collect()
}

/// The sum of a part of a segment from its CSV, on a worker; `None` if it does not have the column, or a segment does not have it
/// any more.
pub(super) fn sum_removed(
    store: &Store,
    segment: &Arc<Segment>,
    id: PartId,
    column: &str,
) -> Result<Option<(Sum, Read)>, Error> {
    let Some(part) = find_in(store, segment, id)? else { return Ok(None) };
    let Some(source) = Source::open(store, &part, column)? else { return has_column(store, &part, column) };
    let Found { sum, error, end, .. } = source.sum_file();
    if let Some(error) = error {
        return Err(error.into_error(&part, column, 0));
    }
    check_rows(end.rows, part.rows).map_err(|what| ScanError::Damaged(what).into_error(&part, column, 0))?;
    Ok(Some((sum, Read { parts: 1, rows: part.rows, bytes: 0 })))
}

/// A part whose column has no values counts as one that was read.
fn has_column(store: &Store, part: &Part, column: &str) -> Result<Option<(Sum, Read)>, Error> {
    let has = store.schema(part)?.find(column).is_some();
    Ok(has.then(|| (Sum::default(), Read { parts: 1, rows: part.rows, bytes: 0 })))
}
