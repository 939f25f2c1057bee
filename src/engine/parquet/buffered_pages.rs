//! Buffers the pages of column chunks until their row group is written: in memory, or in a spill file.

use std::{
    fmt, mem,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use parquet::{
    arrow::arrow_writer::{PageKey, PageStore, PageStoreArgs, PageStoreFactory},
    errors::ParquetError,
};

use crate::engine::storage::{
    checksums::{BlockHasher, CHUNK_BLOCK_BYTES},
    spill_file::SpillFile,
};

/// Where pages are buffered.
#[derive(Clone)]
pub(super) enum PageBuffer {
    Memory,
    SpillFile(Arc<SpillFile>),
}

/// Makes a [`ChunkPages`] for each column chunk.
pub(super) struct ChunkPagesFactory {
    pub(super) pages: PageBuffer,
    pub(super) checksums: mpsc::Sender<Vec<u64>>,
}

/// The pages of one column chunk, and the checksums of its blocks, which are computed as the writer takes the pages in the
/// order of the file. In a spill file, a page's key is its offset and, in the low 24 bits, its length, so no list of pages
/// is kept in memory.
struct ChunkPages {
    pages: PageBuffer,
    in_memory: Vec<Bytes>,
    bytes: usize,
    hasher: BlockHasher,
    checksums: Vec<u64>,
    /// Receives the checksums when the chunk is dropped. The writer drops a chunk before it begins the next one.
    finished: mpsc::Sender<Vec<u64>>,
}

impl fmt::Debug for ChunkPagesFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkPagesFactory")
    }
}

impl PageStoreFactory for ChunkPagesFactory {
    fn create(&self, _column: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>, ParquetError> {
        Ok(Box::new(ChunkPages {
            pages: self.pages.clone(),
            in_memory: Vec::new(),
            bytes: 0,
            hasher: BlockHasher::new(CHUNK_BLOCK_BYTES),
            checksums: Vec::new(),
            finished: self.checksums.clone(),
        }))
    }
}

impl PageStore for ChunkPages {
    fn put(&mut self, page: Bytes) -> Result<PageKey, ParquetError> {
        match &self.pages {
            PageBuffer::Memory => {
                self.bytes += page.len();
                self.in_memory.push(page);
                Ok(PageKey::new(self.in_memory.len() as u64 - 1))
            }
            PageBuffer::SpillFile(spill_file) => {
                let offset = spill_file.put(&page)?;
                if page.len() >> 24 != 0 || offset >> 40 != 0 {
                    return Err(ParquetError::General(format!("a page of {} bytes at {offset}", page.len())));
                }
                Ok(PageKey::new(offset << 24 | page.len() as u64))
            }
        }
    }

    fn take(&mut self, key: PageKey) -> Result<Bytes, ParquetError> {
        let page = match &self.pages {
            PageBuffer::Memory => {
                let page = self.in_memory.get_mut(usize::try_from(key.get())?).map(mem::take);
                page.ok_or_else(|| ParquetError::General(format!("there is no page {}", key.get())))?
            }
            PageBuffer::SpillFile(spill_file) => {
                let (offset, bytes) = (key.get() >> 24, key.get() & 0xff_ffff);
                spill_file.get(offset, usize::try_from(bytes)?)?.into()
            }
        };
        self.bytes -= page.len().min(self.bytes);
        self.hasher.update(&page, |sum| self.checksums.push(sum));
        Ok(page)
    }

    fn memory_size(&self) -> usize {
        self.bytes
    }
}

impl Drop for ChunkPages {
    fn drop(&mut self) {
        self.checksums.extend(self.hasher.end());
        // The receiver is gone if writing the file has failed.
        let _receiver_gone = self.finished.send(mem::take(&mut self.checksums));
    }
}
