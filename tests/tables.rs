//! Tables through the engine: named cases, hostile inputs, and random tables from a seed against a naive oracle.
//! Every table goes along every path, whole and in random blocks, and both formats must answer alike.
#![allow(clippy::expect_used, clippy::map_err_ignore, reason = "a panic fails the test")]

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use tally::{
    engine::{
        Durability, Engine,
        part::{ColumnType, Format, Receipt},
    },
    error::Error,
    limits::{CsvLimits, Limits},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

struct Table {
    engine: Engine,
    folder: TempDir,
}

impl Table {
    async fn new() -> Self {
        Self::with_limits(Limits::default()).await
    }

    async fn with_limits(limits: Limits) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let (engine, found) = Engine::open(folder.path(), Durability::None, limits).await.expect("a data folder");
        assert_eq!(found.leftovers + found.quarantined.len(), 0);
        Self { engine, folder }
    }

    /// Uploads a file in blocks that end at `cuts`.
    async fn upload(&self, csv: &[u8], cuts: &[usize]) -> Result<Receipt, String> {
        let mut blocks = Vec::new();
        let mut start = 0;
        for &cut in cuts.iter().chain([&csv.len()]) {
            blocks.push(Ok::<_, Error>(Bytes::copy_from_slice(&csv[start..cut])));
            start = cut;
        }
        self.engine.upload(stream::iter(blocks)).await.map_err(|error| error.to_string())
    }

    /// The sum that both formats agree on.
    async fn sum(&self, column: &str) -> Result<i64, String> {
        let sum = async |format| match self.engine.column_sum(column, format).await {
            Ok(sum) => Ok(sum.total),
            Err(error) => Err(error.to_string()),
        };
        let (csv, parquet) = (sum(Format::Csv).await, sum(Format::Parquet).await);
        assert_eq!(csv, parquet, "csv and parquet disagree on {column:?}");
        csv
    }

    /// Files below the data folder that are neither the lock nor of an acknowledged part.
    fn leftovers(&self) -> Vec<String> {
        let parts = self.engine.parts_count() as u64;
        let mut names = Vec::new();
        for folder in ["tmp", "parts", "quarantine"] {
            for entry in std::fs::read_dir(self.folder.path().join(folder)).expect("readable") {
                let name = entry.expect("an entry").file_name().into_string().expect("text");
                let id = name.split('.').next().and_then(|id| id.parse::<u64>().ok());
                if folder != "parts" || id.is_none_or(|id| id > parts) {
                    names.push(format!("{folder}/{name}"));
                }
            }
        }
        names
    }

    /// Drafts are removed by a worker, some time after the answer.
    async fn wait_until_nothing_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.leftovers().is_empty() {
            assert!(Instant::now() < deadline, "these are left: {:?}", self.leftovers());
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.engine.close();
    }
}

/// One file, one question, one answer.
async fn check(csv: &str, column: &str, expected: Result<i64, &str>) {
    let table = Table::new().await;
    let receipt = table.upload(csv.as_bytes(), &[]).await.expect("the file is valid");
    assert_eq!(table.sum(column).await, expected.map_err(str::to_owned), "{csv:?}");
    let stored = std::fs::read(table.folder.path().join(format!("parts/{}.csv", receipt.part))).expect("stored");
    assert_eq!(stored, csv.as_bytes(), "the stored file is what was sent");
}

/// A file that is refused, whole and byte by byte, with this text, and of which nothing is left.
async fn check_refused(csv: &[u8], expected: &str) {
    let table = Table::new().await;
    let every_byte: Vec<usize> = (1..csv.len().min(2000)).collect();
    for cuts in [&[][..], &every_byte] {
        assert_eq!(table.upload(csv, cuts).await.expect_err("invalid"), expected);
    }
    assert_eq!(table.engine.parts_count(), 0);
    table.wait_until_nothing_is_left().await;
}

#[tokio::test]
async fn p3_examples() {
    let table = Table::new().await;
    table.upload(b"x,y,z\n1,2,3\n4,5,6\n", &[]).await.expect("valid");
    table.upload(b"x,y\n5,10\n0,20\n", &[]).await.expect("valid");
    for (column, total) in [("x", 10), ("y", 37), ("z", 9), ("w", 0)] {
        assert_eq!(table.sum(column).await, Ok(total), "{column}");
    }
}

#[tokio::test]
async fn sums_are_defined_on_text() {
    check("a\n1\n2\n", "a", Ok(3)).await;
    check("a\n1\n\n\"\"\n 2 \n", "a", Ok(3)).await;
    check("a,b\n007,x\n+5,y\n,z\n", "a", Ok(12)).await;
    check("a,b\n\"1\",\"x,y\"\r\n\"-\"\"\",2\n", "b", Err(r#"part 1, row 1, column "b": "x,y" is not an integer"#))
        .await;
    check("a,b\n1,\" \t\"\n", "b", Ok(0)).await;
    check("a\n9223372036854775807\n-9223372036854775808\n", "a", Ok(-1)).await;
    check("a\n9223372036854775807\n1\n-1\n", "a", Ok(i64::MAX)).await;
    check("a\n-0\n", "a", Ok(0)).await;
    check("a,b\n", "a", Ok(0)).await;
    check("a,b", "b", Ok(0)).await;
    check(",b\n5,6\n", "", Ok(5)).await;
    check("a\n1\n", "b", Ok(0)).await;
    check("\u{feff}a,b\r1,2\r3,4", "a", Ok(4)).await;
}

#[tokio::test]
async fn sums_that_cannot_be() {
    let overflow = r#"column "a": the sum 9223372036854775808 does not fit in 64 bits"#;
    check("a\n9223372036854775807\n1\n", "a", Err(overflow)).await;
    let underflow = r#"column "a": the sum -9223372036854775809 does not fit in 64 bits"#;
    check("a\n-9223372036854775808\n-1\n", "a", Err(underflow)).await;
    let large = r#"part 1, row 2, column "a": "9223372036854775808" does not fit in 64 bits"#;
    check("a\n1\n9223372036854775808\nx\n", "a", Err(large)).await;
    check("a\n1.5\n", "a", Err(r#"part 1, column "a": its type is Float64, not an integer"#)).await;
    check("a\ntrue\n", "a", Err(r#"part 1, column "a": its type is Boolean, not an integer"#)).await;
    check("a\n2024-01-01\n", "a", Err(r#"part 1, column "a": its type is Date32, not an integer"#)).await;
    let timestamp = r#"part 1, column "a": its type is Timestamp, not an integer"#;
    check("a\n2024-01-01T00:00:00\n", "a", Err(timestamp)).await;
    let utc = r#"part 1, column "a": its type is Timestamp (UTC), not an integer"#;
    check("a\n2024-01-01T00:00:00Z\n", "a", Err(utc)).await;
    check("a,b\n1,\n\n2,\n3,x\ny,4\n", "a", Err(r#"part 1, row 4, column "a": "y" is not an integer"#)).await;
}

#[tokio::test]
async fn the_first_error_in_part_and_row_order_is_told() {
    let table = Table::new().await;
    for csv in ["a\n1\n", "b\n1\n", "a\n2\nx\ny\n", "a\n1.5\n", "a\nz\n"] {
        table.upload(csv.as_bytes(), &[]).await.expect("valid");
    }
    let expected = r#"part 3, row 2, column "a": "x" is not an integer"#;
    assert_eq!(table.sum("a").await, Err(expected.to_owned()));
}

#[tokio::test]
async fn hostile_files_are_refused_whole() {
    check_refused(b"", "the file has no header row").await;
    check_refused(b"\n\r\n", "the file has no header row").await;
    check_refused(b"a,b\n1\n", "row 1 has 1 cell, the header has 2").await;
    check_refused(b"a,b,c,d\n1,2,3,4\n1,2,3\n", "row 2 has 3 cells, the header has 4").await;
    check_refused(b"a,b\n1,2\n3,\"4\n", "row 2, column \"b\": a quoted cell is not closed").await;
    check_refused(b"a\n\"1\"2\n", "row 1, column \"a\": text after a closing quote").await;
    check_refused(b"a,b\n1,\xff\n", "row 1, column \"b\": invalid UTF-8").await;
    check_refused(b"a,b\n1,x\0\n", "row 1, column \"b\": a NUL byte").await;
    check_refused(b"a,b\xff\n1,2\n", "header, column 2: invalid UTF-8").await;
    check_refused(b"a,b,a\n1,2,3\n", "the header names two columns \"a\"").await;
    let million_columns = vec![b','; 1_000_000];
    check_refused(&million_columns, "the header has more than 4096 columns").await;
    let wide_row = [b"a,b\n".to_vec(), vec![b','; 2_000_000]].concat();
    check_refused(&wide_row, "row 1 has 2000001 cells, the header has 2").await;
    let open = [b"a,b\n1,\"".to_vec(), vec![b'x'; 9_000_000]].concat();
    check_refused(&open, "row 1 is longer than 4194304 bytes; is a quote not closed?").await;
    let cell = [b"a\n".to_vec(), vec![b'x'; 1024 * 1024 + 1]].concat();
    check_refused(&cell, "row 1, column \"a\": the cell is longer than 1048576 bytes").await;
    let name = [vec![b'h'; 1025], b",b\n".to_vec()].concat();
    check_refused(&name, "header, column 1: the cell is longer than 1024 bytes").await;
    let header = vec![b'h'; 1024 * 1024 + 1];
    check_refused(&header, "the header is longer than 1048576 bytes").await;
}

#[tokio::test]
async fn what_is_at_the_limits_is_kept() {
    let table = Table::new().await;
    let names: Vec<String> = (0..4096).map(|index| format!("c{index}")).collect();
    let ones = vec!["1"; 4096].join(",");
    let csv = format!("{}\n{ones}\n{ones}\n", names.join(","));
    assert_eq!(table.upload(csv.as_bytes(), &[]).await.expect("4,096 columns").columns.len(), 4096);
    assert_eq!(table.sum("c4095").await, Ok(2));

    let cell = "x".repeat(1024 * 1024);
    let csv = format!("a,b,c,d\n{cell},{cell},{cell},7\n");
    assert_eq!(table.upload(csv.as_bytes(), &[]).await.expect("cells of 1 MiB").rows, 1);
    assert_eq!(table.sum("d").await, Ok(7));
}

#[tokio::test]
async fn limits_are_flags() {
    let csv = CsvLimits { columns_max: 2, cell_bytes_max: 3, row_bytes_max: 6 };
    let limits = Limits { csv, upload_bytes_max: 20, ..Limits::default() };
    let table = Table::with_limits(limits).await;
    let cases = [
        ("a,b,c\n", "the header has more than 2 columns"),
        ("a\n1234\n", "row 1, column \"a\": the cell is longer than 3 bytes"),
        ("a,b\n123,456\n", "row 1 is longer than 6 bytes; is a quote not closed?"),
        ("a\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n", "the upload has more than 20 bytes"),
    ];
    for (csv, expected) in cases {
        assert_eq!(table.upload(csv.as_bytes(), &[]).await.expect_err(csv), expected);
    }
    assert_eq!(table.upload(b"a,b\n12,34\n", &[]).await.expect("within the limits").rows, 1);
}

#[tokio::test]
async fn a_row_as_long_as_a_slice_does_not_hold_up_the_sum() {
    const ROW_BYTES: usize = 8 * 1024 * 1024;
    let csv = CsvLimits { columns_max: 2, cell_bytes_max: ROW_BYTES, row_bytes_max: ROW_BYTES };
    let table = Table::with_limits(Limits { csv, ..Limits::default() }).await;
    for row_bytes in [ROW_BYTES - 1, ROW_BYTES] {
        let long = "x".repeat(row_bytes - 2);
        let file = format!("a,b\n1,{long}\n2,{long}\n3,{long}\n");
        table.upload(file.as_bytes(), &[]).await.expect("at the limit");
    }
    assert_eq!(table.sum("a").await, Ok(12));
}

#[tokio::test]
async fn empty_lines_before_the_header() {
    let csv = format!("{}5\n7\n", "\n".repeat(1024 * 1024));
    check(&csv, "5", Ok(7)).await;
    let endless = vec![b'\n'; 3 * 1024 * 1024];
    check_refused(&endless, "the file has no header row").await;
}

#[tokio::test]
async fn parts_survive_a_restart() {
    let table = Table::new().await;
    table.upload(b"a\n1\n", &[]).await.expect("valid");
    table.upload(b"a\n2\n", &[]).await.expect("valid");
    let before = table.engine.receipts(None, usize::MAX).await.expect("receipts");
    assert_eq!(before.len(), 2);
    let copy = TempDir::new().expect("a temporary folder");
    for folder in ["parts", "tmp", "quarantine"] {
        std::fs::create_dir(copy.path().join(folder)).expect("a folder");
    }
    for entry in std::fs::read_dir(table.folder.path().join("parts")).expect("readable") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), copy.path().join("parts").join(entry.file_name())).expect("copied");
    }
    let (engine, _) = Engine::open(copy.path(), Durability::None, Limits::default()).await.expect("opens");
    assert_eq!(engine.receipts(None, usize::MAX).await.expect("receipts"), before);
    assert_eq!(engine.column_sum("a", Format::Csv).await.expect("sums").total, 3);
    engine.close();
}

#[tokio::test]
async fn a_file_that_changed_is_never_summed() {
    let table = Table::new().await;
    table.upload(b"a,b\n1,2\n3,4\n", &[]).await.expect("valid");
    let csv = table.folder.path().join("parts/1.csv");
    for (content, what) in [
        (&b"a,b\n1,2\n3,4"[..], "part 1 is damaged: csv: 11 bytes, the receipt says 12"),
        (b"a,b\n1,2\n3,4\n\n", "part 1 is damaged: csv: 13 bytes, the receipt says 12"),
        (b"a,c\n1,2\n3,4\n", "part 1 is damaged: csv: the bytes from 0 to 12 are not what was written"),
        (b"a,b\n1,2\n7,4\n", "part 1 is damaged: csv: the bytes from 0 to 12 are not what was written"),
    ] {
        std::fs::write(&csv, content).expect("written");
        let error = table.engine.column_sum("a", Format::Csv).await.expect_err("damaged");
        assert_eq!(error.to_string(), what);
        assert_eq!(error.kind(), tally::error::Kind::DataLoss);
    }
    let parquet = table.folder.path().join("parts/1.parquet");
    let good = std::fs::read(&parquet).expect("readable");
    let mut bad = good.clone();
    bad[good.len() - 6] ^= 1; // the footer's length
    std::fs::write(&parquet, &bad).expect("written");
    let error = table.engine.column_sum("a", Format::Parquet).await.expect_err("damaged");
    assert_eq!(error.kind(), tally::error::Kind::DataLoss, "{error}");
    std::fs::remove_file(&parquet).expect("removed");
    let error = table.engine.column_sum("a", Format::Parquet).await.expect_err("missing");
    assert_eq!(error.kind(), tally::error::Kind::DataLoss, "{error}");
}

#[tokio::test]
async fn a_panic_in_a_call_leaves_the_engine_answering() {
    let table = Table::new().await;
    let body = stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, Error>>> { panic!("on purpose") });
    let error = table.engine.upload(body).await.expect_err("panicked");
    assert_eq!(error.to_string(), "internal error: a call panicked: on purpose");
    table.upload(b"a\n1\n", &[]).await.expect("still there");
    assert_eq!(table.sum("a").await, Ok(1));
    assert_eq!(table.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn uploads_at_once_are_bounded() {
    let limits = Limits { uploads_max: 2, ..Limits::default() };
    let table = Table::with_limits(limits).await;
    let held: Vec<_> = (0..2)
        .map(|_| {
            let (send, receive) = tokio::sync::mpsc::channel::<Result<Bytes, Error>>(1);
            let body = tokio_stream::wrappers::ReceiverStream::new(receive);
            let engine = table.engine.clone();
            (send, tokio::spawn(async move { engine.upload(body).await }))
        })
        .collect();
    for (send, _) in &held {
        for block in ["a\n", "1\n"] {
            // The channel holds one block: the second goes in once the upload has begun and taken the first.
            send.send(Ok(Bytes::from_static(block.as_bytes()))).await.expect("received");
        }
    }
    // One that stops moving would give way.
    let stop = CancellationToken::new();
    let keep_moving =
        |(send, upload): (tokio::sync::mpsc::Sender<_>, tokio::task::JoinHandle<Result<Receipt, Error>>)| {
            let stop = stop.clone();
            let moving = tokio::spawn(async move {
                while !stop.is_cancelled() {
                    send.send(Ok(Bytes::from("1\n".repeat(1000)))).await.expect("received");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            (moving, upload)
        };
    let held: Vec<_> = held.into_iter().map(keep_moving).collect();
    let refused = table.upload(b"a\n1\n", &[]).await.expect_err("both uploads move");
    assert_eq!(refused, "2 uploads are under way, which is the limit: try again");
    stop.cancel();
    for (moving, upload) in held {
        moving.await.expect("it moved until then");
        upload.await.expect("no panic").expect("kept");
    }
    table.upload(b"a\n1\n", &[]).await.expect("there is room again");
}

/// A cell and the text that stands for it in the file.
fn random_cell(random: &mut fastrand::Rng, kind: usize) -> String {
    let integers = [i64::MIN, i64::MAX, 0, 1, -1, 999_999_999_999_999_999, 1_000_000_000_000_000_000];
    match kind {
        0 => random.i64(-1000..1000).to_string(),
        1 => integers[random.usize(..integers.len())].to_string(),
        2 => {
            let sign = ["", "+", "-"][random.usize(..3)];
            let zeros = "0".repeat(random.usize(..25));
            let space = ["", " ", "\t", "\n", " \r\n"][random.usize(..5)];
            format!("{space}{sign}{zeros}{}{space}", random.u32(..))
        }
        3 => {
            ["9223372036854775808", "-9223372036854775809", "99999999999999999999999999"][random.usize(..3)].to_owned()
        }
        4 => format!("{:?}", random.f64() * 1000.0),
        5 => ["true", "false"][random.usize(..2)].to_owned(),
        6 => format!("20{:02}-0{}-1{}", random.u8(..100), random.u8(1..10), random.u8(..10)),
        7 => format!("2024-02-29T1{}:00:0{}.{}", random.u8(..10), random.u8(..10), random.u32(1..999_999)),
        8 => format!("2024-02-29T1{}:00:0{}Z", random.u8(..10), random.u8(..10)),
        9 => ["x", "a,b", "say \"hi\"", "line\nbreak", "\r\n", "ü✓", "1 2", "-", "5\"", "\u{a0}1"][random.usize(..10)]
            .to_owned(),
        _ => String::new(),
    }
}

/// A file with its cells, column by column name.
struct RandomFile {
    csv: String,
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

fn random_file(random: &mut fastrand::Rng) -> RandomFile {
    let all_names = ["x", "y", "", "a,b", "q\"q", "ü", "long name", "z"];
    let mut names: Vec<String> = all_names.iter().map(|name| (*name).to_owned()).collect();
    random.shuffle(&mut names);
    names.truncate(random.usize(1..=names.len()));
    // A header of one empty name must be quoted, or it would be an empty line.
    let kinds: Vec<Vec<usize>> = names
        .iter()
        .map(|_| match random.usize(..10) {
            0..=2 => vec![0],
            3 => vec![0, 1],
            4 => vec![0, 2],
            5 => vec![0, 0, 0, 0, 0, 0, 3],
            6 => vec![0, 0, 0, 0, 0, 0, 0, 9],
            kind => [vec![0, 4], vec![4 + random.usize(..5)], vec![9]][kind - 7].clone(),
        })
        .collect();
    let blanks = random.usize(..3); // none, some, many
    let rows: Vec<Vec<String>> = (0..random.usize(..40))
        .map(|_| {
            let cell = |kinds: &Vec<usize>, random: &mut fastrand::Rng| match blanks {
                1 if random.u8(..8) == 0 => String::new(),
                2 if random.bool() => String::new(),
                _ => {
                    let kind = kinds[random.usize(..kinds.len())];
                    random_cell(random, kind)
                }
            };
            kinds.iter().map(|kinds| cell(kinds, random)).collect()
        })
        .collect();
    let mut csv = String::new();
    if random.u8(..4) == 0 {
        csv.push('\u{feff}');
    }
    let ends = ["\n", "\r\n", "\r", "\n\n", "\r\n\r\n"];
    let one_end = random.bool().then(|| ends[random.usize(..3)]);
    for (index, row) in std::iter::once(&names).chain(&rows).enumerate() {
        if index > 0 {
            csv.push_str(one_end.unwrap_or_else(|| ends[random.usize(..ends.len())]));
        }
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                csv.push(',');
            }
            let must_quote =
                cell.starts_with('"') || cell.contains([',', '\n', '\r']) || (row.len() == 1 && cell.is_empty());
            if must_quote || random.u8(..6) == 0 {
                write!(csv, "\"{}\"", cell.replace('"', "\"\"")).expect("a string takes it");
            } else {
                csv.push_str(cell);
            }
        }
    }
    if random.bool() {
        csv.push('\n');
    }
    RandomFile { csv, names, rows }
}

/// What README.md says of types, as naively as can be.
fn oracle_type(cells: &[&str]) -> ColumnType {
    let is_date = |cell: &str| cell.len() == 10 && chrono::NaiveDate::parse_from_str(cell, "%Y-%m-%d").is_ok();
    let is_time =
        |cell: &str| cell.contains('T') && chrono::NaiveDateTime::parse_from_str(cell, "%Y-%m-%dT%H:%M:%S%.f").is_ok();
    let is_number = |cell: &str| {
        let mantissa = cell.split(['e', 'E']).next().unwrap_or_default();
        let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
        serde_json::from_str::<serde_json::Number>(cell).is_ok()
            && !cell.contains(char::is_whitespace)
            && digits.trim_start_matches('0').len() <= 17
    };
    let all = |is: &dyn Fn(&str) -> bool| cells.iter().filter(|cell| !cell.is_empty()).all(|cell| is(cell));
    if cells.iter().all(|cell| cell.is_empty()) {
        ColumnType::Utf8
    } else if all(&|cell| cell.parse::<i64>().is_ok_and(|value| value.to_string() == cell)) {
        ColumnType::Int64
    } else if all(&is_number) && cells.iter().any(|cell| cell.contains(['.', 'e', 'E'])) {
        ColumnType::Float64
    } else if all(&|cell| cell == "true" || cell == "false") {
        ColumnType::Boolean
    } else if all(&is_date) {
        ColumnType::Date32
    } else if all(&is_time) {
        ColumnType::Timestamp
    } else if all(&|cell| cell.strip_suffix('Z').is_some_and(is_time)) {
        ColumnType::TimestampUtc
    } else {
        ColumnType::Utf8
    }
}

/// What README.md says of ColumnSum, as naively as can be.
fn oracle_sum(parts: &[RandomFile], column: &str) -> Result<i64, String> {
    let mut total = 0_i128;
    for (index, part) in parts.iter().enumerate() {
        let Some(at) = part.names.iter().position(|name| name == column) else {
            continue;
        };
        let cells: Vec<&str> = part.rows.iter().map(|row| row[at].as_str()).collect();
        let (id, name) = (index + 1, tally::error::Quoted(column));
        let column_type = oracle_type(&cells);
        if !matches!(column_type, ColumnType::Int64 | ColumnType::Utf8) {
            return Err(format!("part {id}, column {name}: its type is {column_type}, not an integer"));
        }
        for (row, cell) in cells.iter().enumerate() {
            let text = cell.trim_matches([' ', '\t', '\n', '\r', '\u{c}']);
            if text.is_empty() {
                continue;
            }
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            let shown = tally::error::Quoted(cell);
            if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
                return Err(format!("part {id}, row {}, column {name}: {shown} is not an integer", row + 1));
            }
            match text.parse::<i64>() {
                Ok(value) => total += i128::from(value),
                Err(_) => {
                    return Err(format!("part {id}, row {}, column {name}: {shown} does not fit in 64 bits", row + 1));
                }
            }
        }
    }
    let name = tally::error::Quoted(column);
    i64::try_from(total).map_err(|_| format!("column {name}: the sum {total} does not fit in 64 bits"))
}

/// The rows as the csv crate reads them; it knows no rows that end in CR alone beside others, so those are left out.
fn second_reader(csv: &str) -> Vec<Vec<String>> {
    let text = csv.strip_prefix('\u{feff}').unwrap_or(csv);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    reader.records().map(|row| row.expect("valid").iter().map(str::to_owned).collect()).collect()
}

/// Files that are integers for longer than the first block, and then perhaps something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_of_integers_are_what_they_turn_out_to_be() {
    const ROWS: i64 = 60_000;
    let text: String = (0..ROWS).map(|row| format!("{row},{}\n", row * 1_000_003 % 777_777 - 300_000)).collect();
    let table = Table::new().await;
    let mut random = fastrand::Rng::with_seed(7);
    let (mut kept, mut total) = (0, 0);
    for (end, types) in [
        ("", Ok([ColumnType::Int64, ColumnType::Int64])),
        ("1,2", Ok([ColumnType::Int64, ColumnType::Int64])),
        ("\r\n\n,-9223372036854775808\n,9223372036854775807\n", Ok([ColumnType::Int64, ColumnType::Int64])),
        ("1,\"2\"\n", Ok([ColumnType::Int64, ColumnType::Int64])),
        ("1,2.5\n", Ok([ColumnType::Int64, ColumnType::Float64])),
        ("1,007\n", Ok([ColumnType::Int64, ColumnType::Utf8])),
        ("1,x\n", Ok([ColumnType::Int64, ColumnType::Utf8])),
        ("1\n", Err("row 60001 has 1 cell, the header has 2")),
        ("1,2,3\n", Err("row 60001 has 3 cells, the header has 2")),
        ("1,\"2", Err("row 60001, column \"b\": a quoted cell is not closed")),
    ] {
        let csv = format!("a,b\n{text}{end}");
        for _ in 0..3 {
            let mut cuts: Vec<usize> = (0..random.usize(..300)).map(|_| random.usize(..=csv.len())).collect();
            cuts.sort_unstable();
            match (table.upload(csv.as_bytes(), &cuts).await, types) {
                (Ok(receipt), Ok(types)) => {
                    kept += 1;
                    total += ROWS * (ROWS - 1) / 2 + i64::from(end.starts_with('1'));
                    assert_eq!(receipt.columns.iter().map(|column| column.column_type).collect::<Vec<_>>(), types);
                    let stored = table.folder.path().join(format!("parts/{}.csv", receipt.part));
                    assert_eq!(std::fs::read(stored).expect("stored"), csv.as_bytes());
                }
                (Err(error), Err(expected)) => assert_eq!(error, expected, "{end:?}"),
                (outcome, _) => panic!("{end:?}: {outcome:?}"),
            }
        }
    }
    assert_eq!(table.engine.parts_count(), kept);
    assert_eq!(table.sum("a").await, Ok(total));
    table.wait_until_nothing_is_left().await;
}

/// However an upload ends while it is converted, nothing of it is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_that_break_off_leave_nothing() {
    let limits = Limits { upload_bytes_max: 2_000_000, ..Limits::default() };
    let table = Table::with_limits(limits).await;
    let blocks = |count| {
        let header = Ok(Bytes::from_static(b"a,b\n"));
        std::iter::once(header).chain((0..count).map(|_| Ok(Bytes::from("1,2\n".repeat(50_000)))))
    };
    for count in 1..5 {
        let broken = blocks(count).chain([Err(Error::Aborted("the client is gone".to_owned()))]);
        let error = table.engine.upload(stream::iter(broken)).await.expect_err("it broke off");
        assert!(matches!(error, Error::Aborted(_)), "{error}");

        // Dropped while the next block is waited for.
        let waiting = futures_util::StreamExt::chain(stream::iter(blocks(count)), stream::pending());
        let mut upload = Box::pin(table.engine.upload(waiting));
        while table.leftovers().is_empty() {
            assert!(futures_util::poll!(&mut upload).is_pending(), "there is more to come");
            tokio::task::yield_now().await;
        }
        drop(upload);
        table.wait_until_nothing_is_left().await;
    }
    let too_much = table.engine.upload(stream::iter(blocks(20))).await.expect_err("too much");
    assert!(matches!(too_much, Error::UploadTooLarge { .. }), "{too_much}");
    assert_eq!(table.engine.parts_count(), 0);
    table.wait_until_nothing_is_left().await;
    // The memory and the places that they had are there for others.
    for _ in 0..3 {
        let rows = "1,2\n".repeat(50_000);
        table.upload(format!("a,b\n{rows}").as_bytes(), &[100_000]).await.expect("kept");
    }
}

/// Uploads that wait for the same commit are kept or refused together, and what was answered is what a start finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_are_synced_together_are_kept_or_refused() {
    const UPLOADS: usize = 60;
    let folder = TempDir::new().expect("a temporary folder");
    let (engine, _) = Engine::open(folder.path(), Durability::Fsync, Limits::default()).await.expect("a data folder");
    // One receipt cannot get its name.
    std::fs::create_dir(folder.path().join("parts/20.json")).expect("a folder");
    let upload = |number: usize| {
        // Some are small, some large, some of integers and some not.
        let (rows, cell) = ([1, 20_000][number % 2], if number.is_multiple_of(3) { "x" } else { "5" });
        let csv = Bytes::from(format!("a,b\n{}", format!("1,{cell}\n").repeat(rows)));
        let engine = engine.clone();
        async move { (rows, engine.upload(stream::iter([Ok::<_, Error>(csv)])).await) }
    };
    let outcomes = futures_util::future::join_all((0..UPLOADS).map(upload)).await;
    let (mut kept, mut refused, mut rows_kept) = (std::collections::BTreeSet::new(), 0, 0);
    for (rows, outcome) in outcomes {
        match outcome {
            Ok(receipt) => {
                assert!(kept.insert(receipt.part), "an id was given twice");
                rows_kept += i64::try_from(rows).expect("few");
            }
            Err(Error::Io { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused >= 1 && kept.len() + refused == UPLOADS, "{refused} were refused");
    assert!(kept.iter().all(|part| part.get() != 20));
    assert_eq!(engine.column_sum("a", Format::Parquet).await.expect("summed").total, rows_kept);
    // The places of those that were refused are free again.
    for number in 0..3 {
        kept.insert(upload(number).await.1.expect("kept").part);
    }
    engine.close();
    drop(engine);

    std::fs::remove_dir(folder.path().join("parts/20.json")).expect("removed");
    // Its lock is free when the last slice has let go of the folder.
    let (engine, found) = loop {
        match Engine::open(folder.path(), Durability::None, Limits::default()).await {
            Ok(opened) => break opened,
            Err(Error::DataFolder(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(found.leftovers + found.quarantined.len(), 0, "{found:?}");
    let mut ids = std::collections::BTreeSet::new();
    let mut after = None;
    loop {
        let receipts = engine.receipts(after, 100).await.expect("receipts");
        let Some(last) = receipts.last() else { break };
        after = Some(last.part);
        ids.extend(receipts.iter().map(|receipt| receipt.part));
    }
    assert_eq!(ids, kept);
    engine.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_tables_against_the_oracle() {
    const TABLES: u64 = 2500;
    let seed = std::env::var("TALLY_TABLE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = match seed {
        Some(seed) => seed..seed + 1,
        None => 0..TABLES,
    };
    let (mut sums, mut errors) = (0, 0);
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let parts: Vec<_> = (0..random.usize(1..4)).map(|_| random_file(&mut random)).collect();
        let table = Table::new().await;
        for (index, part) in parts.iter().enumerate() {
            let csv = part.csv.as_bytes();
            let mut cuts: Vec<usize> = (0..random.usize(..20)).map(|_| random.usize(..=csv.len())).collect();
            cuts.sort_unstable();
            let receipt = table.upload(csv, &cuts).await;
            let receipt = receipt.unwrap_or_else(|error| panic!("seed {seed}, file {index}: {error}\n{:?}", part.csv));
            assert_eq!(receipt.rows, part.rows.len() as u64, "seed {seed}, file {index}: {:?}", part.csv);
            for (at, column) in receipt.columns.iter().enumerate() {
                let cells: Vec<&str> = part.rows.iter().map(|row| row[at].as_str()).collect();
                assert_eq!(column.name, part.names[at], "seed {seed}");
                assert_eq!(
                    column.column_type,
                    oracle_type(&cells),
                    "seed {seed}, file {index}, column {at}: {cells:?}"
                );
                assert_eq!(column.nulls, cells.iter().filter(|cell| cell.is_empty()).count() as u64, "seed {seed}");
            }
            let rows: Vec<_> = std::iter::once(&part.names).chain(&part.rows).cloned().collect();
            assert_eq!(second_reader(&part.csv), rows, "seed {seed}: the csv crate reads the file otherwise");
        }
        for column in ["x", "y", "", "a,b", "q\"q", "ü", "long name", "z", "absent"] {
            let expected = oracle_sum(&parts, column);
            assert_eq!(table.sum(column).await, expected, "seed {seed}, column {column:?}");
            if expected.is_ok() { sums += 1 } else { errors += 1 }
        }
    }
    println!("{sums} sums and {errors} errors agree with the oracle, in both formats");
    assert!(seed.is_some() || (sums > 5000 && errors > 1000), "the tables are too tame: {sums} sums, {errors} errors");
}
