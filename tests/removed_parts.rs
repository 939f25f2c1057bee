//! Parts that are removed, restored and purged: what questions answer, what is on disk, and what a restart finds.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use tally::{
    engine::{Durability, Loaded, state::transfers::Origin},
    error::{Error, Kind},
    limits::Limits,
    model::{dialect::Dialect, format::Format, part::PartId},
};

use self::common::{DataFolder, TestEngine, in_time, wait_until};

mod common;

fn id(number: u64) -> PartId {
    PartId::new(number).expect("above 0")
}

/// The sum of `x`, which is the same from both formats.
async fn sum(engine: &TestEngine) -> i64 {
    let csv = engine.column_sum("x", Format::Csv).await.expect("integers").total;
    let parquet = engine.column_sum("x", Format::Parquet).await.expect("integers").total;
    assert_eq!(csv, parquet);
    csv
}

/// Part N has one row, in which x is 10 to the power of N - 1. So a sum shows which parts it has. Its size has a list of
/// checksums if `is_large`.
async fn engine_with(folder: &DataFolder, parts: u32, is_large: bool) -> TestEngine {
    let engine = folder.open().await;
    for number in 0..parts {
        let filler = if is_large { ",\n".repeat(100_000) } else { String::new() };
        engine.upload_valid(format!("x,y\n{},\n{filler}", 10_i64.pow(number))).await;
    }
    engine
}

#[tokio::test]
async fn a_removed_part_is_in_no_answer_until_it_is_restored() {
    for is_large in [false, true] {
        let folder = DataFolder::new();
        let engine = engine_with(&folder, 3, is_large).await;
        let files = folder.names_in("parts");
        for restart in [false, true] {
            let removed = engine.remove_part(id(2), false).await.expect("removed");
            assert_eq!(removed.parts, 2);
            assert!(removed.restorable_until.is_some());
            assert_eq!(engine.remove_part(id(2), false).await.expect("again"), removed);
            assert_eq!(sum(&engine).await, 101);
            assert_eq!(engine.parts_count(), 2);
            let left: Vec<_> = files.iter().filter(|name| !name.starts_with("2.")).cloned().collect();
            assert_eq!(folder.names_in("parts"), left);
            let listed = engine.receipts(None, 10).await.expect("receipts");
            assert_eq!(listed.iter().map(|receipt| receipt.part.get()).collect::<Vec<_>>(), [1, 3]);
            if restart {
                break;
            }
            assert_eq!(engine.restore_part(id(2)).await.expect("restored"), 3);
            assert_eq!(engine.restore_part(id(2)).await.expect("again"), 3);
            assert_eq!(sum(&engine).await, 111);
            assert_eq!(folder.names_in("parts"), files);
            assert_eq!(folder.names_in("removed"), [""; 0]);
        }
        drop(engine);
        let engine = folder.open().await;
        assert_eq!((engine.leftovers_found, engine.quarantined, engine.missing_parts().count()), (0, 0, 0));
        assert_eq!(sum(&engine).await, 101);
        assert_eq!(engine.restore_part(id(2)).await.expect("restored after a restart"), 3);
        assert_eq!(sum(&engine).await, 111);
    }
}

#[tokio::test]
async fn parts_that_are_not_there_cannot_be_removed_or_restored() {
    let folder = DataFolder::new();
    let engine = engine_with(&folder, 1, false).await;
    for number in [2, u64::MAX] {
        for error in [
            engine.remove_part(id(number), false).await.expect_err("not there"),
            engine.remove_part(id(number), true).await.expect_err("not there"),
            engine.restore_part(id(number)).await.expect_err("not there"),
        ] {
            assert_eq!(error.kind(), Kind::NotFound);
            assert_eq!(
                error.to_string(),
                format!("there is no part {number}: it was never there, or its files are gone")
            );
        }
    }
    drop(engine);
    fs::remove_file(folder.file("parts/1.csv")).expect("there");
    let engine = folder.open().await;
    let error = engine.remove_part(id(1), false).await.expect_err("in quarantine");
    assert_eq!(error.to_string(), "part 1 is in quarantine: accept its loss with `tally forget 1`");
    assert_eq!(error.kind(), Kind::Conflict);
}

#[tokio::test]
async fn a_number_is_never_given_out_again() {
    for purge in [false, true] {
        let folder = DataFolder::new();
        let engine = engine_with(&folder, 3, false).await;
        for number in [3, 2] {
            engine.remove_part(id(number), purge).await.expect("removed");
        }
        assert_eq!(
            folder.names_in("removed").iter().filter(|name| name.ends_with(".purged")).count(),
            usize::from(purge)
        );
        drop(engine);
        for expected in [4, 5] {
            // A second start without a change in between.
            drop(folder.open().await);
            let engine = folder.open().await;
            let receipt = engine.upload_valid("x\n7\n").await;
            assert_eq!(receipt.part, id(expected), "purge: {purge}");
            engine.remove_part(receipt.part, purge).await.expect("removed");
        }
        let engine = folder.open().await;
        assert_eq!(sum(&engine).await, 1);
        assert!(!purge || folder.names_in("removed") == ["5.purged"], "{:?}", folder.names_in("removed"));
    }
}

#[tokio::test]
async fn a_purge_deletes_the_files_at_once() {
    let folder = DataFolder::new();
    let engine = engine_with(&folder, 3, true).await;
    engine.remove_part(id(1), false).await.expect("removed");
    for number in [1, 2] {
        let removed = engine.remove_part(id(number), true).await.expect("purged");
        assert_eq!(removed.restorable_until, None);
        assert_eq!(engine.restore_part(id(number)).await.expect_err("purged").kind(), Kind::NotFound);
        assert_eq!(engine.remove_part(id(number), true).await.expect_err("purged").kind(), Kind::NotFound);
    }
    assert_eq!(folder.names_in("removed"), ["2.purged"]);
    assert_eq!(fs::metadata(folder.file("removed/2.purged")).expect("there").len(), 0, "no names of columns are left");
    assert!(folder.names_in("parts").iter().all(|name| name.starts_with("3.")));
    assert_eq!(sum(&engine).await, 100);
}

#[tokio::test]
async fn files_are_deleted_when_the_time_for_an_undo_is_over() {
    let folder = DataFolder::new();
    drop(engine_with(&folder, 2, true).await);
    let limits = Limits { undo: Duration::from_secs(1), ..Limits::default() };
    let engine = folder.open_with(Durability::None, limits).await;
    engine.remove_part(id(1), false).await.expect("removed");
    wait_until("its files are gone", || folder.names_in("removed") == ["1.purged"]).await;
    assert_eq!(engine.restore_part(id(1)).await.expect_err("too late").kind(), Kind::NotFound);
    assert_eq!(sum(&engine).await, 10);
    // A start after the time is over.
    engine.remove_part(id(2), false).await.expect("removed");
    drop(engine);
    let engine = folder.open_with(Durability::None, limits).await;
    wait_until("its files are gone", || folder.names_in("removed") == ["2.purged"]).await;
    assert_eq!(engine.upload_valid("x\n7\n").await.part, id(3));
}

/// Every state in which a kill can leave the files: a restart completes what was begun. The receipt decides what that is.
#[tokio::test]
async fn a_restart_completes_a_removal_a_restore_or_a_purge() {
    let names = ["2.csv", "2.parquet", "2.sums"];
    for moved in 0..=names.len() {
        for (receipt, restorable) in [("removed/2.json", true), ("removed/2.purged", false)] {
            let folder = DataFolder::new();
            drop(engine_with(&folder, 3, true).await);
            fs::rename(folder.file("parts/2.json"), folder.file(receipt)).expect("renamed");
            for name in &names[..moved] {
                fs::rename(folder.file(&format!("parts/{name}")), folder.file(&format!("removed/{name}")))
                    .expect("renamed");
            }
            let engine = folder.open().await;
            assert_eq!((engine.leftovers_found, engine.quarantined, engine.missing_parts().count()), (0, 0, 0));
            assert_eq!((sum(&engine).await, engine.parts_count()), (101, 2));
            let left = folder.names_in("removed");
            if restorable {
                assert_eq!(left, ["2.csv", "2.json", "2.parquet", "2.sums"]);
                engine.restore_part(id(2)).await.expect("restored");
                assert_eq!(sum(&engine).await, 111);
            } else {
                assert_eq!(left, ["2.purged"]);
                assert!(engine.restore_part(id(2)).await.is_err());
            }
            assert!(folder.names_in("parts").iter().any(|name| name.starts_with("2.")) == restorable);
            assert_eq!(engine.upload_valid("x\n7\n").await.part, id(4));
        }
    }
}

/// A part that cannot be restored stays removed, and does not become a damaged part of the table.
#[tokio::test]
async fn a_damaged_part_is_not_restored() {
    for (file, what) in [("2.csv", "csv: "), ("2.parquet", "parquet: "), ("2.sums", "sums: "), ("2.json", "receipt: ")]
    {
        let folder = DataFolder::new();
        let engine = engine_with(&folder, 3, true).await;
        engine.remove_part(id(2), false).await.expect("removed");
        fs::write(folder.file(&format!("removed/{file}")), b"short").expect("written");
        if file == "2.sums" {
            fs::remove_file(folder.file("removed/2.sums")).expect("there");
        }
        let error = engine.restore_part(id(2)).await.expect_err("damaged");
        assert!(matches!(&error, Error::Damaged { what: found, .. } if found.starts_with(what)), "{error}");
        assert_eq!(sum(&engine).await, 101);
        assert!(folder.names_in("parts").iter().all(|name| !name.starts_with("2.")));
        drop(engine);
        let engine = folder.open().await;
        assert_eq!((engine.quarantined, engine.missing_parts().count()), (0, 0));
        assert!(engine.restore_part(id(2)).await.is_err());
        assert_eq!(sum(&engine).await, 101);
        engine.remove_part(id(2), true).await.expect("purged");
        assert_eq!(folder.names_in("removed"), ["2.purged"]);
    }
}

/// Sums that run while parts are removed and restored have each part either whole or not at all, and never fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_run_while_parts_come_and_go() {
    let folder = DataFolder::new();
    let engine = engine_with(&folder, 4, true).await;
    let done = AtomicBool::new(false);
    let ask = async {
        let mut seen = BTreeSet::new();
        while !done.load(Ordering::Relaxed) {
            for format in [Format::Csv, Format::Parquet] {
                seen.insert(engine.column_sum("x", format).await.expect("no part is missing").total);
            }
            let mut verification = engine.verify(Origin::SERVER).await.expect("no other");
            while let Some(progress) = verification.next().await.expect("it goes on") {
                assert_eq!(progress.damaged, []);
            }
            engine.receipts(None, 10).await.expect("receipts");
        }
        seen
    };
    let change = async {
        for round in 0..60 {
            engine.remove_part(id(2), false).await.expect("removed");
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            engine.restore_part(id(2)).await.expect("restored");
        }
        in_time("the purge", engine.remove_part(id(3), true)).await.expect("purged");
        done.store(true, Ordering::Relaxed);
    };
    let (seen, ()) = tokio::join!(ask, change);
    assert!(seen.is_subset(&[1111, 1101, 1011].into()), "{seen:?}");
    assert!(seen.contains(&1111) && seen.contains(&1101), "{seen:?}");
    assert_eq!(sum(&engine).await, 1011);
}

#[tokio::test]
async fn a_removed_part_counts_until_it_is_purged() {
    let folder = DataFolder::new();
    let engine = folder.open_with(Durability::None, Limits { parts_max: 2, ..Limits::default() }).await;
    for _ in 0..2 {
        engine.upload_valid("x\n7\n").await;
    }
    engine.remove_part(id(1), false).await.expect("removed");
    let full = common::upload_cut(&engine, b"x\n7\n", &[]).await.expect_err("its place is kept").to_string();
    assert!(full.contains("1 of them removed and still restorable (`tally remove --purge` makes room)"), "{full}");
    engine.restore_part(id(1)).await.expect("there is room");
    engine.remove_part(id(1), true).await.expect("purged");
    assert_eq!(engine.upload_valid("x\n7\n").await.part, id(3));
}

#[tokio::test]
async fn a_file_whose_part_was_removed_is_not_loaded_again_until_it_is_purged() {
    let folder = DataFolder::new();
    let file = folder.file("file.csv");
    fs::write(&file, "x\n7\n").expect("written");
    let engine = folder.open().await;
    assert_eq!(engine.load(&file, &Dialect::default()).await.expect("loaded"), Loaded::Now(id(1)));
    engine.remove_part(id(1), false).await.expect("removed");
    assert_eq!(engine.load(&file, &Dialect::default()).await.expect("found"), Loaded::Removed(id(1)));
    drop(engine);
    let engine = folder.open().await;
    assert_eq!(engine.load(&file, &Dialect::default()).await.expect("found"), Loaded::Removed(id(1)));
    engine.remove_part(id(1), true).await.expect("purged");
    assert_eq!(engine.load(&file, &Dialect::default()).await.expect("loaded"), Loaded::Now(id(2)));
    assert_eq!(sum(&engine).await, 7);
}

/// A backup of hard links keeps the receipt of a part that is purged later.
#[tokio::test]
async fn a_purge_does_not_change_the_receipt_in_place() {
    let folder = DataFolder::new();
    let engine = engine_with(&folder, 2, false).await;
    let receipt = fs::read(folder.file("parts/2.json")).expect("there");
    fs::hard_link(folder.file("parts/2.json"), folder.file("backup.json")).expect("linked");
    engine.remove_part(id(2), true).await.expect("purged");
    assert_eq!(fs::read(folder.file("backup.json")).expect("there"), receipt);
    assert_eq!(fs::metadata(folder.file("removed/2.purged")).expect("there").len(), 0);
}

#[tokio::test]
async fn files_of_a_purged_part_that_could_not_be_deleted_are_deleted_later() {
    for by_restart in [false, true] {
        let folder = DataFolder::new();
        let limits = Limits { undo: Duration::from_secs(1), ..Limits::default() };
        drop(engine_with(&folder, 2, false).await);
        let engine = folder.open_with(Durability::None, limits).await;
        let obstacle = folder.file("removed/2.sums");
        fs::create_dir(&obstacle).expect("created");
        assert_eq!(engine.remove_part(id(2), true).await.expect("purged").parts, 1);
        assert_eq!(folder.names_in("removed"), ["2.purged", "2.sums"]);
        assert!(fs::metadata(folder.file("removed/2.purged")).expect("there").len() > 0, "it is not done");
        assert_eq!(engine.remove_part(id(2), true).await.expect_err("purged before").kind(), Kind::NotFound);
        assert_eq!(engine.restore_part(id(2)).await.expect_err("purged").kind(), Kind::NotFound);
        if by_restart {
            drop(engine);
            drop(folder.open().await);
            assert!(fs::metadata(folder.file("removed/2.purged")).expect("there").len() > 0, "it is still not done");
            fs::remove_dir(&obstacle).expect("removed");
            drop(folder.open().await);
        } else {
            fs::remove_dir(&obstacle).expect("removed");
            let is_done = || fs::metadata(folder.file("removed/2.purged")).is_ok_and(|it| it.len() == 0);
            wait_until("the sweep has tried again", is_done).await;
        }
        assert_eq!(folder.names_in("removed"), ["2.purged"]);
        assert_eq!(fs::metadata(folder.file("removed/2.purged")).expect("there").len(), 0);
    }
}

/// Only the start looks for links, so one can appear while the server runs. The next start would refuse it in `removed/`.
#[tokio::test]
async fn a_part_whose_receipt_is_a_link_is_not_purged() {
    let folder = DataFolder::new();
    let engine = engine_with(&folder, 1, false).await;
    let (receipt, elsewhere) = (folder.file("parts/1.json"), folder.file("elsewhere.json"));
    fs::rename(&receipt, &elsewhere).expect("renamed");
    std::os::unix::fs::symlink(&elsewhere, &receipt).expect("linked");
    for purge in [false, true] {
        let error = engine.remove_part(id(1), purge).await.expect_err("a link").to_string();
        assert!(error.contains("it is a symbolic link"), "{error}");
    }
    assert_eq!(folder.names_in("removed"), [""; 0]);
    fs::rename(&elsewhere, &receipt).expect("renamed");
    drop(engine);
    assert_eq!(sum(&folder.open().await).await, 1);
}

/// The sweep comes only half a minute after a start.
#[tokio::test]
async fn a_part_whose_time_is_over_neither_comes_back_nor_keeps_its_file_from_being_loaded() {
    let folder = DataFolder::new();
    let file = folder.file("file.csv");
    fs::write(&file, "x\n7\n").expect("written");
    let engine = folder.open().await;
    assert_eq!(engine.load(&file, &Dialect::default()).await.expect("loaded"), Loaded::Now(id(1)));
    engine.remove_part(id(1), false).await.expect("removed");
    drop(engine);
    let receipt = fs::File::options().write(true).open(folder.file("removed/1.json")).expect("there");
    receipt.set_modified(SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60)).expect("set");
    let engine = folder.open().await;
    assert_eq!(engine.load(&file, &Dialect::default()).await.expect("loaded"), Loaded::Now(id(2)));
    assert_eq!(engine.restore_part(id(1)).await.expect_err("too late").kind(), Kind::NotFound);
    assert_eq!(sum(&engine).await, 7);
}
