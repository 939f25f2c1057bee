//! Groups in the order of their keys: the runs that a full table leaves on disk, and the merge of runs and tables.
//!
//! A run is entries one after the other: the key's length, a total for each column, the key. Numbers are
//! those of `values/varint.rs`. Memory: a block for each run that is
//! read, or its longest entry where that is longer.

use std::{ops::Range, sync::Arc};

use super::hash_table::Totals;
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

/// Bytes that are read from a run or written to one at once, where memory allows it.
const BLOCK_BYTES: usize = 64 * KIB;
/// All of an entry before its key.
pub(super) const HEAD_BYTES_MAX: usize = varint::BYTES_MAX * (1 + GROUP_COLUMNS_MAX);

/// A stretch of a file, in the order of keys.
#[derive(Clone)]
pub struct Run {
    file: Arc<TempFile>,
    bytes: Range<u64>,
    pub(super) entry_bytes_max: usize,
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
        put_u64(key_bytes as u64, &mut self.block);
        for total in totals {
            put_i128(total.exact(), &mut self.block);
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
pub(super) fn block_bytes(bytes_max: usize) -> usize {
    (bytes_max / 64).clamp(2 * HEAD_BYTES_MAX.min(KIB), BLOCK_BYTES)
}

/// A group with all that was added to it.
pub struct MergedGroup<'a> {
    /// Its cells with a NUL between them.
    pub key: &'a [u8],
    /// Its totals, in the order of the columns.
    pub totals: &'a [Sum],
}

/// Reads a run, an entry at a time.
pub(super) struct RunReader {
    /// Keeps the file, which has no name.
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
