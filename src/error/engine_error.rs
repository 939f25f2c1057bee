//! [`Error`]: the errors of all domains, and the errors of no particular domain.

use std::{io, path::PathBuf};

use super::{
    column_sum::ColumnSumError,
    csv::{CellProblem, CsvError},
    dialect::DialectError,
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
    model::{dialect::InvalidDialect, format::UnknownFormat, packed::SegmentId, part::PartId},
};

/// What went wrong, with the facts as data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CSV file is not valid.
    #[error(transparent)]
    Csv(#[from] CsvError),
    /// The file is not of the dialect that was given for it.
    #[error(transparent)]
    Dialect(#[from] DialectError),
    /// A format that does not exist.
    #[error("unknown format {}: it is \"csv\" or \"parquet\"", Quoted(.0))]
    UnknownFormat(String),
    /// A cell that cannot be added.
    #[error("part {part}, row {row}, column {}: {} {problem}", Quoted(column), Quoted(cell))]
    Cell {
        /// The part that has the cell.
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
    /// An error of a group sum.
    #[error(transparent)]
    GroupBy(#[from] GroupByError),
    /// An error of a column sum.
    #[error(transparent)]
    ColumnSum(#[from] ColumnSumError),
    /// An error of a statistics question.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// An error of the key/value service.
    #[error(transparent)]
    NumStore(#[from] NumStoreError),
    /// An error of a job.
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
        /// The number of columns.
        columns: usize,
        /// The size of the file.
        file_bytes: u64,
    },
    /// The request is not a valid gRPC upload.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// A request that the protocol allows and Tally does not support.
    #[error("{0}")]
    Unsupported(String),
    /// The client went away or sent nothing for too long.
    #[error("the upload stopped: {0}")]
    Aborted(String),
    /// The caller no longer waits for the answer.
    #[error("cancelled")]
    Cancelled,
    /// Too many uploads run at once.
    #[error("{uploads_max} uploads are under way, which is the limit: try again")]
    TooManyUploads {
        /// The limit.
        uploads_max: usize,
    },
    /// The client sends or reads too slowly.
    #[error("the transfer was {seconds} s behind 1 KiB/s, and was ended")]
    TooSlow {
        /// How far behind a transfer may be; less while others wait for its permit.
        seconds: u64,
    },
    /// Too many calls for group sums are open.
    #[error("{calls_max} group sums are running or being read, which is the limit: try again")]
    TooManyGroupCalls {
        /// The limit.
        calls_max: usize,
    },
    /// The table is full.
    #[error(
        "the table is full: it has the {parts_max} parts that --parts-max allows{}; send fewer and larger files to a new data \
         folder{}",
        counted_parts(*.removed, *.purged, *.segments),
        if *.parts_max < PARTS_MAX { ", or start the server with a higher limit" } else { "" }
    )]
    TooManyParts {
        /// The limit.
        parts_max: usize,
        /// How many of the parts were removed and are kept to be restored.
        removed: usize,
        /// How many purged parts are still in segments. Four count as one part.
        purged: usize,
        /// How many segments there are. They count with their Parquet files.
        segments: usize,
    },
    /// All part ids are used.
    #[error("no part id is left: use a new data folder")]
    NoPartIdLeft,
    /// The disk is full.
    #[error("the disk is full: {what}")]
    DiskFull {
        /// What was being written.
        what: String,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// A readiness check has failed: what did not answer in time.
    #[error("{0}")]
    NotReady(String),
    /// Other machines should have answered, and could not.
    #[error("the cluster has not answered: {0}; try again, or look at its scheduler and executors")]
    Cluster(String),
    /// A stored file does not match its receipt or its checksums.
    #[error("part {part} is damaged: {what}")]
    Damaged {
        /// The part.
        part: PartId,
        /// What is wrong, and in which file.
        what: String,
    },
    /// Parts are in quarantine, so an answer would not be about the whole table.
    #[error("{}", parts_missing(*first, *count, *segment))]
    PartsMissing {
        /// The missing part with the smallest id.
        first: PartId,
        /// The number of missing parts.
        count: usize,
        /// The segment that has that part, if it is the segment that was damaged.
        segment: Option<SegmentId>,
    },
    /// Parquet files of segments have rows of parts that were removed, so their list alone would be misleading.
    #[error("{}", removed_rows(*first, *count))]
    RemovedRows {
        /// The removed part with the smallest id.
        first: PartId,
        /// The number of such parts.
        count: usize,
    },
    /// A verification is already running.
    #[error("another verification is running: try again when it has ended")]
    VerificationRunning,
    /// The request is for another server process.
    #[error("this server is process {own}, and process {process} holds the data folder: give the address of that one")]
    OtherServer {
        /// The process that the request is for.
        process: u64,
        /// This process.
        own: u64,
    },
    /// A part whose loss cannot be accepted.
    #[error("part {part} is not in quarantine")]
    NotInQuarantine {
        /// The id in the request.
        part: u64,
    },
    /// A part that is neither in the table nor can be restored.
    #[error("there is no part {part}: it was never there, or its files are gone")]
    NoSuchPart {
        /// The id in the request.
        part: u64,
    },
    /// A part that was removed.
    #[error("part {part} was removed, and can be restored until {restorable_until}")]
    PartRemoved {
        /// The part.
        part: PartId,
        /// RFC 3339, UTC.
        restorable_until: String,
    },
    /// A part that cannot be removed, because it is in quarantine.
    #[error("part {part} is in quarantine: accept its loss with `tally forget {part}`")]
    InQuarantine {
        /// The part.
        part: PartId,
    },
    /// An idempotency key that was used for other bytes.
    #[error("the idempotency-key {} was used for other bytes, which are part {part}: use a new key", Quoted(key))]
    KeyUsed {
        /// The key.
        key: String,
        /// The part that was uploaded with it.
        part: PartId,
    },
    /// A file of `--load` that cannot be added to the table.
    #[error("--load {}: {cause}", file.display())]
    Load {
        /// The file.
        file: PathBuf,
        /// The reason.
        cause: Box<Error>,
    },
    /// A data folder that cannot be served.
    #[error("{0}")]
    DataFolder(String),
    /// A caller has used what it may use.
    #[error("the quota of {limit} {what} is used up: try again in {retry_s} s")]
    Quota {
        /// How much it may use.
        limit: u64,
        /// Of what.
        what: &'static str,
        /// Seconds after which it may try again.
        retry_s: u64,
    },
    /// A file that does not contain a valid secret.
    #[error("{0}")]
    Secret(String),
    /// Any other failure of a file operation.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// A bug, such as a panic.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<UnknownFormat> for Error {
    fn from(UnknownFormat(text): UnknownFormat) -> Self {
        Self::UnknownFormat(text)
    }
}

impl From<InvalidDialect> for Error {
    fn from(invalid: InvalidDialect) -> Self {
        DialectError::from(invalid).into()
    }
}

impl Error {
    /// The kind of the error, by which the APIs choose a status.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Csv(_)
            | Self::UnknownFormat(_)
            | Self::Cell { .. }
            | Self::UploadTooLarge { .. }
            | Self::TooWideAndLong { .. } => Kind::Input,
            Self::ColumnSum(error) => error.kind(),
            Self::Dialect(error) => error.kind(),
            Self::GroupBy(error) => error.kind(),
            Self::Statistics(error) => error.kind(),
            Self::NumStore(error) => error.kind(),
            Self::Job(error) => error.kind(),
            Self::Malformed(_) => Kind::Malformed,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Aborted(_) | Self::Cancelled => Kind::Cancelled,
            Self::TooManyUploads { .. }
            | Self::TooSlow { .. }
            | Self::TooManyGroupCalls { .. }
            | Self::TooManyParts { .. }
            | Self::NoPartIdLeft
            | Self::VerificationRunning
            | Self::Quota { .. }
            | Self::DiskFull { .. } => Kind::Exhausted,
            Self::OtherServer { .. } | Self::InQuarantine { .. } | Self::RemovedRows { .. } | Self::KeyUsed { .. } => {
                Kind::Conflict
            }
            Self::Draining | Self::NotReady(_) | Self::Cluster(_) => Kind::Unavailable,
            Self::NotInQuarantine { .. } | Self::NoSuchPart { .. } | Self::PartRemoved { .. } => Kind::NotFound,
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
            Self::Dialect(error) => error.position(),
            Self::Cell { part, row, column, .. } => {
                let column = Some(ColumnPosition::Name(column));
                Position { part: Some(*part), row: Some(*row), column, ..Position::default() }
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
            | Self::TooManyGroupCalls { .. }
            | Self::TooManyParts { .. }
            | Self::NoPartIdLeft
            | Self::VerificationRunning
            | Self::Quota { .. }
            | Self::DiskFull { .. }
            | Self::OtherServer { .. }
            | Self::Draining
            | Self::NotReady(_)
            | Self::Cluster(_)
            | Self::NotInQuarantine { .. }
            | Self::NoSuchPart { .. }
            | Self::PartRemoved { .. }
            | Self::InQuarantine { .. }
            | Self::KeyUsed { .. }
            | Self::PartsMissing { .. }
            | Self::RemovedRows { .. }
            | Self::DataFolder(_)
            | Self::Secret(_)
            | Self::Io { .. }
            | Self::Internal(_) => Position::default(),
        }
    }

    /// A copy for another caller that waited for the same work, such as a shared commit. This is not `Clone`, because
    /// `io::Error` is not, and some errors become [`Error::Internal`].
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

fn counted_parts(removed: usize, purged: usize, segments: usize) -> String {
    let mut counted = String::new();
    if removed > 0 {
        counted += &format!(", {removed} of them removed and still restorable (`tally remove --purge` makes room)");
    }
    if purged > 0 {
        counted += &format!(", with {purged} purged parts that are still in segments (`tally pack` makes room)");
    }
    if segments > 0 {
        counted += &format!(", with the files of {segments} segments");
    }
    counted
}

fn parts_missing(first: PartId, count: usize, segment: Option<SegmentId>) -> String {
    let missing = match count {
        1 => format!("part {first} is missing from the table: it was damaged and is in quarantine"),
        _ => format!(
            "{count} parts are missing from the table, part {first} first: they were damaged and are in quarantine"
        ),
    };
    let (files, lost) = match segment {
        None => (format!("{first}.json and the others"), String::new()),
        Some(segment) => (format!("{segment}.segment and the others"), ", for all parts of this segment".to_owned()),
    };
    format!(
        "{missing}: stop the server and move its files back, undamaged ({files}), to parts/ in the data folder, or accept \
         the loss with `tally forget {first}`{lost}"
    )
}

fn removed_rows(first: PartId, count: usize) -> String {
    let whose = match count {
        1 => format!("part {first}, which was removed"),
        _ => format!("{count} removed parts, part {first} first"),
    };
    format!(
        "the Parquet files of segments still have the rows of {whose}: ask for the positions of these rows, too \
         (with-removed), or purge what was removed (`tally remove --purge {first}`) and run `tally pack`"
    )
}
