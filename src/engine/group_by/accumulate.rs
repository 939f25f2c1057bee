//! Adds rows to the groups of a partition.

use super::{
    hash_table::{BATCH_KEY_BYTES_MAX, Batch, Found, Totals, key_bytes},
    sources::{Source, Stop},
    spill::RunWriter,
    work::Work,
};
use crate::{
    engine::{
        csv::{
            rows::{Row, Rows, text_of},
            stored::check_header,
        },
        values::{parse::summand, sum::Sum},
    },
    error::{
        Error,
        csv::{CellPosition, CellProblem, CsvError},
    },
};

#[derive(Default)]
pub(super) struct Columns {
    by: Vec<usize>,
    sum: Vec<usize>,
}

/// The groups of a strand, in memory and on disk.
pub(super) struct Gathered {
    pub(super) totals: Totals,
    /// Rows of the source at hand that are not in the table yet. Empty between slices.
    pub(super) batch: Batch,
    pub(super) runs: Option<RunWriter>,
    pub(super) bytes_max: usize,
}

impl Columns {
    /// Where the columns of a question are, or the first that is missing.
    pub(super) fn of(names: &[String], work: &Work) -> Result<Self, CsvError> {
        let find = |wanted: &[String]| {
            let index = |name: &String| names.iter().position(|other| other == name);
            let found = wanted.iter().map(|name| index(name).ok_or_else(|| CsvError::NoColumn { name: name.clone() }));
            found.collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { by: find(work.spec.by())?, sum: find(work.spec.sum())? })
    }
}

/// Adds the rows that the scan delivers to their groups.
pub(super) struct GroupRows<'a> {
    pub(super) work: &'a Work,
    pub(super) source: &'a Source,
    pub(super) columns: &'a mut Columns,
    pub(super) gathered: &'a mut Gathered,
}

impl Rows for GroupRows<'_> {
    type Error = Stop;

    fn header(&mut self, names: &[String]) -> Result<(), Stop> {
        if let Some((_, schema)) = &self.source.part {
            check_header(names, schema).map_err(Stop::Damaged)?;
        }
        *self.columns = Columns::of(names, self.work)?;
        Ok(())
    }

    #[inline]
    fn row(&mut self, row: Row<'_>) -> Result<(), Stop> {
        let mut wrong = None;
        let values = self.columns.sum.iter().enumerate().map(|(sum_index, &column_index)| {
            let (len, window) = row.cell_window(column_index);
            match summand(len, window) {
                Ok(value) => value.unwrap_or(0),
                Err(problem) => {
                    wrong.get_or_insert((sum_index, problem));
                    0
                }
            }
        });
        let cells = self.columns.by.iter().map(|&column_index| row.cell(column_index));
        if key_bytes(cells.clone()) > BATCH_KEY_BYTES_MAX {
            let values: Vec<_> = values.collect();
            if let Some((sum_index, problem)) = wrong {
                return Err(self.wrong_value(&row, sum_index, problem));
            }
            self.gathered.flush(self.work, self.columns)?;
            self.gathered.add_row(self.work, self.columns, row.number, cells, &values)?;
            return Ok(());
        }
        let Gathered { totals, batch, .. } = &mut *self.gathered;
        batch.push(totals, row.number, cells, values);
        if let Some((sum_index, problem)) = wrong {
            return Err(self.wrong_value(&row, sum_index, problem));
        }
        if self.gathered.batch.is_full() {
            self.flush()?;
        }
        Ok(())
    }
}

impl GroupRows<'_> {
    pub(super) fn flush(&mut self) -> Result<(), Stop> {
        self.gathered.flush(self.work, self.columns)
    }

    #[cold]
    fn wrong_value(&mut self, row: &Row<'_>, sum_index: usize, problem: CellProblem) -> Stop {
        // What is wrong with a row before, or with this one's group, comes first.
        let before = self.flush();
        let cells = self.columns.by.iter().map(|&column_index| row.cell(column_index));
        if let Err(stop) = before.and_then(|()| Ok(check_text(self.work, self.columns, row.number, cells)?)) {
            return stop;
        }
        Stop::Csv(CsvError::Summand {
            row: row.number,
            column: self.work.spec.sum()[sum_index].clone(),
            cell: String::from_utf8_lossy(row.cell(self.columns.sum[sum_index])).into_owned(),
            problem,
        })
    }
}

impl Gathered {
    /// Adds the rows that wait in the batch.
    fn flush(&mut self, work: &Work, columns: &Columns) -> Result<(), Stop> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.look_up(&self.totals);
        for index in 0..batch.rows_count() {
            let row = batch.row(index, &self.totals);
            if let Some(place) = row.place {
                self.totals.add(place, row.values);
            } else {
                self.add_row(work, columns, row.number, row.cells(), row.values)?;
            }
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    /// Adds one row, and makes room for its group if it is a new one.
    fn add_row<'a>(
        &mut self,
        work: &Work,
        columns: &Columns,
        number: u64,
        cells: impl Iterator<Item = &'a [u8]> + Clone,
        values: &[i64],
    ) -> Result<(), Stop> {
        loop {
            match self.totals.find_or_insert(cells.clone()) {
                Found::Old(place) => {
                    self.totals.add(place, values);
                    return Ok(());
                }
                Found::New(place) => {
                    // Once for each key is enough: equal cells are equally good.
                    check_text(work, columns, number, cells)?;
                    self.totals.add(place, values);
                    return Ok(());
                }
                Found::Full if self.totals.is_empty() => {
                    check_text(work, columns, number, cells.clone())?;
                    return Ok(self.put_alone(work, cells, values)?);
                }
                Found::Full => self.spill(work)?,
            }
        }
    }

    /// A row whose group is too long for the table is a run.
    fn put_alone<'a>(
        &mut self,
        work: &Work,
        cells: impl Iterator<Item = &'a [u8]> + Clone,
        values: &[i64],
    ) -> Result<(), Error> {
        let mut runs = self.take_runs(work)?;
        runs.begin(key_bytes(cells.clone()), values.iter().map(|&value| Sum::of(value.into())))?;
        for (index, cell) in cells.enumerate() {
            if index > 0 {
                runs.key_piece(&[0])?;
            }
            runs.key_piece(cell)?;
        }
        runs.end_run()?;
        self.runs = Some(runs);
        Ok(())
    }

    /// Leaves the table on disk as a run, and empties it.
    pub(super) fn spill(&mut self, work: &Work) -> Result<(), Error> {
        let mut runs = self.take_runs(work)?;
        runs.put_all(&self.totals)?;
        self.totals.clear();
        self.runs = Some(runs);
        Ok(())
    }

    fn take_runs(&mut self, work: &Work) -> Result<RunWriter, Error> {
        self.runs.take().map_or_else(|| RunWriter::new(&work.folder, self.bytes_max), Ok)
    }
}

/// Whether the cells of a key are text.
fn check_text<'a>(
    work: &Work,
    columns: &Columns,
    row: u64,
    cells: impl Iterator<Item = &'a [u8]>,
) -> Result<(), CsvError> {
    for ((cell, &column_index), column) in cells.zip(&columns.by).zip(work.spec.by()) {
        text_of(cell).map_err(|problem| CsvError::Cell {
            position: CellPosition { row, column_index, column: Some(column.clone()) },
            problem,
        })?;
    }
    Ok(())
}
