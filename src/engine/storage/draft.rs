//! A file that is being written, in `tmp/`, until it is published under its last name or dropped.

use std::{
    fs::{self, File},
    hash::Hasher,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustix::fs::FallocateFlags;
use twox_hash::XxHash3_64;

use super::{
    block_list::BlockList,
    checksums::BLOCK_BYTES,
    data_folder::{self, open_or_create},
    names::{FileName, name_of},
    reader::{Check, Reader},
    sync::{rename, sync_file},
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    limits::{DRAFT_BUFFER_BYTES, RESERVE_FREE_BYTES_MIN, RESERVED_BYTES},
    model::{checksum::to_hex, part::FileInfo},
};

/// A file that is being written. What is small waits in memory and never gets another name than its last; what is not
/// lies in `tmp/`. It is removed when dropped, unless it was published.
pub struct Draft {
    pub(super) path: PathBuf,
    /// None as long as all of it is held. Who reads or syncs it shares it, so that it is open once.
    pub(super) file: Option<Arc<File>>,
    /// What is not written yet.
    pub(super) buffer: Vec<u8>,
    pub(super) bytes: u64,
    will_be_synced: bool,
    /// Where the room on disk ends that was asked for; `u64::MAX` if there is none to be had.
    preallocated_bytes: u64,
    /// Whether all of it is safe.
    pub(super) synced: bool,
    checksum: Box<XxHash3_64>,
    /// Whether its blocks get checksums of their own.
    pub(super) has_block_checksums: bool,
    /// Their checksums, once there is more than one.
    blocks: Option<Box<BlockList>>,
    /// Where its last bytes begin that get a checksum of their own, and that.
    tail: Option<(u64, Box<XxHash3_64>)>,
    pub(super) failure: Arc<OnceLock<io::ErrorKind>>,
}

/// What was on disk of a [`Draft`] at some moment, to be synced while more is written.
pub struct SyncHandle {
    pub(super) file: Arc<File>,
    /// What errors call it.
    what: &'static str,
}

/// A checksum as receipts have it.
pub(crate) fn checksum_text(hash: &XxHash3_64) -> String {
    to_hex(hash.finish())
}

impl Draft {
    /// An empty file, which gets this path once it does not fit in memory.
    pub(super) fn new(path: PathBuf, will_be_synced: bool) -> Self {
        Self {
            path,
            file: None,
            buffer: Vec::new(),
            bytes: 0,
            will_be_synced,
            preallocated_bytes: 0,
            synced: false,
            checksum: Box::default(),
            has_block_checksums: false,
            blocks: None,
            tail: None,
            failure: Arc::default(),
        }
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Size and checksum of what was written.
    pub fn info(&self) -> FileInfo {
        FileInfo { bytes: self.bytes, xxh3: checksum_text(&self.checksum) }
    }

    /// What a reader of it verifies its blocks against: its checksum if it is one block, otherwise the seed of its list.
    pub fn check(&self) -> u64 {
        self.sums_seed().unwrap_or_else(|| self.checksum.finish())
    }

    /// The seed of the list of its blocks' checksums; none if it has no more than one.
    pub fn sums_seed(&self) -> Option<u64> {
        self.blocks.as_ref().map(|blocks| blocks.seed)
    }

    /// From this offset on, which has not been written yet, a checksum of its own is made.
    pub fn begin_tail(&mut self, offset: u64) {
        self.tail = Some((offset, Box::default()));
    }

    /// The checksum of what was written since [`Self::begin_tail`].
    pub fn tail_checksum(&self) -> u64 {
        self.tail.as_ref().map_or(0, |(_, hash)| hash.finish())
    }

    /// Adds what was written to the checksums.
    fn add_to_checksums(&mut self, bytes: &[u8]) -> io::Result<()> {
        let first_block = usize::try_from((BLOCK_BYTES as u64).saturating_sub(self.bytes)).unwrap_or(0);
        let (first, rest) = bytes.split_at(bytes.len().min(first_block));
        self.checksum.write(first);
        if self.has_block_checksums && !rest.is_empty() {
            if self.blocks.is_none() {
                let mut blocks = BlockList::new(self.path.with_extension("sums"));
                // Until now the checksum was that of the first block.
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

    /// Where it will say what a write failed with, for who writes through a library that loses it.
    pub fn failure(&self) -> Arc<OnceLock<io::ErrorKind>> {
        Arc::clone(&self.failure)
    }

    /// What was written so far, open for reading.
    pub fn reader(&mut self) -> Result<Reader, Error> {
        const WHAT: &str = "a new file in the data folder";
        let file = Arc::clone(self.complete_file().map_err(Error::io(WHAT))?);
        let check = match &self.blocks {
            Some(blocks) => {
                let list = blocks.file.as_ref().ok_or_else(|| Error::Internal("a list has no page".to_owned()))?;
                Check::List(Arc::clone(list), blocks.seed)
            }
            None if self.has_block_checksums => Check::OneBlock(self.checksum.finish()),
            None => Check::Nothing,
        };
        Ok(Reader { file, bytes: self.bytes, name: FileName::Other(WHAT.into()), check })
    }

    /// Waits until what was written is safe.
    pub fn sync(&mut self) -> io::Result<()> {
        sync_file(self.complete_file()?)?;
        self.blocks.iter().filter_map(|blocks| blocks.file.as_deref()).try_for_each(sync_file)?;
        self.synced = true;
        Ok(())
    }

    /// What is on disk so far, to be synced while more is written. None if nothing is.
    pub fn sync_handle(&self, what: &'static str) -> Option<SyncHandle> {
        let file = Arc::clone(self.file.as_ref()?);
        Some(SyncHandle { file, what })
    }

    /// Writes what is held, whose memory goes to others.
    pub fn release_buffer(&mut self) -> io::Result<()> {
        if self.buffer.capacity() > 0 {
            self.flushed_file()?;
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// The file in `tmp/` with all that was held.
    pub(super) fn flushed_file(&mut self) -> io::Result<&mut Arc<File>> {
        let file = open_or_create(&mut self.file, &self.path)?;
        if !self.buffer.is_empty() {
            file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(file)
    }

    /// Keeps bytes for which there is room in memory, without ever taking more than [`DRAFT_BUFFER_BYTES`].
    fn append_to_buffer(&mut self, bytes: &[u8]) {
        let held_bytes = self.buffer.len() + bytes.len();
        if held_bytes > self.buffer.capacity() {
            self.buffer.reserve_exact(held_bytes.next_power_of_two() - self.buffer.len());
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Asks for room on disk for what is written next, and more, where it will be synced and there is plenty: a file system
    /// then has less to do for each write, and puts them side by side. Only speed depends on it.
    fn preallocate(&mut self, bytes: usize) {
        let end = self.bytes + bytes as u64;
        if !self.will_be_synced || end <= self.preallocated_bytes {
            return;
        }
        let (start, room) = (self.preallocated_bytes, end.next_multiple_of(RESERVED_BYTES));
        let reserved = open_or_create(&mut self.file, &self.path).and_then(|file| {
            let has_plenty = free_bytes(file)? >= RESERVE_FREE_BYTES_MIN;
            Ok(has_plenty && {
                rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, start, room - start)?;
                true
            })
        });
        if let Err(error) = &reserved {
            tracing::debug!(%error, "no room on disk is asked for ahead");
        }
        self.preallocated_bytes = if matches!(reserved, Ok(true)) { room } else { u64::MAX };
    }

    /// The file in `tmp/` with all of it, and no room beyond, and the list of its blocks' checksums.
    pub(super) fn complete_file(&mut self) -> io::Result<&mut Arc<File>> {
        self.blocks.iter_mut().try_for_each(|blocks| blocks.end())?;
        let (bytes, preallocated_bytes) = (self.bytes, std::mem::take(&mut self.preallocated_bytes));
        let file = self.flushed_file()?;
        if preallocated_bytes > bytes {
            file.set_len(bytes)?;
        }
        Ok(file)
    }

    /// Gives it its last name, and another to the list of its blocks' checksums. What was only held in memory is written
    /// there at once; after an error it is not there.
    pub(super) fn publish(mut self, to: &Path, sums_to: &Path) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io(name_of(to));
        if self.file.is_some() || self.blocks.is_some() {
            self.complete_file().map_err(what())?;
            if let Some(blocks) = &mut self.blocks {
                rename(&blocks.path, sums_to).map_err(Error::io(format!("rename to {}", name_of(sums_to))))?;
                blocks.file = None; // published: not ours to remove
            }
            return self.rename(to);
        }
        let mut file = data_folder::create(to).map_err(what())?;
        let Err(error) = file.write_all(&self.buffer) else { return Ok(()) };
        if let Err(error) = fs::remove_file(to) {
            tracing::error!(path = %to.display(), %error, "a file that is not complete is left");
        }
        Err(what()(error))
    }

    pub(super) fn rename(&mut self, to: &Path) -> Result<(), Error> {
        assert_unlocked();
        rename(&self.path, to).map_err(Error::io(format!("rename to {}", name_of(to))))?;
        self.file = None; // published: not ours to remove
        Ok(())
    }
}

/// What a file's file system has free for us.
pub(super) fn free_bytes(file: &File) -> io::Result<u64> {
    let free = rustix::fs::fstatvfs(file)?;
    Ok(free.f_bavail.saturating_mul(free.f_frsize))
}

impl SyncHandle {
    /// Waits until it is safe. An error must end the file: no later sync through its draft tells of what this one could
    /// not write.
    pub fn sync(self) -> Result<(), Error> {
        assert_unlocked();
        self.file.sync_data().map_err(Error::io(self.what))
    }
}

#[cfg(test)]
impl SyncHandle {
    /// A file that cannot be synced: it is open for its path alone.
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
            return Err(failed.into()); // what is held may be on disk or not
        }
        let room = DRAFT_BUFFER_BYTES - self.buffer.len();
        let written = if bytes.len() < room {
            self.append_to_buffer(bytes);
            Ok(bytes.len())
        } else if self.buffer.is_empty() {
            self.preallocate(bytes.len());
            self.flushed_file().and_then(|file| file.write(bytes))
        } else {
            self.preallocate(room);
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
        Ok(()) // what is held is written when it gets its name
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.file.is_some() {
            assert_unlocked();
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::error!(path = %self.path.display(), %error, "a draft is left until the next start");
            }
        }
    }
}
