//! A strand of a group sum: one stretch of the sources, read row by row into one table, slice by slice.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{
    accumulate::{Columns, Gathered, GroupRows},
    hash_table::{Batch, Totals},
    sources::{Mark, Opened, Source, Stop},
    spill::{Run, RunWriter},
    work::Work,
};
use crate::{
    engine::csv::{
        file_scan::{FileScan, Reached},
        rows::{Resume, Wanted},
        split::RangeStart,
        stored::check_rows,
    },
    error::Error,
    limits::{KIB, READ_BLOCK_BYTES},
};

/// What a part costs that has nothing to read.
const SKIP_BYTES: usize = 4 * KIB;
/// A longer row is read while no other strand reads one. So all but one strand need only a few blocks for their rows.
const LONG_ROW_BYTES: usize = READ_BLOCK_BYTES;

/// Reads from one mark to another.
pub(super) struct Strand {
    /// A mark inside a source: the strand begins at the first row that starts there or later. Until that row was looked for.
    starts_after: Option<Mark>,
    start: RangeStart<Mark>,
    until: Mark,
    position: End,
    /// Of the source at hand, once its header was read.
    columns: Columns,
    /// A part that was begun inside and read to its end: the rows that were counted, and those that its receipt says.
    first_rows: Option<(u64, u64)>,
    /// Whether the row at the position is a long one.
    at_long_row: bool,
    /// What is wrong with the source at the position.
    stop: Option<Stop>,
    read_bytes: u64,
    gathered: Gathered,
    /// The last, as the room is free when the groups are gone.
    work: Arc<Work>,
}

/// Where a strand ended, which is where the next one must have begun.
#[derive(Clone, Default)]
pub(super) struct End {
    mark: Mark,
    /// Rows of the source before the mark, ...
    rows: u64,
    /// ... and the names of its columns, empty before its header.
    names: Vec<String>,
}

impl Strand {
    /// Nothing is read yet.
    pub(super) fn new(work: Arc<Work>, from: Mark, until: Mark, bytes_max: usize) -> Self {
        // The rest is for the block of a run and for a batch.
        let totals = Totals::new(bytes_max - bytes_max / 16, work.spec.sum().len());
        Self {
            work,
            starts_after: (from.offset > 0).then_some(from),
            start: if from.offset == 0 { RangeStart::Known(from) } else { RangeStart::Unknown },
            until,
            position: End { mark: from, ..End::default() },
            columns: Columns::default(),
            first_rows: None,
            at_long_row: false,
            stop: None,
            read_bytes: 0,
            gathered: Gathered { totals, batch: Batch::default(), runs: None, bytes_max },
        }
    }

    /// Begins again, where the strand before ended.
    pub(super) fn restart(&mut self, end: End) -> Result<(), Error> {
        self.gathered.totals.clear();
        self.gathered.batch.clear();
        self.gathered.runs = None;
        (self.starts_after, self.start) = (None, RangeStart::Known(end.mark));
        (self.first_rows, self.at_long_row, self.stop, self.read_bytes) = (None, false, None, 0);
        self.columns = Columns::default();
        if !end.names.is_empty() {
            // That strand has found them, or it would have been stopped.
            self.columns = Columns::of(&end.names, &self.work).map_err(Error::Csv)?;
        }
        self.position = end;
        Ok(())
    }

    /// Bytes of CSV that were read or passed over.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Whose turn the next slice must wait for, as it begins with a long row.
    pub(super) fn long_row_turn(&self) -> Option<Arc<Semaphore>> {
        self.at_long_row.then(|| Arc::clone(&self.work.long_row_turn))
    }

    /// Whether it has written any.
    pub(super) fn has_runs(&self) -> bool {
        self.gathered.runs.is_some()
    }

    /// All groups, on disk.
    pub(super) fn into_runs(mut self) -> Result<Vec<Run>, Error> {
        if !self.gathered.totals.is_empty() {
            self.gathered.spill(&self.work)?;
        }
        Ok(self.gathered.runs.map(RunWriter::finish).unwrap_or_default())
    }

    /// All groups of a strand that has no runs.
    pub(super) fn into_totals(self) -> Totals {
        self.gathered.totals
    }

    /// Whether it began where the one before it ended.
    pub(super) fn follows(&self, before: &End) -> bool {
        self.start.follows(&before.mark, !before.names.is_empty())
    }

    /// What is wrong with what was read, or where it ended. It began where the one before it ended.
    pub(super) fn check(&mut self, before: &End) -> Result<End, Error> {
        let (sources, first) = (&self.work.sources, before.mark.source);
        let uncounted_rows = self.start.uncounted_rows(before.rows);
        if let Some((counted, expected)) = self.first_rows {
            let checked = check_rows(counted + uncounted_rows, expected);
            checked.map_err(|what| sources.error(first, Stop::Damaged(what), 0))?;
        }
        let mut end = self.position.clone();
        let uncounted_rows = if end.mark.source == first { uncounted_rows } else { 0 };
        if let Some(stop) = self.stop.take() {
            return Err(sources.error(end.mark.source, stop, uncounted_rows));
        }
        end.rows += uncounted_rows;
        Ok(end)
    }

    /// One slice. Answers whether there is more. It ends early before a long row, unless it begins with that.
    pub(super) fn step(&mut self) -> bool {
        let mut left = self.work.plan.slice_bytes.max(1);
        while left > 0 {
            match self.read_source(left) {
                Ok(Some(_)) if self.at_long_row => return true,
                Ok(Some(bytes)) => left = left.saturating_sub(bytes),
                Ok(None) => return false,
                Err(stop) => {
                    self.stop = Some(stop);
                    return false;
                }
            }
        }
        true
    }

    /// Reads on in one source and answers what that cost, or none at the end of the strand.
    fn read_source(&mut self, bytes_max: usize) -> Result<Option<usize>, Stop> {
        if let Some(mark) = self.starts_after.take() {
            self.start = self.begin_inside(mark)?;
        }
        if self.start == RangeStart::Unknown || self.position.mark >= self.until {
            return Ok(None);
        }
        let work = Arc::clone(&self.work);
        let (id, opened) = work.sources.open(self.position.mark.source, &work.spec);
        if id != self.position.mark.source {
            self.position = End { mark: Mark { source: id, offset: 0 }, ..End::default() };
            if self.position.mark >= self.until {
                return Ok(None);
            }
        }
        match opened? {
            Opened::Source(source) => self.read_rows(&source, bytes_max).map(Some),
            Opened::Without { bytes } => {
                self.read_bytes += bytes;
                self.next_source();
                Ok(Some(SKIP_BYTES))
            }
            Opened::None => Ok(None),
        }
    }

    fn read_rows(&mut self, source: &Source, bytes_max: usize) -> Result<usize, Stop> {
        let before = self.position.mark.offset;
        let resume =
            Resume { offset: before, rows: self.position.rows, names: std::mem::take(&mut self.position.names) };
        let rows = GroupRows { work: &self.work, source, columns: &mut self.columns, gathered: &mut self.gathered };
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
            // What is wrong with a row that waits comes before what is wrong here.
            scan.rows.flush()?;
            let reached = reached?;
            // A slice must get beyond the row that it begins with, or the next one would begin there again.
            if reached != Reached::Pause || scan.offset() > before {
                break reached;
            }
        };
        self.at_long_row = reached == Reached::LongRow;
        let (resume, _) = scan.into_resume();
        let bytes = resume.offset - before;
        self.read_bytes += bytes;
        self.position.mark.offset = resume.offset;
        (self.position.rows, self.position.names) = (resume.rows, resume.names);
        let at_end = resume.offset == source.file.bytes() && !self.position.names.is_empty();
        if reached == Reached::End || at_end {
            self.end_source(source)?;
        }
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX).max(SKIP_BYTES))
    }

    /// A part has the rows that its receipt says.
    fn end_source(&mut self, source: &Source) -> Result<(), Stop> {
        if let Some((part, _)) = &source.part {
            match self.start {
                RangeStart::Guessed(mark) if mark.source == source.id => {
                    self.first_rows = Some((self.position.rows, part.rows));
                }
                _ => check_rows(self.position.rows, part.rows).map_err(Stop::Damaged)?,
            }
        }
        self.next_source();
        Ok(())
    }

    fn next_source(&mut self) {
        self.position = End { mark: self.position.mark.next_source(), ..End::default() };
    }

    /// Guesses where the first row starts that does not begin before a mark.
    fn begin_inside(&mut self, mark: Mark) -> Result<RangeStart<Mark>, Stop> {
        let work = Arc::clone(&self.work);
        let source = match work.sources.open(mark.source, &work.spec) {
            (_, Ok(Opened::Source(source))) => source,
            (_, Ok(Opened::Without { .. })) => {
                self.next_source();
                return Ok(RangeStart::Known(self.position.mark));
            }
            // The strand before reads the start of it, and will say what is wrong.
            (_, Ok(Opened::None) | Err(_)) => return Ok(RangeStart::Unknown),
        };
        let Some((names, offset)) = source.guess(mark.offset)? else {
            return Ok(RangeStart::Unknown);
        };
        let Ok(columns) = Columns::of(&names, &work) else {
            return Ok(RangeStart::Unknown);
        };
        self.columns = columns;
        self.position = End { mark: Mark { source: source.id, offset }, rows: 0, names };
        if offset == source.file.bytes() {
            self.next_source();
            return Ok(RangeStart::Known(self.position.mark));
        }
        Ok(RangeStart::Guessed(self.position.mark))
    }
}
