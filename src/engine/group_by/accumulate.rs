//! Adds rows to the groups of a partition.

use super::{
    hash_table::{Batch, GroupTable, Lookup, key_bytes},
    row_buffer::RowBuffer,
    sources::{Source, SourceError},
    spill::{Run, RunWriter},
    work::Work,
};
use crate::{
    engine::{
        csv::{
            header::{check_unnamed, stored_names, unnamed_columns},
            rows::{Row, Rows},
            stored::check_header,
            text::{TextCheck, check_cells},
        },
        values::{
            parse::{double_summand, double_text, summand},
            sum::Sum,
        },
    },
    error::{
        Error,
        csv::{CellProblem, CsvError, FileRow},
    },
};

/// Where the columns of the question are in a source.
#[derive(Default)]
pub(super) struct Columns {
    by: Vec<usize>,
    sum: Vec<usize>,
    /// The columns that must be without values.
    unnamed: Vec<usize>,
    /// The names of all columns, for errors.
    names: Vec<String>,
}

/// The groups of a partition, in memory and on disk.
pub(super) struct PartitionGroups {
    pub(super) table: GroupTable,
    /// Rows of the current source that have not been added to the table. Empty between tasks.
    pub(super) batch: Batch,
    /// Takes rows instead of the table, after the table was full of groups that nearly all had one row.
    rows: Option<RowBuffer>,
    runs: Option<RunWriter>,
    bytes_max: usize,
    sums_count: usize,
}

/// A full table with fewer rows for each group was not worth the look-ups: its rows are cheaper to sort.
const ROWS_PER_GROUP_MIN: usize = 2;
/// If sorted rows have so many for each group, their groups probably fit in a table.
const ROWS_PER_GROUP_MAX: usize = 4;

impl Columns {
    /// Finds the columns of the question.
    ///
    /// Errors: the first column that is missing, or that two names could be.
    pub(super) fn of(names: &[String], work: &Work) -> Result<Self, CsvError> {
        let stored = stored_names(names);
        let index = |name: &String| column_index(&stored, name, work);
        let find = |wanted: &[String]| wanted.iter().map(index).collect::<Result<Vec<_>, _>>();
        let (by, sum) = (find(work.spec.by())?, find(work.spec.sum())?);
        Ok(Self { by, sum, unnamed: unnamed_columns(names), names: names.to_vec() })
    }
}

fn column_index(names: &[String], wanted: &str, work: &Work) -> Result<usize, CsvError> {
    let missing = || CsvError::NoColumn { name: wanted.to_owned() };
    if let Some(index) = names.iter().position(|name| name == wanted) {
        return Ok(index);
    }
    let is_meant = |name: &String| work.spec.trims_names && name.trim() == wanted.trim();
    let index = names.iter().position(is_meant).ok_or_else(missing)?;
    if names.iter().skip(index + 1).any(is_meant) {
        return Err(CsvError::DuplicateColumn { row: FileRow::HEADER, name: wanted.trim().to_owned() });
    }
    Ok(index)
}

/// Adds the rows that the scan delivers to their groups.
pub(super) struct GroupRows<'a> {
    pub(super) work: &'a Work,
    pub(super) source: &'a Source,
    pub(super) columns: &'a mut Columns,
    pub(super) groups: &'a mut PartitionGroups,
    pub(super) text: TextCheck,
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

    fn bytes(&mut self, bytes: &[u8]) {
        self.text.feed(bytes);
    }

    #[inline]
    fn row(&mut self, row: Row<'_>) -> Result<(), SourceError> {
        if self.text.has_failed() {
            check_cells(&row, &self.columns.names)?;
        }
        check_unnamed(&row, &self.columns.unnamed)?;
        let mut wrong = None;
        let source = self.source;
        let values = self.columns.sum.iter().enumerate().map(|(sum_index, &column_index)| {
            let (len, window) = row.cell_window(column_index);
            let value = if source.is_double(sum_index) { double_summand(&window[..len]) } else { summand(len, window) };
            match value {
                Ok(value) => value.unwrap_or(0),
                Err(problem) => {
                    wrong.get_or_insert((sum_index, problem));
                    0
                }
            }
        });
        let mut values = values.chain(self.work.spec.counts_rows.then_some(1));
        let windows = self.columns.by.iter().map(|&column_index| row.cell_window(column_index));
        let PartitionGroups { table, batch, rows, .. } = &mut *self.groups;
        let is_taken = match rows {
            Some(rows) => rows.push(windows, values.by_ref()),
            None => batch.push(table, windows, values.by_ref()),
        };
        if !is_taken {
            let values: Vec<_> = values.collect();
            if wrong.is_none() {
                self.groups.flush(self.work)?;
                let cells = self.columns.by.iter().map(|&column_index| row.cell(column_index));
                self.groups.add_row(self.work, cells, &values)?;
            }
        }
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
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.groups.flush(self.work)
    }

    #[cold]
    fn wrong_value(&self, row: &Row<'_>, sum_index: usize, problem: CellProblem) -> SourceError {
        let cell = row.cell(self.columns.sum[sum_index]);
        let cell =
            if self.source.is_double(sum_index) { double_text(cell) } else { String::from_utf8_lossy(cell).into() };
        let column = self.work.spec.sum()[sum_index].clone();
        SourceError::Csv(CsvError::Summand { row: row.number.into(), column, cell, problem })
    }
}

impl PartitionGroups {
    /// No groups. They take `bytes_max` bytes at most, with a writer of runs.
    pub(super) fn new(bytes_max: usize, sums_count: usize) -> Self {
        // The rest is for the block and the marks of runs that are written, and for a batch of rows.
        let table = GroupTable::new(bytes_max - bytes_max / 8, sums_count);
        Self { table, batch: Batch::default(), rows: None, runs: None, bytes_max, sums_count }
    }

    /// Removes all groups, also those on disk.
    pub(super) fn clear(&mut self) {
        if self.rows.take().is_some() {
            self.table.open();
        }
        self.table.clear();
        self.batch.clear();
        self.runs = None;
    }

    /// Whether groups have been written to disk.
    pub(super) fn has_runs(&self) -> bool {
        self.runs.is_some()
    }

    /// Writes the groups that are still in memory to disk, and returns all runs.
    pub(super) fn into_runs(mut self, work: &Work) -> Result<Vec<Run>, Error> {
        if !self.table.is_empty() || self.rows.as_ref().is_some_and(|rows| !rows.is_empty()) {
            self.spill(work)?;
        }
        Ok(self.runs.map(RunWriter::finish).unwrap_or_default())
    }

    /// Adds the rows of the batch to the table.
    pub(super) fn flush(&mut self, work: &Work) -> Result<(), Error> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.look_up(&self.table);
        for index in 0..batch.rows_count() {
            let row = batch.row(index, &self.table);
            if let Some(offset) = row.offset {
                self.table.add(offset, row.values);
            } else {
                self.add_row(work, std::iter::once(row.key), row.values)?;
            }
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    /// Adds one row, whose key is these cells, or a single one that is the key. What does not fit in memory any more is spilled.
    pub(super) fn add_row<'a>(
        &mut self,
        work: &Work,
        cells: impl Iterator<Item = &'a [u8]> + Clone,
        values: &[i64],
    ) -> Result<(), Error> {
        loop {
            if let Some(rows) = &mut self.rows {
                let windows = cells.clone().map(|cell| (cell.len(), cell));
                if rows.push(windows, values.iter().copied()) {
                    return Ok(());
                }
                if rows.is_empty() {
                    return self.spill_long_group(work, cells, values);
                }
                self.spill(work)?;
                continue;
            }
            match self.table.find_or_insert(cells.clone()) {
                Lookup::Existing(offset) | Lookup::Inserted(offset) => {
                    self.table.add(offset, values);
                    return Ok(());
                }
                Lookup::Full if self.table.is_empty() => {
                    return self.spill_long_group(work, cells, values);
                }
                Lookup::Full => self.spill(work)?,
            }
        }
    }

    /// Adds totals to those of a group. What does not fit in memory any more is spilled.
    pub(super) fn add_totals(&mut self, work: &Work, key: &[u8], totals: &[Sum]) -> Result<(), Error> {
        loop {
            match self.table.find_or_insert(std::iter::once(key)) {
                Lookup::Existing(offset) | Lookup::Inserted(offset) => {
                    self.table.add_totals(offset, totals);
                    return Ok(());
                }
                Lookup::Full => {
                    let mut runs = self.take_runs(work)?;
                    let is_long = self.table.is_empty();
                    if is_long {
                        runs.put(key, totals.iter().copied())?;
                        runs.end_run()?;
                    } else {
                        runs.put_all(&self.table)?;
                        self.table.clear();
                    }
                    self.runs = Some(runs);
                    if is_long {
                        return Ok(());
                    }
                }
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

    /// Writes what is in memory to disk as a run. Then the next rows are looked up or collected, whichever would have been better for
    /// these.
    fn spill(&mut self, work: &Work) -> Result<(), Error> {
        let mut runs = self.take_runs(work)?;
        if let Some(rows) = &mut self.rows {
            let sorted = rows.spill(&mut runs)?;
            if sorted.rows_count >= ROWS_PER_GROUP_MAX * sorted.groups_count {
                self.rows = None;
                self.table.open();
            }
        } else {
            runs.put_all(&self.table)?;
            if self.table.rows_count() < ROWS_PER_GROUP_MIN * self.table.groups_count() {
                self.table.close();
                self.rows = Some(RowBuffer::new(self.bytes_max - self.bytes_max / 8, self.sums_count));
            } else {
                self.table.clear();
            }
        }
        self.runs = Some(runs);
        Ok(())
    }

    fn take_runs(&mut self, work: &Work) -> Result<RunWriter, Error> {
        self.runs.take().map_or_else(|| RunWriter::new(&work.folder, self.bytes_max, work.plan.range_bytes), Ok)
    }
}
