//! Reading the parts of a server's data folder on another machine, which only reads the folder. What is read, and what an error is,
//! is decided by the same code as on the server.

use std::{path::Path, sync::Arc};

use futures_util::{StreamExt, stream::BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    group_by::{
        group_sum::GroupSum,
        lists::GroupLists,
        spec::{GroupBy, Plan},
    },
    query::part_sum::{PartSum, wide_permit},
    runtime::{
        part_engine::{GroupAnswer, GroupEngine, GroupQuestion, PartAnswer, PartOutcome, PartQuestion, answers_of},
        workers::Workers,
    },
    state::{Lane, Shared},
    storage::{Store, segments::reading::OpenSegment, temp_file::TempFolder},
    survey::{batch::ReadWith, lists::SurveyLists},
};
use crate::{
    error::{Error, statistics::StatisticsError},
    limits::{GROUP_BYTES_MAX, WIDE_READS_MAX},
    model::part::Part,
};

/// Reads parts as the server's workers do. Every byte is verified, against what the server says of the part.
pub struct PartReader {
    store: Arc<Store>,
    wide_reads: Arc<Semaphore>,
    group_sums: GroupLists,
    surveys: SurveyLists,
}

impl PartReader {
    /// Opens a data folder, which may be the one of a running server. `spill_folder` is for groups that do not fit in memory.
    ///
    /// Errors: it is not a data folder, or cannot be read; the system starts no more threads.
    pub fn open(root: &Path, spill_folder: &Path) -> Result<Self, Error> {
        let store = Arc::new(Store::open_for_reading(root)?);
        let workers = Workers::start(Shared::new()).map_err(Error::io("threads"))?;
        // One partition, so that the parts of a list are read in their order.
        let plan = Plan { partitions_max: 1, ..Plan::with_bytes(GROUP_BYTES_MAX) };
        let (lane, folder) = (Lane::Question, TempFolder::new(spill_folder));
        let group_sum = GroupSum { workers: workers.clone(), lane, folder, plan };
        let group_sums = GroupLists { group_sum, store: Arc::clone(&store) };
        let wide_reads = Arc::new(Semaphore::new(WIDE_READS_MAX));
        let with = ReadWith { store: Arc::clone(&store), workers, lane, wide_reads: Arc::clone(&wide_reads) };
        Ok(Self { store, wide_reads, group_sums, surveys: SurveyLists { with } })
    }

    /// The permit that is kept while these parts are read.
    ///
    /// Errors: the process ends.
    pub async fn permit(
        &self,
        parts: &[Arc<Part>],
        question: &PartQuestion,
    ) -> Result<Option<OwnedSemaphorePermit>, Error> {
        wide_permit(&self.wide_reads, parts, question).await
    }

    /// Answers a question about a part. It blocks, and may take long; `is_cancelled` is asked after every 8 MiB or so.
    /// `None` if it was cancelled. `open` has the files of the segment that was read before.
    pub fn answer(
        &self,
        part: &Arc<Part>,
        question: &PartQuestion,
        open: &mut OpenSegment,
        is_cancelled: impl Fn() -> bool,
    ) -> Option<PartAnswer> {
        let mut sum = PartSum::default();
        let outcome = loop {
            if is_cancelled() {
                return None;
            }
            match sum.step(&self.store, part, question, open) {
                Ok(None) => {}
                Ok(Some(outcome)) => break outcome,
                Err(error) => break failed(error),
            }
        };
        Some(PartAnswer { part: part.id, outcome })
    }

    /// Answers a question about parts together. If the stream is dropped, the work is cancelled.
    pub fn groups_of(
        &self,
        parts: Vec<Arc<Part>>,
        question: GroupQuestion,
    ) -> BoxStream<'static, Result<GroupAnswer, Error>> {
        let (group_sums, surveys) = (self.group_sums.clone(), self.surveys.clone());
        let answers = answers_of(move |tx| async move {
            match question {
                GroupQuestion::Sum { by, sum } => {
                    group_sums.read(parts, GroupBy::new(by, sum)?.counting_rows(), tx).await
                }
                GroupQuestion::Survey { texts } => surveys.read(parts, &texts, tx).await,
            }
        });
        answers.map(|answer| answer.map(as_other_machine)).boxed()
    }
}

impl GroupEngine for PartReader {
    fn groups(&self, parts: Vec<Arc<Part>>, question: GroupQuestion) -> BoxStream<'_, Result<GroupAnswer, Error>> {
        self.groups_of(parts, question)
    }
}

fn as_other_machine(answer: GroupAnswer) -> GroupAnswer {
    let GroupAnswer::Parts(mut answers) = answer else { return answer };
    for PartAnswer { outcome, .. } in &mut answers {
        *outcome = match std::mem::replace(outcome, PartOutcome::Passed) {
            PartOutcome::Failed(error) => failed(error),
            other => other,
        };
    }
    GroupAnswer::Parts(answers)
}

/// What a machine that only reads says of an error.
fn failed(error: Error) -> PartOutcome {
    match error {
        // These are facts about the rows, which were verified.
        Error::Cell { .. } | Error::ColumnSum(_) | Error::Statistics(StatisticsError::TooManyGroups { .. }) => {
            PartOutcome::Failed(error)
        }
        // This machine may be the reason.
        error => PartOutcome::Unreadable(error.to_string()),
    }
}
