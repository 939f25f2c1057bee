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

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    hash::Hasher,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::FallocateFlags;
use twox_hash::XxHash3_64;

use super::{
    checksums::{
        BLOCK_BYTES, BlockHasher, PAGE_BYTES_MAX, PAGE_SUMS_MAX, PageWriter, Seal, check_seal, checksum, listed_blocks,
        read_page, seal, to_hex,
    },
    data_folder::{self, FileMode},
    part::{FORMAT_VERSION, FileInfo, Format, Part, PartId, Receipt},
    quarantine::{MissingParts, Quarantine},
    state::assert_unlocked,
};
use crate::{
    error::Error,
    limits::{DRAFT_BYTES_HELD, KIB, MIB, RESERVE_FREE_BYTES_MIN, RESERVED_BYTES},
};

/// Bytes of a job's record: a question, or names of columns, which JSON may escape to six times their size.
const JOB_RECORD_BYTES_MAX: usize = 256 * KIB;

/// Whether an acknowledged upload survives a power failure, or only the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// Files and folder are synced before the answer.
    Fsync,
    /// The operating system writes when it likes.
    None,
}

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

/// What a start found in the data folder.
#[derive(Debug, Default)]
pub struct Found {
    /// Files without a receipt, removed.
    pub leftovers: usize,
    /// Parts set aside now, with the reason.
    pub quarantined: Vec<(PartId, String)>,
    /// Ids of all parts in quarantine.
    pub in_quarantine: Vec<PartId>,
    /// Those of them that are not in the table, and whose loss no operator has accepted.
    pub missing: MissingParts,
    /// Jobs set aside now, with the reason.
    pub jobs_set_aside: Vec<(String, String)>,
}

/// A file that is being written. What is small waits in memory and never gets another name than its last; what is not
/// lies in `tmp/`. It is removed when dropped, unless it was published.
pub struct Draft {
    path: PathBuf,
    /// None as long as all of it is held.
    file: Option<File>,
    /// What is not written yet.
    held: Vec<u8>,
    bytes: u64,
    will_be_synced: bool,
    /// Where the room on disk ends that was asked for; `u64::MAX` if there is none to be had.
    reserved_bytes: u64,
    /// Whether all of it is safe.
    synced: bool,
    checksum: Box<XxHash3_64>,
    /// Whether its blocks get checksums of their own.
    is_listed: bool,
    /// Their checksums, once there is more than one.
    blocks: Option<Box<BlockList>>,
    /// Where its last bytes begin that get a checksum of their own, and that.
    tail: Option<(u64, Box<XxHash3_64>)>,
    failure: Arc<OnceLock<io::ErrorKind>>,
}

/// Checksums of a draft's blocks on their way into a file: a page of them is in memory.
struct BlockList {
    seed: u64,
    hasher: BlockHasher,
    pages: PageWriter,
    path: PathBuf,
    /// Made when the first page is written.
    file: Option<File>,
    /// Whether the last page is written: no more blocks come.
    is_whole: bool,
}

/// What was on disk of a [`Draft`] at some moment, to be synced while more is written.
pub struct SoFar {
    file: File,
    /// What errors call it.
    what: &'static str,
}

/// A part whose files are in place but for the receipt's name, which makes it one. Its files are removed when it is
/// dropped, unless it was committed.
pub struct Staged {
    store: Arc<Store>,
    part: PartId,
    receipt: Option<Draft>,
    /// Whether its files and its receipt are safe.
    synced: bool,
    committed: bool,
}

/// Room on disk for what does not fit in memory for a while. Removed when dropped.
pub struct Scratch {
    draft: Draft,
    end: AtomicU64,
    spilled_bytes: Arc<AtomicU64>,
}

/// A folder for files that nobody but their maker sees.
#[derive(Clone, Debug)]
pub struct TempFolder(PathBuf);

/// A file without a name: it is gone when it is dropped, and when the process is.
pub struct TempFile {
    file: Arc<File>,
    bytes: u64,
}

/// A file open for reading at any place.
#[derive(Clone)]
pub struct Reader {
    file: Arc<File>,
    bytes: u64,
    name: FileName,
    check: Check,
}

/// What errors call a file.
#[derive(Clone)]
enum FileName {
    Part(PartId, Format),
    Job(Arc<str>, JobFile),
    Other(Arc<str>),
}

/// What the blocks of a file are compared with before anyone sees them.
#[derive(Clone)]
enum Check {
    /// Nothing: the file is not ours, nobody but this process has it, or its reader verifies it.
    Nothing,
    /// The checksum of its one block.
    Whole(u64),
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

/// What a job may have beside its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobFile {
    /// What was sent for it to work on.
    Input,
    /// What came of it.
    Result,
}

impl JobFile {
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Result => "result",
        }
    }

    /// Of the file that lists the checksums of its blocks.
    fn sums_extension(self) -> &'static str {
        match self {
            Self::Input => "input-sums",
            Self::Result => "result-sums",
        }
    }
}

/// The files of a job that are there, and their sizes.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobFiles {
    /// Whether there is a record.
    pub record: bool,
    /// Of its input.
    pub input: Option<u64>,
    /// Of its result.
    pub result: Option<u64>,
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

    /// Puts the folder in order and calls `part` with every receipt that can be served, in the order of their ids.
    ///
    /// Errors: a receipt of a newer version, in which case nothing has been touched; a file operation fails.
    pub fn recover(&self, mut part: impl FnMut(Receipt)) -> Result<Found, Error> {
        assert_unlocked();
        let mut found = Found::default();
        let files = self.list_parts()?;
        let was_in_quarantine = self.quarantine()?;
        let (mut broken, mut served) = (Vec::new(), BTreeSet::new());
        for (&id, &present) in &files {
            if !present.receipt {
                continue;
            }
            match self.check_part(id)? {
                Ok(receipt) => {
                    part(receipt);
                    served.insert(id);
                }
                Err(reason) => broken.push((id, reason)),
            }
        }
        // Nothing was changed up to here.
        for (id, present) in files {
            if present.receipt {
                // It is no loss any more; if it is damaged again, that is a new one.
                if was_in_quarantine.accepted.contains(&id) {
                    self.remove(&self.quarantine_path(id, "forgotten"))?;
                }
                continue;
            }
            if was_in_quarantine.parts.contains(&id) {
                // Somebody has put them back without the receipt: they are no leftovers.
                self.set_aside(id)?;
                continue;
            }
            for extension in present.extensions() {
                let path = self.part_path(id, extension);
                if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                    let what = format!("data folder: {} is a folder: move it elsewhere", path.display());
                    return Err(Error::DataFolder(what)); // what is in it is not ours to remove
                }
                self.remove(&path)?;
                found.leftovers += 1;
            }
        }
        for entry in self.entries("tmp")? {
            self.remove(&entry)?;
            found.leftovers += 1;
        }
        for (id, reason) in broken {
            self.set_aside(id)?;
            found.quarantined.push((id, reason));
        }
        let quarantine = self.quarantine()?;
        found.missing = quarantine.missing(|id| served.contains(id));
        found.in_quarantine = quarantine.parts.into_iter().collect();
        Ok(found)
    }

    /// The parts that have files in `quarantine/`.
    pub fn quarantine(&self) -> Result<Quarantine, Error> {
        assert_unlocked();
        let path = self.root.join("quarantine");
        let what = || Error::io(format!("data folder {}", path.display()));
        let mut quarantine = Quarantine::default();
        for entry in fs::read_dir(&path).map_err(what())? {
            match split_name_in_quarantine(&entry.map_err(what())?.path()) {
                Some((id, "forgotten")) => quarantine.accepted.insert(id),
                Some((id, "csv" | "parquet" | "sums" | "json")) => quarantine.parts.insert(id),
                _ => false,
            };
        }
        Ok(quarantine)
    }

    /// Whether a part has files in `quarantine/`, and whether its loss was accepted.
    pub fn is_in_quarantine(&self, id: PartId) -> Result<(bool, bool), Error> {
        assert_unlocked();
        let is_there = |extension| {
            let there = self.quarantine_path(id, extension).try_exists();
            there.map_err(Error::io(format!("part {id} in quarantine")))
        };
        Ok((is_there("json")? || is_there("csv")? || is_there("parquet")?, is_there("forgotten")?))
    }

    /// Records that an operator has accepted the loss of a part. It is safe on disk then, whatever `--durability` says.
    pub fn record_loss(&self, id: PartId, forgotten_at: &str) -> Result<(), Error> {
        let what = || Error::io(format!("the record that part {id} is forgotten"));
        let text = format!("{{\"part\":{id},\"forgotten_at\":\"{forgotten_at}\"}}\n");
        let mut draft = self.draft()?;
        draft.write_all(text.as_bytes()).and_then(|()| draft.sync()).map_err(what())?;
        draft.rename(&self.quarantine_path(id, "forgotten"))?;
        sync_folder(&self.root.join("quarantine")).map_err(what())
    }

    /// Whether a part is in `parts/`.
    pub(super) fn has_receipt(&self, id: PartId) -> bool {
        assert_unlocked();
        self.part_path(id, "json").exists()
    }

    /// Names of all jobs that have a record now.
    pub(super) fn job_names(&self) -> Result<Vec<String>, Error> {
        let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let name = |path: PathBuf| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        Ok(self.entries("jobs")?.into_iter().filter(is_record).filter_map(name).collect())
    }

    /// Whether there is a record of a job.
    pub(super) fn has_job_record(&self, name: &str) -> bool {
        assert_unlocked();
        self.job_path(name, "json").exists()
    }

    /// Verifies all of the list of checksums of a part, and says how many bytes it has; none if the part needs no list.
    pub(super) fn check_part_sums(&self, part: &Part) -> Result<Option<u64>, Error> {
        let blocks = listed_blocks(part.csv_bytes);
        let Some(checks) = part.checks.filter(|checks| checks.chunks_in_sums || blocks > 0) else { return Ok(None) };
        let damaged = |what: String| Error::Damaged { part: part.id, what: format!("sums: {what}") };
        let what = || Error::io(format!("part {}, sums", part.id));
        let file = match data_folder::open(&self.part_path(part.id, "sums")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || data_folder::is_no_file(&error) => {
                return Err(damaged(error.to_string()));
            }
            file => file.map_err(what())?,
        };
        let (mut page, mut bytes, mut sums) = (vec![0; PAGE_BYTES_MAX], 0, 0);
        for index in 0.. {
            let read = read_at(&file, bytes, &mut page).map_err(what())?;
            if read == 0 {
                break;
            }
            let found = read_page(checks.csv, index, &page[..read]);
            let found = found.ok_or_else(|| damaged(format!("its page {index} is not what was written")))?;
            bytes += read as u64;
            sums += found.len() as u64;
        }
        if sums < blocks || (sums > blocks && !checks.chunks_in_sums) {
            return Err(damaged(format!("it has {sums} checksums, and the CSV has {blocks} blocks")));
        }
        Ok(Some(bytes))
    }

    fn quarantine_path(&self, id: PartId, extension: &str) -> PathBuf {
        self.root.join("quarantine").join(format!("{id}.{extension}"))
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

    /// Puts two drafts in place as the files of a part, and a receipt beside them, which is synced if they were. After an
    /// error nothing of it is left.
    pub fn stage(self: &Arc<Self>, csv: Draft, parquet: Draft, receipt: &Receipt) -> Result<Staged, Error> {
        assert_unlocked();
        let part = receipt.part;
        let synced = csv.synced && parquet.synced;
        let mut staged = Staged { store: Arc::clone(self), part, receipt: None, synced, committed: false };
        csv.keep(&self.part_path(part, "csv"), &self.part_path(part, "sums"))?;
        parquet.keep(&self.part_path(part, "parquet"), &self.part_path(part, "sums"))?;
        let text = receipt_text(receipt)?;
        let what = || Error::io(format!("record {part}.json"));
        let mut draft = self.draft()?;
        draft.write_all(&text).and_then(|()| draft.whole().map(|_file| ())).map_err(what())?;
        if synced {
            draft.sync().map_err(what())?;
        }
        staged.receipt = Some(draft);
        Ok(staged)
    }

    /// Makes staged parts, all of this store, parts of the table: their bytes synced, then their receipts renamed into
    /// place, then the folder synced. They share these syncs.
    ///
    /// Errors: after them nothing of any is left.
    pub fn commit(&self, mut batch: Vec<Staged>) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io("parts on their way into the table");
        let unsynced: Vec<_> = batch.iter().filter(|staged| !staged.synced).collect();
        if unsynced.len() > 1 && self.syncs_at_once {
            sync_file_system(&self.folder).map_err(what())?;
        } else {
            // What others write to this file system is not waited for.
            unsynced.into_iter().try_for_each(Staged::sync)?;
        }
        batch.iter_mut().try_for_each(Staged::rename_receipt)?;
        sync_folder(&self.root.join("parts")).map_err(what())?;
        // Only now: what is dropped before is removed.
        batch.iter_mut().for_each(|staged| staged.committed = true);
        Ok(())
    }

    /// A stored file, if it still has the size that its receipt gives. Its CSV is verified as it is read; Parquet is by
    /// whoever knows the format.
    pub fn open_part(&self, part: &Part, format: Format) -> Result<Reader, Error> {
        let Some(checks) = part.checks else {
            return Err(Error::Internal(format!("part {} is read before it was verified", part.id)));
        };
        let mut reader = self.open_part_unverified(part, format)?;
        reader.check = match format {
            Format::Csv if listed_blocks(part.csv_bytes) == 0 => Check::Whole(checks.csv),
            Format::Parquet if !checks.chunks_in_sums => Check::Nothing,
            Format::Csv | Format::Parquet => {
                let sums = data_folder::open(&self.part_path(part.id, "sums")).map_err(|error| match error {
                    error if data_folder::is_no_file(&error) => {
                        reader.damaged(&format!("its list of checksums: {error}"))
                    }
                    error => Error::io(format!("part {}, sums", part.id))(error),
                })?;
                Check::List(Arc::new(sums), checks.csv)
            }
        };
        Ok(reader)
    }

    /// The same of bytes that nothing has been compared with: for who compares the whole file with its receipt.
    pub fn open_part_unverified(&self, part: &Part, format: Format) -> Result<Reader, Error> {
        let (extension, bytes) = match format {
            Format::Csv => ("csv", part.csv_bytes),
            Format::Parquet => ("parquet", part.parquet_bytes),
        };
        let name = FileName::Part(part.id, format);
        let reader = match Reader::open_as(&self.part_path(part.id, extension), name.clone()) {
            Err(Error::Io { cause, .. }) if data_folder::is_no_file(&cause) => {
                return Err(name.damaged(&cause.to_string()));
            }
            opened => opened?,
        };
        if reader.bytes != bytes {
            return Err(reader.damaged(&format!("{} bytes, the receipt says {bytes}", reader.bytes)));
        }
        Ok(reader)
    }

    /// A part's receipt, verified.
    ///
    /// Errors: it is damaged or gone; it cannot be read.
    pub fn receipt(&self, id: PartId) -> Result<Receipt, Error> {
        let damaged = |what: String| Error::Damaged { part: id, what: format!("receipt: {what}") };
        let text = match self.read_receipt(id) {
            Err(error) if data_folder::is_no_file(&error) => return Err(damaged(error.to_string())),
            read => read.map_err(Error::io(format!("part {id}, receipt")))?,
        };
        parse_receipt(id, &text).map_err(|fault| {
            damaged(match fault {
                ReceiptFault::Newer(format) => format!("it has format version {format}"),
                ReceiptFault::Damaged(what) => what,
            })
        })
    }

    /// Gives a part of format version 1 a receipt of this version, and the list of checksums that belongs to it.
    pub fn upgrade_receipt(&self, receipt: &Receipt, sums: Option<Draft>) -> Result<(), Error> {
        if let Some(mut sums) = sums {
            let what = || Error::io(format!("part {}, sums", receipt.part));
            sums.whole().map(|_file| ()).map_err(what())?;
            if self.is_synced() {
                sums.sync().map_err(what())?;
            }
            sums.rename(&self.part_path(receipt.part, "sums"))?;
        }
        self.publish_record(&self.part_path(receipt.part, "json"), &receipt_text(receipt)?)
    }

    /// Publishes the record of a job, in place of its last one.
    pub fn publish_job(&self, name: &str, record: Vec<u8>) -> Result<(), Error> {
        let record = seal(record);
        if record.len() > JOB_RECORD_BYTES_MAX {
            return Err(Error::Internal(format!("the record of job {name} has {} bytes", record.len())));
        }
        self.publish_record(&self.job_path(name, "json"), &record)
    }

    /// A job's record, and whether it is what was written. Errors: there is none; it cannot be read.
    pub fn read_job(&self, name: &str) -> Result<(Vec<u8>, Seal), Error> {
        assert_unlocked();
        let path = self.job_path(name, "json");
        let mut text = Vec::new();
        let read =
            data_folder::open(&path).and_then(|file| file.take(JOB_RECORD_BYTES_MAX as u64).read_to_end(&mut text));
        match read {
            Ok(_bytes) => {
                let seal = check_seal(&text);
                Ok((text, seal))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::DamagedJob { name: name.to_owned(), what: "its record is gone".to_owned() })
            }
            Err(error) if data_folder::is_no_file(&error) => {
                Err(Error::DamagedJob { name: name.to_owned(), what: format!("its record: {error}") })
            }
            Err(error) => Err(Error::io(format!("the record of job {name}"))(error)),
        }
    }

    /// Makes a draft a job's input or result: synced and renamed. It counts once a record says so. Returns what it will be
    /// verified against.
    pub fn publish_job_file(&self, mut draft: Draft, name: &str, kind: JobFile) -> Result<u64, Error> {
        assert_unlocked();
        let what = || Error::io(format!("job {name}"));
        let check = draft.check();
        if self.is_synced() && !draft.synced {
            draft.sync().map_err(what())?;
        }
        draft.keep(&self.job_path(name, kind.extension()), &self.job_path(name, kind.sums_extension()))?;
        if self.durability == Durability::Fsync {
            // Or the record that follows could be kept by a power failure, and this not.
            sync_folder(&self.root.join("jobs")).map_err(what()).inspect_err(|_| self.remove_job_file(name, kind))?;
        }
        Ok(check)
    }

    /// A job's input or result, of so many bytes, that is verified against its [`Draft::check`] as it is read. Records of
    /// version 1 have none.
    pub fn open_job_file(&self, name: &str, kind: JobFile, check: Option<u64>) -> Result<Reader, Error> {
        let file_name = FileName::Job(name.into(), kind);
        let mut reader = Reader::open_as(&self.job_path(name, kind.extension()), file_name)?;
        reader.check = match check {
            None => Check::Nothing,
            Some(sum) if listed_blocks(reader.bytes) == 0 => Check::Whole(sum),
            Some(seed) => match data_folder::open(&self.job_path(name, kind.sums_extension())) {
                Ok(sums) => Check::List(Arc::new(sums), seed),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(reader.damaged(&format!("its list of checksums: {error}")));
                }
                Err(error) => return Err(Error::io(reader.name.to_string())(error)),
            },
        };
        Ok(reader)
    }

    /// Removes a job. Its record goes first: what is left without one is removed at start.
    pub fn remove_job(&self, name: &str) {
        self.remove_if_there(&self.job_path(name, "json"));
        self.remove_job_file(name, JobFile::Input);
        self.remove_job_file(name, JobFile::Result);
    }

    /// Removes a job's input or result, and leaves its record.
    pub fn remove_job_file(&self, name: &str, kind: JobFile) {
        self.remove_if_there(&self.job_path(name, kind.extension()));
        self.remove_if_there(&self.job_path(name, kind.sums_extension()));
    }

    /// Moves the files of a job to `quarantine/`.
    pub fn set_aside_job(&self, name: &str) -> Result<(), Error> {
        for extension in ["input", "input-sums", "result", "result-sums", "json"] {
            self.move_to_quarantine(&self.job_path(name, extension), name, extension)?;
        }
        Ok(())
    }

    /// All names of jobs, and the files that each has.
    pub fn list_jobs(&self) -> Result<BTreeMap<String, JobFiles>, Error> {
        let mut jobs = BTreeMap::<String, JobFiles>::new();
        for path in self.entries("jobs")? {
            let text = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).map(str::to_owned);
            let (Some(name), Some(extension)) = (text(path.file_stem()), text(path.extension())) else {
                tracing::warn!(path = %path.display(), "not a file of ours, left alone");
                continue;
            };
            let bytes = fs::symlink_metadata(&path).map_err(Error::io(format!("job file {}", path.display())))?.len();
            match extension.as_str() {
                "json" => jobs.entry(name).or_default().record = true,
                "input" => jobs.entry(name).or_default().input = Some(bytes),
                "result" => jobs.entry(name).or_default().result = Some(bytes),
                "input-sums" | "result-sums" => drop(jobs.entry(name).or_default()),
                _ => tracing::warn!(path = %path.display(), "not a file of ours, left alone"),
            }
        }
        Ok(jobs)
    }

    /// The names, without extensions, of all that was set aside.
    pub fn names_in_quarantine(&self) -> Result<Vec<String>, Error> {
        let name = |path: PathBuf| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        Ok(self.entries("quarantine")?.into_iter().filter_map(name).collect())
    }

    fn job_path(&self, name: &str, extension: &str) -> PathBuf {
        self.root.join("jobs").join(format!("{name}.{extension}"))
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

    fn part_path(&self, id: PartId, extension: &str) -> PathBuf {
        self.root.join("parts").join(format!("{id}.{extension}"))
    }

    fn list_parts(&self) -> Result<BTreeMap<PartId, Present>, Error> {
        let mut files = BTreeMap::<PartId, Present>::new();
        for path in self.entries("parts")? {
            match split_name(&path) {
                Some((id, "csv")) => files.entry(id).or_default().csv = true,
                Some((id, "parquet")) => files.entry(id).or_default().parquet = true,
                Some((id, "sums")) => files.entry(id).or_default().sums = true,
                Some((id, "json")) => files.entry(id).or_default().receipt = true,
                _ => tracing::warn!(path = %path.display(), "not a file of ours, left alone"),
            }
        }
        Ok(files)
    }

    /// The receipt of a part whose files are as it says, or why the part cannot be served.
    fn check_part(&self, id: PartId) -> Result<Result<Receipt, String>, Error> {
        assert_unlocked();
        // Only what the files are decides; that they cannot be read now ends the start, with nothing touched.
        let text = self.read_receipt(id).map_err(Error::io(format!("receipt of part {id}")))?;
        let receipt = match parse_receipt(id, &text) {
            Err(ReceiptFault::Newer(format)) => {
                let root = self.root.display();
                return Err(Error::DataFolder(format!(
                    "data folder {root}: part {id} has format version {format}, this program knows {FORMAT_VERSION}: use a newer one"
                )));
            }
            Ok(receipt) => receipt,
            Err(ReceiptFault::Damaged(what)) => return Ok(Err(format!("receipt: {what}"))),
        };
        if id == PartId::END {
            return Ok(Err("receipt: its number is the last that there is, so none could follow it".to_owned()));
        }
        let is_listed =
            receipt.checks.as_ref().is_some_and(|checks| checks.sums_seed.is_some() || checks.chunks_in_sums);
        // The list is verified page by page as it is read.
        let files = [("csv", Some(receipt.csv.bytes)), ("parquet", Some(receipt.parquet.bytes)), ("sums", None)];
        for (extension, bytes) in files.into_iter().filter(|(_, bytes)| bytes.is_some() || is_listed) {
            match fs::symlink_metadata(self.part_path(id, extension)).map(|metadata| metadata.len()) {
                Ok(found) if found == bytes.unwrap_or(found) => {}
                Ok(found) => {
                    let expected = bytes.unwrap_or(found);
                    return Ok(Err(format!("{extension}: {found} bytes, the receipt says {expected}")));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Err(format!("{extension}: {error}")));
                }
                Err(error) => return Err(Error::io(format!("part {id}, {extension}"))(error)),
            }
        }
        Ok(Ok(receipt))
    }

    fn read_receipt(&self, id: PartId) -> io::Result<Vec<u8>> {
        // The header row is at most 1 MiB; JSON may escape it to six times that, and adds a little for each column.
        const RECEIPT_BYTES_MAX: u64 = 8 * MIB as u64;
        assert_unlocked();
        let mut text = Vec::with_capacity(4 * KIB); // most end within one read
        data_folder::open(&self.part_path(id, "json"))?.take(RECEIPT_BYTES_MAX).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Moves all files of a part to `quarantine/`, which never overwrites what is there. The receipt goes last: until
    /// then the part is found broken again by the next start, and not taken for leftovers.
    pub(super) fn set_aside(&self, id: PartId) -> Result<(), Error> {
        assert_unlocked();
        for extension in ["csv", "parquet", "sums", "json"] {
            self.move_to_quarantine(&self.part_path(id, extension), &id.to_string(), extension)?;
        }
        Ok(())
    }

    fn move_to_quarantine(&self, from: &Path, name: &str, extension: &str) -> Result<(), Error> {
        assert_unlocked();
        let mut to = self.root.join("quarantine").join(format!("{name}.{extension}"));
        for copy in 2.. {
            if !to.exists() {
                break;
            }
            to.set_file_name(format!("{name}-{copy}.{extension}"));
        }
        match rename(from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("quarantine {}", from.display()))(error))
            }
            _ => Ok(()),
        }
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

/// A receipt as it is stored.
fn receipt_text(receipt: &Receipt) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(receipt).map(seal).map_err(|error| Error::Internal(format!("receipt: {error}")))
}

/// Why a receipt cannot be used.
enum ReceiptFault {
    /// A newer program wrote it, and its checksum says that it is what was written.
    Newer(u32),
    /// It is not what was written.
    Damaged(String),
}

/// The receipt of a part.
fn parse_receipt(id: PartId, text: &[u8]) -> Result<Receipt, ReceiptFault> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let damaged = |what: &str| ReceiptFault::Damaged(what.to_owned());
    let is_sealed = match check_seal(text) {
        Seal::Whole => true,
        Seal::Missing => false,
        Seal::Broken => return Err(damaged("it is not what was written")),
    };
    // What a newer version wrote may be no receipt to this one, and still says what it is.
    if let Ok(Version { format }) = serde_json::from_slice(text)
        && is_sealed
        && format > FORMAT_VERSION
    {
        return Err(ReceiptFault::Newer(format));
    }
    let receipt: Receipt = serde_json::from_slice(text).map_err(|error| ReceiptFault::Damaged(error.to_string()))?;
    // Version 1 has no checksums but those of the two files.
    let version = if is_sealed { FORMAT_VERSION } else { 1 };
    if receipt.part != id || receipt.format != version || receipt.checks().is_some() != is_sealed {
        return Err(damaged("it is of another part or version"));
    }
    Ok(receipt)
}

/// A checksum as receipts have it.
pub(super) fn checksum_text(hash: &XxHash3_64) -> String {
    to_hex(hash.finish())
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

/// The one line of a file that holds a secret, without its end. Errors: it has none, or more than fits.
pub fn read_secret(path: &Path) -> Result<String, Error> {
    const SECRET_BYTES_MAX: u64 = 1024;
    assert_unlocked();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(Error::io(path.display().to_string()))?;
    let secret = text.trim();
    if secret.is_empty() || text.len() as u64 > SECRET_BYTES_MAX || secret.contains(char::is_whitespace) {
        let path = path.display();
        return Err(Error::Secret(format!("{path}: it holds one word of at most {SECRET_BYTES_MAX} bytes")));
    }
    Ok(secret.to_owned())
}

/// Makes sure that a file can be appended to, and makes it if it is not there.
pub fn check_appendable(path: &Path) -> Result<(), Error> {
    assert_unlocked();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder.display().to_string()))?;
    }
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(Error::io(path.display().to_string()))
}

/// This process's memory, without what is swapped out: Linux's own account (proc(5), `VmRSS`).
pub fn resident_bytes() -> Result<u64, Error> {
    const STATUS_BYTES_MAX: u64 = 64 * 1024;
    assert_unlocked();
    let mut status = String::new();
    let read = File::open("/proc/self/status").and_then(|file| file.take(STATUS_BYTES_MAX).read_to_string(&mut status));
    read.map_err(Error::io("/proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Error::Internal("/proc/self/status has no VmRSS".to_owned()))
}

/// What clients may be told of a path: where the data folder is on this machine is not for them.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Makes the names in a folder as durable as what they name.
fn sync_folder(path: &Path) -> io::Result<()> {
    assert_unlocked();
    sync_file(&File::open(path)?)
}

/// Waits until a file's bytes are on disk. All that must be durable is synced here or in [`sync_file_system`], and gets
/// its name in [`rename`], so that tests see the order (`order_tests.rs`).
fn sync_file(file: &File) -> io::Result<()> {
    assert_unlocked();
    file.sync_all()?;
    #[cfg(test)]
    order_tests::note_sync(file);
    Ok(())
}

/// Waits until all that was written to the file system of `folder` is on disk.
fn sync_file_system(folder: &File) -> io::Result<()> {
    assert_unlocked();
    rustix::fs::syncfs(folder)?;
    #[cfg(test)]
    order_tests::note_sync_of_all();
    Ok(())
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    assert_unlocked();
    fs::rename(from, to)?;
    #[cfg(test)]
    order_tests::note_rename(from, to);
    Ok(())
}

/// Whether `syncfs` says if something could not be written: Linux does since 5.8.
fn reports_failed_syncfs(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()) >= Some((5, 8))
}

/// Which files of a part are there.
#[derive(Clone, Copy, Default)]
struct Present {
    csv: bool,
    parquet: bool,
    sums: bool,
    receipt: bool,
}

impl Present {
    fn extensions(self) -> impl Iterator<Item = &'static str> {
        let files = [("csv", self.csv), ("parquet", self.parquet), ("sums", self.sums)];
        files.into_iter().filter(|(_, there)| *there).map(|(name, _)| name)
    }
}

/// `12.csv` is `(12, "csv")`.
fn split_name(path: &Path) -> Option<(PartId, &str)> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let id = PartId::new(stem.parse().ok()?)?;
    (id.to_string() == stem).then_some((id, extension))
}

/// The same of a file in `quarantine/`, where `12-2.csv` is a second one of part 12.
fn split_name_in_quarantine(path: &Path) -> Option<(PartId, &str)> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let number = match stem.split_once('-') {
        Some((number, copy)) if copy.parse::<u32>().is_ok() => number,
        _ => stem,
    };
    let id = PartId::new(number.parse().ok()?)?;
    (id.to_string() == number).then_some((id, extension))
}

impl Draft {
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
        if self.is_listed && !rest.is_empty() {
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
        self.whole().map_err(Error::io(WHAT))?;
        let mut reader = Reader::open_as(&self.path, FileName::Other(WHAT.into()))?;
        reader.check = match &self.blocks {
            Some(blocks) => {
                Check::List(Arc::new(data_folder::open(&blocks.path).map_err(Error::io(WHAT))?), blocks.seed)
            }
            None if self.is_listed => Check::Whole(self.checksum.finish()),
            None => Check::Nothing,
        };
        Ok(reader)
    }

    /// Waits until what was written is safe.
    pub fn sync(&mut self) -> io::Result<()> {
        sync_file(self.whole()?)?;
        self.blocks.iter().filter_map(|blocks| blocks.file.as_ref()).try_for_each(sync_file)?;
        self.synced = true;
        Ok(())
    }

    /// What is on disk so far, to be synced while more is written. None if nothing is, or if no more files can be open: it
    /// will be synced with the rest.
    pub fn so_far(&self, what: &'static str) -> Option<SoFar> {
        assert_unlocked();
        let file = self.file.as_ref()?.try_clone().ok()?;
        Some(SoFar { file, what })
    }

    /// Writes what is held, whose memory goes to others.
    pub fn hold_nothing(&mut self) -> io::Result<()> {
        if self.held.capacity() > 0 {
            self.on_disk()?;
            self.held = Vec::new();
        }
        Ok(())
    }

    /// The file in `tmp/` with all that was held.
    fn on_disk(&mut self) -> io::Result<&mut File> {
        let file = made(&mut self.file, &self.path)?;
        if !self.held.is_empty() {
            file.write_all(&self.held)?;
            self.held.clear();
        }
        Ok(file)
    }

    /// Keeps bytes for which there is room in memory, without ever taking more than [`DRAFT_BYTES_HELD`].
    fn hold(&mut self, bytes: &[u8]) {
        let held_bytes = self.held.len() + bytes.len();
        if held_bytes > self.held.capacity() {
            self.held.reserve_exact(held_bytes.next_power_of_two() - self.held.len());
        }
        self.held.extend_from_slice(bytes);
    }

    /// Asks for room on disk for what is written next, and more, where it will be synced and there is plenty: a file system
    /// then has less to do for each write, and puts them side by side. Only speed depends on it.
    fn reserve(&mut self, bytes: usize) {
        let end = self.bytes + bytes as u64;
        if !self.will_be_synced || end <= self.reserved_bytes {
            return;
        }
        let (start, room) = (self.reserved_bytes, end.next_multiple_of(RESERVED_BYTES));
        let reserved = made(&mut self.file, &self.path).and_then(|file| {
            let has_plenty = free_bytes(file)? >= RESERVE_FREE_BYTES_MIN;
            Ok(has_plenty && {
                rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, start, room - start)?;
                true
            })
        });
        if let Err(error) = &reserved {
            tracing::debug!(%error, "no room on disk is asked for ahead");
        }
        self.reserved_bytes = if matches!(reserved, Ok(true)) { room } else { u64::MAX };
    }

    /// The file in `tmp/` with all of it, and no room beyond, and the list of its blocks' checksums.
    fn whole(&mut self) -> io::Result<&mut File> {
        self.blocks.iter_mut().try_for_each(|blocks| blocks.end())?;
        let (bytes, reserved_bytes) = (self.bytes, std::mem::take(&mut self.reserved_bytes));
        let file = self.on_disk()?;
        if reserved_bytes > bytes {
            file.set_len(bytes)?;
        }
        Ok(file)
    }

    /// Gives it its last name, and another to the list of its blocks' checksums. What was only held in memory is written
    /// there at once; after an error it is not there.
    fn keep(mut self, to: &Path, sums_to: &Path) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io(name_of(to));
        if self.file.is_some() || self.blocks.is_some() {
            self.whole().map_err(what())?;
            if let Some(blocks) = &mut self.blocks {
                rename(&blocks.path, sums_to).map_err(Error::io(format!("rename to {}", name_of(sums_to))))?;
                blocks.file = None; // published: not ours to remove
            }
            return self.rename(to);
        }
        let mut file = data_folder::create(to).map_err(what())?;
        let Err(error) = file.write_all(&self.held) else { return Ok(()) };
        if let Err(error) = fs::remove_file(to) {
            tracing::error!(path = %to.display(), %error, "a file that is not complete is left");
        }
        Err(what()(error))
    }

    fn rename(&mut self, to: &Path) -> Result<(), Error> {
        assert_unlocked();
        rename(&self.path, to).map_err(Error::io(format!("rename to {}", name_of(to))))?;
        self.file = None; // published: not ours to remove
        Ok(())
    }
}

/// What a file's file system has free for us.
fn free_bytes(file: &File) -> io::Result<u64> {
    let free = rustix::fs::fstatvfs(file)?;
    Ok(free.f_bavail.saturating_mul(free.f_frsize))
}

/// A draft's file, which is made now unless it is there.
fn made<'a>(file: &'a mut Option<File>, path: &Path) -> io::Result<&'a mut File> {
    assert_unlocked();
    let made = match file.take() {
        Some(made) => made,
        None => OpenOptions::new().read(true).write(true).create_new(true).open(path)?,
    };
    Ok(file.insert(made))
}

impl SoFar {
    /// Waits until it is safe. An error must end the file: no later sync through its draft tells of what this one could
    /// not write.
    pub fn sync(self) -> Result<(), Error> {
        assert_unlocked();
        self.file.sync_data().map_err(Error::io(self.what))
    }
}

#[cfg(test)]
impl SoFar {
    /// A file that cannot be synced: it is open for its path alone.
    #[allow(clippy::expect_used, reason = "a panic fails the test")]
    pub(crate) fn unsyncable(path: &Path) -> Self {
        let file = rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
        Self { file: File::from(file.expect("opened")), what: "a folder" }
    }
}

impl Staged {
    /// Waits until its files and its receipt are safe.
    fn sync(&self) -> Result<(), Error> {
        let what = || Error::io(format!("part {}", self.part));
        for extension in ["csv", "parquet", "sums"] {
            match data_folder::open(&self.store.part_path(self.part, extension)) {
                Err(error) if extension == "sums" && error.kind() == io::ErrorKind::NotFound => {} // of one block
                file => file.and_then(|file| sync_file(&file)).map_err(what())?,
            }
        }
        self.receipt.iter().filter_map(|receipt| receipt.file.as_ref()).try_for_each(sync_file).map_err(what())
    }

    /// Makes it a part that nothing is synced of.
    pub fn commit_unsynced(mut self) -> Result<(), Error> {
        self.rename_receipt()?;
        self.committed = true;
        Ok(())
    }

    fn rename_receipt(&mut self) -> Result<(), Error> {
        let to = self.store.part_path(self.part, "json");
        self.receipt.iter_mut().try_for_each(|receipt| receipt.rename(&to))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // The receipt first: without it the others are leftovers, which a start would remove too.
        for extension in ["json", "csv", "parquet", "sums"] {
            self.store.remove_if_there(&self.store.part_path(self.part, extension));
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert_unlocked();
        if let Some(&failed) = self.failure.get() {
            return Err(failed.into()); // what is held may be on disk or not
        }
        let room = DRAFT_BYTES_HELD - self.held.len();
        let written = if bytes.len() < room {
            self.hold(bytes);
            Ok(bytes.len())
        } else if self.held.is_empty() {
            self.reserve(bytes.len());
            self.on_disk().and_then(|file| file.write(bytes))
        } else {
            self.reserve(room);
            self.hold(&bytes[..room]);
            self.on_disk().map(|_file| room)
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

impl BlockList {
    fn new(path: PathBuf) -> Self {
        let seed = fastrand::u64(..);
        let (hasher, pages) = (BlockHasher::new(BLOCK_BYTES), PageWriter::new(seed));
        Self { seed, hasher, pages, path, file: None, is_whole: false }
    }

    fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_whole {
            return Err(io::Error::other("a file is written on after its checksums were listed"));
        }
        let Self { hasher, pages, path, file, .. } = self;
        let mut written = Ok(());
        hasher.update(bytes, |sum| {
            if let Some(page) = pages.push(sum)
                && written.is_ok()
            {
                written = made(file, path).and_then(|file| file.write_all(&page));
            }
        });
        written
    }

    fn push(&mut self, sum: u64) -> io::Result<()> {
        self.pages.push(sum).map_or(Ok(()), |page| made(&mut self.file, &self.path)?.write_all(&page))
    }

    /// The last block and the last page.
    fn end(&mut self) -> io::Result<()> {
        if self.is_whole {
            return Ok(());
        }
        if let Some(sum) = self.hasher.end() {
            self.push(sum)?;
        }
        if let Some(page) = self.pages.end() {
            made(&mut self.file, &self.path)?.write_all(&page)?;
        }
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for BlockList {
    fn drop(&mut self) {
        if self.file.is_some() {
            assert_unlocked();
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::error!(path = %self.path.display(), %error, "a list of checksums is left until the next start");
            }
        }
    }
}

impl Scratch {
    /// Keeps bytes, with their checksum, and says where.
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

    /// What was kept there.
    ///
    /// Errors: it is not what was written, of kind `InvalidData`; it cannot be read.
    pub fn get(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        assert_unlocked();
        let (mut buffer, mut sum) = (vec![0; bytes], [0; 8]);
        self.file()?.read_exact_at(&mut buffer, offset)?;
        self.file()?.read_exact_at(&mut sum, offset + bytes as u64)?;
        if checksum(&buffer) != u64::from_le_bytes(sum) {
            let what = "a page in a scratch file is not what was written";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(buffer)
    }

    /// It was made with the scratch.
    fn file(&self) -> io::Result<&File> {
        self.draft.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Nothing in it is needed any more: its room is used again.
    pub fn clear(&self) {
        self.end.store(0, Ordering::Relaxed);
    }

    /// Where it will say what a write failed with.
    pub fn failure(&self) -> Arc<OnceLock<io::ErrorKind>> {
        self.draft.failure()
    }
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

impl FileName {
    /// What is not as it was written.
    fn damaged(&self, what: &str) -> Error {
        match self {
            Self::Part(part, format) => Error::Damaged { part: *part, what: format!("{format}: {what}") },
            Self::Job(name, kind) => {
                Error::DamagedJob { name: name.to_string(), what: format!("{}: {what}", kind.extension()) }
            }
            Self::Other(name) => Error::Internal(format!("{name}: {what}")),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Part(part, format) => write!(f, "part {part}, {format}"),
            Self::Job(name, kind) => write!(f, "job {name}, {}", kind.extension()),
            Self::Other(name) => f.write_str(name),
        }
    }
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
    fn open_as(path: &Path, name: FileName) -> Result<Self, Error> {
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
    pub fn listed_sums(&self, first: u64, count: usize) -> Result<Vec<u64>, Error> {
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

fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
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
    pub(crate) fn unreadable(format: Format, bytes: u64) -> Self {
        let file = Arc::new(File::open("/proc/self/mem").expect("this process may read its memory"));
        Self { file, bytes, name: FileName::Part(PartId::FIRST, format), check: Check::Whole(0) }
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
            Check::Whole(sum) => Some(sum),
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

#[cfg(test)]
mod order_tests;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::unix::fs::MetadataExt};

    use rustix::io::Errno;

    use super::*;
    use crate::engine::part::{Column, ColumnType, ReceiptChecks};

    /// Some parts, staged: every second one is large enough to lie in `tmp/` before.
    fn staged(store: &Arc<Store>, parts: u64) -> Vec<Staged> {
        staged_after(store, parts, |_csv, _parquet| {})
    }

    /// The same, once something was done with their drafts.
    fn staged_after(store: &Arc<Store>, parts: u64, done: impl Fn(&mut Draft, &mut Draft)) -> Vec<Staged> {
        let stage = |number| {
            let (mut csv, mut parquet) = (store.draft().expect("a draft"), store.draft().expect("a draft"));
            let bytes = if number % 2 == 0 { 10 } else { 3 * DRAFT_BYTES_HELD };
            csv.write_all(&vec![b'c'; bytes]).expect("written");
            parquet.write_all(&vec![b'p'; bytes + 1]).expect("written");
            done(&mut csv, &mut parquet);
            let receipt = Receipt {
                format: FORMAT_VERSION,
                part: PartId::new(number).expect("an id"),
                rows: 1,
                columns: vec![Column { name: "a".to_owned(), column_type: ColumnType::Int64, nulls: 0 }],
                csv: csv.info(),
                parquet: parquet.info(),
                row_groups: 1,
                footer_bytes: 1,
                uploaded_at: String::new(),
                checks: Some(ReceiptChecks {
                    sums_seed: csv.sums_seed().map(to_hex),
                    footer_xxh3: to_hex(parquet.tail_checksum()),
                    chunks_in_sums: false,
                }),
            };
            store.stage(csv, parquet, &receipt).expect("staged")
        };
        (1..=parts).map(stage).collect()
    }

    /// Names of the files in `tmp/` and `parts/`.
    fn files(store: &Store) -> BTreeSet<String> {
        let entries = ["tmp", "parts"].map(|folder| store.entries(folder).expect("readable"));
        entries.concat().iter().map(|path| name_of(path)).collect()
    }

    fn store(folder: &tempfile::TempDir) -> Store {
        Store::open(folder.path(), Durability::Fsync).expect("a data folder")
    }

    #[test]
    fn a_batch_is_kept_whole() {
        for syncs_at_once in [true, false] {
            let folder = tempfile::TempDir::new().expect("a folder");
            let mut store = store(&folder);
            store.syncs_at_once = syncs_at_once;
            let store = Arc::new(store);
            store.commit(staged(&store, 5)).expect("committed");
            let expected =
                (1..=5).flat_map(|id| ["csv", "parquet", "json"].map(|extension| format!("{id}.{extension}")));
            assert_eq!(files(&store), expected.collect());
            let mut ids = Vec::new();
            let found = store.recover(|receipt| ids.push(receipt.part.get())).expect("in order");
            assert_eq!((ids, found.leftovers, found.quarantined.len()), (vec![1, 2, 3, 4, 5], 0, 0));
        }
    }

    #[test]
    fn what_is_not_committed_is_gone() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Arc::new(store(&folder));
        let staged = staged(&store, 3);
        assert_eq!(files(&store).len(), 9, "two files of each in parts/, a receipt of each in tmp/");
        assert!(files(&store).iter().all(|name| !name.ends_with(".json")), "no receipt has its name");
        drop(staged);
        assert_eq!(files(&store), BTreeSet::new());
    }

    #[test]
    fn a_batch_of_which_one_cannot_be_renamed_leaves_nothing() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Arc::new(store(&folder));
        let batch = staged(&store, 4);
        // No file can take the place of a folder, even when others have got their names.
        let folder_in_the_way = store.root.join("parts/3.json");
        fs::create_dir(&folder_in_the_way).expect("a folder");
        assert!(matches!(store.commit(batch), Err(Error::Io { .. })));
        assert_eq!(files(&store), ["3.json".to_owned()].into());
    }

    fn store_that_cannot_sync_at_once(folder: &tempfile::TempDir) -> Arc<Store> {
        let mut store = store(folder);
        store.folder = SoFar::unsyncable(folder.path()).file;
        store.syncs_at_once = true;
        Arc::new(store)
    }

    #[test]
    fn what_was_synced_before_it_was_staged_is_not_synced_again() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store_that_cannot_sync_at_once(&folder);
        let sync = |csv: &mut Draft, parquet: &mut Draft| {
            csv.sync().expect("synced");
            parquet.sync().expect("synced");
        };
        store.commit(staged_after(&store, 3, sync)).expect("nothing is left to be synced");
        assert_eq!(files(&store).len(), 9);
        let sync_one = |csv: &mut Draft, _parquet: &mut Draft| csv.sync().expect("synced");
        let sync_too_early = |csv: &mut Draft, parquet: &mut Draft| {
            sync(csv, parquet);
            csv.write_all(b"more").expect("written");
        };
        assert!(matches!(store.commit(staged_after(&store, 3, sync_one)), Err(Error::Io { .. })));
        assert!(matches!(store.commit(staged_after(&store, 3, sync_too_early)), Err(Error::Io { .. })));
    }

    #[test]
    fn what_is_on_disk_of_a_draft_can_be_synced_while_it_grows() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut draft = store(&folder).draft().expect("a draft");
        draft.write_all(b"held").expect("written");
        assert!(draft.so_far("it").is_none(), "it has no file");
        draft.write_all(&vec![b'c'; 3 * DRAFT_BYTES_HELD]).expect("written");
        draft.so_far("it").expect("it has a file").sync().expect("synced");
        assert!(!draft.synced, "nobody knows whether that was all");
    }

    #[test]
    fn a_draft_is_what_was_written_however_it_was_cut() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store(&folder);
        let all: Vec<u8> = (0..300_007_u32).map(|number| number.to_le_bytes()[1]).collect();
        let (held, mut checksum) = (DRAFT_BYTES_HELD, XxHash3_64::new());
        checksum.write(&all);
        for piece_bytes in [1, 1000, held / 8, held - 1, held, held + 1, 3 * held, all.len()] {
            let mut draft = store.draft().expect("a draft");
            for piece in all.chunks(piece_bytes) {
                draft.write_all(piece).expect("written");
                assert!(draft.held.len() < held && draft.held.capacity() <= held);
            }
            let path = folder.path().join("kept");
            if piece_bytes % 2 == 0 {
                draft.hold_nothing().expect("written");
                assert_eq!(
                    (draft.held.capacity(), fs::metadata(&draft.path).expect("there").len()),
                    (0, all.len() as u64)
                );
            }
            assert_eq!((draft.info().bytes, draft.info().xxh3), (all.len() as u64, checksum_text(&checksum)));
            draft.keep(&path, &folder.path().join("sums")).expect("kept");
            assert!(fs::read(path).expect("readable") == all, "pieces of {piece_bytes} bytes");
        }
    }

    #[test]
    fn short_pieces_are_written_as_one() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut draft = store(&folder).draft().expect("a draft");
        for _ in 0..100 {
            draft.write_all(&[b'p'; 1000]).expect("written");
            let on_disk = draft.file.as_ref().map_or(0, |file| file.metadata().expect("readable").len());
            assert_eq!(on_disk, draft.bytes / DRAFT_BYTES_HELD as u64 * DRAFT_BYTES_HELD as u64);
        }
    }

    #[test]
    fn a_draft_that_failed_takes_no_more() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store(&folder);
        let mut draft = store.draft().expect("a draft");
        draft.write_all(b"held").expect("written");
        let (tmp, not_found) = (store.root.join("tmp"), Err(io::ErrorKind::NotFound));
        let mut write = |bytes| draft.write_all(&vec![b'c'; bytes]).map_err(|error| error.kind());
        fs::remove_dir(&tmp).expect("removed");
        assert_eq!(write(DRAFT_BYTES_HELD), not_found);
        fs::create_dir(&tmp).expect("made");
        assert_eq!(write(DRAFT_BYTES_HELD), not_found, "though it could be written now");
        assert_eq!(draft.bytes(), 4);
    }

    #[test]
    fn room_that_a_file_does_not_need_goes_back() {
        let on_disk = |path: &Path| {
            let metadata = fs::metadata(path).expect("readable");
            (metadata.len(), metadata.blocks() * 512)
        };
        for durability in [Durability::Fsync, Durability::None] {
            let folder = tempfile::TempDir::new().expect("a folder");
            let probe = File::create(folder.path().join("probe")).expect("created");
            let asked = rustix::fs::fallocate(&probe, FallocateFlags::KEEP_SIZE, 0, RESERVED_BYTES);
            if asked == Err(Errno::OPNOTSUPP) || free_bytes(&probe).expect("known") < RESERVE_FREE_BYTES_MIN {
                eprintln!("left out: the file system of {} gives no room ahead", folder.path().display());
                return;
            }
            let store = Store::open(folder.path(), durability).expect("a data folder");
            let (mut draft, kept) = (store.draft().expect("a draft"), folder.path().join("kept"));
            draft.write_all(&vec![b'c'; 2 * DRAFT_BYTES_HELD]).expect("written");
            let (bytes, room) = on_disk(&draft.path);
            assert_eq!(bytes, 2 * DRAFT_BYTES_HELD as u64);
            assert_eq!(room >= RESERVED_BYTES, durability == Durability::Fsync);
            draft.sync().expect("synced");
            assert!(on_disk(&draft.path).1 < RESERVED_BYTES, "it was whole");
            // And if more comes, over the end of what was asked for.
            draft.write_all(&vec![b'c'; 3 * MIB]).expect("written");
            draft.write_all(&vec![b'c'; 3 * MIB]).expect("written");
            draft.keep(&kept, &folder.path().join("sums")).expect("kept");
            let (bytes, room) = on_disk(&kept);
            assert_eq!(bytes, (2 * DRAFT_BYTES_HELD + 6 * MIB) as u64);
            assert!(durability == Durability::None || room < bytes + MIB as u64, "{room} bytes for {bytes}");
        }
    }

    #[test]
    fn a_batch_that_cannot_be_synced_leaves_nothing() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store_that_cannot_sync_at_once(&folder);
        assert!(matches!(store.commit(staged(&store, 3)), Err(Error::Io { .. })));
        assert_eq!(files(&store), BTreeSet::new());
        // Alone it does not need that one.
        store.commit(staged(&store, 1)).expect("committed");

        let batch = staged(&store, 1);
        fs::remove_file(store.root.join("parts/1.parquet")).expect("removed");
        assert!(matches!(store.commit(batch), Err(Error::Io { .. })));
        assert_eq!(files(&store), BTreeSet::new(), "a part of its own has no more rights");
    }

    #[test]
    fn what_a_scratch_file_lost_is_not_handed_out() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let scratch = store(&folder).scratch().expect("a scratch file");
        let offsets = [b"first", b"other"].map(|page| scratch.put(page).expect("written"));
        assert_eq!(offsets.map(|offset| scratch.get(offset, 5).expect("whole")), [b"first", b"other"]);
        scratch.file().expect("a file").write_all_at(b"O", offsets[1]).expect("written");
        assert_eq!(scratch.get(offsets[0], 5).expect("whole"), b"first");
        assert_eq!(scratch.get(offsets[1], 5).expect_err("damaged").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_cannot_be_read_is_an_io_error_and_no_damage() {
        let file = Reader::unreadable(Format::Csv, 100);
        for error in [file.blocks().from(0).err(), file.block(7, 10).err(), file.read_unverified(0, 10).err()] {
            let error = error.expect("it cannot be read");
            assert!(matches!(&error, Error::Io { what, .. } if what == "part 1, csv"), "{error:?}");
        }
    }

    #[test]
    fn old_kernels_do_not_tell_what_failed() {
        for (release, tells) in
            [("5.8.0", true), ("5.15.0-1-amd64", true), ("6.1", true), ("5.7.19", false), ("4.18.0-553.el8", false)]
        {
            assert_eq!(reports_failed_syncfs(release), tells, "{release}");
        }
        assert!(!reports_failed_syncfs("") && !reports_failed_syncfs("unknown"));
    }
}
