//! The one error type, its facts and its positions. No protocol types: surfaces match on [`Error::kind`].
//!
//! Texts are lower case, have no full stop and say where and what. Text that came from a user is quoted, escaped and
//! cut by [`Quoted`], so that no message can grow with the data or forge a log line.

pub mod csv;
pub mod logged;
pub mod quoted;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use self::{
    csv::{CellFault, CellProblem, CsvError},
    quoted::{Quoted, QuotedList},
};
use crate::{
    limits::PARTS_MAX,
    model::{part::PartId, schema::ColumnType},
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
    /// A column of a type that is no integer.
    #[error("part {part}, column {}: its type is {column_type}, not an integer", Quoted(column))]
    NotSummable {
        /// The first part that has it so.
        part: PartId,
        /// The column asked for.
        column: String,
        /// Its type there.
        column_type: ColumnType,
    },
    /// The sum is exact, but no int64.
    #[error("column {}: the sum {total} does not fit in 64 bits", Quoted(column))]
    SumOverflow {
        /// The column asked for.
        column: String,
        /// The exact sum.
        total: i128,
    },
    /// A question about the survey that is none: what is wrong with it.
    #[error("{0}")]
    NotAQuestion(NotAQuestion),
    /// A survey's question that no row with a value has.
    #[error("no row with a value for question {}", Quoted(question))]
    NoSuchQuestion {
        /// As it was asked.
        question: String,
    },
    /// A state in which no row with a value has the survey's question.
    #[error("no row with a value for question {} in state {}", Quoted(question), Quoted(state))]
    NoSuchState {
        /// As it was asked.
        question: String,
        /// As it was asked.
        state: String,
    },
    /// More states and categories than fit in the memory that there is for them.
    #[error("the states and categories of question {} take more than {bytes_max} bytes", Quoted(question))]
    TooManyGroups {
        /// The question.
        question: String,
        /// The limit.
        bytes_max: usize,
    },
    /// A difference of two means that no double holds.
    #[error("the global mean minus that of state {} does not fit in a double", Quoted(state))]
    DifferenceOverflow {
        /// The first state, by name, for which it is so.
        state: String,
    },
    /// The sum of a group is exact, but no int64.
    #[error("group {}, column {}: the sum {total} does not fit in 64 bits", QuotedList(group), Quoted(column))]
    GroupOverflow {
        /// The group's cells.
        group: Vec<String>,
        /// The column that is summed.
        column: String,
        /// The exact sum.
        total: i128,
    },
    /// A group that no answer over the network holds.
    #[error("group {}: it has more than {bytes_max} bytes, which is the limit for an answer", QuotedList(group))]
    GroupTooLong {
        /// The group's cells.
        group: Vec<String>,
        /// Bytes that it may have.
        bytes_max: usize,
    },
    /// A group sum that cannot be asked for.
    #[error(transparent)]
    GroupBy(#[from] GroupByError),
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

    /// A key over the limit.
    #[error("the key has {bytes} bytes, at most {bytes_max} are allowed")]
    KeyTooLong {
        /// What it has.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A key that was never given a value.
    #[error("key {} is not set", Quoted(key))]
    KeyNotSet {
        /// Which.
        key: String,
    },
    /// A value below 0.
    #[error("key {}: {value} has no factorial", Quoted(key))]
    NoFactorial {
        /// Whose.
        key: String,
        /// The value.
        value: i64,
    },
    /// A value above 20.
    #[error("key {}: the factorial of {value} does not fit in 64 bits", Quoted(key))]
    FactorialTooLarge {
        /// Whose.
        key: String,
        /// The value.
        value: i64,
    },
    /// A value with which the total of all would be no int64.
    #[error("key {}: the total {total} would not fit in 64 bits", Quoted(key))]
    TotalOverflow {
        /// Whose.
        key: String,
        /// The exact total.
        total: i128,
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
    /// As many keys as there may be.
    #[error("there are {keys_max} keys, which is the limit")]
    TooManyKeys {
        /// The limit.
        keys_max: usize,
    },
    /// As many jobs as there may be.
    #[error("{jobs_max} jobs are waiting or running, which is the limit: try again")]
    TooManyJobs {
        /// The limit.
        jobs_max: usize,
    },
    /// Jobs are no longer accepted.
    #[error("shutting down")]
    JobsRefused,
    /// A job that was never there, or is no more.
    #[error("there is no job {}", Quoted(id))]
    NoSuchJob {
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
    JobGivenUp {
        /// How often it was begun.
        starts: u32,
    },
    /// A job's record is not what was written.
    #[error("job {} is damaged: {what}", Quoted(name))]
    DamagedJob {
        /// The job.
        name: String,
        /// How it shows.
        what: String,
    },
    /// A job that somebody stopped.
    #[error("cancelled")]
    JobCancelled,
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

/// What callers do differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller can mend its data or its question.
    Input,
    /// What was asked for would pass the range of a number that is kept.
    OutOfRange,
    /// The request is no valid message.
    Malformed,
    /// The request is of a form that is not supported.
    Unsupported,
    /// The caller went away.
    Cancelled,
    /// Something is used up: try later or make room.
    Exhausted,
    /// The server is going down.
    Unavailable,
    /// There is nothing of that name.
    NotFound,
    /// The caller means another server.
    OtherServer,
    /// A stored file is damaged.
    DataLoss,
    /// Anything else is our fault or the machine's.
    Internal,
}

impl Error {
    /// What a surface should make of it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Csv(_)
            | Self::UnknownFormat(_)
            | Self::Cell { .. }
            | Self::NotSummable { .. }
            | Self::SumOverflow { .. }
            | Self::NotAQuestion(_)
            | Self::NoSuchQuestion { .. }
            | Self::NoSuchState { .. }
            | Self::TooManyGroups { .. }
            | Self::DifferenceOverflow { .. }
            | Self::GroupOverflow { .. }
            | Self::GroupTooLong { .. }
            | Self::GroupBy(_)
            | Self::UploadTooLarge { .. }
            | Self::TooWideAndLong { .. }
            | Self::KeyTooLong { .. }
            | Self::NamesTooLong { .. }
            | Self::KeyNotSet { .. }
            | Self::NoFactorial { .. }
            | Self::FactorialTooLarge { .. } => Kind::Input,
            Self::TotalOverflow { .. } => Kind::OutOfRange,
            Self::Malformed(_) => Kind::Malformed,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Aborted(_) | Self::Cancelled | Self::JobCancelled => Kind::Cancelled,
            Self::TooManyUploads { .. }
            | Self::TooSlow { .. }
            | Self::TooManyGroupWaits { .. }
            | Self::TooManyGroupCalls { .. }
            | Self::TooManyParts { .. }
            | Self::NoPartIdLeft
            | Self::TooManyKeys { .. }
            | Self::TooManyJobs { .. }
            | Self::VerificationRunning
            | Self::DiskFull { .. } => Kind::Exhausted,
            Self::OtherServer { .. } => Kind::OtherServer,
            Self::Draining | Self::NotReady(_) | Self::JobsRefused => Kind::Unavailable,
            Self::NoSuchJob { .. } | Self::NotInQuarantine { .. } => Kind::NotFound,
            Self::Damaged { .. } | Self::DamagedJob { .. } | Self::PartsMissing { .. } => Kind::DataLoss,
            Self::JobGivenUp { .. }
            | Self::Load { .. }
            | Self::DataFolder(_)
            | Self::Secret(_)
            | Self::Io { .. }
            | Self::Internal(_) => Kind::Internal,
        }
    }

    /// The same for another whom the failed work was for, too.
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

/// What is wrong with a question about the survey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAQuestion {
    /// It is about one state.
    #[error("the state is missing")]
    NoState,
    /// A text over the limit.
    #[error("the {what} is longer than {bytes_max} bytes")]
    TooLong {
        /// Which text.
        what: &'static str,
        /// The limit.
        bytes_max: usize,
    },
}

/// Why the columns of a group sum are no question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupByError {
    /// None to group by.
    #[error("a group sum needs a column to group by")]
    NoBy,
    /// None to add.
    #[error("a group sum needs a column to sum")]
    NoSum,
    /// The result would have two columns of one name.
    #[error("a group sum names column {} twice", Quoted(.name))]
    Twice {
        /// The name.
        name: String,
    },
    /// A list of columns that cannot be read.
    #[error("{} is no list of columns: {problem}", Quoted(.list))]
    List {
        /// The list.
        list: String,
        /// What is wrong with it.
        problem: CellFault,
    },
    /// More than there may be.
    #[error("a group sum names more than {columns_max} columns")]
    TooMany {
        /// The limit.
        columns_max: usize,
    },
    /// A name that no column can have.
    #[error("a group sum names a column with more than {bytes_max} bytes")]
    NameTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// Names too long for a question.
    #[error("the columns that a group sum names have more than {bytes_max} bytes together")]
    NamesTooLong {
        /// The limit.
        bytes_max: usize,
    },
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
