//! [`Error`]: the errors of every domain, and those that belong to none.

use std::{io, path::PathBuf};

use super::{
    column_sum::ColumnSumError,
    csv::{CellProblem, CsvError},
    group_by::GroupByError,
    jobs::JobError,
    kind::Kind,
    numstore::NumStoreError,
    position::{ColumnPosition, Position},
    quoted::Quoted,
    statistics::StatisticsError,
};
use crate::{
    limits::PARTS_MAX,
    model::{format::UnknownFormat, part::PartId},
};

/// What went wrong, with the facts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no CSV as Tally understands it.
    #[error(transparent)]
    Csv(#[from] CsvError),
    /// A format that does not exist.
    #[error("unknown format {}: it is \"csv\" or \"parquet\"", Quoted(.0))]
    UnknownFormat(String),
    /// A cell that cannot be added.
    #[error("part {part}, row {row}, column {}: {} {problem}", Quoted(column), Quoted(cell))]
    Cell {
        /// Where it stands.
        part: PartId,
        /// Data row, from 1.
        row: u64,
        /// The column asked for.
        column: String,
        /// The cell's text.
        cell: String,
        /// Why it cannot be added.
        problem: CellProblem,
    },
    /// A group sum.
    #[error(transparent)]
    GroupBy(#[from] GroupByError),
    /// The sum of a column.
    #[error(transparent)]
    ColumnSum(#[from] ColumnSumError),
    /// A statistics question.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// A call of the key/value service.
    #[error(transparent)]
    NumStore(#[from] NumStoreError),
    /// A job.
    #[error(transparent)]
    Job(#[from] JobError),
    /// An upload over the limit.
    #[error("the upload has more than {bytes_max} bytes")]
    UploadTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// A table so wide and so long that its Parquet footer would not fit in memory.
    #[error("{columns} columns and {file_bytes} bytes are too much for one part: send it in smaller files")]
    TooWideAndLong {
        /// Columns of the file.
        columns: usize,
        /// Its size.
        file_bytes: u64,
    },
    /// What came is no gRPC upload.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// A form of request that the protocol has and Tally has not.
    #[error("{0}")]
    Unsupported(String),
    /// The client went away or sent nothing for too long.
    #[error("the upload stopped: {0}")]
    Aborted(String),
    /// The caller no longer waits for the answer.
    #[error("cancelled")]
    Cancelled,
    /// As many uploads as there may be.
    #[error("{uploads_max} uploads are under way, which is the limit: try again")]
    TooManyUploads {
        /// The limit.
        uploads_max: usize,
    },
    /// A client that sends or reads too slowly.
    #[error("the transfer was {seconds} s behind 1 KiB/s, and was ended")]
    TooSlow {
        /// How far behind it may be; less while others wait for its permit.
        seconds: u64,
    },
    /// As many calls for group sums as may wait.
    #[error("{waits_max} group sums wait for their turn, which is the limit: try again")]
    TooManyGroupWaits {
        /// The limit.
        waits_max: usize,
    },
    /// As many calls for group sums as there may be.
    #[error("{calls_max} group sums are under way, their answers being read, which is the limit: try again")]
    TooManyGroupCalls {
        /// The limit.
        calls_max: usize,
    },
    /// As many parts as there may be.
    #[error(
        "the table is full: it has the {parts_max} parts that --parts-max allows; send fewer and larger files to a new data \
         folder{}",
        if *.parts_max < PARTS_MAX { ", or start the server with a higher limit" } else { "" }
    )]
    TooManyParts {
        /// The limit.
        parts_max: usize,
    },
    /// A part has the last number but one.
    #[error("no number is left for another part: use a new data folder")]
    NoPartIdLeft,
    /// No room on the disk.
    #[error("the disk is full: {what}")]
    DiskFull {
        /// What was being written.
        what: String,
    },
    /// The server is going down.
    #[error("the server is shutting down")]
    Draining,
    /// Work is not done in time: who is waited for.
    #[error("{0}")]
    NotReady(String),
    /// A stored file is not what its receipt says.
    #[error("part {part} is damaged: {what}")]
    Damaged {
        /// Which.
        part: PartId,
        /// How it shows.
        what: String,
    },
    /// Parts were set aside as damaged, so an answer would not be about all of the table.
    #[error("{}", parts_missing(*first, *count))]
    PartsMissing {
        /// The one with the smallest number.
        first: PartId,
        /// How many there are.
        count: usize,
    },
    /// One verification of all that is stored is enough.
    #[error("a verification is under way, and there is one at a time: try again when it has ended")]
    VerificationRunning,
    /// The caller means another server.
    #[error("this server is process {own}, and process {process} holds the data folder: give the address of that one")]
    OtherServer {
        /// The one that was meant.
        process: u64,
        /// This one.
        own: u64,
    },
    /// A part whose loss cannot be accepted.
    #[error("part {part} is not in quarantine")]
    NotInQuarantine {
        /// As it was asked.
        part: u64,
    },
    /// A file that was to be in the table before serving.
    #[error("--load {}: {cause}", file.display())]
    Load {
        /// Which.
        file: PathBuf,
        /// Why it is not.
        cause: Box<Error>,
    },
    /// A data folder that cannot be served.
    #[error("{0}")]
    DataFolder(String),
    /// A file that should hold a secret.
    #[error("{0}")]
    Secret(String),
    /// Any other failure of a file operation.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's word.
        cause: io::Error,
    },
    /// A bug: work panicked.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<UnknownFormat> for Error {
    fn from(UnknownFormat(text): UnknownFormat) -> Self {
        Self::UnknownFormat(text)
    }
}

impl Error {
    /// What a surface chooses its status by.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Csv(_)
            | Self::UnknownFormat(_)
            | Self::Cell { .. }
            | Self::UploadTooLarge { .. }
            | Self::TooWideAndLong { .. } => Kind::Input,
            Self::ColumnSum(error) => error.kind(),
            Self::GroupBy(error) => error.kind(),
            Self::Statistics(error) => error.kind(),
            Self::NumStore(error) => error.kind(),
            Self::Job(error) => error.kind(),
            Self::Malformed(_) => Kind::Malformed,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Aborted(_) | Self::Cancelled => Kind::Cancelled,
            Self::TooManyUploads { .. }
            | Self::TooSlow { .. }
            | Self::TooManyGroupWaits { .. }
            | Self::TooManyGroupCalls { .. }
            | Self::TooManyParts { .. }
            | Self::NoPartIdLeft
            | Self::VerificationRunning
            | Self::DiskFull { .. } => Kind::Exhausted,
            Self::OtherServer { .. } => Kind::OtherServer,
            Self::Draining | Self::NotReady(_) => Kind::Unavailable,
            Self::NotInQuarantine { .. } => Kind::NotFound,
            Self::Damaged { .. } | Self::PartsMissing { .. } => Kind::DataLoss,
            Self::Load { .. } | Self::DataFolder(_) | Self::Secret(_) | Self::Io { .. } | Self::Internal(_) => {
                Kind::Internal
            }
        }
    }

    /// Where in the data the error is. Everything is `None` for an error that has no position.
    pub fn position(&self) -> Position<'_> {
        match self {
            Self::Csv(error) => error.position(),
            Self::ColumnSum(error) => error.position(),
            Self::Cell { part, row, column, .. } => {
                Position { part: Some(*part), row: Some(*row), column: Some(ColumnPosition::Name(column)) }
            }
            Self::Damaged { part, .. } => Position { part: Some(*part), ..Position::default() },
            Self::Load { cause, .. } => cause.position(),
            Self::UnknownFormat(_)
            | Self::GroupBy(_)
            | Self::Statistics(_)
            | Self::NumStore(_)
            | Self::Job(_)
            | Self::UploadTooLarge { .. }
            | Self::TooWideAndLong { .. }
            | Self::Malformed(_)
            | Self::Unsupported(_)
            | Self::Aborted(_)
            | Self::Cancelled
            | Self::TooManyUploads { .. }
            | Self::TooSlow { .. }
            | Self::TooManyGroupWaits { .. }
            | Self::TooManyGroupCalls { .. }
            | Self::TooManyParts { .. }
            | Self::NoPartIdLeft
            | Self::VerificationRunning
            | Self::DiskFull { .. }
            | Self::OtherServer { .. }
            | Self::Draining
            | Self::NotReady(_)
            | Self::NotInQuarantine { .. }
            | Self::PartsMissing { .. }
            | Self::DataFolder(_)
            | Self::Secret(_)
            | Self::Io { .. }
            | Self::Internal(_) => Position::default(),
        }
    }

    /// A copy for another caller that waited for the same work, such as a shared commit. `io::Error` cannot be cloned, so
    /// this cannot be `Clone`.
    pub fn again(&self) -> Self {
        match self {
            Self::DiskFull { what } => Self::DiskFull { what: what.clone() },
            Self::Io { what, cause } => {
                let cause = cause.raw_os_error().map_or_else(|| cause.kind().into(), io::Error::from_raw_os_error);
                Self::Io { what: what.clone(), cause }
            }
            Self::Draining => Self::Draining,
            Self::Internal(what) => Self::Internal(what.clone()),
            other => Self::Internal(other.to_string()),
        }
    }

    /// Wraps a failed file operation; a full disk or quota becomes its own variant.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { what },
            _ => Self::Io { what, cause },
        }
    }
}

fn parts_missing(first: PartId, count: usize) -> String {
    let missing = match count {
        1 => format!("part {first} is missing from the table: it was damaged and is in quarantine"),
        _ => format!(
            "{count} parts are missing from the table, part {first} first: they were damaged and are in quarantine"
        ),
    };
    format!(
        "{missing}: stop the server and move its files back, whole ({first}.json and those beside it), to parts/ in the \
         data folder, or accept the loss with `tally forget {first}`"
    )
}
