//! Group sums against a naive oracle: random files from a seed, cut into strands and slices of any size, in memory from
//! too little to plenty. The answer, or the error, must be the same to the letter.
#![allow(clippy::expect_used, clippy::map_err_ignore, reason = "a panic fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{poll, stream};
use imbl::OrdMap;
use tally::{
    engine::{
        Durability, Engine,
        group::{Group, GroupBy, GroupSum, Plan},
        part::Part,
        sources::Sources,
        state::{Lane, Shared},
        store::{Reader, Store, TempFolder},
        workers::Workers,
    },
    error::{Error, Kind},
    limits::{CsvLimits, GROUP_BLOCK_BYTES, GROUP_CALLS_MAX, GROUP_WAITS_MAX, Limits, SLICE_BYTES},
};
use tempfile::{NamedTempFile, TempDir};
use tokio::{sync::oneshot, time::timeout};

const ROOMY: Plan = Plan { bytes_max: 64 << 20, strands_max: 1, strand_bytes_min: 1 << 20, slice_bytes: SLICE_BYTES };
/// Every cut that a file of a few hundred bytes can have, and a run every few rows.
const NARROW: Plan = Plan { bytes_max: 4096, strands_max: 8, strand_bytes_min: 16, slice_bytes: 64 };

struct Bench {
    workers: Workers,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let workers = Workers::start(Shared::new()).expect("threads");
        Self { workers, folder: TempDir::new().expect("a temporary folder") }
    }

    /// The result as CSV, or the error's text.
    async fn group_sum(&self, csv: &[u8], by: &[&str], sum: &[&str], plan: Plan) -> Result<String, String> {
        let mut file = NamedTempFile::new_in(self.folder.path()).expect("a file");
        file.write_all(csv).expect("written");
        self.group_sum_file(file.path(), by, sum, plan).await
    }

    async fn group_sum_file(&self, file: &Path, by: &[&str], sum: &[&str], plan: Plan) -> Result<String, String> {
        let text = |error: Error| {
            assert_eq!(error.kind(), Kind::Input, "{error}");
            error.to_string()
        };
        let file = Reader::open(file).expect("opened");
        let file_bytes = file.bytes();
        let spec = spec(by, sum);
        let header = [spec.by(), spec.sum()].concat();
        let group_sum = GroupSum {
            workers: self.workers.clone(),
            lane: Lane::Job,
            folder: TempFolder::new(self.folder.path()),
            plan,
        };
        let told = AtomicU64::new(0);
        let progress = |bytes| told.store(bytes, Ordering::Relaxed);
        let sources = Sources::File { file, limits: CsvLimits::default() };
        let groups = group_sum.run(sources, spec, None, progress).await.map_err(text)?;
        assert_eq!(told.into_inner(), file_bytes, "progress ends at the file's size");
        let csv = groups.write_csv(&header, Vec::new()).await.map_err(text)?;
        Ok(String::from_utf8(csv).expect("text"))
    }

    /// The same answer along every path.
    async fn check(&self, csv: &[u8], by: &[&str], sum: &[&str], expected: Result<&str, &str>) {
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        for plan in [ROOMY, NARROW, Plan { slice_bytes: 1, strands_max: 3, ..NARROW }, Plan { bytes_max: 64, ..NARROW }]
        {
            let got = self.group_sum(csv, by, sum, plan).await;
            assert_eq!(got, expected, "{plan:?}: {:?}", String::from_utf8_lossy(csv));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.workers.close();
    }
}

fn spec(by: &[&str], sum: &[&str]) -> GroupBy {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    GroupBy::new(names(by), names(sum)).expect("columns")
}

/// What a group sum means, in so many lines. The cells are as they were meant, not as they were written.
fn oracle(header: &[&str], rows: &[Vec<String>], by: &[&str], sum: &[&str]) -> Result<String, String> {
    let index = |name: &&str| header.iter().position(|other| other == name).expect("a column");
    let mut groups = BTreeMap::<Vec<&str>, Vec<i128>>::new();
    for (row_index, row) in rows.iter().enumerate() {
        let key = by.iter().map(|name| row[index(name)].as_str()).collect();
        let totals = groups.entry(key).or_insert_with(|| vec![0; sum.len()]);
        for (total, name) in totals.iter_mut().zip(sum) {
            let cell = &row[index(name)];
            if !cell.trim_ascii().is_empty() {
                let wrong = |problem| format!("row {}, column {name:?}: {cell:?} {problem}", row_index + 1);
                let value: i128 = cell.trim_ascii().parse().map_err(|_| wrong("is not an integer"))?;
                *total += i128::from(i64::try_from(value).map_err(|_| wrong("does not fit in 64 bits"))?);
            }
        }
    }
    let mut csv = csv::WriterBuilder::new().from_writer(Vec::new());
    csv.write_record(by.iter().chain(sum)).expect("in memory");
    for (key, totals) in groups {
        for (total, name) in totals.iter().zip(sum) {
            if i64::try_from(*total).is_err() {
                let group = key.iter().map(|cell| format!("{cell:?}")).collect::<Vec<_>>().join(", ");
                return Err(format!("group {group}, column {name:?}: the sum {total} does not fit in 64 bits"));
            }
        }
        let totals = totals.iter().map(i128::to_string);
        csv.write_record(key.iter().map(|&cell| cell.to_owned()).chain(totals)).expect("in memory");
    }
    Ok(String::from_utf8(csv.into_inner().expect("in memory")).expect("text"))
}

/// A cell as RFC 4180 has it, at times quoted without need; a quote that opens no cell is left as it is.
fn written(cell: &str, random: &mut fastrand::Rng) -> String {
    let needs = cell.starts_with('"') || cell.contains([',', '\n', '\r']);
    if needs || random.u8(..4) == 0 { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[tokio::test]
async fn random_files_agree_with_the_oracle() {
    let bench = Bench::new();
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
        for row in &rows {
            let cells: Vec<_> = row.iter().map(|cell| written(cell, &mut random)).collect();
            let end = ["\n", "\r\n", "\r", "\n\n"][random.usize(..4)];
            write!(csv, "{}{end}", cells.join(",")).expect("in memory");
        }
        for (by, sum) in [(&["a", "b"][..], &["n"][..]), (&["b"], &["m", "n"])] {
            let expected = oracle(&["n", "a", "m", "b"], &rows, by, sum);
            for _ in 0..3 {
                let plan = Plan {
                    bytes_max: random.usize(1..20_000),
                    strands_max: random.usize(1..10),
                    strand_bytes_min: random.u64(1..400),
                    slice_bytes: random.usize(1..600),
                };
                let got = bench.group_sum(csv.as_bytes(), by, sum, plan).await;
                assert_eq!(got, expected, "file {file_index}, {plan:?}, {csv:?}");
            }
        }
    }
    wait_until("no file is left", || temporary_files(bench.folder.path()) == 0).await;
}

#[tokio::test]
async fn groups_are_cells_as_texts() {
    let bench = Bench::new();
    let csv = b"\xef\xbb\xbfk,n\r\nb,1\r\"a\",2\n\n a ,3\na,-5\n\"a,\"\"\",\n,7\n\"\",1";
    bench.check(csv, &["k"], &["n"], Ok("k,n\n,8\n a ,3\na,-3\n\"a,\"\"\",0\nb,1\n")).await;
    // Tuples in the order of their cells: "a" before "a!" whatever stands in the next column.
    let csv = b"x,y,n\na!,a,1\na,z,2\na,,3\n\xc3\xbc,a,4\n";
    bench.check(csv, &["x", "y"], &["n"], Ok("x,y,n\na,,3\na,z,2\na!,a,1\n\u{fc},a,4\n")).await;
    bench.check(csv, &["y", "x"], &["n"], Ok("y,x,n\n,a,3\na,a!,1\na,\u{fc},4\nz,a,2\n")).await;
    // Not "a" + "bc" for "ab" + "c".
    bench.check(b"x,y,n\na,bc,1\nab,c,1\n", &["x", "y"], &["n"], Ok("x,y,n\na,bc,1\nab,c,1\n")).await;
    bench.check(b"k,n\n", &["k"], &["n"], Ok("k,n\n")).await;
    bench.check(b"k,n", &["n"], &["k"], Ok("n,k\n")).await;
    bench.check(b",n\n1,2\n", &[""], &["n"], Ok(",n\n1,2\n")).await;
    // Cuts before the header.
    let csv = format!("{}k,n\n{}", "\n".repeat(300), "a,1\n".repeat(9));
    bench.check(csv.as_bytes(), &["k"], &["n"], Ok("k,n\na,9\n")).await;
}

#[tokio::test]
async fn totals_are_exact_or_an_error() {
    let bench = Bench::new();
    let csv = "k,n\na,9223372036854775807\nb,-9223372036854775808\na,1\nb,-1\na,-1\n";
    let error = r#"group "b", column "n": the sum -9223372036854775809 does not fit in 64 bits"#;
    bench.check(csv.as_bytes(), &["k"], &["n"], Err(error)).await;
    let csv = format!("{csv}b,1\n");
    let expected = "k,n\na,9223372036854775807\nb,-9223372036854775808\n";
    bench.check(csv.as_bytes(), &["k"], &["n"], Ok(expected)).await;
    // Far beyond 64 bits and back.
    let up = "a,9223372036854775807\n".repeat(50);
    let down = "a,-9223372036854775807\n".repeat(50);
    bench.check(format!("k,n\n{up}{down}").as_bytes(), &["k"], &["n"], Ok("k,n\na,0\n")).await;
    let error = r#"group "a", column "n": the sum 461168601842738790350 does not fit in 64 bits"#;
    bench.check(format!("k,n\n{up}").as_bytes(), &["k"], &["n"], Err(error)).await;
    let error = r#"group "a", "x", column "n": the sum 18446744073709551614 does not fit in 64 bits"#;
    let csv = b"k,l,m,n\na,x,1,9223372036854775807\na,x,1,9223372036854775807\n";
    bench.check(csv, &["k", "l"], &["m", "n"], Err(error)).await;
}

#[tokio::test]
async fn the_first_error_is_told_whatever_the_cuts() {
    let bench = Bench::new();
    let good = |count: usize| "\"k,\n\",1\n".repeat(count);
    let cases = [
        ("k,m\na,1\n".to_owned(), r#"the file has no column "n""#),
        ("m,n\na,1\n".to_owned(), r#"the file has no column "k""#),
        (String::new(), "the file has no header row"),
        ("\n".repeat(300), "the file has no header row"),
        ("k,n,k\n".to_owned(), r#"the header names two columns "k""#),
        (format!("k,n\n{}a,x\n{}b,y\n", good(30), good(30)), r#"row 31, column "n": "x" is not an integer"#),
        (format!("k,n\n{}a,1,2\n{}b,y\n", good(30), good(30)), "row 31 has 3 cells, the header has 2"),
        (format!("k,n\n{}a\n", good(99)), "row 100 has 1 cell, the header has 2"),
        (
            format!("k,n\n{}a,99999999999999999999\n", good(9)),
            r#"row 10, column "n": "99999999999999999999" does not fit in 64 bits"#,
        ),
        (format!("k,n\n{}\"a\"b,1\n{}", good(20), good(20)), r#"row 21, column "k": text after a closing quote"#),
        (
            format!("k,n\n{}\"a,1\n{}", good(20), "b,2\n".repeat(40)),
            r#"row 21, column "k": a quoted cell is not closed"#,
        ),
        (format!("k,n\n{}a\0,1\nb,x\n", good(20)), r#"row 21, column "k": a NUL byte"#),
    ];
    for (csv, error) in cases {
        bench.check(csv.as_bytes(), &["k"], &["n"], Err(error)).await;
    }
    let csv = [b"k,n\n".as_slice(), &b"a,1\n".repeat(40), b"\xff,1\n", &b"\"\xff\",x\n".repeat(40)].concat();
    bench.check(&csv, &["k"], &["n"], Err(r#"row 41, column "k": invalid UTF-8"#)).await;
    // The earlier row first, and in a row the group first.
    for csv in [&b"k,n\n\xff,1\nb\n"[..], b"k,n\n\xff,1\nb,x\n", b"k,n\n\xff,x\n"] {
        bench.check(csv, &["k"], &["n"], Err(r#"row 1, column "k": invalid UTF-8"#)).await;
    }
    let csv = [b"k,n\n".as_slice(), &[0xff; 2000], b",x\n"].concat();
    bench.check(&csv, &["k"], &["n"], Err(r#"row 1, column "k": invalid UTF-8"#)).await;
    // A NUL does not make other cells of the same key.
    let csv = b"k,l,n\na,b\0c,1\na\0b,c,1\n";
    bench.check(csv, &["k", "l"], &["n"], Err(r#"row 1, column "l": a NUL byte"#)).await;
}

/// From the middle of a file nobody can see whether a quote is open. Here is a quoted cell that holds rows as they
/// should be, and more of them than are looked at to guess; and rows in which a quote is text.
#[tokio::test]
async fn wrong_guesses_are_made_good() {
    let bench = Bench::new();
    let inner = "inside,1000000\n".repeat(40_000);
    let csv = format!("k,n\n{}\"{inner}\",5\n{}", "a,1\n".repeat(40), "5\" pipe,2\n".repeat(40_000));
    let expected = format!("k,n\n\"5\"\" pipe\",80000\na,40\n\"{inner}\",5\n");
    for strands_max in 1..20 {
        let plan = Plan { strands_max, strand_bytes_min: 1000, slice_bytes: 50_000, bytes_max: 10_000_000 };
        let got = bench.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await;
        assert!(got.as_deref() == Ok(expected.as_str()), "{plan:?}");
        let wrong = format!("{csv}a,x\n");
        let got = bench.group_sum(wrong.as_bytes(), &["k"], &["n"], plan).await;
        assert_eq!(got, Err(r#"row 40042, column "n": "x" is not an integer"#.to_owned()), "{plan:?}");
    }
}

#[tokio::test]
async fn cells_longer_than_the_memory() {
    let bench = Bench::new();
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
        let plan = Plan { bytes_max, strand_bytes_min: 10_000, ..NARROW };
        let got = bench.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await;
        assert_eq!(got.as_deref(), Ok(expected.as_str()), "{bytes_max}");
    }
}

/// So little memory that a merge reads few runs at once, and there must be merges of merges.
#[tokio::test]
async fn many_groups_in_little_memory() {
    let bench = Bench::new();
    let mut random = fastrand::Rng::with_seed(9);
    let rows: Vec<Vec<String>> = (0..60_000)
        .map(|_| vec![format!("group {}", random.u32(..20_000)), random.i64(-1000..1000).to_string()])
        .collect();
    let mut csv = "k,n\n".to_owned();
    rows.iter().for_each(|row| writeln!(csv, "{}", row.join(",")).expect("in memory"));
    let expected = oracle(&["k", "n"], &rows, &["k"], &["n"]);
    for bytes_max in [10_000, 100_000, 10_000_000] {
        let plan = Plan { bytes_max, strands_max: 3, strand_bytes_min: 1000, slice_bytes: 50_000 };
        assert_eq!(bench.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await, expected, "{bytes_max}");
    }
}

#[tokio::test]
async fn plays_as_the_oracle_has_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/plays_100k.csv");
    let Ok(csv) = fs::read(&path) else {
        println!("steps aside: {} is missing", path.display());
        return;
    };
    // An independent reader.
    let rows: Vec<Vec<String>> = csv::Reader::from_reader(csv.as_slice())
        .records()
        .map(|record| record.expect("valid").iter().map(str::to_owned).collect())
        .collect();
    let (by, sum) = (["Song", "Date"], ["Number of Plays"]);
    let expected = oracle(&["Song", "Date", "Number of Plays"], &rows, &by, &sum).expect("sums");
    assert_eq!(expected.lines().count(), 28_028 + 1);
    let bench = Bench::new();
    for plan in [ROOMY, Plan { bytes_max: 200_000, strands_max: 5, strand_bytes_min: 1000, slice_bytes: 100_000 }] {
        let got = bench.group_sum_file(&path, &by, &sum, plan).await.expect("sums");
        assert!(got == expected, "{plan:?} gives other groups");
    }
}

#[tokio::test]
async fn parts_of_a_table_are_one_file_after_the_other() {
    let folder = TempDir::new().expect("a temporary folder");
    let (engine, _) = Engine::open(folder.path(), Durability::None, Limits::default()).await.expect("a data folder");
    let upload = async |csv: String| {
        engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("valid");
    };
    let group_sum = async |by: &[&str], sum: &[&str]| {
        let told = |error: Error| (error.kind(), error.to_string());
        let mut groups = engine.group_sum(spec(by, sum)).await.map_err(told)?;
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
        upload(format!("k,n\na,{index}\n\"b,\",1\n")).await;
        upload("n,m\n1000000,2\n".to_owned()).await; // has no k
        upload(format!("n,l,k\n2,x,a\n3,y,c{}\n", index % 2)).await;
    }
    let expected = [("a", 19_900 + 400), ("b,", 200), ("c0", 300), ("c1", 300)];
    let expected = expected.map(|(key, total)| (key.to_owned(), vec![total])).to_vec();
    assert_eq!(group_sum(&["k"], &["n"]).await, Ok(expected));
    assert_eq!(group_sum(&["k"], &["nothing"]).await, Ok(vec![]));
    let lines: String = (0..20_000).map(|index| format!("g{},1\n", index % 2)).collect();
    upload(format!("g,z\n{lines}")).await;
    assert_eq!(
        group_sum(&["g"], &["z"]).await,
        Ok(vec![("g0".to_owned(), vec![10_000]), ("g1".to_owned(), vec![10_000])])
    );

    upload("k,n\na,x\n".to_owned()).await;
    let error = r#"part 602, row 1, column "n": "x" is not an integer"#;
    assert_eq!(group_sum(&["k"], &["n"]).await, Err((Kind::Input, error.to_owned())));
    upload("k,l,m\na,b,1.5\n".to_owned()).await;
    let error = r#"part 603, column "m": its type is Float64, not an integer"#;
    assert_eq!(group_sum(&["k", "l"], &["m"]).await, Err((Kind::Input, error.to_owned())));

    // A file that is no longer what its receipt says.
    fs::write(folder.path().join("parts/601.csv"), format!("g,z\n{}", lines.replace("g1,1\n", "g1\n1\n")))
        .expect("written");
    let damaged = group_sum(&["g"], &["z"]).await.expect_err("damaged");
    assert_eq!(
        damaged,
        (Kind::DataLoss, "part 601 is damaged: csv: the bytes from 0 to 65536 are not what was written".to_owned())
    );
    engine.close();
}

/// Cuts inside parts, which the engine makes in large ones only.
#[tokio::test]
async fn parts_may_be_cut_anywhere() {
    let folder = TempDir::new().expect("a temporary folder");
    let (engine, _) = Engine::open(folder.path(), Durability::None, Limits::default()).await.expect("a data folder");
    let mut receipts = Vec::new();
    let mut rows = Vec::new();
    for index in 0..12 {
        // Two cells that are no integers, in part 10 and in part 12.
        let cell = |row| if index >= 9 && row == 20 { "x" } else { "1" };
        let row = |row: u32| vec![format!("{}\n{index}", row % 7), row.to_string(), cell(row).to_owned()];
        let part: Vec<_> = (0..30).map(row).collect();
        let lines: String = part.iter().map(|row| format!("\"{}\",{},{}\r\n", row[0], row[1], row[2])).collect();
        let header = if index % 3 == 1 { "k,other,z\n" } else { "k,n,m\n" };
        if index % 3 != 1 {
            rows.extend(part);
        }
        let csv = Bytes::from(format!("{header}{lines}"));
        receipts.push(engine.upload(stream::iter([Ok::<_, Error>(csv)])).await.expect("valid"));
    }
    engine.close();
    drop(engine);

    // The same folder without an engine, whose sums have one plan only.
    let bench = Bench::new();
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
        let folder = TempFolder::new(bench.folder.path());
        let group_sum = GroupSum { workers: bench.workers.clone(), lane: Lane::Question, folder, plan };
        let sources = Sources::Parts { store: Arc::clone(&store), parts: parts.clone() };
        let spec = spec(&["k"], sum);
        let header = [spec.by(), spec.sum()].concat();
        let groups = group_sum.run(sources, spec, None, |_| ()).await.map_err(|error| error.to_string())?;
        let csv = groups.write_csv(&header, Vec::new()).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(csv).expect("text"))
    };
    let expected = oracle(&["k", "n", "m"], &rows, &["k"], &["n"]);
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..200 {
        let plan = Plan {
            bytes_max: random.usize(1..20_000),
            strands_max: random.usize(1..40),
            strand_bytes_min: random.u64(1..1000),
            slice_bytes: random.usize(1..2000),
        };
        assert_eq!(group_sum(&["n"], plan).await, expected, "{plan:?}");
        let error = Err(r#"part 10, row 21, column "m": "x" is not an integer"#.to_owned());
        assert_eq!(group_sum(&["m"], plan).await, error, "{plan:?}");
    }
}

#[tokio::test]
async fn a_dropped_sum_leaves_nothing() {
    let bench = Bench::new();
    let path = bench.folder.path().join("in.csv");
    let rows: String = (0..200_000).map(|index| format!("key {index},1\n")).collect();
    fs::write(&path, format!("k,n\n{rows}")).expect("written");
    let spills = TempDir::new().expect("a temporary folder");
    let plan = Plan { bytes_max: 100_000, strands_max: 2, strand_bytes_min: 1000, slice_bytes: 10_000 };
    let folder = TempFolder::new(spills.path());
    let group_sum = GroupSum { workers: bench.workers.clone(), lane: Lane::Job, folder, plan };
    let spilled = tokio::sync::Notify::new();
    let progress = |_| {
        if temporary_files(spills.path()) == 2 {
            spilled.notify_one();
        }
    };
    let sources = || Sources::File { file: Reader::open(&path).expect("opened"), limits: CsvLimits::default() };
    tokio::select! {
        _ = group_sum.run(sources(), spec(&["k"], &["n"]), None, progress) => panic!("it ends too soon"),
        () = spilled.notified() => {}
    }
    // The workers do what is left, none of it for the one who has gone, and are there for others.
    bench.check(b"k,n\na,1\n", &["k"], &["n"], Ok("k,n\na,1\n")).await;
    wait_until("its runs are gone", || temporary_files(spills.path()) == 0).await;

    // Nor do groups that are dropped before they were read, wherever they are.
    let groups = group_sum.run(sources(), spec(&["k"], &["n"]), None, |_| ()).await.expect("sums");
    assert_eq!(temporary_files(spills.path()), 1, "runs that are being merged");
    let mut stored = groups.store().await.expect("stored");
    wait_until("only the result is left", || temporary_files(spills.path()) == 1).await;
    for _ in 0..3 {
        assert!(!stored.next_block().await.expect("groups").is_empty());
    }
    drop(stored);
    wait_until("the result is gone", || temporary_files(spills.path()) == 0).await;
}

/// Which is what a sum may be doing when it is dropped.
#[tokio::test]
async fn what_a_worker_makes_for_nobody_is_dropped() {
    let bench = Bench::new();
    let made = Arc::new(());
    let (value, (begins, begun), (go_on, wait)) = (Arc::clone(&made), oneshot::channel(), mpsc::channel());
    let mut slice = Box::pin(bench.workers.run(Lane::Job, move || {
        begins.send(()).expect("heard");
        wait.recv().expect("told");
        value
    }));
    assert!(poll!(&mut slice).is_pending(), "the worker waits");
    in_time("a worker begins", begun).await.expect("begun");
    drop(slice);
    go_on.send(()).expect("it waits");
    wait_until("it is dropped", || Arc::strong_count(&made) == 1).await;
}

/// The files in a folder that this process has open and that have no name. None where there is no /proc.
fn temporary_files(folder: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let files = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    files
        .filter(|file| file.starts_with(folder) && file.to_string_lossy().ends_with(" (deleted)"))
        .collect::<BTreeSet<_>>()
        .len()
}

/// What a lost permit would make wait for ever.
async fn in_time<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(60), wanted).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("waited in vain: {what}"),
    }
}

/// Waits for what has no event.
async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::task::yield_now().await;
    }
}

/// What a reader has not fetched is on disk and whole: groups of any length, in blocks that any client takes.
#[tokio::test]
async fn stored_groups_are_the_groups() {
    let bench = Bench::new();
    let mut random = fastrand::Rng::with_seed(5);
    let (mut csv, mut expected) = ("k,l,n,m\n".to_owned(), Vec::new());
    for index in 0..30_000 {
        let (value, other) = (random.i64(-9_000_000_000_000..9_000_000_000_000), random.i64(..));
        let length = if index % 5000 == 4000 { 25_000 } else { 1 };
        let cells = vec![format!("{index:05}"), "long".repeat(length)];
        writeln!(csv, "{},{value},{other}", cells.join(",")).expect("in memory");
        expected.push(Group { cells, totals: vec![value, other] });
    }
    let path = bench.folder.path().join("in.csv");
    for (bytes_max, rows) in [(200_000, 30_000), (64 << 20, 30_000), (64 << 20, 10), (64 << 20, 0)] {
        let lines: Vec<&str> = csv.split_inclusive('\n').take(rows + 1).collect();
        fs::write(&path, lines.concat()).expect("written");
        let folder = TempFolder::new(bench.folder.path());
        let plan = Plan { bytes_max, ..ROOMY };
        let group_sum = GroupSum { workers: bench.workers.clone(), lane: Lane::Job, folder, plan };
        let sources = Sources::File { file: Reader::open(&path).expect("opened"), limits: CsvLimits::default() };
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
        assert!(got == expected[..rows], "{plan:?}, {rows} rows: other groups");
        assert!(stored.next_block().await.expect("nothing").is_empty(), "the end is the end");
    }
}

/// Several strands that all meet long rows, and short ones beside them.
#[tokio::test]
async fn long_rows_are_read_in_turn() {
    let bench = Bench::new();
    let mut random = fastrand::Rng::with_seed(6);
    let rows: Vec<Vec<String>> = (0..300)
        .map(|_| {
            let length = [1, 2, 60_000, 70_000, 140_000, 200_000][random.usize(..6)];
            vec![["a", "b\"", "c,"][random.usize(..3)].repeat(length), random.i16(..).to_string()]
        })
        .collect();
    let mut csv = "k,n\n".to_owned();
    for row in &rows {
        writeln!(csv, "{},{}", written(&row[0], &mut random), row[1]).expect("in memory");
    }
    let expected = oracle(&["k", "n"], &rows, &["k"], &["n"]);
    for (strands_max, slice_bytes) in [(1, SLICE_BYTES), (4, 100_000), (7, 10_000), (8, 3_000_000)] {
        let plan = Plan { bytes_max: 1_000_000, strands_max, strand_bytes_min: 1000, slice_bytes };
        assert!(bench.group_sum(csv.as_bytes(), &["k"], &["n"], plan).await == expected, "{plan:?}");
    }
    let wrong = format!("{csv}{},x\n", "d".repeat(150_000));
    let plan = Plan { bytes_max: 1_000_000, strands_max: 4, strand_bytes_min: 1000, slice_bytes: 100_000 };
    let error = Err(r#"row 301, column "n": "x" is not an integer"#.to_owned());
    assert_eq!(bench.group_sum(wrong.as_bytes(), &["k"], &["n"], plan).await, error);
}

#[tokio::test]
async fn sums_wait_for_their_turn_and_not_too_many() {
    let folder = TempDir::new().expect("a temporary folder");
    let (engine, _) = Engine::open(folder.path(), Durability::None, Limits::default()).await.expect("a data folder");
    let upload = async || {
        engine.upload(stream::iter([Ok::<_, Error>(Bytes::from_static(b"k,n\na,1\n"))])).await.expect("valid");
    };
    upload().await;
    let ask = || Box::pin(engine.group_sum(spec(&["k"], &["n"])));
    // It has the room for as long as nobody polls it again.
    let mut first = ask();
    assert!(poll!(&mut first).is_pending(), "it waits for a worker");
    let mut waiting: Vec<_> = (0..GROUP_WAITS_MAX).map(|_| ask()).collect();
    for sum in &mut waiting {
        assert!(poll!(sum).is_pending(), "it waits for its turn");
    }
    let Err(error) = in_time("a refusal", ask()).await else { panic!("one more waits") };
    let says = format!("{GROUP_WAITS_MAX} group sums wait for their turn, which is the limit: try again");
    assert_eq!((error.kind(), error.to_string()), (Kind::Exhausted, says));
    let path = folder.path().join("file.csv");
    fs::write(&path, "k,n\nfile,7\n").expect("written");
    let file = Reader::open(&path).expect("opened");
    let mut job = Box::pin(engine.group_sum_file(Lane::Job, file, spec(&["k"], &["n"]), |_| ()));
    assert!(poll!(&mut job).is_pending(), "a job waits beside them");

    // Their sums are of the parts that are there when their turn comes.
    upload().await;
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

    // Those that nobody reads to their end hold no turn, but each the place of a call.
    while unread.len() < GROUP_CALLS_MAX {
        unread.push(in_time("a turn", ask()).await.expect("a place"));
    }
    let Err(error) = in_time("a refusal", ask()).await else { panic!("one more has a place") };
    let says =
        format!("{GROUP_CALLS_MAX} group sums are under way, their answers being read, which is the limit: try again");
    assert_eq!((error.kind(), error.to_string()), (Kind::Exhausted, says));
    unread.pop();
    in_time("a turn", ask()).await.expect("a place is free again");
    engine.close();
}

#[test]
fn what_is_no_question() {
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
        (parse(&["a,\"b"], &["n"]), "\"a,\\\"b\" is no list of columns: a quoted cell is not closed"),
        (parse(&["\"a\"b"], &["n"]), "\"\\\"a\\\"b\" is no list of columns: text after a closing quote"),
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
