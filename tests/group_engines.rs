//! Group sums and statistics whose parts another engine reads: it answers like this server's workers, and no wrong answer of it
//! counts.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{
    fs,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use tally::{
    engine::{
        group_by::spec::GroupBy,
        part_reader::PartReader,
        runtime::{
            group_rows::GroupRows,
            part_engine::{GroupAnswer, GroupEngine, GroupQuestion, PartAnswer, PartEngine, PartOutcome, PartQuestion},
        },
        state::transfers::Origin,
        survey::question::{Ask, SurveyQuestion},
    },
    error::Error,
    model::part::{Part, PartId},
};

use self::common::{DataFolder, TestEngine};

mod common;

/// What a machine says instead of an answer. It also gets how often it was asked before.
type Change = dyn Fn(usize, Vec<GroupAnswer>) -> Vec<GroupAnswer> + Send + Sync;

/// Another machine, which reads the data folder, some parts at a time.
struct Machine {
    reader: PartReader,
    list_parts: usize,
    asked: AtomicUsize,
    change: Box<Change>,
}

impl Machine {
    fn new(
        folder: &Path,
        list_parts: usize,
        change: impl Fn(usize, Vec<GroupAnswer>) -> Vec<GroupAnswer> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let reader = PartReader::open(folder, &std::env::temp_dir()).expect("a data folder");
        Arc::new(Self { reader, list_parts, asked: AtomicUsize::new(0), change: Box::new(change) })
    }
}

impl PartEngine for Machine {
    fn ask(&self, _parts: Vec<Arc<Part>>, _question: PartQuestion) -> BoxFuture<'_, Result<Vec<PartAnswer>, Error>> {
        Box::pin(async { Err(Error::Internal("no group is asked for".to_owned())) })
    }
}

impl GroupEngine for Machine {
    fn groups(&self, parts: Vec<Arc<Part>>, question: GroupQuestion) -> BoxStream<'_, Result<GroupAnswer, Error>> {
        let answers = async move {
            let mut all = Vec::new();
            for list in parts.chunks(self.list_parts).rev() {
                // As another machine gets it: without what only this one has in memory.
                let list = list.iter().map(|part| Arc::new(Part { schema: None, ..Part::clone(part) })).collect();
                let mut answers = self.reader.groups(list, question.clone());
                while let Some(answer) = answers.next().await {
                    match answer {
                        Ok(answer) => all.push(answer),
                        Err(error) => return stream::iter(vec![Err(error)]),
                    }
                }
            }
            let changed = (self.change)(self.asked.fetch_add(1, Ordering::Relaxed), all);
            stream::iter(changed.into_iter().map(Ok).collect::<Vec<_>>())
        };
        stream::once(answers).flatten().boxed()
    }
}

fn as_it_is(_asked: usize, answers: Vec<GroupAnswer>) -> Vec<GroupAnswer> {
    answers
}

/// Tables with the columns `k`, `l` and `a`, one of which may be missing, and cells of every kind.
fn random_csv(random: &mut fastrand::Rng, bad_cells: bool) -> String {
    let header = ["k,l,a\n", "a,k,l\n", "k,a\n", "c,a\n", "l,a,k,d\n"][random.usize(..5)];
    let names: Vec<_> = header.trim().split(',').collect();
    let (mut text, kind) = (header.to_owned(), random.usize(..8));
    for row in 0..random.usize(1..40) {
        let cells = names.iter().map(|name| match (*name, kind, random.u8(..30)) {
            ("a", _, 0) if bad_cells => "bad".to_owned(),
            ("a", 0, _) => format!(" {} ", random.i32(-9..9)),
            ("a", 1, _) => format!("{}.0", random.u8(..9)),
            ("a", 2, _) if bad_cells => "2026-01-01".to_owned(),
            ("a", 3, _) => random.i64(..).to_string(),
            ("a", 4, _) if row % 2 == 0 => String::new(),
            ("a", ..) => random.i32(-1000..1000).to_string(),
            (_, 5, _) => random.u8(..9).to_string(),
            (_, 6, _) => ["", "\"x,y\"", "\"a \"\"b\"\"\"", "ä"][random.usize(..4)].to_owned(),
            _ => format!("text {}", random.u8(..40)),
        });
        text.push_str(&cells.collect::<Vec<_>>().join(","));
        text.push('\n');
    }
    text
}

async fn group_sum(engine: &TestEngine, by: &[&str], sum: &[&str], top: Option<usize>) -> String {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let spec = GroupBy::new(names(by), names(sum)).expect("a question");
    let groups = match top {
        Some(count_max) => engine.top_groups(Origin::SERVER, spec, count_max).await,
        None => engine.group_sum(Origin::SERVER, spec).await,
    };
    let mut groups = match groups {
        Ok(groups) => groups,
        Err(error) => return format!("{:?}: {error}", error.kind()),
    };
    let mut all = Vec::new();
    loop {
        match groups.next_block().await {
            Ok(block) if block.is_empty() => return format!("{} groups: {all:?}", all.len()),
            Ok(mut block) => all.append(&mut block),
            Err(error) => return format!("{:?}: {error}", error.kind()),
        }
    }
}

async fn group_sums(engine: &TestEngine) -> Vec<String> {
    let mut all = Vec::new();
    for (by, sum) in
        [(&["k"][..], &["a"][..]), (&["l", "k"], &["a"]), (&["a"], &["k"]), (&["c"], &["a"]), (&["no"], &["a"])]
    {
        all.push(group_sum(engine, by, sum, None).await);
        all.push(group_sum(engine, by, sum, Some(3)).await);
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
async fn another_machine_sums_groups_as_this_one() {
    let (mut sums, mut errors) = (0, 0);
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = DataFolder::new();
        let engine = folder.open().await;
        for number in 0..random.usize(1..25) {
            engine.upload_valid(random_csv(&mut random, seed % 3 == 0)).await;
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
        let here = group_sums(&engine).await;
        drop(engine);
        let machine = Machine::new(folder.path(), random.usize(1..8), as_it_is);
        let engine = folder.open_with_cluster(machine).await;
        assert_eq!(group_sums(&engine).await, here, "seed {seed}");
        sums += here.iter().filter(|answer| answer.contains(" groups: ") && !answer.starts_with('0')).count();
        errors += here.iter().filter(|answer| answer.contains("Input") || answer.contains("DataLoss")).count();
    }
    assert!(sums > 80 && errors > 40, "{sums} sums, {errors} errors");
}

/// The answer of a table of twelve packed parts, if the segment's CSV becomes shorter while the server runs.
async fn group_sum_over_a_damaged_segment(list_parts: usize) -> String {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for part in 1..=12 {
        engine.upload_valid(format!("k,a\nx,{part}\n")).await;
    }
    assert_eq!(engine.pack().await.expect("packed"), 1);
    drop(engine);
    let engine = folder.open_with_cluster(Machine::new(folder.path(), list_parts, as_it_is)).await;
    let path = folder.file("parts/1-12-1.csv");
    let csv = fs::read(&path).expect("readable");
    fs::write(path, &csv[..csv.len() / 2]).expect("damaged");
    group_sum(&engine, &["k"], &["a"], None).await
}

#[tokio::test]
async fn damage_of_a_segment_is_found_from_any_list() {
    let text = group_sum_over_a_damaged_segment(3).await;
    assert!(text.starts_with("DataLoss: part 1 is damaged: segment 1-12-1, csv"), "{text}");
}

#[tokio::test]
async fn a_part_that_has_all_columns_is_not_left_out() {
    let folder = DataFolder::new();
    folder.open().await.upload_valid("d,a\n2026-01-01,1\n2026-01-02,2\n").await;
    let without = |_asked, mut answers: Vec<GroupAnswer>| {
        answers.retain(|answer| matches!(answer, GroupAnswer::Parts(_)));
        for answer in &mut answers {
            if let GroupAnswer::Parts(parts) = answer {
                parts[0].outcome = PartOutcome::WithoutColumn;
            }
        }
        answers
    };
    let engine = folder.open_with_cluster(Machine::new(folder.path(), 3, without)).await;
    let text = group_sum(&engine, &["d"], &["a"], None).await;
    assert_eq!(text, "Internal: internal error: a wrong answer of the cluster: part 1: its column was not added");
}

/// A part of a survey, in which a cell may be no number.
fn random_survey(random: &mut fastrand::Rng, bad_cells: bool) -> String {
    let columns = ["Question", "Data_Value", "LocationDesc", "StratificationCategory1", "Stratification1"];
    let missing = if random.u8(..9) == 0 { random.usize(..5) } else { 5 };
    let mut text = String::new();
    for row in 0..random.usize(2..60) {
        let cells =
            columns.iter().enumerate().filter(|(index, _)| *index != missing).map(|(index, name)| match (row, index) {
                (0, _) => (*name).to_owned(),
                (_, 0) => ["q", "q", "q", "other", ""][random.usize(..5)].to_owned(),
                (_, 1) if bad_cells && random.u8(..40) == 0 => "bad".to_owned(),
                (_, 1) => ["", "1.5", "1.50", "-3", "1e300", "-1e300", "5e-300"][random.usize(..7)].to_owned(),
                _ => ["", "Ohio", "Iowa", "\"a,b\"", "ä"][random.usize(..5)].to_owned(),
            });
        text.push_str(&cells.collect::<Vec<_>>().join(","));
        text.push('\n');
    }
    text
}

async fn statistics(engine: &TestEngine) -> Vec<String> {
    let asks = [
        Ask::StatesMean,
        Ask::StateMean,
        Ask::Best5,
        Ask::GlobalMean,
        Ask::DiffFromMean,
        Ask::StateDiffFromMean,
        Ask::MeanByCategory,
        Ask::StateMeanByCategory,
    ];
    let mut all = Vec::new();
    for ask in asks {
        for text in ["q", "nobody asks this"] {
            let question =
                SurveyQuestion::new(ask, text.to_owned(), Some("Ohio".to_owned()), None).expect("a question");
            all.push(match engine.survey(&question).await {
                Ok(answer) => serde_json::to_string(&answer).expect("JSON"),
                Err(error) => format!("{:?}: {error}", error.kind()),
            });
        }
    }
    all
}

#[tokio::test]
async fn another_machine_finds_the_statistics_of_this_one() {
    let (mut found, mut errors, mut last) = (0, 0, Vec::new());
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = DataFolder::new();
        let engine = folder.open().await;
        for number in 0..random.usize(1..20) {
            engine.upload_valid(random_survey(&mut random, seed % 3 == 0)).await;
            if number == 9 && seed % 2 == 0 {
                engine.pack().await.expect("packed");
            }
        }
        if seed % 5 == 4 {
            damage_one(&folder, &mut random);
        }
        let here = statistics(&engine).await;
        drop(engine);
        let machine = Machine::new(folder.path(), random.usize(1..8), as_it_is);
        let engine = folder.open_with_cluster(machine).await;
        assert_eq!(statistics(&engine).await, here, "seed {seed}");
        found += here.iter().filter(|answer| answer.starts_with('{')).count();
        last.clone_from(&here);
        errors += here.iter().filter(|answer| answer.contains("Input") || answer.contains("DataLoss")).count();
    }
    assert!(found > 100 && errors > 100, "{found} answers, {errors} errors, the last {last:?}");
}

/// Parts that each have so many groups that one of them fits in an answer, and three of them do not.
fn many_states(states: Range<usize>, bad_cell: bool) -> String {
    let mut text = "Question,Data_Value,LocationDesc,StratificationCategory1,Stratification1\n".to_owned();
    for state in states {
        text.push_str(&format!("q,1,state {state},c,s\n"));
    }
    if bad_cell {
        text.push_str("q,bad,state,c,s\n");
    }
    text
}

#[tokio::test]
async fn too_many_groups_are_an_error_as_on_one_machine() {
    for (bad_cell, parts_of_list) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
        let folder = DataFolder::new();
        let engine = folder.open().await;
        for part in 0..4 {
            engine.upload_valid(many_states(part * 1500..(part + 1) * 1500, bad_cell && part == 3)).await;
        }
        let here = statistics(&engine).await;
        assert!(here[0].contains("take more than 2097152 bytes"), "{here:?}");
        drop(engine);
        let engine = folder.open_with_cluster(Machine::new(folder.path(), parts_of_list, as_it_is)).await;
        assert_eq!(statistics(&engine).await, here, "{bad_cell} {parts_of_list}");
    }
}

/// A table of ten parts with ten rows each: 20 groups, whose totals are 0, 3, 6 and so on.
async fn ten_parts() -> DataFolder {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for part in 0..10 {
        let row = |row| format!("{:02},{}\n", (part * 10 + row) % 20, (part * 10 + row) % 20);
        let rows: String = (0..10).map(row).collect();
        engine.upload_valid(format!("k,a\n{rows}")).await;
    }
    folder
}

/// The groups, if the answers of another machine are changed.
async fn groups_with(
    folder: &DataFolder,
    change: impl Fn(usize, Vec<GroupAnswer>) -> Vec<GroupAnswer> + Send + Sync + 'static,
) -> String {
    let engine = folder.open_with_cluster(Machine::new(folder.path(), 3, change)).await;
    group_sum(&engine, &["k"], &["a"], None).await
}

/// The answers, with their groups changed.
fn with_groups(answers: Vec<GroupAnswer>, change: impl Fn(&GroupRows) -> GroupRows) -> Vec<GroupAnswer> {
    let changed = answers.into_iter().map(|answer| match answer {
        GroupAnswer::Groups(rows) => GroupAnswer::Groups(change(&rows)),
        other => other,
    });
    changed.collect()
}

#[tokio::test]
async fn what_is_lost_is_asked_for_again() {
    let folder = ten_parts().await;
    let right = groups_with(&folder, as_it_is).await;
    assert!(right.starts_with("20 groups: ") && right.contains("totals: [95]"), "{right}");
    let lost_at_first = |asked, mut answers: Vec<GroupAnswer>| {
        if asked < 2 {
            answers.truncate(3);
            answers.push(GroupAnswer::Lost);
        }
        answers
    };
    assert_eq!(groups_with(&folder, lost_at_first).await, right);
    let missing_at_first = |asked, mut answers: Vec<GroupAnswer>| {
        answers.truncate(if asked == 0 { 2 } else { answers.len() });
        answers
    };
    assert_eq!(groups_with(&folder, missing_at_first).await, right);
    let always_lost = |_asked, mut answers: Vec<GroupAnswer>| {
        answers.push(GroupAnswer::Lost);
        answers
    };
    let text = groups_with(&folder, always_lost).await;
    assert_eq!(
        text,
        "Unavailable: the cluster has not answered: answers were lost; try again, or look at its scheduler and executors"
    );
    let text = groups_with(&folder, |_asked, answers| answers.into_iter().take(2).collect()).await;
    assert!(text.contains("Unavailable") && text.contains("parts were not answered, part 1 first"), "{text}");
}

#[tokio::test]
async fn wrong_answers_do_not_count() {
    let folder = ten_parts().await;
    let wrong = async |what: &str, change: fn(Vec<GroupAnswer>) -> Vec<GroupAnswer>| {
        let text = groups_with(&folder, move |_asked, answers| change(answers)).await;
        assert_eq!(text, format!("Internal: internal error: a wrong answer of the cluster: {what}"));
    };
    wrong("part 10 was answered twice", |mut answers| {
        let again = vec![PartAnswer { part: PartId::new(10).expect("a number"), outcome: PartOutcome::Passed }];
        answers.push(GroupAnswer::Parts(again));
        answers
    })
    .await;
    wrong("part 10: 9 rows were read, its receipt says 10", |mut answers| {
        for answer in &mut answers {
            if let GroupAnswer::Parts(parts) = answer
                && let PartOutcome::Grouped(groups) = &mut parts[0].outcome
            {
                groups.rows -= 1;
            }
        }
        answers
    })
    .await;
    wrong("its groups have 200 rows, the receipts of the parts say 100", |answers| {
        with_groups(answers, |rows| {
            let mut twice = rows.clone();
            rows.iter().for_each(|(key, value)| twice.push(key, value));
            twice
        })
    })
    .await;
    wrong("its groups have 0 rows, the receipts of the parts say 100", |answers| {
        with_groups(answers, |_rows| GroupRows::default())
    })
    .await;
    // As many rows, but not those that were read.
    wrong("its groups are not those that were found in the parts", |answers| {
        with_groups(answers, |rows| {
            let mut renamed = GroupRows::default();
            for (index, (key, value)) in rows.iter().enumerate() {
                renamed.push(if index == 7 { b"other" } else { key }, value);
            }
            renamed
        })
    })
    .await;
}

#[tokio::test]
async fn parts_that_another_machine_cannot_read_are_read_here() {
    let folder = ten_parts().await;
    let right = groups_with(&folder, as_it_is).await;
    // The list of part 4 says so until it is asked about without this part.
    let fourth = |_asked, answers: Vec<GroupAnswer>| {
        let is_fourth = |part: &PartAnswer| part.part.get() == 4;
        let has_it = |it: &GroupAnswer| matches!(it, GroupAnswer::Parts(parts) if parts.iter().any(is_fourth));
        if !answers.iter().any(has_it) {
            return answers;
        }
        let parts = (1..=10).filter_map(PartId::new).map(|part| PartAnswer {
            part,
            outcome: match part.get() {
                4 => PartOutcome::Unreadable("no such file".to_owned()),
                _ => PartOutcome::Passed,
            },
        });
        vec![GroupAnswer::Parts(parts.collect())]
    };
    assert_eq!(groups_with(&folder, fourth).await, right);
    let engine = folder.open().await;
    for _part in 10..20 {
        engine.upload_valid("k,a\n1,0\n").await;
    }
    drop(engine);
    let all = |_asked, answers: Vec<GroupAnswer>| {
        let unreadable = |answers: Vec<PartAnswer>| {
            let outcome = || PartOutcome::Unreadable("no such file".to_owned());
            answers.into_iter().map(|PartAnswer { part, .. }| PartAnswer { part, outcome: outcome() }).collect()
        };
        let answers = answers.into_iter().map(|answer| match answer {
            GroupAnswer::Parts(answers) => GroupAnswer::Parts(unreadable(answers)),
            other => other,
        });
        answers.collect()
    };
    let text = groups_with(&folder, all).await;
    assert!(text.starts_with("Unavailable"), "{text}");
    assert!(text.contains("it cannot read 16 parts that this server can read, the last: no such file"), "{text}");
}
