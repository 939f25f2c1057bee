//! Uploads and column sums through the engine: named cases, hostile inputs, and random tables from a seed, compared with a
//! simple computation. Files come whole and in random blocks, and both formats must give the same answer.
#![allow(clippy::expect_used, clippy::map_err_ignore, reason = "a panic fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use tally::{
    engine::{Durability, Engine},
    error::{Error, Kind},
    limits::{CsvLimits, Limits},
    model::{format::Format, part::Receipt, schema::ColumnType},
};
use tokio_util::sync::CancellationToken;

use self::{
    common::{DataFolder, TestEngine, random_cuts, seeds, upload_cut},
    random_table::{RandomFile, expected_sum, expected_type, random_file, read_by_csv_crate},
};

#[path = "../common/mod.rs"]
mod common;
mod random_table;

/// A table with some parts. The engine is dropped before its folder.
struct Table {
    engine: TestEngine,
    folder: DataFolder,
}

impl Table {
    async fn new() -> Self {
        Self::with_limits(Limits::default()).await
    }

    async fn with_limits(limits: Limits) -> Self {
        let folder = DataFolder::new();
        let engine = folder.open_with(Durability::None, limits).await;
        assert_eq!((engine.leftovers_found, engine.quarantined), (0, 0));
        Self { engine, folder }
    }

    /// Uploads a file in blocks that end at `cuts`.
    async fn upload(&self, csv: &[u8], cuts: &[usize]) -> Result<Receipt, String> {
        upload_cut(&self.engine, csv, cuts).await.map_err(|error| error.to_string())
    }

    /// The sum, on which both formats must agree.
    async fn sum(&self, column: &str) -> Result<i64, String> {
        let sum = async |format| match self.engine.column_sum(column, format).await {
            Ok(sum) => Ok(sum.total),
            Err(error) => Err(error.to_string()),
        };
        let (csv, parquet) = (sum(Format::Csv).await, sum(Format::Parquet).await);
        assert_eq!(csv, parquet, "csv and parquet disagree on {column:?}");
        csv
    }

    /// The stored CSV file of a part.
    fn stored_csv(&self, receipt: &Receipt) -> Vec<u8> {
        fs::read(self.folder.file(&format!("parts/{}.csv", receipt.part))).expect("stored")
    }

    /// Files in the data folder that do not belong to an acknowledged part.
    fn leftovers(&self) -> Vec<String> {
        let parts = self.engine.parts_count() as u64;
        let is_of_a_part = |name: &String| {
            let id = name.split('.').next().and_then(|id| id.parse::<u64>().ok());
            id.is_some_and(|id| id <= parts)
        };
        let mut names = self.folder.names_in("parts");
        names.retain(|name| !is_of_a_part(name));
        names.extend(self.folder.names_in("tmp"));
        names.extend(self.folder.names_in("quarantine"));
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

/// Uploads one file and compares the sum of one column.
async fn check(csv: &str, column: &str, expected: Result<i64, &str>) {
    let table = Table::new().await;
    let receipt = table.upload(csv.as_bytes(), &[]).await.expect("the file is valid");
    assert_eq!(table.sum(column).await, expected.map_err(str::to_owned), "{csv:?}");
    assert_eq!(table.stored_csv(&receipt), csv.as_bytes(), "the stored file is what was sent");
}

/// Uploads a file whole and byte by byte. Both must be refused with this text and leave nothing behind.
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
async fn sums_that_are_errors() {
    let overflow = r#"column "a": the sum 9223372036854775808 does not fit in 64 bits"#;
    check("a\n9223372036854775807\n1\n", "a", Err(overflow)).await;
    let underflow = r#"column "a": the sum -9223372036854775809 does not fit in 64 bits"#;
    check("a\n-9223372036854775808\n-1\n", "a", Err(underflow)).await;
    let large = r#"part 1, row 2, column "a": "9223372036854775808" does not fit in 64 bits"#;
    check("a\n1\n9223372036854775808\nx\n", "a", Err(large)).await;
    check("a\n1.50\n", "a", Err(r#"part 1, row 1, column "a": "1.5" is not an integer"#)).await;
    check("a\ntrue\n", "a", Err(r#"part 1, column "a": its type is Boolean, not an integer"#)).await;
    check("a\n2024-01-01\n", "a", Err(r#"part 1, column "a": its type is Date32, not an integer"#)).await;
    let timestamp = r#"part 1, column "a": its type is Timestamp, not an integer"#;
    check("a\n2024-01-01T00:00:00\n", "a", Err(timestamp)).await;
    let utc = r#"part 1, column "a": its type is Timestamp (UTC), not an integer"#;
    check("a\n2024-01-01T00:00:00Z\n", "a", Err(utc)).await;
    check("a,b\n1,\n\n2,\n3,x\ny,4\n", "a", Err(r#"part 1, row 4, column "a": "y" is not an integer"#)).await;
}

#[tokio::test]
async fn the_first_error_in_part_and_row_order_is_reported() {
    let table = Table::new().await;
    for csv in ["a\n1\n", "b\n1\n", "a\n2\nx\ny\n", "a\n1.5\n", "a\nz\n"] {
        table.upload(csv.as_bytes(), &[]).await.expect("valid");
    }
    let expected = r#"part 3, row 2, column "a": "x" is not an integer"#;
    assert_eq!(table.sum("a").await, Err(expected.to_owned()));
}

#[tokio::test]
async fn hostile_files_are_refused_as_a_whole() {
    check_refused(b"", "the file has no header row").await;
    check_refused(b"\n\r\n", "the file has no header row").await;
    check_refused(b"a,b\n1\n", "row 1 (line 2) has 1 cell, the header has 2").await;
    check_refused(b"a,b,c,d\n1,2,3,4\n1,2,3\n", "row 2 (line 3) has 3 cells, the header has 4").await;
    check_refused(b"a,b\n1,2\n3,\"4\n", "row 2 (line 3), column \"b\": a quoted cell is not closed").await;
    let after_quote = "text after a closing quote: a quote inside a quoted cell is written twice";
    check_refused(b"a\n\"1\"2\n", &format!("row 1 (line 2), column \"a\": {after_quote}")).await;
    let not_utf8 = "invalid UTF-8 (byte 0xff), perhaps Windows-1252: upload with --encoding windows-1252";
    check_refused(b"a,b\n1,\xff\n", &format!("row 1 (line 2), column \"b\": {not_utf8}")).await;
    check_refused(b"a,b\n1,x\0\n", "row 1 (line 2), column \"b\": a NUL byte").await;
    check_refused(b"a,b\xff\n1,2\n", &format!("header (line 1), column 2: {not_utf8}")).await;
    check_refused(b"a,b,a\n1,2,3\n", "the header (line 1) names two columns \"a\"").await;
    let million_columns = vec![b','; 1_000_000];
    check_refused(&million_columns, "the header (line 1) has more than 4096 columns").await;
    let wide_row = [b"a,b\n".to_vec(), vec![b','; 2_000_000]].concat();
    check_refused(&wide_row, "row 1 (line 2) has 2000001 cells, the header has 2: its extra cells are empty; upload with --drop-trailing-empty").await;
    let open = [b"a,b\n1,\"".to_vec(), vec![b'x'; 9_000_000]].concat();
    check_refused(&open, "row 1 (line 2) is longer than 4194304 bytes; is a quote not closed?").await;
    let cell = [b"a\n".to_vec(), vec![b'x'; 1024 * 1024 + 1]].concat();
    check_refused(&cell, "row 1 (line 2), column \"a\": the cell is longer than 1048576 bytes").await;
    let name = [vec![b'h'; 1025], b",b\n".to_vec()].concat();
    check_refused(&name, "header (line 1), column 1: the cell is longer than 1024 bytes").await;
    let header = vec![b'h'; 1024 * 1024 + 1];
    check_refused(&header, "the header (line 1) is longer than 1048576 bytes").await;
}

#[tokio::test]
async fn files_at_the_limits_are_accepted() {
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
async fn limits_can_be_configured() {
    let csv = CsvLimits { columns_max: 2, cell_bytes_max: 3, row_bytes_max: 6 };
    let limits = Limits { csv, upload_bytes_max: 20, ..Limits::default() };
    let table = Table::with_limits(limits).await;
    let cases = [
        ("a,b,c\n", "the header (line 1) has more than 2 columns"),
        ("a\n1234\n", "row 1 (line 2), column \"a\": the cell is longer than 3 bytes"),
        ("a,b\n123,456\n", "row 1 (line 2) is longer than 6 bytes; is a quote not closed?"),
        ("a\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n", "the upload has more than 20 bytes"),
    ];
    for (csv, expected) in cases {
        assert_eq!(table.upload(csv.as_bytes(), &[]).await.expect_err(csv), expected);
    }
    assert_eq!(table.upload(b"a,b\n12,34\n", &[]).await.expect("within the limits").rows, 1);
}

#[tokio::test]
async fn rows_as_long_as_a_task_reads_at_once_are_summed() {
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
    let copy = DataFolder::new();
    for folder in ["parts", "tmp", "quarantine"] {
        fs::create_dir(copy.file(folder)).expect("a folder");
    }
    for name in table.folder.names_in("parts").iter().map(|name| format!("parts/{name}")) {
        fs::copy(table.folder.file(&name), copy.file(&name)).expect("copied");
    }
    let engine = copy.open().await;
    assert_eq!(engine.receipts(None, usize::MAX).await.expect("receipts"), before);
    assert_eq!(engine.column_sum("a", Format::Csv).await.expect("sums").total, 3);
}

#[tokio::test]
async fn a_file_that_changed_is_never_summed() {
    let table = Table::new().await;
    table.upload(b"a,b\n1,2\n3,4\n", &[]).await.expect("valid");
    let csv = table.folder.file("parts/1.csv");
    for (content, what) in [
        (&b"a,b\n1,2\n3,4"[..], "part 1 is damaged: csv: 11 bytes, the receipt says 12"),
        (b"a,b\n1,2\n3,4\n\n", "part 1 is damaged: csv: 13 bytes, the receipt says 12"),
        (b"a,c\n1,2\n3,4\n", "part 1 is damaged: csv: the bytes from 0 to 12 are not what was written"),
        (b"a,b\n1,2\n7,4\n", "part 1 is damaged: csv: the bytes from 0 to 12 are not what was written"),
    ] {
        fs::write(&csv, content).expect("written");
        let error = table.engine.column_sum("a", Format::Csv).await.expect_err("damaged");
        assert_eq!(error.to_string(), what);
        assert_eq!(error.kind(), Kind::DataLoss);
    }
    let parquet = table.folder.file("parts/1.parquet");
    let good = fs::read(&parquet).expect("readable");
    let mut bad = good.clone();
    bad[good.len() - 6] ^= 1; // the footer's length
    fs::write(&parquet, &bad).expect("written");
    let error = table.engine.column_sum("a", Format::Parquet).await.expect_err("damaged");
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
    fs::remove_file(&parquet).expect("removed");
    let error = table.engine.column_sum("a", Format::Parquet).await.expect_err("missing");
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
}

#[tokio::test]
async fn a_panic_in_a_call_leaves_the_engine_answering() {
    let table = Table::new().await;
    let body = stream::poll_fn(|_| -> Poll<Option<Result<Bytes, Error>>> { panic!("on purpose") });
    let error = table.engine.upload(body).await.expect_err("panicked");
    assert_eq!(error.to_string(), "internal error: a call panicked: on purpose");
    table.upload(b"a\n1\n", &[]).await.expect("still there");
    assert_eq!(table.sum("a").await, Ok(1));
    assert_eq!(table.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn concurrent_uploads_are_limited() {
    let limits = Limits { uploads_max: 2, ..Limits::default() };
    let table = Table::with_limits(limits).await;
    let held: Vec<_> = (0..2)
        .map(|_| {
            let (send, receive) = tokio::sync::mpsc::channel::<Result<Bytes, Error>>(1);
            let body = tokio_stream::wrappers::ReceiverStream::new(receive);
            let engine = Engine::clone(&table.engine);
            (send, tokio::spawn(async move { engine.upload(body).await }))
        })
        .collect();
    for (send, _) in &held {
        for block in ["a\n", "1\n"] {
            // The channel holds one block: the second goes in once the upload has begun and taken the first.
            send.send(Ok(Bytes::from_static(block.as_bytes()))).await.expect("received");
        }
    }
    // Both uploads must keep sending: one that stops would make room for the third.
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
    let refused = table.upload(b"a\n1\n", &[]).await.expect_err("both uploads are sending");
    assert_eq!(refused, "2 uploads are under way, which is the limit: try again");
    stop.cancel();
    for (moving, upload) in held {
        moving.await.expect("it was sending until then");
        upload.await.expect("no panic").expect("kept");
    }
    table.upload(b"a\n1\n", &[]).await.expect("there is room again");
}

/// Files that begin with many blocks of integers, and end with something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_large_file_decides_its_types() {
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
        ("1\n", Err("row 60001 (line 60002) has 1 cell, the header has 2")),
        ("1,2,3\n", Err("row 60001 (line 60002) has 3 cells, the header has 2")),
        ("1,\"2", Err("row 60001 (line 60002), column \"b\": a quoted cell is not closed")),
    ] {
        let csv = format!("a,b\n{text}{end}");
        for _ in 0..3 {
            let cuts = random_cuts(&mut random, 300, csv.len());
            match (table.upload(csv.as_bytes(), &cuts).await, types) {
                (Ok(receipt), Ok(types)) => {
                    kept += 1;
                    total += ROWS * (ROWS - 1) / 2 + i64::from(end.starts_with('1'));
                    assert_eq!(receipt.columns.iter().map(|column| column.column_type).collect::<Vec<_>>(), types);
                    assert_eq!(table.stored_csv(&receipt), csv.as_bytes());
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

/// An upload that ends early while it is being converted leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_uploads_that_end_early_leave_nothing() {
    let limits = Limits { upload_bytes_max: 2_000_000, ..Limits::default() };
    let table = Table::with_limits(limits).await;
    let blocks = |count| {
        let header = Ok(Bytes::from_static(b"a,b\n"));
        std::iter::once(header).chain((0..count).map(|_| Ok(Bytes::from("1,2\n".repeat(50_000)))))
    };
    for count in 1..5 {
        let broken = blocks(count).chain([Err(Error::Aborted("the client is gone".to_owned()))]);
        let error = table.engine.upload(stream::iter(broken)).await.expect_err("it ended early");
        assert!(matches!(error, Error::Aborted(_)), "{error}");

        // The upload is dropped while it waits for the next block.
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
    // Their memory and permits are free again.
    for _ in 0..3 {
        let rows = "1,2\n".repeat(50_000);
        table.upload(format!("a,b\n{rows}").as_bytes(), &[100_000]).await.expect("kept");
    }
}

/// Uploads that wait for the same commit succeed or fail together, and a start finds exactly those that succeeded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_are_synced_together_are_kept_or_refused() {
    const UPLOADS: usize = 60;
    let folder = DataFolder::new();
    let engine = folder.open_with(Durability::Fsync, Limits::default()).await;
    // The receipt of part 20 cannot be renamed into place.
    fs::create_dir(folder.file("parts/20.json")).expect("a folder");
    let upload = |number: usize| {
        // Some are small and some large; some have integers only.
        let (rows, cell) = ([1, 20_000][number % 2], if number.is_multiple_of(3) { "x" } else { "5" });
        let csv = format!("a,b\n{}", format!("1,{cell}\n").repeat(rows));
        let engine = Engine::clone(&engine);
        async move { (rows, upload_cut(&engine, csv.as_bytes(), &[]).await) }
    };
    let outcomes = futures_util::future::join_all((0..UPLOADS).map(upload)).await;
    let (mut kept, mut refused, mut rows_kept) = (BTreeSet::new(), 0, 0);
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
    // The permits of those that were refused are free again.
    for number in 0..3 {
        kept.insert(upload(number).await.1.expect("kept").part);
    }
    drop(engine);

    fs::remove_dir(folder.file("parts/20.json")).expect("removed");
    let engine = folder.open().await;
    assert_eq!((engine.leftovers_found, engine.quarantined), (0, 0), "what was refused has left nothing");
    let mut ids = BTreeSet::new();
    let mut after = None;
    loop {
        let receipts = engine.receipts(after, 100).await.expect("receipts");
        let Some(last) = receipts.last() else { break };
        after = Some(last.part);
        ids.extend(receipts.iter().map(|receipt| receipt.part));
    }
    assert_eq!(ids, kept);
}

/// The types that columns have in the parts before, as places in `ColumnType::ALL`.
#[derive(Default)]
struct EarlierTypes {
    with_values: BTreeMap<String, BTreeSet<usize>>,
    without_values: BTreeMap<String, BTreeSet<usize>>,
}

impl EarlierTypes {
    /// The type of a column of the next part.
    fn expected_type(&mut self, name: &str, cells: &[&str]) -> ColumnType {
        let has_values = cells.iter().any(|cell| !cell.is_empty());
        let first = |types: &BTreeMap<String, BTreeSet<usize>>| types.get(name)?.first().map(|at| ColumnType::ALL[*at]);
        let earlier = || first(&self.with_values).or_else(|| first(&self.without_values));
        let column_type = if has_values { expected_type(cells) } else { earlier().unwrap_or(ColumnType::Int64) };
        let types = if has_values { &mut self.with_values } else { &mut self.without_values };
        let at = ColumnType::ALL.iter().position(|other| *other == column_type).expect("all types");
        types.entry(name.to_owned()).or_default().insert(at);
        column_type
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_tables_agree_with_a_simple_computation() {
    const TABLES: u64 = 2500;
    let (mut sums, mut errors) = (0, 0);
    let seeds = seeds("TALLY_TABLE_SEED", TABLES);
    let is_full_run = seeds == (0..TABLES);
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let parts: Vec<RandomFile> = (0..random.usize(1..4)).map(|_| random_file(&mut random)).collect();
        let table = Table::new().await;
        let mut earlier = EarlierTypes::default();
        for (index, part) in parts.iter().enumerate() {
            let csv = part.csv.as_bytes();
            let cuts = random_cuts(&mut random, 20, csv.len());
            let receipt = table.upload(csv, &cuts).await;
            let receipt = receipt.unwrap_or_else(|error| panic!("seed {seed}, file {index}: {error}\n{:?}", part.csv));
            assert_eq!(receipt.rows, part.rows.len() as u64, "seed {seed}, file {index}: {:?}", part.csv);
            for (at, column) in receipt.columns.iter().enumerate() {
                let cells: Vec<&str> = part.rows.iter().map(|row| row[at].as_str()).collect();
                assert_eq!(column.name, part.names[at], "seed {seed}");
                assert_eq!(
                    column.column_type,
                    earlier.expected_type(&column.name, &cells),
                    "seed {seed}, file {index}, column {at}: {cells:?}"
                );
                assert_eq!(column.nulls, cells.iter().filter(|cell| cell.is_empty()).count() as u64, "seed {seed}");
            }
            let rows: Vec<_> = std::iter::once(&part.names).chain(&part.rows).cloned().collect();
            assert_eq!(read_by_csv_crate(&part.csv), rows, "seed {seed}: the csv crate reads other rows");
        }
        for column in ["x", "y", "", "a,b", "q\"q", "ü", "long name", "z", "absent"] {
            let expected = expected_sum(&parts, column);
            assert_eq!(table.sum(column).await, expected, "seed {seed}, column {column:?}");
            if expected.is_ok() { sums += 1 } else { errors += 1 }
        }
    }
    println!("{sums} sums and {errors} errors agree, in both formats");
    assert!(!is_full_run || (sums > 5000 && errors > 1000), "the tables are too simple: {sums} sums, {errors} errors");
}
