//! What can be asked about the survey: its questions, and its states.
//!
//! A list is read from all rows, as a statistic is. It is bounded: names beyond the bound are not listed. Those that are
//! listed were there from their first row on, so their numbers of rows are exact.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::TryStreamExt;

use super::{
    accumulator::Columns,
    batch::{ReadWith, read_batch},
    batches::Batches,
    collector::Collector,
};
use crate::{
    engine::{
        parquet::column_reader::{Cell, PartColumns, RowRange},
        parts::{segment_rows::note_fallback, selection::parts_to_read},
        runtime::context::Context,
        state::Lane,
    },
    error::Error,
    limits::{
        ESCAPED_BYTES_MAX, SMALL_SURVEY_MEMORY_BYTES, SMALL_SURVEY_TASK_ROWS, SURVEY_LIST_BYTES, SURVEY_LISTED_BYTES,
    },
    model::part::Part,
};

/// Which names of the survey are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameList {
    /// The questions.
    Questions,
    /// The states; only those with rows of one question, if it is given.
    States {
        /// The question.
        question: Option<String>,
    },
}

/// Names, in the order of their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SurveyNames {
    /// Each name, and how many rows with a value have it.
    pub rows_of: BTreeMap<String, u64>,
    /// Whether these are all.
    pub is_complete: bool,
}

/// Lists names of the survey.
///
/// Errors: a damaged file; a part that is missing from the table.
pub(crate) async fn names(context: &Arc<Context>, list: NameList) -> Result<SurveyNames, Error> {
    let _memory = context.statistics.reserve(SMALL_SURVEY_MEMORY_BYTES).await?;
    let parts = parts_to_read(context, Lane::Question).await?;
    let names = Names { list, bytes: 0, found: SurveyNames { is_complete: true, ..SurveyNames::default() } };
    let batches = Batches::of(context, Lane::Question, parts.clone(), names.columns_count()).await?;
    match (batches.read_segments(), read(context, batches, names.clone()).await) {
        // In the order of the parts there is room for other names.
        (true, Ok(SurveyNames { is_complete: false, .. })) => {
            read(context, Batches::by_parts(context, Lane::Question, parts), names).await
        }
        (true, Err(error)) => {
            note_fallback(&error);
            read(context, Batches::by_parts(context, Lane::Question, parts), names).await
        }
        (_, read) => read,
    }
}

async fn read(context: &Arc<Context>, mut batches: Batches, mut names: Names) -> Result<SurveyNames, Error> {
    let with = ReadWith::of(context, Lane::Question);
    while let Some(batch) = batches.stream.try_next().await? {
        names = read_batch(with.clone(), batch, names, SMALL_SURVEY_TASK_ROWS).await?.collector;
    }
    Ok(names.found)
}

/// The names that were found in some rows.
#[derive(Clone)]
struct Names {
    list: NameList,
    bytes: usize,
    found: SurveyNames,
}

impl Names {
    fn add(&mut self, name: &str) {
        if name.is_empty() {
            return;
        }
        if let Some(rows) = self.found.rows_of.get_mut(name) {
            *rows += 1;
            return;
        }
        let bytes = SURVEY_LISTED_BYTES + ESCAPED_BYTES_MAX * name.len();
        // Once a name was left out, no other is added: it might be the same one.
        if !self.found.is_complete || self.bytes + bytes > SURVEY_LIST_BYTES {
            self.found.is_complete = false;
            return;
        }
        self.bytes += bytes;
        self.found.rows_of.insert(name.to_owned(), 1);
    }

    fn is_of_question(&self, text: &str) -> bool {
        match &self.list {
            NameList::States { question: Some(question) } => text == question,
            NameList::Questions | NameList::States { question: None } => !text.is_empty(),
        }
    }
}

impl Collector for Names {
    fn columns_count(&self) -> usize {
        match self.list {
            NameList::Questions => 2,
            NameList::States { .. } => 3,
        }
    }

    fn read(&mut self, file: &PartColumns<'_>, _part: &Part, columns: &Columns, range: &RowRange) -> Result<(), Error> {
        let mut buffer = String::new();
        let mut rows: Vec<_> = range.offsets().map(|offset| (offset, ())).collect();
        file.filter_rows(&columns.value, range, &mut rows, |_, (), cell| {
            Ok(match cell {
                Cell::Empty => false,
                Cell::Utf8(text) => !text.trim_ascii().is_empty(),
                _ => true,
            })
        })?;
        let is_list_of_questions = self.list == NameList::Questions;
        file.filter_rows(&columns.question, range, &mut rows, |_, (), cell| {
            let text = cell.text(&mut buffer);
            if is_list_of_questions {
                self.add(text);
            }
            Ok(!is_list_of_questions && self.is_of_question(text))
        })?;
        if is_list_of_questions {
            return Ok(());
        }
        file.filter_rows(&columns.state, range, &mut rows, |_, (), cell| {
            self.add(cell.text(&mut buffer));
            Ok(false)
        })
    }

    fn add_row(&mut self, _part: &Part, _row: u64, cells: [&str; 5]) -> Result<(), Error> {
        let [question, value, state, ..] = cells;
        if value.trim_ascii().is_empty() {
            return Ok(());
        }
        match self.list {
            NameList::Questions => self.add(question),
            NameList::States { .. } if self.is_of_question(question) => self.add(state),
            NameList::States { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_bounded_and_what_it_has_is_exact() {
        let mut names = Names {
            list: NameList::Questions,
            bytes: 0,
            found: SurveyNames { is_complete: true, ..SurveyNames::default() },
        };
        let long = "q".repeat(SURVEY_LIST_BYTES / ESCAPED_BYTES_MAX / 2);
        for name in ["a", &long, "", "a", &format!("{long}2"), "b", "a", &long] {
            names.add(name);
        }
        let SurveyNames { rows_of, is_complete } = names.found;
        assert!(!is_complete);
        assert_eq!(rows_of, BTreeMap::from([("a".to_owned(), 3), (long, 2)]));
    }
}
