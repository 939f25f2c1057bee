//! Scans a stored file from some row on, in steps, so that each step can be a task of a worker.

use super::{
    rows::{Resume, Rows, Wanted},
    scanner::Scanner,
};
use crate::{
    engine::storage::reader::{Blocks, Reader},
    error::Error,
    limits::{CsvLimits, READ_BLOCK_BYTES},
};

/// Where a step of a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It has read as many bytes as it may; there are more.
    Pause,
    /// At the first row that begins at or after the offset at which the scan stops.
    Stop,
    /// In a row that is too long for this scan.
    LongRow,
    /// At the end of the file.
    End,
}

/// A scan of a file that can be continued step by step.
pub struct FileScan<R> {
    /// Receives the rows.
    pub rows: R,
    file_bytes: u64,
    blocks: Blocks,
    scanner: Scanner,
    stop: u64,
    long_row_bytes: usize,
}

impl<R: Rows<Error: From<Error>>> FileScan<R> {
    /// Begins or continues at `resume`.
    pub fn new(file: Reader, limits: CsvLimits, wanted: Wanted, resume: Resume, rows: R) -> Self {
        let scanner = Scanner::new(limits, wanted, resume);
        let (file_bytes, blocks) = (file.bytes(), file.blocks());
        Self { rows, file_bytes, blocks, scanner, stop: u64::MAX, long_row_bytes: usize::MAX }
    }

    /// Stops in a row of more than `bytes` bytes, after at most one block more.
    pub fn stop_at_long_row(mut self, bytes: usize) -> Self {
        self.long_row_bytes = bytes;
        self
    }

    /// Reserves room for a row of `bytes` bytes in the two row buffers, so that they do not grow by doubling. Memory pages
    /// that are never written cost nothing.
    pub fn with_room_for_row(mut self, bytes: usize) -> Self {
        self.scanner.carry.reserve_exact(bytes + READ_BLOCK_BYTES);
        self.scanner.unescaped.reserve_exact(bytes + READ_BLOCK_BYTES);
        self
    }

    /// Stops before the first row that begins at this offset or after it.
    pub fn stop_at(mut self, offset: u64) -> Self {
        self.stop = offset;
        self
    }

    /// Reads about `bytes_max` bytes more, and returns whether the file has ended.
    pub fn step(&mut self, bytes_max: usize) -> Result<bool, R::Error> {
        Ok(self.step_to_stop(bytes_max)? == Reached::End)
    }

    /// Reads about `bytes_max` bytes more, but not beyond the last row that begins before the stop.
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
            self.rows.bytes(block);
            if before_stop > 0 {
                self.scanner.feed(block, &mut self.rows)?;
            } else if self.scanner.feed_row_end(block, &mut self.rows)?.is_some() {
                return Ok(Reached::Stop);
            }
            bytes += block.len();
            if self.scanner.offset >= self.file_bytes {
                self.rows.bytes(b"\n");
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

    /// The offset of the first row that was not delivered.
    pub fn offset(&self) -> u64 {
        self.scanner.offset - self.scanner.carry.len() as u64
    }

    /// Data rows delivered.
    pub fn rows_count(&self) -> u64 {
        self.scanner.rows
    }

    /// Bytes of the longest row delivered.
    pub fn longest_row_bytes(&self) -> usize {
        self.scanner.longest_row_bytes
    }

    /// The position after the last complete row, and the receiver of the rows.
    pub fn into_resume(self) -> (Resume, R) {
        (self.scanner.into_resume(), self.rows)
    }
}
