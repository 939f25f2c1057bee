//! The groups of an answer: stored for a slow reader, and written as CSV.

use std::{io::Write, sync::Arc};

use super::{
    entry::{MergedGroup, put_entry, take_entry},
    partition::ReadPart,
    pieces::Ranges,
    spec::GroupBy,
    spill::{Run, RunWriter},
    top::Top,
    work::Work,
};
use crate::{
    engine::{
        csv::write::{write_cells, write_header},
        runtime::{
            drop_on_worker::DropOnWorker,
            paced_source::{PacedSource, Source},
            transfers::Permit,
            workers::Workers,
        },
        state::{Lane, transfers::Pace},
        values::sum::Sum,
    },
    error::{Error, group_by::GroupByError},
    limits::GROUP_BLOCK_BYTES,
};

/// One group: a row of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its cells, in the order of the columns that were grouped by.
    pub cells: Vec<String>,
    /// Its totals, in the order of the columns that were summed.
    pub totals: Vec<i64>,
}

/// The groups of a sum in the order of their cells as byte strings; they can be read once. They keep the memory of the sum
/// reserved, so a reader must not be slow: a client reads [`GroupBlocks`] instead.
pub struct Groups {
    pub(super) ranges: Ranges,
    /// The parts that were read, if rows are counted.
    pub(super) read_parts: Vec<ReadPart>,
}

/// Groups that are being stored: a block in memory, and the others on disk.
#[derive(Default)]
struct Storing {
    first: Block,
    rest: Option<RunWriter>,
}

impl Groups {
    /// Ends the merge and stores the groups for a reader that may be slow: one block in memory and the others on disk. Then
    /// the memory of the sum is free.
    ///
    /// Errors: a total that does not fit in 64 bits; a group that does not fit in a block; a full disk.
    pub async fn store(self) -> Result<GroupBlocks, Error> {
        let (spec, workers, lane) = self.shared()?;
        let storing = self.ranges.pass(checked_entry, Storing::default(), |storing, piece, work| {
            each_entry(piece, work, |group| storing.add(group, work))
        });
        let storing = storing.await?;
        storing.end(None, spec, workers, lane).await
    }

    /// Passes all groups and stores those with the largest totals in the first column that is summed, the largest first, and
    /// equal ones in the order of their cells. Then the memory of the sum is free.
    ///
    /// Errors: those of [`Self::store`], of any group; the groups take too much memory.
    pub async fn store_top(self, count_max: usize) -> Result<GroupBlocks, Error> {
        let (spec, workers, lane) = self.shared()?;
        let work = DropOnWorker { value: Some(Arc::clone(self.ranges.work.get()?)), workers: workers.clone() };
        let top = self.ranges.pass(checked_entry, Top::new(count_max), |top, piece, work| {
            each_entry(piece, work, |group| Ok(top.add(group.key, group.totals)?))
        });
        let top = top.await?;
        let groups_count = top.groups_count();
        let store = move || -> Result<_, Error> {
            let (mut storing, work) = (Storing::default(), work);
            for group in top.into_sorted() {
                storing.add(&MergedGroup { key: &group.key, totals: &group.totals }, work.get()?)?;
            }
            Ok(storing)
        };
        let storing = workers.run(lane, store).await.flatten()?;
        storing.end(Some(groups_count), spec, workers, lane).await
    }

    fn shared(&self) -> Result<(Arc<GroupBy>, Workers, Lane), Error> {
        let Ranges { work, workers, lane, .. } = &self.ranges;
        Ok((Arc::new(work.get()?.spec.clone()), workers.clone(), *lane))
    }

    /// Writes all groups as CSV below a header of these names: quoted where RFC 4180 needs it, with rows that end with LF.
    /// Workers write one piece at a time; `out` is returned at the end.
    ///
    /// Errors: a total that does not fit in 64 bits; what `out` fails with.
    pub async fn write_csv<W: Write + Send + 'static>(self, header: &[String], out: W) -> Result<W, Error> {
        let (header, workers, lane) = (csv_header(header), self.ranges.workers.clone(), self.ranges.lane);
        let write = |out: &mut W, text: &[u8]| out.write_all(text).map_err(Error::io("the result"));
        let begin = move || {
            let mut out = out;
            write(&mut out, &header).map(|()| out)
        };
        let out = workers.run(lane, begin).await.flatten()?;
        let mut out = self.ranges.pass(csv_row, out, move |out, text, _| write(out, text)).await?;
        let end = move || out.flush().map_err(Error::io("the result")).map(|()| out);
        workers.run(lane, end).await.flatten()
    }
}

/// Appends a group to a piece, as it is in a run.
///
/// Errors: the group does not fit in a block; a total does not fit in 64 bits.
fn checked_entry(group: &MergedGroup<'_>, spec: &GroupBy, piece: &mut Vec<u8>) -> Result<(), Error> {
    Block::check(group, spec)?;
    totals_of(group.key, group.totals, spec).try_for_each(|total| total.map(drop))?;
    put_entry(group, piece);
    Ok(())
}

/// Calls `take` with each group of a piece of entries.
fn each_entry(
    mut piece: &[u8],
    work: &Work,
    mut take: impl FnMut(&MergedGroup<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut totals = vec![Sum::default(); work.spec.sum.len()];
    while !piece.is_empty() {
        let key = take_entry(&mut piece, &mut totals);
        let key = key.ok_or_else(|| Error::Internal("a piece of groups has no entry there".to_owned()))?;
        take(&MergedGroup { key, totals: &totals })?;
    }
    Ok(())
}

/// Appends a group to a piece, as a row of CSV.
///
/// Errors: a total does not fit in 64 bits.
fn csv_row(group: &MergedGroup<'_>, spec: &GroupBy, text: &mut Vec<u8>) -> Result<(), Error> {
    write_cells(text, cells_of(group.key));
    for total in totals_of(group.key, group.totals, spec) {
        text.push(b',');
        put_decimal(total?, text);
    }
    text.push(b'\n');
    Ok(())
}

impl Storing {
    fn add(&mut self, group: &MergedGroup<'_>, work: &Work) -> Result<(), Error> {
        if self.rest.is_none() && self.first.has_room(group.key.len(), &work.spec) {
            return self.first.push(group, &work.spec);
        }
        let rest = match &mut self.rest {
            Some(rest) => rest,
            rest => rest.insert(RunWriter::new(&work.folder, work.plan.bytes_max, work.plan.range_bytes)?),
        };
        rest.put(group.key, group.totals.iter().copied())
    }

    async fn end(
        self,
        groups_count: Option<u64>,
        spec: Arc<GroupBy>,
        workers: Workers,
        lane: Lane,
    ) -> Result<GroupBlocks, Error> {
        let Self { first, rest } = self;
        let end = move || -> Result<Option<Run>, Error> {
            let Some(mut rest) = rest else { return Ok(None) };
            rest.end_run()?;
            Ok(rest.finish().pop())
        };
        let rest = DropOnWorker { value: workers.run(lane, end).await.flatten()?, workers: workers.clone() };
        Ok(GroupBlocks { first: first.groups, rest, spec, groups_count, workers, lane })
    }
}

/// The groups of a sum for a client, which may read them slowly. They hold a permit, and are dropped if the client reads so
/// slowly that another call needs it.
pub struct StoredGroups {
    blocks: PacedSource<Vec<Group>>,
    groups_count: Option<u64>,
}

impl StoredGroups {
    pub(super) fn new(blocks: GroupBlocks, permit: Permit) -> Self {
        Self { groups_count: blocks.groups_count, blocks: PacedSource::new(blocks, permit) }
    }

    /// The pace of the client, to be updated by the code that sends the groups.
    pub fn pace(&self) -> Arc<Pace> {
        self.blocks.pace()
    }

    /// How many groups there are, if these are only those with the largest totals.
    pub fn groups_count(&self) -> Option<u64> {
        self.groups_count
    }

    /// Reads the next block of groups; it is empty when all have been read.
    ///
    /// Errors: a file that cannot be read; the client was too slow, and the groups are gone.
    pub async fn next_block(&mut self) -> Result<Vec<Group>, Error> {
        self.blocks.next().await
    }
}

/// The groups of a sum that has ended, in the order of their cells as byte strings, or of their rank; they can be read
/// once. They hold no memory that another sum needs.
pub struct GroupBlocks {
    /// The first block; empty once it has been read.
    first: Vec<Group>,
    /// The groups after the first block that have not been read.
    rest: DropOnWorker<Run>,
    spec: Arc<GroupBy>,
    /// How many groups there are, if these are only those with the largest totals.
    groups_count: Option<u64>,
    workers: Workers,
    lane: Lane,
}

impl Source for GroupBlocks {
    type Piece = Vec<Group>;

    async fn next(&mut self) -> Result<Vec<Group>, Error> {
        self.next_block().await
    }
}

impl GroupBlocks {
    /// Reads the next block of groups; it is empty when all have been read. Between two calls only the file is kept.
    pub async fn next_block(&mut self) -> Result<Vec<Group>, Error> {
        if !self.first.is_empty() {
            return Ok(std::mem::take(&mut self.first));
        }
        let Some(mut rest) = self.rest.value.take() else { return Ok(Vec::new()) };
        let spec = Arc::clone(&self.spec);
        let read = move || -> Result<_, Error> {
            let mut block = Block::default();
            rest.consume_while(spec.sum.len(), |group| {
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

/// Groups that are returned together.
#[derive(Default)]
struct Block {
    groups: Vec<Group>,
    bytes: usize,
}

impl Block {
    /// Checks that a group fits in a block.
    fn check(group: &MergedGroup<'_>, spec: &GroupBy) -> Result<(), Error> {
        if Self::group_bytes(group.key.len(), spec) <= GROUP_BLOCK_BYTES {
            return Ok(());
        }
        Err(GroupByError::GroupTooLong { group: texts_of(group.key), bytes_max: GROUP_BLOCK_BYTES }.into())
    }

    /// Whether a group fits in the rest of this block.
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

    /// What a group takes in memory: its text, a string for each cell, a number for each total. The message that is sent
    /// is shorter.
    fn group_bytes(key_bytes: usize, spec: &GroupBy) -> usize {
        key_bytes + size_of::<String>() * spec.by.len() + 2 * size_of::<i64>() * spec.sum.len() + size_of::<Group>()
    }
}

/// A header with these names, as the first line of a CSV file.
pub fn csv_header(names: &[String]) -> Vec<u8> {
    let mut text = Vec::new();
    write_header(&mut text, names.iter().map(String::as_bytes));
    text.push(b'\n');
    text
}

/// Appends a group as a line of a CSV file.
pub fn write_csv_row(text: &mut Vec<u8>, group: &Group) {
    write_cells(text, group.cells.iter().map(String::as_bytes));
    for total in &group.totals {
        text.extend_from_slice(format!(",{total}").as_bytes());
    }
    text.push(b'\n');
}

/// Appends a number in decimal digits.
#[allow(clippy::cast_possible_truncation, reason = "a digit is less than 10")]
fn put_decimal(number: i64, text: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        text.push(b'-');
    }
    text.extend_from_slice(&digits[start..]);
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
        sum.total().map_err(|total| {
            let (group, column) = (texts_of(key), column.clone());
            GroupByError::GroupOverflow { group, column, total }.into()
        })
    })
}
