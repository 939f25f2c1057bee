//! What the fuzz target `records` checks of the index of a segment, as `engine/storage/fuzzing.rs` does of receipts.

use std::{collections::BTreeSet, sync::Arc};

use super::index::{BlockBuilder, FENCE_BYTES, Fence, decompress, read_entries};
use crate::model::{packed::Segment, segment::SegmentReceipt};

/// Entries and receipts of a block of the index of this segment.
pub fn check_index(segment: &SegmentReceipt, bytes: &[u8]) {
    Fence::read(bytes);
    if let Some((length, compressed)) = bytes.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        assert!(decompress(compressed, length).is_none_or(|text| text.len() == length as usize));
    }
    let Some(segment) = Segment::of(segment, Vec::new()).map(Arc::new) else { return };
    let Some(entries) = read_entries(&segment, bytes) else { return };
    let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    assert!(ids.is_sorted() && ids.iter().all(|id| segment.id.covers(*id)), "{ids:?}");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "a number twice: {ids:?}");
    let (mut block, mut expected) = (BlockBuilder::default(), Vec::new());
    for entry in entries {
        let (file, csv_checksum) = (entry.file, entry.csv_checksum);
        let Some(part) = entry.into_part(&segment, 0) else { return };
        block.push(&part, file, csv_checksum, b"{}");
        expected.push((part, file));
    }
    let Ok(Some(ended)) = block.finish(0) else { return };
    let fence = Fence::read(&ended.fence);
    let fence = fence.unwrap_or_else(|| panic!("a fence of {} bytes, not {FENCE_BYTES}", ended.fence.len()));
    let (entries, receipts) = ended.block.split_at(fence.entries_bytes as usize);
    assert_eq!(decompress(receipts, fence.text_bytes), Some(b"{}\n".repeat(expected.len())));
    let again = read_entries(&segment, entries).unwrap_or_default();
    assert_eq!(again.len(), expected.len());
    for (entry, (part, file)) in again.into_iter().zip(expected) {
        assert_eq!(entry.file, file);
        assert!(entry.into_part(&segment, 0).is_some_and(|again| again.is_same_as(&part)), "part {}", part.id);
    }
}

/// The receipt of the segment of [`check_index`]: numbers from 1, and two Parquet files.
pub fn segment_of_index() -> SegmentReceipt {
    let info = r#"{"bytes":1,"xxh3":"0000000000000001"}"#;
    let file = format!(
        r#"{{"columns":[],"column_bytes":[],"with_values":[],"parts":1,"rows":1,"parts_parquet_bytes":1,"parquet":{info},"row_groups":1,"footer_bytes":1,"footer_xxh3":"0000000000000001"}}"#
    );
    let text = format!(
        r#"{{"format":1,"segment":{{"first":1,"last":1000000,"version":1}},"csv":{info},"index":{info},"index_blocks":1,"fences":{info},"files":[{file},{file}]}}"#
    );
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_kept_inputs_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/records");
        for entry in fs::read_dir(folder).expect("a corpus") {
            check_index(&segment_of_index(), &fs::read(entry.expect("an entry").path()).expect("readable")[1..]);
        }
    }
}
