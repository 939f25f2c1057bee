//! The list of block checksums of a file (`N.sums`), while it is written.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use super::{
    checksums::{BLOCK_BYTES, BlockHasher, PageWriter},
    data_folder::open_or_create,
    unremoved::DraftPath,
};
use crate::engine::state::lock_check::assert_unlocked;

/// Computes the checksums of a draft's blocks and writes them to a file. At most one page is in memory.
pub(super) struct BlockList {
    pub(super) seed: u64,
    hasher: BlockHasher,
    pages: PageWriter,
    pub(super) path: DraftPath,
    /// Created with the first page. Shared with readers.
    pub(super) file: Option<Arc<File>>,
    /// Whether the last page has been written.
    is_complete: bool,
}

impl BlockList {
    pub(super) fn new(path: DraftPath) -> Self {
        let seed = fastrand::u64(..);
        let (hasher, pages) = (BlockHasher::new(BLOCK_BYTES), PageWriter::new(seed));
        Self { seed, hasher, pages, path, file: None, is_complete: false }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_complete {
            return Err(io::Error::other("a file was written to after its block list was completed"));
        }
        let Self { hasher, pages, path, file, .. } = self;
        let mut written = Ok(());
        hasher.update(bytes, |sum| {
            if let Some(page) = pages.push(sum)
                && written.is_ok()
            {
                written = open_or_create(file, path.as_ref()).and_then(|file| file.write_all(&page));
            }
        });
        written
    }

    pub(super) fn push(&mut self, sum: u64) -> io::Result<()> {
        self.pages.push(sum).map_or(Ok(()), |page| open_or_create(&mut self.file, self.path.as_ref())?.write_all(&page))
    }

    /// Ends the last block and writes the last page.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.is_complete {
            return Ok(());
        }
        if let Some(sum) = self.hasher.end() {
            self.push(sum)?;
        }
        if let Some(page) = self.pages.end() {
            open_or_create(&mut self.file, self.path.as_ref())?.write_all(&page)?;
        }
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for BlockList {
    fn drop(&mut self) {
        if self.file.is_some() {
            assert_unlocked();
            self.path.remove();
        }
    }
}
