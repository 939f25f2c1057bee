//! The general conversion: rows of a CSV file to Parquet, batch by batch.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    engine::{
        csv::rows::{Row, Rows},
        parquet::{
            batch::BatchBuilder,
            integer_writer::IntegersError,
            writer::{Converted, Layout, PartWriter},
        },
        storage::Store,
    },
    error::Error,
    model::schema::Column,
};

/// Takes the rows of a CSV file and writes them to a Parquet file.
pub(super) struct Conversion {
    store: Arc<Store>,
    columns: Vec<Column>,
    layout: Layout,
    /// `None` until the header was read. Made on a worker, because it creates a file.
    output: Option<(BatchBuilder, PartWriter)>,
    /// The memory of the conversion. Kept here because a task may still run after its upload was cancelled.
    pub(super) reservation: Option<OwnedSemaphorePermit>,
}

impl Conversion {
    pub(super) fn new(store: &Arc<Store>, columns: Vec<Column>, layout: Layout) -> Self {
        Self { store: Arc::clone(store), columns, layout, output: None, reservation: None }
    }

    fn output(&mut self) -> Result<&mut (BatchBuilder, PartWriter), Error> {
        self.output.as_mut().ok_or_else(|| Error::Internal("a row before the header".to_owned()))
    }

    /// Writes the last rows and the footer.
    pub(super) fn finish(mut self, rows: u64) -> Result<Converted, Error> {
        let (batch, writer) = self.output()?;
        writer.write(&batch.take()?)?;
        let Some((_, writer)) = self.output else { return Err(Error::Internal("no header".to_owned())) };
        Ok(Converted { parquet: writer.finish()?, columns: self.columns, rows })
    }
}

impl Rows for Conversion {
    type Error = Error;

    fn header(&mut self, _names: &[String]) -> Result<(), Error> {
        let writer = PartWriter::new(&self.store, &self.columns, self.layout)?;
        self.output = Some((BatchBuilder::new(&self.columns), writer));
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
        let (batch, writer) = self.output()?;
        batch.push(&row)?;
        if batch.is_full() {
            writer.write(&batch.take()?)?;
        }
        Ok(())
    }
}

/// The result of the path for integers, or `None` if that path cannot convert the file.
pub(super) fn unless_unsuited<T>(result: Result<T, IntegersError>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(IntegersError::Unsuited) => Ok(None),
        Err(IntegersError::Failed(error)) => Err(error),
    }
}
