//! Spilling: a full table is written to disk as a run, which is a list of groups sorted by key. `merge.rs` reads the runs
//! again.
//!
//! An entry of a run is the key's length, a total for each summed column, the key, and the XXH3 of all these, whose seed is
//! the entry's offset in the file. Numbers are variable-length integers (`values/varint.rs`). Memory: a block for each run
//! that is read, or its longest entry if that is longer.

use std::{hash::Hasher, ops::Range, sync::Arc};

use twox_hash::XxHash3_64;

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
/// The bytes of the checksum after an entry's key.
const CHECKSUM_BYTES: usize = size_of::<u64>();

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
            self.bytes.start = reader.offset();
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
    entry: OpenEntry,
    entry_bytes_max: usize,
}

/// The entry that is being written.
#[derive(Default)]
struct OpenEntry {
    /// Its offset in the file.
    offset: u64,
    /// Where its bytes begin in the block, or those that have not been written to the file.
    start: usize,
    /// The checksum of the bytes that have been written to the file, if any.
    written: Option<XxHash3_64>,
}

impl OpenEntry {
    fn written(&mut self) -> &mut XxHash3_64 {
        self.written.get_or_insert_with(|| XxHash3_64::with_seed(self.offset))
    }
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
            entry: OpenEntry::default(),
            entry_bytes_max: 0,
        })
    }

    /// Writes a group whose key is in one piece.
    pub fn put(&mut self, key: &[u8], totals: impl Iterator<Item = Sum>) -> Result<(), Error> {
        self.begin(key.len(), totals)?;
        self.append_key(key)?;
        self.end()
    }

    /// Begins an entry. Its key must follow, in one or more calls of [`append_key`](Self::append_key), and then
    /// [`end`](Self::end).
    pub fn begin(&mut self, key_bytes: usize, totals: impl Iterator<Item = Sum>) -> Result<(), Error> {
        if self.block.len() + HEAD_BYTES_MAX > self.block_bytes {
            self.flush()?;
        }
        let start = self.block.len();
        self.entry = OpenEntry { offset: self.file.bytes() + start as u64, start, written: None };
        put_u64(key_bytes as u64, &mut self.block);
        for total in totals {
            put_i128(total.exact(), &mut self.block);
        }
        let entry_bytes = self.block.len() - start + key_bytes + CHECKSUM_BYTES;
        self.entry_bytes_max = self.entry_bytes_max.max(entry_bytes);
        Ok(())
    }

    /// Appends some bytes of the key.
    pub fn append_key(&mut self, piece: &[u8]) -> Result<(), Error> {
        if self.block.len() + piece.len() > self.block_bytes {
            self.flush_entry()?;
        }
        if piece.len() <= self.block_bytes {
            self.block.extend_from_slice(piece);
            return Ok(());
        }
        self.entry.written().write(piece);
        self.file.append(piece)
    }

    /// Ends an entry.
    pub fn end(&mut self) -> Result<(), Error> {
        if self.block.len() + CHECKSUM_BYTES > self.block_bytes {
            self.flush_entry()?;
        }
        let rest = &self.block[self.entry.start..];
        let checksum = match self.entry.written.take() {
            None => XxHash3_64::oneshot_with_seed(self.entry.offset, rest),
            Some(mut written) => {
                written.write(rest);
                written.finish()
            }
        };
        self.block.extend_from_slice(&checksum.to_le_bytes());
        Ok(())
    }

    /// Writes a whole table as a run.
    pub fn put_all(&mut self, table: &GroupTable) -> Result<(), Error> {
        for ordered in table.sorted() {
            let key = table.key(ordered.offset());
            self.put(key, table.totals(ordered.offset()))?;
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

    /// Writes the block to the file while an entry is open.
    fn flush_entry(&mut self) -> Result<(), Error> {
        let start = std::mem::take(&mut self.entry.start);
        self.entry.written().write(&self.block[start..]);
        self.flush()
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
    entry_bytes_max: usize,
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
            entry_bytes_max: run.entry_bytes_max,
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
        let mut rest = &self.block[self.next..];
        let unread = rest.len();
        let key_bytes = take_u64(&mut rest).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(damaged)?;
        for total in &mut self.totals {
            *total = Sum::of(take_i128(&mut rest).ok_or_else(damaged)?);
        }
        let head_bytes = unread - rest.len();
        // Damaged bytes must not decide how much memory is taken.
        let entry_bytes = key_bytes.saturating_add(head_bytes + CHECKSUM_BYTES);
        if entry_bytes > self.entry_bytes_max {
            return Err(damaged());
        }
        self.fill(entry_bytes)?;
        let offset = self.offset();
        let entry = self.block.get(self.next..self.next + entry_bytes).ok_or_else(damaged)?;
        let (checked, checksum) = entry.split_at(head_bytes + key_bytes);
        if XxHash3_64::oneshot_with_seed(offset, checked).to_le_bytes() != checksum {
            return Err(damaged());
        }
        self.key = self.next + head_bytes..self.next + head_bytes + key_bytes;
        self.next += entry_bytes;
        Ok(true)
    }

    /// Where in the file the next entry begins.
    fn offset(&self) -> u64 {
        self.unread.start - (self.block.len() - self.next) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&[u8]; 4] = [b"", b"a", b"b\0c", &[b'd'; 5000]]; // the last is longer than a block

    fn written() -> RunWriter {
        let folder = TempFolder::new(&std::env::temp_dir());
        let mut writer = RunWriter::new(&folder, 0).expect("a file");
        for (index, key) in KEYS.iter().enumerate() {
            let total = Sum::of(-1 << (40 * index));
            if index == 3 {
                writer.begin(key.len(), [total].into_iter()).expect("written");
                key.chunks(700).for_each(|piece| writer.append_key(piece).expect("written"));
                writer.end().expect("written");
            } else {
                writer.put(key, [total].into_iter()).expect("written");
            }
        }
        writer.end_run().expect("written");
        writer
    }

    fn entries(run: &Run) -> Result<Vec<(Vec<u8>, i128)>, Error> {
        let mut reader = RunReader::new(run, block_bytes(0), 1);
        let mut entries = Vec::new();
        while reader.advance()? {
            entries.push((reader.key().to_vec(), reader.totals[0].exact()));
        }
        Ok(entries)
    }

    #[test]
    fn a_run_is_read_as_it_was_written() {
        let runs = written().finish();
        let expected: Vec<_> = KEYS.iter().enumerate().map(|(index, key)| (key.to_vec(), -1 << (40 * index))).collect();
        assert_eq!(entries(&runs[0]).expect("whole"), expected);
    }

    #[test]
    fn a_changed_byte_is_an_error() {
        let writer = written();
        let bytes = writer.file.bytes();
        let whole = writer.file.reader().block(0, usize::try_from(bytes).expect("small")).expect("read");
        let runs = writer.finish();
        for (offset, &byte) in (0..).zip(&whole) {
            runs[0].file.overwrite(offset, &[byte ^ 0x10]).expect("written");
            assert!(entries(&runs[0]).is_err(), "byte {offset} of {bytes}");
            runs[0].file.overwrite(offset, &[byte]).expect("written");
        }
        assert!(entries(&runs[0]).is_ok());
    }

    #[test]
    fn an_entry_at_another_offset_is_an_error() {
        let writer = written();
        let first = writer.file.reader().block(0, 10).expect("read"); // the first entry: key length, total, checksum
        let runs = writer.finish();
        runs[0].file.overwrite(10, &first).expect("written");
        assert!(entries(&runs[0]).is_err());
    }
}
