//! Tests of the order in which files are synced and renamed, which only matters after a power failure. Every sync and rename
//! of the store is recorded here, by thread, and the tests compare the records with the required order.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::Write as _,
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
};

use super::{
    Store,
    checksums::{BLOCK_BYTES, checksum},
    commit::PreparedPart,
    draft::Draft,
    names::{JobFile, name_of},
    segments::writing::SegmentWriter,
};
use crate::{
    limits::DRAFT_BUFFER_BYTES,
    model::{
        checksum::to_hex,
        durability::Durability,
        packed::SegmentId,
        part::{FORMAT_VERSION, FileInfo, Part, PartId, Receipt, ReceiptChecks},
        schema::{Column, ColumnType},
    },
};

/// A sync or rename. Paths are relative to the data folder: `parts/1.csv`, or `parts` for a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Sync(String),
    /// A sync of the whole file system.
    SyncAll,
    Rename {
        from: String,
        to: String,
    },
}

thread_local! {
    static EVENTS: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn note_sync(file: &File) {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("Linux knows the path");
    note(Event::Sync(short(&path)));
}

pub(super) fn note_sync_of_all() {
    note(Event::SyncAll);
}

pub(super) fn note_rename(from: &Path, to: &Path) {
    note(Event::Rename { from: short(from), to: short(to) });
}

fn note(event: Event) {
    EVENTS.with_borrow_mut(|events| events.push(event));
}

/// The path relative to the data folder.
fn short(path: &Path) -> String {
    if path.is_dir() {
        return name_of(path);
    }
    format!("{}/{}", name_of(path.parent().expect("a folder")), name_of(path))
}

fn sync_of(path: impl Into<String>) -> Event {
    Event::Sync(path.into())
}

fn rename_of(from: impl Into<String>, to: impl Into<String>) -> Event {
    Event::Rename { from: from.into(), to: to.into() }
}

/// The events of this thread since the last call.
fn take() -> Vec<Event> {
    EVENTS.take()
}

fn store(folder: &tempfile::TempDir, durability: Durability) -> Arc<Store> {
    let store = Store::open(folder.path(), durability).expect("a data folder");
    take();
    Arc::new(store)
}

fn draft(store: &Store, bytes: usize) -> Draft {
    let mut draft = store.draft_with_block_checksums().expect("a draft");
    draft.write_all(&vec![b'1'; bytes]).expect("written");
    draft
}

fn receipt_of(number: u64, csv: FileInfo, parquet: FileInfo) -> Receipt {
    Receipt {
        format: FORMAT_VERSION,
        part: PartId::new(number).expect("an id"),
        rows: 1,
        columns: vec![Column { name: "a".to_owned(), column_type: ColumnType::Int64, nulls: 0 }],
        column_bytes: Vec::new(),
        csv,
        parquet,
        row_groups: 1,
        footer_bytes: 1,
        uploaded_at: String::new(),
        checks: None,
        idempotency_key: None,
        segment: None,
        source: None,
    }
}

/// A small part, or one that is large enough for drafts on disk. If `is_synced`, its files are synced before staging.
fn staged(store: &Arc<Store>, number: u64, is_large: bool, is_synced: bool) -> PreparedPart {
    let bytes = if is_large { 3 * DRAFT_BUFFER_BYTES } else { 10 };
    let (mut csv, mut parquet) = (draft(store, bytes), draft(store, bytes + 1));
    if is_synced {
        csv.sync().expect("synced");
        parquet.sync().expect("synced");
    }
    let receipt = receipt_of(number, csv.info(), parquet.info());
    store.prepare_part(csv, parquet, &receipt).expect("staged")
}

/// The index of the last sync of the file that is at `path` in the end, under any of its names.
fn last_sync(events: &[Event], path: &str) -> Option<usize> {
    let mut name = path.to_owned();
    for (index, event) in events.iter().enumerate().rev() {
        match event {
            Event::SyncAll => return Some(index),
            Event::Sync(synced) if *synced == name => return Some(index),
            Event::Rename { from, to } if *to == name => name.clone_from(from),
            _ => {}
        }
    }
    None
}

/// The index of the rename to `path`.
fn rename_to(events: &[Event], path: &str) -> usize {
    let is_it = |event: &Event| matches!(event, Event::Rename { to, .. } if to == path);
    events.iter().position(is_it).unwrap_or_else(|| panic!("{path} was not renamed: {events:#?}"))
}

/// Checks that all files of each part are synced before its receipt is renamed, and the folder after that.
fn check_commit(events: &[Event], parts: &[u64]) {
    let last_rename = parts.iter().map(|part| rename_to(events, &format!("parts/{part}.json"))).max();
    for part in parts {
        let renamed = rename_to(events, &format!("parts/{part}.json"));
        let has_block_checksums =
            events.iter().any(|event| matches!(event, Event::Rename { to, .. } if *to == format!("parts/{part}.sums")));
        assert_eq!(has_block_checksums, part % 2 == 0, "the large ones have a block list: {events:#?}");
        let extensions: &[&str] =
            if has_block_checksums { &["csv", "parquet", "sums", "json"] } else { &["csv", "parquet", "json"] };
        for &extension in extensions {
            let path = format!("parts/{part}.{extension}");
            let synced =
                last_sync(&events[..renamed], &if extension == "json" { draft_of(events, part) } else { path });
            assert!(synced.is_some(), "{part}.{extension} is not synced before its receipt is renamed: {events:#?}");
        }
    }
    let folder_synced = events.iter().rposition(|event| *event == sync_of("parts"));
    assert!(folder_synced > last_rename, "the folder is not synced after the renames: {events:#?}");
}

/// The name of a receipt's draft.
fn draft_of(events: &[Event], part: &u64) -> String {
    match &events[rename_to(events, &format!("parts/{part}.json"))] {
        Event::Rename { from, .. } => from.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_commit_syncs_the_files_then_renames_the_receipts_then_syncs_the_folder() {
    for (parts, uses_syncfs) in [(1, true), (1, false), (4, true), (4, false)] {
        for is_synced in [false, true] {
            let folder = tempfile::TempDir::new().expect("a folder");
            let mut store = Store::open(folder.path(), Durability::Fsync).expect("a data folder");
            store.uses_syncfs = uses_syncfs.into();
            let store = Arc::new(store);
            take();
            let ids: Vec<u64> = (1..=parts).collect();
            let batch = ids.iter().map(|&id| staged(&store, id, id % 2 == 0, is_synced)).collect();
            store.commit(batch).expect("committed");
            let events = take();
            check_commit(&events, &ids);
            let at_once = events.contains(&Event::SyncAll);
            assert_eq!(at_once, parts > 1 && uses_syncfs && !is_synced, "{events:#?}");
        }
    }
}

#[test]
fn without_durability_nothing_is_synced() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder, Durability::None);
    staged(&store, 1, true, false).commit_unsynced().expect("committed");
    store.publish_job("job_id_1", b"{}".to_vec()).expect("published");
    store.publish_job_file(draft(&store, 10), "job_id_1", JobFile::Result).expect("published");
    let events = take();
    assert!(events.iter().all(|event| matches!(event, Event::Rename { .. })), "{events:#?}");
}

#[test]
fn a_draft_that_says_it_is_synced_is() {
    for bytes in [10, 3 * DRAFT_BUFFER_BYTES] {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store(&folder, Durability::Fsync);
        let mut draft = draft(&store, bytes);
        draft.sync().expect("synced");
        assert!(draft.synced);
        let list = if bytes > BLOCK_BYTES { vec![sync_of("tmp/0.sums")] } else { Vec::new() };
        assert_eq!(take(), [vec![sync_of("tmp/0")], list].concat());
        assert_eq!(
            fs::metadata(&draft.path).expect("on disk").len(),
            bytes as u64,
            "everything was written before the sync"
        );
    }
}

#[test]
fn the_files_of_a_job_are_synced_then_renamed_and_their_folder_is_synced_with_the_record() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder, Durability::Fsync);
    let expected = |draft: &str, to: &str| [sync_of(draft), rename_of(draft, to), sync_of("jobs")];
    store.publish_job("job_id_1", b"{}".to_vec()).expect("published");
    assert_eq!(take(), expected("tmp/0", "jobs/job_id_1.json"));
    store.publish_job("job_id_1", b"{\"in place of\": \"the last\"}".to_vec()).expect("published");
    assert_eq!(take(), expected("tmp/1", "jobs/job_id_1.json"));
    store.replace_job("job_id_1", b"{\"either\": \"of the two\"}".to_vec()).expect("published");
    assert_eq!(take(), expected("tmp/2", "jobs/job_id_1.json")[..2], "the folder is not synced");
    for (number, kind, name) in [(3, JobFile::Input, "input"), (4, JobFile::Result, "result")] {
        store.publish_job_file(draft(&store, 10), "job_id_1", kind).expect("published");
        let file = expected(&format!("tmp/{number}"), &format!("jobs/job_id_1.{name}"));
        assert_eq!(take(), file[..2], "the folder is synced with the record");
    }
    // A draft that is already synced is not synced again.
    let mut large = draft(&store, 3 * DRAFT_BUFFER_BYTES);
    large.sync().expect("synced");
    store.publish_job_file(large, "job_id_1", JobFile::Result).expect("published");
    let file = expected("tmp/5", "jobs/job_id_1.result");
    let list = expected("tmp/5.sums", "jobs/job_id_1.result-sums");
    let [[sync, rename, sync_folder], [sync_list, rename_list, _]] = [file, list];
    assert_eq!(take(), [sync, sync_list, rename_list, rename, sync_folder]);
}

#[test]
fn an_upgrade_publishes_the_block_list_before_the_receipt_that_refers_to_it() {
    for durability in [Durability::Fsync, Durability::None] {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store(&folder, durability);
        let info = draft(&store, 10).info();
        let receipt = receipt_of(1, info.clone(), info);
        store.upgrade_receipt(&receipt, Some(draft(&store, 10))).expect("upgraded");
        let events = take();
        let (list, renamed) = (rename_to(&events, "parts/1.sums"), rename_to(&events, "parts/1.json"));
        assert!(list < renamed, "{events:#?}");
        if durability == Durability::Fsync {
            assert!(
                last_sync(&events[..renamed], "parts/1.sums").is_some(),
                "the block list is not synced: {events:#?}"
            );
            assert!(
                last_sync(&events[..renamed], &draft_of(&events, &1)).is_some(),
                "the receipt is not synced: {events:#?}"
            );
            assert_eq!(events.last(), Some(&sync_of("parts")), "the folder is synced last");
        } else {
            assert_eq!(events.len(), 2, "nothing is synced: {events:#?}");
        }
    }
}

/// The accepted loss of a part is synced whatever `--durability` says.
#[test]
fn an_accepted_loss_is_synced_then_renamed_then_the_folder_is_synced() {
    for durability in [Durability::Fsync, Durability::None] {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store(&folder, durability);
        store.record_loss(PartId::FIRST, "2026-01-01T00:00:00Z").expect("recorded");
        let to = "quarantine/1.forgotten";
        assert_eq!(take(), [sync_of("tmp/0"), rename_of("tmp/0", to), sync_of("quarantine")]);
    }
}

/// If the process is killed between two of these renames, the next start finds a damaged part again, and not leftovers.
#[test]
fn quarantine_takes_the_receipt_last() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder, Durability::Fsync);
    store.commit(vec![staged(&store, 1, false, false)]).expect("committed");
    fs::write(folder.path().join("parts/1.csv"), b"shorter").expect("written");
    take();
    let found = store.recover(|receipt| panic!("it is damaged: {receipt:?}")).expect("in order");
    assert_eq!(found.quarantined.len(), 1);
    let moved = |folder: &str, name: &str, extensions: [&str; 3]| {
        let rename =
            |extension| rename_of(format!("{folder}/{name}.{extension}"), format!("quarantine/{name}.{extension}"));
        extensions.map(rename)
    };
    assert_eq!(take().last(), moved("parts", "1", ["csv", "parquet", "json"]).last(), "the receipt is the last");

    store.publish_job("job_id_1", b"{}".to_vec()).expect("published");
    store.publish_job_file(draft(&store, 10), "job_id_1", JobFile::Input).expect("published");
    store.publish_job_file(draft(&store, 10), "job_id_1", JobFile::Result).expect("published");
    take();
    store.move_job_to_quarantine("job_id_1").expect("moved");
    assert_eq!(take().last(), moved("jobs", "job_id_1", ["input", "result", "json"]).last(), "the record is the last");
}

/// A removal, a restore and a purge are one rename of the receipt. It is synced whatever `--durability` says, in the new folder
/// first, and only then are the other files touched.
#[test]
fn a_removal_renames_the_receipt_then_syncs_both_folders_then_moves_the_files() {
    for durability in [Durability::Fsync, Durability::None] {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = store(&folder, durability);
        let (id, now) = (PartId::new(2).expect("an id"), std::time::SystemTime::now());
        store.commit(vec![staged(&store, 2, true, false)]).expect("committed");
        take();
        let files = ["csv", "parquet", "sums"];
        let moved =
            |from: &str, to: &str| files.map(|file| rename_of(format!("{from}/2.{file}"), format!("{to}/2.{file}")));

        store.remove_part(id, now).expect("removed");
        let receipt = rename_of("parts/2.json", "removed/2.json");
        assert_eq!(take(), [sync_of("parts/2.json"), receipt, sync_of("removed"), sync_of("parts")]);
        store.move_removed_files(id);
        assert_eq!(take(), moved("parts", "removed"));

        // The test's receipt has no checksums, so it cannot be restored, and everything is removed again.
        store.restore_part(id).expect_err("its receipt is not one");
        assert_eq!(take(), [moved("removed", "parts"), moved("parts", "removed")].concat());

        store.purge_part(id, true, "").expect("purged");
        assert_eq!(take(), [rename_of("removed/2.json", "removed/2.purged"), sync_of("removed")]);
        store.delete_purged(id).expect("deleted");
        let events = take();
        assert!(matches!(&events[..], [Event::Rename { to, .. }] if to == "removed/2.purged"), "{events:#?}");
        assert_eq!(store.entries("removed").expect("readable").len(), 1, "the number is kept");
    }
}

#[test]
fn a_restore_syncs_the_moved_files_then_renames_the_receipt_then_syncs_both_folders() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder, Durability::None);
    let (csv, parquet) = (draft(&store, 10), draft(&store, 11));
    let checks = ReceiptChecks { sums_seed: None, footer_xxh3: "0123456789abcdef".to_owned(), chunks_in_sums: false };
    let receipt = Receipt { checks: Some(checks), ..receipt_of(1, csv.info(), parquet.info()) };
    store.prepare_part(csv, parquet, &receipt).expect("staged").commit_unsynced().expect("committed");
    store.remove_part(PartId::FIRST, std::time::SystemTime::now()).expect("removed");
    store.move_removed_files(PartId::FIRST);
    take();
    assert_eq!(store.restore_part(PartId::FIRST).expect("restored"), receipt);
    assert_eq!(
        take(),
        [
            rename_of("removed/1.csv", "parts/1.csv"),
            rename_of("removed/1.parquet", "parts/1.parquet"),
            sync_of("parts"),
            rename_of("removed/1.json", "parts/1.json"),
            sync_of("parts"),
            sync_of("removed"),
        ]
    );

    store.purge_part(PartId::FIRST, false, "").expect("purged");
    assert_eq!(take(), [rename_of("parts/1.json", "removed/1.purged"), sync_of("removed"), sync_of("parts")]);
}

#[test]
fn a_segment_is_on_disk_before_its_receipt_and_its_folder_before_it_replaces_anything() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"));
    let id = SegmentId::parse("1-2-1").expect("a name");
    let mut writer = SegmentWriter::new(&store, id).expect("a segment");
    for number in [1, 2] {
        let (csv, mut parquet) = (b"x\n1\n", store.draft().expect("a draft"));
        parquet.write_all(b"PAR1").expect("written");
        let info = FileInfo { bytes: csv.len() as u64, xxh3: to_hex(checksum(csv)) };
        let checks = ReceiptChecks { sums_seed: None, footer_xxh3: to_hex(0), chunks_in_sums: false };
        let receipt = Receipt { checks: Some(checks), ..receipt_of(number, info, parquet.info()) };
        let part = Part::of(&receipt, None);
        writer.add(&part, &receipt, csv).expect("added");
    }
    writer.add_key(7).expect("added");
    let mut parquet = store.draft().expect("a draft");
    parquet.write_all(b"PAR1").expect("written");
    take();
    writer.set_parquet(0, parquet, 1, 0).expect("synced");
    let synced_in_tmp = |event: &Event| matches!(event, Event::Sync(path) if path.starts_with("tmp/"));
    assert!(take().iter().any(synced_in_tmp), "the Parquet file is synced before it gets its name");
    writer.prepare().expect("prepared").commit().expect("committed");
    let events = take();
    let committed = rename_to(&events, "parts/1-2-1.segment");
    assert!(rename_to(&events, "parts/1-2-1.parquet") < committed, "{events:?}");
    for file in ["csv", "index", "fences", "keys"] {
        let synced = Event::Sync(format!("parts/1-2-1.{file}"));
        assert!(events[..committed].contains(&synced), "{file}: {events:?}");
    }
    assert!(last_sync(&events[..=committed], "parts/1-2-1.segment").is_some_and(|at| at < committed), "{events:?}");
    assert_eq!(&events[committed + 1..], [sync_of("parts")]);
}

#[test]
fn the_greatest_number_is_kept_before_a_segment_without_parts_is_dropped() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"));
    let id = SegmentId::parse("1-2-1").expect("a name");
    take();
    store.drop_segment(id).expect("dropped");
    let events = take();
    let kept = rename_to(&events, "removed/2.purged");
    let synced: Vec<_> = (0..events.len()).filter(|at| events[*at] == sync_of("removed")).collect();
    assert!(synced.len() == 2 && kept < synced[0], "{events:?}");
    assert!(folder.path().join("removed/1-2-1.dropped").exists());
    // While the receipt may still be in parts/, the mark stays.
    std::fs::write(folder.path().join("parts/1-2-1.segment"), "{}").expect("written");
    store.delete_drop_mark(id);
    assert!(folder.path().join("removed/1-2-1.dropped").exists());
    std::fs::remove_file(folder.path().join("parts/1-2-1.segment")).expect("removed");
    take();
    store.delete_drop_mark(id);
    assert_eq!(take(), [sync_of("parts")]);
    assert!(!folder.path().join("removed/1-2-1.dropped").exists());
}

#[test]
fn a_mark_that_cannot_be_made_leaves_the_part_as_it_was() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"));
    let marks = || {
        let names = std::fs::read_dir(folder.path().join("removed")).expect("a folder");
        names.map(|entry| entry.expect("an entry").file_name()).collect::<Vec<_>>()
    };
    let in_the_way = folder.path().join("removed/1.packed-purged");
    std::fs::create_dir_all(in_the_way.join("something")).expect("a folder");
    store.mark_removed(PartId::FIRST, true, std::time::SystemTime::now()).expect_err("the name is taken");
    assert_eq!(marks(), ["1.packed-purged"], "only the folder");
    store.mark_removed(PartId::FIRST, false, std::time::SystemTime::now()).expect("marked");
    store.mark_purged(PartId::FIRST, "").expect_err("the name is taken");
    assert!(folder.path().join("removed/1.packed").exists(), "it can still be restored");
}
