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
            text_codes::{NULL_CODE, TextCodes},
        },
        values::parse::number,
    },
    error::{Error, csv::CellProblem},
    model::part::Part,
};

/// Rows whose codes are decoded together, one column after the other.
const BATCH_ROWS: usize = 4096;
/// Combinations of codes for which the group is kept. If there are more, it is looked up for each row.
const COMBINATIONS_MAX: usize = 64 * 1024;

/// The columns of one row group that a question needs, all of them as numbers.
pub(super) struct CodedRows<'a> {
    part: &'a Part,
    question: &'a SurveyQuestion,
    value_name: &'static str,
    questions: TextCodes<'a>,
    is_asked: Vec<bool>,
    values: Values<'a>,
    states: Option<TextCodes<'a>>,
    is_state: Vec<bool>,
    /// The columns that make a group.
    keys: Vec<Key<'a>>,
    groups: Groups,
}

/// The column of the values.
enum Values<'a> {
    Numbers(Box<Numbers<'a>>),
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
        let codes = |column: &ColumnRef<'_>| file.codes(row_group, column);
        let Some(questions) = codes(&columns.question)? else { return Ok(None) };
        let values = match file.numbers(row_group, &columns.value)? {
            Some(numbers) => Values::Numbers(Box::new(numbers)),
            None => {
                let Some(texts) = codes(&columns.value)? else { return Ok(None) };
                let numbers = texts.texts().map(Ok(None), number);
                Values::Texts(Box::new(texts), numbers)
            }
        };
        let (mut states, mut keys) = (None, Vec::new());
        let mut add_key = |column, index| -> Result<bool, Error> {
            let Some(texts) = codes(column)? else { return Ok(false) };
            let codes = vec![None; texts.texts().codes_count()];
            keys.push(Key { texts, index, codes });
            Ok(true)
        };
        if question.ask != Ask::GlobalMean {
            if question.state.is_some() {
                states = codes(&columns.state)?;
                if states.is_none() {
                    return Ok(None);
                }
            } else if !add_key(&columns.state, 0)? {
                return Ok(None);
            }
            if question.ask.is_by_category()
                && !(add_key(&columns.category, 1)? && add_key(&columns.stratification, 2)?)
            {
                return Ok(None);
            }
        }
        let equals = |texts: &TextCodes<'_>, wanted: &str| texts.texts().map(false, |text| text == wanted.as_bytes());
        let is_asked = equals(&questions, &question.question);
        let is_state = match (&states, &question.state) {
            (Some(states), Some(wanted)) => equals(states, wanted),
            _ => Vec::new(),
        };
        let groups = Groups::new(&keys);
        let value_name = columns.value.name;
        Ok(Some(Self { part, question, value_name, questions, is_asked, values, states, is_state, keys, groups }))
    }

    /// Adds the rows of a range of the row group to `survey`.
    pub(super) fn read(mut self, range: &RowRange, survey: &mut Survey) -> Result<(), Error> {
        if !self.is_asked.contains(&true) {
            return Ok(());
        }
        self.skip(range.start_in_group())?;
        let (mut codes, mut rows, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        while start < range.rows_count() {
            let count = BATCH_ROWS.min(range.rows_count() - start);
            self.questions.read(count, &mut codes)?;
            rows.clear();
            let asked = codes.iter().enumerate().filter(|(_, code)| self.is_asked[**code as usize]);
            rows.extend(asked.map(|(row, _)| row));
            if rows.is_empty() {
                self.skip_others(count)?;
            } else {
                self.read_values(count, range, start, &mut rows, &mut codes, &mut values)?;
                self.add(count, &mut rows, &mut codes, &values, survey)?;
            }
            start += count;
        }
        Ok(())
    }

    fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.questions.skip(count)?;
        self.skip_others(count)
    }

    fn skip_others(&mut self, count: usize) -> Result<(), Error> {
        match &mut self.values {
            Values::Numbers(numbers) => numbers.skip(count)?,
            Values::Texts(texts, _) => texts.skip(count)?,
        }
        for texts in self.states.iter_mut().chain(self.keys.iter_mut().map(|key| &mut key.texts)) {
            texts.skip(count)?;
        }
        Ok(())
    }

    /// Reads the values of the next rows, and keeps of `rows` those that have one.
    fn read_values(
        &mut self,
        count: usize,
        range: &RowRange,
        start: usize,
        rows: &mut Vec<usize>,
        codes: &mut Vec<u32>,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        values.clear();
        match &mut self.values {
            Values::Numbers(numbers) => numbers.read_doubles(count, |value| values.push(value))?,
            Values::Texts(texts, numbers) => {
                texts.read(count, codes)?;
                values.resize(count, f64::NAN);
                for &row in &*rows {
                    let found = numbers[codes[row] as usize].map_err(|problem| Error::Cell {
                        part: self.part.id,
                        row: range.row_number(u32::try_from(start + row).unwrap_or(u32::MAX)),
                        column: self.value_name.to_owned(),
                        cell: String::from_utf8_lossy(texts.texts().text(codes[row])).into_owned(),
                        problem,
                    })?;
                    values[row] = found.unwrap_or(f64::NAN);
                }
            }
        }
        rows.retain(|&row| !values[row].is_nan());
        Ok(())
    }

    /// Adds `rows`, which are some of the next `count` rows.
    fn add(
        &mut self,
        count: usize,
        rows: &mut Vec<usize>,
        codes: &mut Vec<u32>,
        values: &[f64],
        survey: &mut Survey,
    ) -> Result<(), Error> {
        rows.iter().for_each(|&row| survey.global.add(values[row]));
        if let Some(states) = &mut self.states {
            states.read(count, codes)?;
            rows.retain(|&row| self.is_state[codes[row] as usize]);
            rows.iter().for_each(|&row| survey.of_state.add(values[row]));
        }
        if self.keys.is_empty() {
            return Ok(());
        }
        let mut combinations = vec![0_usize; rows.len()];
        let mut columns = Vec::with_capacity(self.keys.len());
        for key in &mut self.keys {
            key.texts.read(count, codes)?;
            let codes: Vec<u32> = rows.iter().map(|&row| codes[row]).collect();
            for (combination, code) in combinations.iter_mut().zip(&codes) {
                *combination = combination.wrapping_mul(key.codes.len()).wrapping_add(*code as usize);
            }
            columns.push(codes);
        }
        for (at, (&row, combination)) in rows.iter().zip(combinations).enumerate() {
            if columns.iter().any(|codes| codes[at] == NULL_CODE) {
                continue;
            }
            let group = match self.groups.find(combination) {
                Known::Group(group) => Some(group as usize),
                Known::NotAGroup => None,
                Known::No => {
                    let group = group_of(&mut self.keys, &columns, at, self.question, survey)?;
                    self.groups.note(combination, group);
                    group
                }
            };
            if let Some(group) = group {
                survey.add(group, values[row]);
            }
        }
        Ok(())
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

/// Looks up the group of a row; `None` if one of its texts is empty.
fn group_of(
    keys: &mut [Key<'_>],
    columns: &[Vec<u32>],
    at: usize,
    question: &SurveyQuestion,
    survey: &mut Survey,
) -> Result<Option<usize>, Error> {
    let mut group = Codes::default();
    for (key, codes) in keys.iter_mut().zip(columns) {
        let code = codes[at];
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
