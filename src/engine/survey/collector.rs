//! What reads the rows of the survey and keeps something of them.

use std::sync::Arc;

use super::{
    accumulator::{Columns, Survey},
    coded::CodedRows,
    question::SurveyQuestion,
};
use crate::{
    engine::parquet::column_reader::{PartColumns, Position, RowRange},
    error::Error,
    model::part::Part,
};

/// Collects something from the rows of all parts that have the survey's columns.
pub(super) trait Collector: Send + 'static {
    /// How many of the first [`COLUMN_NAMES`](super::question::COLUMN_NAMES) it needs.
    fn columns_count(&self) -> usize;

    /// Adds the rows of a range of a Parquet file.
    fn read(&mut self, file: &PartColumns<'_>, part: &Part, columns: &Columns, range: &RowRange) -> Result<(), Error>;

    /// Adds the rows that `longer` returns, with the position after them, if their row group can be read as codes. Returns
    /// what was read.
    fn read_coded(
        &mut self,
        _file: &PartColumns<'_>,
        _part: &Part,
        _columns: &Columns,
        _row_group: usize,
        _longer: impl FnOnce() -> Result<(RowRange, Position), Error>,
    ) -> Result<Option<(RowRange, Position)>, Error> {
        Ok(None)
    }

    /// Adds one row of a CSV file. The cells are in the order of [`COLUMN_NAMES`](super::question::COLUMN_NAMES); those that are
    /// not needed are empty.
    fn add_row(&mut self, part: &Part, row: u64, cells: [&str; 5]) -> Result<(), Error>;
}

/// The means for a question.
pub(super) struct Means {
    pub(super) survey: Survey,
    pub(super) question: Arc<SurveyQuestion>,
}

impl Collector for Means {
    fn columns_count(&self) -> usize {
        self.question.ask.columns_count()
    }

    fn read(&mut self, file: &PartColumns<'_>, part: &Part, columns: &Columns, range: &RowRange) -> Result<(), Error> {
        self.survey.read(file, part, columns, range, &self.question)
    }

    fn read_coded(
        &mut self,
        file: &PartColumns<'_>,
        part: &Part,
        columns: &Columns,
        row_group: usize,
        longer: impl FnOnce() -> Result<(RowRange, Position), Error>,
    ) -> Result<Option<(RowRange, Position)>, Error> {
        let Some(coded) = CodedRows::open(file, part, columns, row_group, &self.question)? else { return Ok(None) };
        let (range, after) = longer()?;
        coded.read(&range, &mut self.survey)?;
        Ok(Some((range, after)))
    }

    fn add_row(&mut self, part: &Part, row: u64, cells: [&str; 5]) -> Result<(), Error> {
        self.survey.add_row(part, row, cells, &self.question)
    }
}
