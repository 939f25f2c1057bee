//! The files of jobs: record, input and result.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

use super::{
    checksums::{RecordChecksum, add_checksum, listed_blocks, verify_record},
    data_folder,
    draft::Draft,
    names::{FileName, JobFile},
    reader::{Check, Reader},
    store::Store,
    sync::sync_folder,
    unremoved::Unremoved,
};
use crate::{
    engine::state::{jobs::JobId, lock_check::assert_unlocked},
    error::{Error, jobs::JobError},
    limits::KIB,
};

/// Bytes of a job's record. It holds a question or column names, which JSON may escape to six times their size.
const JOB_RECORD_BYTES_MAX: usize = 256 * KIB;

/// Which files of a job exist, and their sizes.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobFiles {
    /// Whether there is a record.
    pub record: bool,
    /// The size of the input.
    pub input: Option<u64>,
    /// The size of the result.
    pub result: Option<u64>,
}

impl Store {
    /// The names of all jobs that have a record.
    pub(crate) fn job_names(&self) -> Result<Vec<String>, Error> {
        assert_unlocked();
        let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let name = |path: PathBuf| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        // Whatever else is in the folder while the server runs is not looked at: it must not hide a damaged job.
        let what = || Error::io("the folder of jobs");
        let paths = fs::read_dir(self.root.join("jobs")).map_err(what())?.map(|entry| entry.map(|entry| entry.path()));
        let paths = paths.collect::<io::Result<Vec<_>>>().map_err(what())?;
        Ok(paths.into_iter().filter(is_record).filter_map(name).collect())
    }

    pub(crate) fn has_job_record(&self, name: &str) -> bool {
        assert_unlocked();
        self.job_path(name, "json").exists()
    }

    /// Publishes the record of a job, replacing the previous one.
    pub fn publish_job(&self, name: &str, record: Vec<u8>) -> Result<(), Error> {
        self.publish_record(&self.job_path(name, "json"), &checked_record(name, record)?)
    }

    /// As [`Self::publish_job`], but after a power failure the record may be the previous one: the folder is not synced, which
    /// would take as long as the record itself.
    pub fn replace_job(&self, name: &str, record: Vec<u8>) -> Result<(), Error> {
        self.rename_record(&self.job_path(name, "json"), &checked_record(name, record)?)
    }

    /// Reads a job's record and checks its checksum.
    ///
    /// Errors: there is no record; it cannot be read.
    pub fn read_job(&self, name: &str) -> Result<(Vec<u8>, RecordChecksum), Error> {
        assert_unlocked();
        let path = self.job_path(name, "json");
        let mut text = Vec::new();
        let read =
            data_folder::open(&path).and_then(|file| file.take(JOB_RECORD_BYTES_MAX as u64).read_to_end(&mut text));
        match read {
            Ok(_bytes) => {
                let checksum = verify_record(&text);
                Ok((text, checksum))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(JobError::Damaged { name: name.to_owned(), what: "its record is gone".to_owned() }.into())
            }
            Err(error) if data_folder::is_no_regular_file(&error) => {
                Err(JobError::Damaged { name: name.to_owned(), what: format!("its record: {error}") }.into())
            }
            Err(error) => Err(Error::io(format!("the record of job {name}"))(error)),
        }
    }

    /// Publishes a draft as a job's input or result. It is used only once a record refers to it. Returns [`Draft::check`].
    ///
    /// A file of one block has no list of checksums, and shares the sync of the folder with its record, which the caller publishes
    /// next. So after a power failure there may be a record, of which no client knows, without this file.
    pub fn publish_job_file(&self, mut draft: Draft, name: &str, kind: JobFile) -> Result<u64, Error> {
        assert_unlocked();
        let what = || Error::io(format!("job {name}"));
        let (check, shares_sync) = (draft.check(), draft.sums_seed().is_none());
        if self.is_synced() && !draft.synced {
            draft.sync().map_err(what())?;
        }
        let (path, sums_path) = (self.job_path(name, kind.extension()), self.job_path(name, kind.sums_extension()));
        draft.publish(&path, &sums_path).inspect_err(|_| self.remove_job_file(name, kind))?;
        if self.is_synced() && !shares_sync {
            // Otherwise a power failure could keep the file without its list.
            sync_folder(&self.root.join("jobs")).map_err(what()).inspect_err(|_| self.remove_job_file(name, kind))?;
        }
        Ok(check)
    }

    /// Opens a job's input or result, which is verified against its [`Draft::check`] as it is read. `check` is `None` for
    /// records of version 1.
    pub fn open_job_file(&self, name: &str, kind: JobFile, check: Option<u64>) -> Result<Reader, Error> {
        let file_name = FileName::Job(name.into(), kind);
        let mut reader = Reader::open_as(&self.job_path(name, kind.extension()), file_name)?;
        reader.check = match check {
            None => Check::Unverified,
            Some(sum) if listed_blocks(reader.bytes) == 0 => Check::OneBlock(sum),
            Some(seed) => match data_folder::open(&self.job_path(name, kind.sums_extension())) {
                Ok(sums) => Check::BlockList(Arc::new(sums), seed),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(reader.damaged(&format!("its list of checksums: {error}")));
                }
                Err(error) => return Err(Error::io(reader.name.to_string())(error)),
            },
        };
        Ok(reader)
    }

    /// Removes a job, now or later. The record is removed first, because files without a record are removed at the next start.
    pub fn remove_job(&self, name: &str) {
        let extensions = ["json", "input", "input-sums", "result", "result-sums"];
        self.remove_job_files(name, &extensions, Unremoved::Job);
    }

    /// Removes a job's input or result, now or later.
    pub fn remove_job_file(&self, name: &str, kind: JobFile) {
        let of_job = |id| Unremoved::JobFile(id, kind);
        self.remove_job_files(name, &[kind.extension(), kind.sums_extension()], of_job);
    }

    fn remove_job_files(&self, name: &str, extensions: &[&str], unremoved: impl FnOnce(JobId) -> Unremoved) {
        let paths = extensions.iter().map(|extension| self.job_path(name, extension));
        match name.parse() {
            Ok(id) => self.remove_or_later(paths, unremoved(id)),
            Err(_foreign_name) => self.remove_or_at_start(paths),
        }
    }

    /// Moves the files of a job to `quarantine/`.
    pub fn move_job_to_quarantine(&self, name: &str) -> Result<(), Error> {
        for extension in ["input", "input-sums", "result", "result-sums", "json"] {
            self.move_to_quarantine(&self.job_path(name, extension), name, extension)?;
        }
        Ok(())
    }

    /// The names of all jobs that have any file, and their files.
    pub fn list_jobs(&self) -> Result<BTreeMap<String, JobFiles>, Error> {
        let mut jobs = BTreeMap::<String, JobFiles>::new();
        for path in self.entries("jobs")? {
            let text = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).map(str::to_owned);
            let (Some(name), Some(extension)) = (text(path.file_stem()), text(path.extension())) else {
                tracing::warn!(path = %path.display(), "unknown file, ignored");
                continue;
            };
            let bytes = fs::symlink_metadata(&path).map_err(Error::io(format!("job file {}", path.display())))?.len();
            match extension.as_str() {
                "json" => jobs.entry(name).or_default().record = true,
                "input" => jobs.entry(name).or_default().input = Some(bytes),
                "result" => jobs.entry(name).or_default().result = Some(bytes),
                "input-sums" | "result-sums" => drop(jobs.entry(name).or_default()),
                _ => tracing::warn!(path = %path.display(), "unknown file, ignored"),
            }
        }
        Ok(jobs)
    }
}

/// The record with its checksum.
fn checked_record(name: &str, record: Vec<u8>) -> Result<Vec<u8>, Error> {
    let record = add_checksum(record);
    if record.len() > JOB_RECORD_BYTES_MAX {
        return Err(Error::Internal(format!("the record of job {name} has {} bytes", record.len())));
    }
    Ok(record)
}
