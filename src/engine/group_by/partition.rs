//! A partition of a group sum: a byte range of the sources, read row by row into one table, one task at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{
    accumulate::{Columns, GroupRows, PartitionGroups},
    coded_groups::CodedGroups,
    columnar::{self, CSV_BYTES_PER_BYTE},
    columnar_part::ColumnarPart,
    hash_table::GroupTable,
    sources::{OpenFiles, Opened, Position, Source, SourceError},
    spill::Run,
    work::Work,
};
use crate::{
    engine::{
        csv::{
            file_scan::{FileScan, Reached},
            rows::{Resume, Wanted},
            sniff::{Foreign, SNIFFED_BYTES_MAX},
            split::RangeStart,
            stored::check_rows,
            text::TextCheck,
        },
        values::sum::Sum,
    },
    error::{Error, foreign_file::Use},
    limits::{KIB, READ_BLOCK_BYTES},
};

/// The bytes that a task counts for a part of which it reads nothing, because opening it takes time, too.
const SKIP_BYTES: usize = 4 * KIB;
/// Rows longer than this are read by one partition at a time, so that all others need only a few blocks of memory for
/// their rows.
const LONG_ROW_BYTES: usize = READ_BLOCK_BYTES;

/// A byte range of the sources, and the groups of the rows that start in it.
pub(super) struct Partition {
    /// Set until the first row has been looked for, if the partition begins inside a source: the first row starts here or
    /// later.
    starts_after: Option<Position>,
    start: RangeStart<Position>,
    until: Position,
    cursor: Cursor,
    /// Where the columns of the question are in the current source, once its header has been read.
    columns: Columns,
    /// Of a part that was begun inside and read to its end: the rows that were counted, and those in its receipt.
    first_rows: Option<(u64, u64)>,
    /// Whether the next row is longer than [`LONG_ROW_BYTES`].
    at_long_row: bool,
    /// Why reading stopped at the cursor.
    error: Option<SourceError>,
    read_bytes: u64,
    /// The parts that were read to their end, if that is of interest.
    read_parts: Vec<ReadPart>,
    files: OpenFiles,
    groups: PartitionGroups,
    /// The groups of parts that were read from Parquet, which are not in `groups` yet. `None` at the end.
    coded: Option<CodedGroups>,
    /// The last field, so that it is dropped last: it frees the memory that the groups take.
    work: Arc<Work>,
}

/// A part that was read to its end.
#[derive(Clone, Copy)]
pub(super) struct ReadPart {
    /// The number of the part.
    pub(super) id: u64,
    /// Its rows. `None` if it lacks a column.
    pub(super) rows: Option<u64>,
}

/// How far a partition has been read. Where it ends, the next one must have begun.
#[derive(Clone, Default)]
pub(super) struct Cursor {
    position: Position,
    /// Rows of the source before the position.
    rows: u64,
    /// The names of the source's columns; empty until its header has been read.
    names: Vec<String>,
}

impl Partition {
    /// A partition of which nothing has been read.
    pub(super) fn new(work: Arc<Work>, from: Position, until: Position, bytes_max: usize) -> Self {
        let groups = PartitionGroups::new(bytes_max, work.spec.totals_count());
        Self {
            work,
            starts_after: (from.offset > 0).then_some(from),
            start: if from.offset == 0 { RangeStart::Known(from) } else { RangeStart::Unknown },
            until,
            cursor: Cursor { position: from, ..Cursor::default() },
            columns: Columns::default(),
            first_rows: None,
            at_long_row: false,
            error: None,
            read_bytes: 0,
            read_parts: Vec::new(),
            files: OpenFiles::default(),
            groups,
            coded: None,
        }
    }

    /// Begins again where the partition before this one ended.
    pub(super) fn restart(&mut self, end: Cursor) -> Result<(), Error> {
        self.groups.clear();
        self.read_parts.clear();
        self.coded = None;
        (self.starts_after, self.start) = (None, RangeStart::Known(end.position));
        (self.first_rows, self.at_long_row, self.error, self.read_bytes) = (None, false, None, 0);
        self.columns = Columns::default();
        if !end.names.is_empty() {
            // The partition before has found the columns of the question among them, or it would have failed.
            self.columns = Columns::of(&end.names, &self.work).map_err(Error::Csv)?;
        }
        self.cursor = end;
        Ok(())
    }

    /// Bytes of CSV that were read or skipped.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The semaphore whose permit the next task needs, if it begins with a long row.
    pub(super) fn long_rows(&self) -> Option<Arc<Semaphore>> {
        self.at_long_row.then(|| Arc::clone(&self.work.long_rows))
    }

    /// Adds totals to those of a group, without reading anything.
    pub(super) fn add_totals(&mut self, key: &[u8], totals: &[Sum]) -> Result<(), Error> {
        self.groups.add_totals(&self.work, key, totals)
    }

    /// The parts that were read to their end, if rows are counted.
    pub(super) fn read_parts(&self) -> &[ReadPart] {
        &self.read_parts
    }

    fn note_part(&mut self, id: u64, rows: Option<u64>) {
        if self.work.spec.counts_rows {
            self.read_parts.push(ReadPart { id, rows });
        }
    }

    /// What all partitions share.
    pub(super) fn work(&self) -> &Work {
        &self.work
    }

    /// Whether groups have been written to disk.
    pub(super) fn has_runs(&self) -> bool {
        self.groups.has_runs()
    }

    /// Writes the groups that are still in memory to disk, and returns all runs.
    pub(super) fn into_runs(self) -> Result<Vec<Run>, Error> {
        self.groups.into_runs(&self.work)
    }

    /// All groups of a partition without runs.
    pub(super) fn into_table(self) -> GroupTable {
        self.groups.table
    }

    /// Whether it began where the partition before it ended.
    pub(super) fn follows(&self, before: &Cursor) -> bool {
        self.start.follows(&before.position, !before.names.is_empty())
    }

    /// Where it ended, for a partition that began where the one before it ended.
    ///
    /// Errors: the first thing wrong with what was read.
    pub(super) fn check(&mut self, before: &Cursor) -> Result<Cursor, Error> {
        let (sources, first) = (&self.work.sources, before.position.source);
        let uncounted_rows = self.start.uncounted_rows(before.rows);
        if let Some((counted, expected)) = self.first_rows {
            let checked = check_rows(counted + uncounted_rows, expected);
            checked.map_err(|what| sources.error(first, SourceError::Damaged(what), 0))?;
        }
        let mut end = self.cursor.clone();
        let uncounted_rows = if end.position.source == first { uncounted_rows } else { 0 };
        if let Some(error) = self.error.take() {
            return Err(sources.error(end.position.source, error, uncounted_rows));
        }
        end.rows += uncounted_rows;
        Ok(end)
    }

    /// The work of one task. Returns whether there is more. A task ends before a long row, unless it begins with one.
    pub(super) fn step(&mut self) -> bool {
        let mut left = self.work.plan.task_bytes.max(1);
        while left > 0 {
            match self.read_source(left) {
                Ok(Some(_)) if self.at_long_row => return true,
                Ok(Some(bytes)) => left = left.saturating_sub(bytes),
                Ok(None) => {
                    self.error = self.finish_coded().err().map(SourceError::Other);
                    return false;
                }
                Err(error) => {
                    self.error = Some(error);
                    return false;
                }
            }
        }
        true
    }

    /// Continues in one source, and returns how many bytes the task counts for it; `None` at the end of the partition.
    fn read_source(&mut self, bytes_max: usize) -> Result<Option<usize>, SourceError> {
        if let Some(position) = self.starts_after.take() {
            self.start = self.begin_inside(position)?;
        }
        if self.start == RangeStart::Unknown || self.cursor.position >= self.until {
            return Ok(None);
        }
        let work = Arc::clone(&self.work);
        let (id, opened) = work.sources.open(self.cursor.position.source, &work.spec, &work.plan, &mut self.files);
        if id != self.cursor.position.source {
            self.cursor = Cursor { position: Position { source: id, offset: 0 }, ..Cursor::default() };
            if self.cursor.position >= self.until {
                return Ok(None);
            }
        }
        match opened? {
            Opened::Source(source) => self.read_rows(&source, bytes_max).map(Some),
            Opened::Columnar(part) => self.read_columns(&part, bytes_max).map(Some),
            Opened::LacksColumn { bytes } => {
                self.read_bytes += bytes;
                self.note_part(id, None);
                self.next_source();
                Ok(Some(SKIP_BYTES))
            }
            Opened::End => Ok(None),
        }
    }

    /// Adds the groups of parts that were read from Parquet to the others, and frees their memory.
    fn finish_coded(&mut self) -> Result<(), Error> {
        self.coded.take().map_or(Ok(()), |mut coded| coded.finish(&self.work, &mut self.groups))
    }

    fn read_rows(&mut self, source: &Source, bytes_max: usize) -> Result<usize, SourceError> {
        if self.at_long_row {
            self.finish_coded()?;
        }
        let before = self.cursor.position.offset;
        if before == 0 && source.part.is_none() {
            Foreign::Refuse.check(&source.file.block(0, SNIFFED_BYTES_MAX)?, Use::GroupSum)?;
        }
        let resume = Resume { offset: before, rows: self.cursor.rows, names: std::mem::take(&mut self.cursor.names) };
        let (columns, groups) = (&mut self.columns, &mut self.groups);
        let rows = GroupRows { work: &self.work, source, columns, groups, text: TextCheck::default() };
        let mut scan = FileScan::new(source.file.clone(), source.limits, Wanted::All, resume, rows);
        if self.until.source == source.id {
            scan = scan.stop_at(self.until.offset);
        }
        scan = if std::mem::take(&mut self.at_long_row) {
            scan.with_room_for_row(self.work.row_bytes_max)
        } else {
            scan.stop_at_long_row(LONG_ROW_BYTES)
        };
        let reached = loop {
            let reached = scan.step_to_stop(bytes_max);
            scan.rows.flush()?;
            let reached = reached?;
            // A task must read at least one row, or the next task would begin at the same row.
            if reached != Reached::Pause || scan.offset() > before {
                break reached;
            }
        };
        self.at_long_row = reached == Reached::LongRow;
        let (resume, _) = scan.into_resume();
        let bytes = resume.offset - before;
        self.read_bytes += bytes;
        self.cursor.position.offset = resume.offset;
        (self.cursor.rows, self.cursor.names) = (resume.rows, resume.names);
        let at_end = resume.offset == source.file.bytes() && !self.cursor.names.is_empty();
        if reached == Reached::End || at_end {
            self.end_source(source)?;
        }
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX).max(SKIP_BYTES))
    }

    /// Continues in a part that is read from Parquet.
    fn read_columns(&mut self, columnar: &ColumnarPart, bytes_max: usize) -> Result<usize, SourceError> {
        let (before, rows) = (self.cursor.position, columnar.part.rows);
        let ends_here = self.until.source == before.source;
        let until = if ends_here { columnar.row_at(self.until.offset).min(rows) } else { rows };
        let from = columnar.row_at(before.offset);
        let next = columnar::read(columnar, &self.work, &mut self.groups, &mut self.coded, from, until, bytes_max)?;
        self.cursor.position.offset = columnar.offset_of(next);
        let bytes = self.cursor.position.offset - before.offset;
        self.read_bytes += bytes;
        if next == rows {
            self.note_part(before.source, Some(next));
            self.next_source();
        }
        Ok(usize::try_from(bytes / CSV_BYTES_PER_BYTE).unwrap_or(usize::MAX).max(SKIP_BYTES))
    }

    /// Checks that a part has as many rows as its receipt says, and moves to the next source.
    fn end_source(&mut self, source: &Source) -> Result<(), SourceError> {
        if let Some((part, _)) = &source.part {
            match self.start {
                RangeStart::Guessed(position) if position.source == source.id => {
                    self.first_rows = Some((self.cursor.rows, part.rows));
                }
                _ => check_rows(self.cursor.rows, part.rows).map_err(SourceError::Damaged)?,
            }
            self.note_part(source.id, Some(self.cursor.rows));
        }
        self.next_source();
        Ok(())
    }

    fn next_source(&mut self) {
        self.cursor = Cursor { position: self.cursor.position.next_source(), ..Cursor::default() };
    }

    /// Guesses where the first row starts at or after a position inside a source.
    fn begin_inside(&mut self, position: Position) -> Result<RangeStart<Position>, SourceError> {
        let work = Arc::clone(&self.work);
        let source = match work.sources.open(position.source, &work.spec, &work.plan, &mut self.files) {
            (_, Ok(Opened::Source(source))) => source,
            (_, Ok(Opened::LacksColumn { .. })) => {
                self.next_source();
                return Ok(RangeStart::Known(self.cursor.position));
            }
            (_, Ok(Opened::Columnar(columnar))) => {
                let row = columnar.row_at(position.offset);
                self.cursor.position = Position { offset: columnar.offset_of(row), ..position };
                if row >= columnar.part.rows {
                    self.next_source();
                }
                return Ok(RangeStart::Known(self.cursor.position));
            }
            // The partition before this one reads the source's beginning and will report what is wrong.
            (_, Ok(Opened::End) | Err(_)) => return Ok(RangeStart::Unknown),
        };
        let Some((names, offset)) = source.guess(position.offset)? else {
            return Ok(RangeStart::Unknown);
        };
        let Ok(columns) = Columns::of(&names, &work) else {
            return Ok(RangeStart::Unknown);
        };
        self.columns = columns;
        self.cursor = Cursor { position: Position { source: source.id, offset }, rows: 0, names };
        if offset == source.file.bytes() {
            self.next_source();
            return Ok(RangeStart::Known(self.cursor.position));
        }
        Ok(RangeStart::Guessed(self.cursor.position))
    }
}
