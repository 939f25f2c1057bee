//! Merges the groups of a sum in order, piece by piece. Several ranges of keys are merged at the same time, each by one worker;
//! their pieces are taken in the order of the ranges.

use std::{pin::pin, sync::Arc};

use futures_util::{StreamExt, stream};

use super::{
    entry::MergedGroup,
    key_range::{KeyRange, ranges},
    merge::{Merge, SortedTable},
    spec::GroupBy,
    spill::{Run, block_bytes},
    work::Work,
};
use crate::{
    engine::{
        runtime::{drop_on_worker::DropOnWorker, workers::Workers},
        state::Lane,
    },
    error::Error,
    limits::{GROUP_BLOCK_BYTES, KIB},
};

/// Bytes that are read of a run at once. A range has few bytes of each run.
const RANGE_BLOCK_BYTES: usize = 16 * KIB;

/// Appends a group to a piece.
pub(super) type Render = fn(&MergedGroup<'_>, &GroupBy, &mut Vec<u8>) -> Result<(), Error>;

/// Groups that have not been merged.
pub(super) struct Unmerged {
    source: Source,
    /// The last field, so that the memory is freed after the merge.
    work: Arc<Work>,
}

enum Source {
    Tables(Vec<SortedTable>),
    Range { runs: Arc<[Run]>, range: KeyRange, block_bytes: usize },
    Begun(Merge),
}

/// All groups of a sum, in ranges that are one after the other.
pub(super) struct Ranges {
    unmerged: Vec<DropOnWorker<Unmerged>>,
    /// How many ranges are merged at the same time.
    at_once: usize,
    piece_bytes: usize,
    pub(super) work: DropOnWorker<Arc<Work>>,
    pub(super) workers: Workers,
    pub(super) lane: Lane,
}

/// Groups that were rendered, and those of the range that follow them.
struct Piece {
    bytes: Vec<u8>,
    rest: Option<DropOnWorker<Unmerged>>,
}

impl Ranges {
    /// All groups of complete tables. Their memory is in use, so pieces are small.
    pub(super) fn of_tables(tables: Vec<SortedTable>, work: &Arc<Work>, workers: &Workers, lane: Lane) -> Self {
        Self::new([Source::Tables(tables)], 1, GROUP_BLOCK_BYTES, work, workers, lane)
    }

    /// All groups of runs, which are few enough to be merged at once. They are divided into ranges if there is memory for more
    /// than one at a time.
    pub(super) fn of_runs(runs: Vec<Run>, work: &Arc<Work>, workers: &Workers, lane: Lane) -> Self {
        let plan = &work.plan;
        let block_bytes = block_bytes(plan.merge_bytes()).min(RANGE_BLOCK_BYTES);
        let longest = runs.iter().map(|run| run.entry_bytes_max).max().unwrap_or(0);
        let readers_bytes: usize = runs.iter().map(|run| run.entry_bytes_max.max(block_bytes)).sum();
        // A piece may be twice as long as the runs that it is made from.
        let bytes = readers_bytes + longest + 2 * plan.range_bytes;
        // One more piece is being taken.
        let at_once = (plan.merge_bytes() / bytes).saturating_sub(1).min(plan.partitions_max + 1);
        let runs: Arc<[Run]> = runs.into();
        let (ranges, piece_bytes) = if at_once > 1 {
            let marked = runs.iter().map(|run| (&run.bytes, &*run.marks));
            (ranges(marked, plan.range_bytes as u64), 2 * plan.range_bytes)
        } else {
            (vec![KeyRange::default()], GROUP_BLOCK_BYTES)
        };
        let source = |range| Source::Range { runs: Arc::clone(&runs), range, block_bytes };
        Self::new(ranges.into_iter().map(source), at_once.max(1), piece_bytes, work, workers, lane)
    }

    fn new(
        sources: impl IntoIterator<Item = Source>,
        at_once: usize,
        piece_bytes: usize,
        work: &Arc<Work>,
        workers: &Workers,
        lane: Lane,
    ) -> Self {
        let unmerged = sources.into_iter().map(|source| Unmerged { source, work: Arc::clone(work) });
        let unmerged = unmerged.map(|unmerged| unmerged.dropped_on(workers)).collect();
        let work = DropOnWorker { value: Some(Arc::clone(work)), workers: workers.clone() };
        Self { unmerged, at_once, piece_bytes, work, workers: workers.clone(), lane }
    }

    /// Merges all groups: `render` appends each to a piece, and `take` gets the pieces, one after the other in order. Both run on
    /// workers. Returns `state`, which `take` may change.
    ///
    /// Errors: the first error of `render` or `take`, in the order of the groups; a file that cannot be read.
    pub(super) async fn pass<T: Send + 'static>(
        self,
        render: Render,
        mut state: T,
        take: impl Fn(&mut T, &[u8], &Work) -> Result<(), Error> + Copy + Send + 'static,
    ) -> Result<T, Error> {
        let Self { unmerged, at_once, piece_bytes, work, workers, lane } = self;
        let work = Arc::clone(work.get()?);
        let merge = async |mut unmerged: DropOnWorker<Unmerged>| {
            let (unmerged, owner) = (unmerged.take()?, workers.clone());
            workers.run(lane, move || unmerged.next_piece(render, piece_bytes, &owner)).await.flatten()
        };
        let mut firsts = pin!(stream::iter(unmerged).map(&merge).buffered(at_once));
        while let Some(first) = firsts.next().await {
            let mut next = first?;
            loop {
                let (Piece { bytes, rest }, work) = (next, Arc::clone(&work));
                let taken = move || take(&mut state, &bytes, &work).map(|()| state);
                state = workers.run(lane, taken).await.flatten()?;
                let Some(rest) = rest else { break };
                next = merge(rest).await?;
            }
        }
        Ok(state)
    }
}

impl Unmerged {
    fn dropped_on(self, workers: &Workers) -> DropOnWorker<Self> {
        DropOnWorker { value: Some(self), workers: workers.clone() }
    }

    /// Merges about `bytes_max` bytes of groups.
    fn next_piece(self, render: Render, bytes_max: usize, workers: &Workers) -> Result<Piece, Error> {
        let Self { source, work } = self;
        let sums_count = work.spec.totals_count();
        let mut merge = match source {
            Source::Tables(tables) => Merge::of_tables(tables, sums_count)?,
            Source::Range { runs, range, block_bytes } => Merge::of_range(&runs, range, block_bytes, sums_count)?,
            Source::Begun(merge) => merge,
        };
        let mut bytes = Vec::with_capacity(bytes_max / 2);
        while bytes.len() < bytes_max {
            let Some(group) = merge.next_group()? else {
                return Ok(Piece { bytes, rest: None });
            };
            render(&group, &work.spec, &mut bytes)?;
        }
        let rest = Self { source: Source::Begun(merge), work };
        Ok(Piece { bytes, rest: Some(rest.dropped_on(workers)) })
    }
}
