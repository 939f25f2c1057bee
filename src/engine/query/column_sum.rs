//! The sum of a column: take a snapshot of the parts, split it into units of work, sum the units on the workers, and add up
//! the results in the order of parts and rows.
//!
//! No rows are kept in memory: between two tasks, a part needs only an offset and a sum. A call has at most 8 tasks in
//! flight, each about 10 ms long, so that uploads and other calls run in between.
//!
//! A large CSV file is split into byte ranges, which are read in parallel (`csv/split.rs`).

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    by_part::sum_by_part,
    csv_ranges::{ByteRange, Found, Reading, RowPosition, ScanError},
    local_parts::LocalParts,
    part_batches::PartBatches,
    segment_csv,
    segment_sum::{self, SegmentError},
};
use crate::{
    engine::{
        csv::stored::check_rows,
        runtime::{
            context::Context,
            part_engine::{PartAnswer, PartEngine, PartOutcome, PartQuestion, PartTotals},
        },
        state::{Lane, registry::Snapshot},
        values::sum::Sum,
    },
    error::{Error, column_sum::ColumnSumError},
    limits::{TASK_BYTES, TASKS_IN_FLIGHT_MAX},
    model::{
        column_sum::{ColumnSum, Read},
        format::Format,
        part::Part,
    },
};

/// The exact sum of a column over these parts. Parts without it add nothing.
///
/// Errors: the first cell that cannot be added, in part and row order; a type that is no integer; a damaged file; a total
/// that does not fit in 64 bits.
pub(super) async fn column_sum(
    context: &Arc<Context>,
    column: &Arc<str>,
    parts: Snapshot,
    format: Format,
) -> Result<ColumnSum, Error> {
    column_sum_by(context, column, parts, format, TASK_BYTES as u64).await
}

/// [`column_sum`], with CSV files longer than `range_bytes` split into ranges of that length.
async fn column_sum_by(
    context: &Arc<Context>,
    column: &Arc<str>,
    parts: Snapshot,
    format: Format,
    range_bytes: u64,
) -> Result<ColumnSum, Error> {
    let answer = match &context.cluster {
        Some(cluster) => {
            let question = PartQuestion { column: Arc::clone(column), format };
            sum_by_part(context, cluster.as_ref(), question, parts).await?
        }
        None => match sum_with_segments(context, column, parts.clone(), format, range_bytes).await? {
            Some(answer) => answer,
            None => sum_parts(context, column, parts, Format::Csv, range_bytes).await?,
        },
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
                Summed::Batch(answers) => answer.add_parts(answers)?,
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
    Batch(Vec<PartAnswer>),
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
            let question = PartQuestion { column, format };
            LocalParts { context }.ask(batch, question).await.map(Summed::Batch)
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

    /// Adds the parts of a batch, in their order.
    fn add_parts(&mut self, answers: Vec<PartAnswer>) -> Result<(), Error> {
        for PartAnswer { part, outcome } in answers {
            match outcome {
                PartOutcome::WithoutColumn => {}
                PartOutcome::Summed(PartTotals { sum, rows, bytes }) => {
                    self.add(Sum::of(sum), Read { parts: 1, rows, bytes });
                }
                PartOutcome::Failed(error) => return Err(error),
                PartOutcome::Grouped(_) | PartOutcome::Passed => {
                    return Err(Error::Internal(format!("part {part} has groups")));
                }
                PartOutcome::Unreadable(why) => return Err(Error::Internal(format!("part {part}: {why}"))),
            }
        }
        Ok(())
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
                let by = async |range_bytes| {
                    let parts = engine.context.state.with(|state| state.parts.snapshot());
                    column_sum_by(&engine.context, &column.into(), parts, Format::Csv, range_bytes).await
                };
                let whole = by(u64::MAX).await.map_err(|e| e.to_string());
                for range_bytes in [4, 5, 17, 64, 1 + random.u64(4..1000)] {
                    let cut = by(range_bytes).await;
                    assert_eq!(cut.map_err(|e| e.to_string()), whole, "seed {seed}, {column:?} by {range_bytes}");
                }
                *(if whole.is_ok() { &mut sums } else { &mut errors }) += 1;
            }
            engine.close();
        }
        assert!(sums > 250 && errors > 100, "{sums} sums, {errors} errors");
    }
}
