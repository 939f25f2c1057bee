//! Space in `tmp/` for pages of a Parquet file that is being written, each kept with its checksum.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{checksums::checksum, draft::Draft};
use crate::engine::state::lock_check::assert_unlocked;

/// Room on disk for what does not fit in memory for a while. Removed when dropped.
pub struct SpillFile {
    draft: Draft,
    end: AtomicU64,
    spilled_bytes: Arc<AtomicU64>,
}

impl SpillFile {
    pub(super) fn new(mut draft: Draft, spilled_bytes: Arc<AtomicU64>) -> io::Result<Self> {
        draft.flushed_file()?;
        Ok(Self { draft, end: AtomicU64::new(0), spilled_bytes })
    }

    /// Keeps bytes, with their checksum, and says where.
    pub fn put(&self, bytes: &[u8]) -> io::Result<u64> {
        assert_unlocked();
        let (len, sum) = (bytes.len() as u64, checksum(bytes).to_le_bytes());
        let offset = self.end.fetch_add(len + sum.len() as u64, Ordering::Relaxed);
        let file = self.file()?;
        let written = file.write_all_at(bytes, offset).and_then(|()| file.write_all_at(&sum, offset + len));
        written.inspect_err(|error| {
            self.draft.failure.get_or_init(|| error.kind());
        })?;
        self.spilled_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(offset)
    }

    /// What was kept there.
    ///
    /// Errors: it is not what was written, of kind `InvalidData`; it cannot be read.
    pub fn get(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        assert_unlocked();
        let (mut buffer, mut sum) = (vec![0; bytes], [0; 8]);
        self.file()?.read_exact_at(&mut buffer, offset)?;
        self.file()?.read_exact_at(&mut sum, offset + bytes as u64)?;
        if checksum(&buffer) != u64::from_le_bytes(sum) {
            let what = "a page in a scratch file is not what was written";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(buffer)
    }

    /// It was made with the scratch.
    pub(super) fn file(&self) -> io::Result<&File> {
        self.draft.file.as_deref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Nothing in it is needed any more: its room is used again.
    pub fn clear(&self) {
        self.end.store(0, Ordering::Relaxed);
    }

    /// Where it will say what a write failed with.
    pub fn failure(&self) -> Arc<OnceLock<io::ErrorKind>> {
        self.draft.failure()
    }
}
