//! Reading stored files: whole blocks, each compared with its checksum before it is returned.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use super::{
    checksums::{BLOCK_BYTES, PAGE_BYTES_MAX, PAGE_SUMS_MAX, checksum, read_page},
    data_folder,
    names::FileName,
};
use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// A file that is open for reading at any offset.
#[derive(Clone)]
pub struct Reader {
    pub(super) file: Arc<File>,
    /// Where it begins in the file on disk: a packed part is a byte range of its segment's file.
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) name: FileName,
    pub(super) check: Check,
}

/// How the blocks of a file are verified.
#[derive(Clone)]
pub(super) enum Check {
    /// Not here: the file is a user's, only this process can access it, or the caller verifies it.
    Unverified,
    /// By the checksum of the only block.
    OneBlock(u64),
    /// By the checksums in this file (`N.sums`), which has this seed.
    BlockList(Arc<File>, u64),
}

/// The blocks of a file, each verified when it is loaded.
pub struct Blocks {
    file: Reader,
    block: Vec<u8>,
    /// The index of `block`.
    index: Option<u64>,
    /// The page of checksums that was read last, and its index.
    page: (Option<u64>, Vec<u64>),
}

impl Reader {
    /// Opens a user's file, following symbolic links. The file must not change while it is read.
    ///
    /// Errors: it cannot be read; it is not a regular file. A pipe would block here, and could be read only once.
    pub fn open(path: &Path) -> Result<Self, Error> {
        assert_unlocked();
        let what = || Error::io("cannot read"); // callers name the file
        if !fs::metadata(path).map_err(what())?.is_file() {
            return Err(what()(io::Error::other("not a regular file")));
        }
        let file = File::open(path).map_err(what())?;
        let bytes = file.metadata().map_err(what())?.len();
        let name = FileName::Other(path.display().to_string().into());
        Ok(Self { file: Arc::new(file), start: 0, bytes, name, check: Check::Unverified })
    }

    /// Opens a file of the data folder, which is called `name` in errors.
    pub(super) fn open_as(path: &Path, name: FileName) -> Result<Self, Error> {
        Self::of(data_folder::open_with_size(path), name)
    }

    /// A file of the data folder that was opened, with its size.
    pub(super) fn of(opened: io::Result<(File, u64)>, name: FileName) -> Result<Self, Error> {
        let (file, bytes) = opened.map_err(Error::io(name.to_string()))?;
        Ok(Self { file: Arc::new(file), start: 0, bytes, name, check: Check::Unverified })
    }

    /// The file's size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The error for a damaged file.
    pub fn damaged(&self, what: &str) -> Error {
        self.name.damaged(what)
    }

    /// The file's blocks.
    pub fn blocks(&self) -> Blocks {
        Blocks { file: self.clone(), block: Vec::new(), index: None, page: (None, Vec::new()) }
    }

    /// Reads and verifies `bytes_max` bytes from `offset` on, or fewer at the end of the file.
    pub fn block(&self, offset: u64, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = bytes_max.min(left);
        if matches!(self.check, Check::Unverified) {
            return self.read_unverified(offset, wanted);
        }
        self.blocks().read(offset, wanted)
    }

    /// Reads `bytes` bytes from `offset` on. The caller has to verify them.
    ///
    /// Errors: the file ends before that; it cannot be read.
    pub fn read_unverified(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let mut buffer = vec![0; bytes];
        self.fill_unverified(offset, &mut buffer)?;
        Ok(buffer)
    }

    /// As [`Self::read_unverified`], into a buffer, which is filled.
    pub fn fill_unverified(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let read = self.read_at(offset, buffer).map_err(Error::io(self.name.to_string()))?;
        if read < buffer.len() {
            return Err(self.damaged(&format!("it ends at byte {}", offset + read as u64)));
        }
        Ok(())
    }

    /// Reads `count` checksums of the file's block list, beginning with index `first`.
    pub fn block_checksums(&self, first: u64, count: usize) -> Result<Vec<u64>, Error> {
        let (mut sums, mut blocks) = (Vec::with_capacity(count.min(PAGE_SUMS_MAX)), self.blocks());
        for index in (first..).take(count) {
            sums.push(blocks.listed_sum(index)?);
        }
        Ok(sums)
    }

    /// Reads from `offset` on until `buffer` is full or the file ends. Returns the number of bytes. Nothing is verified.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(test)]
        reads::note(offset, buffer.len());
        read_at(&self.file, self.start.saturating_add(offset), buffer)
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
    /// A file of the first part that cannot be read: nothing is mapped at the start of `/proc/self/mem`.
    #[allow(clippy::expect_used, reason = "a panic fails the test")]
    pub(crate) fn unreadable(format: crate::model::format::Format, bytes: u64) -> Self {
        let file = Arc::new(File::open("/proc/self/mem").expect("this process may read its memory"));
        Self {
            file,
            start: 0,
            bytes,
            name: FileName::Part(crate::model::part::PartId::FIRST, format),
            check: Check::OneBlock(0),
        }
    }
}

impl Blocks {
    /// The verified bytes from `offset` to the end of its block; empty at the end of the file.
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

    /// Verified bytes from `offset` on: `bytes_max`, or fewer at the end of the file. Reading on from there does not read the
    /// last block again.
    pub fn read(&mut self, offset: u64, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let left = usize::try_from(self.file.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = bytes_max.min(left);
        let mut found = Vec::with_capacity(wanted);
        while found.len() < wanted {
            let bytes = self.from(offset + found.len() as u64)?;
            found.extend_from_slice(&bytes[..bytes.len().min(wanted - found.len())]);
        }
        Ok(found)
    }

    /// The error for a damaged file.
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
            Check::Unverified => None,
            Check::OneBlock(sum) => Some(sum),
            Check::BlockList(..) => Some(self.listed_sum(index)?),
        };
        if expected.is_some_and(|sum| sum != checksum(&self.block)) {
            let end = start + self.block.len() as u64;
            return Err(self.file.damaged(&format!("the bytes from {start} to {end} are not what was written")));
        }
        self.index = Some(index);
        Ok(())
    }

    /// The checksum of a block, from the file's block list.
    fn listed_sum(&mut self, index: u64) -> Result<u64, Error> {
        let Check::BlockList(list, seed) = &self.file.check else {
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

/// The byte ranges that this thread has read, for tests.
#[cfg(test)]
pub(crate) mod reads {
    use std::{cell::RefCell, ops::Range};

    thread_local! {
        static READS: RefCell<Vec<Range<u64>>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(offset: u64, bytes: usize) {
        READS.with_borrow_mut(|reads| reads.push(offset..offset + bytes as u64));
    }

    /// The ranges since the last call.
    pub(crate) fn take() -> Vec<Range<u64>> {
        READS.take()
    }
}
