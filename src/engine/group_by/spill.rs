//! Spilling: a full table is written to disk as a run, which is a list of groups sorted by key. `merge.rs` reads the runs
//! again.
//!
//! An entry of a run is the key's length, a total for each summed column, and the key. Numbers are variable-length integers
//! (`values/varint.rs`). Memory: a block for each run that is read, or its longest entry if that is longer.

use std::{ops::Range, sync::Arc};

use super::hash_table::GroupTable;
use crate::{
    engine::{
        storage::{
            reader::Reader,
            temp_file::{TempFile, TempFolder},
        },
        values::{
            sum::Sum,
            varint::{self, put_i128, put_u64, take_i128, take_u64},
        },
    },
    error::Error,
    limits::{GROUP_COLUMNS_MAX, KIB},
};

/// Bytes that are read from or written to a run at once, if memory allows it.
const RUN_BLOCK_BYTES: usize = 64 * KIB;
/// The bytes of an entry before its key, at most.
pub(super) const HEAD_BYTES_MAX: usize = varint::BYTES_MAX * (1 + GROUP_COLUMNS_MAX);

/// A sorted run: a byte range of a temporary file with entries in the order of their keys.
#[derive(Clone)]
pub struct Run {
    file: Arc<TempFile>,
    bytes: Range<u64>,
    pub(super) entry_bytes_max: usize,
}

impl Run {
    /// Calls `take` with the groups in order until it returns `false`. Groups that were taken are no longer part of the run;
    /// nothing of the others is kept in memory.
    pub fn consume_while(
        &mut self,
        sums_count: usize,
        mut take: impl FnMut(&MergedGroup<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut reader = RunReader::new(self, RUN_BLOCK_BYTES, sums_count);
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
    /// The complete runs: the byte range of each, and the length of its longest entry.
    runs: Vec<(Range<u64>, usize)>,
    run_start: u64,
    entry_bytes: usize,
    entry_bytes_max: usize,
}

impl RunWriter {
    /// Writes to a new temporary file. The block is smaller if `bytes_max` is small.
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

    /// Begins an entry. Its key must follow, in one or more calls of [`append_key`](Self::append_key).
    pub fn begin(&mut self, key_bytes: usize, totals: impl Iterator<Item = Sum>) -> Result<(), Error> {
        if self.block.len() + HEAD_BYTES_MAX > self.block_bytes {
            self.flush()?;
        }
        let before = self.block.len();
        put_u64(key_bytes as u64, &mut self.block);
        for total in totals {
            put_i128(total.exact(), &mut self.block);
        }
        self.entry_bytes = self.block.len() - before + key_bytes;
        self.entry_bytes_max = self.entry_bytes_max.max(self.entry_bytes);
        Ok(())
    }

    /// Appends some bytes of the key.
    pub fn append_key(&mut self, piece: &[u8]) -> Result<(), Error> {
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

    /// Writes a whole table as a run.
    pub fn put_all(&mut self, table: &GroupTable) -> Result<(), Error> {
        for ordered in table.sorted() {
            let key = table.key(ordered.offset());
            self.begin(key.len(), table.totals(ordered.offset()))?;
            self.append_key(key)?;
        }
        self.end_run()
    }

    /// Ends a run: it has all that was written since the last one ended.
    pub fn end_run(&mut self) -> Result<(), Error> {
        self.flush()?;
        let end = self.file.bytes();
        if end > self.run_start {
            self.runs.push((self.run_start..end, self.entry_bytes_max));
        }
        (self.run_start, self.entry_bytes_max) = (end, 0);
        Ok(())
    }

    /// Returns all complete runs.
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

/// The size of a block if `bytes_max` has to be enough for many blocks.
pub(super) fn block_bytes(bytes_max: usize) -> usize {
    (bytes_max / 64).clamp(2 * HEAD_BYTES_MAX.min(KIB), RUN_BLOCK_BYTES)
}

/// A group with its complete totals.
pub struct MergedGroup<'a> {
    /// Its cells with a NUL between them.
    pub key: &'a [u8],
    /// Its totals, in the order of the columns.
    pub totals: &'a [Sum],
}

/// Reads a run, one entry at a time.
pub(super) struct RunReader {
    /// Keeps the file open: it has no name and is removed when it is closed.
    file: Reader,
    unread: Range<u64>,
    block: Vec<u8>,
    block_bytes: usize,
    /// Where in the block the next entry begins.
    next: usize,
    key: Range<usize>,
    pub(super) totals: Vec<Sum>,
}

impl RunReader {
    pub(super) fn new(run: &Run, block_bytes: usize, sums_count: usize) -> Self {
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

    pub(super) fn key(&self) -> &[u8] {
        &self.block[self.key.clone()]
    }

    pub(super) fn advance(&mut self) -> Result<bool, Error> {
        self.fill(HEAD_BYTES_MAX)?;
        if self.next == self.block.len() {
            return Ok(false);
        }
        let mut head = &self.block[self.next..];
        let before = head.len();
        let key_bytes = take_u64(&mut head).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(damaged)?;
        for total in &mut self.totals {
            *total = Sum::of(take_i128(&mut head).ok_or_else(damaged)?);
        }
        self.next += before - head.len();
        self.fill(key_bytes)?;
        self.key = self.next..self.next + key_bytes;
        self.next = self.key.end;
        if self.next <= self.block.len() { Ok(true) } else { Err(damaged()) }
    }

    /// Reads until the block has `bytes` bytes from `next` on, or until the end of the run.
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
            // Exactly what is needed, after the smaller buffer has been shrunk.
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
