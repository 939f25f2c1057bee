//! Merges sorted runs and tables into one sequence of groups.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use super::{
    hash_table::{EntryOffset, GroupTable, Ordered, prefix},
    spill::{HEAD_BYTES_MAX, MergedGroup, Run, RunReader, RunWriter, block_bytes},
};
use crate::{engine::values::sum::Sum, error::Error, limits::KIB};

/// A table whose groups are read in the order of their keys.
pub struct SortedTable {
    table: GroupTable,
    ordered: Vec<Ordered>,
    /// The number of groups that have been read, including the current one.
    passed: usize,
}

impl SortedTable {
    /// Sorts a table.
    pub fn of(table: GroupTable) -> Self {
        let ordered = table.sorted();
        Self { table, ordered, passed: 0 }
    }

    fn offset(&self) -> EntryOffset {
        self.ordered[self.passed - 1].offset()
    }
}

/// The groups of several sources as one, in the order of keys, the totals of equal keys added up.
pub struct Merge {
    sources: BinaryHeap<Source>,
    key: Vec<u8>,
    totals: Vec<Sum>,
}

impl Merge {
    /// Merges complete tables in memory.
    pub fn of_tables(tables: Vec<SortedTable>, sums_count: usize) -> Result<Self, Error> {
        Self::new(tables.into_iter().map(Entries::Memory), sums_count)
    }

    /// Merges the first runs of the list and removes them from it: as many as `bytes_max` allows to read at once, and at
    /// least two.
    pub fn of_first_runs(runs: &mut Vec<Run>, bytes_max: usize, sums_count: usize) -> Result<Self, Error> {
        let block_bytes = block_bytes(bytes_max);
        let longest = runs.iter().map(|run| run.entry_bytes_max).max().unwrap_or(0);
        // The current group, and the blocks that are written.
        let mut bytes = longest + 4 * block_bytes;
        let mut count = 0;
        for run in runs.iter() {
            bytes += run.entry_bytes_max.max(block_bytes);
            if bytes > bytes_max && count >= 2 {
                break;
            }
            count += 1;
        }
        let sources = runs.drain(..count).map(|run| Entries::Disk(RunReader::new(&run, block_bytes, sums_count)));
        Self::new(sources, sums_count)
    }

    fn new(sources: impl Iterator<Item = Entries>, sums_count: usize) -> Result<Self, Error> {
        let mut heap = BinaryHeap::new();
        for entries in sources {
            let mut source = Source { prefix: 0, entries };
            if source.advance()? {
                heap.push(source);
            }
        }
        Ok(Self { sources: heap, key: Vec::new(), totals: vec![Sum::default(); sums_count] })
    }

    /// The length of the next group's key; `None` after the last group.
    pub fn next_key_bytes(&self) -> Option<usize> {
        self.sources.peek().map(|first| first.key().len())
    }

    /// The next group.
    pub fn next_group(&mut self) -> Result<Option<MergedGroup<'_>>, Error> {
        let Some(first) = self.sources.peek() else {
            return Ok(None);
        };
        self.key.clear();
        self.key.reserve_exact(first.key().len());
        self.key.extend_from_slice(first.key());
        self.totals.fill(Sum::default());
        while let Some(mut source) = self.sources.peek_mut() {
            if source.key() != self.key {
                // A source that is not changed stays where it is in the heap.
                break;
            }
            source.entries.add_to(&mut self.totals);
            if !source.advance()? {
                PeekMut::pop(source);
            }
        }
        Ok(Some(MergedGroup { key: &self.key, totals: &self.totals }))
    }

    /// Writes about `bytes_max` bytes of groups, and returns whether there are more.
    ///
    /// Errors: the first error of `check`, which is called with each group before that is written.
    pub fn write_some(
        &mut self,
        writer: &mut RunWriter,
        bytes_max: usize,
        check: impl Fn(&MergedGroup<'_>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        self.pass_some(bytes_max, |group| {
            check(&group)?;
            writer.put(group.key, group.totals.iter().copied())
        })
    }

    /// Calls `take` with the next groups, about `bytes_max` bytes of them, and returns whether there are more.
    ///
    /// Errors: the first error of `take`.
    pub fn pass_some(
        &mut self,
        bytes_max: usize,
        mut take: impl FnMut(MergedGroup<'_>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some(group) = self.next_group()? else { return Ok(false) };
            bytes += group.key.len() + HEAD_BYTES_MAX.min(KIB / 16);
            take(group)?;
        }
        Ok(true)
    }
}

/// Entries in the order of keys, and the prefix of the current entry's key, which decides nearly all comparisons.
struct Source {
    prefix: u64,
    entries: Entries,
}

enum Entries {
    Memory(SortedTable),
    Disk(RunReader),
}

impl Source {
    /// Moves to the next entry, and returns whether there is one.
    fn advance(&mut self) -> Result<bool, Error> {
        let more = match &mut self.entries {
            Entries::Memory(sorted) => {
                sorted.passed += 1;
                sorted.passed <= sorted.ordered.len()
            }
            Entries::Disk(run) => run.advance()?,
        };
        if more {
            self.prefix = prefix(self.key());
        }
        Ok(more)
    }

    fn key(&self) -> &[u8] {
        match &self.entries {
            Entries::Memory(sorted) => sorted.table.key(sorted.offset()),
            Entries::Disk(run) => run.key(),
        }
    }
}

impl Entries {
    fn add_to(&self, sums: &mut [Sum]) {
        match self {
            Self::Memory(sorted) => {
                for (sum, total) in sums.iter_mut().zip(sorted.table.totals(sorted.offset())) {
                    sum.merge(total);
                }
            }
            Self::Disk(run) => {
                for (sum, total) in sums.iter_mut().zip(&run.totals) {
                    sum.merge(*total);
                }
            }
        }
    }
}

/// Rust's heap has the greatest element on top, so the order is reversed: the source with the smallest key is the greatest.
impl Ord for Source {
    fn cmp(&self, other: &Self) -> Ordering {
        other.prefix.cmp(&self.prefix).then_with(|| other.key().cmp(self.key()))
    }
}

impl PartialOrd for Source {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Source {}
