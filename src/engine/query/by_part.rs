//! The column sum of a table whose parts other machines read. Each of their answers is checked before it counts: every part
//! has to be answered exactly once, with as many rows as its receipt says.
//!
//! Answers are added in the order of the parts, so the first error is the first in the table. What is missing is asked for
//! again, a few times. A part that another machine could not read is read here, because its error may be that machine's.

use std::sync::Arc;

use futures_util::StreamExt;

use super::{answers::Answers, local_parts::LocalParts, part_batches::PartBatches};
use crate::{
    engine::{
        runtime::{
            context::Context,
            part_engine::{PartEngine, PartOutcome, PartQuestion},
        },
        state::{Lane, registry::Snapshot},
        values::sum::Sum,
    },
    error::Error,
    limits::TASK_PARTS_MAX,
    model::{column_sum::Read, format::Format, part::Part},
};

/// Parts that are asked about together. Their list is a few megabytes, and a message of Ballista has at most 16 MiB.
pub(super) const JOB_PARTS_MAX: usize = 20_000;
/// How often an engine is asked about the same part.
pub(super) const ROUNDS_MAX: usize = 3;
/// Parts of a question that other machines could not read and this one can. With more of them, something is wrong there.
pub(super) const READ_HERE_MAX: usize = 16;

/// The sum of a column over all parts, and what was read.
///
/// Errors: those of a column sum; a wrong answer; parts that nobody has answered.
pub(super) async fn sum_by_part(
    context: &Arc<Context>,
    engine: &dyn PartEngine,
    question: PartQuestion,
    parts: Snapshot,
) -> Result<(Sum, Read), Error> {
    let is_mixed = question.format == Format::Parquet && !parts.segments.is_empty();
    let mut summing = Summing { context, engine, question, sum: Sum::default(), read: Read::default(), read_here: 0 };
    match summing.sum(parts.clone()).await {
        // The first error of a table with segments is the first in the CSV, as it is without a cluster.
        Err(Error::Cell { .. } | Error::ColumnSum(_)) if is_mixed => {
            summing.question.format = Format::Csv;
            (summing.sum, summing.read, summing.read_here) = (Sum::default(), Read::default(), 0);
            summing.sum(parts).await?;
        }
        summed => summed?,
    }
    Ok((summing.sum, summing.read))
}

/// A question, and what has been added up.
struct Summing<'a> {
    context: &'a Arc<Context>,
    engine: &'a dyn PartEngine,
    question: PartQuestion,
    sum: Sum,
    read: Read,
    /// How many parts were read here.
    read_here: usize,
}

impl Summing<'_> {
    async fn sum(&mut self, parts: Snapshot) -> Result<(), Error> {
        let batches = PartBatches::new(parts, self.question.format);
        let mut batches = batches.stream(Arc::clone(self.context), Lane::Question);
        let mut job = Vec::new();
        while let Some(batch) = batches.next().await {
            job.append(&mut batch?);
            if job.len() > JOB_PARTS_MAX - TASK_PARTS_MAX {
                self.sum_job(&job).await?;
                job.clear();
            }
        }
        self.sum_job(&job).await
    }

    /// Adds these parts, which are in the order of their ids.
    async fn sum_job(&mut self, parts: &[Arc<Part>]) -> Result<(), Error> {
        let columns = [&*self.question.column].map(str::to_owned);
        let mut answers = Answers::of_sums(parts, &columns);
        for round in 0..ROUNDS_MAX {
            let missing = answers.missing();
            if missing.is_empty() {
                break;
            }
            if round > 0 {
                tracing::warn!(parts = missing.len(), "parts were not answered, and are asked about again");
            }
            for answer in self.engine.ask(missing, self.question.clone()).await? {
                answers.add(answer).inspect_err(|error| tracing::error!(%error))?;
            }
        }
        answers.check_complete()?;
        for (part, outcome) in answers.into_found() {
            self.add(part, outcome).await?;
        }
        Ok(())
    }

    async fn add(&mut self, part: &Arc<Part>, outcome: PartOutcome) -> Result<(), Error> {
        let outcome = match outcome {
            PartOutcome::Unreadable(why) => self.read_here(part, why).await?,
            outcome => outcome,
        };
        match outcome {
            PartOutcome::WithoutColumn => Ok(()),
            PartOutcome::Summed(totals) => {
                self.sum.merge(Sum::of(totals.sum));
                self.read.add(Read { parts: 1, rows: totals.rows, bytes: totals.bytes });
                Ok(())
            }
            PartOutcome::Failed(error) => Err(error),
            PartOutcome::Unreadable(why) => Err(Error::Internal(why)),
            PartOutcome::Grouped(_) | PartOutcome::Passed => Err(Error::Internal("a sum has groups".to_owned())),
        }
    }

    /// Reads a part on this server.
    async fn read_here(&mut self, part: &Arc<Part>, why: String) -> Result<PartOutcome, Error> {
        check_read_here(self.read_here, &why)?;
        let local = LocalParts { context: Arc::clone(self.context) };
        let answers = local.ask(vec![Arc::clone(part)], self.question.clone()).await?;
        let outcome = answers.into_iter().next().map(|answer| answer.outcome);
        let outcome = outcome.ok_or_else(|| Error::Internal(format!("part {} was not read", part.id)))?;
        if !matches!(outcome, PartOutcome::Failed(_)) {
            tracing::warn!(part = %part.id, why, "another machine could not read this part, and this server could");
            self.read_here += 1;
        }
        Ok(outcome)
    }
}

/// Errors: this server has read as many parts as it may that another machine could not read.
pub(super) fn check_read_here(count: usize, why: &str) -> Result<(), Error> {
    if count == READ_HERE_MAX {
        let what = format!("it cannot read {READ_HERE_MAX} parts that this server can read, the last: {why}");
        return Err(Error::Cluster(what));
    }
    Ok(())
}
