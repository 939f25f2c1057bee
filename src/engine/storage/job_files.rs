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
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::{Error, jobs::JobError},
    limits::KIB,
    model::durability::Durability,
};

/// Bytes of a job's record: a question, or names of columns, which JSON may escape to six times their size.
const JOB_RECORD_BYTES_MAX: usize = 256 * KIB;

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
    /// Names of all jobs that have a record now.
    pub(crate) fn job_names(&self) -> Result<Vec<String>, Error> {
        let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let name = |path: PathBuf| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        Ok(self.entries("jobs")?.into_iter().filter(is_record).filter_map(name).collect())
    }

    /// Whether there is a record of a job.
    pub(crate) fn has_job_record(&self, name: &str) -> bool {
        assert_unlocked();
        self.job_path(name, "json").exists()
    }

    /// Publishes the record of a job, in place of its last one.
    pub fn publish_job(&self, name: &str, record: Vec<u8>) -> Result<(), Error> {
        let record = add_checksum(record);
        if record.len() > JOB_RECORD_BYTES_MAX {
            return Err(Error::Internal(format!("the record of job {name} has {} bytes", record.len())));
        }
        self.publish_record(&self.job_path(name, "json"), &record)
    }

    /// A job's record, and whether it is what was written. Errors: there is none; it cannot be read.
    pub fn read_job(&self, name: &str) -> Result<(Vec<u8>, RecordChecksum), Error> {
        assert_unlocked();
        let path = self.job_path(name, "json");
        let mut text = Vec::new();
        let read =
            data_folder::open(&path).and_then(|file| file.take(JOB_RECORD_BYTES_MAX as u64).read_to_end(&mut text));
        match read {
            Ok(_bytes) => {
                let seal = verify_record(&text);
                Ok((text, seal))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(JobError::Damaged { name: name.to_owned(), what: "its record is gone".to_owned() }.into())
            }
            Err(error) if data_folder::is_no_file(&error) => {
                Err(JobError::Damaged { name: name.to_owned(), what: format!("its record: {error}") }.into())
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
        draft.publish(&self.job_path(name, kind.extension()), &self.job_path(name, kind.sums_extension()))?;
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
            Some(sum) if listed_blocks(reader.bytes) == 0 => Check::OneBlock(sum),
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
        self.remove_if_present(&self.job_path(name, "json"));
        self.remove_job_file(name, JobFile::Input);
        self.remove_job_file(name, JobFile::Result);
    }

    /// Removes a job's input or result, and leaves its record.
    pub fn remove_job_file(&self, name: &str, kind: JobFile) {
        self.remove_if_present(&self.job_path(name, kind.extension()));
        self.remove_if_present(&self.job_path(name, kind.sums_extension()));
    }

    /// Moves the files of a job to `quarantine/`.
    pub fn move_job_to_quarantine(&self, name: &str) -> Result<(), Error> {
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
}
