//! The answers of other machines about some parts. Each is checked before it counts: every part has to be answered exactly
//! once, with as many rows as its receipt says.

use std::sync::Arc;

use crate::{
    engine::runtime::part_engine::{PartAnswer, PartOutcome, PartTotals},
    error::Error,
    model::{part::Part, schema::ColumnType},
};

/// The answers about some parts.
pub(super) struct Answers<'a> {
    parts: &'a [Arc<Part>],
    /// The columns of the question.
    columns: &'a [String],
    /// Whether the answers come with groups.
    has_groups: bool,
    /// One for each part.
    outcomes: Vec<Option<PartOutcome>>,
}

impl<'a> Answers<'a> {
    /// No answers about these parts, which are in the order of their ids.
    pub(super) fn of_sums(parts: &'a [Arc<Part>], columns: &'a [String]) -> Self {
        Self { parts, columns, has_groups: false, outcomes: parts.iter().map(|_| None).collect() }
    }

    /// The same, of a question whose answers come with groups.
    pub(super) fn of_groups(parts: &'a [Arc<Part>], columns: &'a [String]) -> Self {
        Self { has_groups: true, ..Self::of_sums(parts, columns) }
    }

    /// The parts that have no answer, except those after a part that has failed.
    pub(super) fn missing(&self) -> Vec<Arc<Part>> {
        let has_not_failed = |outcome: &&Option<PartOutcome>| !matches!(outcome, Some(PartOutcome::Failed(_)));
        let outcomes = self.outcomes.iter().take_while(has_not_failed);
        let missing = self.parts.iter().zip(outcomes).filter(|(_part, outcome)| outcome.is_none());
        missing.map(|(part, _outcome)| Arc::clone(part)).collect()
    }

    /// Errors: parts are missing.
    pub(super) fn check_complete(&self) -> Result<(), Error> {
        let missing = self.missing();
        let Some(first) = missing.first() else { return Ok(()) };
        let count = missing.len();
        Err(Error::Cluster(format!("{count} parts were not answered, part {} first", first.id)))
    }

    /// The parts that have an answer, in their order, each with its answer.
    pub(super) fn into_found(self) -> impl Iterator<Item = (&'a Arc<Part>, PartOutcome)> {
        self.into_all().filter_map(|(part, outcome)| Some((part, outcome?)))
    }

    /// All parts in their order, each with its answer.
    pub(super) fn into_all(self) -> impl Iterator<Item = (&'a Arc<Part>, Option<PartOutcome>)> {
        self.parts.iter().zip(self.outcomes)
    }

    /// Checks an answer.
    ///
    /// Errors: it is one of another question, the second for its part, or contradicts what is known of the part.
    pub(super) fn add(&mut self, PartAnswer { part, outcome }: PartAnswer) -> Result<(), Error> {
        let Ok(index) = self.parts.binary_search_by_key(&part, |part| part.id) else {
            return Err(wrong(format!("part {part} was not asked about")));
        };
        if self.outcomes[index].is_some() {
            return Err(wrong(format!("part {part} was answered twice")));
        }
        if let Some(what) = self.contradiction(&self.parts[index], &outcome) {
            return Err(wrong(format!("part {part}: {what}")));
        }
        self.outcomes[index] = Some(outcome);
        Ok(())
    }

    /// What an answer says that cannot be true of the part.
    fn contradiction(&self, part: &Part, outcome: &PartOutcome) -> Option<String> {
        let rows = match outcome {
            PartOutcome::Summed(totals) => Some(totals.rows),
            PartOutcome::Grouped(groups) => Some(groups.rows),
            _ => None,
        };
        // `None` if the columns are not in memory.
        let types = part.schema.as_ref().map(|schema| {
            let types = self.columns.iter().map(|column| schema.find(column).map(|(_index, column_type)| column_type));
            types.collect::<Option<Vec<_>>>()
        });
        match (outcome, types) {
            (PartOutcome::Summed(_) | PartOutcome::Grouped(_), _) if rows != Some(part.rows) => {
                Some(format!("{} rows were read, its receipt says {}", rows.unwrap_or(0), part.rows))
            }
            (PartOutcome::Summed(_) | PartOutcome::Grouped(_), Some(None)) => {
                Some("a column was added that it does not have".to_owned())
            }
            // Values of 64 bits. So the sums of all parts together fit in 128 bits.
            (PartOutcome::Summed(PartTotals { sum, .. }), _)
                if sum.unsigned_abs() > u128::from(part.rows) << (i64::BITS - 1) =>
            {
                Some(format!("{} rows cannot have the sum {sum}", part.rows))
            }
            (PartOutcome::Summed(_), Some(Some(types))) if !types.iter().all(is_added) => {
                Some("a column was added whose type is not added".to_owned())
            }
            // A column of another type may have no values.
            (PartOutcome::WithoutColumn, Some(Some(types))) if self.has_groups || types.iter().all(is_added) => {
                Some("its column was not added".to_owned())
            }
            (PartOutcome::Failed(error), _) if error.position().part.is_some_and(|other| other != part.id) => {
                Some(format!("an error of another part: {error}"))
            }
            _ => None,
        }
    }
}

/// The error for an answer that cannot be true.
pub(super) fn wrong(what: impl std::fmt::Display) -> Error {
    Error::Internal(format!("a wrong answer of the cluster: {what}"))
}

/// Whether values of this type are added.
fn is_added(column_type: &ColumnType) -> bool {
    matches!(column_type, ColumnType::Int64 | ColumnType::Float64 | ColumnType::Utf8)
}
