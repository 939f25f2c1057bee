//! Unit tests of segments on disk.

use std::{fs, sync::Arc};

use imbl::{OrdMap, OrdSet};

use super::{cursor::PartCursor, writing::SegmentWriter};
use crate::{
    engine::{state::registry::Snapshot, storage::Store},
    error::Error,
    limits::{COLUMNS_MAX, HEADER_BYTES_MAX, RECEIPT_TEXT_BYTES_MAX},
    model::{
        durability::Durability,
        packed::{Segment, SegmentId},
        part::{FORMAT_VERSION, FileInfo, Part, PartId, Receipt, ReceiptChecks},
        schema::{Column, ColumnType},
    },
};

fn store(folder: &tempfile::TempDir) -> Arc<Store> {
    Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"))
}

/// Earlier versions wrote a segment without parts when all parts of one were purged.
#[test]
fn a_segment_without_parts_is_read() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder);
    let id = SegmentId::parse("3-9-2").expect("a name");
    let prepared = SegmentWriter::new(&store, id).expect("a segment").prepare().expect("prepared");
    let segment = Arc::new(Segment::of(prepared.receipt(), Vec::new()).expect("a segment"));
    prepared.commit().expect("committed");
    assert_eq!((segment.index_blocks, segment.parts), (0, 0));
    let segments: OrdMap<_, _> = [(id.first, segment)].into_iter().collect();
    let mut cursor = PartCursor::new(Snapshot::of(OrdMap::new(), segments, OrdSet::new()));
    let five = PartId::new(5).expect("above 0");
    for from in [PartId::FIRST, five] {
        assert!(cursor.first_from(&store, from).expect("no damage").is_none());
    }
    for before in [five, PartId::END] {
        assert!(cursor.previous(&store, before).expect("no damage").is_none());
    }
}

#[test]
fn a_receipt_that_could_not_be_read_is_not_committed() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder);
    let mut writer = SegmentWriter::new(&store, SegmentId::parse("1-9-1").expect("a name")).expect("a segment");
    let mut number = 0;
    // The longest lists of columns, which in parts that are packed cannot be as long.
    for list in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        number += 1;
        let column = |index: usize| {
            let name = format!("{list}{index:04}{}", "n".repeat(HEADER_BYTES_MAX / COLUMNS_MAX - 5));
            Column { name, column_type: ColumnType::TimestampUtc, nulls: 1 }
        };
        let columns: Vec<_> = (0..COLUMNS_MAX).map(column).collect();
        let info = || FileInfo { bytes: 4, xxh3: "0".repeat(16) };
        let receipt = Receipt {
            format: FORMAT_VERSION,
            part: PartId::new(number).expect("above 0"),
            rows: 1,
            column_bytes: vec![1; columns.len()],
            columns,
            csv: info(),
            parquet: info(),
            row_groups: 1,
            footer_bytes: 1,
            uploaded_at: String::new(),
            checks: Some(ReceiptChecks { sums_seed: None, footer_xxh3: "0".repeat(16), chunks_in_sums: false }),
            idempotency_key: None,
            source: None,
            segment: None,
        };
        assert_eq!(writer.has_room_for(&receipt.columns), number == 1, "{number}");
        let file = writer.add(&Part::of(&receipt, None), &receipt, b"x\n1\n").expect("added");
        let draft = store.draft().expect("a draft");
        writer.set_parquet(file, draft, 1, 1).expect("closed");
        assert!(writer.has_room_for(&receipt.columns), "they are there already");
    }
    let Err(refused) = writer.prepare() else { panic!("its receipt has more than {RECEIPT_TEXT_BYTES_MAX} bytes") };
    assert!(refused.to_string().contains("could not be read"), "{refused}");
    for name in ["parts", "tmp"] {
        assert_eq!(fs::read_dir(folder.path().join(name)).expect("a folder").count(), 0, "{name}");
    }
}

/// A folder with the name of a leftover may contain a user's files.
#[test]
fn a_folder_is_not_deleted_as_a_leftover_of_a_segment() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = store(&folder);
    store.drop_segment(SegmentId::parse("1-2-1").expect("a name")).expect("dropped");
    let file = folder.path().join("parts/1-2-1.csv/somebodys");
    fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    fs::write(&file, "x").expect("written");
    let refused = store.recover(|_found| ()).expect_err("there is a folder");
    assert!(matches!(&refused, Error::DataFolder(what) if what.contains("is a folder")), "{refused}");
    assert!(file.exists());
}
