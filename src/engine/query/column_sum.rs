//! A question to an answer: snapshot of the parts, slices for the workers, one fold, in part and row order.
//!
//! Nothing read stays in memory: between two slices of a part there is an offset and a sum. A question keeps at most 8
//! slices in flight, each about 10 ms, so uploads and other questions get their turns in between.
//!
//! A large CSV file is cut into stretches, which are read side by side. A stretch that begins inside the file guesses
//! where a row starts. When its turn comes in the order of the file, it counts only if it began where the one before it
//! ended; otherwise it is read again from there. So sums, row numbers and the first error are those of one reader.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    csv_ranges::{End, Found, Source, Stretch, find_column},
    part_batches::Groups,
};
use crate::{
    engine::{
        csv::stored::check_rows,
        parquet::{
            column_sum::{BadCell, sum_column},
            wide::is_wide,
        },
        parts::selection::parts_to_read,
        runtime::context::Context,
        state::Lane,
        storage::Store,
        values::sum::Sum,
    },
    error::{Error, column_sum::ColumnSumError, csv::CsvError},
    limits::{SLICE_BYTES, SLICES_IN_FLIGHT_MAX},
    model::{format::Format, part::Part},
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
/// part that is missing from the table; a total that does not fit in 64 bits.
pub(crate) async fn column_sum(context: &Arc<Context>, column: &str, format: Format) -> Result<ColumnSum, Error> {
    column_sum_by(context, column, format, SLICE_BYTES as u64).await
}

/// The same with larger CSV files cut into stretches of so many bytes.
async fn column_sum_by(
    context: &Arc<Context>,
    column: &str,
    format: Format,
    stretch_bytes: u64,
) -> Result<ColumnSum, Error> {
    let column: Arc<str> = column.into();
    let parts = parts_to_read(context, Lane::Question).await?;
    let groups = Groups { parts: parts.into_iter().peekable(), format };
    let pieces = stream::iter(groups.flat_map(move |group| pieces_of(group, format, stretch_bytes)));
    let sum_of = |piece| sum_piece(Arc::clone(context), piece, Arc::clone(&column), format);
    // In the order of the pieces, so that the first error is the first in the table.
    let summed = pieces.map(sum_of).buffered(SLICES_IN_FLIGHT_MAX);
    let answer =
        Answer { context, column: &column, sum: Sum::default(), read: Read::default(), before: End::default() };
    let answer = summed
        .try_fold(answer, async |mut answer, summed| {
            match summed {
                Summed::Group(sum, read) => answer.add(sum, read),
                Summed::Stretch(stretch, found) => answer.add_stretch(stretch, found).await?,
            }
            Ok(answer)
        })
        .await?;
    let Answer { sum, read, .. } = answer;
    let total = sum.total().map_err(|total| ColumnSumError::Overflow { column: column.to_string(), total })?;
    Ok(ColumnSum { total, read })
}

/// What one turn of a question reads.
enum Piece {
    /// Parts, one after another.
    Group(Vec<Arc<Part>>),
    /// Rows of one large CSV file.
    Stretch(Stretch),
}

/// What came of a piece.
enum Summed {
    Group(Sum, Read),
    Stretch(Stretch, Reading),
}

/// What came of reading a stretch.
pub(super) enum Reading {
    /// The part lacks the column.
    Lacks,
    /// Where its first row starts could not be guessed.
    NoGuess,
    Found(Found),
}

/// A part larger than a slice is alone in its group.
fn pieces_of(group: Vec<Arc<Part>>, format: Format, stretch_bytes: u64) -> impl Iterator<Item = Piece> {
    let is_large = format == Format::Csv && group.len() == 1 && group[0].csv_bytes > stretch_bytes;
    let large = is_large.then(|| Arc::clone(&group[0]));
    let count = large.as_ref().map_or(0, |part| part.csv_bytes.div_ceil(stretch_bytes));
    let stretches = (0..count).zip(std::iter::repeat(large)).filter_map(move |(index, part)| {
        let (from, part) = (index * stretch_bytes, part?);
        let until = part.csv_bytes.min(from + stretch_bytes);
        Some(Piece::Stretch(Stretch { part, from, until }))
    });
    let group = (count == 0).then_some(Piece::Group(group));
    group.into_iter().chain(stretches)
}

async fn sum_piece(context: Arc<Context>, piece: Piece, column: Arc<str>, format: Format) -> Result<Summed, Error> {
    match piece {
        Piece::Group(group) => {
            sum_group(context, group, column, format).await.map(|(sum, read)| Summed::Group(sum, read))
        }
        Piece::Stretch(stretch) => {
            let found = stretch.clone().sum(&context, &column, None).await?;
            Ok(Summed::Stretch(stretch, found))
        }
    }
}

/// The answer to a question as far as it is known.
struct Answer<'a> {
    context: &'a Arc<Context>,
    column: &'a Arc<str>,
    sum: Sum,
    read: Read,
    /// Where the last stretch ended, its rows counted from the start of the file.
    before: End,
}

impl Answer<'_> {
    fn add(&mut self, sum: Sum, read: Read) {
        self.sum.merge(sum);
        self.read.parts += read.parts;
        self.read.rows += read.rows;
        self.read.bytes += read.bytes;
    }

    async fn add_stretch(&mut self, stretch: Stretch, reading: Reading) -> Result<(), Error> {
        let part = Arc::clone(&stretch.part);
        let is_last = stretch.until == part.csv_bytes;
        if stretch.from == 0 {
            self.before = End::default();
        }
        let before = self.before;
        let reading = match reading {
            Reading::Lacks => return Ok(()),
            Reading::Found(found) if found.start.follows(&before.offset, before.header_read) => Reading::Found(found),
            // A row went beyond all of it.
            _ if before.offset >= stretch.until && !is_last => return Ok(()),
            _ => stretch.sum(self.context, self.column, Some(before)).await?,
        };
        let Reading::Found(Found { start, sum, stop, mut end }) = reading else { return Ok(()) };
        let uncounted_rows = start.uncounted_rows(before.rows);
        if let Some(stop) = stop {
            return Err(stop.error(&part, self.column, uncounted_rows));
        }
        end.rows += uncounted_rows;
        self.before = end;
        if is_last {
            check_rows(end.rows, part.rows).map_err(|what| Stop::Damaged(what).error(&part, self.column, 0))?;
        }
        let whole = if is_last { (1, part.rows) } else { (0, 0) };
        self.add(sum, Read { parts: whole.0, rows: whole.1, bytes: end.offset - before.offset });
        Ok(())
    }
}

/// Sums the parts of a group, one slice after another.
async fn sum_group(
    context: Arc<Context>,
    group: Vec<Arc<Part>>,
    column: Arc<str>,
    format: Format,
) -> Result<(Sum, Read), Error> {
    let wide = match format {
        // A wide part's footer takes memory that there is for few at a time; it is alone in its group or first.
        Format::Parquet if is_wide(&group[0]) => {
            Some(Arc::clone(&context.wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?)
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
        let (store, column) = (Arc::clone(&context.store), Arc::clone(&column));
        let slice = move || {
            work.step(&store, &column, format)?;
            Ok(work)
        };
        work = context.workers.run(Lane::Question, slice).await.flatten()?;
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

/// Where in a Parquet file the next slice begins.
#[derive(Default)]
struct Position {
    row_group: usize,
    rows: u64,
}

impl GroupSum {
    /// One slice: parts, or a stretch of a large Parquet file, up to about `SLICE_BYTES`.
    fn step(&mut self, store: &Store, column: &str, format: Format) -> Result<(), Error> {
        let mut bytes = 0;
        while self.next < self.group.len() && bytes < SLICE_BYTES {
            let part = Arc::clone(&self.group[self.next]);
            let at_end = match format {
                Format::Csv => self.sum_csv(store, &part, column)?,
                Format::Parquet => self.sum_parquet(store, &part, column)?,
            };
            bytes += usize::try_from(part.csv_bytes).unwrap_or(usize::MAX).min(SLICE_BYTES);
            if at_end {
                self.next += 1;
                self.position = Position::default();
            }
        }
        Ok(())
    }

    /// A whole file of at most a slice.
    fn sum_csv(&mut self, store: &Store, part: &Part, column: &str) -> Result<bool, Error> {
        let Some(source) = Source::open(store, part, column)? else { return Ok(true) };
        let Found { sum, stop, end, .. } = source.sum_file();
        if let Some(stop) = stop {
            return Err(stop.error(part, column, 0));
        }
        check_rows(end.rows, part.rows).map_err(|what| Stop::Damaged(what).error(part, column, 0))?;
        self.sum.merge(sum);
        self.read.parts += 1;
        self.read.rows += end.rows;
        self.read.bytes += end.offset;
        Ok(true)
    }

    fn sum_parquet(&mut self, store: &Store, part: &Part, column: &str) -> Result<bool, Error> {
        let Some((_, column_index, column_type)) = find_column(store, part, column)? else { return Ok(true) };
        let file = store.open_part(part, Format::Parquet)?;
        let position = (self.position.row_group, self.position.rows);
        let of_column = (column_index, column, column_type);
        let stretch = sum_column(&file, part, of_column, position, SLICE_BYTES as u64, &mut self.sum)?
            .map_err(|bad_cell| Stop::BadCell(bad_cell).error(part, column, 0))?;
        self.read.bytes += stretch.bytes;
        if let Some((row_group, rows)) = stretch.next {
            self.position = Position { row_group, rows };
            return Ok(false);
        }
        self.read.parts += 1;
        self.read.rows += part.rows;
        Ok(true)
    }
}

/// What ends the scan of a stored file early.
pub(super) enum Stop {
    BadCell(BadCell),
    Csv(CsvError),
    /// The file is not what its receipt says.
    Damaged(String),
    Io(Error),
}

impl Stop {
    /// What it means to who asked, when so many rows of the part come before those that were counted.
    fn error(self, part: &Part, column: &str, rows_before: u64) -> Error {
        let damaged = |what: String| Error::Damaged { part: part.id, what: format!("csv: {what}") };
        match self {
            Self::BadCell(BadCell { row, cell, problem }) => {
                Error::Cell { part: part.id, row: row + rows_before, column: column.to_owned(), cell, problem }
            }
            Self::Csv(error) => damaged(error.after_rows(rows_before).to_string()),
            Self::Damaged(what) => damaged(what),
            Self::Io(error) => error,
        }
    }
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

#[cfg(test)]
mod tests {
    use crate::engine::Engine;
    use bytes::Bytes;
    use tempfile::TempDir;

    use crate::{limits::Limits, model::durability::Durability};

    use super::*;

    /// A file in which a guess may go wrong: rows inside quotes, quotes inside cells, rows longer than a stretch.
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

    /// Answers and errors do not depend on where a file is cut, nor on what stands at the cuts, even if it is damaged.
    #[tokio::test]
    async fn stretches_equal_the_whole_file() {
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
                for stretch_bytes in [4, 5, 17, 64, 1 + random.u64(4..1000)] {
                    let cut = column_sum_by(&engine.context, column, Format::Csv, stretch_bytes).await;
                    assert_eq!(cut.map_err(|e| e.to_string()), whole, "seed {seed}, {column:?} by {stretch_bytes}");
                }
                *(if whole.is_ok() { &mut sums } else { &mut errors }) += 1;
            }
            engine.close();
        }
        assert!(sums > 250 && errors > 100, "{sums} sums, {errors} errors");
    }
}
