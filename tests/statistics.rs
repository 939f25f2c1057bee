//! Statistics over a survey, through the engine: named cases, hostile values, and random surveys from a seed, split into parts
//! in any way and compared with a simple computation; and rows of a real survey of the CDC.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{collections::BTreeMap, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use tally::{
    engine::survey::{
        names::NameList,
        question::{Ask, Best, SurveyQuestion},
    },
    error::Kind,
    model::{part::PartId, segment::SegmentReceipt},
};

use self::common::{DataFolder, TestEngine, csv_cell, seeds, survey_question};

mod common;

const ASKS: [Ask; 9] = [
    Ask::StatesMean,
    Ask::StateMean,
    Ask::Best5,
    Ask::Worst5,
    Ask::GlobalMean,
    Ask::DiffFromMean,
    Ask::StateDiffFromMean,
    Ask::MeanByCategory,
    Ask::StateMeanByCategory,
];
const HEADER: &str = "Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1\n";

/// A table with some parts. The engine is dropped before its folder.
struct Table {
    engine: TestEngine,
    folder: DataFolder,
}

impl Table {
    async fn new() -> Self {
        let folder = DataFolder::new();
        Self { engine: folder.open().await, folder }
    }

    async fn of(parts: &[String]) -> Self {
        let table = Self::new().await;
        for part in parts {
            table.engine.upload_valid(part).await;
        }
        table
    }

    /// Puts all parts into a segment.
    async fn pack(&self) {
        self.engine.pack().await.expect("packed");
    }

    /// The answer as JSON, or the error's text.
    async fn ask(&self, ask: Ask, question: &str, state: Option<&str>, best: Option<Best>) -> Result<String, String> {
        let state = state.map(str::to_owned);
        let question = SurveyQuestion::new(ask, question.to_owned(), state, best).expect("a question");
        match self.engine.survey(&question).await {
            Ok(answer) => Ok(serde_json::to_string(&answer).expect("serialises")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A row of the survey, as text.
#[derive(Clone, Debug)]
struct Row {
    question: String,
    state: String,
    value: String,
    category: String,
    stratification: String,
}

/// The keys and means of an answer in their order, and the state that encloses them, if there is one.
#[derive(Debug, PartialEq)]
struct Means(Option<String>, Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Means {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Mean(f64),
            Within(Means),
        }
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Means;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Means, A::Error> {
                let mut pairs = Means(None, Vec::new());
                while let Some((key, value)) = map.next_entry()? {
                    match value {
                        Either::Mean(mean) => pairs.1.push((key, mean)),
                        Either::Within(within) => pairs = Means(Some(key), within.1),
                    }
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The means of a statistic, computed in the simplest way; `None` if the question or the state does not occur.
fn expected_means(rows: &[Row], ask: Ask, question: &str, state: Option<&str>, best: Best) -> Option<Means> {
    fn repr(text: &str) -> String {
        if text.contains('\'') { format!("\"{text}\"") } else { format!("'{text}'") }
    }
    let mut groups: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut all, mut of_state) = (Vec::new(), Vec::new());
    for row in rows.iter().filter(|row| row.question == question && !row.value.trim().is_empty()) {
        let value: f64 = row.value.trim().parse().expect("a number");
        all.push(value);
        let (s, c, t) = (row.state.as_str(), row.category.as_str(), row.stratification.as_str());
        let in_state = state.is_none_or(|state| state == s) && !s.is_empty();
        if in_state {
            of_state.push(value);
        }
        let key = match ask {
            Ask::MeanByCategory => format!("({}, {}, {})", repr(s), repr(c), repr(t)),
            Ask::StateMeanByCategory => format!("({}, {})", repr(c), repr(t)),
            _ => s.to_owned(),
        };
        let by_category = matches!(ask, Ask::MeanByCategory | Ask::StateMeanByCategory);
        if in_state && !(by_category && (c.is_empty() || t.is_empty())) {
            groups.entry(key).or_default().push(value);
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    if all.is_empty() || (state.is_some() && of_state.is_empty()) {
        return None;
    }
    let global = mean(&all);
    let mut means: Vec<(String, f64)> = groups.iter().map(|(key, values)| (key.clone(), mean(values))).collect();
    let mut rank = |smallest: bool| {
        means.sort_by(|one, other| if smallest { one.1.total_cmp(&other.1) } else { other.1.total_cmp(&one.1) });
    };
    match ask {
        Ask::StatesMean => rank(true),
        Ask::Best5 => rank(best == Best::Min),
        Ask::Worst5 => rank(best == Best::Max),
        Ask::GlobalMean => means = vec![("global_mean".to_owned(), global)],
        Ask::DiffFromMean | Ask::StateDiffFromMean => {
            rank(true);
            means.iter_mut().for_each(|pair| pair.1 = global - pair.1);
        }
        Ask::StateMean | Ask::MeanByCategory | Ask::StateMeanByCategory => {}
    }
    if matches!(ask, Ask::Best5 | Ask::Worst5) {
        means.truncate(5);
    }
    let around = if ask == Ask::StateMeanByCategory { state.map(str::to_owned) } else { None };
    Some(Means(around, means))
}

/// Compares all nine statistics with the simple computation: the same keys in the same order, and means within `tolerance`.
/// Returns how many were answered.
async fn check_all(table: &Table, rows: &[Row], question: &str, state: &str, tolerance: f64, note: &str) -> usize {
    let mut answers = 0;
    for ask in ASKS {
        let state = ask.is_of_state().then_some(state);
        for best in [None, Some(Best::Min), Some(Best::Max)] {
            let asked = SurveyQuestion::new(ask, question.to_owned(), state.map(str::to_owned), best);
            let best_mean = asked.expect("a question").best();
            let answer = table.ask(ask, question, state, best).await;
            let Some(expected) = expected_means(rows, ask, question, state, best_mean) else {
                let error = answer.expect_err("the question or the state does not occur");
                assert!(error.starts_with("no row with a value for question "), "{note}, {ask:?}: {error}");
                continue;
            };
            let json = answer.unwrap_or_else(|error| panic!("{note}, {ask:?} {question:?} {state:?}: {error}"));
            let found: Means = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
            let near = |((key, mean), (wanted, value)): (&(String, f64), &(String, f64))| {
                key == wanted && (mean - value).abs() <= tolerance
            };
            let same = found.0 == expected.0 && found.1.len() == expected.1.len();
            // An empty map does not show whether a state encloses it.
            let same = same || (expected.1.is_empty() && found.1.is_empty());
            assert!(
                same && found.1.iter().zip(&expected.1).all(near),
                "{note}, {ask:?} {question:?} {state:?}: {found:?}, not {expected:?}"
            );
            answers += 1;
        }
    }
    answers
}

/// The rows as a CSV file, with the columns in any order and others between them.
fn csv_file(rows: &[Row], random: &mut fastrand::Rng) -> String {
    type Cell = fn(&Row) -> &str;
    let mut columns: Vec<(&str, Cell)> = vec![
        ("Question", |row| &row.question),
        ("LocationDesc", |row| &row.state),
        ("Data_Value", |row| &row.value),
        ("StratificationCategory1", |row| &row.category),
        ("Stratification1", |row| &row.stratification),
        ("YearStart", |_| "2011"),
        ("", |row| &row.state),
    ];
    random.shuffle(&mut columns);
    let mut csv = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
    for row in rows {
        csv.push('\n');
        csv.push_str(&columns.iter().map(|(_, cell)| csv_cell(cell(row))).collect::<Vec<_>>().join(","));
    }
    csv
}

/// Some rows. If the values are multiples of 0.25, the simple computation of their means is exact.
fn random_rows(random: &mut fastrand::Rng, quarters: bool) -> Vec<Row> {
    // Some texts look like integers or dates: a part that has no others has a column of that type.
    let questions = ["Percent of adults who walk, often", "7", "2024-01-31"];
    let states =
        ["", "Ohio", "Coeur d'Alene", "Nevada, USA", "5", "12", "-3", "true", "2024-01-31", "2024-01-31T10:00:00.5Z"];
    let categories = ["", "Income", "Age (years)", "Total", "7", "8"];
    let stratifications = ["", "$15,000 - $24,999", "25 - 34", "Can't say", "1", "false"];
    let pick = |random: &mut fastrand::Rng, texts: &[&str], range: usize| {
        texts[random.usize(..texts.len()) % range.min(texts.len())].to_owned()
    };
    // Some surveys have few different texts, so that their columns have a type.
    let range = random.usize(2..=10);
    (0..random.usize(..120))
        .map(|_| {
            let number = random.i32(-400..400);
            let value = match random.u8(..12) {
                0 | 1 => String::new(),
                2 => " ".to_owned(),
                3 if quarters => format!(" {} ", f64::from(number) / 4.0),
                4 => number.to_string(),
                _ if quarters => (f64::from(number) / 4.0).to_string(),
                _ => ((random.f64() - 0.3) * 10_f64.powi(random.i32(-3..4))).to_string(),
            };
            // A double may be printed with more digits than a number in a table may have.
            let value = if value.len() > 15 { value[..15].to_owned() } else { value };
            Row {
                question: pick(random, &questions, 3),
                state: pick(random, &states, range),
                value,
                category: pick(random, &categories, range),
                stratification: pick(random, &stratifications, range),
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_surveys_agree_with_a_simple_computation_for_any_split() {
    const SURVEYS: u64 = 100;
    let (mut answers, mut same) = (0, 0);
    let seeds = seeds("TALLY_SURVEY_SEED", SURVEYS);
    let is_full_run = seeds == (0..SURVEYS);
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let quarters = random.bool();
        let mut rows = random_rows(&mut random, quarters);
        let states = ["Ohio", "Coeur d'Alene", "5", "true", "absent"];
        let questions = ["Percent of adults who walk, often", "7", "absent"];
        let (question, state) = (questions[random.usize(..3)], states[random.usize(..5)]);
        let mut first: Option<Vec<Result<String, String>>> = None;
        for split in 0..3 {
            let note = format!("seed {seed}, split {split}");
            random.shuffle(&mut rows);
            let mut parts = Vec::new();
            let mut rest = &rows[..];
            while !rest.is_empty() {
                let (some, others) = rest.split_at(random.usize(1..=rest.len()).min(rest.len()));
                parts.push(csv_file(some, &mut random));
                rest = others;
            }
            // A part that lacks a column adds nothing, and neither does one without rows.
            parts.push("Question,LocationDesc,Data_Value,Stratification1\n7,Ohio,1000,x\n".to_owned());
            parts.push(HEADER.to_owned());
            random.shuffle(&mut parts);
            let table = Table::of(&parts).await;
            let tolerance = if quarters { 1e-12 } else { 1e-9 };
            answers += check_all(&table, &rows, question, state, tolerance, &note).await;
            let mut answered = Vec::new();
            for ask in ASKS {
                answered.push(table.ask(ask, question, ask.is_of_state().then_some(state), None).await);
            }
            match &first {
                Some(first) => assert_eq!(&answered, first, "{note}: the answer depends on parts and order"),
                None => first = Some(answered.clone()),
            }
            same += ASKS.len();
            if split == 0 {
                check_packed(&table, &parts, question, state, &answered, &mut random, &note).await;
            }
        }
    }
    println!("{answers} answers agree; {same} are the same to the bit for any split of the rows");
    assert!(!is_full_run || answers > 2500, "the surveys are too simple: {answers} answers");
}

/// Packs the table, whose answers must stay the same. Then it removes some parts, and compares it with a table that never had them.
async fn check_packed(
    table: &Table,
    parts: &[String],
    question: &str,
    state: &str,
    answered: &[Result<String, String>],
    random: &mut fastrand::Rng,
    note: &str,
) {
    table.pack().await;
    let lists = [
        NameList::Questions,
        NameList::States { question: None },
        NameList::States { question: Some(question.to_owned()) },
    ];
    for (ask, answered) in ASKS.iter().zip(answered) {
        let packed = table.ask(*ask, question, ask.is_of_state().then_some(state), None).await;
        assert_eq!(&packed, answered, "{note}, {ask:?}: the answer depends on packing");
    }
    let mut left = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        if random.bool() {
            left.push(part.clone());
        } else {
            let id = PartId::new(index as u64 + 1).expect("above 0");
            table.engine.remove_part(id, false).await.expect("removed");
        }
    }
    let without = Table::of(&left).await;
    for ask in ASKS {
        let state = ask.is_of_state().then_some(state);
        let expected = without.ask(ask, question, state, None).await;
        assert_eq!(table.ask(ask, question, state, None).await, expected, "{note}, {ask:?}: removed parts count");
    }
    for list in lists {
        let expected = without.engine.survey_names(list.clone()).await.expect("names");
        assert_eq!(table.engine.survey_names(list.clone()).await.expect("names"), expected, "{note}, {list:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_rows_of_the_cdc() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/brfss_sample.csv");
    let Ok(csv) = std::fs::read_to_string(&path) else {
        println!("skipped: {} is missing", path.display());
        return;
    };
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().expect("a header").clone();
    let column = |name: &str| header.iter().position(|column| column == name).expect(name);
    let [question, state, value, category, stratification] =
        ["Question", "LocationDesc", "Data_Value", "StratificationCategory1", "Stratification1"].map(column);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.expect("valid");
        let cell = |index: usize| record[index].to_owned();
        rows.push(Row {
            question: cell(question),
            state: cell(state),
            value: cell(value),
            category: cell(category),
            stratification: cell(stratification),
        });
    }
    let table = Table::of(&[csv]).await;
    let mut asked: Vec<_> = rows.iter().map(|row| (row.question.clone(), row.state.clone())).collect();
    asked.sort();
    asked.dedup_by(|one, other| one.0 == other.0);
    let mut answers = 0;
    for (question, state) in &asked {
        answers += check_all(&table, &rows, question, state, 1e-9, "rows of the CDC").await;
    }
    println!("{} questions, {answers} answers agree", asked.len());
    assert!(asked.len() >= 5 && answers > 100, "{} questions, {answers} answers", asked.len());
}

#[tokio::test]
async fn each_statistic_has_its_shape() {
    let csv = format!(
        "{HEADER}\
         q,Ohio,30,Income,\"$15,000 - $24,999\"\n\
         q,Ohio,31,Income,\"$15,000 - $24,999\"\n\
         q,Ohio,50,,\n\
         q,Ohio,,Income,x\n\
         q,Iowa,40,Gender,Can't say\n\
         q,Iowa,40,Gender,\n\
         q,Guam,40,Total,Total\n\
         q,,100,Total,Total\n\
         other,Utah,1,Total,Total\n"
    );
    let table = Table::of(&[csv]).await;
    let check = async |ask, state, best, expected: &str| {
        assert_eq!(table.ask(ask, "q", state, best).await, Ok(expected.to_owned()), "{ask:?}");
    };
    let ohio = Some("Ohio");
    check(Ask::StatesMean, None, None, r#"{"Ohio":37.0,"Guam":40.0,"Iowa":40.0}"#).await;
    check(Ask::StateMean, ohio, None, r#"{"Ohio":37.0}"#).await;
    check(Ask::Best5, None, None, r#"{"Guam":40.0,"Iowa":40.0,"Ohio":37.0}"#).await;
    check(Ask::Worst5, None, None, r#"{"Ohio":37.0,"Guam":40.0,"Iowa":40.0}"#).await;
    check(Ask::Best5, None, Some(Best::Min), r#"{"Ohio":37.0,"Guam":40.0,"Iowa":40.0}"#).await;
    check(Ask::Worst5, None, Some(Best::Min), r#"{"Guam":40.0,"Iowa":40.0,"Ohio":37.0}"#).await;
    // A row without a state counts only here: 331 / 7.
    check(Ask::GlobalMean, None, None, r#"{"global_mean":47.285714285714285}"#).await;
    let differences = r#"{"Ohio":10.285714285714285,"Guam":7.285714285714285,"Iowa":7.285714285714285}"#;
    check(Ask::DiffFromMean, None, None, differences).await;
    check(Ask::StateDiffFromMean, ohio, None, r#"{"Ohio":10.285714285714285}"#).await;
    let by_category = r#"{"('Guam', 'Total', 'Total')":40.0,"('Iowa', 'Gender', \"Can't say\")":40.0,"('Ohio', 'Income', '$15,000 - $24,999')":30.5}"#;
    check(Ask::MeanByCategory, None, None, by_category).await;
    let of_state = r#"{"Ohio":{"('Income', '$15,000 - $24,999')":30.5}}"#;
    check(Ask::StateMeanByCategory, ohio, None, of_state).await;
}

#[tokio::test]
async fn a_question_or_state_that_does_not_occur_is_named() {
    let table = Table::new().await;
    let none = |question: &str| Err(format!("no row with a value for question {question:?}"));
    for ask in ASKS {
        let state = ask.is_of_state().then_some("Ohio");
        assert_eq!(table.ask(ask, "q", state, None).await, none("q"), "an empty table, {ask:?}");
    }
    table
        .engine
        .upload_valid(format!("{HEADER}q,Ohio,1,a,b\nq,Utah,,a,b\nno value,Ohio,,a,b\n,Ohio,5,a,b\nlow,Iowa,1,,\n"))
        .await;
    for ask in ASKS {
        let state = ask.is_of_state().then_some("Ohio");
        for question in ["no value", "absent", ""] {
            assert_eq!(table.ask(ask, question, state, None).await, none(question), "{ask:?}");
        }
        table.ask(ask, "q", state, None).await.expect("it occurs");
        if ask.is_of_state() {
            for state in ["Utah", "Texas", ""] {
                let error = Err(format!("no row with a value for question \"q\" in state {state:?}"));
                assert_eq!(table.ask(ask, "q", Some(state), None).await, error, "{ask:?}");
            }
        }
    }
    // The question occurs, but only in rows without a category.
    assert_eq!(table.ask(Ask::StateMeanByCategory, "low", Some("Iowa"), None).await, Ok(r#"{"Iowa":{}}"#.to_owned()));
    assert_eq!(table.ask(Ask::MeanByCategory, "low", None, None).await, Ok("{}".to_owned()));
}

/// A table with one part for each list of values, all of state a.
async fn with_values(parts: &[&[&str]]) -> Table {
    let file =
        |values: &&[&str]| values.iter().fold(HEADER.to_owned(), |csv, value| csv + &format!("q,a,{value},c,s\n"));
    Table::of(&parts.iter().map(file).collect::<Vec<_>>()).await
}

async fn check_mean(parts: &[&[&str]], expected: &str) {
    let expected = Ok(format!(r#"{{"global_mean":{expected}}}"#));
    let table = with_values(parts).await;
    assert_eq!(table.ask(Ask::GlobalMean, "q", None, None).await, expected, "{parts:?}");
    table.pack().await;
    assert_eq!(table.ask(Ask::GlobalMean, "q", None, None).await, expected, "packed, {parts:?}");
}

#[tokio::test]
async fn hostile_values() {
    check_mean(&[&["1e308", "1e308", "1e308"]], "1e+308").await;
    check_mean(&[&["1.7976931348623157e308"], &["1.7976931348623157e308"], &["-1"]], "1.1984620899082105e+308").await;
    check_mean(&[&["1e308"], &["1"], &["-1e308"], &["1"]], "0.5").await;
    check_mean(&[&["-0"]], "0.0").await; // text
    check_mean(&[&["-0.0", "-0.0"]], "0.0").await; // doubles
    check_mean(&[&["2.2250738585072014e-308", "0"]], "1.1125369292536007e-308").await; // a subnormal mean
    check_mean(&[&["9223372036854775807"], &["-9223372036854775808"]], "0.0").await;
    check_mean(&[&["0.1"; 10]], "0.1").await;
    check_mean(&[&["+5", "007", "1.0", "\" -3. \""]], "2.5").await;
    check_mean(&[&["1", "2"], &["\" 3\t\"", "", "\" \""]], "2.0").await;

    let far = format!("{HEADER}q,a,-1.7e308,c,s\nq,b,1.7e308,c,s\nq,b,1.7e308,c,s\n");
    let table = Table::of(&[far]).await;
    let overflow = r#"the global mean minus that of state "a" does not fit in a double"#;
    assert_eq!(table.ask(Ask::DiffFromMean, "q", None, None).await, Err(overflow.to_owned()));
    assert_eq!(table.ask(Ask::StateDiffFromMean, "q", Some("a"), None).await, Err(overflow.to_owned()));
}

#[tokio::test]
async fn the_first_cell_that_is_not_a_number_is_reported() {
    let cases: &[(&[&[&str]], &str)] = &[
        (&[&["1", "~", "x"]], r#"part 1, row 2, column "Data_Value": "~""#),
        (&[&["1"], &["2", "", "n/a"], &["~"]], r#"part 2, row 3, column "Data_Value": "n/a""#),
        (&[&["4.9e-324"]], r#"part 1, row 1, column "Data_Value": "4.9e-324""#),
        (&[&["1e309"]], r#"part 1, row 1, column "Data_Value": "1e309""#),
        (&[&["NaN"]], r#"part 1, row 1, column "Data_Value": "NaN""#),
        (&[&["1", "9223372036854775808"]], r#"part 1, row 2, column "Data_Value": "9223372036854775808""#),
        (&[&["1"], &["true", "false"]], r#"part 2, row 1, column "Data_Value": "true""#),
        (&[&["1"], &["", "2024-01-31"]], r#"part 2, row 2, column "Data_Value": "2024-01-31""#),
        (&[&["2024-01-31T00:00:00Z"]], r#"part 1, row 1, column "Data_Value": "2024-01-31T00:00:00Z""#),
    ];
    for (parts, expected) in cases {
        let table = with_values(parts).await;
        for is_packed in [false, true] {
            for ask in ASKS {
                let state = ask.is_of_state().then_some("a");
                let error = table.ask(ask, "q", state, None).await;
                let expected = Err(format!("{expected} is not a number that a double holds"));
                assert_eq!(error, expected, "{ask:?}, packed: {is_packed}");
            }
            table.pack().await;
        }
    }
    // Two errors, in parts that different tasks read. The second task ends first.
    let mut parts: Vec<&[&str]> = vec![&["1"]; 66];
    (parts[63], parts[64]) = (&["~"], &["x"]);
    let error = r#"part 64, row 1, column "Data_Value": "~" is not a number that a double holds"#;
    let table = with_values(&parts).await;
    assert_eq!(table.ask(Ask::GlobalMean, "q", None, None).await, Err(error.to_owned()));
    // Integers are in another Parquet file of the segment than text, so what is read first is part 65.
    table.pack().await;
    table.engine.upload_valid(format!("{HEADER}q,a,y,c,s\n")).await;
    assert_eq!(table.ask(Ask::GlobalMean, "q", None, None).await, Err(error.to_owned()));
    // Values of other questions do not matter.
    let table = Table::of(&[format!("{HEADER}q,a,1,c,s\nother,a,~,c,s\n,a,~,c,s\n")]).await;
    assert_eq!(table.ask(Ask::StatesMean, "q", None, None).await, Ok(r#"{"a":1.0}"#.to_owned()));
}

#[tokio::test]
async fn groups_are_limited() {
    let states = |range: std::ops::Range<u32>| {
        range.fold(HEADER.to_owned(), |csv, index| csv + &format!("q,state {index},{index},c{index},s\n"))
    };
    let too_many = Err(r#"the states and categories of question "q" take more than 2097152 bytes"#.to_owned());

    let table = Table::of(&[states(0..1250), states(1250..2500), states(0..2500)]).await;
    let answer = table.ask(Ask::StatesMean, "q", None, None).await.expect("2,500 states are within the limit");
    assert_eq!(serde_json::from_str::<Means>(&answer).expect("an answer").1.len(), 2500);
    table.engine.upload_valid(states(2500..5000)).await;
    // First all parts together have too many groups, then one part by itself.
    for _ in 0..2 {
        for ask in [Ask::StatesMean, Ask::Best5, Ask::Worst5, Ask::DiffFromMean, Ask::MeanByCategory] {
            assert_eq!(table.ask(ask, "q", None, None).await, too_many, "{ask:?}");
        }
        // Statistics without groups are not affected.
        let state = table.ask(Ask::StateMean, "q", Some("state 7"), None).await;
        assert_eq!(state, Ok(r#"{"state 7":7.0}"#.to_owned()));
        table.ask(Ask::GlobalMean, "q", None, None).await.expect("no groups");
        let of_state = table.ask(Ask::StateMeanByCategory, "q", Some("state 7"), None).await;
        assert_eq!(of_state, Ok(r#"{"state 7":{"('c7', 's')":7.0}}"#.to_owned()));
        table.pack().await;
        assert_eq!(table.ask(Ask::StatesMean, "q", None, None).await, too_many);
        table.engine.upload_valid(states(0..10_000)).await;
    }

    let long = |index: u32| format!("q,{index}{},1,c,s\n", "x".repeat(100_000));
    let table = Table::of(&[(0..3).fold(HEADER.to_owned(), |csv, index| csv + &long(index))]).await;
    table.ask(Ask::StatesMean, "q", None, None).await.expect("three long names are within the limit");
    table.engine.upload_valid((3..6).fold(HEADER.to_owned(), |csv, index| csv + &long(index))).await;
    assert_eq!(table.ask(Ask::StatesMean, "q", None, None).await, too_many);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_many_tasks_and_tasks_of_many_parts() {
    let mut random = fastrand::Rng::with_seed(5);
    let row = |index: u32, random: &mut fastrand::Rng| Row {
        // Long sequences of one question, so that blocks of rows are skipped, and between them rows that alternate.
        question: format!("q{}", if index % 40_000 < 20_000 { index / 5000 % 3 } else { index % 3 }),
        state: format!("s{}", random.u32(..20)),
        value: if random.u8(..9) == 0 { String::new() } else { (f64::from(random.u32(..400)) / 4.0).to_string() },
        category: ["", "c1", "c2"][random.usize(..3)].to_owned(),
        stratification: format!("t{}", random.u32(..5)),
    };
    let rows: Vec<Row> = (0..120_000).map(|index| row(index, &mut random)).collect();
    let mut parts = vec![csv_file(&rows[..100_000], &mut random)];
    parts.extend(rows[100_000..].chunks(150).map(|rows| csv_file(rows, &mut random)));
    let table = Table::of(&parts).await;
    assert!(table.engine.parts_count() > 100);
    for question in ["q0", "q1", "q2"] {
        assert_eq!(check_all(&table, &rows, question, "s7", 1e-12, "large").await, 27);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_cells() {
    // 24 MB that a dictionary does not make smaller: several row groups, which are read in batches limited by their bytes.
    let mut random = fastrand::Rng::with_seed(6);
    let rows: Vec<Row> = (0..12_000)
        .map(|index| {
            let long: String = std::iter::repeat_with(|| random.alphanumeric()).take(2000).collect();
            let question = if index % 100 == 7 { "q".to_owned() } else { long };
            let text = |text: &str| text.to_owned();
            Row {
                question,
                state: text("s7"),
                value: index.to_string(),
                category: text("c"),
                stratification: text("t"),
            }
        })
        .collect();
    let table = Table::of(&[csv_file(&rows, &mut random)]).await;
    assert_eq!(check_all(&table, &rows, "q", "s7", 1e-12, "long cells").await, 27);
    // The same as small parts, so that a segment has several row groups. Every fifth part is removed.
    let parts: Vec<_> = rows.chunks(30).map(csv_of).collect();
    let table = Table::of(&parts).await;
    table.pack().await;
    let segment = table.folder.names_in("parts").into_iter().find(|name| name.ends_with(".segment"));
    let receipt = std::fs::read_to_string(table.folder.file(&format!("parts/{}", segment.expect("packed"))));
    let receipt: SegmentReceipt = serde_json::from_str(&receipt.expect("readable")).expect("a receipt");
    assert!(receipt.files[0].row_groups > 1, "{} row groups", receipt.files[0].row_groups);
    assert_eq!(check_all(&table, &rows, "q", "s7", 1e-12, "packed").await, 27);
    let mut left = Vec::new();
    for (index, rows) in rows.chunks(30).enumerate() {
        if index % 5 == 0 {
            let id = PartId::new(index as u64 + 1).expect("above 0");
            table.engine.remove_part(id, false).await.expect("removed");
        } else {
            left.extend_from_slice(rows);
        }
    }
    assert_eq!(check_all(&table, &left, "q", "s7", 1e-12, "removed").await, 27);
}

/// The rows as a CSV file, with the columns always in the same order.
fn csv_of(rows: &[Row]) -> String {
    let row = |csv: String, row: &Row| {
        let cells = [&row.question, &row.state, &row.value, &row.category, &row.stratification];
        csv + &cells.map(|cell| csv_cell(cell)).join(",") + "\n"
    };
    rows.iter().fold(HEADER.to_owned(), row)
}

#[tokio::test]
async fn a_damaged_file_is_never_counted() {
    let table = with_values(&[&["1", "2"]]).await;
    let path = table.folder.file("parts/1.parquet");
    let good = std::fs::read(&path).expect("readable");
    let question = survey_question(Ask::GlobalMean, "q", None);
    let two = with_values(&[&["1", "2", "3"]]).await;
    let longer = std::fs::read(two.folder.file("parts/1.parquet")).expect("readable");
    let mut footer = good.clone();
    footer[good.len() - 6] ^= 1; // its length
    for bad in [&good[..good.len() - 1], &longer, &footer] {
        std::fs::write(&path, bad).expect("written");
        let error = table.engine.survey(&question).await.expect_err("damaged");
        assert_eq!(error.kind(), Kind::DataLoss, "{error}");
    }
    std::fs::write(&path, &good).expect("written");
    table.engine.survey(&question).await.expect("whole again");
}

#[tokio::test]
async fn a_question_that_is_dropped_gives_its_memory_back() {
    let table = with_values(&[&["1", "2"] as &[&str]; 20]).await;
    let question = survey_question(Ask::StatesMean, "q", None);
    for _ in 0..100 {
        // Polled once, so that it has reserved memory and sent tasks to the workers, and then dropped.
        let mut dropped = Box::pin(table.engine.survey(&question));
        let _pending = futures_util::poll!(&mut dropped);
    }
    // There is not enough memory for all of them at once: some wait until the answer of another is dropped.
    let ask = async || table.engine.survey(&question).await.map(drop);
    for answer in futures_util::future::join_all((0..20).map(|_| ask())).await {
        answer.expect("answered");
    }
}

/// A column of such texts gets a type whose values have other texts in Parquet.
#[tokio::test]
async fn texts_that_look_like_other_types_are_compared_as_they_are() {
    let long = "l".repeat(200_000);
    for text in ["1.50", "1e2", "-0.0", "0.10", "True", "2021-12-19 13:12:30", "2020-01-01T00:00:00.500", "7"] {
        let rows = |text: &str, value: u32| {
            let short = format!("{text},{text},{value},{text},{text},\n");
            format!("{short}{text},{text},{},{text},{text},{long}\n{short}", value + 4)
        };
        let header = HEADER.replace('\n', ",more\n");
        let (typed, mixed) = (rows(text, 1), rows("other", 9) + &rows(text, 3));
        let parts = Table::of(&[header.clone() + &typed, header.clone() + &mixed]).await;
        // Without the long cell, because large parts are not packed.
        let short = |rows: &str| header.clone() + &rows.replace(&long, "");
        let packed = Table::of(&[short(&typed), short(&mixed)]).await;
        packed.pack().await;
        let whole = Table::of(&[header + &typed + &mixed]).await;
        for ask in ASKS {
            for state in [text, "1.5", "other"] {
                let state = ask.is_of_state().then_some(state);
                let expected = whole.ask(ask, text, state, Some(Best::Max)).await;
                assert_eq!(parts.ask(ask, text, state, Some(Best::Max)).await, expected, "{text}, {ask:?}, {state:?}");
                assert_eq!(packed.ask(ask, text, state, Some(Best::Max)).await, expected, "{text}, {ask:?}, {state:?}");
                assert!(expected.is_ok() || state == Some("1.5") || state == Some("other"), "{expected:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_bad_value_in_a_part_whose_csv_is_read_is_the_same_error() {
    let table = Table::of(&[format!("{HEADER}1.50,Ohio,x,c,s\n1.50,Ohio,2,c,s\n")]).await;
    let error = table.ask(Ask::GlobalMean, "1.50", None, None).await.expect_err("x is not a number");
    assert!(error.starts_with("part 1, row 1, column \"Data_Value\": \"x\""), "{error}");
}
