//! A verified view of a column chunk for the Parquet library.

use std::{io::Read, ops::Range};

use bytes::{Buf, Bytes};
use crossbeam_utils::atomic::AtomicCell;
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};

use crate::{
    engine::storage::{
        checksums::{CHUNK_BLOCK_BYTES, checksum},
        reader::Reader,
    },
    error::Error,
    limits::{KIB, MIB},
};

/// A column chunk up to this size is read at once.
pub(super) const CHUNK_BYTES_MAX: usize = MIB;
/// The page headers that our writer writes are shorter.
const PAGE_HEADER_BYTES_MAX: usize = 64 * KIB;

/// One column chunk of a file. Through it, only bytes of this chunk can be read, and they are verified first.
pub(super) struct Window {
    pub(super) file: Reader,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The checksums of the chunk's blocks.
    pub(super) checksums: Vec<u64>,
    /// The whole chunk, verified, if it is small.
    pub(super) loaded: Option<Bytes>,
    /// The index and bytes of the block that was read last: a page's header and its content are often in one block.
    pub(super) cached: AtomicCell<Option<Box<CachedBlock>>>,
}

/// A verified block of the chunk.
pub(super) struct CachedBlock {
    index: usize,
    bytes: Bytes,
}

/// A cell of a larger value would have a spin lock.
const _: () = assert!(AtomicCell::<Option<Box<CachedBlock>>>::is_lock_free());

impl Window {
    /// A chunk of a file, of which nothing is read yet.
    pub(super) fn new(file: &Reader, bytes: Range<u64>, checksums: Vec<u64>) -> Self {
        let Range { start, end } = bytes;
        Self { file: file.clone(), start, end, checksums, loaded: None, cached: AtomicCell::new(None) }
    }

    /// Reads a block of the chunk. The buffer has the block's length.
    pub(super) fn read_block(&self, index: usize, block: &mut [u8]) -> Result<(), Error> {
        let start = self.start + (index * CHUNK_BLOCK_BYTES) as u64;
        self.file.fill_unverified(start, block)?;
        if self.checksums.get(index) != Some(&checksum(block)) {
            let end = start + block.len() as u64;
            return Err(self.file.damaged(&format!("the bytes from {start} to {end} are not what was written")));
        }
        Ok(())
    }

    /// A block, from the cache if it was read last.
    fn block(&self, index: usize) -> Result<Bytes, Error> {
        let block = match self.cached.take() {
            Some(cached) if cached.index == index => cached,
            _ => {
                let left = (self.end - self.start).saturating_sub((index * CHUNK_BLOCK_BYTES) as u64);
                let mut block = vec![0; CHUNK_BLOCK_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))];
                self.read_block(index, &mut block)?;
                Box::new(CachedBlock { index, bytes: block.into() })
            }
        };
        let bytes = block.bytes.clone();
        self.cached.store(Some(block));
        Ok(bytes)
    }

    /// Verified bytes from an offset in the chunk to the end of their block.
    fn rest_of_block(&self, at: usize) -> Result<Bytes, ParquetError> {
        let block = self.block(at / CHUNK_BLOCK_BYTES).map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(block.slice(block.len().min(at % CHUNK_BLOCK_BYTES)..))
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.end
    }
}

impl ChunkReader for Window {
    type T = Box<dyn Read>;

    /// Only page headers are read this way.
    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        if start < self.start || start > self.end {
            return Err(ParquetError::EOF(format!("offset {start} is outside of the column chunk")));
        }
        let at = usize::try_from(start - self.start)?;
        if let Some(bytes) = &self.loaded {
            return Ok(Box::new(bytes.slice(at..).reader()));
        }
        let first = self.rest_of_block(at)?;
        // A header may continue in the next block.
        let next_at = at + first.len();
        let has_next = (next_at as u64) < self.end - self.start && first.len() < PAGE_HEADER_BYTES_MAX;
        let next = if has_next { self.rest_of_block(next_at)? } else { Bytes::new() };
        Ok(Box::new(first.chain(next).reader()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start < self.start || start.saturating_add(length as u64) > self.end {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are outside of the column chunk")));
        }
        let at = usize::try_from(start - self.start)?;
        if let Some(bytes) = &self.loaded {
            return Ok(bytes.slice(at..at + length));
        }
        // There is no block after the chunk's end.
        let first = if length > 0 { self.rest_of_block(at)? } else { Bytes::new() };
        if first.len() >= length {
            return Ok(first.slice(..length)); // most pages are within a block, and need no copy
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&first);
        while bytes.len() < length {
            let rest = self.rest_of_block(at + bytes.len())?;
            bytes.extend_from_slice(&rest[..rest.len().min(length - bytes.len())]);
        }
        Ok(bytes.into())
    }
}
