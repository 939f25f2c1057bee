//! The column sum of one part, about [`TASK_BYTES`] at a time. It is the same on this server's workers and on other machines.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::csv_ranges::{Found, RowPosition, ScanError, Source, SummedColumn, find_column};
use crate::{
    engine::{
        csv::{split::RangeStart, stored::check_rows},
        parquet::{
            column_sum::{RowGroupStart, StoredColumn, SumError},
            wide::is_wide,
        },
        runtime::part_engine::{PartOutcome, PartQuestion, PartTotals},
        storage::{Store, segments::reading::OpenSegment},
        values::sum::Sum,
    },
    error::Error,
    limits::TASK_BYTES,
    model::{format::Format, part::Part},
};

/// The permit that is kept while these parts are read, if one of them needs it: there is memory for only a few footers of wide
/// parts.
pub(crate) async fn wide_permit(
    wide_reads: &Arc<Semaphore>,
    parts: &[Arc<Part>],
    question: &PartQuestion,
) -> Result<Option<OwnedSemaphorePermit>, Error> {
    Ok(match question.format {
        Format::Parquet if parts.iter().any(|part| is_wide(part)) => {
            Some(Arc::clone(wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?)
        }
        Format::Csv | Format::Parquet => None,
    })
}

/// The sum of the rows of a part that have been read.
#[derive(Default)]
pub(crate) struct PartSum {
    sum: Sum,
    bytes: u64,
    /// Where the next step begins in CSV.
    row: RowPosition,
    /// Where it begins in Parquet.
    row_group: RowGroupStart,
}

impl PartSum {
    /// Reads on. `None` if there is more to read. `open` has the files of the segment that was read before.
    ///
    /// Errors: a cell that cannot be added, or the type of the column; a damaged file.
    pub(crate) fn step(
        &mut self,
        store: &Store,
        part: &Arc<Part>,
        question: &PartQuestion,
        open: &mut OpenSegment,
    ) -> Result<Option<PartOutcome>, Error> {
        match question.format {
            Format::Parquet if part.packed.is_none() => self.step_parquet(store, part, &question.column),
            Format::Csv | Format::Parquet => self.step_csv(store, part, &question.column, open),
        }
    }

    fn step_csv(
        &mut self,
        store: &Store,
        part: &Part,
        column: &str,
        open: &mut OpenSegment,
    ) -> Result<Option<PartOutcome>, Error> {
        let Some(source) = Source::open_with(store, part, column, open)? else {
            return Ok(Some(PartOutcome::WithoutColumn));
        };
        let is_last = part.csv_bytes.saturating_sub(self.row.offset) <= TASK_BYTES as u64;
        // The last step reads to the end of the file, even if the file is longer than it should be.
        let until = if is_last { u64::MAX } else { self.row.offset + TASK_BYTES as u64 };
        let Found { sum, error, end, .. } = source.sum(RangeStart::Known(self.row.offset), self.row, until);
        if let Some(error) = error {
            return Err(error.into_error(part, column, 0));
        }
        self.sum.merge(sum);
        self.row = end;
        if !is_last {
            return Ok(None);
        }
        check_rows(end.rows, part.rows).map_err(|what| ScanError::Damaged(what).into_error(part, column, 0))?;
        self.bytes = end.offset;
        Ok(Some(self.totals(end.rows)))
    }

    fn step_parquet(&mut self, store: &Store, part: &Part, column: &str) -> Result<Option<PartOutcome>, Error> {
        let Some(SummedColumn { index, column_type, .. }) = find_column(store, part, column)? else {
            return Ok(Some(PartOutcome::WithoutColumn));
        };
        let file = store.open_part(part, Format::Parquet)?;
        let stored = StoredColumn { file: &file, part, index, name: column, column_type };
        let read = stored.sum(self.row_group, TASK_BYTES as u64, &mut self.sum);
        let read = read.map_err(|error| match error {
            SumError::BadCell(bad_cell) => ScanError::BadCell(bad_cell).into_error(part, column, 0),
            SumError::Failed(error) => error,
        })?;
        self.bytes += read.bytes;
        if let Some(next) = read.next {
            self.row_group = next;
            return Ok(None);
        }
        Ok(Some(self.totals(read.rows)))
    }

    fn totals(&self, rows: u64) -> PartOutcome {
        PartOutcome::Summed(PartTotals { sum: self.sum.exact(), rows, bytes: self.bytes })
    }
}
