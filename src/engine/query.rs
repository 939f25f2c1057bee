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
    Engine, Store,
    cell::summand,
    csv::{FileScan, Reached, Resume, Row, Rows, Wanted, guess_row_start},
    fold::Sum,
    parquet::{BadCell, sum_column},
    part::{ColumnType, Format, Part, PartId, Receipt, Schema},
    state::Lane,
    store::Reader,
    verify::parts_to_read,
};
use crate::{
    error::{CsvError, Error},
    limits::{
        COLUMNS_MAX, CsvLimits, HEADER_BYTES_MAX, KIB, NAME_BYTES_MAX, RECEIPT_BYTES, RECEIPT_COLUMN_BYTES,
        ROW_BYTES_CEILING, SLICE_BYTES, SLICE_PARTS_MAX, SLICES_IN_FLIGHT_MAX, WIDE_CHUNKS, WIDE_FOOTER_BYTES,
    },
};

/// A stored file was checked under the limits of its time, which may have been other ones.
const STORED: CsvLimits =
    CsvLimits { columns_max: COLUMNS_MAX, cell_bytes_max: ROW_BYTES_CEILING, row_bytes_max: ROW_BYTES_CEILING };

/// Bytes that are looked at to guess where a row starts; more if those do not tell.
const GUESS_BYTES: [usize; 2] = [8 * KIB, 256 * KIB];

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
pub(super) async fn column_sum(engine: &Engine, column: &str, format: Format) -> Result<ColumnSum, Error> {
    column_sum_by(engine, column, format, SLICE_BYTES as u64).await
}

/// The same with larger CSV files cut into stretches of so many bytes.
async fn column_sum_by(engine: &Engine, column: &str, format: Format, stretch_bytes: u64) -> Result<ColumnSum, Error> {
    let column: Arc<str> = column.into();
    let parts = parts_to_read(engine, Lane::Question).await?;
    let groups = Groups { parts: parts.into_iter().peekable(), format };
    let pieces = stream::iter(groups.flat_map(move |group| pieces_of(group, format, stretch_bytes)));
    let sum_of = |piece| sum_piece(engine.clone(), piece, Arc::clone(&column), format);
    // In the order of the pieces, so that the first error is the first in the table.
    let summed = pieces.map(sum_of).buffered(SLICES_IN_FLIGHT_MAX);
    let answer = Answer { engine, column: &column, sum: Sum::default(), read: Read::default(), before: End::default() };
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
    let total = sum.total().map_err(|total| Error::SumOverflow { column: column.to_string(), total })?;
    Ok(ColumnSum { total, read })
}

/// Receipts that are read at once.
pub struct Page {
    ids: Vec<PartId>,
    /// Memory that they take once they are read, about.
    pub bytes: usize,
}

/// Receipts after a part, in order: as many as fit in so much memory, at least one if there is one.
pub(super) fn receipts_page(engine: &Engine, after: Option<PartId>, count_max: usize, bytes_max: usize) -> Page {
    let mut page = Page { ids: Vec::new(), bytes: 0 };
    let parts = engine.0.state.with(|state| state.parts.snapshot());
    let after = after.map_or(0, PartId::get);
    let Some(first) = PartId::new(after.saturating_add(1)) else { return page };
    for (id, part) in parts.range(first..).take(count_max.min(SLICE_PARTS_MAX)) {
        let columns = part.columns_count as usize;
        let names =
            part.schema.as_ref().map_or(HEADER_BYTES_MAX.min(columns * NAME_BYTES_MAX), |schema| schema.bytes() / 2);
        let bytes = RECEIPT_BYTES + columns * RECEIPT_COLUMN_BYTES + names;
        if !page.ids.is_empty() && page.bytes + bytes > bytes_max {
            break;
        }
        page.bytes += bytes;
        page.ids.push(*id);
    }
    page
}

/// Reads the receipts of a page.
pub(super) async fn read_page(engine: &Engine, page: Page) -> Result<Vec<Receipt>, Error> {
    if page.ids.is_empty() {
        return Ok(Vec::new());
    }
    let store = Arc::clone(&engine.0.store);
    engine.0.workers.run(Lane::Question, move || page.ids.into_iter().map(|id| store.receipt(id)).collect()).await?
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

/// What one turn of a question reads.
enum Piece {
    /// Parts, one after another.
    Group(Vec<Arc<Part>>),
    /// Rows of one large CSV file.
    Stretch(Stretch),
}

/// The rows that start in a range of a part's CSV.
#[derive(Clone)]
struct Stretch {
    part: Arc<Part>,
    from: u64,
    until: u64,
}

/// What came of a piece.
enum Summed {
    Group(Sum, Read),
    Stretch(Stretch, Reading),
}

/// What came of reading a stretch.
enum Reading {
    /// The part lacks the column.
    Lacks,
    /// Where its first row starts could not be guessed.
    NoGuess,
    Found(Found),
}

/// What a reader of a CSV file found.
struct Found {
    /// Where it began.
    start: u64,
    sum: Sum,
    /// What stopped it at the row after its end, if anything did.
    stop: Option<Stop>,
    end: End,
}

/// Between two rows of a CSV file.
#[derive(Clone, Copy, Default)]
struct End {
    offset: u64,
    /// Rows from where the reader began.
    rows: u64,
    header_read: bool,
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

async fn sum_piece(engine: Engine, piece: Piece, column: Arc<str>, format: Format) -> Result<Summed, Error> {
    match piece {
        Piece::Group(group) => {
            sum_group(engine, group, column, format).await.map(|(sum, read)| Summed::Group(sum, read))
        }
        Piece::Stretch(stretch) => {
            let found = stretch.clone().sum(&engine, &column, None).await?;
            Ok(Summed::Stretch(stretch, found))
        }
    }
}

/// The answer to a question as far as it is known.
struct Answer<'a> {
    engine: &'a Engine,
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
        let follows = |found: &Found| found.start == before.offset && (found.start == 0 || before.header_read);
        let reading = match reading {
            Reading::Lacks => return Ok(()),
            Reading::Found(found) if follows(&found) => Reading::Found(found),
            // A row went beyond all of it.
            _ if before.offset >= stretch.until && !is_last => return Ok(()),
            _ => stretch.sum(self.engine, self.column, Some(before)).await?,
        };
        let Reading::Found(Found { start, sum, stop, end }) = reading else { return Ok(()) };
        if let Some(stop) = stop {
            return Err(stop.error(&part, self.column, before.rows));
        }
        let rows = before.rows + end.rows;
        self.before = End { rows, ..end };
        if is_last && rows != part.rows {
            return Err(rows_differ(&part, rows));
        }
        let whole = if is_last { (1, part.rows) } else { (0, 0) };
        self.add(sum, Read { parts: whole.0, rows: whole.1, bytes: end.offset - start });
        Ok(())
    }
}

impl Stretch {
    /// Sums its rows on a worker: from where the one before it ended, or else from where the first seems to start.
    async fn sum(self, engine: &Engine, column: &Arc<str>, known: Option<End>) -> Result<Reading, Error> {
        let (store, column) = (Arc::clone(&engine.0.store), Arc::clone(column));
        engine.0.workers.run(Lane::Question, move || self.sum_now(&store, &column, known)).await.flatten()
    }

    fn sum_now(&self, store: &Store, column: &str, known: Option<End>) -> Result<Reading, Error> {
        let Some(source) = Source::open(store, &self.part, column)? else { return Ok(Reading::Lacks) };
        let start = match known {
            Some(end) => Some(end),
            None if self.from == 0 => Some(End::default()),
            None => source.guess(self.from)?.map(|offset| End { offset, rows: 0, header_read: true }),
        };
        let Some(start) = start else { return Ok(Reading::NoGuess) };
        // To the end of the file, if it is the last, so that it is read until there is no more.
        let until = if self.until == self.part.csv_bytes { u64::MAX } else { self.until };
        Ok(Reading::Found(source.sum(start, until)))
    }
}

/// A part's CSV, open, and the column in it.
struct Source {
    file: Reader,
    schema: Arc<Schema>,
    column_index: usize,
}

impl Source {
    /// None if the part lacks the column.
    fn open(store: &Store, part: &Part, column: &str) -> Result<Option<Self>, Error> {
        let Some((schema, column_index, _)) = find_column(store, part, column)? else { return Ok(None) };
        let file = store.open_part(part, Format::Csv)?;
        Ok(Some(Self { file, schema, column_index }))
    }

    /// Where the first row seems to start that does not begin before `offset`.
    fn guess(&self, offset: u64) -> Result<Option<u64>, Error> {
        let from = offset - 1; // a row that ends with this byte is followed by one that starts at the offset
        for bytes in GUESS_BYTES {
            let window = self.file.block(from, bytes)?;
            if let Some(start) = guess_row_start(&window, self.schema.columns_count(), STORED) {
                return Ok(Some(from + start as u64));
            }
        }
        Ok(None)
    }

    /// Sums the rows that start before `until`.
    fn sum(self, start: End, until: u64) -> Found {
        let names = if start.header_read { self.schema.names() } else { Vec::new() };
        let resume = Resume { offset: start.offset, rows: 0, names };
        let rows = ColumnOfCsv { schema: &self.schema, sum: Sum::default() };
        let mut scan = FileScan::new(self.file, STORED, Wanted::Column(self.column_index), resume, rows).stop_at(until);
        let stop = loop {
            match scan.step_to_stop(usize::MAX) {
                Ok(Reached::Pause | Reached::LongRow) => {}
                Ok(Reached::Stop | Reached::End) => break None,
                Err(stop) => break Some(stop),
            }
        };
        let (resume, rows) = scan.into_resume();
        let end = End { offset: resume.offset, rows: resume.rows, header_read: !resume.names.is_empty() };
        Found { start: start.offset, sum: rows.sum, stop, end }
    }
}

/// A column of a part whose cells can be added: its index and type, and the columns beside it. None if there is none.
fn find_column(store: &Store, part: &Part, column: &str) -> Result<Option<(Arc<Schema>, usize, ColumnType)>, Error> {
    let schema = match &part.schema {
        Some(schema) => Arc::clone(schema),
        None => Arc::new(Schema::of(&store.receipt(part.id)?.columns)),
    };
    match schema.find(column) {
        None => Ok(None),
        Some((index, column_type @ (ColumnType::Int64 | ColumnType::Utf8))) => Ok(Some((schema, index, column_type))),
        Some((_, column_type)) => Err(Error::NotSummable { part: part.id, column: column.to_owned(), column_type }),
    }
}

fn rows_differ(part: &Part, rows: u64) -> Error {
    let what = format!("csv: {rows} rows, the receipt says {}", part.rows);
    Error::Damaged { part: part.id, what }
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
        let Found { sum, stop, end, .. } = source.sum(End::default(), u64::MAX);
        if let Some(stop) = stop {
            return Err(stop.error(part, column, 0));
        }
        if end.rows != part.rows {
            return Err(rows_differ(part, end.rows));
        }
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

/// Adds the one column that the scan delivers.
struct ColumnOfCsv<'a> {
    schema: &'a Schema,
    sum: Sum,
}

/// What ends the scan of a stored file early.
enum Stop {
    BadCell(BadCell),
    Csv(CsvError),
    OtherHeader,
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
            Self::OtherHeader => damaged("its header disagrees with the receipt".to_owned()),
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

impl Rows for ColumnOfCsv<'_> {
    type Error = Stop;

    const TAKES_SUMS: bool = true;

    fn header(&mut self, names: &[String]) -> Result<(), Stop> {
        let same = names.iter().eq(self.schema.columns().iter().map(|(name, _)| name));
        if same { Ok(()) } else { Err(Stop::OtherHeader) }
    }

    fn sum(&mut self, sum: Sum) {
        self.sum.merge(sum);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::{engine::Durability, limits::Limits};

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
                let whole = column_sum_by(&engine, column, Format::Csv, u64::MAX).await.map_err(|e| e.to_string());
                for stretch_bytes in [4, 5, 17, 64, 1 + random.u64(4..1000)] {
                    let cut = column_sum_by(&engine, column, Format::Csv, stretch_bytes).await;
                    assert_eq!(cut.map_err(|e| e.to_string()), whole, "seed {seed}, {column:?} by {stretch_bytes}");
                }
                *(if whole.is_ok() { &mut sums } else { &mut errors }) += 1;
            }
            engine.close();
        }
        assert!(sums > 250 && errors > 100, "{sums} sums, {errors} errors");
    }
}
