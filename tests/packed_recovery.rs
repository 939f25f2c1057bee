//! What a start does with segments that are damaged, incomplete, or put back: nothing that was acknowledged is deleted, no number
//! is given out twice, and no row is counted twice.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{fs, path::Path};

use tally::{
    engine::{Durability, Loaded},
    error::Error,
    limits::{Incomplete, Limits},
    model::{dialect::Dialect, format::Format, part::PartId},
};

use self::common::{DataFolder, TestEngine};

mod common;

const FORMATS: [Format; 2] = [Format::Csv, Format::Parquet];

fn id(number: u64) -> PartId {
    PartId::new(number).expect("above 0")
}

/// A folder with parts 1 to `count`, of which part N has the one value 2 to the power of N - 1, and a large part if `large` is one
/// of the numbers. All but the large one are packed.
async fn packed(count: u64, large: Option<u64>) -> DataFolder {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for number in 1..=count {
        let rest = if large == Some(number) { format!("{}\n", "0\n".repeat(40_000)) } else { String::new() };
        engine.upload_valid(format!("x\n{}\n{rest}", 1_i64 << (number - 1))).await;
    }
    assert_eq!(engine.pack().await.expect("packed"), 1);
    folder
}

/// Flips a bit in the middle of a file of `parts/`.
fn damage(folder: &DataFolder, name: &str) {
    let path = folder.file(&format!("parts/{name}"));
    let mut bytes = fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).expect("written");
}

/// Copies of the files of segments in `parts/`.
fn segment_files(folder: &DataFolder) -> Vec<(String, Vec<u8>)> {
    let names = folder.names_in("parts").into_iter().filter(|name| name.contains('-'));
    names.map(|name| (name.clone(), fs::read(folder.file(&format!("parts/{name}"))).expect("read"))).collect()
}

/// Puts undamaged files back, as the manual says, and takes those in quarantine away.
fn put_back(folder: &DataFolder, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        fs::write(folder.file(&format!("parts/{name}")), bytes).expect("written");
        let _not_there = fs::remove_file(folder.file(&format!("quarantine/{name}")));
    }
}

async fn open_incomplete(folder: &DataFolder) -> TestEngine {
    folder.open_with(Durability::None, Limits { incomplete: Incomplete::Answer, ..Limits::default() }).await
}

async fn sums(engine: &TestEngine) -> [i64; 2] {
    let [csv, parquet] = FORMATS.map(|format| engine.column_sum("x", format));
    [csv.await.expect("integers").total, parquet.await.expect("integers").total]
}

#[tokio::test]
async fn numbers_of_a_segment_in_quarantine_are_not_given_out_again() {
    let folder = packed(4, None).await;
    let files = segment_files(&folder);
    damage(&folder, "1-4-1.segment");
    let engine = open_incomplete(&folder).await;
    assert_eq!((engine.parts_count(), engine.missing_parts().count()), (0, 4));
    let part = engine.upload_valid("x\n100\n").await.part;
    assert_eq!(part, id(5));
    assert_eq!(sums(&engine).await, [100, 100]);
    drop(engine);
    put_back(&folder, &files);
    let engine = folder.open().await;
    assert_eq!((engine.parts_count(), engine.missing_parts().count()), (5, 0));
    assert_eq!(sums(&engine).await, [115, 115]);
}

#[tokio::test]
async fn numbers_of_removed_parts_of_a_lost_segment_are_not_given_out_again() {
    let folder = packed(4, None).await;
    let engine = folder.open().await;
    engine.remove_part(id(4), true).await.expect("removed");
    drop(engine);
    for (name, _) in segment_files(&folder) {
        fs::remove_file(folder.file(&format!("parts/{name}"))).expect("deleted");
    }
    assert_eq!(folder.open().await.upload_valid("x\n1\n").await.part, id(5));
}

#[tokio::test]
async fn a_damaged_index_does_not_keep_the_server_from_starting() {
    for removed in [None, Some(1)] {
        let folder = packed(4, Some(2)).await;
        let files = segment_files(&folder);
        if let Some(removed) = removed {
            folder.open().await.remove_part(id(removed), false).await.expect("removed");
        }
        damage(&folder, "1-4-1.index");
        let engine = folder.open().await;
        assert_eq!((engine.parts_count(), engine.missing_parts().count()), (1, 3), "{removed:?}");
        let refused = engine.column_sum("x", Format::Csv).await.expect_err("parts are missing").to_string();
        assert!(refused.contains("3 parts") && refused.contains("1-4-1.segment and the others"), "{refused}");
        drop(engine);
        put_back(&folder, &files);
        let engine = folder.open().await;
        let total = if removed.is_some() { 14 } else { 15 };
        assert_eq!(sums(&engine).await, [total, total]);
        if let Some(removed) = removed {
            engine.restore_part(id(removed)).await.expect("it can still be restored");
            assert_eq!(sums(&engine).await, [15, 15]);
        }
    }
}

#[tokio::test]
async fn a_segment_without_its_receipt_is_kept_in_quarantine() {
    let folder = packed(4, None).await;
    let files = segment_files(&folder);
    fs::remove_file(folder.file("parts/1-4-1.segment")).expect("deleted");
    let engine = folder.open().await;
    assert_eq!((engine.parts_count(), engine.missing_parts().count()), (0, 4));
    drop(engine);
    let others = || files.iter().filter(|(name, _)| !name.ends_with(".segment"));
    assert!(
        others().all(|(name, bytes)| fs::read(folder.file(&format!("quarantine/{name}"))).ok().as_ref() == Some(bytes))
    );
    // Moved back, but not all of them yet.
    for (name, _) in others() {
        fs::rename(folder.file(&format!("quarantine/{name}")), folder.file(&format!("parts/{name}"))).expect("moved");
    }
    assert_eq!(folder.open().await.missing_parts().count(), 4);
    put_back(&folder, &files);
    assert_eq!(sums(&folder.open().await).await, [15, 15]);
}

#[tokio::test]
async fn a_missing_file_of_a_segment_is_found_at_the_start() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for number in 0..2 {
        let key = tally::model::idempotency_key::IdempotencyKey::parse(format!("key{number}").as_bytes());
        let from = tally::engine::UploadFrom { key: key.ok(), ..tally::engine::UploadFrom::server(None) };
        let csv = Ok::<_, Error>(bytes::Bytes::from_static(b"x\n1\n"));
        engine.upload_from(from, futures_util::stream::iter([csv])).await.expect("uploaded");
    }
    assert_eq!(engine.pack().await.expect("packed"), 1);
    drop(engine);
    let files = segment_files(&folder);
    assert!(files.iter().any(|(name, _)| name.ends_with(".keys")));
    for (name, _) in files.iter().filter(|(name, _)| !name.ends_with(".segment")) {
        fs::remove_file(folder.file(&format!("parts/{name}"))).expect("deleted");
        let engine = folder.open().await;
        assert_eq!((engine.parts_count(), engine.missing_parts().count()), (0, 2), "{name}");
        drop(engine);
        put_back(&folder, &files);
        assert_eq!(sums(&folder.open().await).await, [2, 2], "{name}");
    }
}

#[tokio::test]
async fn a_purged_part_stays_purged_while_its_segment_is_in_quarantine() {
    let folder = packed(40, None).await;
    let engine = folder.open().await;
    engine.remove_part(id(3), true).await.expect("purged");
    engine.remove_part(id(5), false).await.expect("removed");
    let expected = sums(&engine).await;
    assert_eq!(expected[0], (1_i64 << 40) - 1 - 4 - 16);
    drop(engine);
    let files = segment_files(&folder);
    damage(&folder, "1-40-1.segment");
    assert_eq!(folder.open().await.missing_parts().count(), 40);
    put_back(&folder, &files);
    let engine = folder.open().await;
    assert_eq!(sums(&engine).await, expected);
    assert_eq!(engine.parts_count(), 38);
}

#[tokio::test]
async fn a_loss_that_was_accepted_is_new_when_the_segment_was_back() {
    let folder = packed(4, None).await;
    let files = segment_files(&folder);
    damage(&folder, "1-4-1.segment");
    let engine = folder.open().await;
    let refused = engine.receipt(id(3)).await.expect_err("it is in quarantine");
    assert!(matches!(refused, Error::InQuarantine { .. }), "{refused}");
    assert_eq!(engine.forget_part(id(2)).await.expect("it is in quarantine"), 0);
    assert_eq!(engine.forget_part(id(2)).await.expect("once more"), 0);
    assert!(matches!(engine.forget_part(id(9)).await, Err(Error::NotInQuarantine { .. })));
    assert_eq!(engine.column_sum("x", Format::Csv).await.expect("nothing is left").total, 0);
    drop(engine);
    assert_eq!(folder.open().await.missing_parts().count(), 0, "also after a restart");
    put_back(&folder, &files);
    assert_eq!(sums(&folder.open().await).await, [15, 15]);
    damage(&folder, "1-4-1.segment");
    let engine = folder.open().await;
    assert_eq!(engine.missing_parts().count(), 4);
    engine.column_sum("x", Format::Csv).await.expect_err("it is a new loss");
}

#[tokio::test]
async fn copies_in_quarantine_of_a_purged_part_are_not_missed() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for number in 0..3 {
        engine.upload_valid(format!("x\n{}\n", 1 << number)).await;
    }
    drop(engine);
    let receipt = fs::read(folder.file("parts/2.json")).expect("read");
    damage(&folder, "2.json");
    assert_eq!(folder.open().await.missing_parts().count(), 1);
    for extension in ["csv", "parquet"] {
        let from = folder.file(&format!("quarantine/2.{extension}"));
        fs::copy(from, folder.file(&format!("parts/2.{extension}"))).expect("copied");
    }
    fs::write(folder.file("parts/2.json"), receipt).expect("written");
    let engine = folder.open().await;
    assert_eq!(engine.pack().await.expect("packed"), 1);
    engine.remove_part(id(2), true).await.expect("purged");
    engine.pack().await.expect("written anew, if that is due");
    drop(engine);
    let engine = folder.open().await;
    assert_eq!(engine.missing_parts().count(), 0);
    assert_eq!(sums(&engine).await, [5, 5]);
}

/// The files of part 2, as they were before it was packed.
async fn with_own_files(change: impl Fn(&DataFolder)) -> (DataFolder, Vec<(String, Vec<u8>)>) {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for number in 0..3 {
        engine.upload_valid(format!("x\n{}\n", 1 << number)).await;
    }
    let names = ["2.csv", "2.parquet", "2.json"];
    let own = names.map(|name| (name.to_owned(), fs::read(folder.file(&format!("parts/{name}"))).expect("read")));
    assert_eq!(engine.pack().await.expect("packed"), 1);
    drop(engine);
    for (name, bytes) in &own {
        fs::write(folder.file(&format!("parts/{name}")), bytes).expect("written");
    }
    change(&folder);
    (folder, own.to_vec())
}

fn exists(path: &Path) -> bool {
    path.exists()
}

#[tokio::test]
async fn own_files_of_a_packed_part_are_deleted_only_if_the_segment_has_it() {
    // The same: left by a kill before they were moved.
    let (folder, _) = with_own_files(|_| {}).await;
    assert_eq!(sums(&folder.open().await).await, [7, 7]);
    assert!(!exists(&folder.file("parts/2.csv")) && !exists(&folder.file("quarantine/2.csv")));
    // Good copies beside a damaged segment.
    let (folder, own) = with_own_files(|folder| damage(folder, "1-3-1.csv")).await;
    let engine = folder.open().await;
    assert_eq!(engine.column_sum("x", Format::Parquet).await.expect("undamaged").total, 7);
    engine.column_sum("x", Format::Csv).await.expect_err("damaged");
    for (name, bytes) in own {
        assert!(!exists(&folder.file(&format!("parts/{name}"))), "{name}");
        assert_eq!(fs::read(folder.file(&format!("quarantine/{name}"))).expect("kept"), bytes, "{name}");
    }
    // Another part with the same number.
    let other = DataFolder::new();
    other.open().await.upload_valid("x\n1\n").await;
    other.open().await.upload_valid("x\n50\n").await;
    let (folder, _) = with_own_files(|folder| {
        for extension in ["csv", "parquet", "json"] {
            let name = format!("parts/2.{extension}");
            fs::copy(other.file(&name), folder.file(&name)).expect("copied");
        }
    })
    .await;
    let engine = folder.open().await;
    assert_eq!((sums(&engine).await, engine.missing_parts().count()), ([7, 7], 0));
    assert_eq!(fs::read(folder.file("quarantine/2.csv")).expect("kept"), b"x\n50\n");
}

#[tokio::test]
async fn a_segment_is_not_deleted_because_a_longer_one_covers_its_numbers() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    for number in 0..6 {
        engine.upload_valid(format!("x\n{}\n", 1 << number)).await;
    }
    for outer in [1, 6] {
        engine.remove_part(id(outer), false).await.expect("removed");
    }
    assert_eq!(engine.pack().await.expect("packed"), 1);
    for outer in [1, 6] {
        engine.restore_part(id(outer)).await.expect("restored");
    }
    drop(engine);
    let files = segment_files(&folder);
    for (name, _) in &files {
        fs::remove_file(folder.file(&format!("parts/{name}"))).expect("deleted");
    }
    let engine = folder.open().await;
    assert_eq!(engine.pack().await.expect("packed"), 1);
    assert_eq!(sums(&engine).await, [33, 33]);
    drop(engine);
    put_back(&folder, &files);
    let engine = folder.open().await;
    assert_eq!((engine.parts_count(), engine.missing_parts().count()), (2, 4));
    for (name, bytes) in files {
        assert_eq!(fs::read(folder.file(&format!("quarantine/{name}"))).expect("kept"), bytes, "{name}");
    }
}

#[tokio::test]
async fn damage_of_a_removed_part_is_no_error_of_the_table() {
    let folder = packed(3, None).await;
    let engine = folder.open().await;
    engine.remove_part(id(1), false).await.expect("removed");
    let path = folder.file("parts/1-3-1.csv");
    let csv = String::from_utf8(fs::read(&path).expect("read")).expect("text");
    fs::write(&path, csv.replacen("x\n1\n", "x\n3\n", 1)).expect("written");
    assert_eq!(sums(&engine).await, [6, 6]);
}

#[tokio::test]
async fn a_file_is_loaded_although_a_removed_packed_part_has_its_size() {
    let folder = packed(3, None).await;
    let engine = folder.open().await;
    engine.remove_part(id(2), false).await.expect("removed");
    let dialect = Dialect::default();
    let (same, other) = (folder.file("same"), folder.file("other"));
    fs::write(&same, "x\n2\n").expect("written");
    fs::write(&other, "x\n8\n").expect("written");
    assert_eq!(engine.load(&other, &dialect).await.expect("loaded"), Loaded::Now(id(4)));
    assert_eq!(engine.load(&same, &dialect).await.expect("known"), Loaded::Removed(id(2)));
    assert_eq!(sums(&engine).await, [13, 13]);
}
