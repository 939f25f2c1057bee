//! The column sum of a byte range of a CSV file.

use std::sync::Arc;

use crate::{
    engine::{
        csv::{
            file_scan::{FileScan, Reached},
            rows::{Resume, Row, Rows, Wanted},
            split::{QUICK_GUESS, RangeStart, guess_row_start},
            stored::{STORED_LIMITS, check_header},
        },
        parquet::column_sum::BadCell,
        runtime::context::Context,
        state::Lane,
        storage::{Store, reader::Reader, segments::reading::OpenSegment},
        values::{
            parse::{double_summand, double_text, summand},
            sum::Sum,
        },
    },
    error::{Error, column_sum::ColumnSumError, csv::CsvError},
    model::{
        format::Format,
        part::Part,
        schema::{ColumnType, Schema},
    },
};

/// A range of a part's CSV file: the rows that start in it.
#[derive(Clone)]
pub(super) struct ByteRange {
    pub(super) part: Arc<Part>,
    pub(super) from: u64,
    pub(super) until: u64,
}

/// The result of scanning a file or a byte range.
pub(super) struct Found {
    pub(super) start: RangeStart<u64>,
    pub(super) sum: Sum,
    /// The error in the row after `end`, if the scan failed.
    pub(super) error: Option<ScanError>,
    pub(super) end: RowPosition,
}

/// A position between two rows of a CSV file.
#[derive(Clone, Copy, Default)]
pub(super) struct RowPosition {
    pub(super) offset: u64,
    /// Data rows before it: in the file, or in the range if the start of the range was guessed.
    pub(super) rows: u64,
    pub(super) header_read: bool,
}

impl ByteRange {
    /// Sums the rows on a worker. The first row starts at `known`, or if that is `None`, at a guessed offset.
    pub(super) async fn sum(
        self,
        context: &Arc<Context>,
        column: &Arc<str>,
        known: Option<RowPosition>,
    ) -> Result<Reading, Error> {
        let (store, column) = (Arc::clone(&context.store), Arc::clone(column));
        context.workers.run(Lane::Question, move || self.sum_now(&store, &column, known)).await.flatten()
    }

    fn sum_now(&self, store: &Store, column: &str, known: Option<RowPosition>) -> Result<Reading, Error> {
        let Some(source) = Source::open(store, &self.part, column)? else { return Ok(Reading::NoColumn) };
        // The last range is read to the end of the file, even if the file is longer than it should be.
        let until = if self.until == self.part.csv_bytes { u64::MAX } else { self.until };
        let known = known.or_else(|| (self.from == 0).then(RowPosition::default));
        if let Some(from) = known {
            return Ok(Reading::Found(source.sum(RangeStart::Known(from.offset), from, until)));
        }
        let columns_count = source.column.schema.columns_count();
        let guess = guess_row_start(&source.file, self.from, columns_count, STORED_LIMITS, QUICK_GUESS)?;
        let Some(offset) = guess else { return Ok(Reading::NoGuess) };
        let from = RowPosition { offset, rows: 0, header_read: true };
        Ok(Reading::Found(source.sum(RangeStart::Guessed(offset), from, until)))
    }
}

/// An open CSV file of a part, and the column to sum.
pub(super) struct Source {
    file: Reader,
    column: SummedColumn,
}

impl Source {
    /// Opens the file. `None` if the part does not have the column, or no value in it.
    pub(super) fn open(store: &Store, part: &Part, column: &str) -> Result<Option<Self>, Error> {
        Self::open_with(store, part, column, &mut OpenSegment::default())
    }

    /// As [`Self::open`]. `open` has the files of the segment that was read before.
    pub(super) fn open_with(
        store: &Store,
        part: &Part,
        column: &str,
        open: &mut OpenSegment,
    ) -> Result<Option<Self>, Error> {
        let Some(column) = find_column_with(store, part, column, open)? else { return Ok(None) };
        let file = store.open_part_with(part, Format::Csv, open)?;
        Ok(Some(Self { file, column }))
    }

    /// Sums the rows of a whole file.
    pub(super) fn sum_file(self) -> Found {
        self.sum(RangeStart::Known(0), RowPosition::default(), u64::MAX)
    }

    /// Sums the rows that start between `from` and `until`.
    pub(super) fn sum(self, start: RangeStart<u64>, from: RowPosition, until: u64) -> Found {
        match self.column.column_type {
            ColumnType::Float64 => self.sum_as::<true>(start, from, until),
            _ => self.sum_as::<false>(start, from, until),
        }
    }

    fn sum_as<const DOUBLES: bool>(self, start: RangeStart<u64>, from: RowPosition, until: u64) -> Found {
        let SummedColumn { schema, index, .. } = self.column;
        let names = if from.header_read { schema.names() } else { Vec::new() };
        let resume = Resume { offset: from.offset, rows: from.rows, names };
        let rows = ColumnOfCsv::<DOUBLES> { schema: &schema, sum: Sum::default() };
        let mut scan = FileScan::new(self.file, STORED_LIMITS, Wanted::Column(index), resume, rows).stop_at(until);
        let error = loop {
            match scan.step_to_stop(usize::MAX) {
                Ok(Reached::Pause | Reached::LongRow) => {}
                Ok(Reached::Stop | Reached::End) => break None,
                Err(error) => break Some(error),
            }
        };
        let (resume, rows) = scan.into_resume();
        let end = RowPosition { offset: resume.offset, rows: resume.rows, header_read: !resume.names.is_empty() };
        Found { start, sum: rows.sum, error, end }
    }
}

/// A column that can be summed, in one part.
pub(super) struct SummedColumn {
    schema: Arc<Schema>,
    pub(super) index: usize,
    pub(super) column_type: ColumnType,
}

/// Finds a column that can be summed. `None` if the part does not have the column.
///
/// Errors: the column has a type that cannot be summed.
pub(super) fn find_column(store: &Store, part: &Part, column: &str) -> Result<Option<SummedColumn>, Error> {
    find_column_with(store, part, column, &mut OpenSegment::default())
}

fn find_column_with(
    store: &Store,
    part: &Part,
    column: &str,
    open: &mut OpenSegment,
) -> Result<Option<SummedColumn>, Error> {
    let schema = store.schema_with(part, open)?;
    match schema.find(column) {
        None => Ok(None),
        Some((index, column_type @ (ColumnType::Int64 | ColumnType::Float64 | ColumnType::Utf8))) => {
            Ok(Some(SummedColumn { schema, index, column_type }))
        }
        // It has the type of earlier parts, but adds nothing.
        Some((index, _)) if store.is_without_values_with(part, index, open)? => Ok(None),
        Some((_, column_type)) => {
            Err(ColumnSumError::NotSummable { part: part.id, column: column.to_owned(), column_type }.into())
        }
    }
}

/// Sums the one column that the scan delivers. Of a column of doubles only integral ones are added, as from Parquet.
pub(super) struct ColumnOfCsv<'a, const DOUBLES: bool> {
    pub(super) schema: &'a Schema,
    pub(super) sum: Sum,
}

impl<const DOUBLES: bool> Rows for ColumnOfCsv<'_, DOUBLES> {
    type Error = ScanError;

    const TAKES_SUMS: bool = !DOUBLES;

    fn header(&mut self, names: &[String]) -> Result<(), ScanError> {
        check_header(names, self.schema).map_err(ScanError::Damaged)
    }

    fn sum(&mut self, sum: Sum) {
        self.sum.merge(sum);
    }

    #[inline]
    fn row(&mut self, row: Row<'_>) -> Result<(), ScanError> {
        let Some((len, window)) = row.first_cell() else { return Ok(()) };
        let value = if DOUBLES { double_summand(&window[..len]) } else { summand(len, window) };
        match value {
            Ok(Some(value)) => self.sum.add(value),
            Ok(None) => {}
            Err(problem) => {
                let cell = &window[..len];
                let cell = if DOUBLES { double_text(cell) } else { String::from_utf8_lossy(cell).into_owned() };
                return Err(ScanError::BadCell(BadCell { row: row.number, cell, problem }));
            }
        }
        Ok(())
    }
}

/// The result of reading a byte range.
pub(super) enum Reading {
    /// The part does not have the column.
    NoColumn,
    /// The start of the first row could not be guessed.
    NoGuess,
    Found(Found),
}

/// Why the scan of a stored file failed.
pub(super) enum ScanError {
    BadCell(BadCell),
    Csv(CsvError),
    /// The file does not match its receipt.
    Damaged(String),
    Io(Error),
}

impl ScanError {
    /// The error for the caller. `rows_before` is the number of rows of the part before those that the scan counted.
    pub(super) fn into_error(self, part: &Part, column: &str, rows_before: u64) -> Error {
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

impl From<CsvError> for ScanError {
    fn from(error: CsvError) -> Self {
        Self::Csv(error)
    }
}

impl From<Error> for ScanError {
    fn from(error: Error) -> Self {
        Self::Io(error)
    }
}
