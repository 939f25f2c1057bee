//! Reading stored files: whole blocks, each compared with its checksum before anyone sees it.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use super::{
    checksums::{BLOCK_BYTES, PAGE_BYTES_MAX, PAGE_SUMS_MAX, checksum, read_page},
    data_folder,
    names::FileName,
};
use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// A file open for reading at any place.
#[derive(Clone)]
pub struct Reader {
    pub(super) file: Arc<File>,
    pub(super) bytes: u64,
    pub(super) name: FileName,
    pub(super) check: Check,
}

/// What the blocks of a file are compared with before anyone sees them.
#[derive(Clone)]
pub(super) enum Check {
    /// Nothing: the file is not ours, nobody but this process has it, or its reader verifies it.
    Nothing,
    /// The checksum of its one block.
    OneBlock(u64),
    /// A list of checksums in a file, and its seed.
    List(Arc<File>, u64),
}

/// A file's bytes in order, a block at a time, each verified before anyone sees it.
pub struct Blocks {
    file: Reader,
    block: Vec<u8>,
    /// Which block that is.
    index: Option<u64>,
    /// A page of checksums, and which.
    page: (Option<u64>, Vec<u64>),
}

impl Reader {
    /// Opens a file that a user named and that does not change any more, wherever its path leads.
    pub fn open(path: &Path) -> Result<Self, Error> {
        assert_unlocked();
        let name = FileName::Other(path.display().to_string().into());
        let what = || Error::io(path.display().to_string());
        let file = File::open(path).map_err(what())?;
        let bytes = file.metadata().map_err(what())?.len();
        Ok(Self { file: Arc::new(file), bytes, name, check: Check::Nothing })
    }

    /// Opens a file of the data folder that errors are to call `name`.
    pub(super) fn open_as(path: &Path, name: FileName) -> Result<Self, Error> {
        let (file, bytes) = data_folder::open_with_size(path).map_err(Error::io(name.to_string()))?;
        Ok(Self { file: Arc::new(file), bytes, name, check: Check::Nothing })
    }

    /// The file's size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The error that the file is not what was written.
    pub fn damaged(&self, what: &str) -> Error {
        self.name.damaged(what)
    }

    /// The file's blocks, each verified before it is handed out.
    pub fn blocks(&self) -> Blocks {
        Blocks { file: self.clone(), block: Vec::new(), index: None, page: (None, Vec::new()) }
    }

    /// What the file has from `offset` on, verified, at most so many bytes, and less only at its end.
    pub fn block(&self, offset: u64, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = bytes_max.min(left);
        if matches!(self.check, Check::Nothing) {
            return self.read_unverified(offset, wanted);
        }
        let (mut found, mut blocks) = (Vec::with_capacity(wanted), self.blocks());
        while found.len() < wanted {
            let bytes = blocks.from(offset + found.len() as u64)?;
            found.extend_from_slice(&bytes[..bytes.len().min(wanted - found.len())]);
        }
        Ok(found)
    }

    /// So many bytes from `offset` on, for who verifies them before anything else is done with them.
    ///
    /// Errors: the file ends before; it cannot be read.
    pub fn read_unverified(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let mut buffer = vec![0; bytes];
        self.fill_unverified(offset, &mut buffer)?;
        Ok(buffer)
    }

    /// The same into a buffer, which is filled.
    pub fn fill_unverified(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let read = self.read_at(offset, buffer).map_err(Error::io(self.name.to_string()))?;
        if read < buffer.len() {
            return Err(self.damaged(&format!("it ends at byte {}", offset + read as u64)));
        }
        Ok(())
    }

    /// Some of the checksums that the file's list has, from one place on.
    pub fn block_checksums(&self, first: u64, count: usize) -> Result<Vec<u64>, Error> {
        let (mut sums, mut blocks) = (Vec::with_capacity(count.min(PAGE_SUMS_MAX)), self.blocks());
        for index in (first..).take(count) {
            sums.push(blocks.listed_sum(index)?);
        }
        Ok(sums)
    }

    /// Fills as much of `buffer` as the file has from `offset` on, and says how much that is. Nothing is verified.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(test)]
        reads::note(offset, buffer.len());
        read_at(&self.file, offset, buffer)
    }
}

pub(super) fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    assert_unlocked();
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
impl Reader {
    /// A file of the first part that cannot be read: nothing is at the start of a process's memory, which is an I/O error.
    #[allow(clippy::expect_used, reason = "a panic fails the test")]
    pub(crate) fn unreadable(format: crate::model::format::Format, bytes: u64) -> Self {
        let file = Arc::new(File::open("/proc/self/mem").expect("this process may read its memory"));
        Self { file, bytes, name: FileName::Part(crate::model::part::PartId::FIRST, format), check: Check::OneBlock(0) }
    }
}

impl Blocks {
    /// The verified bytes from `offset` to the end of the block that holds it; none at the end of the file.
    pub fn from(&mut self, offset: u64) -> Result<&[u8], Error> {
        if offset >= self.file.bytes {
            return Ok(&[]);
        }
        let index = offset / BLOCK_BYTES as u64;
        if self.index != Some(index) {
            self.load(index)?;
        }
        let start = usize::try_from(offset % BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        Ok(&self.block[start..])
    }

    /// The error that the file is not what was written.
    pub fn damaged(&self, what: &str) -> Error {
        self.file.damaged(what)
    }

    fn load(&mut self, index: u64) -> Result<(), Error> {
        self.index = None;
        let start = index * BLOCK_BYTES as u64;
        let left = usize::try_from(self.file.bytes - start).unwrap_or(usize::MAX);
        self.block.resize(BLOCK_BYTES.min(left), 0);
        self.file.fill_unverified(start, &mut self.block)?;
        let expected = match self.file.check {
            Check::Nothing => None,
            Check::OneBlock(sum) => Some(sum),
            Check::List(..) => Some(self.listed_sum(index)?),
        };
        if expected.is_some_and(|sum| sum != checksum(&self.block)) {
            let end = start + self.block.len() as u64;
            return Err(self.file.damaged(&format!("the bytes from {start} to {end} are not what was written")));
        }
        self.index = Some(index);
        Ok(())
    }

    /// The checksum of a block, as the file's list has it.
    fn listed_sum(&mut self, index: u64) -> Result<u64, Error> {
        let Check::List(list, seed) = &self.file.check else {
            return Err(Error::Internal(format!("{}: it has no list of checksums", self.file.name)));
        };
        let page_index = index / PAGE_SUMS_MAX as u64;
        if self.page.0 != Some(page_index) {
            let mut page = vec![0; PAGE_BYTES_MAX];
            let read = read_at(list, page_index * PAGE_BYTES_MAX as u64, &mut page);
            let read = read.map_err(Error::io(format!("{}, its list of checksums", self.file.name)))?;
            let sums = read_page(*seed, page_index, &page[..read]);
            let damaged = || self.file.damaged("its list of checksums is not what was written");
            self.page = (Some(page_index), sums.ok_or_else(damaged)?);
        }
        let at = usize::try_from(index % PAGE_SUMS_MAX as u64).unwrap_or(usize::MAX);
        let sum = self.page.1.get(at).copied();
        sum.ok_or_else(|| self.file.damaged("its list of checksums is too short"))
    }
}

/// The byte ranges that this thread asked for, for tests that count them.
#[cfg(test)]
pub(crate) mod reads {
    use std::{cell::RefCell, ops::Range};

    thread_local! {
        static READS: RefCell<Vec<Range<u64>>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(offset: u64, bytes: usize) {
        READS.with_borrow_mut(|reads| reads.push(offset..offset + bytes as u64));
    }

    /// All since the last call.
    pub(crate) fn take() -> Vec<Range<u64>> {
        READS.take()
    }
}
