//! What can be wrong with a job: it is not accepted, not found, damaged, cancelled or given up.

use super::{kind::Kind, quoted::Quoted};

/// Why a job is not accepted, or has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// As many jobs as there may be.
    #[error("{jobs_max} jobs are waiting or running, which is the limit: try again")]
    TooMany {
        /// The limit.
        jobs_max: usize,
    },
    /// Jobs are no longer accepted.
    #[error("shutting down")]
    Refused,
    /// A job that was never there, or is no more.
    #[error("there is no job {}", Quoted(id))]
    NotFound {
        /// Its name.
        id: String,
    },
    /// A task whose columns have names that are too long together.
    #[error("the names of the columns have more than {bytes_max} bytes together")]
    NamesTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// A job that the server did not survive.
    #[error("given up: the server ended {starts} times while it ran")]
    GivenUp {
        /// How often it was begun.
        starts: u32,
    },
    /// A job's record is not what was written.
    #[error("job {} is damaged: {what}", Quoted(name))]
    Damaged {
        /// The job.
        name: String,
        /// How it shows.
        what: String,
    },
    /// A job that somebody stopped.
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
