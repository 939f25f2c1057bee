//! The receipts of segments: many small parts packed into one CSV file, a few Parquet files and an index. Plain data; no files.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    checksum::from_hex,
    packed::{Segment, SegmentId, SegmentParquet},
    part::{Checks, FileInfo, Part, is_small_parquet},
    schema::{Column, Schema, packed_text_bytes},
};

/// The version of a segment's receipt. A server refuses to start if it finds a newer one.
pub const SEGMENT_FORMAT_VERSION: u32 = 1;

/// The receipt of a segment, stored as `FIRST-LAST-VERSION.segment`. Renaming that file into `parts/` is the commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentReceipt {
    /// [`SEGMENT_FORMAT_VERSION`]
    pub format: u32,
    /// Its name.
    pub segment: SegmentId,
    /// The CSV of its parts, one after another, byte for byte.
    pub csv: CheckedFile,
    /// What is known of each part.
    pub index: CheckedFile,
    /// Blocks of the index.
    pub index_blocks: u64,
    /// Where they are.
    pub fences: CheckedFile,
    /// The hashes of its parts' idempotency keys, in order; `None` if no part has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeyHashes>,
    /// One entry for each distinct list of columns and types, with the Parquet file of the parts that have it.
    pub files: Vec<PackedFile>,
}

/// A stored file, and how its blocks are verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedFile {
    /// Size and checksum of the whole file.
    #[serde(flatten)]
    pub info: FileInfo,
    /// The seed of its list of block checksums; `None` if the file is one block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums_seed: Option<String>,
}

/// The file of key hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHashes {
    /// How many there are.
    pub count: u64,
    /// The seed of the checksums of its pages.
    pub seed: String,
}

/// The Parquet file of all parts of a segment that have the same columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedFile {
    /// The columns; `nulls` are sums over the parts.
    pub columns: Vec<Column>,
    /// Bytes of each column in the Parquet files that the parts had: sums over the parts whose receipts say it.
    pub column_bytes: Vec<u64>,
    /// In how many of the parts each column has values.
    pub with_values: Vec<u64>,
    /// The parts.
    pub parts: u64,
    /// Those whose receipts do not say how many bytes each column has.
    #[serde(default)]
    pub parts_without_bytes: u64,
    /// Their data rows.
    pub rows: u64,
    /// Bytes of the Parquet files that the parts had.
    pub parts_parquet_bytes: u64,
    /// The Parquet file with the rows of these parts, in the order of their numbers.
    pub parquet: FileInfo,
    /// Its row groups.
    pub row_groups: u32,
    /// Size of its footer, without the tail of 8 bytes.
    pub footer_bytes: u32,
    /// The checksum of its footer and the tail.
    pub footer_xxh3: String,
}

impl Segment {
    /// The segment that a receipt describes; `schemas` has those of its files that are in memory, and may be empty. `None` if its
    /// checksums cannot be parsed.
    pub fn of(receipt: &SegmentReceipt, schemas: Vec<Option<Arc<Schema>>>) -> Option<Self> {
        let check = |file: &CheckedFile| from_hex(file.sums_seed.as_ref().unwrap_or(&file.info.xxh3));
        let keys = match &receipt.keys {
            Some(KeyHashes { count, seed }) => (*count, from_hex(seed)?),
            None => (0, 0),
        };
        let mut schemas = schemas.into_iter();
        let mut parquet = |file: &PackedFile| file.parquet(schemas.next().flatten());
        Some(Self {
            id: receipt.segment,
            parts: receipt.files.iter().map(|file| file.parts).sum(),
            csv_bytes: receipt.csv.info.bytes,
            csv_check: check(&receipt.csv)?,
            index_bytes: receipt.index.info.bytes,
            index_check: check(&receipt.index)?,
            index_blocks: receipt.index_blocks,
            fences_check: check(&receipt.fences)?,
            keys,
            files: receipt.files.iter().map(&mut parquet).collect::<Option<Vec<_>>>()?.into(),
        })
    }
}

impl PackedFile {
    fn parquet(&self, schema: Option<Arc<Schema>>) -> Option<SegmentParquet> {
        let is_small = is_small_parquet(self.parquet.bytes, self.footer_bytes);
        Some(SegmentParquet {
            parts: self.parts,
            rows: self.rows,
            parts_parquet_bytes: self.parts_parquet_bytes,
            bytes: self.parquet.bytes,
            row_groups: self.row_groups,
            footer_bytes: self.footer_bytes,
            check: from_hex(if is_small { &self.parquet.xxh3 } else { &self.footer_xxh3 })?,
            columns_count: u32::try_from(self.columns.len()).ok()?,
            text_bytes: u32::try_from(packed_text_bytes(self.columns.iter().map(|column| column.name.as_str())))
                .ok()?,
            schema_hash: half_of(Schema::hash_of(&self.columns)),
            schema,
        })
    }
}

fn half_of(hash: u128) -> u64 {
    (hash >> 64) as u64
}

impl SegmentParquet {
    /// The file as if it were that of one part, for the readers of Parquet.
    pub fn as_part(&self, segment: SegmentId) -> Part {
        Part {
            id: segment.first,
            rows: self.rows,
            csv_bytes: 0,
            parquet_bytes: self.bytes,
            row_groups: self.row_groups,
            footer_bytes: self.footer_bytes,
            columns_count: self.columns_count,
            source_bytes: 0,
            schema: self.schema.clone(),
            checks: Some(Checks { csv: 0, parquet: self.check, chunks_in_sums: false }),
            key_hash: None,
            packed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        limits::PACKED_REST_TEXT_BYTES,
        model::{part::PartId, schema::ColumnType},
    };

    use super::*;

    #[test]
    fn a_receipt_is_not_longer_than_its_columns_may_take() {
        let all_bytes: String = (0..=u8::MAX).map(char::from).collect();
        for name in ["", "x", "\u{1}\u{1f}\u{7f}", "\"\\/\n\t", "ä€😀", &all_bytes, &"long".repeat(250)] {
            // Many columns, so that no other bound has room for what one of them needs.
            let columns: Vec<_> = std::iter::repeat_n(ColumnType::ALL, 100)
                .flatten()
                .map(|column_type| Column { name: name.to_owned(), column_type, nulls: u64::MAX })
                .collect();
            let count = columns.len();
            let info = || FileInfo { bytes: u64::MAX, xxh3: "f".repeat(16) };
            let file = PackedFile {
                column_bytes: vec![u64::MAX; count],
                with_values: vec![u64::MAX; count],
                columns,
                parts: u64::MAX / 2,
                parts_without_bytes: u64::MAX,
                rows: u64::MAX,
                parts_parquet_bytes: u64::MAX,
                parquet: info(),
                row_groups: u32::MAX,
                footer_bytes: u32::MAX,
                footer_xxh3: "f".repeat(16),
            };
            let last = PartId::new(u64::MAX).expect("above 0");
            let checked = || CheckedFile { info: info(), sums_seed: Some("f".repeat(16)) };
            let receipt = SegmentReceipt {
                format: SEGMENT_FORMAT_VERSION,
                segment: SegmentId { first: last, last, version: u32::MAX },
                csv: checked(),
                index: checked(),
                index_blocks: u64::MAX,
                fences: checked(),
                keys: Some(KeyHashes { count: u64::MAX, seed: "f".repeat(16) }),
                files: vec![file.clone(), file.clone()],
            };
            let text = serde_json::to_vec(&receipt).expect("JSON");
            let of_file = Schema::of(&file.columns).text_bytes();
            assert!(text.len() <= PACKED_REST_TEXT_BYTES + 2 * of_file, "{name:?}: {}", text.len());
            let segment = Segment::of(&receipt, Vec::new()).expect("a segment");
            assert_eq!(segment.files[0].text_bytes as usize, of_file);
            assert_eq!(segment.files[0].schema_hash, half_of(Schema::of(&file.columns).hash()));
        }
    }
}
