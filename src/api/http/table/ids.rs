//! The number of a part in a path, and where a page of a list begins.

use axum::{
    extract::{Path, rejection::PathRejection},
    http::StatusCode,
};

use crate::{
    api::http::problem::Problem,
    error::{Error, quoted::Quoted},
    model::part::PartId,
};

/// The part that a path names. Errors: no part has such a number.
pub(super) fn part_id(part: Result<Path<String>, PathRejection>) -> Result<PartId, Problem> {
    let text = part.map(|Path(text)| text).unwrap_or_default();
    let wrong = || Problem::new(StatusCode::NOT_FOUND, format!("{} is not the number of a part", Quoted(&text)));
    PartId::parse(&text).ok_or_else(|| wrong().of_field("part"))
}

/// An error about the part that a path names.
pub(super) fn of_part(error: Error) -> Problem {
    let is_damage = matches!(error, Error::Damaged { .. });
    let problem = Problem::from(error);
    if is_damage { problem } else { problem.of_field("part") }
}

/// A limit in a query. Errors: it is 0, or too large.
pub(in crate::api::http) fn checked_limit(
    name: &'static str,
    limit: Option<usize>,
    default: usize,
    max: usize,
) -> Result<usize, Problem> {
    match limit.unwrap_or(default) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        limit => Err(Problem::bad_request(name, format!("{name}={limit}: it is 1 to {max}"))),
    }
}

/// The number of a part in a query. Errors: it is larger than any that the description allows.
pub(super) fn checked_number(name: &'static str, number: Option<u64>) -> Result<Option<u64>, Problem> {
    match number {
        Some(number) if i64::try_from(number).is_err() => {
            Err(Problem::bad_request(name, format!("{name}={number}: it is at most {}", i64::MAX)))
        }
        number => Ok(number),
    }
}
