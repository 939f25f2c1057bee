//! Adds rows to the groups of a partition.

use super::{
    hash_table::{BATCH_KEY_BYTES_MAX, Batch, GroupTable, Lookup, key_bytes},
    sources::{Source, SourceError},
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

/// Where the columns of the question are in a source.
#[derive(Default)]
pub(super) struct Columns {
    by: Vec<usize>,
    sum: Vec<usize>,
}

/// The groups of a partition, in memory and on disk.
pub(super) struct PartitionGroups {
    pub(super) table: GroupTable,
    /// Rows of the current source that have not been added to the table. Empty between tasks.
    pub(super) batch: Batch,
    pub(super) runs: Option<RunWriter>,
    pub(super) bytes_max: usize,
}

impl Columns {
    /// Finds the columns of the question.
    ///
    /// Errors: the first column that is missing.
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
    pub(super) groups: &'a mut PartitionGroups,
}

impl Rows for GroupRows<'_> {
    type Error = SourceError;

    fn header(&mut self, names: &[String]) -> Result<(), SourceError> {
        if let Some((_, schema)) = &self.source.part {
            check_header(names, schema).map_err(SourceError::Damaged)?;
        }
        *self.columns = Columns::of(names, self.work)?;
        Ok(())
    }

    #[inline]
    fn row(&mut self, row: Row<'_>) -> Result<(), SourceError> {
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
            self.groups.flush(self.work, self.columns)?;
            self.groups.add_row(self.work, self.columns, row.number, cells, &values)?;
            return Ok(());
        }
        let PartitionGroups { table, batch, .. } = &mut *self.groups;
        batch.push(table, row.number, cells, values);
        if let Some((sum_index, problem)) = wrong {
            return Err(self.wrong_value(&row, sum_index, problem));
        }
        if self.groups.batch.is_full() {
            self.flush()?;
        }
        Ok(())
    }
}

impl GroupRows<'_> {
    pub(super) fn flush(&mut self) -> Result<(), SourceError> {
        self.groups.flush(self.work, self.columns)
    }

    #[cold]
    fn wrong_value(&mut self, row: &Row<'_>, sum_index: usize, problem: CellProblem) -> SourceError {
        // An error in a row before, or in this row's group, is reported first.
        let before = self.flush();
        let cells = self.columns.by.iter().map(|&column_index| row.cell(column_index));
        if let Err(error) = before.and_then(|()| Ok(check_text(self.work, self.columns, row.number, cells)?)) {
            return error;
        }
        SourceError::Csv(CsvError::Summand {
            row: row.number,
            column: self.work.spec.sum()[sum_index].clone(),
            cell: String::from_utf8_lossy(row.cell(self.columns.sum[sum_index])).into_owned(),
            problem,
        })
    }
}

impl PartitionGroups {
    /// Adds the rows of the batch to the table.
    fn flush(&mut self, work: &Work, columns: &Columns) -> Result<(), SourceError> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.look_up(&self.table);
        for index in 0..batch.rows_count() {
            let row = batch.row(index, &self.table);
            if let Some(offset) = row.offset {
                self.table.add(offset, row.values);
            } else {
                self.add_row(work, columns, row.number, row.cells(), row.values)?;
            }
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    /// Adds one row. If its group is new and the table is full, the table is spilled.
    fn add_row<'a>(
        &mut self,
        work: &Work,
        columns: &Columns,
        number: u64,
        cells: impl Iterator<Item = &'a [u8]> + Clone,
        values: &[i64],
    ) -> Result<(), SourceError> {
        loop {
            match self.table.find_or_insert(cells.clone()) {
                Lookup::Existing(offset) => {
                    self.table.add(offset, values);
                    return Ok(());
                }
                Lookup::Inserted(offset) => {
                    // Only new keys have to be checked: equal cells are equally valid.
                    check_text(work, columns, number, cells)?;
                    self.table.add(offset, values);
                    return Ok(());
                }
                Lookup::Full if self.table.is_empty() => {
                    check_text(work, columns, number, cells.clone())?;
                    return Ok(self.spill_long_group(work, cells, values)?);
                }
                Lookup::Full => self.spill(work)?,
            }
        }
    }

    /// Writes a row whose group does not fit in an empty table as a run with one entry.
    fn spill_long_group<'a>(
        &mut self,
        work: &Work,
        cells: impl Iterator<Item = &'a [u8]> + Clone,
        values: &[i64],
    ) -> Result<(), Error> {
        let mut runs = self.take_runs(work)?;
        runs.begin(key_bytes(cells.clone()), values.iter().map(|&value| Sum::of(value.into())))?;
        for (index, cell) in cells.enumerate() {
            if index > 0 {
                runs.append_key(&[0])?;
            }
            runs.append_key(cell)?;
        }
        runs.end()?;
        runs.end_run()?;
        self.runs = Some(runs);
        Ok(())
    }

    /// Writes the table to disk as a run, and empties it.
    pub(super) fn spill(&mut self, work: &Work) -> Result<(), Error> {
        let mut runs = self.take_runs(work)?;
        runs.put_all(&self.table)?;
        self.table.clear();
        self.runs = Some(runs);
        Ok(())
    }

    fn take_runs(&mut self, work: &Work) -> Result<RunWriter, Error> {
        self.runs.take().map_or_else(|| RunWriter::new(&work.folder, self.bytes_max), Ok)
    }
}

/// Checks that the cells of a key are valid text.
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
