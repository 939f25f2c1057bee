//! The records of jobs on disk. The jobs in memory are in `state/jobs.rs`; `record_changes.rs` changes both.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        state::jobs::{JobId, JobState},
        storage::{Store, checksums::RecordChecksum, job_files::JobFiles},
        survey::question::SurveyQuestion,
    },
    error::{Error, jobs::JobError},
    model::checksum::{from_hex, to_hex},
};

/// The version of the records that this program writes. Version 1 has no checksums, neither its own nor those of files.
const RECORD_VERSION: u32 = 2;

/// A record with a greater number of a statistic or a greater order is damaged, because numbers are given out from 1.
const JOB_NUMBER_MAX: u64 = u64::MAX / 2;

/// What a job has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    Survey(SurveyQuestion),
    GroupSum { by: Vec<String>, sum: Vec<String>, header: Vec<String> },
}

/// A job on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    pub(crate) id: JobId,
    /// The order in which jobs of both kinds were accepted.
    pub(super) order: u64,
    /// How often the job was started after a start of the server found it. Its first start is not recorded.
    pub(super) starts: u32,
    pub(crate) work: Work,
    /// The check of its input (`Draft::check`): 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input_check: Option<String>,
    pub(crate) state: RecordState,
    /// When it got this state.
    #[serde(with = "rfc3339")]
    pub(crate) since: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RecordState {
    Queued,
    Running,
    Done {
        bytes: u64,
        /// The check of the result (`Draft::check`): 16 hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        check: Option<String>,
    },
    Failed {
        reason: String,
    },
    Downloaded,
}

/// The jobs on disk when the server starts, before anything is changed.
pub(crate) struct FoundJobs {
    /// In the order in which they were accepted.
    pub(super) jobs: Vec<FoundJob>,
    /// Names of jobs whose record is damaged, and what is wrong with it.
    pub(super) damaged: Vec<(String, String)>,
    /// Names of jobs with files but without a record.
    pub(super) leftovers: Vec<String>,
    /// Statistics that were moved to quarantine earlier.
    pub(super) in_quarantine: Vec<JobId>,
}

/// A job that was found at start. What it has to do is read again when it runs, because it would take much memory for many
/// jobs.
pub(super) struct FoundJob {
    pub(super) id: JobId,
    pub(super) order: u64,
    pub(super) state: RecordState,
    pub(super) since: DateTime<Utc>,
    pub(super) files: JobFiles,
}

/// Reads all records.
///
/// Errors: a record has a newer version or cannot be read; the folder cannot be read.
pub(crate) fn find(store: &Store) -> Result<FoundJobs, Error> {
    let in_quarantine = store.names_in_quarantine()?.iter().filter_map(|name| survey_of(name)).collect();
    let mut found = FoundJobs { jobs: Vec::new(), damaged: Vec::new(), leftovers: Vec::new(), in_quarantine };
    for (name, files) in store.list_jobs()? {
        if !files.record {
            found.leftovers.push(name);
            continue;
        }
        match Record::read(store, &name) {
            Ok(Record { id, order, state, since, .. }) => {
                found.jobs.push(FoundJob { id, order, state, since, files });
            }
            Err(Error::Job(JobError::Damaged { what, .. })) => found.damaged.push((name, what)),
            Err(error) => return Err(error),
        }
    }
    found.jobs.sort_unstable_by_key(|job| job.order);
    Ok(found)
}

/// The statistic of a file in quarantine: `job_id_7` and `job_id_7-2` are both of statistic 7.
fn survey_of(name: &str) -> Option<JobId> {
    let name = name.split_once('-').map_or(name, |(name, _copy)| name);
    name.parse().ok().filter(|id| matches!(id, JobId::Survey(_)) && !is_invalid_number(*id))
}

/// Whether the number of a statistic is greater than any that a server gives out.
pub(super) fn is_invalid_number(id: JobId) -> bool {
    matches!(id, JobId::Survey(number) if number > JOB_NUMBER_MAX)
}

impl Record {
    /// The first record of a job that is about to be accepted.
    pub(crate) fn new(id: JobId, order: u64, work: Work, input_check: Option<u64>) -> Self {
        let (format, input_check, since) = (RECORD_VERSION, input_check.map(to_hex), Utc::now());
        Self { format, id, order, starts: 0, work, input_check, state: RecordState::Queued, since }
    }

    /// What the input is verified against.
    pub(crate) fn input_check(&self) -> Option<u64> {
        self.input_check.as_deref().and_then(from_hex)
    }

    pub(crate) fn read(store: &Store, name: &str) -> Result<Self, Error> {
        let (text, checksum) = store.read_job(name)?;
        Self::parse(name, &text, checksum)
    }

    /// Parses the record of this job.
    ///
    /// Errors: it is damaged, of another job or of a newer version.
    pub(super) fn parse(name: &str, text: &[u8], checksum: RecordChecksum) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let damaged = |what: String| JobError::Damaged { name: name.to_owned(), what }.into();
        if checksum == RecordChecksum::Invalid {
            return Err(damaged("its record is not what was written".to_owned()));
        }
        if let Ok(Version { format }) = serde_json::from_slice(text)
            && format > RECORD_VERSION
            && checksum == RecordChecksum::Valid
        {
            return Err(Error::DataFolder(format!(
                "job {name} has format version {format}, this program knows {RECORD_VERSION}: use a newer one"
            )));
        }
        let record: Self = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        let version = if checksum == RecordChecksum::Valid { RECORD_VERSION } else { 1 };
        if record.id.to_string() != name || record.format != version {
            return Err(damaged("its record is of another job or version".to_owned()));
        }
        if record.order > JOB_NUMBER_MAX || is_invalid_number(record.id) {
            return Err(damaged("its number is greater than any that was given out".to_owned()));
        }
        Ok(Self { format: RECORD_VERSION, ..record })
    }

    /// As it is stored, without its checksum.
    pub(super) fn text(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| Error::Internal(format!("job record: {error}")))
    }

    pub(crate) fn publish(&self, store: &Store) -> Result<(), Error> {
        let text = self.text()?;
        match self.state {
            // If a power failure brings the record before it back, the job runs again in either case.
            RecordState::Running => store.replace_job(&self.id.to_string(), text),
            _ => store.publish_job(&self.id.to_string(), text),
        }
    }
}

impl RecordState {
    /// What the result is verified against; `None` if there is no result, or if the record has version 1.
    pub(crate) fn result_check(&self) -> Option<u64> {
        match self {
            Self::Done { check, .. } => check.as_deref().and_then(from_hex),
            Self::Queued | Self::Running | Self::Failed { .. } | Self::Downloaded => None,
        }
    }
}

impl From<RecordState> for JobState {
    fn from(state: RecordState) -> Self {
        match state {
            RecordState::Queued => Self::Queued,
            RecordState::Running => Self::Running { done: 0, total: 0 },
            RecordState::Done { bytes, .. } => Self::Done { bytes },
            RecordState::Failed { reason } => Self::Failed { reason: reason.into() },
            RecordState::Downloaded => Self::Downloaded,
        }
    }
}

/// Times in the format that receipts use, too.
mod rfc3339 {
    use chrono::{DateTime, SecondsFormat, Utc};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(deserializer)?;
        DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).map_err(D::Error::custom)
    }
}
