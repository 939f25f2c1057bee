//! Spilling: what does not fit in memory is written to disk as a run, which is a list of groups sorted by key. `merge.rs`
//! reads the runs again.
//!
//! An entry of a run (`entry.rs`) is followed by its XXH3, whose seed is the entry's offset in the file. Memory: a block for
//! each run that is read, or its longest entry if that is longer; and some marks in each run, by which ranges of keys are found.

use std::{hash::Hasher, ops::Range, sync::Arc};

use twox_hash::XxHash3_64;

use super::{
    entry::{HEAD_BYTES_MAX, MergedGroup, put_head, take_head},
    hash_table::{EntryOffset, GroupTable},
    key_range::{KeyRange, KeyStart, Mark},
};
use crate::{
    engine::{
        storage::{
            reader::Reader,
            temp_file::{TempFile, TempFolder},
        },
        values::sum::Sum,
    },
    error::Error,
    limits::KIB,
};

/// Bytes that are read from or written to a run at once, if memory allows it.
const RUN_BLOCK_BYTES: usize = 64 * KIB;
/// The bytes of the checksum after an entry's key.
const CHECKSUM_BYTES: usize = size_of::<u64>();
/// Bytes of a run between two marks, if memory allows it.
const MARK_DISTANCE_BYTES: u64 = 4 * KIB as u64;

/// A sorted run: a byte range of a temporary file with entries in the order of their keys.
#[derive(Clone)]
pub struct Run {
    file: Arc<TempFile>,
    pub(super) bytes: Range<u64>,
    pub(super) entry_bytes_max: usize,
    pub(super) marks: Arc<[Mark]>,
}

impl Run {
    /// Calls `take` with the groups in order until it returns `false`. Groups that were taken are no longer part of the run;
    /// nothing of the others is kept in memory.
    pub fn consume_while(
        &mut self,
        sums_count: usize,
        mut take: impl FnMut(&MergedGroup<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut reader = RunReader::new(self, KeyRange::default(), RUN_BLOCK_BYTES, sums_count);
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
    runs: Vec<WrittenRun>,
    run_start: u64,
    marks: Vec<Mark>,
    /// The number of marks in all runs, and how many there may be.
    marks_count: usize,
    marks_max: usize,
    mark_distance: u64,
    entry: OpenEntry,
    entry_bytes_max: usize,
}

/// A complete run.
struct WrittenRun {
    bytes: Range<u64>,
    entry_bytes_max: usize,
    marks: Vec<Mark>,
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
    /// Writes to a new temporary file. The block is smaller, and there are fewer marks, if `bytes_max` is small. There are enough
    /// marks to divide a run into ranges of `range_bytes`, if memory allows it.
    pub fn new(folder: &TempFolder, bytes_max: usize, range_bytes: usize) -> Result<Self, Error> {
        let block_bytes = block_bytes(bytes_max);
        Ok(Self {
            file: folder.file()?,
            block: Vec::with_capacity(block_bytes),
            block_bytes,
            runs: Vec::new(),
            run_start: 0,
            marks: Vec::new(),
            marks_count: 0,
            marks_max: (bytes_max / 16 / size_of::<Mark>()).max(16),
            mark_distance: (range_bytes as u64 / 512).min(MARK_DISTANCE_BYTES),
            entry: OpenEntry::default(),
            entry_bytes_max: 0,
        })
    }

    /// Writes a group whose key is in one piece.
    pub fn put(&mut self, key: &[u8], totals: impl Iterator<Item = Sum>) -> Result<(), Error> {
        self.begin(key.len(), totals)?;
        self.mark(key);
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
        put_head(key_bytes, totals, &mut self.block);
        let entry_bytes = self.block.len() - start + key_bytes + CHECKSUM_BYTES;
        self.entry_bytes_max = self.entry_bytes_max.max(entry_bytes);
        Ok(())
    }

    /// Marks the entry if it is far enough from the last one that is marked. If there are too many marks, every second one of
    /// each run is removed.
    fn mark(&mut self, key: &[u8]) {
        let offset = self.entry.offset;
        if self.marks.last().is_some_and(|last| offset - last.offset < self.mark_distance) {
            return;
        }
        self.marks.push(Mark { start: KeyStart::of(key), offset });
        self.marks_count += 1;
        if self.marks_count > self.marks_max {
            self.mark_distance = self.mark_distance.saturating_mul(2);
            for marks in self.runs.iter_mut().map(|run| &mut run.marks).chain([&mut self.marks]) {
                let mut index = 0;
                marks.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                marks.shrink_to_fit();
            }
            self.marks_count = self.marks.len() + self.runs.iter().map(|run| run.marks.len()).sum::<usize>();
        }
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
            let offset = EntryOffset::of(ordered);
            self.put(table.key(offset), table.totals(offset))?;
        }
        self.end_run()
    }

    /// Ends a run: it has all that was written since the last one ended.
    pub fn end_run(&mut self) -> Result<(), Error> {
        self.flush()?;
        let end = self.file.bytes();
        if end > self.run_start {
            let (bytes, marks) = (self.run_start..end, std::mem::take(&mut self.marks));
            self.runs.push(WrittenRun { bytes, entry_bytes_max: self.entry_bytes_max, marks });
        }
        (self.run_start, self.entry_bytes_max) = (end, 0);
        Ok(())
    }

    /// Returns all complete runs.
    pub fn finish(self) -> Vec<Run> {
        let file = Arc::new(self.file);
        let run = |WrittenRun { bytes, entry_bytes_max, marks }| Run {
            file: Arc::clone(&file),
            bytes,
            entry_bytes_max,
            marks: marks.into(),
        };
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

/// Reads the entries of a run that are in a range of keys, one at a time.
pub(super) struct RunReader {
    /// Keeps the file open: it has no name and is removed when it is closed.
    file: Reader,
    unread: Range<u64>,
    range: KeyRange,
    /// The offset from which on an entry may be after the range.
    until_from: u64,
    block: Vec<u8>,
    block_bytes: usize,
    entry_bytes_max: usize,
    /// Where in the block the next entry begins.
    next: usize,
    key: Range<usize>,
    pub(super) totals: Vec<Sum>,
}

impl RunReader {
    pub(super) fn new(run: &Run, range: KeyRange, block_bytes: usize, sums_count: usize) -> Self {
        let slice = range.slice(&run.bytes, &run.marks);
        Self {
            file: run.file.reader(),
            unread: slice.bytes,
            range,
            until_from: slice.until_from,
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

    /// Reads the next entry. Returns whether there is one in the range.
    pub(super) fn advance(&mut self) -> Result<bool, Error> {
        while self.read_next()? {
            if self.range.is_after(self.key()) {
                continue;
            }
            self.range.from = None; // the entries are in order
            return Ok(self.offset() <= self.until_from || !self.range.is_before(self.key()));
        }
        Ok(false)
    }

    fn read_next(&mut self) -> Result<bool, Error> {
        self.fill(HEAD_BYTES_MAX)?;
        if self.next == self.block.len() {
            return Ok(false);
        }
        let mut rest = &self.block[self.next..];
        let unread = rest.len();
        let key_bytes = take_head(&mut rest, &mut self.totals).ok_or_else(damaged)?;
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
        let mut writer = RunWriter::new(&folder, 0, 0).expect("a file");
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
        let mut reader = RunReader::new(run, KeyRange::default(), block_bytes(0), 1);
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
