//! Temporary files for the pages of a Parquet file that is being written. Each page is stored with its checksum.

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

/// A file in `tmp/`, which is removed when it is dropped.
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

    /// Stores bytes with their checksum, and returns their offset.
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

    /// Reads and verifies the bytes that were stored at `offset`.
    ///
    /// Errors: they are damaged (`InvalidData`); they cannot be read.
    pub fn get(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        assert_unlocked();
        let (mut buffer, mut sum) = (vec![0; bytes], [0; 8]);
        self.file()?.read_exact_at(&mut buffer, offset)?;
        self.file()?.read_exact_at(&mut sum, offset + bytes as u64)?;
        if checksum(&buffer) != u64::from_le_bytes(sum) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a page in a temporary file is damaged"));
        }
        Ok(buffer)
    }

    pub(super) fn file(&self) -> io::Result<&File> {
        self.draft.file.as_deref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Discards the contents, so that the space is reused.
    pub fn clear(&self) {
        self.end.store(0, Ordering::Relaxed);
    }

    /// As [`Draft::failure`].
    pub fn failure(&self) -> Arc<OnceLock<io::ErrorKind>> {
        self.draft.failure()
    }
}
