//! Bytes on disk: the data folder, drafts, the one way to publish a part, recovery, reading. No CSV, no Parquet, no lock.
//!
//! ```text
//! DATA/lock              held by the server that runs on DATA; its content is the holder's process id
//! DATA/tmp/              drafts of 64 KiB and more, records on their way, and files without a name: gone after any start
//! DATA/parts/N.csv       as it was sent
//! DATA/parts/N.parquet   the same rows
//! DATA/parts/N.sums      checksums of the CSV's blocks, if it has more than one (`checksums.rs`)
//! DATA/parts/N.json      the receipt; its rename to this name is the commit
//! DATA/jobs/ID.json      a job's record; its rename to this name is the commit
//! DATA/jobs/ID.input     what it works on
//! DATA/jobs/ID.result    what came of it
//! DATA/jobs/ID.input-sums, DATA/jobs/ID.result-sums    checksums of their blocks, as N.sums
//! DATA/quarantine/       parts that were found damaged at start; N.forgotten: an operator has accepted the loss of part N
//! ```
//!
//! Invariant: a receipt in `parts/` has its files beside it, complete, and a job's record those it speaks of. What was stored
//! is verified against its checksum before anyone sees it: [`Reader`] hands out blocks of CSV and of jobs' files only so,
//! and records are read only so; Parquet is verified in `parquet.rs`, by chunks. Every function asserts that the lock of
//! `state.rs` is not held.

pub mod block_list;
pub mod checksums;
pub mod data_folder;
pub mod draft;
pub mod host;
pub mod job_files;
pub mod part_files;
pub mod quarantine;
pub mod reader;
pub mod receipts;
pub mod scratch;
pub mod staged;
pub mod sync;
pub mod temp_file;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use self::{
    draft::Draft,
    scratch::Scratch,
    sync::{reports_failed_syncfs, sync_folder},
    temp_file::TempFolder,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::{durability::Durability, file_mode::FileMode},
};

/// The data folder. At most one server has it open.
pub struct Store {
    root: PathBuf,
    durability: Durability,
    drafts: AtomicU64,
    /// Bytes that ever went to scratch files.
    spilled_bytes: Arc<AtomicU64>,
    /// Open from the start, so that no failed write on its file system goes unnoticed.
    folder: File,
    /// Whether one `syncfs` may stand for the syncs of many files.
    syncs_at_once: bool,
    _lock: File,
}

impl Store {
    /// Opens the folder, makes what is missing in it and takes its lock.
    ///
    /// Errors: another server holds it, or it cannot be written.
    pub fn open(root: &Path, durability: Durability) -> Result<Self, Error> {
        assert_unlocked();
        let is_new = !root.exists();
        data_folder::prepare(root)?;
        if durability == Durability::Fsync {
            // Or the folders' own names could be lost with all that is in them.
            let what = || Error::io(format!("data folder {}", root.display()));
            sync_folder(root).map_err(what())?;
            if is_new {
                let parent = root.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
                sync_folder(parent).map_err(what())?;
            }
        }
        let what = format!("data folder {}: its lock", root.display());
        let mut lock = data_folder::open_lock(root);
        let lock = lock.as_mut().map_err(|error| Error::DataFolder(format!("{what}: {error}")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                lock.take(32).read_to_string(&mut holder).map_err(Error::io(what))?;
                let (root, holder) = (root.display(), holder.trim());
                return Err(Error::DataFolder(format!("data folder {root} is in use by process {holder}")));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(what)(error)),
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(Error::io(what.clone()))?;
        let lock = lock.try_clone().map_err(Error::io(what))?;
        let folder = File::open(root).map_err(Error::io(format!("data folder {}", root.display())))?;
        // Those of the others are checked when they are read, which is before anything is changed, too.
        for folder in ["tmp", "quarantine"] {
            data_folder::entries(root, folder)?;
        }
        Ok(Self {
            root: root.to_owned(),
            durability,
            drafts: AtomicU64::new(0),
            spilled_bytes: Arc::default(),
            folder,
            syncs_at_once: reports_failed_syncfs(&rustix::system::uname().release().to_string_lossy()),
            _lock: lock,
        })
    }

    /// A new empty file whose blocks are verified when it is read.
    pub fn listed_draft(&self) -> Result<Draft, Error> {
        let mut draft = self.draft()?;
        draft.is_listed = true;
        Ok(draft)
    }

    /// A new empty file.
    pub fn draft(&self) -> Result<Draft, Error> {
        assert_unlocked();
        let path = self.root.join("tmp").join(self.drafts.fetch_add(1, Ordering::Relaxed).to_string());
        let (checksum, failure) = (Box::default(), Arc::default());
        Ok(Draft {
            path,
            is_listed: false,
            blocks: None,
            tail: None,
            file: None,
            held: Vec::new(),
            bytes: 0,
            will_be_synced: self.is_synced(),
            reserved_bytes: 0,
            synced: false,
            checksum,
            failure,
        })
    }

    /// Empty room in `tmp/`.
    pub fn scratch(&self) -> Result<Scratch, Error> {
        let mut draft = self.draft()?;
        draft.on_disk().map_err(Error::io("a new file in the data folder"))?;
        Ok(Scratch { draft, end: AtomicU64::new(0), spilled_bytes: Arc::clone(&self.spilled_bytes) })
    }

    /// Bytes that went to scratch files since the start.
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes.load(Ordering::Relaxed)
    }

    /// `tmp/`, for files without a name.
    pub fn temp_folder(&self) -> TempFolder {
        TempFolder(self.root.join("tmp"))
    }

    /// Gives folders and files that are there the mode that new ones have.
    pub fn apply_file_mode(&self, mode: FileMode) -> Result<(), Error> {
        assert_unlocked();
        data_folder::apply_mode(&self.root, mode)
    }

    /// Whether files are to be synced before they count.
    pub fn is_synced(&self) -> bool {
        self.durability == Durability::Fsync
    }

    /// What cannot be removed now is no reason to fail: it is found and removed at start.
    fn remove_if_there(&self, path: &Path) {
        assert_unlocked();
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %path.display(), %error, "a file that is not wanted any more is left");
            }
            _ => {}
        }
    }

    /// The one way a record comes to be on disk: written aside, synced, renamed into place, its folder synced.
    fn publish_record(&self, path: &Path, text: &[u8]) -> Result<(), Error> {
        let what = || Error::io(format!("record {}", name_of(path)));
        let mut draft = self.draft()?;
        draft.write_all(text).and_then(|()| draft.whole().map(|_file| ())).map_err(what())?;
        if self.is_synced() {
            draft.sync().map_err(what())?;
        }
        draft.rename(path)?;
        if self.durability == Durability::Fsync {
            let folder = path.parent().unwrap_or(path);
            sync_folder(folder).map_err(what())?;
        }
        Ok(())
    }

    fn entries(&self, folder: &str) -> Result<Vec<PathBuf>, Error> {
        data_folder::entries(&self.root, folder)
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        assert_unlocked();
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.map_err(Error::io(format!("leftover {}", path.display())))
    }
}

/// The process that holds a data folder; none if no process does.
///
/// Errors: the lock cannot be read; its holder has not written its number yet.
pub fn lock_holder(root: &Path) -> Result<Option<u64>, Error> {
    let what = format!("data folder {}: its lock", root.display());
    let lock = match data_folder::open(&root.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock.map_err(Error::io(what.clone()))?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.take(32).read_to_string(&mut holder).map_err(Error::io(what))?;
            let in_use = |error| Error::DataFolder(format!("data folder {} is in use: {error}", root.display()));
            holder.trim().parse().map(Some).map_err(in_use)
        }
        Err(TryLockError::Error(error)) => Err(Error::io(what)(error)),
    }
}

/// What clients may be told of a path: where the data folder is on this machine is not for them.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod order_tests;
