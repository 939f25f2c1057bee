//! Ranges of keys: runs are merged range by range, so that several workers merge at the same time, and what they make is in order.
//!
//! A range is compared with the first bytes of keys only. Keys that begin with the same [`KEY_START_BYTES`] bytes are in one
//! range, whatever its size.

use std::ops::Range;

use super::order::common_bytes;

/// The bytes of a key that decide in which range it is.
pub(super) const KEY_START_BYTES: usize = 32;

/// The first bytes of a key, with zeros after a shorter one. If a key is less than another, its start is less or equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyStart([u8; KEY_START_BYTES]);

impl KeyStart {
    #[inline]
    pub(super) fn of(key: &[u8]) -> Self {
        let mut start = [0; KEY_START_BYTES];
        match key.first_chunk() {
            Some(whole) => start = *whole,
            None => start[..key.len()].copy_from_slice(key),
        }
        Self(start)
    }
}

/// Where an entry of a run begins, and with what.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub(super) start: KeyStart,
    pub(super) offset: u64,
}

/// The keys whose starts are at least `from` and less than `until`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyRange {
    pub(super) from: Option<KeyStart>,
    pub(super) until: Option<KeyStart>,
}

/// The bytes of a run that have the entries of a range.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) bytes: Range<u64>,
    /// All entries before this one are before the end of the range.
    pub(super) until_from: u64,
}

impl KeyRange {
    /// The bytes that all keys of the range begin with.
    pub(super) fn common_bytes(&self) -> usize {
        match (&self.from, &self.until) {
            (Some(from), Some(until)) => common_bytes(&from.0, &until.0),
            _ => 0,
        }
    }

    pub(super) fn is_before(&self, key: &[u8]) -> bool {
        self.until.is_some_and(|until| KeyStart::of(key) >= until)
    }

    pub(super) fn is_after(&self, key: &[u8]) -> bool {
        self.from.is_some_and(|from| KeyStart::of(key) < from)
    }

    /// Where the entries of the range are in a run that has these marks. The slice may begin with entries before the range.
    pub(super) fn slice(&self, run: &Range<u64>, marks: &[Mark]) -> Slice {
        let less_than = |bound: &KeyStart| marks.partition_point(|mark| mark.start < *bound);
        let last_before = |count: usize| count.checked_sub(1).map_or(run.start, |last| marks[last].offset);
        let start = self.from.as_ref().map_or(run.start, |from| last_before(less_than(from)));
        let Some(until) = &self.until else {
            return Slice { bytes: start..run.end, until_from: run.end };
        };
        let count = less_than(until);
        let end = marks.get(count).map_or(run.end, |mark| mark.offset);
        Slice { bytes: start..end.max(start), until_from: last_before(count) }
    }
}

/// Divides all keys into ranges with about `range_bytes` bytes of runs each. `runs` are the runs' byte ranges and marks.
pub(super) fn ranges<'a>(runs: impl Iterator<Item = (&'a Range<u64>, &'a [Mark])>, range_bytes: u64) -> Vec<KeyRange> {
    let mut marks = Vec::new();
    for (run, of_run) in runs {
        let ends = of_run.iter().skip(1).map(|mark| mark.offset).chain([run.end]);
        marks.extend(of_run.iter().zip(ends).map(|(mark, end)| (mark.start, end - mark.offset)));
    }
    marks.sort_unstable();
    let (mut ranges, mut range, mut bytes) = (Vec::new(), KeyRange::default(), 0);
    for (start, marked_bytes) in marks {
        if bytes >= range_bytes && range.from != Some(start) {
            ranges.push(KeyRange { until: Some(start), ..range });
            range = KeyRange { from: Some(start), until: None };
            bytes = 0;
        }
        bytes += marked_bytes;
    }
    ranges.push(range);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key is in exactly one range, and a slice has all of its entries.
    #[test]
    fn ranges_share_out_all_keys() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let shared = "s".repeat([0, 3, 31, 40][random.usize(..4)]);
            let runs: Vec<_> = (0..random.usize(1..5))
                .map(|_| {
                    let mut keys: Vec<Vec<u8>> = (0..random.usize(1..60))
                        .map(|_| format!("{shared}{}", "abc".repeat(random.usize(..3)) + &random.u8(..).to_string()))
                        .map(String::into_bytes)
                        .collect();
                    keys.sort();
                    let entries: Vec<_> = (0..).map(|index| 1000 + 10 * index).zip(keys).collect();
                    let mut marks = Vec::new();
                    for (index, (offset, key)) in entries.iter().enumerate() {
                        if index == 0 || random.u8(..4) == 0 {
                            marks.push(Mark { start: KeyStart::of(key), offset: *offset });
                        }
                    }
                    (1000..1000 + 10 * entries.len() as u64, marks, entries)
                })
                .collect();
            let ranges = ranges(runs.iter().map(|(bytes, marks, _)| (bytes, marks.as_slice())), random.u64(1..300));
            for (run, marks, entries) in &runs {
                let mut found = Vec::new();
                for range in &ranges {
                    let slice = range.slice(run, marks);
                    for (offset, key) in entries.iter().filter(|(offset, _)| slice.bytes.contains(offset)) {
                        assert!(*offset >= slice.until_from || !range.is_before(key), "seed {seed}");
                        if !range.is_after(key) && !range.is_before(key) {
                            assert!(key.len() >= range.common_bytes().min(key.len()), "seed {seed}");
                            found.push(*offset);
                        }
                    }
                }
                assert!(found.iter().eq(entries.iter().map(|(offset, _)| offset)), "seed {seed}: {ranges:?}");
            }
        }
    }
}
