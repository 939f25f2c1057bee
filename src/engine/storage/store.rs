//! The open data folder: it creates drafts and temporary files, publishes records, and knows the paths of all files. The
//! files of parts, jobs and the quarantine are handled in the modules of those names.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    data_folder,
    draft::Draft,
    lock,
    names::name_of,
    spill_file::SpillFile,
    sync::{reports_failed_syncfs, sync_file_system, sync_folder},
    temp_file::TempFolder,
    unremoved::{DraftPath, Queue},
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::{durability::Durability, file_mode::FileMode, folder_id::folder_id, packed::SegmentId, part::PartId},
};

/// The data folder. At most one server has it open; any number of others may read it.
pub struct Store {
    pub(super) root: PathBuf,
    pub(super) durability: Durability,
    drafts: AtomicU64,
    /// Bytes written to spill files and files without a name since the start.
    spilled_bytes: Arc<AtomicU64>,
    /// The greatest number of the purged parts whose files were deleted since the start.
    pub(super) last_purged: AtomicU64,
    /// Open from the start, so that `syncfs` reports every failed write on its file system.
    pub(super) folder: File,
    /// Whether a batch is synced by one `syncfs` instead of file by file. Not after it has failed: a failed write is reported once,
    /// and it may have been to a file of a later batch.
    pub(super) uses_syncfs: AtomicBool,
    /// What could not be removed yet.
    pub(super) unremoved: Arc<Queue>,
    /// What tells the folder from others while this server uses it; empty if it is only read.
    id: Box<str>,
    /// `None` if the folder is only read.
    _lock: Option<File>,
}

impl Store {
    /// Opens the folder, creates what is missing in it and takes its lock.
    ///
    /// Errors: another server holds it, or it cannot be written.
    pub fn open(root: &Path, durability: Durability) -> Result<Self, Error> {
        assert_unlocked();
        let is_new = !root.exists();
        data_folder::prepare(root)?;
        if durability == Durability::Fsync {
            // Otherwise a power failure could lose the new folders.
            let what = || Error::io(format!("data folder {}", root.display()));
            sync_folder(root).map_err(what())?;
            if is_new {
                let parent = root.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
                sync_folder(parent).map_err(what())?;
            }
        }
        let lock = lock::take(root)?;
        let about_lock = lock.metadata().map_err(Error::io(format!("data folder {}", root.display())))?;
        let folder = File::open(root).map_err(Error::io(format!("data folder {}", root.display())))?;
        // The types of their entries are checked now. The other folders are read later, also before anything is changed.
        for folder in ["tmp", "quarantine", "removed"] {
            data_folder::entries(root, folder)?;
        }
        Ok(Self {
            root: root.to_owned(),
            durability,
            drafts: AtomicU64::new(0),
            spilled_bytes: Arc::default(),
            last_purged: AtomicU64::new(0),
            folder,
            uses_syncfs: reports_failed_syncfs(&rustix::system::uname().release().to_string_lossy()).into(),
            unremoved: Queue::new(),
            id: folder_id(about_lock.ino(), about_lock.mtime(), about_lock.mtime_nsec()).into(),
            _lock: Some(lock),
        })
    }

    /// Opens the data folder of a server that may run on another machine, to read its parts. The lock is not taken, and nothing
    /// may be written with such a store.
    ///
    /// Errors: it is not a data folder, or cannot be read.
    pub(crate) fn open_for_reading(root: &Path) -> Result<Self, Error> {
        assert_unlocked();
        let what = || Error::io(format!("data folder {}", root.display()));
        fs::read_dir(root.join("parts")).map_err(what())?;
        Ok(Self {
            root: root.to_owned(),
            durability: Durability::None,
            drafts: AtomicU64::new(0),
            spilled_bytes: Arc::default(),
            last_purged: AtomicU64::new(0),
            folder: File::open(root).map_err(what())?,
            uses_syncfs: false.into(),
            unremoved: Queue::new(),
            id: Box::default(),
            _lock: None,
        })
    }

    /// What tells the data folder from others: see [`folder_id`].
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Whether a batch is synced by one `syncfs`.
    pub(super) fn uses_syncfs(&self) -> bool {
        self.uses_syncfs.load(Ordering::Relaxed)
    }

    /// Waits until everything that was written to the file system is on disk.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        sync_file_system(&self.folder).inspect_err(|_| self.uses_syncfs.store(false, Ordering::Relaxed))
    }

    /// A new empty file whose blocks are verified when they are read.
    pub fn draft_with_block_checksums(&self) -> Result<Draft, Error> {
        let mut draft = self.draft()?;
        draft.has_block_checksums = true;
        Ok(draft)
    }

    /// A new empty file.
    pub fn draft(&self) -> Result<Draft, Error> {
        assert_unlocked();
        Ok(Draft::new(self.draft_path(self.drafts.fetch_add(1, Ordering::Relaxed))))
    }

    /// The path of the draft with this number.
    pub(super) fn draft_path(&self, number: u64) -> DraftPath {
        DraftPath::new(&self.root.join("tmp"), number, &self.unremoved)
    }

    /// A new spill file in `tmp/`.
    pub fn spill_file(&self) -> Result<SpillFile, Error> {
        let file = SpillFile::new(self.draft()?, Arc::clone(&self.spilled_bytes));
        file.map_err(Error::io("a new file in the data folder"))
    }

    /// Bytes written to spill files and files without a name since the start.
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes.load(Ordering::Relaxed)
    }

    /// `tmp/`, for files without a name.
    pub fn temp_folder(&self) -> TempFolder {
        TempFolder::counted(self.root.join("tmp"), Arc::clone(&self.spilled_bytes))
    }

    /// Gives existing folders and files the mode that new ones have.
    pub fn apply_file_mode(&self, mode: FileMode) -> Result<(), Error> {
        assert_unlocked();
        data_folder::apply_mode(&self.root, mode)
    }

    /// Bytes that may still be written to the file system of the data folder.
    pub fn free_bytes(self: &Arc<Self>) -> Result<u64, Error> {
        assert_unlocked();
        let stat = rustix::fs::fstatvfs(&self.folder).map_err(io::Error::from);
        let stat = stat.map_err(Error::io("the file system of the data folder"))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether files are synced before they are used.
    pub fn is_synced(&self) -> bool {
        self.durability == Durability::Fsync
    }

    /// Publishes a record: writes a draft, syncs it, renames it, and syncs its folder. All records but receipts of new parts
    /// are published here.
    pub(super) fn publish_record(&self, path: &Path, text: &[u8]) -> Result<(), Error> {
        self.rename_record(path, text)?;
        if self.is_synced() {
            sync_folder(path.parent().unwrap_or(path)).map_err(Error::io(format!("record {}", name_of(path))))?;
        }
        Ok(())
    }

    /// As [`Self::publish_record`], without syncing the folder: after a power failure there is this record, or the one before.
    pub(super) fn rename_record(&self, path: &Path, text: &[u8]) -> Result<(), Error> {
        let mut draft = self.draft()?;
        let written = draft.write_all(text).and_then(|()| draft.finish(self.is_synced()));
        written.map_err(Error::io(format!("record {}", name_of(path))))?;
        draft.rename(path)
    }

    pub(super) fn entries(&self, folder: &str) -> Result<Vec<PathBuf>, Error> {
        data_folder::entries(&self.root, folder)
    }

    pub(super) fn remove(&self, path: &Path) -> Result<(), Error> {
        assert_unlocked();
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.map_err(Error::io(format!("leftover {}", path.display())))
    }

    pub(super) fn part_path(&self, id: PartId, extension: &str) -> PathBuf {
        self.root.join("parts").join(format!("{id}.{extension}"))
    }

    pub(super) fn segment_path(&self, id: SegmentId, extension: &str) -> PathBuf {
        self.root.join("parts").join(format!("{id}.{extension}"))
    }

    pub(super) fn removed_segment_path(&self, id: SegmentId, extension: &str) -> PathBuf {
        self.root.join("removed").join(format!("{id}.{extension}"))
    }

    pub(super) fn quarantine_path(&self, id: PartId, extension: &str) -> PathBuf {
        self.root.join("quarantine").join(format!("{id}.{extension}"))
    }

    pub(super) fn removed_path(&self, id: PartId, extension: &str) -> PathBuf {
        self.root.join("removed").join(format!("{id}.{extension}"))
    }

    pub(super) fn job_path(&self, name: &str, extension: &str) -> PathBuf {
        self.root.join("jobs").join(format!("{name}.{extension}"))
    }
}
