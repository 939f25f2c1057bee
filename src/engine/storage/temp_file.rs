//! Temporary files without a name, which the kernel removes when they are closed.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    names::FileName,
    reader::{Check, Reader},
};
use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// A folder for such files.
#[derive(Clone, Debug)]
pub struct TempFolder {
    path: PathBuf,
    /// Bytes written to all its files since the start.
    written_bytes: Arc<AtomicU64>,
}

/// A file without a name. It disappears when it is dropped or the process ends.
pub struct TempFile {
    file: Arc<File>,
    bytes: u64,
    written_bytes: Arc<AtomicU64>,
}

impl TempFolder {
    /// A folder that exists.
    pub fn new(path: &Path) -> Self {
        Self::counted(path.to_owned(), Arc::default())
    }

    pub(super) fn counted(path: PathBuf, written_bytes: Arc<AtomicU64>) -> Self {
        Self { path, written_bytes }
    }

    /// Creates an empty file.
    pub fn file(&self) -> Result<TempFile, Error> {
        assert_unlocked();
        let file = tempfile::tempfile_in(&self.path).map_err(Error::io("a temporary file"))?;
        Ok(TempFile { file: Arc::new(file), bytes: 0, written_bytes: Arc::clone(&self.written_bytes) })
    }
}

impl TempFile {
    /// The file's size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        assert_unlocked();
        self.file.write_all_at(bytes, self.bytes).map_err(Error::io("a temporary file"))?;
        self.bytes += bytes.len() as u64;
        self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Damages what was written.
    #[cfg(test)]
    pub(crate) fn overwrite(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// A reader of what has been written so far.
    pub fn reader(&self) -> Reader {
        let name = FileName::Other("a temporary file".into());
        Reader { file: Arc::clone(&self.file), start: 0, bytes: self.bytes, name, check: Check::Unverified }
    }
}
