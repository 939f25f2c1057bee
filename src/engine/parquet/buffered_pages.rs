//! Pages of column chunks that are not in the file yet: in memory, or in spill_file space on disk.

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

/// Where the pages of a row group wait for its end.
#[derive(Clone)]
pub(super) enum PagesIn {
    Memory,
    SpillFile(Arc<SpillFile>),
}

/// Makes a [`ChunkPages`] for each column chunk.
pub(super) struct ChunkPagesFactory {
    pub(super) pages: PagesIn,
    pub(super) sums: mpsc::Sender<Vec<u64>>,
}

/// The pages of one column chunk, and the checksums of its blocks, which are made as its pages are taken: in the order of
/// the file. In a spill_file file, a key is the page's offset and, in its low 24 bits, its length, so that the pages of a row
/// group of any size take no memory.
struct ChunkPages {
    pages: PagesIn,
    in_memory: Vec<Bytes>,
    bytes: usize,
    hasher: BlockHasher,
    sums: Vec<u64>,
    /// Where the sums go once all of its pages are taken. The writer drops a chunk before it begins with the next one.
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
            sums: Vec::new(),
            finished: self.sums.clone(),
        }))
    }
}

impl PageStore for ChunkPages {
    fn put(&mut self, page: Bytes) -> Result<PageKey, ParquetError> {
        match &self.pages {
            PagesIn::Memory => {
                self.bytes += page.len();
                self.in_memory.push(page);
                Ok(PageKey::new(self.in_memory.len() as u64 - 1))
            }
            PagesIn::SpillFile(spill_file) => {
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
            PagesIn::Memory => {
                let page = self.in_memory.get_mut(usize::try_from(key.get())?).map(mem::take);
                page.ok_or_else(|| ParquetError::General(format!("there is no page {}", key.get())))?
            }
            PagesIn::SpillFile(spill_file) => {
                let (offset, bytes) = (key.get() >> 24, key.get() & 0xff_ffff);
                spill_file.get(offset, usize::try_from(bytes)?)?.into()
            }
        };
        self.bytes -= page.len().min(self.bytes);
        self.hasher.update(&page, |sum| self.sums.push(sum));
        Ok(page)
    }

    fn memory_size(&self) -> usize {
        self.bytes
    }
}

impl Drop for ChunkPages {
    fn drop(&mut self) {
        self.sums.extend(self.hasher.end());
        // Where nobody takes them, the file was given up.
        let _given_up = self.finished.send(mem::take(&mut self.sums));
    }
}
