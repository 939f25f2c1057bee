//! Data folders that earlier versions wrote open, and answer the same.
//!
//! `tests/data/format-1` was written before parts had checksums of their blocks, `tests/data/format-2` after. Both hold
//! the same three uploads: plain integers, quoted text with newlines and empty cells, and 12,000 rows with CRLF.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

mod common;

use std::{fs, path::Path};

use common::DataFolder;
use tally::{
    engine::{group_by::spec::GroupBy, state::transfers::Origin},
    error::Kind,
    model::format::Format,
};

/// A copy of a data folder that an earlier version wrote.
fn copy_of(name: &str) -> DataFolder {
    let folder = DataFolder::new();
    let parts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).join("parts");
    fs::create_dir(folder.file("parts")).expect("an empty folder");
    for entry in fs::read_dir(parts).expect("readable") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        fs::copy(&path, folder.file(&format!("parts/{file}"))).expect("copied");
    }
    folder
}

async fn answers_the_same(name: &str) {
    let folder = copy_of(name);
    // The second time, parts of format version 1 have been upgraded.
    for _start in 0..2 {
        let engine = folder.open().await;
        assert_eq!((engine.leftovers_found, engine.quarantined), (0, 0), "{name}");
        for format in [Format::Csv, Format::Parquet] {
            for (column, expected) in [("x", -3), ("y", 71_994_025), ("z", 603), ("a", 35_995), ("b", 0)] {
                let sum = engine.column_sum(column, format).await.expect("an answer");
                assert_eq!(sum.total, expected, "{name}: column {column} of {format:?}");
            }
        }
        let receipts = engine.receipts(None, 10).await.expect("receipts");
        let rows: Vec<_> = receipts.iter().map(|receipt| (receipt.part.get(), receipt.rows)).collect();
        assert_eq!(rows, [(1, 2), (2, 3), (3, 12_000)], "{name}");
        let spec = GroupBy::new(vec!["name".to_owned()], vec!["y".to_owned()]).expect("a group sum");
        let mut stored = engine.group_sum(Origin::SERVER, spec).await.expect("groups");
        let mut groups = Vec::new();
        loop {
            let block = stored.next_block().await.expect("a block");
            if block.is_empty() {
                break;
            }
            groups.extend(block.into_iter().map(|group| (group.cells[0].clone(), group.totals[0])));
        }
        groups.sort();
        let expected = [("O'Brien, \"Al\"", 7), ("two\nlines", 11), ("été", 0)];
        assert_eq!(groups, expected.map(|(name, total)| (name.to_owned(), total)), "{name}");
    }
}

#[tokio::test]
async fn parts_without_block_checksums_are_upgraded_and_answer_the_same() {
    answers_the_same("format-1").await;
}

#[tokio::test]
async fn parts_with_block_checksums_answer_the_same() {
    answers_the_same("format-2").await;
}

/// A receipt of version 1 has no checksum of itself, so it is compared with the files before it gets one.
#[tokio::test]
async fn a_wrong_receipt_of_version_1_is_not_upgraded() {
    let wrong = [
        (2, r#""rows":3"#, r#""rows":2"#, "y"),
        (2, r#""name":"y","type":"int64","nulls":1"#, r#""name":"y","type":"int64","nulls":3"#, "y"),
        (2, r#""name":"price","type":"float64","nulls":1"#, r#""name":"price","type":"float64","nulls":3"#, "price"),
        (2, r#""name":"price","type":"float64""#, r#""name":"price","type":"int64""#, "price"),
        (2, r#""name":"y""#, r#""name":"Y""#, "Y"),
        (1, r#""name":"x","type":"int64","nulls":0"#, r#""name":"x","type":"int64","nulls":1"#, "x"),
        (3, r#""row_groups":1"#, r#""row_groups":2"#, "a"),
    ];
    for (part, right, changed, column) in wrong {
        let folder = copy_of("format-1");
        let path = folder.file(&format!("parts/{part}.json"));
        let receipt = fs::read_to_string(&path).expect("a receipt");
        assert_eq!(receipt.matches(right).count(), 1, "{right}");
        fs::write(&path, receipt.replace(right, changed)).expect("written");
        // Also after a restart: nothing was upgraded.
        for _start in 0..2 {
            let engine = folder.open().await;
            for format in [Format::Csv, Format::Parquet] {
                let answer = engine.column_sum(column, format).await;
                let error = answer.map(|sum| sum.total).expect_err(changed);
                assert_eq!(error.kind(), Kind::DataLoss, "{changed}, {format:?}: {error}");
                assert!(error.to_string().starts_with(&format!("part {part} ")), "{changed}: {error}");
            }
        }
    }
}
