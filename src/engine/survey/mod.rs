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
pub(crate) mod batch;
mod batches;
mod coded;
mod collector;
mod csv_part;
pub mod lists;
pub mod names;
pub mod python_repr;
pub mod question;

use std::{
    future::ready,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::OwnedSemaphorePermit;

use self::{
    accumulator::Survey,
    answer::Answer,
    batch::{Read, ReadWith, read_batch},
    batches::Batches,
    collector::Means,
    question::SurveyQuestion,
};
use crate::{
    engine::{
        parts::{segment_rows::note_fallback, selection::parts_to_read},
        runtime::context::Context,
        state::Lane,
    },
    error::Error,
    limits::{
        SMALL_SURVEY_MEMORY_BYTES, SMALL_SURVEY_TASK_ROWS, SURVEY_MEMORY_BYTES, SURVEY_TASK_ROWS, SURVEY_TASKS_MAX,
    },
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
    let question = Arc::new(question.clone());
    if let Some(cluster) = &context.cluster {
        let by_cluster = lists::by_cluster(context, cluster.as_ref(), &question, lane, &progress).await?;
        if let Some(survey) = by_cluster {
            return context.workers.run(lane, move || survey.into_answer(&question)).await.flatten();
        }
    }
    let (memory, tasks) = reserve(context).await?;
    let parts = parts_to_read(context, lane).await?;
    let asked = Asked { context, question: &question, lane, memory: &Arc::new(memory), tasks, progress };
    let batches = Batches::of(context, lane, parts.clone(), question.ask.columns_count()).await?;
    let survey = match (batches.read_segments(), asked.read(batches).await) {
        (true, Err(error)) => {
            note_fallback(&error);
            asked.read(Batches::by_parts(context, lane, parts)).await?
        }
        (_, read) => read?,
    };
    context.workers.run(lane, move || survey.into_answer(&question)).await.flatten()
}

/// A question that has its memory.
struct Asked<'a, P> {
    context: &'a Arc<Context>,
    question: &'a Arc<SurveyQuestion>,
    lane: Lane,
    memory: &'a Arc<OwnedSemaphorePermit>,
    tasks: Tasks,
    progress: P,
}

impl<P: Fn(u64, u64)> Asked<'_, P> {
    /// Reads all batches. After an error it waits for the tasks that were started, so that their memory is free.
    async fn read(&self, batches: Batches) -> Result<Survey, Error> {
        let Self { context, question, lane, memory, .. } = *self;
        let with = ReadWith::of(context, lane);
        let parts_count = batches.parts_count;
        let mut parts_done = 0;
        let mut report = |parts: u64| {
            parts_done += parts;
            (self.progress)(parts_done.min(parts_count), parts_count);
        };
        report(0);
        let read = |batch, survey, task_rows| {
            let means = Means { survey, question: Arc::clone(question) };
            let read = read_batch(with.clone(), batch, means, task_rows);
            async move { read.await.map(|Read { parts_count, collector, .. }| (parts_count, collector.survey)) }
        };
        let mut all = Survey::new(Some(Arc::clone(memory)));
        let mut batches = batches.stream;
        if self.tasks == Tasks::One {
            while let Some(batch) = batches.try_next().await? {
                let parts;
                (parts, all) = read(batch, all, SMALL_SURVEY_TASK_ROWS).await?;
                report(parts);
            }
            report(parts_count); // with those that lack a column
            return Ok(all);
        }
        let has_failed = AtomicBool::new(false);
        // In the order of the batches, so that the first error is the first in the table.
        let read = |batch: Result<_, Error>| async {
            read(batch?, Survey::new(Some(Arc::clone(memory))), SURVEY_TASK_ROWS).await
        };
        let batches = batches.take_while(|_| ready(!has_failed.load(Ordering::Relaxed)));
        let mut read = pin!(batches.map(read).buffered(SURVEY_TASKS_MAX));
        while let Some(next) = read.next().await {
            let merged = async {
                let ((parts, some), question) = (next?, Arc::clone(question));
                let merge = move || all.merge(&some, &question).map(|()| all);
                Ok((parts, context.workers.run(lane, merge).await.flatten()?))
            };
            match merged.await {
                Ok((parts, merged)) => {
                    all = merged;
                    report(parts);
                }
                Err(error) => {
                    has_failed.store(true, Ordering::Relaxed);
                    while read.next().await.is_some() {}
                    return Err(error);
                }
            }
        }
        report(parts_count);
        Ok(all)
    }
}

/// How many tasks of a question run at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
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
