//! Computes the means by state and category for one question.

use std::{collections::HashMap, str::from_utf8, sync::Arc};

use super::{
    answer::{Answer, Memory},
    python_repr::{REPR_BYTES_PER_BYTE, tuple_repr},
    question::{Ask, Best, COLUMN_NAMES, RANKED_MAX, SurveyQuestion},
};
use crate::{
    engine::{
        parquet::column_reader::{Cell, ColumnRef, PartColumns, RowRange},
        values::{
            mean::Mean,
            parse::number,
            varint::{put_u64, take_u64},
        },
    },
    error::{Error, statistics::StatisticsError},
    limits::{SURVEY_BYTES_MAX, SURVEY_GROUP_BYTES, SURVEY_TEXT_BYTES},
    model::{part::Part, schema::Schema},
};

/// The five columns of one part.
pub(super) struct Columns {
    pub(super) question: ColumnRef<'static>,
    pub(super) value: ColumnRef<'static>,
    pub(super) state: ColumnRef<'static>,
    pub(super) category: ColumnRef<'static>,
    pub(super) stratification: ColumnRef<'static>,
}

impl Columns {
    /// Finds the five columns; `None` if one is missing.
    pub(super) fn of(schema: &Schema) -> Option<Self> {
        let [question, value, state, category, stratification] = COLUMN_NAMES.map(|name| ColumnRef::find(schema, name));
        Some(Self {
            question: question?,
            value: value?,
            state: state?,
            category: category?,
            stratification: stratification?,
        })
    }

    /// Whether the first `count` columns can be read from Parquet: texts that are compared are there as they were in the CSV.
    pub(super) fn are_exact(&self, count: usize) -> bool {
        self.first(count).into_iter().all(|column| column.name == self.value.name || column.column_type.keeps_texts())
    }

    /// The first `count` columns, in the order of [`COLUMN_NAMES`].
    pub(super) fn first(&self, count: usize) -> Vec<&ColumnRef<'static>> {
        let all = [&self.question, &self.value, &self.state, &self.category, &self.stratification];
        all[..count].to_vec()
    }
}

/// What is known of a row while its columns are read one after another.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    codes: Codes,
    value: f64,
}

/// The codes of state, category and stratification in [`Texts`].
pub(super) type Codes = [u32; 3];

/// The keys of the means that are of no group. Those of groups are three texts, each with its length, and so at least three bytes long.
const GLOBAL_KEY: &[u8] = b"g";
const STATE_KEY: &[u8] = b"s";

/// The code of the empty text.
pub(super) const EMPTY_TEXT: u32 = 0;

/// The sums of some rows.
pub(super) struct Survey {
    /// The mean of all rows of the question.
    pub(super) global: Mean,
    /// The mean of the rows of the state that the question is about.
    pub(super) of_state: Mean,
    /// The indices of the groups' means: by state, or by state and category.
    groups: HashMap<Codes, usize>,
    #[allow(clippy::vec_box, reason = "little is moved when the list grows")]
    means: Vec<Box<Mean>>,
    texts: Texts,
    /// Bytes that groups and texts take in memory.
    bytes: usize,
    memory: Memory,
}

/// Numbers texts with codes, so that each text is stored once.
struct Texts {
    codes: HashMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
}

impl Survey {
    pub(super) fn new(memory: Memory) -> Self {
        // The empty text has code 0 from the start.
        let empty: Arc<str> = Arc::from("");
        let texts = Texts { codes: HashMap::from([(Arc::clone(&empty), 0)]), texts: vec![empty] };
        let (global, of_state) = (Mean::default(), Mean::default());
        Self { global, of_state, groups: HashMap::new(), means: Vec::new(), texts, bytes: 0, memory }
    }

    /// Adds the rows of a range that belong to the question, column by column.
    pub(super) fn read(
        &mut self,
        file: &PartColumns<'_>,
        part: &Part,
        columns: &Columns,
        range: &RowRange,
        question: &SurveyQuestion,
    ) -> Result<(), Error> {
        let mut buffer = String::new();
        let mut rows: Vec<_> = range.offsets().map(|offset| (offset, Row::default())).collect();
        file.filter_rows(&columns.question, range, &mut rows, |_, _, cell| {
            Ok(cell != Cell::Empty && cell.text(&mut buffer) == question.question)
        })?;
        file.filter_rows(&columns.value, range, &mut rows, |offset, row, cell| {
            let value = match cell {
                Cell::Float64(value) => Ok(Some(value)),
                Cell::Int64(value) => Ok(Some(value as f64)),
                cell => number(cell.text(&mut buffer).as_bytes()),
            };
            let value = value.map_err(|problem| Error::Cell {
                part: part.id,
                row: range.row_number(offset),
                column: columns.value.name.to_owned(),
                cell: cell.text(&mut buffer).to_owned(),
                problem,
            })?;
            let Some(value) = value else { return Ok(false) };
            row.value = value;
            Ok(true)
        })?;
        rows.iter().for_each(|(_, row)| self.global.add(row.value));
        if question.ask == Ask::GlobalMean {
            return Ok(());
        }
        match &question.state {
            Some(state) => {
                file.filter_rows(&columns.state, range, &mut rows, |_, _, cell| {
                    Ok(cell != Cell::Empty && cell.text(&mut buffer) == state)
                })?;
                rows.iter().for_each(|(_, row)| self.of_state.add(row.value));
            }
            None => self.narrow_to_texts(0, file, &columns.state, range, &mut rows, question)?,
        }
        if question.ask.is_by_category() {
            self.narrow_to_texts(1, file, &columns.category, range, &mut rows, question)?;
            self.narrow_to_texts(2, file, &columns.stratification, range, &mut rows, question)?;
        } else if question.ask.is_of_state() {
            return Ok(());
        }
        for (_, row) in rows {
            let group = self.group(row.codes, question)?;
            self.add(group, row.value);
        }
        Ok(())
    }

    /// Adds one row, whose cells are in the order of [`COLUMN_NAMES`]. Those that the question does not need may be empty.
    pub(super) fn add_row(
        &mut self,
        part: &Part,
        row: u64,
        cells: [&str; 5],
        question: &SurveyQuestion,
    ) -> Result<(), Error> {
        let [text, value, state, category, stratification] = cells;
        if text.is_empty() || text != question.question {
            return Ok(());
        }
        let bad_cell = |problem| {
            let [_, column, ..] = COLUMN_NAMES.map(str::to_owned);
            Error::Cell { part: part.id, row, column, cell: value.to_owned(), problem }
        };
        let Some(number) = number(value.as_bytes()).map_err(bad_cell)? else { return Ok(()) };
        self.global.add(number);
        if question.ask == Ask::GlobalMean {
            return Ok(());
        }
        let mut codes = Codes::default();
        let mut texts = vec![(0, state)];
        if let Some(wanted) = &question.state {
            if state.is_empty() || state != wanted {
                return Ok(());
            }
            self.of_state.add(number);
            texts.clear();
        }
        if question.ask.is_by_category() {
            texts.extend([(1, category), (2, stratification)]);
        } else if question.ask.is_of_state() {
            return Ok(());
        }
        for (index, text) in texts {
            codes[index] = self.code(text, question)?;
            if codes[index] == 0 {
                return Ok(());
            }
        }
        let group = self.group(codes, question)?;
        self.add(group, number);
        Ok(())
    }

    /// Stores the codes of a column's texts in the rows, and drops the rows whose text is empty.
    fn narrow_to_texts(
        &mut self,
        code_index: usize,
        file: &PartColumns<'_>,
        column: &ColumnRef<'_>,
        range: &RowRange,
        rows: &mut Vec<(u32, Row)>,
        question: &SurveyQuestion,
    ) -> Result<(), Error> {
        let mut buffer = String::new();
        file.filter_rows(column, range, rows, |_, row, cell| {
            row.codes[code_index] = self.code(cell.text(&mut buffer), question)?;
            Ok(row.codes[code_index] != 0)
        })
    }

    /// Returns the code of a text, which is added if it is new.
    pub(super) fn code(&mut self, text: &str, question: &SurveyQuestion) -> Result<u32, Error> {
        if let Some(&code) = self.texts.codes.get(text) {
            return Ok(code);
        }
        self.charge(SURVEY_TEXT_BYTES + text.len(), question)?;
        let text: Arc<str> = Arc::from(text);
        let code = u32::try_from(self.texts.texts.len()).unwrap_or(u32::MAX); // far fewer fit in the limit
        self.texts.texts.push(Arc::clone(&text));
        self.texts.codes.insert(text, code);
        Ok(code)
    }

    /// Returns the index of a group, which is added if it is new.
    pub(super) fn group(&mut self, codes: Codes, question: &SurveyQuestion) -> Result<usize, Error> {
        if let Some(group) = self.groups.get(&codes) {
            return Ok(*group);
        }
        // The answer contains all texts of each group.
        let text_bytes: usize = codes.iter().map(|&code| self.text(code).len()).sum();
        self.charge(SURVEY_GROUP_BYTES + REPR_BYTES_PER_BYTE * text_bytes, question)?;
        let group = self.means.len();
        self.means.push(Box::default());
        self.groups.insert(codes, group);
        Ok(group)
    }

    /// Adds a value to a group.
    pub(super) fn add(&mut self, group: usize, value: f64) {
        self.means[group].add(value);
    }

    fn text(&self, code: u32) -> &str {
        &self.texts.texts[code as usize]
    }

    fn charge(&mut self, bytes: usize, question: &SurveyQuestion) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > SURVEY_BYTES_MAX {
            let question = question.question.clone();
            return Err(StatisticsError::TooManyGroups { question, bytes_max: SURVEY_BYTES_MAX }.into());
        }
        Ok(())
    }

    /// Adds the sums of other rows.
    pub(super) fn merge(&mut self, other: &Self, question: &SurveyQuestion) -> Result<(), Error> {
        self.global.merge(&other.global);
        self.of_state.merge(&other.of_state);
        let codes: Vec<u32> =
            other.texts.texts.iter().map(|text| self.code(text, question)).collect::<Result<_, _>>()?;
        for (of_other, group) in &other.groups {
            let own = self.group(of_other.map(|code| codes[code as usize]), question)?;
            self.means[own].merge(&other.means[*group]);
        }
        Ok(())
    }

    /// Calls `take` with the key and the value of each mean, by which another survey adds it.
    pub(super) fn each_row(&self, mut take: impl FnMut(&[u8], &[u8])) {
        take(GLOBAL_KEY, &self.global.to_bytes());
        take(STATE_KEY, &self.of_state.to_bytes());
        let mut key = Vec::new();
        for (codes, group) in &self.groups {
            key.clear();
            for text in codes.map(|code| self.text(code)) {
                put_u64(text.len() as u64, &mut key);
                key.extend_from_slice(text.as_bytes());
            }
            take(&key, &self.means[*group].to_bytes());
        }
    }

    /// Adds a mean that [`Self::each_row`] has given.
    ///
    /// Errors: more groups than there is memory for; bytes that are no mean.
    pub(super) fn add_mean(&mut self, key: &[u8], value: &[u8], question: &SurveyQuestion) -> Result<(), Error> {
        let wrong = || Error::Internal("a wrong answer of the cluster: a group that is no mean".to_owned());
        let mean = match key {
            GLOBAL_KEY => &mut self.global,
            STATE_KEY => &mut self.of_state,
            mut texts => {
                let mut codes = Codes::default();
                for code in &mut codes {
                    let len = take_u64(&mut texts).and_then(|len| usize::try_from(len).ok()).ok_or_else(wrong)?;
                    let (text, rest) = texts.split_at_checked(len).ok_or_else(wrong)?;
                    *code = self.code(from_utf8(text).ok().ok_or_else(wrong)?, question)?;
                    texts = rest;
                }
                if !texts.is_empty() {
                    return Err(wrong());
                }
                let group = self.group(codes, question)?;
                &mut *self.means[group]
            }
        };
        mean.merge_bytes(value).ok_or_else(wrong)
    }

    pub(super) fn into_answer(self, question: &SurveyQuestion) -> Result<Answer, Error> {
        let SurveyQuestion { ask, question: text, state, .. } = question;
        let Some(global) = self.global.mean() else {
            return Err(StatisticsError::NoSuchQuestion { question: text.clone() }.into());
        };
        let named = |name: &str, mean| vec![(name.to_owned(), mean)];
        let mut nested_under = None;
        let means = match (ask, state) {
            (Ask::StatesMean, _) => self.ranked(Best::Min),
            (Ask::Best5 | Ask::Worst5, _) => {
                let smallest_first = (question.best() == Best::Min) == (*ask == Ask::Best5);
                let mut states = self.ranked(if smallest_first { Best::Min } else { Best::Max });
                states.truncate(RANKED_MAX);
                states
            }
            (Ask::DiffFromMean, _) => {
                // The smallest mean has the largest difference.
                let mut states = self.ranked(Best::Min);
                for (state, mean) in &mut states {
                    *mean = difference(global, *mean, state)?;
                }
                states
            }
            (Ask::MeanByCategory, _) => self.means(3),
            (Ask::GlobalMean, _) | (_, None) => named("global_mean", global),
            (_, Some(state)) => {
                let no_state = || StatisticsError::NoSuchState { question: text.clone(), state: state.clone() };
                let mean = self.of_state.mean().ok_or_else(no_state)?;
                match ask {
                    Ask::StateDiffFromMean => named(state, difference(global, mean, state)?),
                    Ask::StateMeanByCategory => {
                        nested_under = Some(state.clone());
                        self.means(2)
                    }
                    _ => named(state, mean),
                }
            }
        };
        Ok(Answer { means, state: nested_under, _memory: self.memory })
    }

    /// The groups' means, ordered by key: the state's name if `width` is 1, or else the last `width` texts.
    fn means(&self, width: usize) -> Vec<(String, f64)> {
        let key = |codes: &Codes| match width {
            1 => self.text(codes[0]).to_owned(),
            width => tuple_repr(&codes.map(|code| self.text(code))[codes.len() - width..]),
        };
        let groups = self.groups.iter().filter_map(|(codes, group)| Some((key(codes), self.means[*group].mean()?)));
        let mut means: Vec<_> = groups.collect();
        means.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        means
    }

    /// The states' means, the smallest or the largest first.
    fn ranked(&self, first: Best) -> Vec<(String, f64)> {
        let mut means = self.means(1);
        // A stable sort: states with equal means stay in the order of their names.
        means.sort_by(|(_, one), (_, other)| match first {
            Best::Min => one.total_cmp(other),
            Best::Max => other.total_cmp(one),
        });
        means
    }
}

fn difference(global: f64, mean: f64, state: &str) -> Result<f64, Error> {
    let difference = global - mean;
    match difference.is_finite() {
        true => Ok(difference),
        false => Err(StatisticsError::DifferenceOverflow { state: state.to_owned() }.into()),
    }
}
