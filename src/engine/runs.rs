//! Groups in the order of their keys: the runs that a full table leaves on disk, and the merge of runs and tables.
//!
//! A run is entries one after the other: the key's length, a total for each column, the key. Numbers are LEB128
//! (DWARF 5, section 7.6), totals folded so that small negative ones are small. Memory: a block for each run that is
//! read, or its longest entry where that is longer.

use std::{cmp::Ordering, collections::BinaryHeap, collections::binary_heap::PeekMut, ops::Range, sync::Arc};

use super::{
    fold::Sum,
    store::{Reader, TempFile, TempFolder},
    totals::{Ordered, Place, Totals, prefix},
};
use crate::{
    error::Error,
    limits::{GROUP_COLUMNS_MAX, KIB},
};

/// Bytes that are read from a run or written to one at once, where memory allows it.
const BLOCK_BYTES: usize = 64 * KIB;
/// A number of 128 bits as LEB128.
const NUMBER_BYTES_MAX: usize = 19;
/// All of an entry before its key.
const HEAD_BYTES_MAX: usize = NUMBER_BYTES_MAX * (1 + GROUP_COLUMNS_MAX);

/// A stretch of a file, in the order of keys.
#[derive(Clone)]
pub struct Run {
    file: Arc<TempFile>,
    bytes: Range<u64>,
    entry_bytes_max: usize,
}

impl Run {
    /// Hands its groups on, from the first, until one is not taken. What is left is the run; nothing of it is kept in
    /// memory.
    pub fn hand_on(
        &mut self,
        sums_count: usize,
        mut take: impl FnMut(&MergedGroup<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut reader = RunReader::new(self, BLOCK_BYTES, sums_count);
        while reader.advance()? && take(&MergedGroup { key: reader.key(), totals: &reader.totals })? {
            self.bytes.start = reader.unread.start - (reader.block.len() - reader.next) as u64;
        }
        Ok(())
    }
}

/// Writes runs to one file.
pub struct RunWriter {
    file: TempFile,
    block: Vec<u8>,
    block_bytes: usize,
    /// Of the runs that are complete: where each is, and its longest entry.
    runs: Vec<(Range<u64>, usize)>,
    run_start: u64,
    entry_bytes: usize,
    entry_bytes_max: usize,
}

impl RunWriter {
    /// Writes to a new file, with a block that is small where memory is.
    pub fn new(folder: &TempFolder, bytes_max: usize) -> Result<Self, Error> {
        let block_bytes = block_bytes(bytes_max);
        Ok(Self {
            file: folder.file()?,
            block: Vec::with_capacity(block_bytes),
            block_bytes,
            runs: Vec::new(),
            run_start: 0,
            entry_bytes: 0,
            entry_bytes_max: 0,
        })
    }

    /// Begins an entry; its key must follow, in pieces.
    pub fn begin(&mut self, key_bytes: usize, totals: impl Iterator<Item = Sum>) -> Result<(), Error> {
        if self.block.len() + HEAD_BYTES_MAX > self.block_bytes {
            self.flush()?;
        }
        let before = self.block.len();
        put_number(&mut self.block, key_bytes as u128);
        for total in totals {
            let total = total.exact();
            put_number(&mut self.block, (total << 1 ^ total >> 127).cast_unsigned());
        }
        self.entry_bytes = self.block.len() - before + key_bytes;
        self.entry_bytes_max = self.entry_bytes_max.max(self.entry_bytes);
        Ok(())
    }

    /// A piece of the key.
    pub fn key_piece(&mut self, piece: &[u8]) -> Result<(), Error> {
        if self.block.len() + piece.len() <= self.block_bytes {
            self.block.extend_from_slice(piece);
            return Ok(());
        }
        self.flush()?;
        if piece.len() <= self.block_bytes {
            self.block.extend_from_slice(piece);
            return Ok(());
        }
        self.file.append(piece)
    }

    /// A whole table as a run.
    pub fn put_all(&mut self, totals: &Totals) -> Result<(), Error> {
        for ordered in totals.sorted() {
            let key = totals.key(ordered.place());
            self.begin(key.len(), totals.totals(ordered.place()))?;
            self.key_piece(key)?;
        }
        self.end_run()
    }

    /// What was written since the last call is a run.
    pub fn end_run(&mut self) -> Result<(), Error> {
        self.flush()?;
        let end = self.file.bytes();
        if end > self.run_start {
            self.runs.push((self.run_start..end, self.entry_bytes_max));
        }
        (self.run_start, self.entry_bytes_max) = (end, 0);
        Ok(())
    }

    /// All runs.
    pub fn finish(self) -> Vec<Run> {
        let file = Arc::new(self.file);
        let run = |(bytes, entry_bytes_max)| Run { file: Arc::clone(&file), bytes, entry_bytes_max };
        self.runs.into_iter().map(run).collect()
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.append(&self.block)?;
        self.block.clear();
        Ok(())
    }
}

/// A block's size where so much memory is to hold many of them.
fn block_bytes(bytes_max: usize) -> usize {
    (bytes_max / 64).clamp(2 * HEAD_BYTES_MAX.min(KIB), BLOCK_BYTES)
}

/// A table on its way through a merge.
pub struct SortedTable {
    totals: Totals,
    ordered: Vec<Ordered>,
    /// Groups that were passed, the one at hand included.
    passed: usize,
}

impl SortedTable {
    /// Puts a table in order.
    pub fn of(totals: Totals) -> Self {
        let ordered = totals.sorted();
        Self { totals, ordered, passed: 0 }
    }

    fn place(&self) -> Place {
        self.ordered[self.passed - 1].place()
    }
}

/// A group with all that was added to it.
pub struct MergedGroup<'a> {
    /// Its cells with a NUL between them.
    pub key: &'a [u8],
    /// Its totals, in the order of the columns.
    pub totals: &'a [Sum],
}

/// The groups of several sources as one, in the order of keys, the totals of equal keys added up.
pub struct Merge {
    sources: BinaryHeap<Source>,
    key: Vec<u8>,
    totals: Vec<Sum>,
}

impl Merge {
    /// Of tables that are complete, in memory.
    pub fn of_tables(tables: Vec<SortedTable>, sums_count: usize) -> Result<Self, Error> {
        Self::new(tables.into_iter().map(Entries::Memory), sums_count)
    }

    /// Of the first runs of the list, as many as `bytes_max` allows to read at once, and at least two.
    pub fn of_first_runs(runs: &mut Vec<Run>, bytes_max: usize, sums_count: usize) -> Result<Self, Error> {
        let block_bytes = block_bytes(bytes_max);
        let longest = runs.iter().map(|run| run.entry_bytes_max).max().unwrap_or(0);
        // The group at hand, and the block that it is written to.
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

    /// How long the next group's key is; none when there is no next.
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
                // Looked at and not changed: it stays where it is.
                break;
            }
            source.entries.add_to(&mut self.totals);
            if !source.advance()? {
                PeekMut::pop(source);
            }
        }
        Ok(Some(MergedGroup { key: &self.key, totals: &self.totals }))
    }

    /// Writes about so many bytes of groups, each of them if `check` lets it, and says whether there are more.
    pub fn write_some(
        &mut self,
        writer: &mut RunWriter,
        bytes_max: usize,
        check: impl Fn(&MergedGroup<'_>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some(group) = self.next_group()? else { return Ok(false) };
            check(&group)?;
            let MergedGroup { key, totals } = group;
            writer.begin(key.len(), totals.iter().copied())?;
            writer.key_piece(key)?;
            bytes += key.len() + HEAD_BYTES_MAX.min(KIB / 16);
        }
        Ok(true)
    }
}

/// Entries in the order of keys, and the prefix of the one at hand, which decides nearly all comparisons.
struct Source {
    prefix: u64,
    entries: Entries,
}

enum Entries {
    Memory(SortedTable),
    Disk(RunReader),
}

impl Source {
    /// Goes to the next entry, if there is one.
    fn advance(&mut self) -> Result<bool, Error> {
        let more = match &mut self.entries {
            Entries::Memory(table) => {
                table.passed += 1;
                table.passed <= table.ordered.len()
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
            Entries::Memory(table) => table.totals.key(table.place()),
            Entries::Disk(run) => run.key(),
        }
    }
}

impl Entries {
    fn add_to(&self, sums: &mut [Sum]) {
        match self {
            Self::Memory(table) => {
                for (sum, total) in sums.iter_mut().zip(table.totals.totals(table.place())) {
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

/// A heap has its greatest on top, so the order is turned: the smallest key is the greatest source.
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

/// Reads a run, an entry at a time.
struct RunReader {
    /// Keeps the file, which has no name.
    file: Reader,
    unread: Range<u64>,
    block: Vec<u8>,
    block_bytes: usize,
    /// Where in the block the next entry begins.
    next: usize,
    key: Range<usize>,
    totals: Vec<Sum>,
}

impl RunReader {
    fn new(run: &Run, block_bytes: usize, sums_count: usize) -> Self {
        Self {
            file: run.file.reader(),
            unread: run.bytes.clone(),
            block: Vec::new(),
            block_bytes,
            next: 0,
            key: 0..0,
            totals: vec![Sum::default(); sums_count],
        }
    }

    fn key(&self) -> &[u8] {
        &self.block[self.key.clone()]
    }

    fn advance(&mut self) -> Result<bool, Error> {
        self.fill(HEAD_BYTES_MAX)?;
        if self.next == self.block.len() {
            return Ok(false);
        }
        let mut head = &self.block[self.next..];
        let before = head.len();
        let key_bytes = usize::try_from(take_number(&mut head)?).ok().ok_or_else(damaged)?;
        for total in &mut self.totals {
            let folded = take_number(&mut head)?;
            *total = Sum::of((folded >> 1).cast_signed() ^ -((folded & 1).cast_signed()));
        }
        self.next += before - head.len();
        self.fill(key_bytes)?;
        self.key = self.next..self.next + key_bytes;
        self.next = self.key.end;
        if self.next <= self.block.len() { Ok(true) } else { Err(damaged()) }
    }

    /// Sees to it that so many bytes are in the block from `next` on, if the run has them.
    fn fill(&mut self, bytes: usize) -> Result<(), Error> {
        let kept = self.block.len() - self.next;
        if kept >= bytes || self.unread.is_empty() {
            return Ok(());
        }
        self.block.copy_within(self.next.., 0);
        self.next = 0;
        let unread = usize::try_from(self.unread.end - self.unread.start).unwrap_or(usize::MAX);
        let more = (self.block_bytes.max(bytes) - kept).min(unread);
        self.block.truncate(kept);
        if self.block.capacity() < kept + more {
            // No more than is needed, and never beside the room that was too small.
            self.block.shrink_to_fit();
            self.block.reserve_exact(more);
        }
        self.block.resize(kept + more, 0);
        let read = self.file.read_at(self.unread.start, &mut self.block[kept..]);
        let read = read.map_err(Error::io("a temporary file"))?;
        self.unread.start += read as u64;
        if read == more { Ok(()) } else { Err(damaged()) }
    }
}

fn damaged() -> Error {
    Error::Internal("a run is not what was written".to_owned())
}

fn put_number(block: &mut Vec<u8>, mut number: u128) {
    while number > 0x7f {
        block.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    block.push((number & 0x7f) as u8);
}

fn take_number(block: &mut &[u8]) -> Result<u128, Error> {
    let mut number = 0;
    for (index, &byte) in block.iter().take(NUMBER_BYTES_MAX).enumerate() {
        number |= u128::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *block = &block[index + 1..];
            return Ok(number);
        }
    }
    Err(damaged())
}
