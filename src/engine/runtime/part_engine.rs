//! What answers a question about parts: the workers of this server, or other machines that have the data folder. Nothing above
//! [`PartEngine`] and [`GroupEngine`] knows which it is.

use std::{future::ready, sync::Arc};

use futures_util::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use tokio::sync::mpsc;

use super::group_rows::{GroupRows, ValueLayout};
use crate::{
    error::Error,
    model::{
        format::Format,
        part::{Part, PartId},
    },
};

/// A question about each of some parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartQuestion {
    /// The column to sum.
    pub column: Arc<str>,
    /// Which files are read of parts that have their own. Of parts in segments, the CSV is read.
    pub format: Format,
}

/// The answer for one part.
#[derive(Debug)]
pub struct PartAnswer {
    /// The part.
    pub part: PartId,
    /// What was found.
    pub outcome: PartOutcome,
}

/// What was found in a part.
#[derive(Debug)]
pub enum PartOutcome {
    /// The part does not have the column, or no value in it.
    WithoutColumn,
    /// All cells were added.
    Summed(PartTotals),
    /// Its rows are in the groups that come with it.
    Grouped(PartGroups),
    /// It was read without an error, but no group of it is in the answer: a part after it has failed.
    Passed,
    /// The part has no answer: a cell or the type of the column, or what this server could not read.
    Failed(Error),
    /// Another machine could not read the part, and says why. Whether it is damaged, only this server decides.
    Unreadable(String),
}

/// The sum of a column in one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartTotals {
    /// The exact sum.
    pub sum: i128,
    /// Data rows that were read.
    pub rows: u64,
    /// Bytes of CSV, or of the column's chunks in Parquet.
    pub bytes: u64,
}

/// Of a part whose rows are in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartGroups {
    /// Data rows that were read.
    pub rows: u64,
    /// The checksum ([`GroupsCheck`](super::group_rows::GroupsCheck)) of the groups of all parts that were read together, for one
    /// of these parts; 0 for the others.
    pub check: u64,
}

/// A question about the rows of parts together. Its answer has groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupQuestion {
    /// A group sum.
    Sum {
        /// The columns to group by.
        by: Vec<String>,
        /// The columns to sum.
        sum: Vec<String>,
    },
    /// A statistic of the survey.
    Survey {
        /// The texts of the question (`survey/question.rs`).
        texts: Vec<String>,
    },
}

/// Bytes of an exact sum of integers.
pub const SUM_BYTES: usize = size_of::<i128>();
/// Bytes of an exact sum of doubles (`values/mean.rs`).
pub const DOUBLES_SUM_BYTES: usize = 272;

impl GroupQuestion {
    /// What a group's value is made of.
    pub fn layout(&self) -> ValueLayout {
        match self {
            Self::Sum { sum, .. } => ValueLayout { numbers: sum.len(), number_bytes: SUM_BYTES },
            Self::Survey { .. } => ValueLayout { numbers: 1, number_bytes: DOUBLES_SUM_BYTES },
        }
    }
}

/// Some of the answer to a [`GroupQuestion`].
#[derive(Debug)]
pub enum GroupAnswer {
    /// What was found in some parts.
    Parts(Vec<PartAnswer>),
    /// Groups. A key may come more than once; its values are then added.
    Groups(GroupRows),
    /// Some of the answer is lost, so that nothing of it counts. The question may be asked again.
    Lost,
}

/// Answers questions about parts, each by itself.
pub trait PartEngine: Send + Sync {
    /// One answer for each part, in any order. Answers may be missing if a part has failed, or if a machine has; the caller asks
    /// again for those that it needs. If the returned future is dropped, the work is cancelled.
    ///
    /// Errors: nobody can answer now.
    fn ask(&self, parts: Vec<Arc<Part>>, question: PartQuestion) -> BoxFuture<'_, Result<Vec<PartAnswer>, Error>>;
}

/// Answers questions about the rows of parts together.
pub trait GroupEngine: Send + Sync {
    /// The groups of the rows of all these parts, and an answer for each part, in any order. If a part has failed, its answer says so, and
    /// groups may be missing. If the returned stream is dropped, the work is cancelled.
    ///
    /// Errors: nobody can answer now.
    fn groups(&self, parts: Vec<Arc<Part>>, question: GroupQuestion) -> BoxStream<'_, Result<GroupAnswer, Error>>;
}

/// Other machines that have the data folder.
pub trait Cluster: PartEngine + GroupEngine {}

impl<T: PartEngine + GroupEngine> Cluster for T {}

/// What `work` sends, and its error at the end. If the stream is dropped, so is the work.
pub fn answers_of<'a, T, W>(work: impl FnOnce(mpsc::Sender<T>) -> W) -> BoxStream<'a, Result<T, Error>>
where
    T: Send + 'a,
    W: Future<Output = Result<(), Error>> + Send + 'a,
{
    let (tx, rx) = mpsc::channel(ANSWERS_WAITING_MAX);
    let sent =
        stream::unfold(rx, |mut rx: mpsc::Receiver<T>| async move { rx.recv().await.map(|answer| (Ok(answer), rx)) });
    let ended = stream::once(work(tx)).filter_map(|ended| ready(ended.err().map(Err)));
    stream::select(sent, ended).boxed()
}

/// Answers that were sent and not received yet.
const ANSWERS_WAITING_MAX: usize = 2;
