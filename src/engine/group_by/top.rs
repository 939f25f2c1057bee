//! The groups with the largest totals: a heap of as many as are wanted, through which all groups pass once.

use std::{cmp::Ordering, collections::BinaryHeap};

use crate::{
    engine::values::sum::Sum,
    error::group_by::GroupByError,
    limits::{GROUP_TOP_BYTES, GROUP_TOP_ENTRY_BYTES},
};

/// Keeps the best of the groups that it is given, in [`GROUP_TOP_BYTES`].
pub(super) struct Top {
    count_max: usize,
    bytes_max: usize,
    bytes: usize,
    /// How many groups it was given.
    groups_count: u64,
    /// The worst of those that are kept is at the top.
    kept: BinaryHeap<Ranked>,
}

/// A group that is kept. The better of two is the one with the larger first total; of equal totals, the one with the smaller key.
pub(super) struct Ranked {
    pub(super) key: Vec<u8>,
    pub(super) totals: Vec<Sum>,
}

impl Top {
    /// Keeps up to `count_max` groups.
    pub(super) fn new(count_max: usize) -> Self {
        Self { count_max, bytes_max: GROUP_TOP_BYTES, bytes: 0, groups_count: 0, kept: BinaryHeap::new() }
    }

    /// Takes a group into account. Each key may come once, in any order.
    ///
    /// Errors: the best groups so far take more memory than there is.
    pub(super) fn add(&mut self, key: &[u8], totals: &[Sum]) -> Result<(), GroupByError> {
        self.groups_count += 1;
        let is_full = self.kept.len() >= self.count_max;
        if is_full && self.kept.peek().is_none_or(|worst| worst.is_better_than(key, totals)) {
            return Ok(());
        }
        if is_full && let Some(worst) = self.kept.pop() {
            self.bytes -= worst.bytes();
        }
        let group = Ranked { key: key.to_vec(), totals: totals.to_vec() };
        self.bytes += group.bytes();
        if self.bytes > self.bytes_max {
            return Err(GroupByError::TopTooLong { count: self.count_max, bytes_max: self.bytes_max });
        }
        self.kept.push(group);
        Ok(())
    }

    /// How many groups it was given.
    pub(super) fn groups_count(&self) -> u64 {
        self.groups_count
    }

    /// Those that are kept, the best first.
    pub(super) fn into_sorted(self) -> Vec<Ranked> {
        self.kept.into_sorted_vec()
    }
}

impl Ranked {
    fn is_better_than(&self, key: &[u8], totals: &[Sum]) -> bool {
        rank(&self.key, &self.totals, key, totals) == Ordering::Less
    }

    fn bytes(&self) -> usize {
        GROUP_TOP_ENTRY_BYTES + self.key.len() + self.totals.len() * size_of::<Sum>()
    }
}

/// Compares two groups: the better is less.
fn rank(key: &[u8], totals: &[Sum], other_key: &[u8], other_totals: &[Sum]) -> Ordering {
    let first = |totals: &[Sum]| totals.first().map(|sum| sum.exact());
    first(other_totals).cmp(&first(totals)).then_with(|| key.cmp(other_key))
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        rank(&self.key, &self.totals, &other.key, &other.totals)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_those_of_a_full_sort() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let count = random.usize(0..60);
            // Few different totals, so that many are equal, and some beyond 64 bits.
            let values = [i128::MIN, -3, -1, 0, 1, 2, i128::from(i64::MAX) + 7];
            let mut groups: Vec<(Vec<u8>, [Sum; 2])> = (0..count)
                .map(|index| {
                    let mut key = vec![random.u8(..); random.usize(0..3)];
                    key.extend(index.to_be_bytes());
                    (key, [Sum::of(values[random.usize(..values.len())]), Sum::of(i128::from(random.i8(..)))])
                })
                .collect();
            let count_max = random.usize(1..20);
            let mut top = Top::new(count_max);
            for (key, totals) in &groups {
                top.add(key, totals).expect("there is room");
            }
            assert_eq!(top.groups_count(), count as u64);
            let found: Vec<_> = top.into_sorted().into_iter().map(|group| (group.key, group.totals)).collect();
            groups.sort_by_key(|(key, totals)| (std::cmp::Reverse(totals[0].exact()), key.clone()));
            let expected: Vec<_> =
                groups.into_iter().take(count_max).map(|(key, totals)| (key, totals.to_vec())).collect();
            assert_eq!(found, expected, "seed {seed}");
        }
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut top = Top::new(10_000);
        let key = vec![b'k'; GROUP_TOP_BYTES / 100];
        let mut added = 0;
        let refused = loop {
            match top.add(&[&key[..], &[added]].concat(), &[Sum::of(i128::from(added))]) {
                Ok(()) => added += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, GroupByError::TopTooLong { count: 10_000, bytes_max: GROUP_TOP_BYTES });
        assert!((90..100).contains(&added), "{added}");
        // What was dropped takes no memory any more.
        let mut top = Top::new(1);
        for total in 0..100 {
            top.add(&key, &[Sum::of(total)]).expect("there is room for one");
        }
        assert_eq!(top.into_sorted()[0].totals, [Sum::of(99)]);
    }
}
