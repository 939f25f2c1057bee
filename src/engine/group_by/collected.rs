//! Groups that other machines have found, as the groups of a sum: they are added to a table that spills to disk when it is full,
//! like the rows of a partition.

use std::sync::Arc;

use super::{
    group_sum::GroupSum, lists::layout_of, merge::SortedTable, output::Groups, partition::Partition, pieces::Ranges,
    sources::Position, spill::Run, work::Work,
};
use crate::{
    engine::{
        query::by_list::GroupSink,
        runtime::{
            drop_on_worker::DropOnWorker,
            group_rows::{GroupRows, count_of, numbers_of},
        },
        values::sum::Sum,
    },
    error::Error,
};

/// Groups of a sum. Its memory is that of one table.
pub(super) struct Collected<'a> {
    group_sum: &'a GroupSum,
    work: Arc<Work>,
    /// The groups that were kept, except those in `last`.
    runs: DropOnWorker<Vec<Run>>,
    /// Groups that were kept and are in memory.
    last: Option<DropOnWorker<Partition>>,
    /// Groups that are not kept yet.
    current: Option<DropOnWorker<Partition>>,
}

impl<'a> Collected<'a> {
    /// No groups.
    pub(super) fn new(group_sum: &'a GroupSum, work: Arc<Work>) -> Self {
        let runs = group_sum.drop_on_worker(Vec::new());
        Self { group_sum, work, runs, last: None, current: None }
    }

    /// All groups that were kept.
    pub(super) async fn into_groups(mut self) -> Result<Groups, Error> {
        let (group_sum, work) = (self.group_sum, Arc::clone(&self.work));
        let is_in_memory = match &self.last {
            Some(last) => self.runs.get()?.is_empty() && !last.get()?.has_runs(),
            None => self.runs.get()?.is_empty(),
        };
        if is_in_memory {
            let mut tables = Vec::new();
            if let Some(mut last) = self.last.take() {
                let last = last.take()?;
                tables.push(group_sum.run_task(&work, move || SortedTable::of(last.into_table())).await?);
            }
            let ranges = Ranges::of_tables(tables, &work, &group_sum.workers, group_sum.lane);
            return Ok(Groups { ranges, read_parts: Vec::new() });
        }
        self.spill_last().await?;
        Ok(Groups { ranges: group_sum.ranges_of_runs(&work, self.runs).await?, read_parts: Vec::new() })
    }

    /// Writes the groups in memory to disk, so that others can have the memory.
    async fn spill_last(&mut self) -> Result<(), Error> {
        let Some(mut last) = self.last.take() else { return Ok(()) };
        let (last, mut runs) = (last.take()?, self.runs.take()?);
        let spill = move || -> Result<_, Error> {
            runs.extend(last.into_runs()?);
            Ok(runs)
        };
        let runs = self.group_sum.run_task(&self.work, spill).await.flatten()?;
        self.runs = self.group_sum.drop_on_worker(runs);
        Ok(())
    }
}

impl GroupSink for Collected<'_> {
    async fn add(&mut self, rows: GroupRows) -> Result<(), Error> {
        if self.current.is_none() {
            self.spill_last().await?;
            let partition =
                Partition::new(Arc::clone(&self.work), Position::END, Position::END, self.work.tables_bytes());
            self.current = Some(self.group_sum.drop_on_worker(partition));
        }
        let Some(mut current) = self.current.take() else { return Err(Error::Cancelled) };
        let mut partition = current.take()?;
        let add = move || -> Result<_, Error> {
            add_all(&mut partition, &rows)?;
            Ok(partition)
        };
        let partition = self.group_sum.run_task(&self.work, add).await.flatten()?;
        self.current = Some(self.group_sum.drop_on_worker(partition));
        Ok(())
    }

    async fn keep(&mut self) -> Result<(), Error> {
        if let Some(current) = self.current.take() {
            self.last = Some(current);
        }
        Ok(())
    }

    async fn forget(&mut self) -> Result<(), Error> {
        self.current = None;
        Ok(())
    }
}

fn add_all(partition: &mut Partition, rows: &GroupRows) -> Result<(), Error> {
    let layout = layout_of(&partition.work().spec);
    let mut totals = Vec::with_capacity(layout.numbers);
    for (key, value) in rows.iter() {
        let numbers = numbers_of(value, layout.number_bytes).filter_map(|number| number.first_chunk());
        totals.clear();
        totals.extend(numbers.map(|bytes| Sum::of(i128::from_le_bytes(*bytes))));
        // Rows of 64 bits each. So all totals together fit in 128 bits.
        let largest = u128::from(count_of(value).unwrap_or(0)) << 63;
        if totals.len() != layout.numbers || totals.iter().any(|total| total.exact().unsigned_abs() > largest) {
            return Err(Error::Internal("a wrong answer of the cluster: a group with impossible totals".to_owned()));
        }
        partition.add_totals(key, &totals)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        engine::group_by::{
            sources::Sources,
            spec::{GroupBy, Plan},
            work::Reservation,
        },
        limits::KIB,
    };

    fn rows_of(groups: &[(String, i64)]) -> GroupRows {
        let mut rows = GroupRows::default();
        for (key, total) in groups {
            rows.push(key.as_bytes(), &[&1_u64.to_le_bytes()[..], &i128::from(*total).to_le_bytes()].concat());
        }
        rows
    }

    /// A group sum that may use so many bytes.
    fn group_sum(folder: &std::path::Path, bytes_max: usize) -> (GroupSum, Arc<Work>) {
        let plan = Plan { bytes_max, partitions_max: 1, ..Plan::with_bytes(bytes_max) };
        let group_sum = GroupSum::standalone(folder, plan).expect("workers");
        let file = folder.join("file");
        std::fs::write(&file, "k,a\n").expect("written");
        let spec = GroupBy::new(vec!["k".to_owned()], vec!["a".to_owned()]).expect("a question");
        let sources = Sources::file(&file).expect("a file");
        let work = Work::new(sources, spec, group_sum.folder.clone(), plan, Reservation::new(None).0);
        (group_sum, Arc::new(work))
    }

    #[tokio::test]
    async fn groups_are_added_up_in_any_memory() {
        for bytes_max in [32 * KIB, 256 * KIB, 8 * 1024 * KIB] {
            let folder = tempfile::TempDir::new().expect("a folder");
            let (group_sum, work) = group_sum(folder.path(), bytes_max);
            let mut collected = Collected::new(&group_sum, work);
            let mut random = fastrand::Rng::with_seed(bytes_max as u64);
            let mut expected = BTreeMap::<String, i64>::new();
            for job in 0..6 {
                let is_kept = job % 3 != 2;
                for _part in 0..5 {
                    let key = |random: &mut fastrand::Rng| match random.u8(..200) {
                        0 => "long".repeat(random.usize(1..3) * KIB),
                        _ => format!("key {}", random.u32(..3000)),
                    };
                    let some: Vec<_> = (0..400).map(|_| (key(&mut random), random.i64(-99..99))).collect();
                    if is_kept {
                        some.iter().for_each(|(key, total)| *expected.entry(key.clone()).or_default() += total);
                    }
                    collected.add(rows_of(&some)).await.expect("added");
                }
                match is_kept {
                    true => collected.keep().await.expect("kept"),
                    false => collected.forget().await.expect("forgotten"),
                }
            }
            let mut blocks = collected.into_groups().await.expect("groups").store().await.expect("stored");
            let mut found = Vec::new();
            loop {
                let block = blocks.next_block().await.expect("a block");
                if block.is_empty() {
                    break;
                }
                found.extend(block.into_iter().map(|group| (group.cells.join(","), group.totals[0])));
            }
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{bytes_max}");
            group_sum.workers.close();
        }
    }

    #[tokio::test]
    async fn impossible_totals_are_refused() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let (group_sum, work) = group_sum(folder.path(), 256 * KIB);
        let mut collected = Collected::new(&group_sum, work);
        let mut rows = GroupRows::default();
        let value = |rows: u64, total: i128| [&rows.to_le_bytes()[..], &total.to_le_bytes()].concat();
        rows.push(b"a", &value(2, -(2 << 63)));
        collected.add(rows).await.expect("two rows may have that");
        for (count, total) in [(2, (2 << 63) + 1), (0, 1), (1, i128::MIN)] {
            let mut rows = GroupRows::default();
            rows.push(b"a", &value(count, total));
            let error = collected.add(rows).await.expect_err("more than so many rows can have");
            assert!(error.to_string().contains("impossible totals"), "{error}");
        }
        group_sum.workers.close();
    }
}
