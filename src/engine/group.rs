//! Group sums: CSV files of any size to one row for each distinct group, exact, in a fixed number of bytes.
//!
//! The files are cut into as many **strands** as there are cores, each with a table of its own (`totals.rs`). A table
//! that is full is left on disk as a sorted run (`runs.rs`), and in the end all tables or all runs are merged, in the
//! order of the groups. A strand that begins inside a file guesses where a row starts. When all are done they are checked in
//! order: each must have begun where the one before it ended, and is done again from there if it has not. So neither
//! the answer nor an error depends on the cuts.
//!
//! All work is slices on the workers. Dropping the future, or the [`Groups`], stops it at the next slice.
//!
//! Memory: the tables, or else the merge; beside the tables one row of any length, as strands read long rows in turn. A
//! reader's pace is not theirs: [`Groups::store`] ends the merge and lets the memory go before the first group is read.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::available_parallelism,
};

use futures_util::future::try_join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    csv::split_record,
    fold::Sum,
    runs::{Merge, MergedGroup, Run, RunWriter, SortedTable},
    sources::{Mark, Sources},
    state::Lane,
    store::TempFolder,
    strand::{End, Strand},
    workers::Workers,
};
use crate::{
    error::{Error, GroupByError},
    limits::{
        GROUP_BLOCK_BYTES, GROUP_COLUMNS_MAX, GROUP_NAMES_BYTES_MAX, MIB, NAME_BYTES_MAX, READ_BLOCK_BYTES,
        SLICE_BYTES, WORKERS,
    },
};

/// A strand with less memory would write runs all the time.
const STRAND_MEMORY_BYTES_MIN: usize = 8 * MIB;

/// The columns of a group sum: no name twice, at least one to group by and one to sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupBy {
    by: Vec<String>,
    sum: Vec<String>,
}

impl GroupBy {
    /// Groups by some columns and sums others. A column is named once: the result is a table, too.
    pub fn new(by: Vec<String>, sum: Vec<String>) -> Result<Self, GroupByError> {
        if by.is_empty() {
            return Err(GroupByError::NoBy);
        }
        if sum.is_empty() {
            return Err(GroupByError::NoSum);
        }
        if by.len() + sum.len() > GROUP_COLUMNS_MAX {
            return Err(GroupByError::TooMany { columns_max: GROUP_COLUMNS_MAX });
        }
        let names: Vec<_> = by.iter().chain(&sum).collect();
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(GroupByError::NameTooLong { bytes_max: NAME_BYTES_MAX });
        }
        if names.iter().map(|name| name.len()).sum::<usize>() > GROUP_NAMES_BYTES_MAX {
            return Err(GroupByError::NamesTooLong { bytes_max: GROUP_NAMES_BYTES_MAX });
        }
        if let Some((_, twice)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
            return Err(GroupByError::Twice { name: (*twice).clone() });
        }
        Ok(Self { by, sum })
    }

    /// Groups by the columns of some lists and sums those of others; a list is columns as a row of a CSV file has them.
    pub fn parse(by: &[String], sum: &[String]) -> Result<Self, GroupByError> {
        let names = |lists: &[String]| {
            let mut names = Vec::new();
            for list in lists {
                names.extend(split_record(list).map_err(|problem| GroupByError::List { list: list.clone(), problem })?);
            }
            Ok(names)
        };
        Self::new(names(by)?, names(sum)?)
    }

    /// The columns to group by.
    pub fn by(&self) -> &[String] {
        &self.by
    }

    /// The columns to sum.
    pub fn sum(&self) -> &[String] {
        &self.sum
    }
}

/// What a group sum may take. The answer does not depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes for groups: tables, what sorts them, blocks of runs; and for a long row being read, unless that would
    /// leave less than a quarter for groups. A merge holds two rows of the longest and what it writes of one, even where
    /// that is more.
    pub bytes_max: usize,
    /// Strands at most.
    pub strands_max: usize,
    /// Bytes of CSV that are worth a strand of their own.
    pub strand_bytes_min: u64,
    /// Bytes of CSV that a slice reads.
    pub slice_bytes: usize,
}

impl Plan {
    /// For this machine, in so many bytes.
    pub fn with_bytes(bytes_max: usize) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            bytes_max,
            strands_max: cores.min(WORKERS).min(bytes_max / STRAND_MEMORY_BYTES_MIN).max(1),
            strand_bytes_min: 2 * SLICE_BYTES as u64,
            slice_bytes: SLICE_BYTES,
        }
    }
}

/// Where a group sum works.
#[derive(Clone)]
pub struct GroupSum {
    /// Whose slices they are.
    pub workers: Workers,
    /// Which lane they take.
    pub lane: Lane,
    /// Where runs are written.
    pub folder: TempFolder,
    /// What it may take.
    pub plan: Plan,
}

/// What all slices of one group sum share.
pub(super) struct Work {
    pub(super) sources: Sources,
    pub(super) spec: GroupBy,
    pub(super) folder: TempFolder,
    pub(super) plan: Plan,
    /// No row of the sources is longer.
    pub(super) row_bytes_max: usize,
    /// One strand at a time reads rows that are long.
    pub(super) long_row_turn: Arc<Semaphore>,
    /// Travels with the work: the memory is free again when the last of it is dropped.
    _room: Option<OwnedSemaphorePermit>,
}

impl Work {
    /// Where the strands begin.
    fn marks(&self) -> Vec<Mark> {
        let count = self.sources.bytes() / self.plan.strand_bytes_min.max(1);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.sources.cut(count.clamp(1, self.plan.strands_max.max(1)))
    }

    /// What there is for all tables.
    fn tables_bytes(&self) -> usize {
        let Plan { bytes_max, .. } = self.plan;
        // Its bytes, and its cells without their quotes.
        let long_row_bytes = 2 * (self.row_bytes_max + READ_BLOCK_BYTES);
        bytes_max.saturating_sub(long_row_bytes).max(bytes_max / 4)
    }
}

impl GroupSum {
    /// Reads all sources and answers with their groups. `progress` is told how many bytes of CSV have been read.
    ///
    /// Errors: the first thing wrong with a source, in their order and that of the rows; a full disk.
    pub async fn run(
        &self,
        sources: Sources,
        spec: GroupBy,
        room: Option<OwnedSemaphorePermit>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Groups, Error> {
        let plan = self.plan;
        let folder = self.folder.clone();
        let begin = move || {
            let (row_bytes_max, long_row_turn) = (sources.row_bytes_max(), Arc::new(Semaphore::new(1)));
            let work = Work { sources, spec, folder, plan, row_bytes_max, long_row_turn, _room: room };
            let marks = work.marks();
            (Arc::new(work), marks)
        };
        let (work, marks) = self.workers.run(self.lane, begin).await?;

        let read_bytes = AtomicU64::new(0);
        let told = |bytes| progress(read_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes);
        let strands = marks.iter().enumerate().map(async |(index, &from)| {
            let until = marks.get(index + 1).copied().unwrap_or(Mark::END);
            let strand = Strand::new(Arc::clone(&work), from, until, work.tables_bytes() / marks.len());
            let mut strand = self.read(self.held(strand), &told).await?;
            if index == 0 {
                // Nothing that the others find comes before what is wrong here.
                strand.get_mut()?.check(&End::default())?;
            }
            Ok::<_, Error>(strand)
        });
        let mut strands = try_join_all(strands).await?;

        let mut end = End::default();
        for strand in &mut strands {
            if !strand.get()?.follows(&end) {
                read_bytes.fetch_sub(strand.get()?.read_bytes(), Ordering::Relaxed);
                let (mut again, from) = (strand.take()?, end.clone());
                let begin = move || again.restart(from).map(|()| again);
                let again = self.workers.run(self.lane, begin).await.flatten()?;
                *strand = self.read(self.held(again), &told).await?;
            }
            end = strand.get_mut()?.check(&end)?;
        }
        self.merge(&work, strands).await
    }

    /// Runs a strand to its end, or to what is wrong with its source.
    async fn read(&self, mut strand: Held<Strand>, told: impl Fn(u64)) -> Result<Held<Strand>, Error> {
        loop {
            let turn = match strand.get()?.long_row_turn() {
                Some(turn) => Some(turn.acquire_owned().await.ok().ok_or(Error::Cancelled)?),
                None => None,
            };
            let mut next = strand.take()?;
            let before = next.read_bytes();
            let step = move || {
                let more = next.step();
                drop(turn);
                (next, more)
            };
            let (stepped, more) = self.workers.run(self.lane, step).await?;
            told(stepped.read_bytes() - before);
            strand = self.held(stepped);
            if !more {
                return Ok(strand);
            }
        }
    }

    /// Makes one of all that the strands have in memory and on disk.
    async fn merge(&self, work: &Arc<Work>, strands: Vec<Held<Strand>>) -> Result<Groups, Error> {
        let sums_count = work.spec.sum.len();
        let mut spilled = false;
        for strand in &strands {
            spilled |= strand.get()?.has_runs();
        }
        let merge = if spilled {
            // Memory is for the merge now.
            let runs = try_join_all(strands.into_iter().map(async |mut strand| {
                let strand = strand.take()?;
                let runs = self.slice(work, move || strand.into_runs()).await.flatten()?;
                Ok::<_, Error>(self.held(runs))
            }));
            let mut all = self.held(Vec::new());
            for mut runs in runs.await? {
                all.get_mut()?.append(runs.get_mut()?);
            }
            self.merge_runs(work, all).await?
        } else {
            let tables = try_join_all(strands.into_iter().map(async |mut strand| {
                let strand = strand.take()?;
                self.slice(work, move || SortedTable::of(strand.into_totals())).await
            }));
            let tables = tables.await?;
            self.slice(work, move || Merge::of_tables(tables, sums_count)).await.flatten()?
        };
        let result = self.held(Merged { merge, work: Arc::clone(work) });
        Ok(Groups { result, workers: self.workers.clone(), lane: self.lane })
    }

    /// Merges runs into longer ones until all that are left can be read at once.
    async fn merge_runs(&self, work: &Arc<Work>, mut runs: Held<Vec<Run>>) -> Result<Merge, Error> {
        let (bytes_max, sums_count) = (self.plan.bytes_max, work.spec.sum.len());
        loop {
            let mut all = runs.take()?;
            let begin = move || -> Result<_, Error> {
                let merge = Merge::of_first_runs(&mut all, bytes_max, sums_count)?;
                Ok((merge, all))
            };
            let (mut merge, mut rest) = self.slice(work, begin).await.flatten()?;
            if rest.is_empty() {
                return Ok(merge);
            }
            let folder = self.folder.clone();
            let mut writer = self.slice(work, move || RunWriter::new(&folder, bytes_max)).await.flatten()?;
            loop {
                let slice_bytes = self.plan.slice_bytes;
                let step = move || -> Result<_, Error> {
                    if merge.write_some(&mut writer, slice_bytes, |_| Ok(()))? {
                        return Ok((merge, writer, rest, true));
                    }
                    writer.end_run()?;
                    let more = !rest.is_empty();
                    let merge = Merge::of_first_runs(&mut rest, bytes_max, sums_count)?;
                    Ok((merge, writer, rest, more))
                };
                let more;
                (merge, writer, rest, more) = self.slice(work, step).await.flatten()?;
                if !more {
                    break;
                }
            }
            runs = self.held(writer.finish());
        }
    }

    /// A slice of what takes the memory of the sum: until it has run, or was dropped, no other sum has that memory.
    async fn slice<T: Send + 'static>(
        &self,
        work: &Arc<Work>,
        step: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let work = Arc::clone(work);
        let step = move || {
            let value = step();
            drop(work);
            value
        };
        self.workers.run(self.lane, step).await
    }

    fn held<T: Send + 'static>(&self, value: T) -> Held<T> {
        Held { value: Some(value), workers: self.workers.clone() }
    }
}

/// A value that is dropped on a worker, as that may close a file, and is lent to slices.
struct Held<T: Send + 'static> {
    value: Option<T>,
    workers: Workers,
}

impl<T: Send + 'static> Held<T> {
    fn get(&self) -> Result<&T, Error> {
        self.value.as_ref().ok_or(Error::Cancelled)
    }

    fn get_mut(&mut self) -> Result<&mut T, Error> {
        self.value.as_mut().ok_or(Error::Cancelled)
    }

    fn take(&mut self) -> Result<T, Error> {
        self.value.take().ok_or(Error::Cancelled)
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.workers.discard(value);
        }
    }
}

/// One group: a row of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its cells, in the order of the columns that were grouped by.
    pub cells: Vec<String>,
    /// Its totals, in the order of the columns that were summed.
    pub totals: Vec<i64>,
}

/// The groups of a sum in the order of their cells as byte strings, read once. They hold the memory of the sum, so this
/// is for a reader that does not tarry.
pub struct Groups {
    result: Held<Merged>,
    workers: Workers,
    lane: Lane,
}

/// What is left to read. In this order, as the room is free when the merge is gone.
struct Merged {
    merge: Merge,
    work: Arc<Work>,
}

impl Groups {
    /// Ends the merge and keeps the groups for a reader, however slow: a block in memory and what is more on disk. The
    /// memory of the sum is free then.
    ///
    /// Errors: a total that does not fit in 64 bits; a group that does not fit in a block; a full disk.
    pub async fn store(mut self) -> Result<StoredGroups, Error> {
        let begun = self.slice((Block::default(), None), |(block, writer), merge, work| {
            while let Some(key_bytes) = merge.next_key_bytes() {
                if !block.has_room(key_bytes, &work.spec) {
                    *writer = Some(RunWriter::new(&work.folder, work.plan.bytes_max)?);
                    break;
                }
                if let Some(group) = merge.next_group()? {
                    Block::check(&group, &work.spec)?;
                    block.push(&group, &work.spec)?;
                }
            }
            Ok(())
        });
        let (first, writer) = begun.await?;
        let mut rest = None;
        if let Some(mut writer) = writer {
            let mut more = true;
            while more {
                let written = self.slice((writer, more), |(writer, more), merge, work| {
                    let fits = |group: &MergedGroup<'_>| {
                        Block::check(group, &work.spec)?;
                        totals_of(group.key, group.totals, &work.spec).try_for_each(|total| total.map(drop))
                    };
                    *more = merge.write_some(writer, work.plan.slice_bytes, fits)?;
                    if *more { Ok(()) } else { writer.end_run() }
                });
                (writer, more) = written.await?;
            }
            rest = writer.finish().pop();
        }
        let Self { result, workers, lane } = self;
        let spec = Arc::new(result.get()?.work.spec.clone());
        let rest = Held { value: rest, workers: workers.clone() };
        Ok(StoredGroups { first: first.groups, rest, spec, workers, lane, _place: None })
    }

    /// Writes all groups as CSV, quoted where RFC 4180 needs it, rows that end with LF, below a header of these names.
    /// It is written by a worker, a block at a time, and given back.
    ///
    /// Errors: a total that does not fit in 64 bits; what `out` fails with.
    pub async fn write_csv<W: Write + Send + 'static>(mut self, header: &[String], out: W) -> Result<W, Error> {
        let mut text = Vec::new();
        write_cells(&mut text, header.iter().map(String::as_bytes));
        text.push(b'\n');
        let mut written = (out, text, true);
        while written.2 {
            written = self
                .slice(written, |(out, text, more), merge, work| {
                    while text.len() < GROUP_BLOCK_BYTES {
                        let Some(MergedGroup { key, totals }) = merge.next_group()? else {
                            *more = false;
                            break;
                        };
                        write_cells(text, cells_of(key));
                        for total in totals_of(key, totals, &work.spec) {
                            write!(text, ",{}", total?).map_err(Error::io("memory"))?;
                        }
                        text.push(b'\n');
                    }
                    out.write_all(text).map_err(Error::io("the result"))?;
                    text.clear();
                    if *more { Ok(()) } else { out.flush().map_err(Error::io("the result")) }
                })
                .await?;
        }
        Ok(written.0)
    }

    async fn slice<T: Send + 'static>(
        &mut self,
        mut value: T,
        step: impl FnOnce(&mut T, &mut Merge, &Work) -> Result<(), Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mut result = self.result.take()?;
        let stepped = self.workers.run(self.lane, move || {
            step(&mut value, &mut result.merge, &result.work)?;
            Ok((value, result))
        });
        let (value, result) = stepped.await.flatten()?;
        self.result.value = Some(result);
        Ok(value)
    }
}

/// The groups of a sum that has ended, in the order of their cells as byte strings, read once. They hold nothing that
/// another sum needs.
pub struct StoredGroups {
    /// The first block, unless it was read.
    first: Vec<Group>,
    /// What comes after it, until that was read.
    rest: Held<Run>,
    spec: Arc<GroupBy>,
    workers: Workers,
    lane: Lane,
    /// Of the call that they answer.
    _place: Option<OwnedSemaphorePermit>,
}

impl StoredGroups {
    /// The same groups, with the place of a call that lasts until they are dropped.
    #[must_use]
    pub(super) fn with_place(self, place: OwnedSemaphorePermit) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// The next groups, a block of them; none when all were read. Between two calls only the file is kept.
    pub async fn next_block(&mut self) -> Result<Vec<Group>, Error> {
        if !self.first.is_empty() {
            return Ok(std::mem::take(&mut self.first));
        }
        let Some(mut rest) = self.rest.value.take() else { return Ok(Vec::new()) };
        let spec = Arc::clone(&self.spec);
        let read = move || -> Result<_, Error> {
            let mut block = Block::default();
            rest.hand_on(spec.sum.len(), |group| {
                let has_room = block.has_room(group.key.len(), &spec);
                if has_room {
                    block.push(group, &spec)?;
                }
                Ok(has_room)
            })?;
            Ok((block.groups, rest))
        };
        let (groups, rest) = self.workers.run(self.lane, read).await.flatten()?;
        self.rest.value = Some(rest);
        Ok(groups)
    }
}

/// Groups that are handed on at once.
#[derive(Default)]
struct Block {
    groups: Vec<Group>,
    bytes: usize,
}

impl Block {
    /// Errors: a group that is longer than a block.
    fn check(group: &MergedGroup<'_>, spec: &GroupBy) -> Result<(), Error> {
        if Self::group_bytes(group.key.len(), spec) <= GROUP_BLOCK_BYTES {
            return Ok(());
        }
        Err(Error::GroupTooLong { group: texts_of(group.key), bytes_max: GROUP_BLOCK_BYTES })
    }

    /// Whether a group belongs here, or in the next block.
    fn has_room(&self, key_bytes: usize, spec: &GroupBy) -> bool {
        self.groups.is_empty() || self.bytes + Self::group_bytes(key_bytes, spec) <= GROUP_BLOCK_BYTES
    }

    fn push(&mut self, group: &MergedGroup<'_>, spec: &GroupBy) -> Result<(), Error> {
        let cells = texts_of(group.key);
        let totals = totals_of(group.key, group.totals, spec).collect::<Result<_, _>>()?;
        self.bytes += Self::group_bytes(group.key.len(), spec);
        self.groups.push(Group { cells, totals });
        Ok(())
    }

    /// In memory: its text, a string for each cell, a number for each total. A message is shorter.
    fn group_bytes(key_bytes: usize, spec: &GroupBy) -> usize {
        key_bytes + size_of::<String>() * spec.by.len() + 2 * size_of::<i64>() * spec.sum.len() + size_of::<Group>()
    }
}

fn cells_of(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.split(|&byte| byte == 0)
}

fn texts_of(key: &[u8]) -> Vec<String> {
    cells_of(key).map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()
}

fn totals_of<'a>(
    key: &'a [u8],
    totals: &'a [Sum],
    spec: &'a GroupBy,
) -> impl Iterator<Item = Result<i64, Error>> + use<'a> {
    totals.iter().zip(&spec.sum).map(move |(sum, column)| {
        sum.total().map_err(|total| Error::GroupOverflow { group: texts_of(key), column: column.clone(), total })
    })
}

/// Cells as RFC 4180 has them, with commas between them.
fn write_cells<'a>(text: &mut Vec<u8>, cells: impl Iterator<Item = &'a [u8]>) {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            text.push(b',');
        }
        // A byte order mark is no text where a file begins.
        let quoted =
            cell.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) || cell.starts_with(b"\xef\xbb\xbf");
        if !quoted {
            text.extend_from_slice(cell);
            continue;
        }
        text.push(b'"');
        for piece in cell.split_inclusive(|&byte| byte == b'"') {
            text.extend_from_slice(piece);
            if piece.ends_with(b"\"") {
                text.push(b'"');
            }
        }
        text.push(b'"');
    }
}
