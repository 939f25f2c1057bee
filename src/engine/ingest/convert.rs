//! The general conversion: rows of a draft into Parquet, batch by batch.

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

/// Rows on their way into a Parquet file.
pub(super) struct Conversion {
    store: Arc<Store>,
    columns: Vec<Column>,
    layout: Layout,
    /// Made when the scan begins, on a worker.
    output: Option<(BatchBuilder, PartWriter)>,
    /// Travels with the work: a cancelled upload's slice may still be running.
    pub(super) reservation: Option<OwnedSemaphorePermit>,
}

impl Conversion {
    pub(super) fn new(store: &Arc<Store>, columns: Vec<Column>, layout: Layout) -> Self {
        Self { store: Arc::clone(store), columns, layout, output: None, reservation: None }
    }

    fn output(&mut self) -> Result<&mut (BatchBuilder, PartWriter), Error> {
        self.output.as_mut().ok_or_else(|| Error::Internal("a row before the header".to_owned()))
    }

    /// The last rows and the footer.
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

/// What the path for integers makes of a file, none if it does not take it.
pub(super) fn unless_unsuited<T>(result: Result<T, IntegersError>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(IntegersError::Unsuited) => Ok(None),
        Err(IntegersError::Failed(error)) => Err(error),
    }
}
