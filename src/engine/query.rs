//! A question to an answer: snapshot of the parts, slices for the workers, one fold, in part and row order.
//!
//! Nothing read stays in memory: between two slices of a part there is an offset and a sum. A question keeps at most 8
//! slices in flight, each about 10 ms, so uploads and other questions get their turns in between.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Engine,
    cell::summand,
    csv::{FileScan, Resume, Row, Rows, Wanted},
    fold::Sum,
    parquet::{BadCell, sum_column},
    part::{ColumnType, Format, Part, PartId, Receipt, Schema},
    state::Lane,
};
use crate::{
    error::{CsvError, Error},
    limits::{
        COLUMNS_MAX, CsvLimits, READ_BLOCK_BYTES, ROW_BYTES_CEILING, SLICE_BYTES, SLICE_PARTS_MAX,
        SLICES_IN_FLIGHT_MAX, WIDE_CHUNKS, WIDE_FOOTER_BYTES,
    },
};

/// A sum, and what was read for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnSum {
    /// The exact sum.
    pub total: i64,
    /// What was read.
    pub read: Read,
}

/// How much was read for an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Parts that have the column.
    pub parts: u64,
    /// Their rows.
    pub rows: u64,
    /// Bytes of CSV, or of the column's chunks in Parquet.
    pub bytes: u64,
}

/// The exact sum of a column over all parts. Parts without it add nothing.
///
/// Errors: the first cell that cannot be added, in part and row order; a type that is no integer; a damaged file; a
/// total that does not fit in 64 bits.
pub(super) async fn column_sum(engine: &Engine, column: &str, format: Format) -> Result<ColumnSum, Error> {
    let column: Arc<str> = column.into();
    let parts = engine.0.state.with(|state| state.parts.snapshot());
    let groups = stream::iter(Groups { parts: parts.into_iter().peekable(), format });
    let sum_of = |group| sum_group(engine.clone(), group, Arc::clone(&column), format);
    // In the order of the groups, so that the first error is the first in the table.
    let sums = groups.map(sum_of).buffered(SLICES_IN_FLIGHT_MAX);
    let summed = sums.try_fold((Sum::default(), Read::default()), async |(mut all, read), (sum, more)| {
        all.merge(sum);
        let Read { parts, rows, bytes } = more;
        Ok((all, Read { parts: read.parts + parts, rows: read.rows + rows, bytes: read.bytes + bytes }))
    });
    let (sum, read) = summed.await?;
    let total = sum.total().map_err(|total| Error::SumOverflow { column: column.to_string(), total })?;
    Ok(ColumnSum { total, read })
}

/// Receipts after a part, in order: as many as fit in a page of memory, at least one if there is one.
pub(super) async fn receipts(engine: &Engine, after: Option<PartId>, count_max: usize) -> Result<Vec<Receipt>, Error> {
    let parts = engine.0.state.with(|state| state.parts.snapshot());
    let after = after.map_or(0, PartId::get);
    let Some(first) = PartId::new(after.saturating_add(1)) else {
        return Ok(Vec::new());
    };
    let mut columns = 0;
    let mut ids = Vec::new();
    for (id, part) in parts.range(first..).take(count_max) {
        columns += part.columns_count as usize;
        if !ids.is_empty() && (columns > COLUMNS_MAX || ids.len() >= SLICE_PARTS_MAX) {
            break;
        }
        ids.push(*id);
    }
    let store = Arc::clone(&engine.0.store);
    engine.0.workers.run(Lane::Question, move || ids.into_iter().map(|id| store.receipt(id)).collect()).await?
}

/// Cuts the parts into runs that are each worth one slice; a part larger than a slice stands alone.
pub(super) struct Groups<I: Iterator<Item = (PartId, Arc<Part>)>> {
    pub(super) parts: std::iter::Peekable<I>,
    pub(super) format: Format,
}

impl<I: Iterator<Item = (PartId, Arc<Part>)>> Iterator for Groups<I> {
    type Item = Vec<Arc<Part>>;

    fn next(&mut self) -> Option<Vec<Arc<Part>>> {
        let weight = |part: &Part| match self.format {
            Format::Csv => part.csv_bytes,
            Format::Parquet => part.parquet_bytes,
        };
        let (_, first) = self.parts.next()?;
        let mut bytes = weight(&first);
        let mut group = vec![first];
        while group.len() < SLICE_PARTS_MAX {
            let fits = |(_, part): &(PartId, Arc<Part>)| bytes + weight(part) <= SLICE_BYTES as u64 && !is_wide(part);
            let Some((_, part)) = self.parts.next_if(fits) else {
                break;
            };
            bytes += weight(&part);
            group.push(part);
        }
        Some(group)
    }
}

pub(super) fn is_wide(part: &Part) -> bool {
    part.column_chunks() > WIDE_CHUNKS as u64 || part.footer_bytes as usize > WIDE_FOOTER_BYTES
}

/// Sums the parts of a group, one slice after another.
async fn sum_group(
    engine: Engine,
    group: Vec<Arc<Part>>,
    column: Arc<str>,
    format: Format,
) -> Result<(Sum, Read), Error> {
    let inner = &engine.0;
    let wide = match format {
        // A wide part's footer takes memory that there is for few at a time; it is alone in its group or first.
        Format::Parquet if is_wide(&group[0]) => {
            Some(Arc::clone(&inner.wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?)
        }
        _ => None,
    };
    let mut work = GroupSum {
        group,
        next: 0,
        position: Position::default(),
        sum: Sum::default(),
        read: Read::default(),
        _wide: wide,
    };
    while work.next < work.group.len() {
        let (store, column) = (Arc::clone(&inner.store), Arc::clone(&column));
        let slice = move || {
            work.step(&store, &column, format)?;
            Ok(work)
        };
        work = inner.workers.run(Lane::Question, slice).await.flatten()?;
    }
    Ok((work.sum, work.read))
}

/// A sum under way. What it holds does not depend on the size of the parts.
struct GroupSum {
    group: Vec<Arc<Part>>,
    next: usize,
    position: Position,
    sum: Sum,
    read: Read,
    /// Travels with the work: a cancelled call's slice may still be running.
    _wide: Option<OwnedSemaphorePermit>,
}

/// Where in a part the next slice begins.
#[derive(Default)]
struct Position {
    csv_offset: u64,
    header_read: bool,
    row_group: usize,
    rows: u64,
}

impl GroupSum {
    /// One slice: parts, or a stretch of a large part, up to about `SLICE_BYTES`.
    fn step(&mut self, store: &super::Store, column: &str, format: Format) -> Result<(), Error> {
        let mut bytes = 0;
        while self.next < self.group.len() && bytes < SLICE_BYTES {
            let part = Arc::clone(&self.group[self.next]);
            let schema = match &part.schema {
                Some(schema) => Arc::clone(schema),
                None => Arc::new(Schema::of(&store.receipt(part.id)?.columns)),
            };
            let mut at_end = true;
            if let Some((column_index, column_type)) = schema.find(column) {
                if !matches!(column_type, ColumnType::Int64 | ColumnType::Utf8) {
                    return Err(Error::NotSummable { part: part.id, column: column.to_owned(), column_type });
                }
                let file = store.open_part(&part, format)?;
                let bytes_left = SLICE_BYTES - bytes;
                let summed = match format {
                    Format::Csv => self.sum_csv(file, &part, column_index, &schema, bytes_left)?,
                    Format::Parquet => self.sum_parquet(&file, &part, (column_index, column, column_type))?,
                };
                at_end = summed.map_err(|BadCell { row, cell, problem }| Error::Cell {
                    part: part.id,
                    row,
                    column: column.to_owned(),
                    cell,
                    problem,
                })?;
                bytes += usize::try_from(part.csv_bytes).unwrap_or(usize::MAX).min(bytes_left);
                if at_end {
                    self.read.parts += 1;
                    self.read.rows += part.rows;
                }
            }
            if at_end {
                self.next += 1;
                self.position = Position::default();
            }
        }
        Ok(())
    }

    fn sum_csv(
        &mut self,
        file: super::store::Reader,
        part: &Part,
        column_index: usize,
        schema: &Schema,
        bytes_max: usize,
    ) -> Result<Result<bool, BadCell>, Error> {
        // The file was checked under the limits of its time, which may have been other ones.
        let limits =
            CsvLimits { columns_max: COLUMNS_MAX, cell_bytes_max: ROW_BYTES_CEILING, row_bytes_max: ROW_BYTES_CEILING };
        let names = if self.position.header_read { schema.names() } else { Vec::new() };
        let resume = Resume { offset: self.position.csv_offset, rows: self.position.rows, names };
        let rows = ColumnOfCsv { schema, sum: &mut self.sum };
        let mut scan = FileScan::new(file, limits, Wanted::Column(column_index), resume, rows);
        let damaged = |what: String| Error::Damaged { part: part.id, what: format!("csv: {what}") };
        // A slice must get beyond the row that it begins with, or the next one would begin there again.
        let at_end = match scan.step(bytes_max.max(SLICE_BYTES) + READ_BLOCK_BYTES) {
            Ok(at_end) => at_end,
            Err(Stop::BadCell(bad_cell)) => return Ok(Err(bad_cell)),
            Err(Stop::Csv(error)) => return Err(damaged(error.to_string())),
            Err(Stop::OtherHeader) => return Err(damaged("its header disagrees with the receipt".to_owned())),
            Err(Stop::Io(error)) => return Err(error),
        };
        let (resume, _) = scan.into_resume();
        if at_end && resume.rows != part.rows {
            return Err(damaged(format!("{} rows, the receipt says {}", resume.rows, part.rows)));
        }
        let bytes = resume.offset - self.position.csv_offset;
        if bytes == 0 && !at_end {
            return Err(damaged(format!("row {} is longer than any row can be", resume.rows + 1)));
        }
        self.read.bytes += bytes;
        self.position.header_read = !resume.names.is_empty();
        self.position.csv_offset = resume.offset;
        self.position.rows = resume.rows;
        Ok(Ok(at_end))
    }

    fn sum_parquet(
        &mut self,
        file: &super::store::Reader,
        part: &Part,
        column: (usize, &str, ColumnType),
    ) -> Result<Result<bool, BadCell>, Error> {
        let position = (self.position.row_group, self.position.rows);
        let stretch = match sum_column(file, part, column, position, SLICE_BYTES as u64, &mut self.sum)? {
            Ok(stretch) => stretch,
            Err(bad_cell) => return Ok(Err(bad_cell)),
        };
        self.read.bytes += stretch.bytes;
        if let Some((row_group, rows)) = stretch.next {
            self.position.row_group = row_group;
            self.position.rows = rows;
        }
        Ok(Ok(stretch.next.is_none()))
    }
}

/// Adds the one column that the scan delivers.
struct ColumnOfCsv<'a> {
    schema: &'a Schema,
    sum: &'a mut Sum,
}

/// What ends the scan of a stored file early.
enum Stop {
    BadCell(BadCell),
    Csv(CsvError),
    OtherHeader,
    Io(Error),
}

impl From<CsvError> for Stop {
    fn from(error: CsvError) -> Self {
        Self::Csv(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Io(error)
    }
}

impl Rows for ColumnOfCsv<'_> {
    type Error = Stop;

    fn header(&mut self, names: &[String]) -> Result<(), Stop> {
        let same = names.iter().eq(self.schema.columns().iter().map(|(name, _)| name));
        if same { Ok(()) } else { Err(Stop::OtherHeader) }
    }

    #[inline]
    fn row(&mut self, row: Row<'_>) -> Result<(), Stop> {
        let Some((len, window)) = row.first_cell() else { return Ok(()) };
        match summand(len, window) {
            Ok(Some(value)) => self.sum.add(value),
            Ok(None) => {}
            Err(problem) => {
                let cell = String::from_utf8_lossy(&window[..len]).into_owned();
                return Err(Stop::BadCell(BadCell { row: row.number, cell, problem }));
            }
        }
        Ok(())
    }
}
