//! Temporary files without a name, which the kernel removes when they are closed.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    names::FileName,
    reader::{Check, Reader},
};
use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// A folder for such files.
#[derive(Clone, Debug)]
pub struct TempFolder(pub(super) PathBuf);

/// A file without a name. It disappears when it is dropped or the process ends.
pub struct TempFile {
    file: Arc<File>,
    bytes: u64,
}

impl TempFolder {
    /// A folder that exists.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Creates an empty file.
    pub fn file(&self) -> Result<TempFile, Error> {
        assert_unlocked();
        let file = tempfile::tempfile_in(&self.0).map_err(Error::io("a temporary file"))?;
        Ok(TempFile { file: Arc::new(file), bytes: 0 })
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
        Reader { file: Arc::clone(&self.file), bytes: self.bytes, name, check: Check::Unverified }
    }
}
