//! Packing: two tables get the same uploads, removals and restarts, and only one of them is packed. Nothing that a client can see
//! may differ.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::fmt::Debug;

use bytes::Bytes;
use futures_util::{future::join, stream};
use tally::{
    engine::{
        Durability, UploadFrom, Uploaded,
        group_by::spec::GroupBy,
        parts::listing::Order,
        state::transfers::Origin,
        survey::{
            names::NameList,
            question::{Ask, SurveyQuestion},
        },
    },
    error::Error,
    limits::Limits,
    model::{
        format::Format,
        idempotency_key::IdempotencyKey,
        part::{PartId, Receipt},
    },
};
use tokio::task::yield_now;

use self::common::{DataFolder, TestEngine, seeds, survey_question};

mod common;

const SURVEY: &str = "Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1";

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

/// A table that is packed, or the one that it is compared with.
struct Table {
    engine: Option<TestEngine>,
    folder: DataFolder,
}

impl Table {
    async fn new() -> Self {
        let folder = DataFolder::new();
        Self { engine: Some(folder.open_with(Durability::None, limits()).await), folder }
    }

    fn engine(&self) -> &TestEngine {
        self.engine.as_ref().expect("open")
    }

    async fn restart(&mut self) {
        self.engine = None;
        self.engine = Some(self.folder.open_with(Durability::None, limits()).await);
    }

    /// Everything that a client can ask, as text.
    async fn answers(&self, random: &mut fastrand::Rng) -> Vec<String> {
        let engine = self.engine();
        let mut all = Vec::new();
        for column in ["x", "y", "d", "f", "nothing"] {
            let [csv, parquet] = [
                engine.column_sum(column, Format::Csv).await.map(|sum| (sum.total, sum.read.parts, sum.read.rows)),
                engine.column_sum(column, Format::Parquet).await.map(|sum| (sum.total, sum.read.parts, sum.read.rows)),
            ];
            all.push(format!("sum of {column}: csv {}, parquet {}", text(csv), text(parquet)));
        }
        for (by, sum) in [("y", "x"), ("x", "y"), ("d", "f")] {
            all.push(format!("groups of {by}: {}", self.groups(&[by], &[sum]).await));
        }
        all.extend(self.statistics("q1").await);
        let overview = engine.overview();
        all.push(format!(
            "overview: {:?}",
            (overview.parts, overview.rows, overview.columns, overview.csv_bytes, overview.parquet_bytes)
        ));
        let growth = engine
            .growth(100)
            .await
            .map(|points| points.last().map(|point| (point.part, point.rows, point.csv_bytes, point.parquet_bytes)));
        all.push(format!("growth: {}", text(growth)));
        all.push(format!("columns: {}", text(engine.columns_page(None, 100).await)));
        let mut columns = engine.table_columns();
        all.push(format!("columns in parts: {}", text(columns.next_page(1 << 20).await)));
        all.push(format!(
            "removed: {:?}",
            engine.removed_parts(None, 100).iter().map(|it| it.part).collect::<Vec<_>>()
        ));
        let receipts = self.receipts().await;
        for order in [Order::OldestFirst, Order::NewestFirst] {
            all.push(format!("list: {:?}", self.list(order, 1 + random.usize(..7)).await));
        }
        for receipt in &receipts {
            let id = receipt.part;
            all.push(comparable(receipt));
            assert_eq!(&engine.receipt(id).await.expect("a receipt"), receipt);
            all.push(format!("preview: {}", text(engine.preview(id, 3).await)));
            all.push(format!("csv: {:?}", self.download(id, Format::Csv).await));
            if random.u8(..8) == 0 {
                let parquet = self.download(id, Format::Parquet).await;
                assert!(parquet.starts_with("PAR1") && parquet.ends_with("PAR1"), "{parquet:?}");
            }
        }
        for id in (1..=90).filter_map(PartId::new).filter(|id| receipts.iter().all(|receipt| receipt.part != *id)) {
            let refused = text(engine.receipt(id).await.map(|_| ()));
            let (without_time, _) = refused.split_once(" until ").unwrap_or((&refused, ""));
            all.push(format!("part {id}: {without_time}"));
        }
        all
    }

    /// All statistics about a question, and the names of the survey.
    async fn statistics(&self, question: &str) -> Vec<String> {
        let (engine, mut all) = (self.engine(), Vec::new());
        for ask in ASKS {
            let asked: SurveyQuestion = survey_question(ask, question, ask.is_of_state().then_some("Ohio"));
            let answer = engine.survey(&asked).await.map(|answer| serde_json::to_string(&answer).expect("JSON"));
            all.push(format!("{ask:?} of {question}: {}", text(answer)));
        }
        for list in [NameList::Questions, NameList::States { question: Some(question.to_owned()) }] {
            all.push(format!("{list:?}: {}", text(engine.survey_names(list.clone()).await)));
        }
        all
    }

    async fn groups(&self, by: &[&str], sum: &[&str]) -> String {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let spec = GroupBy::new(names(by), names(sum)).expect("names");
        let mut groups = match self.engine().group_sum(Origin::SERVER, spec).await {
            Ok(groups) => groups,
            Err(error) => return error.to_string(),
        };
        let mut found = String::new();
        loop {
            match groups.next_block().await {
                Ok(block) if block.is_empty() => return found,
                Ok(block) => block.iter().for_each(|group| found.push_str(&format!("{group:?};"))),
                Err(error) => return found + &error.to_string(),
            }
        }
    }

    async fn receipts(&self) -> Vec<Receipt> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self.engine().receipts(after, 5).await.expect("receipts");
            let Some(last) = page.last() else { return all };
            after = Some(last.part);
            all.extend(page);
        }
    }

    async fn list(&self, order: Order, count_max: usize) -> Vec<(u64, u64, usize)> {
        let (mut all, mut beyond) = (Vec::new(), None);
        loop {
            let page = self.engine().list_parts(order, beyond, count_max, 1 << 20).await.expect("a list");
            all.extend(page.parts.iter().map(|part| {
                let part = part.as_ref().expect("an undamaged receipt");
                (part.part.get(), part.rows, page.total)
            }));
            beyond = page.next;
            if beyond.is_none() {
                return all;
            }
        }
    }

    async fn download(&self, id: PartId, format: Format) -> String {
        let mut file = self.engine().open_part_file(id, format).await.expect("a file");
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < file.bytes() {
            bytes.extend_from_slice(&file.read(bytes.len() as u64, 1000, true).await.expect("read"));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn limits() -> Limits {
    Limits { pack_bytes_per_s: u64::MAX / 2000, ..Limits::default() }
}

fn text<T: Debug>(result: Result<T, Error>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("error: {error}"),
    }
}

/// A receipt without what differs between two uploads of the same file.
fn comparable(receipt: &Receipt) -> String {
    let Receipt { part, rows, columns, column_bytes, csv, parquet, row_groups, idempotency_key, .. } = receipt;
    format!("receipt: {:?}", (part, rows, columns, column_bytes, csv, parquet, row_groups, idempotency_key))
}

fn random_file(random: &mut fastrand::Rng) -> String {
    let rows = random.usize(..12);
    let mut csv = String::new();
    let mut add = |header: &str, row: &mut dyn FnMut() -> String| {
        csv = format!("{header}\n");
        (0..rows).for_each(|_| csv.push_str(&format!("{}\n", row())));
    };
    let mut random = random.fork();
    match random.u8(..12) {
        0..5 => add("x,y", &mut || format!("{},{}", random.i32(-50..50), ["a", "b", "\"c,\nd\""][random.usize(..3)])),
        5 => add("y,x", &mut || format!("{},{}", random.u8(..3), random.i64(-9..9))),
        6 => add("x", &mut || ["1", "", "2.0", "-3"][random.usize(..4)].to_owned()),
        7 => add("d,f", &mut || format!("2026-01-0{},{}.5", 1 + random.u8(..3), random.u8(..9))),
        8 => add("d,f", &mut || format!("t{},{}", random.u8(..3), random.u8(..9))),
        9 => add("x,y", &mut || ",".to_owned()),
        10 => add(SURVEY, &mut || {
            let (question, state) = (1 + random.u8(..2), ["Ohio", "Utah", ""][random.usize(..3)]);
            format!("q{question},{state},{}.{},c,s{}", random.u8(..90), random.u8(..90), random.u8(..2))
        }),
        _ => {
            let long = "z".repeat(70_000);
            format!("x,y\n7,{long}\n").clone_into(&mut csv);
        }
    }
    in_another_form(csv, random.u8(..14))
}

/// The same rows, written in another way.
fn in_another_form(csv: String, form: u8) -> String {
    match form {
        0 => csv.replace('\n', "\r\n"),
        1 => csv.replace('\n', "\r"),
        2 | 3 => csv.trim_end_matches('\n').to_owned(),
        4 => format!("\u{feff}{csv}"),
        5 => format!("\n\r\n{csv}\n\n"),
        6 => csv.replacen('\n', "\r\n\n", 1),
        _ => csv,
    }
}

async fn upload(table: &Table, csv: &str, key: Option<&str>) -> Result<Uploaded, Error> {
    let from = UploadFrom {
        key: key.map(|key| IdempotencyKey::parse(key.as_bytes()).expect("a key")),
        ..UploadFrom::server(None)
    };
    table.engine().upload_from(from, stream::iter([Ok::<_, Error>(Bytes::from(csv.to_owned()))])).await
}

#[tokio::test]
async fn nothing_that_a_client_sees_differs() {
    let mut packed_segments = 0;
    for seed in seeds("TALLY_PACKING_SEED", 12) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut packed, mut plain) = (Table::new().await, Table::new().await);
        let mut last = 0;
        for step in 0..150 {
            let chosen = PartId::new(1 + random.u64(..=last)).expect("above 0");
            let what = format!("seed {seed}, step {step}");
            match random.u8(..20) {
                0..9 => {
                    let csv = random_file(&mut random);
                    let key = (random.u8(..3) == 0).then(|| format!("key{}", random.u8(..6)));
                    let [a, b] =
                        [upload(&packed, &csv, key.as_deref()).await, upload(&plain, &csv, key.as_deref()).await];
                    let shown = |it: &Result<Uploaded, Error>| match it {
                        Ok(uploaded) => format!("{} {}", comparable(&uploaded.receipt), uploaded.replayed),
                        Err(error) => error.to_string(),
                    };
                    assert_eq!(shown(&a), shown(&b), "{what}");
                    last = last.max(a.map_or(0, |uploaded| uploaded.receipt.part.get()));
                }
                9..13 => packed_segments += packed.engine().pack().await.expect("packed"),
                13 | 14 => {
                    let purge = random.u8(..3) == 0;
                    let [a, b] = [
                        packed.engine().remove_part(chosen, purge).await.map(|removed| removed.parts),
                        plain.engine().remove_part(chosen, purge).await.map(|removed| removed.parts),
                    ];
                    assert_eq!(text(a), text(b), "{what}");
                }
                15 | 16 => {
                    let [a, b] =
                        [packed.engine().restore_part(chosen).await, plain.engine().restore_part(chosen).await];
                    assert_eq!(text(a), text(b), "{what}");
                }
                17 => {
                    packed.restart().await;
                    plain.restart().await;
                }
                _ => {
                    let choices = random.u64(..);
                    let a = packed.answers(&mut fastrand::Rng::with_seed(choices)).await;
                    let b = plain.answers(&mut fastrand::Rng::with_seed(choices)).await;
                    for (a, b) in a.iter().zip(&b) {
                        assert_eq!(a, b, "{what}");
                    }
                    assert_eq!(a.len(), b.len(), "{what}");
                }
            }
        }
    }
    assert!(packed_segments > 10, "{packed_segments} segments");
}

/// Many blocks of indexes, parts with different columns and forms in each of them, and some that are removed.
#[tokio::test]
async fn many_packed_parts_are_summed_together() {
    let folder = DataFolder::new();
    let engine = folder.open_with(Durability::None, limits()).await;
    let mut random = fastrand::Rng::with_seed(22);
    let (mut x, mut y, mut with_x) = (0, 0, 0);
    for number in 0..1500_i64 {
        let (csv, sum_of_y) = match random.u8(..8) {
            0 => (format!("y,x\n{number},\"{number}\"\n3,4\n"), number + 3),
            1 => (format!("x,y\n{number},1\n4,\"a\n9,9\n\"\n"), 0),
            2 => (format!("x,z\n{number},{}\n4,\n", "w".repeat(20_000)), 0),
            3 => (format!("y\n{number}\n"), number),
            _ => (format!("x,y\n{number},{number}\n4,5\n"), number + 5),
        };
        let (has_x, has_text) = (csv.contains('x'), csv.contains("9,9"));
        let csv = in_another_form(csv, random.u8(..14));
        let part = engine.upload_valid(csv).await.part;
        if has_text || random.u8(..9) == 0 {
            engine.remove_part(part, has_text && random.bool()).await.expect("it is in the table");
            continue;
        }
        x += if has_x { number + 4 } else { 0 };
        with_x += u64::from(has_x);
        y += sum_of_y;
        if number % 500 == 499 {
            assert!(engine.pack().await.expect("packed") > 0);
        }
    }
    assert!(engine.pack().await.expect("packed") > 0);
    for format in [Format::Csv, Format::Parquet] {
        let sum = engine.column_sum("x", format).await.expect("integers");
        assert_eq!((sum.total, sum.read.parts), (x, with_x), "{format:?}");
        assert_eq!(engine.column_sum("y", format).await.expect("integers").total, y, "{format:?}");
    }
    // A single cell that cannot be added is found in the part and the row that have it.
    let bad = engine.upload_valid("x,y\n1,2\n3,z\n").await.part;
    let after = engine.upload_valid("x,y\n1,q\n").await.part;
    assert!(engine.pack().await.expect("packed") > 0 && bad < after);
    for format in [Format::Csv, Format::Parquet] {
        let error = engine.column_sum("y", format).await.expect_err("a text");
        assert!(matches!(&error, Error::Cell { part, row: 2, cell, .. } if *part == bad && cell == "z"), "{error}");
    }
}

#[tokio::test]
async fn a_segment_with_thousands_of_columns_is_summed() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    let columns: Vec<_> = (0..3000).map(|number| format!("c{number}")).collect();
    for value in [1, 20, 300] {
        let row = vec![value.to_string(); columns.len()].join(",");
        engine.upload_valid(format!("{}\n{row}\n{row}\n", columns.join(","))).await;
        engine.upload_valid(format!("c7\n{}\n", 1000 * value)).await;
    }
    engine.remove_part(PartId::new(3).expect("a number"), false).await.expect("removed");
    assert_eq!(engine.pack().await.expect("packed"), 1);
    for (column, total, parts) in [("c7", 321_000 + 602, 5), ("c2999", 602, 2)] {
        for format in [Format::Csv, Format::Parquet] {
            let sum = engine.column_sum(column, format).await.expect("integers");
            assert_eq!((sum.total, sum.read.parts), (total, parts), "{column} {format:?}");
        }
    }
}

/// What the cells of a random part look like. Each kind is a Parquet file of a segment.
#[derive(Clone, Copy)]
enum Kind {
    Usual,
    /// The keys are integers, and so are the values.
    Integers,
    /// The keys are doubles, some of which have two texts.
    Doubles,
    /// A column is missing.
    Narrow,
}

/// A part with columns to group by (`k`, `d`), to sum (`n`, `m`) and of the survey. About one in `bad_every` has a cell that is no
/// number.
fn survey_part(random: &mut fastrand::Rng, kind: Kind, bad_every: usize) -> String {
    let is_bad = random.usize(..bad_every) == 0;
    let rows = random.usize(..8);
    let bad_row = random.usize(..rows.max(1));
    let mut csv = match kind {
        Kind::Narrow => "k,d,m\n".to_owned(),
        _ => format!("k,d,n,m,{SURVEY}\n"),
    };
    for row in 0..rows {
        let key = match kind {
            Kind::Usual | Kind::Narrow => ["a", "\"b,\nc\"", "", "7", "é"][random.usize(..5)],
            Kind::Integers => ["7", "", "-1"][random.usize(..3)],
            Kind::Doubles => ["1.5", "1.50", "7", "0.25"][random.usize(..4)],
        };
        let day = ["2026-01-01", "2026-01-02", ""][random.usize(..3)];
        let large = [i64::MAX, i64::MIN, 1, 0][random.usize(..4)];
        if matches!(kind, Kind::Narrow) {
            csv.push_str(&format!("{key},{day},{large}\n"));
            continue;
        }
        let value = match kind {
            _ if is_bad && row == bad_row => "n/a".to_owned(),
            Kind::Integers => random.u8(..9).to_string(),
            _ => ["1.5", "1.50", "", " 2 ", "3"][random.usize(..5)].to_owned(),
        };
        let number = if random.u8(..5) == 0 { String::new() } else { random.i32(-99..99).to_string() };
        let (question, state) = (1 + random.u8(..2), ["Ohio", "Utah", "", "1.50"][random.usize(..4)]);
        let (category, of_category) = (["c", "", "1.5"][random.usize(..3)], ["s", "2026-01-01", ""][random.usize(..3)]);
        csv.push_str(&format!("{key},{day},{number},{large},q{question},{state},{value},{category},{of_category}\n"));
    }
    csv
}

impl Table {
    /// What segments are read from Parquet for.
    async fn questions(&self) -> Vec<String> {
        let mut all = [self.statistics("q1").await, self.statistics("q2").await].concat();
        let groups: [(&[&str], &[&str]); 8] = [
            (&["k"], &["n"]),
            (&["d"], &["n"]),
            (&["d", "k"], &["n"]),
            (&["Question", "d"], &["n"]),
            (&["d"], &["m", "n"]),
            (&["k", "LocationDesc"], &["m"]),
            (&["d"], &["m"]),
            (&["d"], &["Data_Value"]),
        ];
        for (by, sum) in groups {
            all.push(format!("{sum:?} by {by:?}: {}", self.groups(by, sum).await));
        }
        all
    }
}

/// As [`nothing_that_a_client_sees_differs`], for segments with so many parts that they are worth being read from Parquet.
#[tokio::test]
async fn statistics_and_group_sums_of_many_packed_parts_do_not_differ() {
    let (mut answers, mut errors) = (0, 0);
    for seed in seeds("TALLY_PACKED_QUESTIONS_SEED", 10) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut packed, mut plain) = (Table::new().await, Table::new().await);
        let kinds = [Kind::Usual, Kind::Usual, Kind::Integers, Kind::Doubles, Kind::Narrow];
        let kinds_max = random.usize(1..=kinds.len());
        let bad_every = [1000, 200, 40][random.usize(..3)];
        let mut last = 0;
        for step in 0..4 {
            for _ in 0..random.usize(30..60) {
                let kind = kinds[random.usize(..kinds_max)];
                let csv = survey_part(&mut random, kind, bad_every);
                let [a, b] = [packed.engine().upload_valid(&csv).await, plain.engine().upload_valid(&csv).await];
                assert_eq!(comparable(&a), comparable(&b));
                last = a.part.get();
            }
            if step < 3 {
                packed.engine().pack().await.expect("packed");
            }
            for _ in 0..[0, 1, 12][random.usize(..3)] {
                let chosen = PartId::new(1 + random.u64(..last)).expect("above 0");
                let purge = random.bool();
                let removed = packed.engine().remove_part(chosen, purge).await.map(|removed| removed.parts);
                assert_eq!(
                    text(removed),
                    text(plain.engine().remove_part(chosen, purge).await.map(|removed| removed.parts))
                );
            }
            if random.bool() {
                packed.restart().await;
                plain.restart().await;
            }
            for (a, b) in packed.questions().await.iter().zip(&plain.questions().await) {
                assert_eq!(a, b, "seed {seed}, step {step}");
                let is_error = a.contains("error: ") || a.contains(" is not an integer") || a.contains("does not fit");
                *(if is_error { &mut errors } else { &mut answers }) += 1;
            }
        }
    }
    println!("{answers} answers and {errors} errors are the same");
    assert!(answers > 500 && errors > 200, "{answers} answers, {errors} errors");
}

/// Which names are listed, if there is no room for all, depends on the order of the parts.
#[tokio::test]
async fn a_list_of_too_many_names_has_the_same_ones() {
    let (packed, plain) = (Table::new().await, Table::new().await);
    for part in 0..12 {
        // Every other part is in a second Parquet file of the segment.
        let mut csv = if part % 2 == 0 { format!("{SURVEY}\n") } else { format!("{SURVEY},more\n") };
        let end = if part % 2 == 0 { "" } else { ",1" };
        for question in 0..20 {
            csv.push_str(&format!("part {part} question {question}{},Ohio,1.5,c,s{end}\n", "?".repeat(100)));
        }
        upload(&packed, &csv, None).await.expect("valid");
        upload(&plain, &csv, None).await.expect("valid");
    }
    assert_eq!(packed.engine().pack().await.expect("packed"), 1);
    let expected = plain.engine().survey_names(NameList::Questions).await.expect("names");
    assert!(!expected.is_complete && expected.rows_of.len() > 50, "{} names", expected.rows_of.len());
    assert_eq!(packed.engine().survey_names(NameList::Questions).await.expect("names"), expected);
}

/// Statistics and group sums read the Parquet files of segments: the CSV may be damaged. If Parquet is damaged, they read the CSV.
#[tokio::test]
async fn damage_to_one_file_of_a_segment_changes_no_answer() {
    let plain = Table::new().await;
    let packed = Table::new().await;
    let mut random = fastrand::Rng::with_seed(1);
    for part in 0..60 {
        let other = if part % 2 == 0 { "q2" } else { "" };
        let mut csv = format!("k,n,{SURVEY}\na,{part},q1,Ohio,{part},c,s\nb,1,q1,Utah,,c,t\n,2,{other},Utah,7,c,\n");
        // So many values that the file is not verified as a whole when it is opened.
        (0..50).for_each(|_| csv.push_str(&format!("c,{},q2,Utah,{},c,t\n", random.i32(..), random.u16(..))));
        upload(&packed, &csv, None).await.expect("valid");
        upload(&plain, &csv, None).await.expect("valid");
    }
    assert_eq!(packed.engine().pack().await.expect("packed"), 1);
    let ask = async |table: &Table| {
        let mut all = table.statistics("q1").await;
        all.push(table.groups(&["k", "LocationDesc"], &["n"]).await);
        all
    };
    for removed in [None, PartId::new(20)] {
        if let Some(removed) = removed {
            for table in [&packed, &plain] {
                table.engine().remove_part(removed, false).await.expect("removed");
            }
        }
        let expected = ask(&plain).await;
        for extension in ["csv", "parquet"] {
            let path = packed.folder.file(&format!("parts/1-60-1.{extension}"));
            let good = std::fs::read(&path).expect("readable");
            let mut bad = good.clone();
            let middle = bad.len() / 4;
            bad[..middle].iter_mut().for_each(|byte| *byte ^= 1);
            std::fs::write(&path, &bad).expect("written");
            assert_eq!(ask(&packed).await, expected, "{extension} is damaged, removed: {removed:?}");
            std::fs::write(&path, &good).expect("written");
        }
    }
}

/// A table with six parts, of which the third is in quarantine.
async fn with_part_in_quarantine(folder: &DataFolder) -> TestEngine {
    let engine = folder.open().await;
    for number in 0..6 {
        engine.upload_valid(format!("x\n{}\n", 1 << number)).await;
    }
    drop(engine);
    std::fs::write(folder.file("parts/3.json"), "{}").expect("written");
    folder.open().await
}

#[tokio::test]
async fn a_part_in_quarantine_is_missing_though_a_segment_covers_its_number() {
    let folder = DataFolder::new();
    let engine = with_part_in_quarantine(&folder).await;
    assert_eq!((engine.missing_parts().count(), engine.pack().await.expect("packed")), (1, 1));
    drop(engine);
    let engine = folder.open().await;
    assert_eq!(folder.names_in("parts").iter().filter(|name| name.ends_with(".segment")).count(), 1);
    assert_eq!((engine.missing_parts().count(), engine.parts_count()), (1, 5));
    for format in [Format::Csv, Format::Parquet] {
        let refused = engine.column_sum("x", format).await.expect_err("part 3 is missing");
        assert!(matches!(refused, Error::PartsMissing { count: 1, .. }), "{refused}");
    }
    assert_eq!(engine.forget_part(PartId::new(3).expect("a number")).await.expect("it is in quarantine"), 0);
    assert_eq!(engine.column_sum("x", Format::Parquet).await.expect("complete").total, 63 - 4);
    let of_segment = engine.forget_part(PartId::new(4).expect("a number")).await.expect_err("it is in the table");
    assert!(matches!(of_segment, Error::NotInQuarantine { .. }), "{of_segment}");
}

#[tokio::test]
async fn a_damaged_part_is_not_packed_and_the_others_are() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for number in 0..6 {
        engine.upload_valid(format!("x\n{}\n", 1 << number)).await;
    }
    let path = folder.file("parts/3.csv");
    std::fs::write(&path, "x\n5\n").expect("written");
    let error = engine.pack().await.expect_err("part 3 is damaged");
    assert!(matches!(error, Error::Damaged { part, .. } if part.get() == 3), "{error}");
    assert_eq!(engine.pack().await.expect("the others"), 1);
    assert_eq!(engine.overview().unpacked, 1);
    assert_eq!(engine.column_sum("x", Format::Parquet).await.expect("its Parquet is undamaged").total, 63);
    let error = engine.column_sum("x", Format::Csv).await.expect_err("part 3 is damaged");
    assert!(matches!(error, Error::Damaged { part, .. } if part.get() == 3), "{error}");
    std::fs::write(&path, "x\n4\n").expect("written");
    assert_eq!(engine.column_sum("x", Format::Csv).await.expect("as before").total, 63);
}

#[tokio::test]
async fn newer_parts_are_packed_while_segments_become_one() {
    let folder = DataFolder::new();
    let long = format!("x\n{}", "1\n".repeat(30_000));
    let engine = folder.open_with(Durability::None, limits()).await;
    for _segment in 0..7 {
        engine.upload_valid(long.clone()).await;
        engine.upload_valid(long.clone()).await;
        assert_eq!(engine.pack().await.expect("packed"), 1);
    }
    drop(engine);
    let slow = Limits { pack_above: 0, pack_bytes_per_s: 1 << 19, ..Limits::default() };
    let engine = folder.open_with(Durability::None, slow).await;
    engine.upload_valid(long.clone()).await;
    engine.upload_valid(long).await;
    let add = async {
        let drafts = || std::fs::read_dir(folder.path().join("tmp")).expect("a folder").count();
        while engine.overview().segments < 8 || drafts() == 0 {
            yield_now().await;
        }
        for _part in 0..1024 {
            engine.upload_valid("x\n1\n").await;
        }
        while engine.overview().unpacked > 0 {
            yield_now().await;
        }
        engine.overview().segments
    };
    let (packed, segments) = join(engine.pack(), add).await;
    assert_eq!(segments, 9, "these parts did not wait until the eight segments were one");
    assert_eq!(packed.expect("packed"), 2, "the eighth segment, and the one that they became");
    assert_eq!(engine.overview().segments, 2);
    for format in [Format::Csv, Format::Parquet] {
        assert_eq!(engine.column_sum("x", format).await.expect("a sum").total, 16 * 30_000 + 1024);
    }
}

#[tokio::test]
async fn a_replaced_file_that_cannot_be_moved_is_moved_later() {
    let folder = DataFolder::new();
    let engine = folder.open_with(Durability::None, limits()).await;
    for _part in 0..3 {
        engine.upload_valid("x\n1\n").await;
    }
    // A file cannot be renamed over a folder.
    std::fs::create_dir(folder.path().join("removed/2.parquet")).expect("a folder");
    assert_eq!(engine.pack().await.expect("packed"), 1);
    let own = || folder.names_in("parts").into_iter().filter(|name| name == "2.parquet").count();
    assert_eq!(own(), 1);
    std::fs::remove_dir(folder.path().join("removed/2.parquet")).expect("removed");
    for _wait in 0..1200 {
        if own() == 0 && !folder.names_in("removed").iter().any(|name| name.starts_with("2.")) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{:?} {:?}", folder.names_in("parts"), folder.names_in("removed"));
}
