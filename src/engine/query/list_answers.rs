//! The answers about the parts of a list that were read together.

use std::sync::Arc;

use crate::{
    engine::runtime::{
        group_rows::GroupsCheck,
        part_engine::{PartAnswer, PartGroups, PartOutcome},
    },
    error::{Error, statistics::StatisticsError},
    model::part::{Part, PartId},
};

/// The answers about parts that were read: the rows of each, or `None` if it lacks a column. `check` is that of the groups of all.
pub(crate) fn all_answers(read: impl Iterator<Item = (PartId, Option<u64>)>, check: GroupsCheck) -> Vec<PartAnswer> {
    let mut check = Some(check.sum);
    let answers = read.map(|(part, rows)| {
        let outcome = match rows {
            Some(rows) => PartOutcome::Grouped(PartGroups { rows, check: check.take().unwrap_or(0) }),
            None => PartOutcome::WithoutColumn,
        };
        PartAnswer { part, outcome }
    });
    answers.collect()
}

/// The answers about parts of which one has failed. They were read in their order. If the error does not name one of them, `read_one` reads
/// one part after another, until there is an error again. That there are too many groups counts as an error of the first part.
///
/// Errors: `error`, if it is not one of these parts.
pub(crate) async fn failed_answers<F: Future<Output = Result<(), Error>>>(
    parts: &[Arc<Part>],
    error: Error,
    read_one: impl Fn(Arc<Part>) -> F,
) -> Result<Vec<PartAnswer>, Error> {
    let (failed, error) = match (&error, error.position().part) {
        (Error::Draining | Error::Cancelled, _) => return Err(error),
        (Error::Statistics(StatisticsError::TooManyGroups { .. }), _) => (parts.first().map(|part| part.id), error),
        (_, Some(part)) if parts.iter().any(|one| one.id == part) => (Some(part), error),
        // An error of a segment's file names the segment's first part, which may be in another list.
        (_, _) => match first_failed(parts, read_one).await {
            Some((part, error)) => (Some(part), error),
            None => (None, error),
        },
    };
    if !parts.iter().any(|part| Some(part.id) == failed) {
        return Err(error);
    }
    let mut error = Some(error);
    let answers = parts.iter().map(|part| {
        let error = if Some(part.id) == failed { error.take() } else { None };
        PartAnswer { part: part.id, outcome: error.map_or(PartOutcome::Passed, PartOutcome::Failed) }
    });
    Ok(answers.collect())
}

async fn first_failed<F: Future<Output = Result<(), Error>>>(
    parts: &[Arc<Part>],
    read_one: impl Fn(Arc<Part>) -> F,
) -> Option<(PartId, Error)> {
    for part in parts {
        if let Err(error) = read_one(Arc::clone(part)).await {
            return Some((part.id, error));
        }
    }
    None
}
