//! Group sums, compared with a simple computation: random files from a seed, split into byte ranges and tasks of any size,
//! with any amount of memory. The result, or the error, must be exactly the same.
#![allow(clippy::expect_used, clippy::map_err_ignore, reason = "a panic fails the test")]

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use futures_util::poll;
use imbl::{OrdMap, OrdSet};
use tally::{
    engine::{
        Durability,
        group_by::{
            group_sum::GroupSum,
            output::Group,
            sources::Sources,
            spec::{GroupBy, Plan},
        },
        state::{Lane, registry::Snapshot, transfers::Origin},
        storage::{Store, reader::Reader, temp_file::TempFolder},
    },
    error::{Error, Kind},
    limits::{GROUP_BLOCK_BYTES, GROUP_CALLS_MAX, TASK_BYTES},
    model::part::Part,
};
use tempfile::TempDir;
use tokio::sync::oneshot;

use self::{
    common::{DataFolder, in_time, wait_until},
    fixture::{GroupSums, NARROW, ROOMY, expected_group_sum, random_csv_cell, spec, temporary_files},
};

mod columnar;
#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod spilled;

#[tokio::test]
async fn random_files_agree_with_a_simple_computation() {
    let group_sums = GroupSums::new();
    let seed = 4;
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let texts = [
        "",
        "a",
        "b",
        "a\"b",
        "\"",
        "\"\"",
        ",",
        "\n",
        "x\n1,2,3\n",
        "\r\n",
        "ü",
        "a,b",
        "long text, longer than eight bytes",
    ];
    for file_index in 0..400 {
        let rows: Vec<Vec<String>> = (0..random.usize(..60))
            .map(|_| {
                let mut cell = || {
                    let text = texts[random.usize(..texts.len())];
                    if random.bool() { text.to_owned() } else { format!("{text}{}", random.u8(..20)) }
                };
                let (a, b) = (cell(), cell());
                let number = |random: &mut fastrand::Rng| match random.u8(..80) {
                    0..20 => String::new(),
                    20..40 => random.i64(..).to_string(),
                    40 if file_index % 4 == 0 => "x".to_owned(),
                    41 if file_index % 4 == 0 => "9223372036854775808".to_owned(),
                    _ => format!(" {} ", random.i16(..)),
                };
                vec![number(&mut random), a, number(&mut random), b]
            })
            .collect();
        let mut csv = "n,a,m,b\r\n".to_owned();
        let mut lines = Vec::new();
        for row in &rows {
            lines.push(csv.replace("\r\n", "\n").matches(['\n', '\r']).count() + 1);
            let cells: Vec<_> = row.iter().map(|cell| random_csv_cell(cell, &mut random)).collect();
            let end = ["\n", "\r\n", "\r", "\n\n"][random.usize(..4)];
            write!(csv, "{}{end}", cells.join(",")).expect("in memory");
        }
        for (by, sum) in [(&["a", "b"][..], &["n"][..]), (&["b"], &["m", "n"])] {
            let expected = expected_group_sum(&["n", "a", "m", "b"], &rows, &lines, by, sum);
            for _ in 0..3 {
                let plan = Plan {
                    bytes_max: random.usize(1..20_000),
                    partitions_max: random.usize(1..10),
                    partition_bytes_min: random.u64(1..400),
                    task_bytes: random.usize(1..600),
                    range_bytes: random.usize(1..600),
                    ..ROOMY
                };
                let got = group_sums.group_sum(csv.as_bytes(), by, sum, plan).await;
                assert_eq!(got, expected, "file {file_index}, {plan:?}, {csv:?}");
            }
        }
    }
    wait_until("no file is left", || temporary_files(group_sums.folder.path()) == 0).await;
}

#[tokio::test]
async fn groups_are_compared_as_text() {
    let group_sums = GroupSums::new();
    let csv = b"\xef\xbb\xbfk,n\r\nb,1\r\"a\",2\n\n a ,3\na,-5\n\"a,\"\"\",\n,7\n\"\",1";
    group_sums.check(csv, &["k"], &["n"], Ok("k,n\n,8\n a ,3\na,-3\n\"a,\"\"\",0\nb,1\n")).await;
    // Groups are sorted cell by cell: "a" before "a!", whatever the next cell is.
    let csv = b"x,y,n\na!,a,1\na,z,2\na,,3\n\xc3\xbc,a,4\n";
    group_sums.check(csv, &["x", "y"], &["n"], Ok("x,y,n\na,,3\na,z,2\na!,a,1\n\u{fc},a,4\n")).await;
    group_sums.check(csv, &["y", "x"], &["n"], Ok("y,x,n\n,a,3\na,a!,1\na,\u{fc},4\nz,a,2\n")).await;
    // "a", "bc" and "ab", "c" are two groups.
    group_sums.check(b"x,y,n\na,bc,1\nab,c,1\n", &["x", "y"], &["n"], Ok("x,y,n\na,bc,1\nab,c,1\n")).await;
    group_sums.check(b"k,n\n", &["k"], &["n"], Ok("k,n\n")).await;
    group_sums.check(b"k,n", &["n"], &["k"], Ok("n,k\n")).await;
    group_sums.check(b",n\n1,2\n", &[""], &["n"], Ok(",n\n1,2\n")).await;
    // A byte range may end before the header.
    let csv = format!("{}k,n\n{}", "\n".repeat(300), "a,1\n".repeat(9));
    group_sums.check(csv.as_bytes(), &["k"], &["n"], Ok("k,n\na,9\n")).await;
}

#[tokio::test]
async fn totals_are_exact_or_an_error() {
    let group_sums = GroupSums::new();
    let csv = "k,n\na,9223372036854775807\nb,-9223372036854775808\na,1\nb,-1\na,-1\n";
    let error = r#"group "b", column "n": the sum -9223372036854775809 does not fit in 64 bits"#;
    group_sums.check(csv.as_bytes(), &["k"], &["n"], Err(error)).await;
    let csv = format!("{csv}b,1\n");
    let expected = "k,n\na,9223372036854775807\nb,-9223372036854775808\n";
    group_sums.check(csv.as_bytes(), &["k"], &["n"], Ok(expected)).await;
    // A total may leave 64 bits as long as it comes back.
    let up = "a,9223372036854775807\n".repeat(50);
    let down = "a,-9223372036854775807\n".repeat(50);
    group_sums.check(format!("k,n\n{up}{down}").as_bytes(), &["k"], &["n"], Ok("k,n\na,0\n")).await;
    let error = r#"group "a", column "n": the sum 461168601842738790350 does not fit in 64 bits"#;
    group_sums.check(format!("k,n\n{up}").as_bytes(), &["k"], &["n"], Err(error)).await;
    let error = r#"group "a", "x", column "n": the sum 18446744073709551614 does not fit in 64 bits"#;
    let csv = b"k,l,m,n\na,x,1,9223372036854775807\na,x,1,9223372036854775807\n";
    group_sums.check(csv, &["k", "l"], &["m", "n"], Err(error)).await;
}

#[tokio::test]
async fn the_first_error_is_reported_for_all_byte_ranges() {
    let group_sums = GroupSums::new();
    let good = |count: usize| "\"k,\n\",1\n".repeat(count);
    let cases = [
        ("k,m\na,1\n".to_owned(), r#"the file has no column "n""#),
        ("m,n\na,1\n".to_owned(), r#"the file has no column "k""#),
        (String::new(), "the file has no header row"),
        ("\n".repeat(300), "the file has no header row"),
        ("k,n,k\n".to_owned(), r#"the header (line 1) names two columns "k""#),
        (format!("k,n\n{}a,x\n{}b,y\n", good(30), good(30)), r#"row 31 (line 62), column "n": "x" is not an integer"#),
        (format!("k,n\n{}a,1,2\n{}b,y\n", good(30), good(30)), "row 31 (line 62) has 3 cells, the header has 2"),
        (format!("k,n\n{}a\n", good(99)), "row 100 (line 200) has 1 cell, the header has 2"),
        (
            format!("k,n\n{}a,99999999999999999999\n", good(9)),
            r#"row 10 (line 20), column "n": "99999999999999999999" does not fit in 64 bits"#,
        ),
        (
            format!("k,n\n{}\"a\"b,1\n{}", good(20), good(20)),
            r#"row 21 (line 42), column "k": text after a closing quote: a quote inside a quoted cell is written twice"#,
        ),
        (
            format!("k,n\n{}\"a,1\n{}", good(20), "b,2\n".repeat(40)),
            r#"row 21 (line 42), column "k": a quoted cell is not closed"#,
        ),
        (format!("k,n\n{}a\0,1\nb,x\n", good(20)), r#"row 21 (line 42), column "k": a NUL byte"#),
    ];
    for (csv, error) in cases {
        group_sums.check(csv.as_bytes(), &["k"], &["n"], Err(error)).await;
    }
    let invalid = |row| {
        let hint = "perhaps Windows-1252: save the file as UTF-8";
        format!(r#"row {row} (line {}), column "k": invalid UTF-8 (byte 0xff), {hint}"#, row + 1)
    };
    let csv = [b"k,n\n".as_slice(), &b"a,1\n".repeat(40), b"\xff,1\n", &b"\"\xff\",x\n".repeat(40)].concat();
    group_sums.check(&csv, &["k"], &["n"], Err(&invalid(41))).await;
    // The error in the earlier row comes first, and in one row the error in the group.
    for csv in [&b"k,n\n\xff,1\nb\n"[..], b"k,n\n\xff,1\nb,x\n", b"k,n\n\xff,x\n"] {
        group_sums.check(csv, &["k"], &["n"], Err(&invalid(1))).await;
    }
    let csv = [b"k,n\n".as_slice(), &[0xff; 2000], b",x\n"].concat();
    group_sums.check(&csv, &["k"], &["n"], Err(&invalid(1))).await;
    // NUL separates the cells of a key, so it must not be in a cell.
    let csv = b"k,l,n\na,b\0c,1\na\0b,c,1\n";
    group_sums.check(csv, &["k", "l"], &["n"], Err(r#"row 1 (line 2), column "l": a NUL byte"#)).await;
}

/// From the middle of a file it cannot be seen whether a quote is open, so a byte range starts with a guess. This file leads
/// to wrong ones: a quoted cell contains more valid rows than a guess looks at, and other rows contain a quote as text.
#[tokio::test]
async fn wrong_guesses_are_corrected() {
    let group_sums = GroupSums::new();
    let inner = "inside,1000000\n".repeat(40_000);
    let csv = format!("k,n\n{}\"{inner}\",5\n{}", "a,1\n".repeat(40), "5\" pipe,2\n".repeat(40_000));
    let expected = format!("k,n\n\"5\"\" pipe\",80000\na,40\n\"{inner}\",5\n");
    for partitions_max in 1..20 {
        let plan =
            Plan { partitions_max, partition_bytes_min: 1000, task_bytes: 50_000, bytes_max: 10_000_000, ..ROOMY };
        let got = group_sums.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await;
        assert!(got.as_deref() == Ok(expected.as_str()), "{plan:?}");
        let wrong = format!("{csv}a,x\n");
        let got = group_sums.group_sum(wrong.as_bytes(), &["k"], &["n"], plan).await;
        assert_eq!(got, Err(r#"row 40042 (line 80043), column "n": "x" is not an integer"#.to_owned()), "{plan:?}");
    }
}

#[tokio::test]
async fn cells_longer_than_the_memory() {
    let group_sums = GroupSums::new();
    let (mut csv, mut expected) = ("k,n\n".to_owned(), "k,n\n".to_owned());
    for (key, total) in [("a", 6), ("b", 60), ("c", -3)] {
        writeln!(expected, "{},{total}", key.repeat(100_000)).expect("in memory");
    }
    for _ in 0..3 {
        for (key, value) in [("b", 20), ("c", -1), ("a", 2)] {
            writeln!(csv, "{},{value}", key.repeat(100_000)).expect("in memory");
        }
    }
    for bytes_max in [1, 1000, 100_000, 200_000, 1_000_000, 100_000_000] {
        let plan = Plan { bytes_max, partition_bytes_min: 10_000, ..NARROW };
        let got = group_sums.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await;
        assert_eq!(got.as_deref(), Ok(expected.as_str()), "{bytes_max}");
    }
}

/// With so little memory a merge reads few spilled files at a time, so it takes several rounds of merges.
#[tokio::test]
async fn many_groups_in_little_memory() {
    let group_sums = GroupSums::new();
    let mut random = fastrand::Rng::with_seed(9);
    let rows: Vec<Vec<String>> = (0..60_000)
        .map(|_| vec![format!("group {}", random.u32(..20_000)), random.i64(-1000..1000).to_string()])
        .collect();
    let mut csv = "k,n\n".to_owned();
    rows.iter().for_each(|row| writeln!(csv, "{}", row.join(",")).expect("in memory"));
    let expected = expected_group_sum(&["k", "n"], &rows, &[], &["k"], &["n"]);
    for bytes_max in [10_000, 100_000, 10_000_000] {
        let plan = Plan { bytes_max, partitions_max: 3, partition_bytes_min: 1000, task_bytes: 50_000, ..ROOMY };
        assert_eq!(group_sums.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await, expected, "{bytes_max}");
    }
}

#[tokio::test]
async fn real_plays_agree_with_a_simple_computation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/plays_100k.csv");
    let Ok(csv) = fs::read(&path) else {
        println!("skipped: {} is missing", path.display());
        return;
    };
    // Read by another CSV reader.
    let rows: Vec<Vec<String>> = csv::Reader::from_reader(csv.as_slice())
        .records()
        .map(|record| record.expect("valid").iter().map(str::to_owned).collect())
        .collect();
    let (by, sum) = (["Song", "Date"], ["Number of Plays"]);
    let expected = expected_group_sum(&["Song", "Date", "Number of Plays"], &rows, &[], &by, &sum).expect("sums");
    assert_eq!(expected.lines().count(), 28_028 + 1);
    let group_sums = GroupSums::new();
    for plan in
        [ROOMY, Plan { bytes_max: 200_000, partitions_max: 5, partition_bytes_min: 1000, task_bytes: 100_000, ..ROOMY }]
    {
        let got = group_sums.group_sum_file(&path, &by, &sum, plan).await.expect("sums");
        assert!(got == expected, "{plan:?} gives other groups");
    }
}

#[tokio::test]
async fn the_parts_of_a_table_are_grouped_together() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    let group_sum = async |by: &[&str], sum: &[&str]| {
        let told = |error: Error| (error.kind(), error.to_string());
        let mut groups = engine.group_sum(Origin::SERVER, spec(by, sum)).await.map_err(told)?;
        let mut all = Vec::new();
        loop {
            let block = groups.next_block().await.map_err(told)?;
            if block.is_empty() {
                return Ok::<_, (Kind, String)>(all);
            }
            all.extend(block.into_iter().map(|group| (group.cells.join("+"), group.totals)));
        }
    };
    assert_eq!(group_sum(&["k"], &["n"]).await, Ok(vec![]), "no parts");
    for index in 0..200 {
        engine.upload_valid(format!("k,n\na,{index}\n\"b,\",1\n")).await;
        engine.upload_valid("n,m\n1000000,2\n").await; // has no k
        engine.upload_valid(format!("n,l,k\n2,x,a\n3,y,c{}\n", index % 2)).await;
    }
    let expected = [("a", 19_900 + 400), ("b,", 200), ("c0", 300), ("c1", 300)];
    let expected = expected.map(|(key, total)| (key.to_owned(), vec![total])).to_vec();
    assert_eq!(group_sum(&["k"], &["n"]).await, Ok(expected));
    assert_eq!(group_sum(&["k"], &["nothing"]).await, Ok(vec![]));
    let lines: String = (0..20_000).map(|index| format!("g{},1\n", index % 2)).collect();
    engine.upload_valid(format!("g,z\n{lines}")).await;
    assert_eq!(
        group_sum(&["g"], &["z"]).await,
        Ok(vec![("g0".to_owned(), vec![10_000]), ("g1".to_owned(), vec![10_000])])
    );

    engine.upload_valid("k,n\na,x\n").await;
    let error = r#"part 602, row 1, column "n": "x" is not an integer"#;
    assert_eq!(group_sum(&["k"], &["n"]).await, Err((Kind::Input, error.to_owned())));
    engine.upload_valid("k,l,m\na,b,1.5\n").await;
    let error = r#"part 603, row 1, column "m": "1.5" is not an integer"#;
    assert_eq!(group_sum(&["k", "l"], &["m"]).await, Err((Kind::Input, error.to_owned())));

    // A file that does not match its receipt any more.
    fs::write(folder.file("parts/601.csv"), format!("g,z\n{}", lines.replace("g1,1\n", "g1\n1\n"))).expect("written");
    let damaged = group_sum(&["g"], &["z"]).await.expect_err("damaged");
    assert_eq!(
        damaged,
        (Kind::DataLoss, "part 601 is damaged: csv: the bytes from 0 to 65536 are not what was written".to_owned())
    );
}

/// Byte ranges inside of parts, which the engine makes in large parts only.
#[tokio::test]
async fn parts_can_be_split_anywhere() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    let mut receipts = Vec::new();
    let mut rows = Vec::new();
    for index in 0..12 {
        // Two cells that are not integers, in part 10 and in part 12.
        let cell = |row| if index >= 9 && row == 20 { "x" } else { "1" };
        let row = |row: u32| vec![format!("{}\n{index}", row % 7), row.to_string(), cell(row).to_owned()];
        let part: Vec<_> = (0..30).map(row).collect();
        let lines: String = part.iter().map(|row| format!("\"{}\",{},{}\r\n", row[0], row[1], row[2])).collect();
        let header = if index % 3 == 1 { "k,other,z\n" } else { "k,n,m\n" };
        if index % 3 != 1 {
            rows.extend(part);
        }
        receipts.push(engine.upload_valid(format!("{header}{lines}")).await);
    }
    drop(engine);

    // The same folder without an engine, because an engine always uses the same plan.
    let group_sums = GroupSums::new();
    let open = async || {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match Store::open(folder.path(), Durability::None) {
                Ok(store) => break Arc::new(store),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await; // a worker is about to let go of it
        }
    };
    let store = open().await;
    let parts: OrdMap<_, _> =
        receipts.iter().map(|receipt| (receipt.part, Arc::new(Part::of(receipt, None)))).collect();
    let group_sum = async |sum: &[&str], plan: Plan| {
        let group_sum = GroupSum { lane: Lane::Question, ..group_sums.with_plan(plan) };
        let parts = Snapshot::of(parts.clone(), OrdMap::new(), OrdSet::new());
        let sources = Sources::parts(Arc::clone(&store), parts);
        let spec = spec(&["k"], sum);
        let header = [spec.by(), spec.sum()].concat();
        let groups = group_sum.run(sources, spec, None, |_| ()).await.map_err(|error| error.to_string())?;
        let csv = groups.write_csv(&header, Vec::new()).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(csv).expect("text"))
    };
    let expected = expected_group_sum(&["k", "n", "m"], &rows, &[], &["k"], &["n"]);
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..200 {
        let plan = Plan {
            bytes_max: random.usize(1..20_000),
            partitions_max: random.usize(1..40),
            partition_bytes_min: random.u64(1..1000),
            task_bytes: random.usize(1..2000),
            columnar_bytes_min: [0, 300, u64::MAX][random.usize(..3)],
            range_bytes: random.usize(1..600),
        };
        assert_eq!(group_sum(&["n"], plan).await, expected, "{plan:?}");
        let error = Err(r#"part 10, row 21, column "m": "x" is not an integer"#.to_owned());
        assert_eq!(group_sum(&["m"], plan).await, error, "{plan:?}");
    }
}

#[tokio::test]
async fn a_dropped_sum_leaves_nothing() {
    let group_sums = GroupSums::new();
    let path = group_sums.folder.path().join("in.csv");
    let rows: String = (0..200_000).map(|index| format!("key {index},1\n")).collect();
    fs::write(&path, format!("k,n\n{rows}")).expect("written");
    let spills = TempDir::new().expect("a temporary folder");
    let plan = Plan { bytes_max: 100_000, partitions_max: 2, partition_bytes_min: 1000, task_bytes: 10_000, ..ROOMY };
    let group_sum = GroupSum { folder: TempFolder::new(spills.path()), ..group_sums.with_plan(plan) };
    let spilled = tokio::sync::Notify::new();
    let progress = |_| {
        if temporary_files(spills.path()) == 2 {
            spilled.notify_one();
        }
    };
    let sources = || Sources::file(&path).expect("opened");
    tokio::select! {
        _ = group_sum.run(sources(), spec(&["k"], &["n"]), None, progress) => panic!("it ended too soon"),
        () = spilled.notified() => {}
    }
    // The workers drop the remaining tasks of the dropped sum, and run those of others.
    group_sums.check(b"k,n\na,1\n", &["k"], &["n"], Ok("k,n\na,1\n")).await;
    wait_until("its spilled files are gone", || temporary_files(spills.path()) == 0).await;

    // Groups that are dropped before they are read leave nothing either.
    let groups = group_sum.run(sources(), spec(&["k"], &["n"]), None, |_| ()).await.expect("sums");
    assert_eq!(temporary_files(spills.path()), 1, "spilled files that are being merged");
    let mut stored = groups.store().await.expect("stored");
    wait_until("only the result is left", || temporary_files(spills.path()) == 1).await;
    for _ in 0..3 {
        assert!(!stored.next_block().await.expect("groups").is_empty());
    }
    drop(stored);
    wait_until("the result is gone", || temporary_files(spills.path()) == 0).await;
}

/// A sum may be dropped while a worker computes a part of it.
#[tokio::test]
async fn the_result_of_a_dropped_call_is_dropped() {
    let group_sums = GroupSums::new();
    let made = Arc::new(());
    let (value, (begins, begun), (go_on, wait)) = (Arc::clone(&made), oneshot::channel(), mpsc::channel());
    let mut task = Box::pin(group_sums.workers().run(Lane::Job, move || {
        begins.send(()).expect("received");
        wait.recv().expect("sent");
        value
    }));
    assert!(poll!(&mut task).is_pending(), "the worker waits");
    in_time("a worker begins", begun).await.expect("begun");
    drop(task);
    go_on.send(()).expect("it waits");
    wait_until("it is dropped", || Arc::strong_count(&made) == 1).await;
}

/// Groups that a reader has not fetched yet are stored on disk. They have any length, and come in blocks of limited size.
#[tokio::test]
async fn stored_groups_are_read_back_unchanged() {
    let group_sums = GroupSums::new();
    let mut random = fastrand::Rng::with_seed(5);
    let (mut csv, mut expected) = ("k,l,n,m\n".to_owned(), Vec::new());
    for index in 0..30_000 {
        let (value, other) = (random.i64(-9_000_000_000_000..9_000_000_000_000), random.i64(..));
        let length = if index % 5000 == 4000 { 25_000 } else { 1 };
        let cells = vec![format!("{index:05}"), "long".repeat(length)];
        writeln!(csv, "{},{value},{other}", cells.join(",")).expect("in memory");
        expected.push(Group { cells, totals: vec![value, other] });
    }
    let path = group_sums.folder.path().join("in.csv");
    for (bytes_max, rows) in [(200_000, 30_000), (64 << 20, 30_000), (64 << 20, 10), (64 << 20, 0)] {
        let lines: Vec<&str> = csv.split_inclusive('\n').take(rows + 1).collect();
        fs::write(&path, lines.concat()).expect("written");
        let group_sum = group_sums.with_plan(Plan { bytes_max, ..ROOMY });
        let sources = Sources::file(&path).expect("opened");
        let groups = group_sum.run(sources, spec(&["k", "l"], &["n", "m"]), None, |_| ()).await.expect("sums");
        let mut stored = groups.store().await.expect("stored");
        let mut got = Vec::new();
        loop {
            let block = stored.next_block().await.expect("groups");
            let text_bytes = |group: &Group| group.cells.iter().map(String::len).sum::<usize>();
            let block_bytes: usize = block.iter().map(text_bytes).sum();
            assert!(block.len() <= 1 || block_bytes <= GROUP_BLOCK_BYTES, "{block_bytes} bytes in a block");
            if block.is_empty() {
                break;
            }
            got.extend(block);
        }
        assert!(got == expected[..rows], "{bytes_max} bytes, {rows} rows: other groups");
        assert!(stored.next_block().await.expect("nothing").is_empty(), "the end is the end");
    }
}

/// Several byte ranges that all contain long and short rows.
#[tokio::test]
async fn long_rows_are_read_one_at_a_time() {
    let group_sums = GroupSums::new();
    let mut random = fastrand::Rng::with_seed(6);
    let rows: Vec<Vec<String>> = (0..300)
        .map(|_| {
            let length = [1, 2, 60_000, 70_000, 140_000, 200_000][random.usize(..6)];
            vec![["a", "b\"", "c,"][random.usize(..3)].repeat(length), random.i16(..).to_string()]
        })
        .collect();
    let mut csv = "k,n\n".to_owned();
    for row in &rows {
        writeln!(csv, "{},{}", random_csv_cell(&row[0], &mut random), row[1]).expect("in memory");
    }
    let expected = expected_group_sum(&["k", "n"], &rows, &[], &["k"], &["n"]);
    for (partitions_max, task_bytes) in [(1, TASK_BYTES), (4, 100_000), (7, 10_000), (8, 3_000_000)] {
        let plan = Plan { bytes_max: 1_000_000, partitions_max, partition_bytes_min: 1000, task_bytes, ..ROOMY };
        assert!(group_sums.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await == expected, "{plan:?}");
    }
    let wrong = format!("{csv}{},x\n", "d".repeat(150_000));
    let plan =
        Plan { bytes_max: 1_000_000, partitions_max: 4, partition_bytes_min: 1000, task_bytes: 100_000, ..ROOMY };
    let error = Err(r#"row 301 (line 302), column "n": "x" is not an integer"#.to_owned());
    assert_eq!(group_sums.group_sum(wrong.as_bytes(), &["k"], &["n"], plan).await, error);
}

#[tokio::test]
async fn group_sums_wait_for_their_turn_and_few_are_open() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid("k,n\na,1\n").await;
    let ask = || Box::pin(engine.group_sum(Origin::SERVER, spec(&["k"], &["n"])));
    // It holds the one permit, because it is not polled again.
    let mut first = ask();
    assert!(poll!(&mut first).is_pending(), "it waits for a worker");
    let mut waiting: Vec<_> = (1..GROUP_CALLS_MAX).map(|_| ask()).collect();
    for sum in &mut waiting {
        assert!(poll!(sum).is_pending(), "it waits for its turn");
    }
    let Err(error) = in_time("a refusal", ask()).await else { panic!("there is one call too many") };
    let says = format!("{GROUP_CALLS_MAX} group sums are running or being read, which is the limit: try again");
    assert_eq!((error.kind(), error.to_string()), (Kind::Exhausted, says));
    let path = folder.file("file.csv");
    fs::write(&path, "k,n\nfile,7\n").expect("written");
    let file = Reader::open(&path).expect("opened");
    let mut job = Box::pin(engine.group_sum_file(Lane::Job, file, spec(&["k"], &["n"]), |_| ()));
    assert!(poll!(&mut job).is_pending(), "a job waits beside them");

    // A sum is over the parts that exist when its turn comes.
    engine.upload_valid("k,n\na,1\n").await;
    drop(first);
    let mut unread = Vec::new();
    for sum in waiting {
        let mut groups = in_time("its turn", sum).await.expect("groups");
        assert_eq!(in_time("a block", groups.next_block()).await.expect("groups")[0].totals, [2]);
        unread.push(groups);
    }
    let job = in_time("the job's turn", job).await.expect("groups");
    let header = ["k".to_owned(), "n".to_owned()];
    let csv = in_time("the job's groups", job.write_csv(&header, Vec::new())).await;
    assert_eq!(csv.expect("groups"), b"k,n\nfile,7\n");

    // Sums that are not read to their end do not keep others waiting, but each holds the permit of a call.
    unread.push(in_time("a turn", ask()).await.expect("the permit of the first"));
    let Err(error) = in_time("a refusal", ask()).await else { panic!("there is one call too many") };
    assert_eq!(error.kind(), Kind::Exhausted);
    unread.pop();
    in_time("a turn", ask()).await.expect("a permit is free again");
}

#[tokio::test]
async fn the_groups_of_the_slowest_client_are_dropped_when_another_call_waits() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid("k,n\na,1\n").await;
    let client = |connection| Origin { connection: Some(connection), peer: None };
    let ask = async |connection| engine.group_sum(client(connection), spec(&["k"], &["n"])).await;
    let mut open = Vec::new();
    for connection in [1, 2] {
        for _ in 0..GROUP_CALLS_MAX / 2 {
            open.push(in_time("a turn", ask(connection)).await.expect("within its share"));
        }
    }
    // As if the client of one of them had not read for a while; the others do not keep the server waiting.
    open[3].pace().waits();
    let mut groups = in_time("a permit", async {
        loop {
            match ask(3).await {
                Ok(groups) => break groups,
                Err(error) => assert_eq!(error.kind(), Kind::Exhausted),
            }
        }
    })
    .await;
    assert_eq!(groups.next_block().await.expect("groups")[0].totals, [1]);
    for (index, groups) in open.iter_mut().enumerate() {
        let block = in_time("an answer", groups.next_block()).await;
        match (index, block) {
            (3, block) => assert!(matches!(block, Err(Error::TooSlow { .. })), "{block:?}"),
            (_, block) => assert_eq!(block.expect("its groups")[0].totals, [1]),
        }
    }
}

#[test]
fn questions_that_are_errors() {
    let parse = |by: &[&str], sum: &[&str]| {
        let lists = |lists: &[&str]| lists.iter().map(|&list| list.to_owned()).collect::<Vec<_>>();
        GroupBy::parse(&lists(by), &lists(sum)).map_err(|error| error.to_string())
    };
    assert_eq!(parse(&["a,b", "\"c,\"\"d\""], &["e"]), Ok(spec(&["a", "b", "c,\"d"], &["e"])));
    let refused = [
        (parse(&[], &["a"]), "a group sum needs a column to group by"),
        (parse(&["a"], &[]), "a group sum needs a column to sum"),
        (parse(&["a,b,a"], &["n"]), "a group sum names column \"a\" twice"),
        (parse(&["a"], &["a"]), "a group sum names column \"a\" twice"),
        (parse(&["a,\"b"], &["n"]), "\"a,\\\"b\" is not a list of columns: a quoted cell is not closed"),
        (
            parse(&["\"a\"b"], &["n"]),
            "\"\\\"a\\\"b\" is not a list of columns: text after a closing quote: a quote inside a quoted cell \
             is written twice",
        ),
    ];
    for (parsed, expected) in refused {
        assert_eq!(parsed, Err(expected.to_owned()));
    }
    let name = |letter: &str, bytes| letter.repeat(bytes);
    let four = ["a", "b", "c", "d"].map(|letter| name(letter, 1024));
    assert!(parse(&[&four[..3].join(",")], &[&four[3]]).is_ok(), "4 KiB of names");
    let error = "the columns that a group sum names have more than 4096 bytes together";
    assert_eq!(parse(&[&four.join(",")], &["n"]), Err(error.to_owned()));
    let error = "a group sum names a column with more than 1024 bytes";
    assert_eq!(parse(&[&name("a", 1025)], &["n"]), Err(error.to_owned()));
    assert_eq!(parse(&["a"], &[&name("n", 1025)]), Err(error.to_owned()));
    let many: Vec<String> = (0..64).map(|index| index.to_string()).collect();
    assert_eq!(parse(&[&many.join(",")], &["n"]), Err("a group sum names more than 64 columns".to_owned()));
}
