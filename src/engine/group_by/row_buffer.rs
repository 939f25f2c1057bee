//! Rows that are collected without looking up their groups, and sorted when there is no room for more.
//!
//! If nearly every row has a group of its own, a hash table makes few entries of many rows, and each look-up waits for memory.
//! Then it is faster to add up the rows of a group when they are next to each other, after sorting.

use std::hint::black_box;

use super::{
    entry::{key_of, take_entry},
    hash_table::WINDOW_BYTES,
    order::{self, Ordered},
    spill::RunWriter,
};
use crate::{
    engine::values::{
        sum::Sum,
        varint::{self, put_i64, put_u64},
    },
    error::Error,
    limits::GROUP_ROWS_BYTES,
};

/// Rows as entries of one row each.
pub(super) struct RowBuffer {
    sums_count: usize,
    entries: Vec<u8>,
    rows_count: usize,
    /// Bytes of the entries and of their order.
    bytes_max: usize,
}

/// Enough entries to overlap the waits for memory, and few enough to stay in the first-level cache.
const LOADED_AT_ONCE: usize = 64;
/// Most entries are not longer.
const LOADED_BYTES: usize = 32;

/// How many rows were sorted, and how many groups they have.
pub(super) struct SortedRows {
    pub(super) rows_count: usize,
    pub(super) groups_count: usize,
}

impl RowBuffer {
    /// A buffer that, with what sorting it takes, never takes more than `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize, sums_count: usize) -> Self {
        let bytes_max = bytes_max.min(GROUP_ROWS_BYTES);
        // Pages that are never written take no memory.
        Self { sums_count, entries: Vec::with_capacity(bytes_max), rows_count: 0, bytes_max }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows_count == 0
    }

    /// Appends a row, and returns whether there was room for it; if not, no value was taken. A cell of its key is its length, and its
    /// text together with the bytes that follow it in memory.
    #[inline]
    pub(super) fn push<'a>(
        &mut self,
        cells: impl Iterator<Item = (usize, &'a [u8])> + Clone,
        values: impl Iterator<Item = i64>,
    ) -> bool {
        let key_bytes = cells.clone().map(|(len, _)| len + 1).sum::<usize>() - 1;
        let entry_bytes_max = varint::BYTES_MAX * (1 + self.sums_count) + key_bytes + WINDOW_BYTES;
        let order_bytes = size_of::<Ordered>() * (self.rows_count + 1);
        if self.entries.len() + entry_bytes_max + order_bytes > self.bytes_max {
            return false;
        }
        put_u64(key_bytes as u64, &mut self.entries);
        for value in values {
            put_i64(value, &mut self.entries);
        }
        for (len, window) in cells {
            let end = self.entries.len() + len;
            match window.first_chunk::<WINDOW_BYTES>() {
                Some(chunk) if len <= WINDOW_BYTES => self.entries.extend_from_slice(chunk),
                _ => self.entries.extend_from_slice(&window[..len]),
            }
            self.entries.truncate(end);
            self.entries.push(0);
        }
        self.entries.pop();
        self.rows_count += 1;
        true
    }

    /// Writes all rows as a run in which each group is one entry, and removes them.
    pub(super) fn spill(&mut self, runs: &mut RunWriter) -> Result<SortedRows, Error> {
        let ordered = self.sorted();
        let mut sorted = SortedRows { rows_count: self.rows_count, groups_count: 0 };
        let (mut totals, mut row) = (vec![Sum::default(); self.sums_count], vec![Sum::default(); self.sums_count]);
        let mut rest = ordered.as_slice();
        let mut loaded = 0;
        while let Some((first, mut after)) = rest.split_first() {
            if ordered.len() - rest.len() >= loaded {
                self.load(rest);
                loaded += LOADED_AT_ONCE;
            }
            let key = self.entry(first.offset, &mut totals)?;
            while let Some(next) = after.first()
                && next.may_equal(first)
                && self.entry(next.offset, &mut row)? == key
            {
                totals.iter_mut().zip(&row).for_each(|(total, value)| total.merge(*value));
                after = &after[1..];
            }
            runs.put(key, totals.iter().copied())?;
            sorted.groups_count += 1;
            rest = after;
        }
        runs.end_run()?;
        self.clear();
        Ok(sorted)
    }

    /// Removes all rows and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.rows_count = 0;
    }

    fn sorted(&self) -> Vec<Ordered> {
        let entries = Entries { rest: &self.entries, offset: 0, sums_count: self.sums_count };
        let key_at = |offset| key_of(&self.entries[offset as usize..], self.sums_count).map_or(&[][..], |(key, _)| key);
        order::sorted(self.rows_count, entries, key_at)
    }

    /// Reads a byte at the start of the next entries, which are anywhere in the buffer. These reads do not depend on each other, so the
    /// processor makes many at the same time, and the entries are in its cache when they are needed.
    fn load(&self, next: &[Ordered]) {
        let bytes = next.iter().take(LOADED_AT_ONCE).map(|entry| {
            let at = entry.offset as usize;
            // An entry may begin at the end of a cache line.
            self.entries[at] ^ self.entries[(at + LOADED_BYTES).min(self.entries.len() - 1)]
        });
        black_box(bytes.fold(0, |all, byte| all ^ byte));
    }

    /// Fills `totals` with those of an entry, and returns its key.
    fn entry(&self, offset: u32, totals: &mut [Sum]) -> Result<&[u8], Error> {
        let mut bytes = &self.entries[offset as usize..];
        take_entry(&mut bytes, totals).ok_or_else(|| Error::Internal("a buffer of rows has no entry there".to_owned()))
    }
}

/// The offsets and keys of entries that are one after the other.
#[derive(Clone)]
struct Entries<'a> {
    rest: &'a [u8],
    offset: u32,
    sums_count: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, entry_bytes) = key_of(self.rest, self.sums_count)?;
        let offset = self.offset;
        self.rest = &self.rest[entry_bytes..];
        self.offset += u32::try_from(entry_bytes).ok()?;
        Some((offset, key))
    }
}
