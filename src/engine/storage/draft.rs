//! A file that is being written, until it is published under its final name or dropped.

use std::{
    fs::{self, File},
    hash::Hasher,
    io::{self, Write},
    path::Path,
    sync::{Arc, OnceLock},
};

use twox_hash::XxHash3_64;

use super::{
    block_list::BlockList,
    checksums::BLOCK_BYTES,
    data_folder::{self, open_or_create},
    names::{FileName, name_of},
    reader::{Check, Reader},
    sync::{rename, sync_file},
    unremoved::DraftPath,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    limits::DRAFT_BUFFER_BYTES,
    model::{checksum::to_hex, part::FileInfo},
};

/// A file that is being written. A small one stays in memory until it is published; a larger one is in `tmp/`, and is
/// removed when it is dropped without having been published.
pub struct Draft {
    pub(super) path: DraftPath,
    /// `None` while everything is in `buffer`. Shared with readers and syncs, so that the file is open once.
    pub(super) file: Option<Arc<File>>,
    /// Bytes that are not in `file` yet.
    pub(super) buffer: Vec<u8>,
    pub(super) bytes: u64,
    /// Whether everything written so far is synced.
    pub(super) synced: bool,
    checksum: Box<XxHash3_64>,
    /// Whether each block gets its own checksum.
    pub(super) has_block_checksums: bool,
    /// The blocks' checksums, once there is more than one block.
    blocks: Option<Box<BlockList>>,
    /// The offset from [`Self::begin_tail`], and the checksum of the bytes from there on.
    tail: Option<(u64, Box<XxHash3_64>)>,
    pub(super) failure: Arc<OnceLock<io::ErrorKind>>,
}

/// The file of a [`Draft`], to be synced while more is written to it.
pub struct SyncHandle {
    pub(super) file: Arc<File>,
    /// The file's name in errors.
    what: &'static str,
}

/// A checksum as receipts write it.
pub(crate) fn checksum_text(hash: &XxHash3_64) -> String {
    to_hex(hash.finish())
}

impl Draft {
    /// An empty file, which is created at `path` once it does not fit in memory.
    pub(super) fn new(path: DraftPath) -> Self {
        Self {
            path,
            file: None,
            buffer: Vec::new(),
            bytes: 0,
            synced: false,
            checksum: Box::default(),
            has_block_checksums: false,
            blocks: None,
            tail: None,
            failure: Arc::default(),
        }
    }

    /// The file's size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Size and checksum of what was written.
    pub fn info(&self) -> FileInfo {
        FileInfo { bytes: self.bytes, xxh3: checksum_text(&self.checksum) }
    }

    /// What readers verify the blocks against: the file's checksum if it is one block, otherwise the seed of its block list.
    pub fn check(&self) -> u64 {
        self.sums_seed().unwrap_or_else(|| self.checksum.finish())
    }

    /// The seed of the block list; `None` if the file has at most one block.
    pub fn sums_seed(&self) -> Option<u64> {
        self.blocks.as_ref().map(|blocks| blocks.seed)
    }

    /// Starts a separate checksum of all bytes from `offset` on, none of which has been written yet.
    pub fn begin_tail(&mut self, offset: u64) {
        self.tail = Some((offset, Box::default()));
    }

    /// The checksum of the bytes from the offset of [`Self::begin_tail`] on.
    pub fn tail_checksum(&self) -> u64 {
        self.tail.as_ref().map_or(0, |(_, hash)| hash.finish())
    }

    fn add_to_checksums(&mut self, bytes: &[u8]) -> io::Result<()> {
        let first_block = usize::try_from((BLOCK_BYTES as u64).saturating_sub(self.bytes)).unwrap_or(0);
        let (first, rest) = bytes.split_at(bytes.len().min(first_block));
        self.checksum.write(first);
        if self.has_block_checksums && !rest.is_empty() {
            if self.blocks.is_none() {
                let mut blocks = BlockList::new(self.path.of_block_list());
                // So far the file's checksum is that of the first block.
                blocks.push(self.checksum.finish())?;
                self.blocks = Some(Box::new(blocks));
            }
            self.blocks.iter_mut().try_for_each(|blocks| blocks.update(rest))?;
        }
        self.checksum.write(rest);
        if let Some((start, hash)) = &mut self.tail {
            let before = usize::try_from(start.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
            hash.write(&bytes[bytes.len().min(before)..]);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Will be set to the kind of error of a failed write, for callers that write through a library which loses it.
    pub fn failure(&self) -> Arc<OnceLock<io::ErrorKind>> {
        Arc::clone(&self.failure)
    }

    /// A reader of what has been written so far.
    pub fn reader(&mut self) -> Result<Reader, Error> {
        const WHAT: &str = "a new file in the data folder";
        let file = Arc::clone(self.complete_file().map_err(Error::io(WHAT))?);
        let check = match &self.blocks {
            Some(blocks) => {
                let list = blocks.file.as_ref().ok_or_else(|| Error::Internal("a list has no page".to_owned()))?;
                Check::BlockList(Arc::clone(list), blocks.seed)
            }
            None if self.has_block_checksums => Check::OneBlock(self.checksum.finish()),
            None => Check::Unverified,
        };
        Ok(Reader { file, start: 0, bytes: self.bytes, name: FileName::Other(WHAT.into()), check })
    }

    /// Waits until everything written so far is on disk.
    pub fn sync(&mut self) -> io::Result<()> {
        sync_file(self.complete_file()?)?;
        self.blocks.iter().filter_map(|blocks| blocks.file.as_deref()).try_for_each(sync_file)?;
        self.synced = true;
        Ok(())
    }

    /// The file, to be synced while more is written to it; `None` while everything is in memory.
    pub fn sync_handle(&self, what: &'static str) -> Option<SyncHandle> {
        let file = Arc::clone(self.file.as_ref()?);
        Some(SyncHandle { file, what })
    }

    /// Writes the buffer to the file and frees its memory.
    pub fn release_buffer(&mut self) -> io::Result<()> {
        if self.buffer.capacity() > 0 {
            self.flushed_file()?;
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// The file in `tmp/`, after the buffer was written to it.
    pub(super) fn flushed_file(&mut self) -> io::Result<&mut Arc<File>> {
        let file = open_or_create(&mut self.file, self.path.as_ref())?;
        if !self.buffer.is_empty() {
            file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(file)
    }

    /// Appends to the buffer, whose capacity never exceeds [`DRAFT_BUFFER_BYTES`]. The caller checks that `bytes` fit.
    fn append_to_buffer(&mut self, bytes: &[u8]) {
        let buffered_bytes = self.buffer.len() + bytes.len();
        if buffered_bytes > self.buffer.capacity() {
            self.buffer.reserve_exact(buffered_bytes.next_power_of_two() - self.buffer.len());
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Writes everything to the file in `tmp/`, and completes the block list.
    pub(super) fn complete_file(&mut self) -> io::Result<&mut Arc<File>> {
        self.blocks.iter_mut().try_for_each(|blocks| blocks.end())?;
        self.flushed_file()
    }

    /// Completes the file in `tmp/`, and syncs it if `sync` is set.
    pub(super) fn finish(&mut self, sync: bool) -> io::Result<()> {
        if sync { self.sync() } else { self.complete_file().map(|_file| ()) }
    }

    /// Renames the file to `to` and its block list to `sums_to`. A file that is only in memory is written to `to` directly,
    /// and removed again if that fails.
    pub(super) fn publish(mut self, to: &Path, sums_to: &Path) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io(name_of(to));
        if self.file.is_some() || self.blocks.is_some() {
            self.complete_file().map_err(what())?;
            let Some(blocks) = &mut self.blocks else { return self.rename(to) };
            rename(blocks.path.as_ref(), sums_to).map_err(Error::io(format!("rename to {}", name_of(sums_to))))?;
            blocks.file = None; // published: do not remove it on drop
            return self.rename(to).inspect_err(|_| remove_incomplete(sums_to));
        }
        let mut file = data_folder::create(to).map_err(what())?;
        let Err(error) = file.write_all(&self.buffer) else { return Ok(()) };
        remove_incomplete(to);
        Err(what()(error))
    }

    pub(super) fn rename(&mut self, to: &Path) -> Result<(), Error> {
        assert_unlocked();
        rename(self.path.as_ref(), to).map_err(Error::io(format!("rename to {}", name_of(to))))?;
        self.file = None; // published: do not remove it on drop
        Ok(())
    }
}

fn remove_incomplete(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::error!(path = %path.display(), %error, "an incomplete file could not be removed");
    }
}

/// A draft that is complete, synced and closed: it takes neither memory nor a file descriptor. It is removed when it is dropped
/// before it was renamed.
pub struct ClosedDraft {
    path: Option<DraftPath>,
}

impl Draft {
    /// Syncs and closes a draft that has no block list.
    ///
    /// Errors, after which the draft is removed: the disk is full; the sync fails.
    pub(super) fn close(mut self) -> io::Result<ClosedDraft> {
        self.sync()?;
        self.file = None; // from now on it is removed by the closed draft
        Ok(ClosedDraft { path: Some(self.path.handed_over()) })
    }
}

impl ClosedDraft {
    pub(super) fn rename(mut self, to: &Path) -> Result<(), Error> {
        assert_unlocked();
        let Some(path) = &self.path else { return Ok(()) };
        rename(path.as_ref(), to).map_err(Error::io(format!("rename to {}", name_of(to))))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for ClosedDraft {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            path.remove();
        }
    }
}

impl SyncHandle {
    /// Waits until the file's data is on disk. After an error the draft must be dropped, because a later sync does not
    /// report the failed writes again.
    pub fn sync(self) -> Result<(), Error> {
        assert_unlocked();
        self.file.sync_data().map_err(Error::io(self.what))
    }
}

#[cfg(test)]
impl SyncHandle {
    /// A file that cannot be synced, because it is opened with `O_PATH`.
    #[allow(clippy::expect_used, reason = "a panic fails the test")]
    pub(crate) fn unsyncable(path: &Path) -> Self {
        let file = rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
        Self { file: Arc::new(File::from(file.expect("opened"))), what: "a folder" }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert_unlocked();
        if let Some(&failed) = self.failure.get() {
            return Err(failed.into()); // it is unknown how much of the buffer is on disk
        }
        let room = DRAFT_BUFFER_BYTES - self.buffer.len();
        let written = if bytes.len() < room {
            self.append_to_buffer(bytes);
            Ok(bytes.len())
        } else if self.buffer.is_empty() {
            self.flushed_file().and_then(|file| file.write(bytes))
        } else {
            self.append_to_buffer(&bytes[..room]);
            self.flushed_file().map(|_file| room)
        };
        if let Err(error) = &written
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.failure.get_or_init(|| error.kind());
        }
        let written = written?;
        self.synced = false;
        self.add_to_checksums(&bytes[..written]).inspect_err(|error| {
            self.failure.get_or_init(|| error.kind());
        })?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // the buffer is written when it is full or the file is completed
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.path.remove();
        }
    }
}
