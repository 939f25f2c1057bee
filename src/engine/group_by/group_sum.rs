//! Group sums: CSV files of any size to one row for each distinct group, exact, in a fixed number of bytes.
//!
//! The sources are split into about as many **partitions** as there are cores, each with its own hash table
//! (`hash_table.rs`). A full table is written to disk as a sorted run (`spill.rs`). At the end all tables, or all runs, are
//! merged in the order of the groups (`merge.rs`). A partition that begins inside a file guesses where a row starts. When
//! all partitions are done they are checked in order: each must have begun where the one before it ended, or it is read
//! again from there. So neither the answer nor an error depends on how the sources are split.
//!
//! All work runs as tasks on the workers. Dropping the future, or the [`Groups`], stops it before the next task.
//!
//! Memory: the tables and one long row, because one partition at a time reads a long row; later the merge instead.
//! [`Groups::store`] completes the merge and frees this memory before a client, which may be slow, reads the first group.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::try_join_all;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    merge::{Merge, SortedTable},
    output::Groups,
    partition::{Cursor, Partition},
    pieces::Ranges,
    sources::{Position, Sources},
    spec::{GroupBy, Plan},
    spill::{Run, RunWriter},
    work::{Reservation, Work},
};
use crate::{
    engine::{
        csv::lines::{LineSearch, with_line},
        parts::segment_rows::note_fallback,
        runtime::{drop_on_worker::DropOnWorker, workers::Workers},
        state::{Lane, Shared},
        storage::temp_file::TempFolder,
    },
    error::{Error, foreign_file::Use},
};

/// Runs group sums.
#[derive(Clone)]
pub struct GroupSum {
    /// The workers that run its tasks.
    pub workers: Workers,
    /// The lane of its tasks.
    pub lane: Lane,
    /// The folder that runs are written to.
    pub folder: TempFolder,
    /// The resources that it may use.
    pub plan: Plan,
}

impl GroupSum {
    /// With its own workers and without a data folder. `folder` is for groups that do not fit in memory.
    ///
    /// Errors: the system starts no more threads.
    pub fn standalone(folder: &Path, plan: Plan) -> io::Result<Self> {
        let workers = Workers::start(Shared::new())?;
        Ok(Self { workers, lane: Lane::Job, folder: TempFolder::new(folder), plan })
    }

    /// Reads all sources and returns their groups. `progress` is called with the number of bytes of CSV that have been
    /// read.
    ///
    /// Errors: the first thing wrong in the order of sources and rows; a full disk.
    pub async fn run(
        &self,
        sources: Sources,
        spec: GroupBy,
        memory: Option<OwnedSemaphorePermit>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Groups, Error> {
        let (memory, memory_after) = Reservation::new(memory);
        let Some(with_segments) = self.with_segments(&sources, &spec).await? else {
            return self.read_and_merge(sources, spec, memory, &progress).await;
        };
        match self.read_and_merge(with_segments, spec.clone(), memory, &progress).await {
            Err(error) => {
                note_fallback(&error);
                let memory = memory_after.await.ok().ok_or(Error::Cancelled)?;
                self.read_and_merge(sources, spec, Reservation::new(memory).0, &progress).await
            }
            groups => groups,
        }
    }

    /// The same rows, with those of segments from Parquet where that is possible; `None` if it is not.
    async fn with_segments(&self, sources: &Sources, spec: &GroupBy) -> Result<Option<Sources>, Error> {
        if !sources.have_segments() {
            return Ok(None);
        }
        let (plan, sources, spec) = (self.plan, sources.clone(), spec.clone());
        self.workers.run(self.lane, move || sources.with_segments(&spec, &plan)).await
    }

    async fn read_and_merge(
        &self,
        sources: Sources,
        spec: GroupBy,
        memory: Reservation,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Groups, Error> {
        let plan = self.plan;
        let folder = self.folder.clone();
        let begin = move || {
            let work = Work::new(sources, spec, folder, plan, memory);
            let starts = work.starts()?;
            Ok::<_, Error>((Arc::new(work), starts))
        };
        let (work, starts) = self.workers.run(self.lane, begin).await.flatten()?;
        match self.read_all(&work, &starts, progress).await {
            Ok(partitions) => {
                let mut read_parts = Vec::new();
                for partition in &partitions {
                    read_parts.extend_from_slice(partition.get()?.read_parts());
                }
                Ok(Groups { read_parts, ..self.merge(&work, partitions).await? })
            }
            Err(error) => Err(self.with_line(&work, error).await),
        }
    }

    /// Reads all partitions, and those that began at a wrong guess again.
    async fn read_all(
        &self,
        work: &Arc<Work>,
        starts: &[Position],
        progress: impl Fn(u64) + Sync,
    ) -> Result<Vec<DropOnWorker<Partition>>, Error> {
        let read_bytes = AtomicU64::new(0);
        let report = |bytes| progress(read_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes);
        let partitions = starts.iter().enumerate().map(async |(index, &from)| {
            let until = starts.get(index + 1).copied().unwrap_or(Position::END);
            let partition = Partition::new(Arc::clone(work), from, until, work.tables_bytes() / starts.len());
            let mut partition = self.read(self.drop_on_worker(partition), &report).await?;
            if index == 0 {
                // The first error of the first partition is the first of all, so there is no need to wait for the
                // others.
                partition.get_mut()?.check(&Cursor::default())?;
            }
            Ok::<_, Error>(partition)
        });
        let mut partitions = try_join_all(partitions).await?;

        let mut end = Cursor::default();
        for partition in &mut partitions {
            if !partition.get()?.follows(&end) {
                read_bytes.fetch_sub(partition.get()?.read_bytes(), Ordering::Relaxed);
                let (mut again, from) = (partition.take()?, end.clone());
                let begin = move || again.restart(from).map(|()| again);
                let again = self.workers.run(self.lane, begin).await.flatten()?;
                *partition = self.read(self.drop_on_worker(again), &report).await?;
            }
            end = partition.get_mut()?.check(&end)?;
        }
        Ok(partitions)
    }

    /// The error with the line of its row, and a remedy for group sums, if it is in a file that is not a part.
    async fn with_line(&self, work: &Work, error: Error) -> Error {
        let Sources::File { file, .. } = &work.sources else { return error };
        let error = match error {
            Error::Csv(error) => error.of_use(Use::GroupSum).into(),
            other => other,
        };
        let run =
            |search: LineSearch| async move { self.workers.run(self.lane, move || search.step()).await.flatten() };
        with_line(error, file, run).await
    }

    /// Reads a partition to its end or to its first error. `report` is called with the bytes that each task has read.
    async fn read(
        &self,
        mut partition: DropOnWorker<Partition>,
        report: impl Fn(u64),
    ) -> Result<DropOnWorker<Partition>, Error> {
        loop {
            let permit = match partition.get()?.long_rows() {
                Some(long_rows) => Some(long_rows.acquire_owned().await.ok().ok_or(Error::Cancelled)?),
                None => None,
            };
            let mut next = partition.take()?;
            let before = next.read_bytes();
            let step = move || {
                let more = next.step();
                drop(permit);
                (next, more)
            };
            let (stepped, more) = self.workers.run(self.lane, step).await?;
            report(stepped.read_bytes() - before);
            partition = self.drop_on_worker(stepped);
            if !more {
                return Ok(partition);
            }
        }
    }

    /// Merges the groups of all partitions, from memory if none was spilled, or else from disk.
    async fn merge(&self, work: &Arc<Work>, partitions: Vec<DropOnWorker<Partition>>) -> Result<Groups, Error> {
        let mut spilled = false;
        for partition in &partitions {
            spilled |= partition.get()?.has_runs();
        }
        let ranges = if spilled {
            // All groups are written to disk, so that the merge can have the memory.
            let runs = try_join_all(partitions.into_iter().map(async |mut partition| {
                let partition = partition.take()?;
                let runs = self.run_task(work, move || partition.into_runs()).await.flatten()?;
                Ok::<_, Error>(self.drop_on_worker(runs))
            }));
            let mut all = self.drop_on_worker(Vec::new());
            for mut runs in runs.await? {
                all.get_mut()?.append(runs.get_mut()?);
            }
            self.ranges_of_runs(work, all).await?
        } else {
            let tables = try_join_all(partitions.into_iter().map(async |mut partition| {
                let partition = partition.take()?;
                self.run_task(work, move || SortedTable::of(partition.into_table())).await
            }));
            Ranges::of_tables(tables.await?, work, &self.workers, self.lane)
        };
        Ok(Groups { ranges, read_parts: Vec::new() })
    }

    /// All groups of runs.
    pub(super) async fn ranges_of_runs(&self, work: &Arc<Work>, runs: DropOnWorker<Vec<Run>>) -> Result<Ranges, Error> {
        let runs = self.merge_runs(work, runs).await?.take()?;
        let (of_task, workers, lane) = (Arc::clone(work), self.workers.clone(), self.lane);
        self.run_task(work, move || Ranges::of_runs(runs, &of_task, &workers, lane)).await
    }

    /// Merges runs into longer ones until the memory is enough to read all of them at once.
    async fn merge_runs(
        &self,
        work: &Arc<Work>,
        mut runs: DropOnWorker<Vec<Run>>,
    ) -> Result<DropOnWorker<Vec<Run>>, Error> {
        let (plan, sums_count) = (self.plan, work.spec.totals_count());
        let bytes_max = plan.merge_bytes();
        while Merge::count_at_once(runs.get()?, bytes_max) < runs.get()?.len() {
            let (mut rest, folder) = (runs.take()?, self.folder.clone());
            let begin = move || -> Result<_, Error> {
                let merge = Merge::of_first_runs(&mut rest, bytes_max, sums_count)?;
                Ok((merge, RunWriter::new(&folder, plan.bytes_max, plan.range_bytes)?, rest))
            };
            let (mut merge, mut writer, mut rest) = self.run_task(work, begin).await.flatten()?;
            loop {
                let step = move || -> Result<_, Error> {
                    if merge.write_some(&mut writer, plan.task_bytes)? {
                        return Ok((merge, writer, rest, true));
                    }
                    writer.end_run()?;
                    let more = !rest.is_empty();
                    let merge = Merge::of_first_runs(&mut rest, bytes_max, sums_count)?;
                    Ok((merge, writer, rest, more))
                };
                let more;
                (merge, writer, rest, more) = self.run_task(work, step).await.flatten()?;
                if !more {
                    break;
                }
            }
            runs = self.drop_on_worker(writer.finish());
        }
        Ok(runs)
    }

    /// Runs a task that uses the memory of the sum. The task owns `work`, so this memory stays reserved until the task has
    /// ended or was dropped.
    pub(super) async fn run_task<T: Send + 'static>(
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

    pub(super) fn drop_on_worker<T: Send + 'static>(&self, value: T) -> DropOnWorker<T> {
        DropOnWorker { value: Some(value), workers: self.workers.clone() }
    }
}
