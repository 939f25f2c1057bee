//! Totals by group in a fixed number of bytes: a hash table that says when it is full. No file, no thread, no CSV.
//!
//! A group's key is its cells with a NUL between them. A cell holds no NUL, and NUL is less than any other byte, so the
//! order of keys as byte strings is the order of the cells, one after the other.

use std::ops::Range;

use ahash::RandomState;
use hashbrown::HashTable;

use crate::engine::values::sum::Sum;

/// Exact totals of groups, in memory.
pub struct Totals {
    sums_count: usize,
    /// Where each group's entry begins in `entries`.
    places: HashTable<u32>,
    /// Entries one after the other, of each: the key's length, a total for each column, the key. Its capacity is taken
    /// at the start and never grows; pages that are not written cost nothing.
    entries: Vec<u8>,
    groups_max: usize,
    /// How often it was cleared: a place is good until the next time.
    clears: u64,
    /// Seeded at random, so that no file is made of keys that collide.
    hasher: RandomState,
}

/// What became of a row's group.
pub enum Found {
    /// It was there.
    Old(Place),
    /// It came with this row, with totals of 0.
    New(Place),
    /// There is no room for it.
    Full,
}

/// A group in the table, until the table is cleared.
#[derive(Clone, Copy)]
pub struct Place(u32);

/// Rows of one file on their way into a table. The groups of all of them are looked up together, so that the processor
/// waits for their memory once and not once a row; that is half the time of a sum over many groups.
#[derive(Default)]
pub struct Batch {
    /// The row number of the first.
    first_row: u64,
    /// Of the table, when the rows were looked up in it.
    clears: u64,
    rows: Vec<Waiting>,
    /// Their keys, one after the other, ...
    keys: Vec<u8>,
    /// ... how long each of their cells is, ...
    cell_bytes: Vec<usize>,
    /// ... and what each adds to each total.
    values: Vec<i64>,
}

struct Waiting {
    hash: u64,
    key: Range<usize>,
    candidate: Option<Place>,
}

/// A row of a batch.
pub struct BatchRow<'a> {
    /// Its row number.
    pub number: u64,
    /// Its group, if that was found.
    pub place: Option<Place>,
    /// Its group's key.
    key: &'a [u8],
    /// How long each of the cells in the key is.
    cell_bytes: &'a [usize],
    /// What it adds to each total.
    pub values: &'a [i64],
}

impl<'a> BatchRow<'a> {
    /// Its group's cells.
    pub fn cells(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let key = self.key;
        self.cell_bytes.iter().scan(0, move |at, &bytes| {
            let cell = &key[*at..*at + bytes];
            *at += bytes + 1;
            Some(cell)
        })
    }
}

/// Enough rows to wait for together, and few enough to stay in the nearest cache.
const BATCH_ROWS: usize = 128;
/// Bytes of a key that may wait in a batch.
pub const BATCH_KEY_BYTES_MAX: usize = 1024;

impl Batch {
    /// Whether the rows should be taken before another comes.
    pub fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS
    }

    /// Adds the row after the last.
    #[inline]
    pub fn push<'a>(
        &mut self,
        totals: &Totals,
        number: u64,
        cells: impl Iterator<Item = &'a [u8]>,
        values: impl Iterator<Item = i64>,
    ) {
        if self.rows.is_empty() {
            self.first_row = number;
        }
        let start = self.keys.len();
        for cell in cells {
            self.keys.extend_from_slice(cell);
            self.keys.push(0);
            self.cell_bytes.push(cell.len());
        }
        let key = start..self.keys.len() - 1;
        let hash = totals.hasher.hash_one(&self.keys[key.clone()]);
        self.values.extend(values);
        self.rows.push(Waiting { hash, key, candidate: None });
    }

    /// Looks all rows up. In loops of little else, as a loop is far ahead of the memory that it waits for.
    pub fn look_up(&mut self, totals: &Totals) {
        self.clears = totals.clears;
        for row in &mut self.rows {
            row.candidate = totals.places.find(row.hash, |_| true).copied().map(Place);
        }
        for row in &mut self.rows {
            row.candidate = row.candidate.filter(|&place| totals.key(place).len() == row.key.len());
        }
    }

    /// How many rows.
    pub fn rows_count(&self) -> usize {
        self.rows.len()
    }

    /// A row, and its group if that was found and the table was not cleared since.
    #[inline]
    pub fn row(&self, index: usize, totals: &Totals) -> BatchRow<'_> {
        let row = &self.rows[index];
        let key = &self.keys[row.key.clone()];
        let (cells, sums) = (self.cell_bytes.len() / self.rows.len(), totals.sums_count);
        BatchRow {
            number: self.first_row + index as u64,
            place: row.candidate.filter(|&place| self.clears == totals.clears && totals.key(place) == key),
            key,
            cell_bytes: &self.cell_bytes[index * cells..][..cells],
            values: &self.values[index * sums..][..sums],
        }
    }

    /// Forgets the rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.keys.clear();
        self.cell_bytes.clear();
        self.values.clear();
    }
}

const LENGTH_BYTES: usize = size_of::<u32>();
const TOTAL_BYTES: usize = size_of::<i128>();
/// What hashbrown spends on a slot: the place and a byte of hash.
const SLOT_BYTES: usize = size_of::<u32>() + 1;

impl Totals {
    /// An empty table that takes `bytes_max` at most, what sorting it takes included.
    pub fn new(bytes_max: usize, sums_count: usize) -> Self {
        let quarter = bytes_max / 4;
        // While the slots double, the old half is still there; hashbrown fills seven of eight.
        let slots_max = 1_usize << (quarter * 2 / 3 / SLOT_BYTES).max(4).ilog2();
        let groups_max = (slots_max / 8 * 7).min(quarter / size_of::<Ordered>()).max(1);
        let entries_bytes = (bytes_max / 2).min(u32::MAX as usize);
        Self {
            sums_count,
            places: HashTable::new(),
            entries: Vec::with_capacity(entries_bytes),
            groups_max,
            clears: 0,
            hasher: RandomState::new(),
        }
    }

    /// Finds the group of these cells, or makes it.
    #[inline]
    pub fn find_or_insert<'a>(&mut self, cells: impl Iterator<Item = &'a [u8]> + Clone) -> Found {
        let start = self.entries.len();
        let key_start = start + LENGTH_BYTES + self.sums_count * TOTAL_BYTES;
        let key_bytes = key_bytes(cells.clone());
        if key_start + key_bytes + 1 > self.entries.capacity() {
            return Found::Full;
        }
        // Where it belongs if it is new; so a key is never written twice.
        self.entries.resize(key_start, 0);
        for cell in cells {
            self.entries.extend_from_slice(cell);
            self.entries.push(0);
        }
        let (old, new) = self.entries.split_at(start);
        let key = &new[key_start - start..][..key_bytes];
        let (sums_count, hasher) = (self.sums_count, &self.hasher);
        let hash = hasher.hash_one(key);
        if let Some(&place) = self.places.find(hash, |&place| key_at(old, sums_count, place) == key) {
            self.entries.truncate(start);
            return Found::Old(Place(place));
        }
        if self.places.len() >= self.groups_max {
            self.entries.truncate(start);
            return Found::Full;
        }
        self.entries.truncate(key_start + key_bytes);
        let (Ok(place), Ok(length)) = (u32::try_from(start), u32::try_from(key_bytes)) else {
            return Found::Full; // not reached: the capacity is less
        };
        self.entries[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        let entries = &self.entries;
        self.places.insert_unique(hash, place, |&place| hasher.hash_one(key_at(entries, sums_count, place)));
        Found::New(Place(place))
    }

    /// Adds to a group's totals, a value to each.
    #[inline]
    pub fn add(&mut self, place: Place, values: &[i64]) {
        let start = place.0 as usize + LENGTH_BYTES;
        let totals = &mut self.entries[start..start + values.len() * TOTAL_BYTES];
        for (bytes, &value) in totals.as_chunks_mut::<TOTAL_BYTES>().0.iter_mut().zip(values) {
            let mut sum = Sum::of(i128::from_le_bytes(*bytes));
            sum.add(value);
            *bytes = sum.exact().to_le_bytes();
        }
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Forgets all groups and keeps the room.
    pub fn clear(&mut self) {
        self.places.clear();
        self.entries.clear();
        self.clears += 1;
    }

    /// The places of all groups in the order of their keys.
    pub fn sorted(&self) -> Vec<Ordered> {
        let mut ordered = Vec::with_capacity(self.places.len());
        ordered.extend(self.places.iter().map(|&place| Ordered { prefix: prefix(self.key(Place(place))), place }));
        ordered.sort_unstable_by(|a, b| {
            let keys = || self.key(Place(a.place)).cmp(self.key(Place(b.place)));
            a.prefix.cmp(&b.prefix).then_with(keys)
        });
        ordered
    }

    /// A group's key.
    pub fn key(&self, place: Place) -> &[u8] {
        key_at(&self.entries, self.sums_count, place.0)
    }

    /// A group's totals, in the order of the columns.
    pub fn totals(&self, place: Place) -> impl Iterator<Item = Sum> {
        let start = place.0 as usize + LENGTH_BYTES;
        let (totals, _) = self.entries[start..start + self.sums_count * TOTAL_BYTES].as_chunks::<TOTAL_BYTES>();
        totals.iter().map(|bytes| Sum::of(i128::from_le_bytes(*bytes)))
    }
}

/// How long the key of these cells is.
#[inline]
pub fn key_bytes<'a>(cells: impl Iterator<Item = &'a [u8]>) -> usize {
    cells.map(|cell| cell.len() + 1).sum::<usize>() - 1
}

/// A group on its way into order. Nearly all comparisons end at the prefix, without a look at the key.
#[derive(Clone, Copy)]
pub struct Ordered {
    prefix: u64,
    place: u32,
}

impl Ordered {
    /// Which group.
    pub fn place(self) -> Place {
        Place(self.place)
    }
}

/// The first bytes of a key, so that a smaller number is a smaller key; equal ones decide nothing.
pub fn prefix(key: &[u8]) -> u64 {
    if let Some(eight) = key.first_chunk::<8>() {
        return u64::from_be_bytes(*eight);
    }
    let mut eight = [0; 8];
    eight[..key.len()].copy_from_slice(key);
    u64::from_be_bytes(eight)
}

#[inline]
fn key_at(entries: &[u8], sums_count: usize, place: u32) -> &[u8] {
    let entry = &entries[place as usize..];
    let mut length = [0; LENGTH_BYTES];
    length.copy_from_slice(&entry[..LENGTH_BYTES]);
    &entry[LENGTH_BYTES + sums_count * TOTAL_BYTES..][..u32::from_le_bytes(length) as usize]
}
