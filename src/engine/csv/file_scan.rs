//! Scanning a stored file, block by block, from some row on.

use super::{
    rows::{Resume, Rows, Wanted},
    scanner::Scanner,
};
use crate::{
    engine::storage::reader::{Blocks, Reader},
    error::Error,
    limits::{CsvLimits, READ_BLOCK_BYTES},
};

/// How far a step of a scan came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// As far as it was to go; there is more.
    Pause,
    /// The first row that begins where the scan is to stop, or after.
    Stop,
    /// A row that is longer than the scan has room for.
    LongRow,
    /// The file's end.
    End,
}

/// A scan of a file that can be put down after any slice.
pub struct FileScan<R> {
    /// Who receives the rows.
    pub rows: R,
    file_bytes: u64,
    blocks: Blocks,
    scanner: Scanner,
    stop: u64,
    long_row_bytes: usize,
}

impl<R: Rows<Error: From<Error>>> FileScan<R> {
    /// A scan from where `resume` says.
    pub fn new(file: Reader, limits: CsvLimits, wanted: Wanted, resume: Resume, rows: R) -> Self {
        let scanner = Scanner::new(limits, wanted, resume);
        let (file_bytes, blocks) = (file.bytes(), file.blocks());
        Self { rows, file_bytes, blocks, scanner, stop: u64::MAX, long_row_bytes: usize::MAX }
    }

    /// Stops at a row of more than so many bytes, as soon as it has seen so many and a block of it.
    pub fn stop_at_long_row(mut self, bytes: usize) -> Self {
        self.long_row_bytes = bytes;
        self
    }

    /// Makes room for a row of so many bytes, in its two buffers, which then never grow by doubling. Pages that are not
    /// written cost nothing.
    pub fn with_room_for_row(mut self, bytes: usize) -> Self {
        self.scanner.carry.reserve_exact(bytes + READ_BLOCK_BYTES);
        self.scanner.unescaped.reserve_exact(bytes + READ_BLOCK_BYTES);
        self
    }

    /// Leaves the rows alone that begin at this offset or after it.
    pub fn stop_at(mut self, offset: u64) -> Self {
        self.stop = offset;
        self
    }

    /// Reads on for about `bytes_max` bytes and says whether that was the end of the file.
    pub fn step(&mut self, bytes_max: usize) -> Result<bool, R::Error> {
        Ok(self.step_to_stop(bytes_max)? == Reached::End)
    }

    /// Reads on for about `bytes_max` bytes, not beyond the row that holds the byte before the stop.
    pub fn step_to_stop(&mut self, bytes_max: usize) -> Result<Reached, R::Error> {
        let mut bytes = 0;
        while bytes < bytes_max {
            let before_stop = usize::try_from(self.stop.saturating_sub(self.scanner.offset)).unwrap_or(usize::MAX);
            if before_stop == 0 && self.scanner.carry.is_empty() {
                return Ok(Reached::Stop);
            }
            if self.scanner.carry.len() > self.long_row_bytes {
                return Ok(Reached::LongRow);
            }
            let block = self.blocks.from(self.scanner.offset)?;
            let wanted = if before_stop == 0 { block.len() } else { block.len().min(before_stop) };
            let block = &block[..wanted.min(bytes_max - bytes)];
            if before_stop > 0 {
                self.scanner.feed(block, &mut self.rows)?;
            } else if self.scanner.feed_row_end(block, &mut self.rows)?.is_some() {
                return Ok(Reached::Stop);
            }
            bytes += block.len();
            if self.scanner.offset >= self.file_bytes {
                self.scanner.finish(&mut self.rows)?;
                return Ok(Reached::End);
            }
        }
        Ok(Reached::Pause)
    }

    /// The names of the columns; empty before the header.
    pub fn names(&self) -> &[String] {
        &self.scanner.names
    }

    /// Where the next row begins, as far as it is known.
    pub fn offset(&self) -> u64 {
        self.scanner.offset - self.scanner.carry.len() as u64
    }

    /// Data rows so far.
    pub fn rows_count(&self) -> u64 {
        self.scanner.rows
    }

    /// Bytes of the longest row so far.
    pub fn longest_row_bytes(&self) -> usize {
        self.scanner.longest_row_bytes
    }

    /// How to go on later with what follows the last complete row.
    pub fn into_resume(self) -> (Resume, R) {
        (self.scanner.into_resume(), self.rows)
    }
}
