//! What the fuzz target `records` checks of receipts and of pages of checksums (`fuzz/src/bin/records.rs`): any bytes are
//! accepted or refused; what is accepted, written and read again is the same; and a flipped bit of what was written is refused.

use super::{
    checksums::{PAGE_SUMS_MAX, PageWriter, RecordChecksum, add_checksum, read_page, verify_record},
    receipts::{parse_receipt, receipt_text},
    segments::recovery::parse_segment_receipt,
};
use crate::model::{
    packed::SegmentId,
    part::{Part, PartId, PartialReceipt},
    schema::Schema,
    segment::SegmentReceipt,
};

/// The same record with a checksum that fits. A fuzzer does not find one.
pub fn with_checksum(record: &[u8]) -> Vec<u8> {
    const KEY: &[u8] = b",\"record_xxh3\"";
    let end = record.windows(KEY.len()).rposition(|window| window == KEY);
    let record = end.map_or_else(|| record.to_vec(), |end| [&record[..end], b"}"].concat());
    add_checksum(record)
}

/// The record with one flipped bit, which one depends on its bytes.
pub fn flipped(record: &[u8]) -> Vec<u8> {
    let sum = super::checksums::checksum(record);
    let mut flipped = record.to_vec();
    let at = usize::try_from(sum >> 8).unwrap_or(usize::MAX) % record.len().max(1);
    flipped.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (sum % 8));
    flipped
}

/// A receipt of a part.
pub fn check_receipt(text: &[u8]) {
    PartialReceipt::parse(text);
    for text in [text, &with_checksum(text)] {
        let id = serde_json::from_slice::<serde_json::Value>(text).ok().and_then(|value| value["part"].as_u64());
        let id = id.and_then(PartId::new).unwrap_or(PartId::FIRST);
        let Ok(receipt) = parse_receipt(id, text) else { continue };
        assert_eq!(receipt.part, id);
        drop((Part::of(&receipt, None), Schema::of(&receipt.columns)));
        if receipt.checks().is_none() {
            continue; // of version 1, which is not written any more
        }
        let written = receipt_text(&receipt).unwrap_or_default();
        assert!(matches!(parse_receipt(id, &written), Ok(again) if again == receipt), "{receipt:?}");
        assert!(parse_receipt(id, &flipped(&written)).is_err(), "a flipped bit of {receipt:?}");
        assert!(parse_receipt(id.next(), &written).is_err(), "a receipt of another part");
    }
}

/// A receipt of a segment.
pub fn check_segment_receipt(text: &[u8]) {
    for text in [text, &with_checksum(text)] {
        let value = serde_json::from_slice::<serde_json::Value>(text).ok();
        let id = value.and_then(|value| serde_json::from_value(value["segment"].clone()).ok());
        let id = id.unwrap_or(SegmentId { first: PartId::FIRST, last: PartId::FIRST, version: 1 });
        let parse = |text: &[u8]| parse_segment_receipt(id, text).ok().and_then(Result::ok);
        let Some(receipt): Option<SegmentReceipt> = parse(text) else { continue };
        assert_eq!(verify_record(text), RecordChecksum::Valid);
        let written = serde_json::to_vec(&receipt).map(add_checksum).unwrap_or_default();
        assert_eq!(parse(&written).as_ref(), Some(&receipt));
        assert_eq!(parse(&flipped(&written)), None, "a flipped bit of {receipt:?}");
    }
}

/// Pages of checksums.
pub fn check_pages(bytes: &[u8]) {
    let (seed, sums) = (7, bytes.as_chunks::<8>().0);
    if let Some(read) = read_page(seed, 0, bytes) {
        assert_eq!(read.len(), sums.len() - 1);
    }
    let sums: Vec<_> = sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect();
    let mut writer = PageWriter::new(seed);
    let mut pages: Vec<_> = sums.iter().filter_map(|sum| writer.push(*sum)).collect();
    pages.extend(writer.end());
    for (index, (page, sums)) in (0..).zip(pages.iter().zip(sums.chunks(PAGE_SUMS_MAX))) {
        assert_eq!(read_page(seed, index, page).as_deref(), Some(sums));
        assert_eq!(read_page(seed, index + 1, page), None, "a page at another place");
        assert_eq!(read_page(seed, index, &flipped(page)), None, "a flipped bit");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_kept_inputs_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/records");
        let mut inputs = 0;
        for entry in fs::read_dir(folder).expect("a corpus") {
            let input = fs::read(entry.expect("an entry").path()).expect("readable");
            check_receipt(&input[1..]);
            check_segment_receipt(&input[1..]);
            check_pages(&input[1..]);
            inputs += 1;
        }
        assert!(inputs > 3, "{inputs} inputs");
    }
}
