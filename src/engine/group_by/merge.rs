//! Merges sorted runs and tables into one sequence of groups.

use super::{
    entry::{HEAD_BYTES_MAX, MergedGroup},
    hash_table::{EntryOffset, GroupTable},
    key_range::KeyRange,
    order::{Ordered, prefix},
    spill::{Run, RunReader, RunWriter, block_bytes},
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
        EntryOffset::of(self.ordered[self.passed - 1])
    }
}

/// The groups of several sources as one, in the order of keys, the totals of equal keys added up.
///
/// The sources play a knock-out tournament, which the one with the smallest key wins (Knuth, "The Art of Computer Programming",
/// volume 3, section 5.4.1, "tree of losers"). When the winner moves on to its next entry, it plays only against those that lost
/// on its way up.
pub struct Merge {
    sources: Vec<Entries>,
    /// Decides nearly all comparisons of current keys: eight of their bytes, after those that all keys have in common.
    /// [`ENDED`] after the last entry.
    ranks: Vec<u128>,
    /// The winner, and then for each game its loser. Source `i` first plays in game `(count + i) / 2`, and its winner then in
    /// game `/ 2`, up to game 1.
    games: Vec<usize>,
    common_bytes: usize,
    key: Vec<u8>,
    totals: Vec<Sum>,
}

const ENDED: u128 = u128::MAX;

impl Merge {
    /// Merges complete tables in memory.
    pub fn of_tables(tables: Vec<SortedTable>, sums_count: usize) -> Result<Self, Error> {
        Self::new(tables.into_iter().map(Entries::Memory).collect(), 0, sums_count)
    }

    /// Merges the first runs of the list and removes them from it: as many as `bytes_max` allows to read at once, and at
    /// least two.
    pub fn of_first_runs(runs: &mut Vec<Run>, bytes_max: usize, sums_count: usize) -> Result<Self, Error> {
        let first: Vec<_> = runs.drain(..Self::count_at_once(runs, bytes_max)).collect();
        Self::of_range(&first, KeyRange::default(), block_bytes(bytes_max), sums_count)
    }

    /// How many of these runs can be merged in `bytes_max` bytes, beginning with the first: at least two, if there are two.
    pub fn count_at_once(runs: &[Run], bytes_max: usize) -> usize {
        let block_bytes = block_bytes(bytes_max);
        let longest = runs.iter().map(|run| run.entry_bytes_max).max().unwrap_or(0);
        // The current group, and the blocks that are written.
        let mut bytes = longest + 4 * block_bytes;
        let mut count = 0;
        for run in runs {
            bytes += run.entry_bytes_max.max(block_bytes);
            if bytes > bytes_max && count >= 2 {
                break;
            }
            count += 1;
        }
        count
    }

    /// Merges the entries of runs that are in a range of keys.
    pub(super) fn of_range(
        runs: &[Run],
        range: KeyRange,
        block_bytes: usize,
        sums_count: usize,
    ) -> Result<Self, Error> {
        let sources = runs.iter().map(|run| Entries::Disk(RunReader::new(run, range, block_bytes, sums_count)));
        Self::new(sources.collect(), range.common_bytes(), sums_count)
    }

    fn new(sources: Vec<Entries>, common_bytes: usize, sums_count: usize) -> Result<Self, Error> {
        let count = sources.len();
        let mut merge = Self {
            sources,
            ranks: vec![ENDED; count],
            games: vec![usize::MAX; count.max(1)],
            common_bytes,
            key: Vec::new(),
            totals: vec![Sum::default(); sums_count],
        };
        for source in 0..count {
            merge.advance(source)?;
        }
        for source in 0..count {
            merge.play(source);
        }
        Ok(merge)
    }

    /// Moves a source to its next entry.
    #[inline]
    fn advance(&mut self, source: usize) -> Result<(), Error> {
        let entries = &mut self.sources[source];
        self.ranks[source] = if entries.advance()? {
            u128::from(prefix(entries.key().get(self.common_bytes..).unwrap_or_default()))
        } else {
            ENDED
        };
        Ok(())
    }

    /// Plays the games of a source whose entry has changed, up to the first one that has no loser yet.
    #[inline]
    fn play(&mut self, source: usize) {
        let (mut winner, mut game) = (source, (self.sources.len() + source) / 2);
        while game > 0 {
            let other = self.games[game];
            if other == usize::MAX {
                self.games[game] = winner;
                return;
            }
            if self.is_less(other, winner) {
                self.games[game] = winner;
                winner = other;
            }
            game /= 2;
        }
        self.games[0] = winner;
    }

    #[inline]
    fn is_less(&self, a: usize, b: usize) -> bool {
        let (rank, other) = (self.ranks[a], self.ranks[b]);
        rank < other || rank == other && rank != ENDED && self.sources[a].key() < self.sources[b].key()
    }

    /// The source with the next entry; `None` after the last entry.
    fn first(&self) -> Option<usize> {
        let first = self.games[0];
        (self.ranks.get(first)? < &ENDED).then_some(first)
    }

    /// The length of the next group's key; `None` after the last group.
    pub fn next_key_bytes(&self) -> Option<usize> {
        self.first().map(|first| self.sources[first].key().len())
    }

    /// The next group.
    pub fn next_group(&mut self) -> Result<Option<MergedGroup<'_>>, Error> {
        let Some(mut first) = self.first() else {
            return Ok(None);
        };
        let rank = self.ranks[first];
        let key = self.sources[first].key();
        self.key.clear();
        self.key.reserve_exact(key.len());
        self.key.extend_from_slice(key);
        self.totals.fill(Sum::default());
        loop {
            self.sources[first].add_to(&mut self.totals);
            self.advance(first)?;
            self.play(first);
            match self.first() {
                Some(next) if self.ranks[next] == rank && self.sources[next].key() == self.key => first = next,
                _ => break,
            }
        }
        Ok(Some(MergedGroup { key: &self.key, totals: &self.totals }))
    }

    /// Writes about `bytes_max` bytes of groups, and returns whether there are more.
    pub fn write_some(&mut self, writer: &mut RunWriter, bytes_max: usize) -> Result<bool, Error> {
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some(group) = self.next_group()? else { return Ok(false) };
            bytes += group.key.len() + HEAD_BYTES_MAX.min(KIB / 16);
            writer.put(group.key, group.totals.iter().copied())?;
        }
        Ok(true)
    }
}

enum Entries {
    Memory(SortedTable),
    Disk(RunReader),
}

impl Entries {
    /// Moves to the next entry, and returns whether there is one.
    fn advance(&mut self) -> Result<bool, Error> {
        match self {
            Self::Memory(sorted) => {
                sorted.passed += 1;
                Ok(sorted.passed <= sorted.ordered.len())
            }
            Self::Disk(run) => run.advance(),
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Self::Memory(sorted) => sorted.table.key(sorted.offset()),
            Self::Disk(run) => run.key(),
        }
    }

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
