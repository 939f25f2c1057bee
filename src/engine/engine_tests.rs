//! Tests of what no answer shows: memory and part ids are free again after an error, the timer for silent clients starts again
//! with each piece, and files that do not match the registry are noticed.

use std::{fs, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Engine, ingest::blocks::Incoming, runtime::transfers::Paced, state::transfers::Pace},
    error::Error,
    limits::{Limits, PARTS_MAX, SMALL_CONVERSION_BYTES, TASK_BYTES},
    model::{
        durability::Durability,
        format::Format,
        part::{Part, Receipt},
    },
};

/// Longer than anything here takes, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(60);

async fn open(limits: Limits) -> (tempfile::TempDir, Engine) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (engine, _) = Engine::open(folder.path(), Durability::None, limits).await.expect("a data folder");
    (folder, engine)
}

async fn upload(engine: &Engine, csv: &[u8]) -> Result<Receipt, Error> {
    engine.upload(stream::iter([Ok::<_, Error>(Bytes::copy_from_slice(csv))])).await
}

/// Awaits `wanted`, and panics if it takes so long that it will never happen.
pub(crate) async fn in_time<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    timeout(DEADLINE, wanted).await.unwrap_or_else(|_elapsed| panic!("waited in vain: {what}"))
}

#[tokio::test]
async fn the_memory_of_a_small_upload_comes_back_however_it_ends() {
    let (folder, engine) = open(Limits::default()).await;
    let all = async |after| {
        let reserved = in_time(after, engine.context.small_conversions.reserve(SMALL_CONVERSION_BYTES)).await;
        drop(reserved.expect("all of the memory"));
    };
    // Refused as integers, as text, for its header; and one whose Parquet is refused its name.
    for csv in ["a,b\n1,2\n3\n", "a,b\nx,y\nz\n", "a,a\n1,2\n", ""] {
        upload(&engine, csv.as_bytes()).await.expect_err("it is no table");
        all("the memory of one that is no table").await;
    }
    fs::create_dir(folder.path().join("parts/1.parquet")).expect("a folder");
    for csv in ["a,b\n1,2\n", "a,b\nx,y\n"] {
        let outcome = upload(&engine, csv.as_bytes()).await;
        assert_eq!(outcome.is_err(), csv.contains('1'), "{outcome:?}");
        all("the memory of one whose file cannot be written, and of one whose can").await;
    }
    engine.close();
}

#[tokio::test]
async fn the_reserved_entry_of_a_failed_part_is_free_again() {
    let (folder, engine) = open(Limits::default()).await;
    for id in 1..=3 {
        fs::create_dir(folder.path().join(format!("parts/{id}.csv"))).expect("a folder");
        let error = upload(&engine, b"a\n1\n").await.expect_err("its name is taken");
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
    assert_eq!(upload(&engine, b"a\n1\n").await.expect("it is kept").part.get(), 4, "no part id is used twice");
    let free = engine.context.state.with(|state| std::iter::from_fn(|| state.parts.reserve()).count());
    assert_eq!(free, PARTS_MAX - 1, "one part is in the table, and no other entry is reserved");
    engine.close();
}

#[tokio::test]
async fn each_piece_of_an_upload_restarts_the_idle_timer() {
    const IDLE_MAX: Duration = Duration::from_secs(1);
    const PIECES: u32 = 10;
    fn paced<S>(body: S) -> Paced<S> {
        Paced::new(body, Arc::new(Pace::new(CancellationToken::new())), IDLE_MAX)
    }
    let (_folder, engine) = open(Limits { upload_idle_max: IDLE_MAX, ..Limits::default() }).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        // In total the upload takes longer than a client may be silent, but each piece takes far less.
        let longest = std::cell::Cell::new(Duration::ZERO);
        let pieces = stream::unfold(0, |count| {
            let longest = &longest;
            async move {
                let asked = Instant::now();
                sleep(IDLE_MAX * 2 / PIECES).await;
                longest.set(longest.get().max(asked.elapsed()));
                (count < PIECES).then(|| (Ok(Bytes::from_static(b"1\n")), count + 1))
            }
        });
        let cancel = CancellationToken::new();
        let came = Incoming::new(&engine.context, &cancel, paced(Box::pin(pieces))).first_block().await;
        if longest.get() > IDLE_MAX / 2 {
            assert!(Instant::now() < deadline, "this machine always stalls within {PIECES} pieces");
            continue; // the machine stalled, so this attempt shows nothing
        }
        let block = came.expect("the client was never silent for long");
        assert_eq!((block.bytes.len(), block.at_end), (2 * PIECES as usize, true));
        break;
    }
    // An upload whose client stops for good ends.
    let silent = stream::iter([Ok(Bytes::from_static(b"1\n"))]).chain(stream::pending());
    let cancel = CancellationToken::new();
    let mut incoming = Incoming::new(&engine.context, &cancel, paced(silent));
    let Err(error) = in_time("the end of a silent upload", incoming.first_block()).await else {
        panic!("its client is silent")
    };
    assert_eq!(error.to_string(), "the upload stopped: no data arrived for 1 s");
    engine.close();
}

/// The registry has the number of rows of each file. Every way of reading a file notices if it has more or fewer: both for files
/// that are read whole and for those that are cut into byte ranges.
#[tokio::test]
async fn a_csv_file_with_another_number_of_rows_than_its_part_is_damaged() {
    const ROW: &str = "1,2\n";
    for rows in [1000, 5 * TASK_BYTES / 4 / ROW.len()] {
        let (_folder, engine) = open(Limits::default()).await;
        let receipt = upload(&engine, format!("a,b\n{}", ROW.repeat(rows)).as_bytes()).await.expect("kept");
        assert_eq!(receipt.rows, rows as u64);
        for registered in [receipt.rows, receipt.rows - 1, receipt.rows + 1] {
            let part = Part { rows: registered, ..Part::of(&receipt, None) };
            engine.context.state.with(|state| state.parts.restore(Arc::new(part)));
            match engine.column_sum("a", Format::Csv).await {
                Ok(sum) => assert!(registered == receipt.rows && sum.total == rows as i64, "{registered}: {sum:?}"),
                Err(Error::Damaged { part, .. }) => assert!(registered != receipt.rows && part == receipt.part),
                Err(other) => panic!("{registered} rows instead of {rows}: {other}"),
            }
        }
        engine.close();
    }
}

/// A file that was replaced, or became longer or shorter, while the server runs is not read.
#[tokio::test]
async fn a_file_of_another_size_than_its_receipt_says_is_not_read() {
    let (folder, engine) = open(Limits::default()).await;
    let receipt = upload(&engine, b"a\n1\n2\n").await.expect("kept");
    upload(&engine, format!("a\n{}", "3\n".repeat(5000)).as_bytes()).await.expect("kept");
    let part = Part::of(&receipt, None);
    for (format, extension) in [(Format::Csv, "csv"), (Format::Parquet, "parquet")] {
        let path = folder.path().join(format!("parts/1.{extension}"));
        let whole = fs::read(&path).expect("there");
        let other = fs::read(folder.path().join(format!("parts/2.{extension}"))).expect("there");
        let longer = [&whole[..], b"\n"].concat();
        for damaged in [&other[..], &longer, &whole[..whole.len() - 1], b""] {
            fs::write(&path, damaged).expect("written");
            let opened = engine.context.store.open_part(&part, format);
            let Err(Error::Damaged { part, what }) = opened else { panic!("{extension} of {} bytes", damaged.len()) };
            assert_eq!(part, receipt.part);
            assert!(what.contains(extension), "it names the file: {what}");
            let summed = engine.column_sum("a", format).await.expect_err("it is damaged");
            assert!(matches!(summed, Error::Damaged { .. }), "{summed}");
        }
        fs::write(&path, whole).expect("written");
        assert_eq!(engine.column_sum("a", format).await.expect("it is whole again").total, 15_003);
    }
    engine.close();
}
