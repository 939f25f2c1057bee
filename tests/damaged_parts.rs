//! Damaged files of parts: a byte that differs from what was written is never summed, and parts of format version 1 are
//! verified as a whole at their first use.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tally::{
    engine::{Durability, Engine, Store, state::transfers::Origin},
    error::{Error, Kind},
    limits::RECEIPTS_PAGE_BYTES,
    model::{format::Format, part::Part},
};

use self::common::{DataFolder, wait_for};

mod common;

const FORMATS: [Format; 2] = [Format::Csv, Format::Parquet];

/// A file with columns of integers, text and doubles.
fn csv_of(rows: u64) -> String {
    let mut csv = "x,text,double\n".to_owned();
    for row in 0..rows {
        csv.push_str(&format!("{row},t{},{}.5\n", row % 10, row * 7 % 1000));
    }
    csv
}

/// The sum of `x` in it.
fn sum_of(rows: u64) -> i64 {
    (0..rows).sum::<u64>().cast_signed()
}

fn part_file(folder: &DataFolder, extension: &str) -> PathBuf {
    folder.file(&format!("parts/1.{extension}"))
}

/// Asks for the sum of `x`, which must be right, or the error that the part is damaged. Returns whether it is right.
async fn is_right(engine: &Engine, format: Format, rows: u64, what: &str) -> bool {
    match engine.column_sum("x", format).await {
        Ok(sum) => {
            assert_eq!(sum.total, sum_of(rows), "{what}: a wrong sum from {format}");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::DataLoss, "{what}: {error}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("part 1 is damaged: {format}: ")), "{what}: {text}");
            false
        }
    }
}

/// Flips one bit in each byte (or each `step`th) of a file in turn, while the engine runs, and restores the file. Returns
/// how many of the flips the sum noticed.
async fn flip_each(engine: &Engine, path: &Path, format: Format, rows: u64, step: usize) -> usize {
    let good = fs::read(path).expect("readable");
    let mut found = 0;
    for at in (0..good.len()).step_by(step) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(path, &bad).expect("written");
        let what = format!("byte {at} of {}", path.display());
        found += usize::from(!is_right(engine, format, rows, &what).await);
    }
    fs::write(path, &good).expect("written");
    assert!(is_right(engine, format, rows, "restored").await, "the restored file is valid again");
    found
}

#[tokio::test]
async fn no_flipped_byte_of_a_small_part_is_summed() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid(csv_of(20)).await;
    for (format, extension) in [(Format::Csv, "csv"), (Format::Parquet, "parquet")] {
        let path = part_file(&folder, extension);
        let bytes = fs::read(&path).expect("readable").len();
        assert_eq!(flip_each(&engine, &path, format, 20, 1).await, bytes, "each is found in {extension}");
    }
}

#[tokio::test]
async fn no_flipped_byte_of_a_larger_part_is_summed() {
    const ROWS: u64 = 60_000;
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid(csv_of(ROWS)).await;
    let csv_bytes = fs::read(part_file(&folder, "csv")).expect("readable").len();
    assert!(csv_bytes > 8 * 64 * 1024, "the test needs many blocks");
    let step = csv_bytes / 40;
    assert_eq!(flip_each(&engine, &part_file(&folder, "csv"), Format::Csv, ROWS, step).await, csv_bytes.div_ceil(step));
    assert!(
        flip_each(&engine, &part_file(&folder, "sums"), Format::Csv, ROWS, 1).await > 8 * 8,
        "damage to the list of checksums is noticed"
    );
    // A sum reads only the column and the footer of the Parquet file.
    let parquet_bytes = fs::read(part_file(&folder, "parquet")).expect("readable").len();
    let found = flip_each(&engine, &part_file(&folder, "parquet"), Format::Parquet, ROWS, parquet_bytes / 200).await;
    assert!((10..190).contains(&found), "{found} of 200 were in what is read");
}

#[tokio::test]
async fn files_of_another_part_or_size_are_not_summed() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    // Two parts of the same size, which differ in the last row only.
    let other = csv_of(20_000).replace("\n19999,", "\n10000,");
    engine.upload_valid(csv_of(20_000)).await;
    engine.upload_valid(other).await;
    let path = |part: u64, extension: &str| folder.file(&format!("parts/{part}.{extension}"));
    let exchange = |extension: &str| {
        let [one, two] = [1, 2].map(|part| fs::read(path(part, extension)).expect("readable"));
        fs::write(path(1, extension), two).expect("written");
        fs::write(path(2, extension), one).expect("written");
    };
    let total = sum_of(20_000) * 2 - 9_999;
    let sum = async |format| match engine.column_sum("x", format).await {
        Ok(sum) => Ok(sum.total),
        Err(error) => Err(error.kind()),
    };
    for extensions in [&["csv"][..], &["parquet"], &["sums"], &["csv", "sums"], &["csv", "sums", "parquet"]] {
        extensions.iter().for_each(|extension| exchange(extension));
        for (format, extension) in [(Format::Csv, "csv"), (Format::Parquet, "parquet")] {
            let touched = extensions.contains(&extension) || (extension == "csv" && extensions.contains(&"sums"));
            let expected = if touched { Err(Kind::DataLoss) } else { Ok(total) };
            assert_eq!(sum(format).await, expected, "{extensions:?}, {format}");
        }
        extensions.iter().for_each(|extension| exchange(extension));
    }
    for extension in ["csv", "parquet", "sums"] {
        let good = fs::read(path(1, extension)).expect("readable");
        for bad in [&good[..good.len() - 1], &[&good[..], b"\n"].concat(), &[]] {
            fs::write(path(1, extension), bad).expect("written");
            let format = if extension == "parquet" { Format::Parquet } else { Format::Csv };
            assert_eq!(sum(format).await, Err(Kind::DataLoss), "{} bytes of {extension}", bad.len());
        }
        fs::remove_file(path(1, extension)).expect("removed");
        let format = if extension == "parquet" { Format::Parquet } else { Format::Csv };
        assert_eq!(sum(format).await, Err(Kind::DataLoss), "no {extension}");
        fs::write(path(1, extension), good).expect("written");
    }
    assert_eq!((sum(Format::Csv).await, sum(Format::Parquet).await), (Ok(total), Ok(total)));
}

/// The files that a verification finds damaged.
async fn verify(engine: &Engine) -> Vec<String> {
    let (mut verification, mut damaged) = (engine.verify(Origin::SERVER).await.expect("the only one"), Vec::new());
    while let Some(progress) = verification.next().await.expect("verified") {
        damaged.extend(progress.damaged.into_iter().map(|damaged| damaged.file));
    }
    damaged
}

#[tokio::test]
async fn a_damaged_receipt_hides_no_other_damage() {
    for rows in [20, 60_000] {
        let folder = DataFolder::new();
        let engine = folder.open().await;
        engine.upload_valid(csv_of(rows)).await;
        let receipt = part_file(&folder, "json");
        let good_receipt = fs::read(&receipt).expect("readable");
        let extensions = ["csv", "parquet", "sums"].into_iter();
        let extensions: Vec<_> = extensions.filter(|extension| part_file(&folder, extension).exists()).collect();
        // One bit of it, all of it, and none of it is left.
        let mut flipped = good_receipt.clone();
        flipped[good_receipt.len() / 2] ^= 1;
        for bad_receipt in [flipped, vec![0; good_receipt.len()], Vec::new()] {
            fs::write(&receipt, bad_receipt).expect("written");
            assert_eq!(verify(&engine).await, ["parts/1.json"]);
            for extension in &extensions {
                let path = part_file(&folder, extension);
                let good = fs::read(&path).expect("readable");
                for at in [5, good.len() / 2, good.len() - 9] {
                    let mut bad = good.clone();
                    bad[at] ^= 1;
                    fs::write(&path, bad).expect("written");
                    let (damaged, file) = (verify(&engine).await, format!("parts/1.{extension}"));
                    assert!(damaged.contains(&file), "{rows} rows, byte {at} of {extension}: {damaged:?}");
                }
                fs::write(&path, good).expect("written");
            }
        }
        fs::write(&receipt, good_receipt).expect("written");
        assert_eq!(verify(&engine).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_part_is_verified_on_request() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid(csv_of(20_000)).await;
    let verify = async || verify(&engine).await;
    assert_eq!(verify().await, Vec::<String>::new());
    for extension in ["csv", "parquet", "json", "sums"] {
        let good = fs::read(part_file(&folder, extension)).expect("readable");
        for at in [0, good.len() / 3, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(part_file(&folder, extension), bad).expect("written");
            let (damaged, file) = (verify().await, format!("parts/1.{extension}"));
            assert!(damaged.contains(&file), "byte {at} of {extension}: {damaged:?}");
            assert!(damaged.iter().all(|file| file.starts_with("parts/1.")), "{damaged:?}");
        }
        fs::write(part_file(&folder, extension), good).expect("written");
    }
    assert_eq!(verify().await, Vec::<String>::new());
}

/// Turns a part into one of format version 1, which has no checksums but those of the two files.
fn downgrade(folder: &DataFolder) {
    let path = part_file(folder, "json");
    let mut receipt: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("a receipt");
    let fields = receipt.as_object_mut().expect("an object");
    assert!(fields.remove("checks").is_some() && fields.remove("record_xxh3").is_some());
    fields.insert("format".to_owned(), 1.into());
    fs::write(&path, receipt.to_string()).expect("written");
    let _small_parts_have_none = fs::remove_file(part_file(folder, "sums"));
}

fn format_of(folder: &DataFolder) -> Value {
    serde_json::from_slice::<Value>(&fs::read(part_file(folder, "json")).expect("readable")).expect("a receipt")["format"]
        .take()
}

#[tokio::test]
async fn a_part_of_version_1_is_verified_whole_at_its_first_use() {
    for rows in [20, 3_000, 60_000] {
        for first in FORMATS {
            let folder = DataFolder::new();
            let engine = folder.open().await;
            engine.upload_valid(csv_of(rows)).await;
            drop(engine);
            downgrade(&folder);
            let engine = folder.open().await;
            assert_eq!(format_of(&folder), 1, "it has not been used yet");
            assert!(is_right(&engine, first, rows, "the first use").await);
            assert_eq!(format_of(&folder), 2);
            for format in FORMATS {
                assert!(is_right(&engine, format, rows, "after the first use").await);
            }
            drop(engine);
            // The new receipt and list of checksums work like those that an upload writes.
            let engine = folder.open().await;
            for (format, extension) in [(Format::Csv, "csv"), (Format::Parquet, "parquet")] {
                assert!(is_right(&engine, format, rows, "after a restart").await);
                let path = part_file(&folder, extension);
                let step = fs::read(&path).expect("readable").len().div_ceil(50);
                assert!(flip_each(&engine, &path, format, rows, step).await > 1, "{rows} rows, {extension}");
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_part_of_version_1_is_not_summed() {
    for (extension, format) in [("csv", Format::Csv), ("parquet", Format::Parquet)] {
        let folder = DataFolder::new();
        let engine = folder.open().await;
        engine.upload_valid(csv_of(3_000)).await;
        drop(engine);
        downgrade(&folder);
        let good = fs::read(part_file(&folder, extension)).expect("readable");
        for at in [20, good.len() / 2, good.len() - 20] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(part_file(&folder, extension), bad).expect("written");
            let engine = folder.open().await;
            assert!(!is_right(&engine, format, 3_000, "damaged before its first use").await);
            assert_eq!(format_of(&folder), 1, "it was not upgraded");
        }
        fs::write(part_file(&folder, extension), good).expect("written");
        let engine = folder.open().await;
        assert!(is_right(&engine, format, 3_000, "restored").await);
    }
}

/// Such a receipt is valid in itself.
#[tokio::test]
async fn the_receipt_of_another_table_is_detected() {
    let (folder, other) = (DataFolder::new(), DataFolder::new());
    let (engine, other_engine) = (folder.open().await, other.open().await);
    let receipt = engine.upload_valid(csv_of(20)).await;
    let whole = engine.upload_valid(csv_of(30)).await;
    other_engine.upload_valid(csv_of(20).replace("x,", "y,")).await;
    fs::copy(part_file(&other, "json"), part_file(&folder, "json")).expect("copied");
    let is_damage = |error: Error| {
        let text = error.to_string();
        assert!(text.starts_with("part 1 is damaged: receipt: "), "{text}");
        error.kind() == Kind::DataLoss
    };
    let page = engine
        .read_page(engine.receipts_page(None, 10, RECEIPTS_PAGE_BYTES).await.expect("a page"))
        .await
        .expect("a page");
    let [Err(unreadable), Ok(readable)] = &page[..] else { panic!("{page:?}") };
    assert_eq!((unreadable.part, unreadable.rows, unreadable.columns_count), (receipt.part, 20, 3));
    assert_eq!((unreadable.csv_bytes, unreadable.parquet_bytes), (receipt.csv.bytes, receipt.parquet.bytes));
    assert!(unreadable.what.starts_with("part 1 is damaged: receipt: "), "{}", unreadable.what);
    assert_eq!(*readable, whole);
    let mut verification = engine.verify(Origin::SERVER).await.expect("the only one");
    let second = engine.verify(Origin::SERVER).await;
    assert!(second.is_err_and(|error| error.kind() == Kind::Exhausted), "the first one runs");
    let mut damaged = Vec::new();
    while let Some(progress) = verification.next().await.expect("readable") {
        damaged.extend(progress.damaged.into_iter().map(|damaged| damaged.file));
    }
    assert_eq!(damaged, ["parts/1.json"]);
    // The registry keeps no schema of some parts: their columns are read from the receipt.
    drop((engine, verification));
    let store = wait_for("the folder is free", || Store::open(folder.path(), Durability::None).ok()).await;
    assert!(store.schema(&Part::of(&receipt, None)).is_err_and(is_damage));
}

/// A receipt of version 1 has no checksum of its own, so it is compared with the Parquet footer before it is used.
#[tokio::test]
async fn a_damaged_receipt_of_version_1_hides_no_part() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid(csv_of(3_000)).await;
    drop(engine);
    downgrade(&folder);
    let path = part_file(&folder, "json");
    let good = fs::read_to_string(&path).expect("a receipt");
    for (from, to) in [
        ("\"name\":\"x\"", "\"name\":\"y\""),
        ("\"name\":\"text\"", "\"name\":\"tex7\""),
        ("\"type\":\"int64\"", "\"type\":\"utf8\""),
        ("\"rows\":3000", "\"rows\":3001"),
        ("\"row_groups\":1", "\"row_groups\":3"),
        ("\"footer_bytes\":", "\"footer_bytes\":9"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        fs::write(&path, &bad).expect("written");
        let engine = folder.open().await;
        for format in FORMATS {
            let error = engine.column_sum("x", format).await.expect_err(to);
            assert_eq!(error.kind(), Kind::DataLoss, "{to}: {error}");
        }
    }
    fs::write(&path, good).expect("written");
    let engine = folder.open().await;
    assert!(is_right(&engine, Format::Csv, 3_000, "restored").await);
}

/// The checksums of the column chunks follow those of the CSV there, so only the footer tells how many there are.
#[tokio::test]
async fn a_list_of_version_1_that_ends_with_a_page_before_its_end_is_damaged() {
    const COLUMNS: usize = 600;
    const LIST_PAGE_BYTES: usize = 4096;
    let folder = DataFolder::new();
    let engine = folder.open().await;
    let names: Vec<_> = (0..COLUMNS).map(|column| format!("c{column}")).collect();
    engine.upload_valid(format!("{}\n{}\n", names.join(","), vec!["1"; COLUMNS].join(","))).await;
    drop(engine);
    downgrade(&folder);
    let engine = folder.open().await;
    assert_eq!(engine.column_sum("c7", Format::Parquet).await.expect("the first use").total, 1);
    assert_eq!(verify(&engine).await, Vec::<String>::new());
    let list = fs::read(part_file(&folder, "sums")).expect("a list");
    assert!(list.len() > LIST_PAGE_BYTES && list.len() < 2 * LIST_PAGE_BYTES, "{} bytes", list.len());
    fs::write(part_file(&folder, "sums"), &list[..LIST_PAGE_BYTES]).expect("written");
    assert_eq!(verify(&engine).await, ["parts/1.sums"]);
    fs::write(part_file(&folder, "sums"), list).expect("written");
    assert_eq!(verify(&engine).await, Vec::<String>::new());
}

/// The folder is as a kill between the two renames of an upgrade leaves it.
#[tokio::test]
async fn an_interrupted_upgrade_is_done_again() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    engine.upload_valid(csv_of(60_000)).await;
    drop(engine);
    downgrade(&folder);
    let receipt = fs::read(part_file(&folder, "json")).expect("a receipt");
    let engine = folder.open().await;
    assert!(is_right(&engine, Format::Csv, 60_000, "the first use").await);
    drop(engine);
    let (list, upgraded) = (fs::read(part_file(&folder, "sums")), fs::read(part_file(&folder, "json")));
    fs::write(part_file(&folder, "json"), receipt).expect("written");
    let engine = folder.open().await;
    for format in FORMATS {
        assert!(is_right(&engine, format, 60_000, "after the kill").await);
    }
    drop(engine);
    assert_eq!(fs::read(part_file(&folder, "sums")).expect("a list"), list.expect("a list"), "it is always the same");
    assert_eq!(fs::read(part_file(&folder, "json")).expect("a receipt"), upgraded.expect("a receipt"));
}
