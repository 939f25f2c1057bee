//! Reads the rows of a row group whose texts are all in dictionaries: the question and the groups are compared once for each
//! text of a dictionary, and a row is only numbers.

use super::{
    accumulator::{Codes, Columns, EMPTY_TEXT, Survey},
    question::{Ask, SurveyQuestion},
};
use crate::{
    engine::{
        parquet::{
            column_reader::{ColumnRef, PartColumns, RowRange},
            numbers::Numbers,
            text_codes::TextCodes,
        },
        values::parse::number,
    },
    error::{Error, csv::CellProblem},
    model::part::Part,
};

/// Rows that are read together, one column after the other.
const BATCH_ROWS: usize = 4096;
/// Combinations of codes for which the group is kept. If there are more, it is looked up for each row.
const COMBINATIONS_MAX: usize = 64 * 1024;

/// The columns of one row group that a question needs, all of them as numbers.
pub(super) struct CodedRows<'a> {
    part: &'a Part,
    question: &'a SurveyQuestion,
    value_name: &'static str,
    questions: TextCodes<'a>,
    /// For each code, whether it is the question.
    is_asked: Vec<bool>,
    /// The others; `None` if the row group does not have the question.
    columns: Option<OtherColumns<'a>>,
}

/// The columns besides that of the questions.
struct OtherColumns<'a> {
    values: Values<'a>,
    /// The column of states, if the question is about one, and for each code, whether it is this state.
    states: Option<(TextCodes<'a>, Vec<bool>)>,
    /// The columns that make a group.
    keys: Vec<Key<'a>>,
    groups: Groups,
    batch: Batch,
}

/// The column of the values.
enum Values<'a> {
    Numbers(Box<Numbers<'a, f64>>),
    /// Texts, and the number that each of them is.
    Texts(Box<TextCodes<'a>>, Vec<Result<Option<f64>, CellProblem>>),
}

/// A column that makes a group.
struct Key<'a> {
    texts: TextCodes<'a>,
    /// Which of the three codes of a group it gives.
    index: usize,
    /// The code in the survey of each code of the dictionary, once it was looked up.
    codes: Vec<Option<u32>>,
    /// The codes of the batch's rows.
    batch: Vec<u32>,
}

/// The rows of a batch that count.
#[derive(Default)]
struct Batch {
    /// Their offsets in the batch.
    rows: Vec<u32>,
    /// Their values.
    values: Vec<f64>,
    codes: Vec<u32>,
    combinations: Vec<usize>,
}

/// The group of each combination of codes, once it was looked up.
struct Groups {
    /// By combination: not looked up, or not a group, or the index of one. Empty if there are too many combinations.
    known: Vec<Known>,
}

#[derive(Clone, Copy)]
enum Known {
    No,
    NotAGroup,
    Group(u32),
}

impl<'a> CodedRows<'a> {
    /// Opens a row group; `None` if one of the columns is not all numbers.
    pub(super) fn open(
        file: &'a PartColumns<'_>,
        part: &'a Part,
        columns: &Columns,
        row_group: usize,
        question: &'a SurveyQuestion,
    ) -> Result<Option<Self>, Error> {
        let Some(questions) = file.codes(row_group, &columns.question)? else { return Ok(None) };
        let is_asked = equals(&questions, &question.question);
        let mut others = None;
        if is_asked.contains(&true) {
            others = OtherColumns::open(file, columns, row_group, question)?;
            if others.is_none() {
                return Ok(None);
            }
        }
        let value_name = columns.value.name;
        Ok(Some(Self { part, question, value_name, questions, is_asked, columns: others }))
    }

    /// Adds the rows of a range of the row group to `survey`.
    pub(super) fn read(mut self, range: &RowRange, survey: &mut Survey) -> Result<(), Error> {
        let Some(mut columns) = self.columns else { return Ok(()) };
        let mut batch = std::mem::take(&mut columns.batch);
        self.questions.skip(range.start_in_group())?;
        let mut skipped = range.start_in_group();
        let mut start = 0;
        for rows in range.remaining() {
            self.questions.skip(rows.start - start)?;
            skipped += rows.start - start;
            start = rows.start;
            while start < rows.end {
                let count = BATCH_ROWS.min(rows.end - start);
                self.questions.read(count, &mut batch.codes)?;
                batch.keep_asked(&self.is_asked);
                if batch.rows.is_empty() {
                    skipped += count;
                } else {
                    columns.skip(std::mem::take(&mut skipped))?;
                    columns.read_values(count, &mut batch, |row, cell, problem| Error::Cell {
                        part: self.part.id,
                        row: range.row_number(u32::try_from(start).unwrap_or(u32::MAX).saturating_add(row)),
                        column: self.value_name.to_owned(),
                        cell,
                        problem,
                    })?;
                    columns.add(count, &mut batch, self.question, survey)?;
                }
                start += count;
            }
        }
        self.questions.skip(range.rows_count() - start)?;
        columns.skip(skipped + range.rows_count() - start)
    }
}

/// For each code of a dictionary, whether it is this text.
fn equals(texts: &TextCodes<'_>, wanted: &str) -> Vec<bool> {
    texts.texts().map(false, |text| text == wanted.as_bytes())
}

impl<'a> OtherColumns<'a> {
    /// Opens the columns that the question needs; `None` if one of them is not all numbers.
    fn open(
        file: &'a PartColumns<'_>,
        columns: &Columns,
        row_group: usize,
        question: &SurveyQuestion,
    ) -> Result<Option<Self>, Error> {
        let codes = |column: &ColumnRef<'_>| file.codes(row_group, column);
        let values = match file.numbers(row_group, &columns.value)? {
            Some(numbers) => Values::Numbers(Box::new(numbers)),
            None => {
                let Some(texts) = codes(&columns.value)? else { return Ok(None) };
                let numbers = texts.texts().map(Ok(None), number);
                Values::Texts(Box::new(texts), numbers)
            }
        };
        let mut states = None;
        let mut key_columns = Vec::new();
        match (question.ask, &question.state) {
            (Ask::GlobalMean, _) => {}
            (_, Some(state)) => {
                let Some(texts) = codes(&columns.state)? else { return Ok(None) };
                let is_state = equals(&texts, state);
                states = Some((texts, is_state));
            }
            (_, None) => key_columns.push((&columns.state, 0)),
        }
        if question.ask.is_by_category() {
            key_columns.extend([(&columns.category, 1), (&columns.stratification, 2)]);
        }
        let mut keys = Vec::new();
        for (column, index) in key_columns {
            let Some(texts) = codes(column)? else { return Ok(None) };
            let codes = vec![None; texts.texts().codes_count()];
            keys.push(Key { texts, index, codes, batch: Vec::new() });
        }
        let groups = Groups::new(&keys);
        Ok(Some(Self { values, states, keys, groups, batch: Batch::default() }))
    }

    /// Passes over rows. Those at the end of a row group are passed over, too, because a chunk is checked at its end.
    fn skip(&mut self, count: usize) -> Result<(), Error> {
        match &mut self.values {
            Values::Numbers(numbers) => numbers.skip(count)?,
            Values::Texts(texts, _) => texts.skip(count)?,
        }
        let states = self.states.iter_mut().map(|(texts, _)| texts);
        for texts in states.chain(self.keys.iter_mut().map(|key| &mut key.texts)) {
            texts.skip(count)?;
        }
        Ok(())
    }

    /// Reads the values of the batch's rows, and keeps the rows that have one.
    ///
    /// Errors: that of `bad_cell`, which gets the offset of a row, its cell and what is wrong with it.
    fn read_values(
        &mut self,
        count: usize,
        batch: &mut Batch,
        bad_cell: impl Fn(u32, String, CellProblem) -> Error,
    ) -> Result<(), Error> {
        match &mut self.values {
            Values::Numbers(numbers) => numbers.read_some(count, &batch.rows, &mut batch.values)?,
            Values::Texts(texts, numbers) => {
                texts.read_some(count, &batch.rows, &mut batch.codes)?;
                batch.values.clear();
                for (&row, &code) in batch.rows.iter().zip(&batch.codes) {
                    let found = numbers[code as usize].map_err(|problem| {
                        let cell = String::from_utf8_lossy(texts.texts().text(code)).into_owned();
                        bad_cell(row, cell, problem)
                    })?;
                    batch.values.push(found.unwrap_or(f64::NAN));
                }
            }
        }
        batch.keep(|value, _| !value.is_nan());
        Ok(())
    }

    /// Adds the batch's rows, which are some of the next `count` rows.
    fn add(
        &mut self,
        count: usize,
        batch: &mut Batch,
        question: &SurveyQuestion,
        survey: &mut Survey,
    ) -> Result<(), Error> {
        batch.values.iter().for_each(|&value| survey.global.add(value));
        if let Some((states, is_state)) = &mut self.states {
            states.read_some(count, &batch.rows, &mut batch.codes)?;
            batch.keep(|_, code| is_state[code as usize]);
            batch.values.iter().for_each(|&value| survey.of_state.add(value));
        }
        if self.keys.is_empty() {
            return Ok(());
        }
        batch.combinations.clear();
        batch.combinations.resize(batch.rows.len(), 0);
        for key in &mut self.keys {
            key.texts.read_some(count, &batch.rows, &mut key.batch)?;
            for (combination, code) in batch.combinations.iter_mut().zip(&key.batch) {
                *combination = combination.wrapping_mul(key.codes.len()).wrapping_add(*code as usize);
            }
        }
        for (at, (&value, &combination)) in batch.values.iter().zip(&batch.combinations).enumerate() {
            let group = match self.groups.find(combination) {
                Known::Group(group) => Some(group as usize),
                Known::NotAGroup => None,
                Known::No => {
                    let group = group_of(&mut self.keys, at, question, survey)?;
                    self.groups.note(combination, group);
                    group
                }
            };
            if let Some(group) = group {
                survey.add(group, value);
            }
        }
        Ok(())
    }
}

impl Batch {
    /// Keeps the rows whose code is that of the question. Without a branch, which would be mispredicted.
    fn keep_asked(&mut self, is_asked: &[bool]) {
        self.rows.resize(self.codes.len(), 0);
        let mut kept = 0;
        for (row, &code) in (0..).zip(&self.codes) {
            self.rows[kept] = row;
            kept += usize::from(is_asked[code as usize]);
        }
        self.rows.truncate(kept);
    }

    /// Keeps the rows for whose value and code in `codes` this is true.
    fn keep(&mut self, is_kept: impl Fn(f64, u32) -> bool) {
        let mut kept = 0;
        self.codes.resize(self.rows.len(), 0);
        for at in 0..self.rows.len() {
            (self.rows[kept], self.values[kept]) = (self.rows[at], self.values[at]);
            kept += usize::from(is_kept(self.values[at], self.codes[at]));
        }
        self.rows.truncate(kept);
        self.values.truncate(kept);
    }
}

impl Groups {
    fn new(keys: &[Key<'_>]) -> Self {
        let combinations = keys.iter().try_fold(1_usize, |product, key| product.checked_mul(key.codes.len()));
        let combinations = combinations.filter(|&count| count <= COMBINATIONS_MAX).unwrap_or(0);
        Self { known: vec![Known::No; combinations] }
    }

    fn find(&self, combination: usize) -> Known {
        self.known.get(combination).copied().unwrap_or(Known::No)
    }

    fn note(&mut self, combination: usize, group: Option<usize>) {
        let known = group.map_or(Some(Known::NotAGroup), |group| u32::try_from(group).ok().map(Known::Group));
        if let (Some(entry), Some(known)) = (self.known.get_mut(combination), known) {
            *entry = known;
        }
    }
}

/// Looks up the group of a row of the batch; `None` if it lacks one of the texts, or one is empty.
fn group_of(
    keys: &mut [Key<'_>],
    at: usize,
    question: &SurveyQuestion,
    survey: &mut Survey,
) -> Result<Option<usize>, Error> {
    let mut group = Codes::default();
    for key in keys {
        let code = key.batch[at];
        let found = match key.codes[code as usize] {
            Some(found) => found,
            None => {
                let text = std::str::from_utf8(key.texts.texts().text(code));
                let text = text.map_err(|error| Error::Internal(format!("a text of a dictionary: {error}")))?;
                *key.codes[code as usize].insert(survey.code(text, question)?)
            }
        };
        if found == EMPTY_TEXT {
            return Ok(None);
        }
        group[key.index] = found;
    }
    survey.group(group, question).map(Some)
}
