//! Reads a part's CSV. Statistics compare texts, and Parquet does not keep every text: a column of doubles has `1.5` for `1.50`.

use std::str::from_utf8;

use super::{accumulator::Columns, collector::Collector};
use crate::{
    engine::{
        csv::{
            file_scan::{FileScan, Reached},
            rows::{Resume, Row, Rows, Wanted},
            stored::{STORED_LIMITS, check_header, check_rows},
        },
        storage::reader::Reader,
    },
    error::{Error, csv::CsvError},
    limits::{READ_BLOCK_BYTES, ROW_BYTES_CEILING, TASK_BYTES},
    model::{part::Part, schema::Schema},
};

/// A position between two rows.
#[derive(Clone, Copy, Default)]
pub(super) struct CsvPosition {
    offset: u64,
    rows: u64,
}

/// Where a task ended.
pub(super) enum CsvStep {
    Pause(CsvPosition),
    /// Before a row that needs more memory than every task may have.
    LongRow(CsvPosition),
    /// At the end of the part, which has so many rows.
    End {
        rows: u64,
    },
}

/// What a question reads of a part.
pub(super) struct CsvPart<'a> {
    pub(super) part: &'a Part,
    pub(super) schema: &'a Schema,
    pub(super) columns: &'a Columns,
}

impl CsvPart<'_> {
    /// Adds about `TASK_BYTES` of rows to `collector`. Only with `long_rows` it reads a row of more than a block.
    pub(super) fn read<C: Collector>(
        &self,
        file: Reader,
        from: CsvPosition,
        collector: &mut C,
        long_rows: bool,
    ) -> Result<CsvStep, Error> {
        let names = if from.offset > 0 { self.schema.names() } else { Vec::new() };
        let resume = Resume { offset: from.offset, rows: from.rows, names };
        let rows = SurveyRows { part: self, collector };
        let scan = FileScan::new(file, STORED_LIMITS, Wanted::All, resume, rows);
        let mut scan = match long_rows {
            true => scan.with_room_for_row(ROW_BYTES_CEILING),
            false => scan.stop_at_long_row(READ_BLOCK_BYTES),
        };
        let reached = loop {
            let reached = scan.step_to_stop(TASK_BYTES).map_err(|failure| failure.into_error(self.part))?;
            // A task must read at least one row, or the next one would begin at the same row.
            if reached != Reached::Pause || scan.offset() > from.offset {
                break reached;
            }
        };
        let (Resume { offset, rows, .. }, _) = scan.into_resume();
        let after = CsvPosition { offset, rows };
        match reached {
            Reached::Pause | Reached::Stop => Ok(CsvStep::Pause(after)),
            Reached::LongRow => Ok(CsvStep::LongRow(after)),
            Reached::End => match check_rows(rows, self.part.rows) {
                Ok(()) => Ok(CsvStep::End { rows }),
                Err(what) => Err(Failure::Damaged(what).into_error(self.part)),
            },
        }
    }
}

struct SurveyRows<'a, C> {
    part: &'a CsvPart<'a>,
    collector: &'a mut C,
}

impl<C: Collector> Rows for SurveyRows<'_, C> {
    type Error = Failure;

    fn header(&mut self, names: &[String]) -> Result<(), Failure> {
        check_header(names, self.part.schema).map_err(Failure::Damaged)
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Failure> {
        let CsvPart { part, columns, .. } = *self.part;
        let mut cells = [""; 5];
        for (cell, column) in cells.iter_mut().zip(columns.first(self.collector.columns_count())) {
            let text = from_utf8(row.cell(column.index));
            *cell = text.map_err(|error| Failure::Damaged(format!("row {}: {error}", row.number)))?;
        }
        Ok(self.collector.add_row(part, row.number, cells)?)
    }
}

/// Why the scan of a stored file failed.
enum Failure {
    /// The file does not match its receipt.
    Damaged(String),
    Other(Error),
}

impl Failure {
    fn into_error(self, part: &Part) -> Error {
        match self {
            Self::Damaged(what) => Error::Damaged { part: part.id, what: format!("csv: {what}") },
            Self::Other(error) => error,
        }
    }
}

impl From<CsvError> for Failure {
    fn from(error: CsvError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}
