//! The rows of packed parts as Parquet.

use std::sync::Arc;

use crate::{
    engine::{
        csv::{
            file_scan::FileScan,
            rows::{Resume, Row, Rows, Wanted},
            stored::{STORED_LIMITS, check_rows},
        },
        parquet::{
            batch::BatchBuilder,
            writer::{Layout, PartWriter, WrittenFile},
        },
        storage::{Store, reader::Reader},
    },
    error::{Error, csv::CsvError},
    model::{part::Part, schema::Column},
};

/// A Parquet file that is written from the CSV of one or many parts with the same columns.
pub(super) struct ParquetOfParts {
    batch: BatchBuilder,
    writer: PartWriter,
}

impl ParquetOfParts {
    pub(super) fn new(store: &Arc<Store>, columns: &[Column], layout: Layout) -> Result<Self, Error> {
        let writer = PartWriter::new(store, columns, layout)?;
        Ok(Self { batch: BatchBuilder::new(columns), writer })
    }

    /// Adds the rows of a part.
    ///
    /// Errors: its CSV is not what its receipt says; the file cannot be written.
    pub(super) fn add(&mut self, part: &Part, csv: Reader) -> Result<(), Error> {
        let mut scan = FileScan::new(csv, STORED_LIMITS, Wanted::All, Resume::default(), OfPart(self));
        let damaged = |what: String| Error::Damaged { part: part.id, what: format!("csv: {what}") };
        loop {
            match scan.step(usize::MAX) {
                Ok(true) => break,
                Ok(false) => {}
                Err(Failure::Csv(error)) => return Err(damaged(error.to_string())),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        check_rows(scan.rows_count(), part.rows).map_err(damaged)
    }

    pub(super) fn finish(mut self) -> Result<WrittenFile, Error> {
        self.writer.write(&self.batch.take()?)?;
        self.writer.finish()
    }
}

struct OfPart<'a>(&'a mut ParquetOfParts);

impl Rows for OfPart<'_> {
    type Error = Failure;

    fn header(&mut self, _names: &[String]) -> Result<(), Failure> {
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Failure> {
        let ParquetOfParts { batch, writer } = self.0;
        batch.push(&row)?;
        if batch.is_full() {
            writer.write(&batch.take()?)?;
        }
        Ok(())
    }
}

/// Why the scan ended.
enum Failure {
    Csv(CsvError),
    Other(Error),
}

impl From<CsvError> for Failure {
    fn from(error: CsvError) -> Self {
        Self::Csv(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}
