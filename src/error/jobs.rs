//! Errors of jobs.

use super::{kind::Kind, quoted::Quoted};

/// Why a job is not accepted, or has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Too many jobs wait or run.
    #[error("{jobs_max} jobs are waiting or running, which is the limit: try again")]
    TooMany {
        /// The limit.
        jobs_max: usize,
    },
    /// Jobs are no longer accepted.
    #[error("shutting down")]
    Refused,
    /// The job never existed or was removed.
    #[error("there is no job {}", Quoted(id))]
    NotFound {
        /// The id.
        id: String,
    },
    /// The names of a task's columns are too long together.
    #[error("the names of the columns have more than {bytes_max} bytes together")]
    NamesTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The server has stopped or crashed too often while the job ran.
    #[error("given up: the server ended {starts} times while it ran")]
    GivenUp {
        /// How often the job was started.
        starts: u32,
    },
    /// A file of the job is damaged.
    #[error("job {} is damaged: {what}", Quoted(name))]
    Damaged {
        /// The job's id, or the name of its files.
        name: String,
        /// What is wrong, and in which file.
        what: String,
    },
    /// The job was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl JobError {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::NamesTooLong { .. } => Kind::Input,
            Self::TooMany { .. } => Kind::Exhausted,
            Self::Refused => Kind::Unavailable,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Damaged { .. } => Kind::DataLoss,
            Self::Cancelled => Kind::Cancelled,
            Self::GivenUp { .. } => Kind::Internal,
        }
    }
}
