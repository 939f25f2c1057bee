//! The means of a list of parts, which are some of a table's: what one machine of a cluster reads, and how a server adds up what
//! others have read.
//!
//! A mean is sent as its group (`Survey::each_row`) and a value: the number of its values, and their exact sum.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use super::{
    accumulator::Survey,
    answer::Memory,
    batch::{Read, ReadWith, read_batch},
    batches::Batch,
    collector::Means,
    question::{COLUMN_NAMES, SurveyQuestion},
};
use crate::{
    engine::{
        parts::selection::parts_to_read,
        query::{
            by_list::{ByList, GroupSink},
            list_answers::{all_answers, failed_answers},
        },
        runtime::{
            context::Context,
            group_rows::{GroupRows, GroupsCheck},
            part_engine::{Cluster, DOUBLES_SUM_BYTES, GroupAnswer, GroupEngine, GroupQuestion, answers_of},
        },
        state::Lane,
        values::mean::MEAN_BYTES,
    },
    error::{Error, statistics::StatisticsError},
    limits::{SMALL_SURVEY_MEMORY_BYTES, SMALL_SURVEY_TASK_ROWS, SURVEY_BYTES_MAX},
    model::part::Part,
};

const _: () = assert!(MEAN_BYTES == size_of::<u64>() + DOUBLES_SUM_BYTES);

/// Reads lists of parts on this machine.
#[derive(Clone)]
pub(crate) struct SurveyLists {
    pub(crate) with: ReadWith,
}

impl GroupEngine for SurveyLists {
    fn groups(&self, parts: Vec<Arc<Part>>, question: GroupQuestion) -> BoxStream<'_, Result<GroupAnswer, Error>> {
        answers_of(move |tx| async move {
            match question {
                GroupQuestion::Survey { texts } => self.read(parts, &texts, tx).await,
                GroupQuestion::Sum { .. } => Err(Error::Internal("a group sum is no statistic".to_owned())),
            }
        })
    }
}

impl SurveyLists {
    /// Reads the parts in their order. `texts` are those of the question.
    pub(crate) async fn read(
        &self,
        parts: Vec<Arc<Part>>,
        texts: &[String],
        tx: mpsc::Sender<GroupAnswer>,
    ) -> Result<(), Error> {
        let question = SurveyQuestion::of_texts(texts).ok_or_else(|| Error::Internal("no question".to_owned()))?;
        let question = Arc::new(question);
        let read = self.means_of(parts.clone(), &question).await;
        let answers = match read {
            Ok(Read { parts, collector, .. }) => {
                let (mut rows, mut check) = (GroupRows::default(), GroupsCheck::default());
                let layout = GroupQuestion::Survey { texts: Vec::new() }.layout();
                collector.survey.each_row(|key, value| {
                    check.add(layout, key, value);
                    rows.push(key, value);
                });
                tx.send(GroupAnswer::Groups(rows)).await.ok().ok_or(Error::Cancelled)?;
                all_answers(parts.into_iter(), check)
            }
            Err(error) => {
                let (this, question) = (self, &question);
                let read_one = |part: Arc<Part>| async move { this.means_of(vec![part], question).await.map(drop) };
                failed_answers(&parts, error, read_one).await?
            }
        };
        tx.send(GroupAnswer::Parts(answers)).await.ok().ok_or(Error::Cancelled)
    }

    async fn means_of(&self, parts: Vec<Arc<Part>>, question: &Arc<SurveyQuestion>) -> Result<Read<Means>, Error> {
        let means = Means { survey: Survey::new(None), question: Arc::clone(question) };
        read_batch(self.with.clone(), Batch::Parts(parts), means, SMALL_SURVEY_TASK_ROWS).await
    }
}

/// The means of the table, which other machines read. `None` if there are too many groups, and also something wrong with a part: then only
/// reading all parts in their order shows which of the two is the first error.
///
/// Errors: see [`Engine::survey`](crate::engine::Engine::survey).
pub(super) async fn by_cluster(
    context: &Arc<Context>,
    cluster: &dyn Cluster,
    question: &Arc<SurveyQuestion>,
    lane: Lane,
    progress: impl Fn(u64, u64),
) -> Result<Option<Survey>, Error> {
    let memory = context.statistics.reserve(2 * SURVEY_BYTES_MAX + SMALL_SURVEY_MEMORY_BYTES).await?;
    let parts = parts_to_read(context, lane).await?;
    let parts_count = parts.len() as u64;
    let columns = COLUMN_NAMES.map(str::to_owned);
    let here = SurveyLists { with: ReadWith::of(context, lane) };
    let mut asked = ByList {
        context,
        question: &GroupQuestion::Survey { texts: question.to_texts() },
        columns: &columns,
        groups_all_rows: false,
        here: &here,
        lane,
        read_here: 0,
    };
    let mut collected = Collected::new(question, Some(Arc::new(memory)));
    progress(0, parts_count);
    let asked = asked.ask(cluster, parts, &mut collected, |parts_read| progress(parts_read, parts_count)).await;
    match asked {
        Err(Error::Cell { .. }) if collected.too_many.is_some() => return Ok(None),
        asked => asked?,
    }
    progress(parts_count, parts_count);
    Ok(Some(collected.all))
}

/// Means that other machines have found.
struct Collected<'a> {
    question: &'a SurveyQuestion,
    memory: Memory,
    all: Survey,
    /// Those that are not kept yet.
    current: Survey,
    /// There are more groups than there is memory for.
    too_many: Option<Error>,
}

impl<'a> Collected<'a> {
    fn new(question: &'a SurveyQuestion, memory: Memory) -> Self {
        let (all, current) = (Survey::new(memory.clone()), Survey::new(memory.clone()));
        Self { question, memory, all, current, too_many: None }
    }
}

impl GroupSink for Collected<'_> {
    async fn add(&mut self, rows: GroupRows) -> Result<(), Error> {
        for (key, value) in rows.iter() {
            match self.current.add_mean(key, value, self.question) {
                // The answers of parts say whether that is the first error.
                Err(error @ Error::Statistics(StatisticsError::TooManyGroups { .. })) => self.too_many = Some(error),
                added => added?,
            }
        }
        Ok(())
    }

    async fn keep(&mut self) -> Result<(), Error> {
        if let Some(error) = self.too_many.take() {
            return Err(error);
        }
        let current = std::mem::replace(&mut self.current, Survey::new(self.memory.clone()));
        self.all.merge(&current, self.question)
    }

    async fn forget(&mut self) -> Result<(), Error> {
        (self.current, self.too_many) = (Survey::new(self.memory.clone()), None);
        Ok(())
    }
}
