//! Column sums whose parts another engine reads: it answers like this server's workers, and no wrong answer of it counts.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{future::BoxFuture, stream::BoxStream};
use tally::{
    engine::{
        ColumnSum,
        part_reader::PartReader,
        runtime::part_engine::{
            GroupAnswer, GroupEngine, GroupQuestion, PartAnswer, PartEngine, PartOutcome, PartQuestion,
        },
        storage::segments::reading::OpenSegment,
    },
    error::{Error, Kind},
    model::{
        format::Format,
        part::{Part, PartId},
    },
};

use self::common::{DataFolder, TestEngine};

mod common;

type Change = dyn Fn(usize, Vec<PartAnswer>) -> Vec<PartAnswer> + Send + Sync;

/// Another machine, which reads the data folder. What it answers may be changed; `change` also gets how often it was asked
/// before.
struct Machine {
    reader: PartReader,
    asked: AtomicUsize,
    change: Box<Change>,
}

impl Machine {
    fn new(
        folder: &Path,
        change: impl Fn(usize, Vec<PartAnswer>) -> Vec<PartAnswer> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let reader = PartReader::open(folder, &std::env::temp_dir()).expect("a data folder");
        Arc::new(Self { reader, asked: AtomicUsize::new(0), change: Box::new(change) })
    }
}

impl PartEngine for Machine {
    fn ask(&self, parts: Vec<Arc<Part>>, question: PartQuestion) -> BoxFuture<'_, Result<Vec<PartAnswer>, Error>> {
        Box::pin(async move {
            let mut open = OpenSegment::default();
            let answer = |part: &Arc<Part>| {
                // As another machine gets it: without what only this one has in memory.
                let part = Arc::new(Part { schema: None, ..Part::clone(part) });
                self.reader.answer(&part, &question, &mut open, || false).expect("not cancelled")
            };
            let answers = parts.iter().map(answer).rev().collect(); // in any order
            Ok((self.change)(self.asked.fetch_add(1, Ordering::Relaxed), answers))
        })
    }
}

impl GroupEngine for Machine {
    fn groups(&self, parts: Vec<Arc<Part>>, question: GroupQuestion) -> BoxStream<'_, Result<GroupAnswer, Error>> {
        self.reader.groups(parts, question)
    }
}

/// Tables with the columns `a` and `b`, one of which may be missing, and cells of every kind.
fn random_csv(random: &mut fastrand::Rng, bad_cells: bool) -> String {
    let header = ["a,b\n", "b,a\n", "a\n", "c,a\n"][random.usize(..4)];
    let columns = header.split(',').count();
    let mut text = header.to_owned();
    let kind = random.usize(..8);
    for row in 0..random.usize(1..40) {
        let cells = (0..columns).map(|_| match (kind, random.u8(..30)) {
            (_, 0) if bad_cells => "bad".to_owned(),
            (0, _) => format!(" {} ", random.i32(-9..9)),
            (1, _) => format!("{}.5", random.u8(..9)),
            (2, _) if bad_cells => "2026-01-01".to_owned(),
            (3, _) => random.i64(..).to_string(),
            (4, _) if row % 2 == 0 => String::new(),
            _ => random.i32(-1000..1000).to_string(),
        });
        text.push_str(&cells.collect::<Vec<_>>().join(","));
        text.push('\n');
    }
    text
}

async fn answers(engine: &TestEngine) -> Vec<String> {
    let mut all = Vec::new();
    for column in ["a", "b", "c", "nothing"] {
        for format in [Format::Csv, Format::Parquet] {
            let text = match engine.column_sum(column, format).await {
                Ok(ColumnSum { total, read }) => format!("{total}, {} parts, {} rows", read.parts, read.rows),
                Err(error) => format!("{:?}: {error}", error.kind()),
            };
            all.push(format!("{column} {format}: {text}"));
        }
    }
    all
}

/// Changes a byte of a CSV file.
fn damage_one(folder: &DataFolder, random: &mut fastrand::Rng) {
    let names: Vec<_> = folder.names_in("parts").into_iter().filter(|name| name.ends_with(".csv")).collect();
    let path = folder.file("parts").join(&names[random.usize(..names.len())]);
    let mut csv = fs::read(&path).expect("readable");
    let at = random.usize(..csv.len());
    csv[at] ^= 1;
    fs::write(path, csv).expect("written");
}

#[tokio::test]
async fn another_machine_answers_as_this_one() {
    let (mut sums, mut errors) = (0, 0);
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = DataFolder::new();
        let engine = folder.open().await;
        let bad_cells = seed % 3 == 0;
        for number in 0..random.usize(1..25) {
            engine.upload_valid(random_csv(&mut random, bad_cells)).await;
            if number == 12 && seed % 2 == 0 {
                engine.pack().await.expect("packed");
            }
        }
        if seed % 4 == 0 {
            engine.remove_part(PartId::FIRST, false).await.expect("removed");
        }
        if seed % 5 == 4 {
            damage_one(&folder, &mut random);
        }
        let here = answers(&engine).await;
        drop(engine);
        let engine = folder.open_with_cluster(Machine::new(folder.path(), |_asked, answers| answers)).await;
        assert_eq!(answers(&engine).await, here, "seed {seed}");
        sums += here.iter().filter(|answer| answer.contains(" parts, ")).count();
        errors += here.iter().filter(|answer| answer.contains("Input") || answer.contains("DataLoss")).count();
    }
    assert!(sums > 200 && errors > 50, "{sums} sums, {errors} errors");
}

#[tokio::test]
async fn the_first_error_of_a_table_with_segments_is_the_first_in_its_csv() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid("a\n1\n").await;
    engine.upload_valid("a\n2\n").await;
    assert_eq!(engine.pack().await.expect("packed"), 1);
    engine.upload_valid("a\n3\n").await;
    engine.upload_valid("a\nbad\n").await;
    let path = folder.file("parts/3.csv");
    fs::write(path, "a\n4\n").expect("damaged");
    let here = answers(&engine).await;
    assert!(here[1].contains("DataLoss: part 3 is damaged: csv"), "{here:?}");
    drop(engine);
    let engine = folder.open_with_cluster(Machine::new(folder.path(), |_asked, answers| answers)).await;
    assert_eq!(answers(&engine).await, here);
}

/// A table of ten parts with ten rows each, of which the sum is 5,050.
async fn ten_parts() -> DataFolder {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for part in 0..10 {
        let rows: String = (1..=10).map(|row| format!("{}\n", part * 10 + row)).collect();
        engine.upload_valid(format!("a\n{rows}")).await;
    }
    folder
}

/// The sum, if the answers of another machine are changed.
async fn sum_with(
    folder: &DataFolder,
    change: impl Fn(usize, Vec<PartAnswer>) -> Vec<PartAnswer> + Send + Sync + 'static,
) -> Result<i64, (Kind, String)> {
    let machine = Machine::new(folder.path(), change);
    let engine = folder.open_with_cluster(machine).await;
    let sum = engine.column_sum("a", Format::Parquet).await;
    sum.map(|sum| sum.total).map_err(|error| (error.kind(), error.to_string()))
}

#[tokio::test]
async fn what_is_missing_is_asked_for_again() {
    let folder = ten_parts().await;
    let some_at_first = |asked, mut answers: Vec<PartAnswer>| {
        answers.truncate(if asked == 0 { 4 } else { answers.len() });
        answers
    };
    assert_eq!(sum_with(&folder, some_at_first).await, Ok(5050));
    let none_at_first = |asked, answers| if asked < 2 { Vec::new() } else { answers };
    assert_eq!(sum_with(&folder, none_at_first).await, Ok(5050));
    let never_the_third = |_asked, mut answers: Vec<PartAnswer>| {
        answers.retain(|answer| answer.part.get() != 3);
        answers
    };
    let (kind, text) = sum_with(&folder, never_the_third).await.expect_err("an answer is missing");
    assert_eq!(kind, Kind::Unavailable);
    assert!(text.contains("1 parts were not answered, part 3 first"), "{text}");
}

#[tokio::test]
async fn wrong_answers_do_not_count() {
    let folder = ten_parts().await;
    let wrong = async |what: &str, change: fn(&mut Vec<PartAnswer>)| {
        let change = move |_asked, mut answers: Vec<PartAnswer>| {
            change(&mut answers);
            answers
        };
        let (kind, text) = sum_with(&folder, change).await.expect_err("a wrong answer");
        assert_eq!(kind, Kind::Internal, "{text}");
        assert_eq!(text, format!("internal error: a wrong answer of the cluster: {what}"));
    };
    let again = |answers: &mut Vec<PartAnswer>| {
        let copies = answers.iter().map(|answer| match answer.outcome {
            PartOutcome::Summed(totals) => PartAnswer { part: answer.part, outcome: PartOutcome::Summed(totals) },
            _ => panic!("no sum"),
        });
        let copies: Vec<_> = copies.collect();
        answers.extend(copies);
    };
    wrong("part 10 was answered twice", again).await;
    wrong("part 99 was not asked about", |answers| answers[0].part = PartId::new(99).expect("a number")).await;
    wrong("part 9: its column was not added", |answers| answers[1].outcome = PartOutcome::WithoutColumn).await;
    wrong("part 10: 9 rows were read, its receipt says 10", |answers| {
        if let PartOutcome::Summed(totals) = &mut answers[0].outcome {
            totals.rows -= 1;
        }
    })
    .await;
    wrong("part 10: 10 rows cannot have the sum 170141183460469231731687303715884105727", |answers| {
        if let PartOutcome::Summed(totals) = &mut answers[0].outcome {
            totals.sum = i128::MAX;
        }
    })
    .await;
    wrong("part 10: an error of another part: part 3 is damaged: it", |answers| {
        let part = PartId::new(3).expect("a number");
        answers[0].outcome = PartOutcome::Failed(Error::Damaged { part, what: "it".to_owned() });
    })
    .await;
}

#[tokio::test]
async fn parts_that_another_machine_cannot_read_are_read_here() {
    let folder = ten_parts().await;
    let third = |_asked, mut answers: Vec<PartAnswer>| {
        answers[2].outcome = PartOutcome::Unreadable("no such file".to_owned());
        answers
    };
    assert_eq!(sum_with(&folder, third).await, Ok(5050));
    let engine = folder.open().await;
    for part in 10..20 {
        engine.upload_valid(format!("a\n{part}\n")).await;
    }
    drop(engine);
    let all = |_asked, mut answers: Vec<PartAnswer>| {
        for answer in &mut answers {
            answer.outcome = PartOutcome::Unreadable("no such file".to_owned());
        }
        answers
    };
    let (kind, text) = sum_with(&folder, all).await.expect_err("its folder is not mounted");
    assert_eq!(kind, Kind::Unavailable);
    assert!(text.contains("it cannot read 16 parts that this server can read, the last: no such file"), "{text}");
}
