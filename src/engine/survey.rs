//! The statistics of the CDC's survey: means of `Data_Value` for a question, by state and by category.
//!
//! They are taken over all parts that have the five columns; other parts add nothing. Only the columns that a question
//! needs are read, from Parquet, and only rows of that question with a value go on from one column to the next. Means are
//! exact and rounded once (`mean.rs`), so they do not depend on how the rows lie in parts, in which order, or on threads.
//!
//! What counts: a row whose question is the one asked for, letter for letter, and whose value is not empty. A row without
//! a state counts in the global mean alone, and one without both a category and a stratification in no category.
//! Memory: the states and categories of one question are bounded in bytes, and claimed before any row is read.

use std::{collections::HashMap, pin::pin, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Engine,
    cell::number,
    columns::{Cell, ColumnRef, PartColumns, Position, Stretch},
    mean::Mean,
    part::{Format, Part, Schema},
    python::{REPR_BYTES_PER_BYTE, tuple_repr},
    query::{Groups, is_wide},
    state::Lane,
    store::Store,
    verify::parts_to_read,
};
use crate::{
    error::{Error, NotAQuestion},
    limits::{
        SLICE_BYTES, SURVEY_BYTES_MAX, SURVEY_CLAIM_BYTES, SURVEY_GROUP_BYTES, SURVEY_NAME_BYTES_MAX, SURVEY_ROW_BYTES,
        SURVEY_SLICE_ROWS, SURVEY_SLICES_MAX, SURVEY_TEXT_BYTES,
    },
};

/// The columns of the survey, as [`Columns`] has them.
const COLUMN_NAMES: [&str; 5] =
    ["Question", "Data_Value", "LocationDesc", "StratificationCategory1", "Stratification1"];
/// How many states `best5` and `worst5` name.
const RANKED_MAX: usize = 5;
/// Questions with these beginnings ask for what is bad: the best is the smallest mean. For all others it is the largest.
const SMALLEST_IS_BEST: [&str; 5] = [
    "Percent of adults aged 18 years and older who have an overweight classification",
    "Percent of adults aged 18 years and older who have obesity",
    "Percent of adults who engage in no leisure-time physical activity",
    "Percent of adults who report consuming fruit less than one time daily",
    "Percent of adults who report consuming vegetables less than one time daily",
];

/// Which statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// `{"Ohio": 34.1, ...}`, from the smallest mean to the largest, by name where means are equal.
    StatesMean,
    /// `{"Ohio": 34.1}`
    StateMean,
    /// Five states at most, the best first, by name where means are equal.
    Best5,
    /// Five states at most, the worst first, by name where means are equal.
    Worst5,
    /// `{"global_mean": 34.5}`: of all rows, not of the states' means.
    GlobalMean,
    /// `{"Ohio": 0.4, ...}`, the global mean minus the state's, by name.
    DiffFromMean,
    /// `{"Ohio": 0.4}`, the global mean minus the state's.
    StateDiffFromMean,
    /// `{"('Ohio', 'Income', '$15,000 - $24,999')": 30.4, ...}`, by key as Python sorts text: by code points.
    MeanByCategory,
    /// `{"Ohio": {"('Income', '$15,000 - $24,999')": 30.4, ...}}`, by key.
    StateMeanByCategory,
}

/// Which mean is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Best {
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

/// A question that can be answered or recorded: it has a state if and only if it is about one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct SurveyQuestion {
    ask: Ask,
    question: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<Best>,
}

#[derive(Deserialize)]
struct Unchecked {
    ask: Ask,
    question: String,
    state: Option<String>,
    best: Option<Best>,
}

impl TryFrom<Unchecked> for SurveyQuestion {
    type Error = Error;

    fn try_from(Unchecked { ask, question, state, best }: Unchecked) -> Result<Self, Error> {
        Self::new(ask, question, state, best)
    }
}

impl Ask {
    /// Whether it is about one state.
    pub fn is_of_state(self) -> bool {
        matches!(self, Self::StateMean | Self::StateDiffFromMean | Self::StateMeanByCategory)
    }

    fn is_by_category(self) -> bool {
        matches!(self, Self::MeanByCategory | Self::StateMeanByCategory)
    }

    /// How many of [`COLUMN_NAMES`] it needs.
    fn columns_count(self) -> usize {
        match self {
            Self::GlobalMean => 2,
            Self::MeanByCategory | Self::StateMeanByCategory => 5,
            _ => 3,
        }
    }
}

impl SurveyQuestion {
    /// A question. `best` says which mean is the best; without it the question's text does. It matters to `Best5` and
    /// `Worst5` alone. A state is dropped if the question is about all.
    ///
    /// Errors: a state is missing; a text is longer than 16 KiB.
    pub fn new(ask: Ask, question: String, state: Option<String>, best: Option<Best>) -> Result<Self, Error> {
        let too_long = |what| NotAQuestion::TooLong { what, bytes_max: SURVEY_NAME_BYTES_MAX };
        let state = state.filter(|_| ask.is_of_state());
        let wrong = match &state {
            None if ask.is_of_state() => Some(NotAQuestion::NoState),
            Some(state) if state.len() > SURVEY_NAME_BYTES_MAX => Some(too_long("state")),
            _ if question.len() > SURVEY_NAME_BYTES_MAX => Some(too_long("question")),
            _ => None,
        };
        match wrong {
            Some(wrong) => Err(Error::NotAQuestion(wrong)),
            None => Ok(Self { ask, question, state, best }),
        }
    }

    /// Which statistic.
    pub fn ask(&self) -> Ask {
        self.ask
    }

    /// Which mean is the best for it.
    pub fn best(&self) -> Best {
        let smallest = || SMALLEST_IS_BEST.iter().any(|beginning| self.question.starts_with(beginning));
        self.best.unwrap_or_else(|| if smallest() { Best::Min } else { Best::Max })
    }
}

/// What a question is answered with: JSON in a fixed order, by its `Serialize`. While it lives, it holds the memory that
/// was claimed for it.
#[derive(Debug)]
pub struct Answer {
    means: Vec<(String, f64)>,
    /// Around the means, if they are categories of one state.
    state: Option<String>,
    _memory: Memory,
}

/// The claim on memory, shared by all that lives of one question.
type Memory = Arc<OwnedSemaphorePermit>;

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let means = Means(&self.means);
        match &self.state {
            Some(state) => serializer.collect_map([(state, means)]),
            None => means.serialize(serializer),
        }
    }
}

/// A map in the order of the list.
struct Means<'a>(&'a [(String, f64)]);

impl Serialize for Means<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, mean)| (name, mean)))
    }
}

/// Answers a question. `progress` is told how many parts are done, out of how many.
///
/// Errors: see [`Engine::survey`].
pub(super) async fn answer(
    engine: &Engine,
    question: &SurveyQuestion,
    lane: Lane,
    progress: impl Fn(u64, u64),
) -> Result<Answer, Error> {
    let memory = Arc::new(engine.0.surveys.claim(SURVEY_CLAIM_BYTES).await?);
    let question = Arc::new(question.clone());
    let parts = parts_to_read(engine, lane).await?;
    let parts_count = parts.len() as u64;
    let groups = stream::iter(Groups { parts: parts.into_iter().peekable(), format: Format::Parquet });
    let read = |group| read_group(engine.clone(), group, Arc::clone(&question), lane, Arc::clone(&memory));
    // In the order of the groups, so that the first error is the first in the table.
    let mut read = pin!(groups.map(read).buffered(SURVEY_SLICES_MAX));
    let mut all = Survey::new(Arc::clone(&memory));
    let mut parts_done = 0;
    progress(parts_done, parts_count);
    while let Some((parts, some)) = read.try_next().await? {
        let question = Arc::clone(&question);
        let merge = move || all.merge(&some, &question).map(|()| all);
        all = engine.0.workers.run(lane, merge).await.flatten()?;
        parts_done += parts;
        progress(parts_done, parts_count);
    }
    let question = Arc::clone(&question);
    engine.0.workers.run(lane, move || all.into_answer(&question)).await.flatten()
}

/// Reads the parts of a group, one slice after another, and says how many they were.
async fn read_group(
    engine: Engine,
    group: Vec<Arc<Part>>,
    question: Arc<SurveyQuestion>,
    lane: Lane,
    memory: Memory,
) -> Result<(u64, Survey), Error> {
    let inner = &engine.0;
    // A wide part's footer takes memory that there is for few at a time; it is alone in its group or first.
    let wide = match is_wide(&group[0]) {
        true => Some(Arc::clone(&inner.wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?),
        false => None,
    };
    let parts_count = group.len() as u64;
    let mut work =
        GroupRead { group, next: 0, position: Position::default(), survey: Survey::new(memory), _wide: wide };
    while work.next < work.group.len() {
        let (store, question) = (Arc::clone(&inner.store), Arc::clone(&question));
        let slice = move || {
            work.step(&store, &question)?;
            Ok(work)
        };
        work = inner.workers.run(lane, slice).await.flatten()?;
    }
    Ok((parts_count, work.survey))
}

/// Reading under way.
struct GroupRead {
    group: Vec<Arc<Part>>,
    next: usize,
    position: Position,
    survey: Survey,
    /// Travels with the work: a cancelled call's slice may still be running.
    _wide: Option<OwnedSemaphorePermit>,
}

impl GroupRead {
    /// One slice: parts, or stretches of a large part, up to about `SURVEY_SLICE_ROWS` or `SLICE_BYTES`.
    fn step(&mut self, store: &Store, question: &SurveyQuestion) -> Result<(), Error> {
        let (mut rows_left, mut bytes) = (SURVEY_SLICE_ROWS, 0);
        while let Some(part) = self.group.get(self.next).map(Arc::clone) {
            let schema = match &part.schema {
                Some(schema) => Arc::clone(schema),
                None => Arc::new(Schema::of(&store.receipt(part.id)?.columns)),
            };
            if let Some(columns) = Columns::of(&schema) {
                let file = store.open_part(&part, Format::Parquet)?;
                let open = PartColumns::open(&file, &part)?;
                let needed = columns.needed(question.ask);
                while let Some((stretch, after)) = open.stretch(self.position, &needed, rows_left)? {
                    self.survey.read(&open, &part, &columns, &stretch, question)?;
                    rows_left -= stretch.rows_count();
                    bytes = stretch.bytes().saturating_add(bytes);
                    self.position = after;
                    if rows_left == 0 || bytes >= SLICE_BYTES as u64 {
                        return Ok(());
                    }
                }
            }
            self.next += 1;
            self.position = Position::default();
        }
        Ok(())
    }
}

/// The five columns of one part.
struct Columns {
    question: ColumnRef,
    value: ColumnRef,
    state: ColumnRef,
    category: ColumnRef,
    stratification: ColumnRef,
}

impl Columns {
    /// None unless all are there.
    fn of(schema: &Schema) -> Option<Self> {
        let [question, value, state, category, stratification] = COLUMN_NAMES.map(|name| ColumnRef::find(schema, name));
        Some(Self {
            question: question?,
            value: value?,
            state: state?,
            category: category?,
            stratification: stratification?,
        })
    }

    fn needed(&self, ask: Ask) -> Vec<&ColumnRef> {
        let all = [&self.question, &self.value, &self.state, &self.category, &self.stratification];
        all[..ask.columns_count()].to_vec()
    }
}

/// What is known of a row between two columns.
#[derive(Clone, Copy, Default)]
struct Row {
    codes: Codes,
    value: f64,
}

/// State, category and stratification as [`Texts`] has them, 0 where there is none.
type Codes = [u32; 3];

const _: () = assert!(size_of::<(u32, Row)>() <= SURVEY_ROW_BYTES);

/// The sums of some rows.
struct Survey {
    /// Over all rows of the question.
    global: Mean,
    /// Over those of the state that the question is about.
    of_state: Mean,
    /// By state, or by state and category; each in a box, so that a map that grows moves little.
    groups: HashMap<Codes, Box<Mean>>,
    texts: Texts,
    /// What groups and texts take.
    bytes: usize,
    memory: Memory,
}

/// Each text once.
struct Texts {
    codes: HashMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
}

impl Survey {
    fn new(memory: Memory) -> Self {
        // The empty text has code 0 from the start.
        let none: Arc<str> = Arc::from("");
        let texts = Texts { codes: HashMap::from([(Arc::clone(&none), 0)]), texts: vec![none] };
        Self { global: Mean::default(), of_state: Mean::default(), groups: HashMap::new(), texts, bytes: 0, memory }
    }

    /// Adds the rows of a stretch that belong to the question, column by column.
    fn read(
        &mut self,
        file: &PartColumns<'_>,
        part: &Part,
        columns: &Columns,
        stretch: &Stretch,
        question: &SurveyQuestion,
    ) -> Result<(), Error> {
        let mut buffer = String::new();
        let offsets = 0..u32::try_from(stretch.rows_count()).unwrap_or(u32::MAX);
        let mut rows: Vec<_> = offsets.map(|offset| (offset, Row::default())).collect();
        file.narrow(&columns.question, stretch, &mut rows, |_, _, cell| {
            Ok(cell != Cell::Empty && cell.text(&mut buffer) == question.question)
        })?;
        file.narrow(&columns.value, stretch, &mut rows, |offset, row, cell| {
            let value = match cell {
                Cell::Float64(value) => Ok(Some(value)),
                Cell::Int64(value) => Ok(Some(value as f64)),
                cell => number(cell.text(&mut buffer).as_bytes()),
            };
            let value = value.map_err(|problem| Error::Cell {
                part: part.id,
                row: stretch.row_number(offset),
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
                file.narrow(&columns.state, stretch, &mut rows, |_, _, cell| {
                    Ok(cell != Cell::Empty && cell.text(&mut buffer) == state)
                })?;
                rows.iter().for_each(|(_, row)| self.of_state.add(row.value));
            }
            None => self.narrow_to_texts(0, file, &columns.state, stretch, &mut rows, question)?,
        }
        if question.ask.is_by_category() {
            self.narrow_to_texts(1, file, &columns.category, stretch, &mut rows, question)?;
            self.narrow_to_texts(2, file, &columns.stratification, stretch, &mut rows, question)?;
        } else if question.ask.is_of_state() {
            return Ok(());
        }
        for (_, row) in rows {
            self.group(row.codes, question)?.add(row.value);
        }
        Ok(())
    }

    /// Notes the texts of a column, and drops the rows that have none.
    fn narrow_to_texts(
        &mut self,
        place: usize,
        file: &PartColumns<'_>,
        column: &ColumnRef,
        stretch: &Stretch,
        rows: &mut Vec<(u32, Row)>,
        question: &SurveyQuestion,
    ) -> Result<(), Error> {
        let mut buffer = String::new();
        file.narrow(column, stretch, rows, |_, row, cell| {
            row.codes[place] = self.code(cell.text(&mut buffer), question)?;
            Ok(row.codes[place] != 0)
        })
    }

    /// The code of a text, which is a new one if the text is new.
    fn code(&mut self, text: &str, question: &SurveyQuestion) -> Result<u32, Error> {
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

    /// The sum of a group, which is a new one if the group is new.
    fn group(&mut self, codes: Codes, question: &SurveyQuestion) -> Result<&mut Mean, Error> {
        if !self.groups.contains_key(&codes) {
            // The answer prints all of its texts.
            let text_bytes: usize = codes.iter().map(|&code| self.text(code).len()).sum();
            self.charge(SURVEY_GROUP_BYTES + REPR_BYTES_PER_BYTE * text_bytes, question)?;
        }
        Ok(self.groups.entry(codes).or_default())
    }

    fn text(&self, code: u32) -> &str {
        &self.texts.texts[code as usize]
    }

    fn charge(&mut self, bytes: usize, question: &SurveyQuestion) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > SURVEY_BYTES_MAX {
            let question = question.question.clone();
            return Err(Error::TooManyGroups { question, bytes_max: SURVEY_BYTES_MAX });
        }
        Ok(())
    }

    /// Adds the rows of another one.
    fn merge(&mut self, other: &Self, question: &SurveyQuestion) -> Result<(), Error> {
        self.global.merge(&other.global);
        self.of_state.merge(&other.of_state);
        let codes: Vec<u32> =
            other.texts.texts.iter().map(|text| self.code(text, question)).collect::<Result<_, _>>()?;
        for (of_other, mean) in &other.groups {
            self.group(of_other.map(|code| codes[code as usize]), question)?.merge(mean);
        }
        Ok(())
    }

    fn into_answer(self, question: &SurveyQuestion) -> Result<Answer, Error> {
        let SurveyQuestion { ask, question: text, state, .. } = question;
        let Some(global) = self.global.mean() else {
            return Err(Error::NoSuchQuestion { question: text.clone() });
        };
        let named = |name: &str, mean| vec![(name.to_owned(), mean)];
        let mut around = None;
        let means = match (ask, state) {
            (Ask::StatesMean, _) => self.ranked(Best::Min),
            (Ask::Best5 | Ask::Worst5, _) => {
                let smallest_first = (question.best() == Best::Min) == (*ask == Ask::Best5);
                let mut states = self.ranked(if smallest_first { Best::Min } else { Best::Max });
                states.truncate(RANKED_MAX);
                states
            }
            (Ask::DiffFromMean, _) => {
                let mut states = self.means(1);
                for (state, mean) in &mut states {
                    *mean = difference(global, *mean, state)?;
                }
                states
            }
            (Ask::MeanByCategory, _) => self.means(3),
            (Ask::GlobalMean, _) | (_, None) => named("global_mean", global),
            (_, Some(state)) => {
                let no_state = || Error::NoSuchState { question: text.clone(), state: state.clone() };
                let mean = self.of_state.mean().ok_or_else(no_state)?;
                match ask {
                    Ask::StateDiffFromMean => named(state, difference(global, mean, state)?),
                    Ask::StateMeanByCategory => {
                        around = Some(state.clone());
                        self.means(2)
                    }
                    _ => named(state, mean),
                }
            }
        };
        Ok(Answer { means, state: around, _memory: self.memory })
    }

    /// The groups' means with their keys, in the order of those: the state's name, or a tuple of the last `width` texts.
    fn means(&self, width: usize) -> Vec<(String, f64)> {
        let key = |codes: &Codes| match width {
            1 => self.text(codes[0]).to_owned(),
            width => tuple_repr(&codes.map(|code| self.text(code))[codes.len() - width..]),
        };
        let groups = self.groups.iter().filter_map(|(codes, mean)| Some((key(codes), mean.mean()?)));
        let mut means: Vec<_> = groups.collect();
        means.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        means
    }

    /// The states' means, the smallest or the largest first.
    fn ranked(&self, first: Best) -> Vec<(String, f64)> {
        let mut means = self.means(1);
        // Stable: states of one mean stay in the order of their names.
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
        false => Err(Error::DifferenceOverflow { state: state.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Durability,
        limits::{LARGE_CONVERSION_BYTES, Limits},
    };

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
            for said in [Best::Min, Best::Max] {
                assert_eq!(question(Ask::Worst5, text, Some(said)).best(), said, "{text}");
            }
        }
    }

    #[test]
    fn only_questions_that_can_be_answered_are_made() {
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
                    // What a question about all states has no use for is ignored, however long.
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
        let _running = engine.0.large.claim(LARGE_CONVERSION_BYTES / 2).await.expect("room");
        let mut waiting = Box::pin(engine.0.large.claim(LARGE_CONVERSION_BYTES));
        assert!(futures_util::poll!(&mut waiting).is_pending(), "it wants all that there is");
        let question = question(Ask::GlobalMean, "q", None);
        let begun = std::cell::Cell::new(false);
        // It tells its progress as soon as it has its memory.
        let mut asked = Box::pin(answer(&engine, &question, Lane::Question, |_, _| begun.set(true)));
        let _pending = futures_util::poll!(&mut asked);
        assert!(begun.get(), "the question waits for memory");
        drop(asked);
        engine.close();
    }
}
