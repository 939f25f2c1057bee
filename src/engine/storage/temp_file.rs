//! Files without a name, which the kernel removes when they are closed.

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

/// A folder for files that nobody but their maker sees.
#[derive(Clone, Debug)]
pub struct TempFolder(pub(super) PathBuf);

/// A file without a name: it is gone when it is dropped, and when the process is.
pub struct TempFile {
    file: Arc<File>,
    bytes: u64,
}

impl TempFolder {
    /// A folder that is there.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// A new empty file in it.
    pub fn file(&self) -> Result<TempFile, Error> {
        assert_unlocked();
        let file = tempfile::tempfile_in(&self.0);
        let file = file.map_err(Error::io("a temporary file"))?;
        Ok(TempFile { file: Arc::new(file), bytes: 0 })
    }
}

impl TempFile {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds bytes at its end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        assert_unlocked();
        self.file.write_all_at(bytes, self.bytes).map_err(Error::io("a temporary file"))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// What was written so far.
    pub fn reader(&self) -> Reader {
        let name = FileName::Other("a temporary file".into());
        Reader { file: Arc::clone(&self.file), bytes: self.bytes, name, check: Check::Nothing }
    }
}
