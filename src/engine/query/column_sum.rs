//! The sum of a column: take a snapshot of the parts, split it into units of work, sum the units on the workers, and add up
//! the results in the order of parts and rows.
//!
//! No rows are kept in memory: between two tasks, a part needs only an offset and a sum. A call has at most 8 tasks in
//! flight, each about 10 ms long, so that uploads and other calls run in between.
//!
//! A large CSV file is split into byte ranges, which are read in parallel (`csv/split.rs`).

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    csv_ranges::{ByteRange, Found, Reading, RowPosition, ScanError, Source, SummedColumn, find_column},
    part_batches::PartBatches,
    read::Read,
    segment_csv,
    segment_sum::{self, SegmentError},
};
use crate::{
    engine::{
        csv::stored::check_rows,
        parquet::{
            column_sum::{RowGroupStart, StoredColumn, SumError},
            wide::is_wide,
        },
        parts::selection::parts_to_read,
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::{Store, segments::reading::OpenSegment},
        values::sum::Sum,
    },
    error::{Error, column_sum::ColumnSumError},
    limits::{TASK_BYTES, TASKS_IN_FLIGHT_MAX},
    model::{format::Format, part::Part},
};

/// A sum, and what was read for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnSum {
    /// The exact sum.
    pub total: i64,
    /// How much was read for it.
    pub read: Read,
}

/// The exact sum of a column over all parts. Parts without it add nothing.
///
/// Errors: the first cell that cannot be added, in part and row order; a type that is no integer; a damaged file; a
/// part that is missing from the table; a total that does not fit in 64 bits.
pub(crate) async fn column_sum(context: &Arc<Context>, column: &str, format: Format) -> Result<ColumnSum, Error> {
    column_sum_by(context, column, format, TASK_BYTES as u64).await
}

/// [`column_sum`], with CSV files longer than `range_bytes` split into ranges of that length.
async fn column_sum_by(
    context: &Arc<Context>,
    column: &str,
    format: Format,
    range_bytes: u64,
) -> Result<ColumnSum, Error> {
    let column: Arc<str> = column.into();
    let parts = parts_to_read(context, Lane::Question).await?;
    let answer = match sum_with_segments(context, &column, parts.clone(), format, range_bytes).await? {
        Some(answer) => answer,
        None => sum_parts(context, &column, parts, Format::Csv, range_bytes).await?,
    };
    let (sum, read) = answer;
    let total = sum.total().map_err(|total| ColumnSumError::Overflow { column: column.to_string(), total })?;
    Ok(ColumnSum { total, read })
}

/// Sums all parts one after another.
async fn sum_parts(
    context: &Arc<Context>,
    column: &Arc<str>,
    parts: Snapshot,
    format: Format,
    range_bytes: u64,
) -> Result<(Sum, Read), Error> {
    let batches = PartBatches::new(parts, format).stream(Arc::clone(context), Lane::Question);
    let units = batches.flat_map(move |batch| {
        let (units, error) = match batch {
            Ok(batch) => (Some(work_units(batch, format, range_bytes).map(Ok)), None),
            Err(error) => (None, Some(Err(error))),
        };
        stream::iter(units.into_iter().flatten().chain(error))
    });
    let sum_of = |unit| async {
        match unit {
            Ok(unit) => sum_unit(Arc::clone(context), unit, Arc::clone(column), format).await,
            Err(error) => Err(error),
        }
    };
    // `buffered` keeps the order, so the first error is the first in the table.
    let summed = units.map(sum_of).buffered(TASKS_IN_FLIGHT_MAX);
    let answer = Answer { context, column, sum: Sum::default(), read: Read::default(), before: RowPosition::default() };
    let answer = summed
        .try_fold(answer, async |mut answer, summed| {
            match summed {
                Summed::Batch(sum, read) => answer.add(sum, read),
                Summed::ByteRange(range, reading) => answer.add_range(range, reading).await?,
            }
            Ok(answer)
        })
        .await?;
    Ok((answer.sum, answer.read))
}

/// Sums segments, and then the parts that have their own files. `None` if the parts have to be read one by one from CSV instead,
/// which finds the first error in their order.
async fn sum_with_segments(
    context: &Arc<Context>,
    column: &Arc<str>,
    mut parts: Snapshot,
    format: Format,
    range_bytes: u64,
) -> Result<Option<(Sum, Read)>, Error> {
    if parts.segments.is_empty() {
        return sum_parts(context, column, parts, format, range_bytes).await.map(Some);
    }
    let mut answer =
        Answer { context, column, sum: Sum::default(), read: Read::default(), before: RowPosition::default() };
    let mut summed = match format {
        Format::Csv => {
            let units = stream::iter(segment_csv::units(&parts)).map(|unit| unit.sum(context, column));
            units.buffered(TASKS_IN_FLIGHT_MAX).boxed()
        }
        Format::Parquet => {
            let units = stream::iter(segment_sum::units(&parts)).map(|unit| unit.sum(context, column));
            units.buffered(TASKS_IN_FLIGHT_MAX).boxed()
        }
    };
    while let Some(unit) = summed.next().await {
        match unit {
            Ok((sum, read)) => answer.add(sum, read),
            Err(SegmentError::NeedsParts) => return Ok(None),
            Err(SegmentError::Failed(error)) => return Err(error),
        }
    }
    drop(summed);
    let removed = match format {
        Format::Csv => Vec::new(), // they were not read
        Format::Parquet => segment_sum::removed_parts(&parts),
    };
    let mut summed = stream::iter(removed).map(|parts| parts.sum(context, column)).buffered(TASKS_IN_FLIGHT_MAX);
    while let Some(removed) = summed.next().await {
        match removed {
            Ok((sum, read)) => answer.subtract(sum, read),
            Err(SegmentError::NeedsParts) => return Ok(None),
            Err(SegmentError::Failed(error)) => return Err(error),
        }
    }
    drop(summed);
    parts.segments.clear();
    match sum_parts(context, column, parts, format, range_bytes).await {
        Ok((sum, read)) => {
            answer.add(sum, read);
            Ok(Some((answer.sum, answer.read)))
        }
        // There may be another one before it in a segment that ends later.
        Err(Error::Cell { .. } | Error::ColumnSum(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is summed together.
enum WorkUnit {
    /// Whole parts, one after another.
    Batch(Vec<Arc<Part>>),
    /// The rows that start in a byte range of a large CSV file.
    ByteRange(ByteRange),
}

/// The result of a [`WorkUnit`].
enum Summed {
    Batch(Sum, Read),
    ByteRange(ByteRange, Reading),
}

/// Splits a batch into byte ranges if it is one CSV file longer than `range_bytes`.
fn work_units(batch: Vec<Arc<Part>>, format: Format, range_bytes: u64) -> impl Iterator<Item = WorkUnit> {
    let is_large = format == Format::Csv && batch.len() == 1 && batch[0].csv_bytes > range_bytes;
    let large = is_large.then(|| Arc::clone(&batch[0]));
    let count = large.as_ref().map_or(0, |part| part.csv_bytes.div_ceil(range_bytes));
    let ranges = (0..count).zip(std::iter::repeat(large)).filter_map(move |(index, part)| {
        let (from, part) = (index * range_bytes, part?);
        let until = part.csv_bytes.min(from + range_bytes);
        Some(WorkUnit::ByteRange(ByteRange { part, from, until }))
    });
    let batch = (count == 0).then_some(WorkUnit::Batch(batch));
    batch.into_iter().chain(ranges)
}

async fn sum_unit(context: Arc<Context>, unit: WorkUnit, column: Arc<str>, format: Format) -> Result<Summed, Error> {
    match unit {
        WorkUnit::Batch(batch) => {
            sum_batch(context, batch, column, format).await.map(|(sum, read)| Summed::Batch(sum, read))
        }
        WorkUnit::ByteRange(range) => {
            let reading = range.clone().sum(&context, &column, None).await?;
            Ok(Summed::ByteRange(range, reading))
        }
    }
}

/// The results that have been added up.
struct Answer<'a> {
    context: &'a Arc<Context>,
    column: &'a Arc<str>,
    sum: Sum,
    read: Read,
    /// Where the last byte range ended. Its rows are counted from the start of the file.
    before: RowPosition,
}

impl Answer<'_> {
    fn subtract(&mut self, sum: Sum, read: Read) {
        self.sum.subtract(sum);
        self.read.parts = self.read.parts.saturating_sub(read.parts);
        self.read.rows = self.read.rows.saturating_sub(read.rows);
    }

    fn add(&mut self, sum: Sum, read: Read) {
        self.sum.merge(sum);
        self.read.add(read);
    }

    async fn add_range(&mut self, range: ByteRange, reading: Reading) -> Result<(), Error> {
        let part = Arc::clone(&range.part);
        let is_last = range.until == part.csv_bytes;
        if range.from == 0 {
            self.before = RowPosition::default();
        }
        let before = self.before;
        let reading = match reading {
            Reading::NoColumn => return Ok(()),
            Reading::Found(found) if found.start.follows(&before.offset, before.header_read) => Reading::Found(found),
            // The last row of an earlier range extends over all of this one.
            _ if before.offset >= range.until && !is_last => return Ok(()),
            _ => range.sum(self.context, self.column, Some(before)).await?,
        };
        let Reading::Found(Found { start, sum, error, mut end }) = reading else { return Ok(()) };
        let uncounted_rows = start.uncounted_rows(before.rows);
        if let Some(error) = error {
            return Err(error.into_error(&part, self.column, uncounted_rows));
        }
        end.rows += uncounted_rows;
        self.before = end;
        if is_last {
            check_rows(end.rows, part.rows)
                .map_err(|what| ScanError::Damaged(what).into_error(&part, self.column, 0))?;
        }
        let whole = if is_last { (1, part.rows) } else { (0, 0) };
        self.add(sum, Read { parts: whole.0, rows: whole.1, bytes: end.offset - before.offset });
        Ok(())
    }
}

/// Sums the parts of a batch, one task after another.
async fn sum_batch(
    context: Arc<Context>,
    batch: Vec<Arc<Part>>,
    column: Arc<str>,
    format: Format,
) -> Result<(Sum, Read), Error> {
    let wide = match format {
        // There is memory for only a few footers of wide parts. A wide part is always the first of its batch.
        Format::Parquet if is_wide(&batch[0]) => {
            Some(Arc::clone(&context.wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?)
        }
        _ => None,
    };
    let mut work = BatchSum {
        batch,
        next: 0,
        position: RowGroupStart::default(),
        open: OpenSegment::default(),
        sum: Sum::default(),
        read: Read::default(),
        _wide: wide,
    };
    while work.next < work.batch.len() {
        let (store, column) = (Arc::clone(&context.store), Arc::clone(&column));
        let task = move || {
            work.step(&store, &column, format)?;
            Ok(work)
        };
        work = context.workers.run(Lane::Question, task).await.flatten()?;
    }
    Ok((work.sum, work.read))
}

/// A batch that is being summed. Its memory does not depend on the size of the parts.
struct BatchSum {
    batch: Vec<Arc<Part>>,
    next: usize,
    /// Where in a Parquet file the next task begins.
    position: RowGroupStart,
    open: OpenSegment,
    sum: Sum,
    read: Read,
    /// Kept here because a task may still run after its call was cancelled.
    _wide: Option<OwnedSemaphorePermit>,
}

impl BatchSum {
    /// One task: sums parts, or some rows of a large Parquet file, of about `TASK_BYTES`.
    fn step(&mut self, store: &Store, column: &str, format: Format) -> Result<(), Error> {
        let mut bytes = 0;
        while self.next < self.batch.len() && bytes < TASK_BYTES {
            let part = Arc::clone(&self.batch[self.next]);
            let at_end = match format {
                Format::Csv => self.sum_csv(store, &part, column)?,
                Format::Parquet => self.sum_parquet(store, &part, column)?,
            };
            bytes += usize::try_from(part.csv_bytes).unwrap_or(usize::MAX).min(TASK_BYTES);
            if at_end {
                self.next += 1;
                self.position = RowGroupStart::default();
            }
        }
        Ok(())
    }

    /// Sums a whole file, which is no longer than one task may read.
    fn sum_csv(&mut self, store: &Store, part: &Part, column: &str) -> Result<bool, Error> {
        let Some(source) = Source::open_with(store, part, column, &mut self.open)? else { return Ok(true) };
        let Found { sum, error, end, .. } = source.sum_file();
        if let Some(error) = error {
            return Err(error.into_error(part, column, 0));
        }
        check_rows(end.rows, part.rows).map_err(|what| ScanError::Damaged(what).into_error(part, column, 0))?;
        self.sum.merge(sum);
        self.read.parts += 1;
        self.read.rows += end.rows;
        self.read.bytes += end.offset;
        Ok(true)
    }

    fn sum_parquet(&mut self, store: &Store, part: &Part, column: &str) -> Result<bool, Error> {
        let Some(SummedColumn { index, column_type, .. }) = find_column(store, part, column)? else { return Ok(true) };
        let file = store.open_part(part, Format::Parquet)?;
        let stored = StoredColumn { file: &file, part, index, name: column, column_type };
        let read = stored.sum(self.position, TASK_BYTES as u64, &mut self.sum);
        let read = read.map_err(|error| match error {
            SumError::BadCell(bad_cell) => ScanError::BadCell(bad_cell).into_error(part, column, 0),
            SumError::Failed(error) => error,
        })?;
        self.read.bytes += read.bytes;
        if let Some(next) = read.next {
            self.position = next;
            return Ok(false);
        }
        self.read.parts += 1;
        self.read.rows += part.rows;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::Engine;
    use bytes::Bytes;
    use tempfile::TempDir;

    use crate::{limits::Limits, model::durability::Durability};

    use super::*;

    /// A file in which a guess may go wrong: rows inside quotes, quotes inside cells, rows longer than a range.
    fn random_file(random: &mut fastrand::Rng) -> String {
        let mut text = "a,b\n".to_owned();
        for _ in 0..random.usize(1..60) {
            let number = random.i32(-999..1000);
            let other = ["7", "", "x", "\"1,2\n3,4\n5,6\"", "\"\n\"", "\"\"\"\"", "5\" pipe", "\"8\""];
            let other = other[random.usize(..8)].to_owned();
            let other = if random.u8(..20) == 0 { "y".repeat(random.usize(..300)) } else { other };
            match random.u8(..60) {
                0 => text.push_str(&format!("bad,{other}\n")),
                1 => text.push_str("\n\r\n"),
                2..10 => text.push_str(&format!("\"{number}\",{other}\r\n")),
                _ => text.push_str(&format!("{number},{other}\n")),
            }
        }
        text
    }

    /// Answers and errors do not depend on where a file is cut, even if it is damaged.
    #[tokio::test]
    async fn byte_ranges_equal_the_whole_file() {
        let (mut sums, mut errors) = (0, 0);
        for seed in 0..250 {
            let mut random = fastrand::Rng::with_seed(seed);
            let folder = TempDir::new().expect("a temporary folder");
            let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
            let (engine, _) = opened.expect("a data folder");
            let file = random_file(&mut random);
            let block = Ok::<_, Error>(Bytes::from(file.clone()));
            engine.upload(stream::iter([block])).await.expect("valid");
            if random.u8(..4) == 0 {
                let mut damaged = file.into_bytes();
                let at = random.usize(..damaged.len());
                damaged[at] = b",\n\"1"[random.usize(..4)];
                std::fs::write(folder.path().join("parts/1.csv"), damaged).expect("written");
            }
            for column in ["a", "b", "c"] {
                let whole =
                    column_sum_by(&engine.context, column, Format::Csv, u64::MAX).await.map_err(|e| e.to_string());
                for range_bytes in [4, 5, 17, 64, 1 + random.u64(4..1000)] {
                    let cut = column_sum_by(&engine.context, column, Format::Csv, range_bytes).await;
                    assert_eq!(cut.map_err(|e| e.to_string()), whole, "seed {seed}, {column:?} by {range_bytes}");
                }
                *(if whole.is_ok() { &mut sums } else { &mut errors }) += 1;
            }
            engine.close();
        }
        assert!(sums > 250 && errors > 100, "{sums} sums, {errors} errors");
    }
}
