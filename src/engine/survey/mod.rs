//! Statistics of a survey (nutrition and obesity in the United States, published by the CDC): means of `Data_Value` for a
//! question, by state and by category.
//!
//! They are computed over all parts that have the five columns. Only the columns that a question needs are read, from
//! Parquet, and rows that one column excludes are skipped in the next. The CSV is read instead if Parquet does not keep the
//! texts that are compared (`csv_part.rs`). Means are exact and rounded once
//! (`values/mean.rs`), so they do not depend on the order of rows, on parts or on threads.
//!
//! A row counts if its question is exactly the one asked for and its value is not empty. A row without a state counts in
//! the global mean only. A row counts in a category only if it has both a category and a stratification.
//!
//! Memory: the bytes for states and categories are bounded, and reserved before any row is read.

pub mod accumulator;
pub mod answer;
mod coded;
mod collector;
mod csv_part;
pub mod names;
pub mod python_repr;
pub mod question;

use std::{pin::pin, sync::Arc};

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::OwnedSemaphorePermit;

use self::{
    accumulator::{Columns, Row, Survey},
    answer::Answer,
    collector::{Collector, Means},
    csv_part::{CsvPart, CsvPosition, CsvStep},
    question::SurveyQuestion,
};
use crate::{
    engine::{
        parquet::{
            column_reader::{PartColumns, Position},
            wide::is_wide,
        },
        parts::selection::parts_to_read,
        query::part_batches::PartBatches,
        runtime::context::Context,
        state::Lane,
        storage::{Store, segments::reading::OpenSegment},
    },
    error::Error,
    limits::{
        SMALL_SURVEY_MEMORY_BYTES, SMALL_SURVEY_TASK_ROWS, SURVEY_MEMORY_BYTES, SURVEY_ROW_BYTES, SURVEY_TASK_ROWS,
        SURVEY_TASKS_MAX, TASK_BYTES,
    },
    model::{format::Format, part::Part},
};

/// Answers a question. `progress` is called with the number of parts that are done and the number of all parts.
///
/// Errors: see [`Engine::survey`].
pub(super) async fn answer(
    context: &Arc<Context>,
    question: &SurveyQuestion,
    lane: Lane,
    progress: impl Fn(u64, u64),
) -> Result<Answer, Error> {
    let (memory, tasks) = reserve(context).await?;
    let memory = Arc::new(memory);
    let question = Arc::new(question.clone());
    let parts = parts_to_read(context, lane).await?;
    let parts_count = parts.len() as u64;
    let mut batches = pin!(PartBatches::new(parts, Format::Parquet).stream(Arc::clone(context), lane));
    let read = |batch, survey, task_rows| {
        let means = Means { survey, question: Arc::clone(&question) };
        let read = read_batch(Arc::clone(context), batch, lane, means, task_rows);
        async move { read.await.map(|(parts, means)| (parts, means.survey)) }
    };
    let mut all = Survey::new(Arc::clone(&memory));
    let mut parts_done = 0;
    progress(parts_done, parts_count);
    match tasks {
        Tasks::One => {
            while let Some(batch) = batches.try_next().await? {
                let parts;
                (parts, all) = read(batch, all, SMALL_SURVEY_TASK_ROWS).await?;
                parts_done += parts;
                progress(parts_done, parts_count);
            }
        }
        Tasks::Several => {
            let read = |batch| read(batch, Survey::new(Arc::clone(&memory)), SURVEY_TASK_ROWS);
            // In the order of the batches, so that the first error is the first in the table.
            let read = |batch: Result<_, Error>| async {
                match batch {
                    Ok(batch) => read(batch).await,
                    Err(error) => Err(error),
                }
            };
            let mut read = pin!(batches.map(read).buffered(SURVEY_TASKS_MAX));
            while let Some((parts, some)) = read.try_next().await? {
                let question = Arc::clone(&question);
                let merge = move || all.merge(&some, &question).map(|()| all);
                all = context.workers.run(lane, merge).await.flatten()?;
                parts_done += parts;
                progress(parts_done, parts_count);
            }
        }
    }
    let question = Arc::clone(&question);
    context.workers.run(lane, move || all.into_answer(&question)).await.flatten()
}

/// How many tasks of a question run at the same time.
enum Tasks {
    One,
    Several,
}

/// Memory for a question: for several tasks, unless other questions that wait or run would then find none.
async fn reserve(context: &Context) -> Result<(OwnedSemaphorePermit, Tasks), Error> {
    let others = context.limits.jobs.statistics_at_once.saturating_sub(1);
    let pool = &context.statistics;
    if others <= 1 {
        return Ok((pool.reserve(SURVEY_MEMORY_BYTES).await?, Tasks::Several)); // there is enough for two
    }
    let undone_others = context.state.with(|state| state.jobs.undone()).saturating_sub(1).min(others);
    if pool.available() >= SURVEY_MEMORY_BYTES + undone_others * SMALL_SURVEY_MEMORY_BYTES
        && let Some(memory) = pool.try_reserve(SURVEY_MEMORY_BYTES)
    {
        return Ok((memory, Tasks::Several));
    }
    Ok((pool.reserve(SMALL_SURVEY_MEMORY_BYTES).await?, Tasks::One))
}

/// Reads the parts of a batch, one task after another, and adds them to `collector`. Returns it with the number of parts.
async fn read_batch<C: Collector>(
    context: Arc<Context>,
    batch: Vec<Arc<Part>>,
    lane: Lane,
    collector: C,
    task_rows: usize,
) -> Result<(u64, C), Error> {
    // There is memory for only a few footers of wide parts. A wide part is always the first of its batch.
    let mut needs_permit = is_wide(&batch[0]);
    let parts_count = batch.len() as u64;
    let (position, csv_position) = (Position::default(), CsvPosition::default());
    let mut work = BatchRead {
        batch,
        next: 0,
        position,
        csv_position,
        open: OpenSegment::default(),
        collector,
        task_rows,
        permit: None,
    };
    while work.next < work.batch.len() {
        if needs_permit && work.permit.is_none() {
            let permit = Arc::clone(&context.wide_reads).acquire_owned().await;
            work.permit = Some(permit.ok().ok_or(Error::Draining)?);
        }
        let store = Arc::clone(&context.store);
        let task = move || {
            let is_before_long_row = work.step(&store)?;
            Ok((work, is_before_long_row))
        };
        (work, needs_permit) = context.workers.run(lane, task).await.flatten()?;
    }
    Ok((parts_count, work.collector))
}

/// A batch that is being read.
struct BatchRead<C> {
    batch: Vec<Arc<Part>>,
    next: usize,
    position: Position,
    /// The same in a part whose CSV is read.
    csv_position: CsvPosition,
    open: OpenSegment,
    collector: C,
    /// Rows that one task reads.
    task_rows: usize,
    /// For a wide part, or for a long row of a CSV. Kept here because a task may still run after its call was cancelled.
    permit: Option<OwnedSemaphorePermit>,
}

impl<C: Collector> BatchRead<C> {
    /// One task: reads parts, or row ranges of a large part, up to about `task_rows` or `TASK_BYTES`. Returns whether it ended
    /// before a row of a CSV for which it needs a permit.
    fn step(&mut self, store: &Store) -> Result<bool, Error> {
        let (mut rows_left, mut bytes) = (self.task_rows, 0);
        let columns_count = self.collector.columns_count();
        while let Some(part) = self.batch.get(self.next).map(Arc::clone) {
            let schema = store.schema_with(&part, &mut self.open)?;
            let needs_csv = |columns: &Columns| part.packed.is_some() || !columns.are_exact(columns_count);
            if let Some(columns) = Columns::of(&schema).filter(needs_csv) {
                let csv = CsvPart { part: &part, schema: &schema, columns: &columns };
                let file = store.open_part_with(&part, Format::Csv, &mut self.open)?;
                let step = csv.read(file, self.csv_position, &mut self.collector, self.permit.is_some())?;
                let (position, is_before_long_row) = match step {
                    CsvStep::End => {
                        (self.next, self.csv_position) = (self.next + 1, CsvPosition::default());
                        bytes = part.csv_bytes.saturating_add(bytes);
                        if bytes < TASK_BYTES as u64 {
                            continue;
                        }
                        return Ok(false);
                    }
                    CsvStep::Pause(position) => (position, false),
                    CsvStep::LongRow(position) => (position, true),
                };
                self.csv_position = position;
                return Ok(is_before_long_row);
            }
            if let Some(columns) = Columns::of(&schema) {
                let file = store.open_part(&part, Format::Parquet)?;
                let open = PartColumns::open(&file, &part)?;
                let needed = columns.first(columns_count);
                while let Some((mut range, mut after)) = open.next_rows(self.position, &needed, rows_left)? {
                    let longer = || {
                        // Nothing is kept of a row, so there may be more of them.
                        let rows = open.next_rows(self.position, &needed, rows_left * CODED_ROWS_PER_ROW)?;
                        rows.ok_or_else(|| Error::Internal("a range of rows has disappeared".to_owned()))
                    };
                    let coded = self.collector.read_coded(&open, &part, &columns, range.row_group(), longer)?;
                    if let Some(read) = coded {
                        (range, after) = read;
                        rows_left -= range.rows_count().div_ceil(CODED_ROWS_PER_ROW);
                    } else {
                        self.collector.read(&open, &part, &columns, &range)?;
                        rows_left -= range.rows_count();
                    }
                    bytes = range.bytes().saturating_add(bytes);
                    self.position = after;
                    if rows_left == 0 || bytes >= TASK_BYTES as u64 {
                        return Ok(false);
                    }
                }
            }
            self.next += 1;
            self.position = Position::default();
        }
        Ok(false)
    }
}

/// As many rows are read as codes in the time in which one is read as text.
const CODED_ROWS_PER_ROW: usize = 16;

const _: () = assert!(size_of::<(u32, Row)>() <= SURVEY_ROW_BYTES);

#[cfg(test)]
mod tests {
    use crate::engine::Engine;
    use crate::{
        engine::survey::question::{Ask, Best},
        limits::{LARGE_CONVERSION_BYTES, Limits},
        model::durability::Durability,
    };

    use super::*;

    fn question(ask: Ask, text: &str, best: Option<Best>) -> SurveyQuestion {
        SurveyQuestion::new(ask, text.to_owned(), None, best).expect("a question")
    }

    #[test]
    fn which_mean_is_the_best() {
        let cases = [
            ("Percent of adults aged 18 years and older who have an overweight classification", Best::Min),
            ("Percent of adults aged 18 years and older who have obesity", Best::Min),
            ("Percent of adults who engage in no leisure-time physical activity", Best::Min),
            ("Percent of adults who report consuming fruit less than one time daily", Best::Min),
            ("Percent of adults who report consuming vegetables less than one time daily", Best::Min),
            ("Percent of adults who report consuming vegetables less than one time daily (any)", Best::Min),
            ("Percent of adults who engage in muscle-strengthening activities on 2 or more days a week", Best::Max),
            (
                "Percent of adults who achieve at least 150 minutes a week of moderate-intensity aerobic physical \
                 activity or 75 minutes a week of vigorous-intensity aerobic activity (or an equivalent combination)",
                Best::Max,
            ),
            ("percent of adults aged 18 years and older who have obesity", Best::Max),
            ("Obesity", Best::Max),
            ("", Best::Max),
        ];
        for (text, best) in cases {
            assert_eq!(question(Ask::Best5, text, None).best(), best, "{text}");
            for given in [Best::Min, Best::Max] {
                assert_eq!(question(Ask::Worst5, text, Some(given)).best(), given, "{text}");
            }
        }
    }

    #[test]
    fn invalid_questions_are_refused() {
        let all = [
            (Ask::StatesMean, "states_mean"),
            (Ask::StateMean, "state_mean"),
            (Ask::Best5, "best5"),
            (Ask::Worst5, "worst5"),
            (Ask::GlobalMean, "global_mean"),
            (Ask::DiffFromMean, "diff_from_mean"),
            (Ask::StateDiffFromMean, "state_diff_from_mean"),
            (Ask::MeanByCategory, "mean_by_category"),
            (Ask::StateMeanByCategory, "state_mean_by_category"),
        ];
        for (ask, name) in all {
            let new = |state: Option<&str>| SurveyQuestion::new(ask, "q".to_owned(), state.map(str::to_owned), None);
            assert_eq!(ask.is_of_state(), name.starts_with("state_"));
            let question = new(Some("Ohio")).expect(name);
            let state = match ask.is_of_state() {
                true => {
                    assert_eq!(new(None).expect_err(name).to_string(), "the state is missing");
                    r#","state":"Ohio""#
                }
                false => {
                    // A state is ignored if the question is about all states, whatever its length.
                    assert_eq!(new(None).expect(name), question);
                    assert_eq!(new(Some(&"x".repeat(2000))).expect(name), question);
                    ""
                }
            };
            let json = serde_json::to_string(&question).expect("serialises");
            assert_eq!(json, format!(r#"{{"ask":"{name}","question":"q"{state}}}"#));
            assert_eq!(serde_json::from_str::<SurveyQuestion>(&json).expect("a question"), question);
        }
        let text = |bytes| "q".repeat(bytes);
        SurveyQuestion::new(Ask::StateMean, text(16_384), Some(text(16_384)), Some(Best::Min)).expect("at the limit");
        let long = SurveyQuestion::new(Ask::StateMean, text(16_385), Some(text(1)), None).expect_err("too long");
        assert_eq!(long.to_string(), "the question is longer than 16384 bytes");
        let long = SurveyQuestion::new(Ask::StateMean, text(1), Some(text(16_385)), None).expect_err("too long");
        assert_eq!(long.to_string(), "the state is longer than 16384 bytes");
        assert_eq!(long.kind(), crate::error::Kind::Input);
        let unchecked = r#"{"ask":"state_mean","question":"q"}"#;
        let refused = serde_json::from_str::<SurveyQuestion>(unchecked).expect_err("no state");
        assert!(refused.to_string().starts_with("the state is missing"), "{refused}");
    }

    #[tokio::test]
    async fn a_question_does_not_wait_behind_conversions() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        let (engine, _) = opened.expect("a data folder");
        let _running = engine.context.large_conversions.reserve(LARGE_CONVERSION_BYTES / 2).await.expect("room");
        let mut waiting = Box::pin(engine.context.large_conversions.reserve(LARGE_CONVERSION_BYTES));
        assert!(futures_util::poll!(&mut waiting).is_pending(), "it needs the whole pool");
        let question = question(Ask::GlobalMean, "q", None);
        let begun = std::cell::Cell::new(false);
        // It reports its progress as soon as it has its memory.
        let mut asked = Box::pin(answer(&engine.context, &question, Lane::Question, |_, _| begun.set(true)));
        let _pending = futures_util::poll!(&mut asked);
        assert!(begun.get(), "the question waits for memory");
        drop(asked);
        engine.close();
    }
}
