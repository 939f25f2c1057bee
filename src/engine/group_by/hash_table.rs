//! A hash table from group to exact totals that takes a fixed number of bytes and reports when it is full. It knows no
//! files, threads or CSV.
//!
//! A group's key is its cells with a NUL between them. No cell contains a NUL, and NUL is less than any other byte, so
//! keys compared as byte strings are in the order of their first cells, then of their second cells, and so on.

use std::ops::Range;

use hashbrown::HashTable;

use super::{
    key_hash::{KeyHasher, are_equal},
    order::{self, Ordered},
};
use crate::engine::values::sum::Sum;

/// Groups with their exact totals, in memory.
pub struct GroupTable {
    sums_count: usize,
    /// Where each group's entry begins in `entries`.
    offsets: HashTable<u32>,
    /// The entries, one after the other. An entry is the key's length, a total for each summed column, and the key. The
    /// capacity is reserved at the start and never grows; pages that are never written take no memory.
    entries: Vec<u8>,
    entries_bytes: usize,
    groups_max: usize,
    /// How many rows were added since the table was cleared.
    rows_count: usize,
    /// How often the table was cleared. Offsets are valid until it is cleared again.
    clears: u64,
    hasher: KeyHasher,
}

/// The result of looking up a row's group.
pub enum Lookup {
    /// The group was in the table.
    Existing(EntryOffset),
    /// The group was inserted, with totals of 0.
    Inserted(EntryOffset),
    /// The group is not in the table, and there is no room for it.
    Full,
}

/// Where a group's entry begins. Valid until the table is cleared.
#[derive(Clone, Copy)]
pub struct EntryOffset(u32);

impl EntryOffset {
    /// Where an entry of a sorted table begins.
    pub(super) fn of(ordered: Ordered) -> Self {
        Self(ordered.offset)
    }
}

/// Rows of one file that will be added to a table. Their groups are looked up together, so that the memory accesses of
/// many rows overlap: this halves the time of a sum over many groups.
#[derive(Default)]
pub struct Batch {
    /// The table's `clears` when the rows were looked up.
    clears: u64,
    rows: Vec<PendingRow>,
    /// The rows' keys, one after the other, and then at least [`WINDOW_BYTES`] of any bytes.
    keys: Vec<u8>,
    keys_bytes: usize,
    /// The values that the rows add, one for each summed column.
    values: Vec<i64>,
}

/// Cells up to this length are copied at once, with some bytes after them: that is faster than copying exactly their length.
pub(super) const WINDOW_BYTES: usize = 32;

struct PendingRow {
    hash: u64,
    key: Range<usize>,
    candidate: Option<EntryOffset>,
}

/// A row of a batch.
pub struct BatchRow<'a> {
    /// Its group's entry, if the group is in the table.
    pub offset: Option<EntryOffset>,
    /// Its group's key.
    pub key: &'a [u8],
    /// What it adds to each total.
    pub values: &'a [i64],
}

/// Enough rows to overlap the waits for memory, and few enough to fit in the first-level cache.
const BATCH_ROWS: usize = 128;
/// Rows with a longer key are not put in a batch but added immediately.
const BATCH_KEY_BYTES_MAX: usize = 1024;

impl Batch {
    /// Whether the batch must be emptied before another row is pushed.
    pub fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS
    }

    /// Adds the next row, and returns whether its key is short enough for that; if not, no value was taken. A cell is its length,
    /// and its text together with the bytes that follow it in memory.
    #[inline]
    pub fn push<'a>(
        &mut self,
        table: &GroupTable,
        cells: impl Iterator<Item = (usize, &'a [u8])>,
        values: impl Iterator<Item = i64>,
    ) -> bool {
        let start = self.keys_bytes;
        // No key is longer than this.
        if self.keys.len() < start + BATCH_KEY_BYTES_MAX + 2 * WINDOW_BYTES {
            self.keys.resize(start + BATCH_ROWS / 4 * BATCH_KEY_BYTES_MAX + 2 * WINDOW_BYTES, 0);
        }
        let mut end = start;
        for (len, window) in cells {
            if end + len > start + BATCH_KEY_BYTES_MAX {
                return false;
            }
            match window.first_chunk::<WINDOW_BYTES>() {
                Some(chunk) if len <= WINDOW_BYTES => self.keys[end..end + WINDOW_BYTES].copy_from_slice(chunk),
                _ => self.keys[end..end + len].copy_from_slice(&window[..len]),
            }
            end += len;
            self.keys[end] = 0;
            end += 1;
        }
        self.keys_bytes = end;
        let key = start..end - 1;
        let hash = table.hasher.hash_window(&self.keys[start..], key.len());
        self.values.extend(values);
        self.rows.push(PendingRow { hash, key, candidate: None });
        true
    }

    /// Looks up all rows. Each loop does little more than one memory access per row, so that the processor runs many
    /// accesses at the same time.
    pub fn look_up(&mut self, table: &GroupTable) {
        self.clears = table.clears;
        for row in &mut self.rows {
            row.candidate = table.offsets.find(row.hash, |_| true).copied().map(EntryOffset);
        }
        for row in &mut self.rows {
            // An entry may be in two cache lines, so its end is read, too.
            let (len, last) = (row.key.len(), self.keys[..row.key.end].last());
            row.candidate = row.candidate.filter(|&offset| {
                let key = table.key(offset);
                key.len() == len && (len == 0 || key.last() == last)
            });
        }
    }

    /// The number of rows.
    pub fn rows_count(&self) -> usize {
        self.rows.len()
    }

    /// A row, with its group's entry if that was found and the table has not been cleared since.
    #[inline]
    pub fn row(&self, index: usize, table: &GroupTable) -> BatchRow<'_> {
        let row = &self.rows[index];
        let key = &self.keys[row.key.clone()];
        let sums = table.sums_count;
        BatchRow {
            offset: row.candidate.filter(|&offset| self.clears == table.clears && are_equal(table.key(offset), key)),
            key,
            values: &self.values[index * sums..][..sums],
        }
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.keys_bytes = 0;
        self.values.clear();
    }
}

const LENGTH_BYTES: usize = size_of::<u32>();
const TOTAL_BYTES: usize = size_of::<i128>();
/// What hashbrown stores in a slot: the offset and a byte of the hash.
const SLOT_BYTES: usize = size_of::<u32>() + 1;

impl GroupTable {
    /// An empty table. With what sorting it takes, it never takes more than `bytes_max` bytes.
    pub fn new(bytes_max: usize, sums_count: usize) -> Self {
        let quarter = bytes_max / 4;
        // While the number of slots doubles, the old slots still take memory. hashbrown fills seven of eight slots.
        let slots_max = 1_usize << (quarter * 2 / 3 / SLOT_BYTES).max(4).ilog2();
        let groups_max = (slots_max / 8 * 7).min(quarter / size_of::<Ordered>()).max(1);
        let entries_bytes = (bytes_max / 2).min(u32::MAX as usize);
        Self {
            sums_count,
            offsets: HashTable::new(),
            entries: Vec::with_capacity(entries_bytes),
            entries_bytes,
            groups_max,
            rows_count: 0,
            clears: 0,
            hasher: KeyHasher::new(),
        }
    }

    /// Finds the group of these cells, or inserts it.
    #[inline]
    pub fn find_or_insert<'a>(&mut self, cells: impl Iterator<Item = &'a [u8]> + Clone) -> Lookup {
        let start = self.entries.len();
        let key_start = start + LENGTH_BYTES + self.sums_count * TOTAL_BYTES;
        let key_bytes = key_bytes(cells.clone());
        if key_start + key_bytes + 1 > self.entries.capacity() {
            return Lookup::Full;
        }
        // The key is written where it belongs if the group is new, so that it is never copied.
        self.entries.resize(key_start, 0);
        for cell in cells {
            self.entries.extend_from_slice(cell);
            self.entries.push(0);
        }
        let (old, new) = self.entries.split_at(start);
        let key = &new[key_start - start..][..key_bytes];
        let (sums_count, hasher) = (self.sums_count, &self.hasher);
        let hash = hasher.hash(key);
        if let Some(&offset) = self.offsets.find(hash, |&offset| key_at(old, sums_count, offset) == key) {
            self.entries.truncate(start);
            return Lookup::Existing(EntryOffset(offset));
        }
        if self.offsets.len() >= self.groups_max {
            self.entries.truncate(start);
            return Lookup::Full;
        }
        self.entries.truncate(key_start + key_bytes);
        let (Ok(offset), Ok(length)) = (u32::try_from(start), u32::try_from(key_bytes)) else {
            return Lookup::Full; // unreachable: the capacity is at most u32::MAX
        };
        self.entries[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        let entries = &self.entries;
        self.offsets.insert_unique(hash, offset, |&offset| hasher.hash(key_at(entries, sums_count, offset)));
        Lookup::Inserted(EntryOffset(offset))
    }

    /// Adds a value to each of a group's totals.
    #[inline]
    pub fn add(&mut self, offset: EntryOffset, values: &[i64]) {
        self.rows_count += 1;
        let start = offset.0 as usize + LENGTH_BYTES;
        let totals = &mut self.entries[start..start + values.len() * TOTAL_BYTES];
        for (bytes, &value) in totals.as_chunks_mut::<TOTAL_BYTES>().0.iter_mut().zip(values) {
            let mut sum = Sum::of(i128::from_le_bytes(*bytes));
            sum.add(value);
            *bytes = sum.exact().to_le_bytes();
        }
    }

    /// Adds a total to each of a group's totals.
    pub fn add_totals(&mut self, offset: EntryOffset, totals: &[Sum]) {
        self.rows_count += 1;
        let start = offset.0 as usize + LENGTH_BYTES;
        let own = &mut self.entries[start..start + totals.len() * TOTAL_BYTES];
        for (bytes, &total) in own.as_chunks_mut::<TOTAL_BYTES>().0.iter_mut().zip(totals) {
            let mut sum = Sum::of(i128::from_le_bytes(*bytes));
            sum.merge(total);
            *bytes = sum.exact().to_le_bytes();
        }
    }

    /// How often it was cleared. The offset of an entry is valid until then.
    pub fn clears(&self) -> u64 {
        self.clears
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The number of groups.
    pub fn groups_count(&self) -> usize {
        self.offsets.len()
    }

    /// How many rows were added to these groups.
    pub fn rows_count(&self) -> usize {
        self.rows_count
    }

    /// Removes all groups and frees their memory. Every group is refused until the table is opened again.
    pub fn close(&mut self) {
        self.clear();
        (self.offsets, self.entries) = (HashTable::new(), Vec::new());
    }

    /// Undoes [`close`](Self::close).
    pub fn open(&mut self) {
        self.clear();
        self.entries.reserve_exact(self.entries_bytes);
    }

    /// Removes all groups and keeps the memory.
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.entries.clear();
        self.rows_count = 0;
        self.clears += 1;
    }

    /// The entries of all groups in the order of their keys.
    pub fn sorted(&self) -> Vec<Ordered> {
        let entries = Entries { table: self, offset: 0 };
        let key_at = |offset| key_at(&self.entries, self.sums_count, offset);
        order::sorted(self.offsets.len(), entries, key_at)
    }

    /// A group's key.
    #[inline]
    pub fn key(&self, offset: EntryOffset) -> &[u8] {
        key_at(&self.entries, self.sums_count, offset.0)
    }

    /// A group's totals, in the order of the columns.
    pub fn totals(&self, offset: EntryOffset) -> impl Iterator<Item = Sum> {
        let start = offset.0 as usize + LENGTH_BYTES;
        let (totals, _) = self.entries[start..start + self.sums_count * TOTAL_BYTES].as_chunks::<TOTAL_BYTES>();
        totals.iter().map(|bytes| Sum::of(i128::from_le_bytes(*bytes)))
    }
}

/// The length of the key of these cells.
#[inline]
pub fn key_bytes<'a>(cells: impl Iterator<Item = &'a [u8]>) -> usize {
    cells.map(|cell| cell.len() + 1).sum::<usize>() - 1
}

/// The offsets and keys of all entries, as they are stored.
#[derive(Clone)]
struct Entries<'a> {
    table: &'a GroupTable,
    offset: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.table.entries.len() {
            return None;
        }
        let offset = u32::try_from(self.offset).ok()?;
        let key = key_at(&self.table.entries, self.table.sums_count, offset);
        self.offset += LENGTH_BYTES + self.table.sums_count * TOTAL_BYTES + key.len();
        Some((offset, key))
    }
}

#[inline]
fn key_at(entries: &[u8], sums_count: usize, offset: u32) -> &[u8] {
    let entry = &entries[offset as usize..];
    let mut length = [0; LENGTH_BYTES];
    length.copy_from_slice(&entry[..LENGTH_BYTES]);
    &entry[LENGTH_BYTES + sums_count * TOTAL_BYTES..][..u32::from_le_bytes(length) as usize]
}
