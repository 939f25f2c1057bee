//! The groups of an answer: while they are merged, stored for a slow reader, and written as CSV.

use std::{io::Write, sync::Arc};

use super::{
    merge::Merge,
    spec::GroupBy,
    spill::{MergedGroup, Run, RunWriter},
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
    pub(super) result: DropOnWorker<Merged>,
    pub(super) workers: Workers,
    pub(super) lane: Lane,
}

/// The groups that have not been read. The fields are dropped in this order, so that the memory is freed after the merge.
pub(super) struct Merged {
    pub(super) merge: Merge,
    pub(super) work: Arc<Work>,
}

impl Groups {
    /// Ends the merge and stores the groups for a reader that may be slow: one block in memory and the others on disk. Then
    /// the memory of the sum is free.
    ///
    /// Errors: a total that does not fit in 64 bits; a group that does not fit in a block; a full disk.
    pub async fn store(mut self) -> Result<GroupBlocks, Error> {
        let begun = self.run_task((Block::default(), None), |(block, writer), merge, work| {
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
                let written = self.run_task((writer, more), |(writer, more), merge, work| {
                    let fits = |group: &MergedGroup<'_>| {
                        Block::check(group, &work.spec)?;
                        totals_of(group.key, group.totals, &work.spec).try_for_each(|total| total.map(drop))
                    };
                    *more = merge.write_some(writer, work.plan.task_bytes, fits)?;
                    if *more { Ok(()) } else { writer.end_run() }
                });
                (writer, more) = written.await?;
            }
            rest = writer.finish().pop();
        }
        self.into_stored(first, rest, None)
    }

    /// Passes all groups and stores those with the largest totals in the first column that is summed, the largest first, and
    /// equal ones in the order of their cells. Then the memory of the sum is free.
    ///
    /// Errors: those of [`Self::store`], of any group; the groups take too much memory.
    pub async fn store_top(mut self, count_max: usize) -> Result<GroupBlocks, Error> {
        let mut passed = (Top::new(count_max), true);
        while passed.1 {
            let pass = self.run_task(passed, |(top, more), merge, work| {
                *more = merge.pass_some(work.plan.task_bytes, |MergedGroup { key, totals }| {
                    Block::check(&MergedGroup { key, totals }, &work.spec)?;
                    totals_of(key, totals, &work.spec).try_for_each(|total| total.map(drop))?;
                    Ok(top.add(key, totals)?)
                })?;
                Ok(())
            });
            passed = pass.await?;
        }
        let (top, _at_end) = passed;
        let groups_count = top.groups_count();
        let stored = self.run_task((Block::default(), None), move |(block, rest), _merge, work| {
            let mut writer = None;
            for group in top.into_sorted() {
                let group = MergedGroup { key: &group.key, totals: &group.totals };
                if writer.is_none() && block.has_room(group.key.len(), &work.spec) {
                    block.push(&group, &work.spec)?;
                    continue;
                }
                let mut open = match writer.take() {
                    Some(open) => open,
                    None => RunWriter::new(&work.folder, work.plan.bytes_max)?,
                };
                open.put(group.key, group.totals.iter().copied())?;
                writer = Some(open);
            }
            if let Some(mut writer) = writer {
                writer.end_run()?;
                *rest = writer.finish().pop();
            }
            Ok(())
        });
        let (first, rest) = stored.await?;
        self.into_stored(first, rest, Some(groups_count))
    }

    fn into_stored(self, first: Block, rest: Option<Run>, groups_count: Option<u64>) -> Result<GroupBlocks, Error> {
        let Self { result, workers, lane } = self;
        let spec = Arc::new(result.get()?.work.spec.clone());
        let rest = DropOnWorker { value: rest, workers: workers.clone() };
        Ok(GroupBlocks { first: first.groups, rest, spec, groups_count, workers, lane })
    }

    /// Writes all groups as CSV below a header of these names: quoted where RFC 4180 needs it, with rows that end with LF.
    /// Workers write one block at a time; `out` is returned at the end.
    ///
    /// Errors: a total that does not fit in 64 bits; what `out` fails with.
    pub async fn write_csv<W: Write + Send + 'static>(mut self, header: &[String], out: W) -> Result<W, Error> {
        let mut written = (out, csv_header(header), true);
        while written.2 {
            written = self
                .run_task(written, |(out, text, more), merge, work| {
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

    async fn run_task<T: Send + 'static>(
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
