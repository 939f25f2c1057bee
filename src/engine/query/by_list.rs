//! Groups of the rows of a table, which other machines read. Lists of parts are read together, so an answer counts as a whole: each part has
//! to be in it exactly once, with as many rows as its receipt says, and the groups have to add up to what was read of the parts. If some of
//! it is lost, all of it is asked for again, a few times.
//!
//! The first error in the order of the parts is the error of the question. A part that another machine could not read is read here, because
//! its error may be that machine's; the others are then asked about without it.

use std::sync::Arc;

use futures_util::StreamExt;

use super::{
    answers::{Answers, wrong},
    by_part::{JOB_PARTS_MAX, ROUNDS_MAX, check_read_here},
    part_batches::PartBatches,
};
use crate::{
    engine::{
        runtime::{
            context::Context,
            group_rows::{GroupRows, GroupsCheck},
            part_engine::{GroupAnswer, GroupEngine, GroupQuestion, PartAnswer, PartGroups, PartOutcome},
        },
        state::{Lane, registry::Snapshot},
    },
    error::Error,
    limits::TASK_PARTS_MAX,
    model::{format::Format, part::Part},
};

/// Takes groups. Those that were added count only once they were kept.
pub(crate) trait GroupSink: Send {
    /// Adds groups.
    fn add(&mut self, rows: GroupRows) -> impl Future<Output = Result<(), Error>> + Send;

    /// Keeps the groups that were added since the last call.
    fn keep(&mut self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Forgets them.
    fn forget(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A question about all parts of a table.
pub(crate) struct ByList<'a> {
    pub(crate) context: &'a Arc<Context>,
    pub(crate) question: &'a GroupQuestion,
    /// The columns that a part must have, or nothing is read of it.
    pub(crate) columns: &'a [String],
    /// Whether every row of a part is in a group.
    pub(crate) groups_all_rows: bool,
    /// This server's workers.
    pub(crate) here: &'a dyn GroupEngine,
    pub(crate) lane: Lane,
    /// How many parts were read here.
    pub(crate) read_here: usize,
}

impl ByList<'_> {
    /// Asks other machines. `progress` is called with the number of parts that were read.
    ///
    /// Errors: the first in the order of the parts; a wrong answer; parts that nobody has answered.
    pub(crate) async fn ask<S: GroupSink>(
        &mut self,
        engine: &dyn GroupEngine,
        parts: Snapshot,
        sink: &mut S,
        progress: impl Fn(u64),
    ) -> Result<(), Error> {
        let batches = PartBatches::new(parts, Format::Parquet);
        let mut batches = batches.stream(Arc::clone(self.context), self.lane);
        let (mut job, mut done) = (Vec::new(), 0);
        while let Some(batch) = batches.next().await {
            job.append(&mut batch?);
            if job.len() > JOB_PARTS_MAX - TASK_PARTS_MAX {
                done += job.len() as u64;
                self.ask_job(engine, std::mem::take(&mut job), sink).await?;
                progress(done);
            }
        }
        self.ask_job(engine, job, sink).await
    }

    /// Adds the groups of these parts, which are in the order of their ids.
    async fn ask_job<S: GroupSink>(
        &mut self,
        engine: &dyn GroupEngine,
        mut parts: Vec<Arc<Part>>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let mut rounds_lost = 0;
        while !parts.is_empty() {
            match self.ask_once(engine, &parts, sink).await? {
                Round::Complete => return sink.keep().await,
                Round::Failed(error) => return Err(error),
                Round::Lost(error) => {
                    sink.forget().await?;
                    rounds_lost += 1;
                    if rounds_lost == ROUNDS_MAX {
                        return Err(error);
                    }
                    tracing::warn!(%error, "parts are asked about again");
                }
                Round::Unreadable(unreadable) => {
                    sink.forget().await?;
                    self.read_all_here(unreadable, &mut parts, sink).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks about all parts.
    ///
    /// Errors: those of the engine; a wrong answer.
    async fn ask_once<S: GroupSink>(
        &self,
        engine: &dyn GroupEngine,
        parts: &[Arc<Part>],
        sink: &mut S,
    ) -> Result<Round, Error> {
        let (layout, mut answers) = (self.question.layout(), Answers::of_groups(parts, self.columns));
        let (mut groups, mut is_lost) = (GroupsCheck::default(), false);
        let mut stream = engine.groups(parts.to_vec(), self.question.clone());
        while let Some(answer) = stream.next().await {
            match answer? {
                GroupAnswer::Parts(some) => {
                    for answer in some {
                        answers.add(answer).inspect_err(|error| tracing::error!(%error))?;
                    }
                }
                GroupAnswer::Groups(rows) => {
                    rows.iter().for_each(|(key, value)| groups.add(layout, key, value));
                    sink.add(rows).await?;
                }
                GroupAnswer::Lost => is_lost = true,
            }
        }
        let complete = answers.check_complete();
        let (mut of_parts, mut unreadable, mut failed, mut is_whole) =
            (GroupsCheck::default(), Vec::new(), None, !is_lost);
        for (part, outcome) in answers.into_all() {
            match outcome {
                Some(PartOutcome::Failed(error)) => {
                    failed = Some(error);
                    break;
                }
                None => break, // what comes after it may not be the first error
                Some(PartOutcome::Unreadable(why)) => unreadable.push((Arc::clone(part), why)),
                Some(PartOutcome::Grouped(PartGroups { rows, check })) => {
                    of_parts.merge(GroupsCheck { rows, sum: check });
                }
                Some(PartOutcome::Passed) => is_whole = false,
                Some(PartOutcome::WithoutColumn) => {}
                Some(PartOutcome::Summed(_)) => return Err(wrong(format!("part {} has no groups", part.id))),
            }
        }
        let lost = || Error::Cluster("answers were lost".to_owned());
        Ok(match (unreadable.is_empty(), failed, complete) {
            (false, ..) => Round::Unreadable(unreadable),
            (true, Some(error), _) => Round::Failed(error),
            (true, None, Err(error)) => Round::Lost(error),
            (true, None, Ok(())) if !is_whole => Round::Lost(lost()),
            (true, None, Ok(())) => {
                self.check(groups, of_parts).inspect_err(|error| tracing::error!(%error))?;
                Round::Complete
            }
        })
    }

    /// Whether groups are those of the parts that were read.
    fn check(&self, groups: GroupsCheck, of_parts: GroupsCheck) -> Result<(), Error> {
        if self.groups_all_rows && groups.rows != of_parts.rows {
            let GroupsCheck { rows, .. } = groups;
            return Err(wrong(format!("its groups have {rows} rows, the receipts of the parts say {}", of_parts.rows)));
        }
        if groups.sum != of_parts.sum {
            return Err(wrong("its groups are not those that were found in the parts"));
        }
        Ok(())
    }

    /// Reads parts on this server, and removes them from `parts`.
    ///
    /// Errors: that of the first part. Before another one that fails, there may be an error in a part that was not read yet.
    async fn read_all_here<S: GroupSink>(
        &mut self,
        unreadable: Vec<(Arc<Part>, String)>,
        parts: &mut Vec<Arc<Part>>,
        sink: &mut S,
    ) -> Result<(), Error> {
        for (index, (part, why)) in unreadable.into_iter().enumerate() {
            check_read_here(self.read_here, &why)?;
            match self.read_here(&part, sink).await {
                Ok(()) => sink.keep().await?,
                Err(error) if index == 0 => return Err(error),
                Err(_found_again) => return sink.forget().await,
            }
            tracing::warn!(part = %part.id, why, "another machine could not read this part, and this server could");
            self.read_here += 1;
            parts.retain(|other| other.id != part.id);
        }
        Ok(())
    }

    async fn read_here<S: GroupSink>(&self, part: &Arc<Part>, sink: &mut S) -> Result<(), Error> {
        let mut stream = self.here.groups(vec![Arc::clone(part)], self.question.clone());
        while let Some(answer) = stream.next().await {
            match answer? {
                GroupAnswer::Groups(rows) => sink.add(rows).await?,
                GroupAnswer::Lost => return Err(Error::Internal(format!("part {} was not read", part.id))),
                GroupAnswer::Parts(answers) => {
                    for PartAnswer { outcome, .. } in answers {
                        match outcome {
                            PartOutcome::Failed(error) => return Err(error),
                            PartOutcome::Unreadable(why) => return Err(Error::Internal(why)),
                            _ => {}
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// How a question about some parts has ended.
enum Round {
    /// All groups were added.
    Complete,
    /// The first error in the order of the parts.
    Failed(Error),
    /// Other machines could not read these parts, and say why.
    Unreadable(Vec<(Arc<Part>, String)>),
    /// Some of the answer is missing.
    Lost(Error),
}
