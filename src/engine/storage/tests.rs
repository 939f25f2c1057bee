//! Unit tests of drafts, commits and reads.

use std::{collections::BTreeSet, fs, hash::Hasher as _, io, io::Write as _, os::unix::fs::FileExt as _, sync::Arc};

use twox_hash::XxHash3_64;

use super::{
    Store,
    commit::PreparedPart,
    draft::{Draft, SyncHandle, checksum_text},
    names::name_of,
    reader::Reader,
    recover::Found,
    sync::reports_failed_syncfs,
};
use crate::{
    error::Error,
    limits::DRAFT_BUFFER_BYTES,
    model::{
        checksum::to_hex,
        durability::Durability,
        format::Format,
        part::{FORMAT_VERSION, PartId, Receipt, ReceiptChecks},
        schema::{Column, ColumnType},
    },
};

/// Stages parts. Those with odd numbers are large enough for drafts on disk.
fn staged(store: &Arc<Store>, parts: u64) -> Vec<PreparedPart> {
    staged_after(store, parts, |_csv, _parquet| {})
}

/// As `staged`, after `change` was called with the drafts of each part.
fn staged_after(store: &Arc<Store>, parts: u64, change: impl Fn(&mut Draft, &mut Draft)) -> Vec<PreparedPart> {
    let stage = |number| {
        let (mut csv, mut parquet) = (store.draft().expect("a draft"), store.draft().expect("a draft"));
        let bytes = if number % 2 == 0 { 10 } else { 3 * DRAFT_BUFFER_BYTES };
        csv.write_all(&vec![b'c'; bytes]).expect("written");
        parquet.write_all(&vec![b'p'; bytes + 1]).expect("written");
        change(&mut csv, &mut parquet);
        let receipt = Receipt {
            format: FORMAT_VERSION,
            part: PartId::new(number).expect("an id"),
            rows: 1,
            columns: vec![Column { name: "a".to_owned(), column_type: ColumnType::Int64, nulls: 0 }],
            column_bytes: Vec::new(),
            csv: csv.info(),
            parquet: parquet.info(),
            row_groups: 1,
            footer_bytes: 1,
            uploaded_at: String::new(),
            checks: Some(ReceiptChecks {
                sums_seed: csv.sums_seed().map(to_hex),
                footer_xxh3: to_hex(parquet.tail_checksum()),
                chunks_in_sums: false,
            }),
            idempotency_key: None,
            segment: None,
            source: None,
        };
        store.prepare_part(csv, parquet, &receipt).expect("staged")
    };
    (1..=parts).map(stage).collect()
}

/// Names of the files in `tmp/` and `parts/`.
fn files(store: &Store) -> BTreeSet<String> {
    let entries = ["tmp", "parts"].map(|folder| store.entries(folder).expect("readable"));
    entries.concat().iter().map(|path| name_of(path)).collect()
}

fn store(folder: &tempfile::TempDir) -> Store {
    Store::open(folder.path(), Durability::Fsync).expect("a data folder")
}

fn part_of(found: &Found) -> Option<u64> {
    match found {
        Found::Segment(_) => None,
        Found::Part(receipt) => Some(receipt.part.get()),
    }
}

#[test]
fn a_batch_is_committed_completely() {
    for uses_syncfs in [true, false] {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut store = store(&folder);
        store.uses_syncfs = uses_syncfs.into();
        let store = Arc::new(store);
        store.commit(staged(&store, 5)).expect("committed");
        let expected = (1..=5).flat_map(|id| ["csv", "parquet", "json"].map(|extension| format!("{id}.{extension}")));
        assert_eq!(files(&store), expected.collect());
        let mut ids = Vec::new();
        let found = store.recover(|found| ids.extend(part_of(&found))).expect("in order");
        assert_eq!((ids, found.leftovers, found.quarantined.len()), (vec![1, 2, 3, 4, 5], 0, 0));
    }
}

#[test]
fn parts_that_are_not_committed_are_removed() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(store(&folder));
    let staged = staged(&store, 3);
    assert_eq!(files(&store).len(), 9, "two files of each in parts/, a receipt of each in tmp/");
    assert!(files(&store).iter().all(|name| !name.ends_with(".json")), "no receipt has been renamed");
    drop(staged);
    assert_eq!(files(&store), BTreeSet::new());
}

#[test]
fn a_batch_of_which_one_cannot_be_renamed_leaves_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(store(&folder));
    let batch = staged(&store, 4);
    // A file cannot be renamed over a folder. The receipts before it have been renamed by then.
    fs::create_dir(store.root.join("parts/3.json")).expect("a folder");
    assert!(matches!(store.commit(batch), Err(Error::Io { .. })));
    assert_eq!(files(&store), ["3.json".to_owned()].into());
}

/// A store whose `syncfs` fails.
fn store_without_syncfs(folder: &tempfile::TempDir) -> Arc<Store> {
    let mut store = store(folder);
    store.folder = Arc::into_inner(SyncHandle::unsyncable(folder.path()).file).expect("not shared");
    store.uses_syncfs = true.into();
    Arc::new(store)
}

#[test]
fn files_that_were_synced_before_staging_are_not_synced_again() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store_without_syncfs(&folder);
    let sync = |csv: &mut Draft, parquet: &mut Draft| {
        csv.sync().expect("synced");
        parquet.sync().expect("synced");
    };
    store.commit(staged_after(&store, 3, sync)).expect("nothing has to be synced");
    assert_eq!(files(&store).len(), 9);
    let sync_one = |csv: &mut Draft, _parquet: &mut Draft| csv.sync().expect("synced");
    let sync_too_early = |csv: &mut Draft, parquet: &mut Draft| {
        sync(csv, parquet);
        csv.write_all(b"more").expect("written");
    };
    assert!(matches!(store.commit(staged_after(&store, 3, sync_one)), Err(Error::Io { .. })));
    drop(store);
    let store = store_without_syncfs(&folder);
    assert!(matches!(store.commit(staged_after(&store, 3, sync_too_early)), Err(Error::Io { .. })));
}

#[test]
fn a_draft_can_be_synced_while_it_grows() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut draft = store(&folder).draft().expect("a draft");
    draft.write_all(b"short").expect("written");
    assert!(draft.sync_handle("it").is_none(), "it has no file");
    draft.write_all(&vec![b'c'; 3 * DRAFT_BUFFER_BYTES]).expect("written");
    draft.sync_handle("it").expect("it has a file").sync().expect("synced");
    assert!(!draft.synced, "more may have been written since");
}

#[test]
fn a_draft_does_not_depend_on_the_size_of_the_writes() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder);
    let all: Vec<u8> = (0..300_007_u32).map(|number| number.to_le_bytes()[1]).collect();
    let (buffer, mut checksum) = (DRAFT_BUFFER_BYTES, XxHash3_64::new());
    checksum.write(&all);
    for piece_bytes in [1, 1000, buffer / 8, buffer - 1, buffer, buffer + 1, 3 * buffer, all.len()] {
        let mut draft = store.draft().expect("a draft");
        for piece in all.chunks(piece_bytes) {
            draft.write_all(piece).expect("written");
            assert!(draft.buffer.len() < buffer && draft.buffer.capacity() <= buffer);
        }
        let path = folder.path().join("published");
        if piece_bytes % 2 == 0 {
            draft.release_buffer().expect("written");
            assert_eq!(
                (draft.buffer.capacity(), fs::metadata(&draft.path).expect("there").len()),
                (0, all.len() as u64)
            );
        }
        assert_eq!((draft.info().bytes, draft.info().xxh3), (all.len() as u64, checksum_text(&checksum)));
        draft.publish(&path, &folder.path().join("sums")).expect("published");
        assert!(fs::read(path).expect("readable") == all, "pieces of {piece_bytes} bytes");
    }
}

#[test]
fn short_writes_are_collected() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut draft = store(&folder).draft().expect("a draft");
    for _ in 0..100 {
        draft.write_all(&[b'p'; 1000]).expect("written");
        let on_disk = draft.file.as_ref().map_or(0, |file| file.metadata().expect("readable").len());
        assert_eq!(on_disk, draft.bytes / DRAFT_BUFFER_BYTES as u64 * DRAFT_BUFFER_BYTES as u64);
    }
}

#[test]
fn after_a_failed_write_all_writes_to_a_draft_fail() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder);
    let mut draft = store.draft().expect("a draft");
    draft.write_all(b"1234").expect("written");
    let (tmp, not_found) = (store.root.join("tmp"), Err(io::ErrorKind::NotFound));
    let mut write = |bytes| draft.write_all(&vec![b'c'; bytes]).map_err(|error| error.kind());
    fs::remove_dir(&tmp).expect("removed");
    assert_eq!(write(DRAFT_BUFFER_BYTES), not_found);
    fs::create_dir(&tmp).expect("created");
    assert_eq!(write(DRAFT_BUFFER_BYTES), not_found, "although it could be written now");
    assert_eq!(draft.bytes(), 4);
}

#[test]
fn a_batch_that_cannot_be_synced_leaves_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store_without_syncfs(&folder);
    assert!(matches!(store.commit(staged(&store, 3)), Err(Error::Io { .. })));
    assert_eq!(files(&store), BTreeSet::new());
    // `syncfs` reports a failed write once, so from now on each file is synced, which reports its own.
    let batch = staged(&store, 2);
    fs::remove_file(store.root.join("parts/2.parquet")).expect("removed");
    assert!(matches!(store.commit(batch), Err(Error::Io { .. })));
    store.commit(staged(&store, 2)).expect("committed");
    fs::remove_dir_all(store.root.join("parts")).expect("removed");
    fs::create_dir(store.root.join("parts")).expect("a folder");

    let batch = staged(&store, 1);
    fs::remove_file(store.root.join("parts/1.parquet")).expect("removed");
    assert!(matches!(store.commit(batch), Err(Error::Io { .. })));
    assert_eq!(files(&store), BTreeSet::new(), "the same for a single part");
}

#[test]
fn a_file_that_cannot_get_its_name_leaves_no_block_list() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder);
    let [to, sums] = ["1.csv", "1.sums"].map(|name| store.root.join("parts").join(name));
    fs::create_dir(&to).expect("a file cannot be renamed over a folder");
    let mut draft = store.draft_with_block_checksums().expect("a draft");
    draft.write_all(&vec![b'1'; 200_000]).expect("written");
    assert!(matches!(draft.publish(&to, &sums), Err(Error::Io { .. })));
    assert!(!sums.exists());
    assert_eq!(store.entries("tmp").expect("readable").len(), 0);
}

#[test]
fn damage_in_a_spill_file_is_detected() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let spill = store(&folder).spill_file().expect("a spill file");
    let offsets = [b"first", b"other"].map(|page| spill.put(page).expect("written"));
    assert_eq!(offsets.map(|offset| spill.get(offset, 5).expect("undamaged")), [b"first", b"other"]);
    spill.file().expect("a file").write_all_at(b"O", offsets[1]).expect("written");
    assert_eq!(spill.get(offsets[0], 5).expect("undamaged"), b"first");
    assert_eq!(spill.get(offsets[1], 5).expect_err("damaged").kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_file_that_cannot_be_read_is_not_damaged() {
    let file = Reader::unreadable(Format::Csv, 100);
    for error in [file.blocks().from(0).err(), file.block(7, 10).err(), file.read_unverified(0, 10).err()] {
        let error = error.expect("it cannot be read");
        assert!(matches!(&error, Error::Io { what, .. } if what == "part 1, csv"), "{error:?}");
    }
}

#[test]
fn old_kernels_do_not_report_failed_syncfs() {
    for (release, reports) in
        [("5.8.0", true), ("5.15.0-1-amd64", true), ("6.1", true), ("5.7.19", false), ("4.18.0-553.el8", false)]
    {
        assert_eq!(reports_failed_syncfs(release), reports, "{release}");
    }
    assert!(!reports_failed_syncfs("") && !reports_failed_syncfs("unknown"));
}

#[test]
fn files_without_a_name_count_as_spilled() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder);
    store.temp_folder().file().expect("a file").append(b"12345").expect("written");
    assert_eq!(store.spilled_bytes(), 5);
}
