//! Questions about parts, answered by this server's workers.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

use super::part_sum::{PartSum, wide_permit};
use crate::{
    engine::{
        runtime::{
            context::Context,
            part_engine::{PartAnswer, PartEngine, PartOutcome, PartQuestion},
        },
        state::Lane,
        storage::{Store, segments::reading::OpenSegment},
    },
    error::Error,
    limits::TASK_BYTES,
    model::part::Part,
};

/// This server's workers.
pub(super) struct LocalParts {
    pub(super) context: Arc<Context>,
}

impl PartEngine for LocalParts {
    /// Reads the parts one after another. After one that has failed, the others are not read.
    fn ask(&self, parts: Vec<Arc<Part>>, question: PartQuestion) -> BoxFuture<'_, Result<Vec<PartAnswer>, Error>> {
        Box::pin(self.read(parts, question))
    }
}

impl LocalParts {
    async fn read(&self, parts: Vec<Arc<Part>>, question: PartQuestion) -> Result<Vec<PartAnswer>, Error> {
        let wide = wide_permit(&self.context.wide_reads, &parts, &question).await?;
        let answers = Vec::with_capacity(parts.len());
        let (current, open) = (PartSum::default(), OpenSegment::default());
        let mut work = Work { parts, question, answers, current, open, _wide: wide };
        while !work.is_done() {
            let store = Arc::clone(&self.context.store);
            let task = move || {
                work.step(&store);
                work
            };
            work = self.context.workers.run(Lane::Question, task).await?;
        }
        Ok(work.answers)
    }
}

/// Parts that are being read. Its memory does not depend on the size of the parts.
struct Work {
    parts: Vec<Arc<Part>>,
    question: PartQuestion,
    /// Of the first parts.
    answers: Vec<PartAnswer>,
    current: PartSum,
    open: OpenSegment,
    /// Kept here because a task may still run after its call was cancelled.
    _wide: Option<OwnedSemaphorePermit>,
}

impl Work {
    fn is_done(&self) -> bool {
        let has_failed = matches!(self.answers.last(), Some(PartAnswer { outcome: PartOutcome::Failed(_), .. }));
        has_failed || self.answers.len() == self.parts.len()
    }

    /// One task: reads parts, or some rows of a large one, of about `TASK_BYTES`.
    fn step(&mut self, store: &Store) {
        let mut bytes = 0;
        while !self.is_done() && bytes < TASK_BYTES {
            let part = Arc::clone(&self.parts[self.answers.len()]);
            let outcome = match self.current.step(store, &part, &self.question, &mut self.open) {
                Ok(outcome) => outcome,
                Err(error) => Some(PartOutcome::Failed(error)),
            };
            bytes += usize::try_from(part.csv_bytes).unwrap_or(usize::MAX).min(TASK_BYTES);
            if let Some(outcome) = outcome {
                self.answers.push(PartAnswer { part: part.id, outcome });
                self.current = PartSum::default();
            }
        }
    }
}
