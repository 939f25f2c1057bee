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

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::future::try_join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    merge::{Merge, SortedTable},
    output::{Groups, Merged},
    partition::{End, Strand},
    sources::{Mark, Sources},
    spec::{GroupBy, Plan},
    spill::{Run, RunWriter},
    work::Work,
};
use crate::{
    engine::{
        runtime::{drop_on_worker::DropOnWorker, workers::Workers},
        state::Lane,
        storage::temp_file::TempFolder,
    },
    error::Error,
};

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
            let mut strand = self.read(self.drop_on_worker(strand), &told).await?;
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
                *strand = self.read(self.drop_on_worker(again), &told).await?;
            }
            end = strand.get_mut()?.check(&end)?;
        }
        self.merge(&work, strands).await
    }

    /// Runs a strand to its end, or to what is wrong with its source.
    async fn read(&self, mut strand: DropOnWorker<Strand>, told: impl Fn(u64)) -> Result<DropOnWorker<Strand>, Error> {
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
            strand = self.drop_on_worker(stepped);
            if !more {
                return Ok(strand);
            }
        }
    }

    /// Makes one of all that the strands have in memory and on disk.
    async fn merge(&self, work: &Arc<Work>, strands: Vec<DropOnWorker<Strand>>) -> Result<Groups, Error> {
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
                Ok::<_, Error>(self.drop_on_worker(runs))
            }));
            let mut all = self.drop_on_worker(Vec::new());
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
        let result = self.drop_on_worker(Merged { merge, work: Arc::clone(work) });
        Ok(Groups { result, workers: self.workers.clone(), lane: self.lane })
    }

    /// Merges runs into longer ones until all that are left can be read at once.
    async fn merge_runs(&self, work: &Arc<Work>, mut runs: DropOnWorker<Vec<Run>>) -> Result<Merge, Error> {
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
            runs = self.drop_on_worker(writer.finish());
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

    fn drop_on_worker<T: Send + 'static>(&self, value: T) -> DropOnWorker<T> {
        DropOnWorker { value: Some(value), workers: self.workers.clone() }
    }
}
