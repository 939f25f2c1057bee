//! Tests of what no answer shows: memory and part ids are free again after an error, the timer for silent clients starts again
//! with each piece, and files that do not match the registry are noticed.

use std::{fs, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{
        DialectFrom, Engine, UploadFrom,
        ingest::blocks::Incoming,
        runtime::transfers::Paced,
        state::transfers::{Origin, Pace},
    },
    error::Error,
    limits::{Limits, PARTS_MAX, SMALL_CONVERSION_BYTES, TASK_BYTES},
    model::{
        durability::Durability,
        format::Format,
        idempotency_key::IdempotencyKey,
        part::{Part, PartFigures, PartId, Receipt},
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
            let columns = PartFigures::of(&receipt, None);
            engine.context.state.with(|state| state.parts.restore(Arc::new(part), &columns));
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

#[tokio::test]
async fn a_cancelled_upload_with_a_key_does_not_wait_for_changes_of_parts() {
    let (_folder, engine) = open(Limits { uploads_max: 1, ..Limits::default() }).await;
    let with_key = |body_is_read: Arc<Notify>| {
        let engine = engine.clone();
        async move {
            let (_no_options, rx) = oneshot::channel();
            let key = IdempotencyKey::parse(b"k").ok();
            let from = UploadFrom { origin: Origin::SERVER, key, dialect: DialectFrom::Stream(rx) };
            let body = stream::iter([Ok::<_, Error>(Bytes::from_static(b"x\n1\n"))]);
            engine.upload_from(from, body.inspect(move |_piece| body_is_read.notify_one())).await
        }
    };
    with_key(Arc::default()).await.expect("added");
    let change = engine.context.part_changes.acquire().await.expect("it is open");
    // The key was used, so this one looks for its part as soon as it has read the first piece.
    let body_is_read = Arc::new(Notify::new());
    let second = tokio::spawn(with_key(Arc::clone(&body_is_read)));
    in_time("the body is read", body_is_read.notified()).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    second.abort();
    in_time("its permit is free", async {
        while upload(&engine, b"x\n2\n").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(change);
    engine.close();
}

/// A part of format version 1 is read whole before it is upgraded, and other parts are removed meanwhile, or this one.
#[tokio::test]
async fn an_upgrade_does_not_bring_back_a_part_that_was_removed_meanwhile() {
    let folder = tempfile::TempDir::new().expect("a folder");
    fs::create_dir(folder.path().join("parts")).expect("created");
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/format-1/parts")).expect("readable") {
        let file = file.expect("an entry");
        fs::copy(file.path(), folder.path().join("parts").join(file.file_name())).expect("copied");
    }
    let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
    let (engine, _) = opened.expect("a data folder");
    let id = PartId::FIRST; // it is the first that is upgraded
    let change = engine.context.part_changes.acquire().await.expect("it is open");
    let removal = tokio::spawn({
        let engine = engine.clone();
        async move { engine.remove_part(id, false).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await; // now it is the first that waits
    }
    let sum = tokio::spawn({
        let engine = engine.clone();
        async move { engine.column_sum("y", Format::Csv).await }
    });
    in_time("a part is being upgraded", async {
        while engine.context.upgrades.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(change);
    in_time("the removal", removal).await.expect("no panic").expect("removed");
    let with_upgrades = in_time("the sum", sum).await.expect("no panic").expect("integers").total;
    for format in [Format::Csv, Format::Parquet] {
        assert_eq!(engine.column_sum("y", format).await.expect("integers").total, with_upgrades, "{format}");
    }
    assert!(!folder.path().join("parts/1.json").exists());
    assert_eq!(engine.restore_part(id).await.expect("restored"), 3);
    assert_eq!(engine.column_sum("y", Format::Parquet).await.expect("integers").total, 71_994_025);
    engine.close();
}
