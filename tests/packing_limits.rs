//! Packing where something is scarce: room in a segment's receipt, parts that were not purged, room in the table.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tally::{
    engine::{Durability, UploadFrom},
    error::Error,
    limits::{COLUMNS_MAX, Limits, SEGMENT_RECEIPT_BYTES_MAX},
    model::{format::Format, idempotency_key::IdempotencyKey, part::PartId},
};
use tokio::time::sleep;

use self::common::{DataFolder, TestEngine};

mod common;

fn id(number: u64) -> PartId {
    PartId::new(number).expect("above 0")
}

fn limits() -> Limits {
    Limits { pack_bytes_per_s: u64::MAX / 2000, ..Limits::default() }
}

async fn open(folder: &DataFolder) -> TestEngine {
    folder.open_with(Durability::None, limits()).await
}

async fn sums(engine: &TestEngine, column: &str) -> [(i64, u64); 2] {
    let [csv, parquet] = [Format::Csv, Format::Parquet].map(|format| engine.column_sum(column, format));
    let (csv, parquet) = (csv.await.expect("a sum"), parquet.await.expect("a sum"));
    [(csv.total, csv.read.parts), (parquet.total, parquet.read.parts)]
}

fn files_of_segments(folder: &DataFolder, extension: &str) -> usize {
    folder.names_in("parts").iter().filter(|name| name.ends_with(extension)).count()
}

/// 40 lists of as many columns as there may be: more than the receipt of one segment may say.
#[tokio::test]
async fn parts_with_many_columns_are_there_after_a_restart() {
    let folder = DataFolder::new();
    let engine = open(&folder).await;
    for part in 0..40 {
        let mut csv = format!("x,{part:02}_000000");
        (1..COLUMNS_MAX - 1).for_each(|column| csv.push_str(&format!(",{part:02}_{column:06}")));
        csv.push_str(&format!("\n{}", 1_i64 << part));
        csv.push_str(&",1".repeat(COLUMNS_MAX - 1));
        engine.upload_valid(csv).await;
    }
    assert!(engine.pack().await.expect("packed") > 1);
    let expected = [((1 << 40) - 1, 40); 2];
    assert_eq!(sums(&engine, "x").await, expected);
    for name in folder.names_in("parts").iter().filter(|name| name.ends_with(".segment")) {
        let bytes = folder.file(&format!("parts/{name}")).metadata().expect("a receipt").len();
        assert!(bytes <= SEGMENT_RECEIPT_BYTES_MAX as u64, "{name}: {bytes} bytes");
    }
    drop(engine);
    let engine = open(&folder).await;
    assert_eq!((engine.missing_parts().count(), engine.parts_count()), (0, 40));
    assert_eq!(sums(&engine, "x").await, expected);
    assert_eq!(sums(&engine, "07_000009").await, [(1, 1); 2]);
}

/// Eight segments whose 70 parts have as many lists of columns become one.
#[tokio::test]
async fn segments_with_many_lists_of_columns_are_merged() {
    let folder = DataFolder::new();
    let mut engine = open(&folder).await;
    let mut written = 0;
    for segment in 0..8 {
        for part in 0..70 {
            let key =
                (part % 7 == 0).then(|| IdempotencyKey::parse(format!("{segment}/{part}").as_bytes()).expect("a key"));
            let from = UploadFrom { key, ..UploadFrom::server(None) };
            let csv = format!("x,c{part}\n1,{segment}\n");
            engine.upload_from(from, stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("uploaded");
        }
        written += engine.pack().await.expect("packed");
    }
    assert_eq!((written, engine.overview().segments), (9, 1), "eight, and one of them all");
    for is_restarted in [false, true] {
        if is_restarted {
            drop(engine);
            engine = open(&folder).await;
        }
        assert_eq!(sums(&engine, "x").await, [(560, 560); 2]);
        assert_eq!(sums(&engine, "c69").await, [(28, 8); 2]);
        assert_eq!(sums(&engine, "c0").await, [(28, 8); 2]);
        let from = UploadFrom { key: Some(IdempotencyKey::parse(b"3/14").expect("a key")), ..UploadFrom::server(None) };
        let csv = Bytes::from("x,c14\n1,3\n");
        let again = engine.upload_from(from, stream::iter([Ok::<_, Error>(csv)])).await.expect("the same part");
        assert_eq!((again.replayed, again.receipt.part.get()), (true, 3 * 70 + 15));
    }
}

/// Waits until `removed/` has no other files than these. What was replaced is deleted after the start.
async fn only_these_are_left(folder: &DataFolder, is_kept: impl Fn(&str) -> bool) {
    let others = || folder.names_in("removed").into_iter().filter(|name| !is_kept(name)).collect::<Vec<_>>();
    for _wait in 0..600 {
        if others().is_empty() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{:?}", others());
}

#[tokio::test]
async fn a_segment_is_gone_when_all_its_parts_are_purged() {
    for is_packed_again in [false, true] {
        let folder = DataFolder::new();
        let engine = open(&folder).await;
        for number in 0..4 {
            engine.upload_valid(format!("x\n{}\n", 1 << number)).await;
        }
        assert_eq!(engine.pack().await.expect("packed"), 1);
        for number in 1..=4 {
            engine.remove_part(id(number), true).await.expect("purged");
        }
        if is_packed_again {
            assert_eq!(engine.pack().await.expect("nothing to write"), 0);
            assert_eq!((engine.overview().segments, files_of_segments(&folder, "")), (0, 0));
        }
        assert_eq!(sums(&engine, "x").await, [(0, 0); 2]);
        assert!(engine.receipts(None, 9).await.expect("a list").is_empty());
        drop(engine);
        let engine = open(&folder).await;
        assert_eq!((engine.parts_count(), engine.missing_parts().count()), (0, 0));
        assert_eq!(sums(&engine, "x").await, [(0, 0); 2]);
        assert_eq!(engine.upload_valid("x\n16\n").await.part, id(5), "no number is used twice");
        engine.upload_valid("x\n32\n").await;
        assert_eq!(engine.pack().await.expect("packed"), 1);
        assert_eq!(sums(&engine, "x").await, [(48, 2); 2]);
        drop(engine);
        let engine = open(&folder).await;
        assert_eq!(sums(&engine, "x").await, [(48, 2); 2]);
        if is_packed_again {
            only_these_are_left(&folder, |name| name == "4.purged").await;
        }
    }
}

/// What was purged is gone after packing, and does not keep others from uploading.
#[tokio::test]
async fn purged_parts_of_a_segment_make_room() {
    let folder = DataFolder::new();
    let limits = Limits { parts_max: 40, ..limits() };
    let engine = folder.open_with(Durability::None, limits).await;
    for _run in 0..20 {
        for _part in 0..5 {
            engine.upload_valid("x\n1\n").await;
        }
        engine.pack().await.expect("packed");
    }
    for number in 1..=45 {
        engine.remove_part(id(number), true).await.expect("purged");
    }
    engine.pack().await.expect("packed");
    for number in 46..=90 {
        engine.remove_part(id(number), true).await.expect("purged: the others do not count any more");
    }
    engine.pack().await.expect("packed");
    engine.upload_valid("x\n1\n").await;
    let csv_bytes: u64 = folder
        .names_in("parts")
        .iter()
        .filter(|name| name.ends_with(".csv"))
        .map(|name| folder.file(&format!("parts/{name}")).metadata().expect("a file").len())
        .sum();
    assert_eq!((csv_bytes, sums(&engine, "x").await), (11 * 4, [(11, 11); 2]));
    drop(engine);
    let engine = open(&folder).await;
    assert_eq!(sums(&engine, "x").await, [(11, 11); 2]);
    // Nothing is left of what was purged, not even the files from before it was packed.
    only_these_are_left(&folder, |name| name.ends_with(".purged")).await;
}
