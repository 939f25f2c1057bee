//! Parts: ids, receipts, and what the registry keeps of them. Plain data; no files, no lock, no protocol.

use std::{num::NonZeroU64, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    checksum::from_hex,
    dialect::Source,
    format::Format,
    idempotency_key::IdempotencyKey,
    packed::{Packed, SegmentId},
    schema::{Column, Schema, TypedName},
};
use crate::limits::PACKED_CSV_BYTES_MAX;

pub use super::part_id::PartId;

/// The version of receipts. A server refuses to start if it finds a newer one.
///
/// Version 1 has neither [`Receipt::checks`] nor a checksum of the receipt itself. Such a part is verified completely when
/// it is first used, and then gets a receipt of this version.
pub const FORMAT_VERSION: u32 = 2;

/// The metadata of a part, stored as `N.json`. Renaming that file into `parts/` is the commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`FORMAT_VERSION`]
    pub format: u32,
    /// The part's id, which is also the name of its files.
    pub part: PartId,
    /// Data rows; the header is not counted.
    pub rows: u64,
    /// The columns in the order of the file.
    pub columns: Vec<Column>,
    /// Bytes of each column in the Parquet file. Empty in receipts of programs that did not write it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub column_bytes: Vec<u64>,
    /// The CSV file: as it was uploaded, or what [`Self::source`] means.
    pub csv: FileInfo,
    /// The Parquet file with the same rows.
    pub parquet: FileInfo,
    /// Row groups of the Parquet file.
    pub row_groups: u32,
    /// Size of the Parquet footer, without [`PARQUET_TAIL_BYTES`].
    pub footer_bytes: u32,
    /// When the part was uploaded: RFC 3339, UTC.
    pub uploaded_at: String,
    /// Checksums for reading the files block by block. Version 1 has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<ReceiptChecks>,
    /// The key of the upload, if its client gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<IdempotencyKey>,
    /// The file that was sent, if it was not stored as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Box<Source>>,
    /// The segment that has the part now, if it has no files of its own. It is not stored.
    #[serde(skip)]
    pub segment: Option<SegmentId>,
}

/// How a part's files are verified when they are read. Checksums and seeds are 16 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptChecks {
    /// The seed of `N.sums`; `None` if the CSV is one block, which is verified by the checksum of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums_seed: Option<String>,
    /// The checksum of the Parquet footer and the [`PARQUET_TAIL_BYTES`] after it.
    pub footer_xxh3: String,
    /// Whether the checksums of the column chunks are in `N.sums`, after those of the CSV. Otherwise they are in the footer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chunks_in_sums: bool,
}

impl Receipt {
    /// Size and checksum of the bytes that the client sent.
    pub fn received(&self) -> &FileInfo {
        &self.csv
    }

    /// The checksums that the registry keeps; `None` if the receipt has version 1 or its checksums cannot be parsed.
    pub fn checks(&self) -> Option<Checks> {
        let checks = self.checks.as_ref()?;
        let csv = checks.sums_seed.as_ref().unwrap_or(&self.csv.xxh3);
        let is_small = is_small_parquet(self.parquet.bytes, self.footer_bytes);
        let parquet = if is_small { &self.parquet.xxh3 } else { &checks.footer_xxh3 };
        Some(Checks { csv: from_hex(csv)?, parquet: from_hex(parquet)?, chunks_in_sums: checks.chunks_in_sums })
    }
}

/// The fields that can still be read from a damaged receipt. Any of them may be wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartialReceipt {
    /// The checksum of `N.csv`.
    pub csv_xxh3: Option<String>,
    /// The checksum of `N.parquet`.
    pub parquet_xxh3: Option<String>,
    /// The seed of `N.sums`.
    pub sums_seed: Option<u64>,
    /// As [`ReceiptChecks::chunks_in_sums`].
    pub chunks_in_sums: bool,
}

impl PartialReceipt {
    /// Searches for the serialized fields of a [`Receipt`]; the text around them may be anything.
    pub fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let after = |key: &str| text.split_once(key).map(|(_, rest)| rest);
        let digits = |rest: &str| rest.get(..16).filter(|digits| from_hex(digits).is_some()).map(str::to_owned);
        let checksum_in = |object: &str| {
            let (fields, _) = after(object)?.split_once('}')?;
            digits(fields.split_once("\"xxh3\":\"")?.1)
        };
        Self {
            csv_xxh3: checksum_in("\"csv\":{"),
            parquet_xxh3: checksum_in("\"parquet\":{"),
            sums_seed: after("\"sums_seed\":\"").and_then(digits).and_then(|seed| from_hex(&seed)),
            chunks_in_sums: after("\"chunks_in_sums\":true").is_some(),
        }
    }

    /// The checksum of one of the two files.
    pub fn checksum(&self, format: Format) -> Option<&String> {
        match format {
            Format::Csv => self.csv_xxh3.as_ref(),
            Format::Parquet => self.parquet_xxh3.as_ref(),
        }
    }
}

pub(super) fn is_small_parquet(bytes: u64, footer_bytes: u32) -> bool {
    bytes <= SMALL_PARQUET_BYTES + u64::from(footer_bytes) + PARQUET_TAIL_BYTES as u64
}

/// What a part adds to the figures of the table's columns.
#[derive(Clone, Debug)]
pub struct PartFigures {
    /// Empty cells and bytes as Parquet of each column, in the order of the file.
    pub figures: Vec<ColumnFigures>,
    /// Whether the bytes are known.
    pub has_bytes: bool,
    /// Names and types, if the registry does not keep the part's schema.
    pub names: Vec<TypedName>,
}

/// Sums over some parts, for one column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnFigures {
    /// Empty cells.
    pub nulls: u64,
    /// Bytes of the column's chunks in the Parquet files.
    pub parquet_bytes: u64,
}

impl PartFigures {
    /// The columns of a receipt. `schema` is that of the [`Part`].
    pub fn of(receipt: &Receipt, schema: Option<&Arc<Schema>>) -> Self {
        let has_bytes = receipt.column_bytes.len() == receipt.columns.len();
        let bytes = receipt.column_bytes.iter().copied().filter(|_| has_bytes).chain(std::iter::repeat(0));
        let figures = receipt.columns.iter().zip(bytes);
        let figures =
            figures.map(|(column, parquet_bytes)| ColumnFigures { nulls: column.nulls, parquet_bytes }).collect();
        let names = || receipt.columns.iter().map(TypedName::of).collect();
        Self { figures, has_bytes, names: if schema.is_none() { names() } else { Vec::new() } }
    }
}

/// Size and checksum of a stored file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// The file's size.
    pub bytes: u64,
    /// XXH3 of 64 bits, seed 0, as 16 lower-case hexadecimal digits.
    pub xxh3: String,
}

/// What a part's files are verified against when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// The checksum of `N.csv` if that is one block, otherwise the seed of `N.sums`.
    pub csv: u64,
    /// The checksum of `N.parquet` if [`Part::is_small_parquet`], otherwise that of its footer.
    pub parquet: u64,
    /// As [`ReceiptChecks::chunks_in_sums`].
    pub chunks_in_sums: bool,
}

/// A Parquet file is read and verified in one piece if no more bytes than this are before its footer. This is one page of
/// the page cache, so reading less would not save a disk read.
pub const SMALL_PARQUET_BYTES: u64 = 4 * 1024;
/// The footer's length and the magic number at the very end of a Parquet file.
pub const PARQUET_TAIL_BYTES: usize = 8;

/// What the registry keeps of a part. Its size does not depend on the part's.
#[derive(Clone, Debug)]
pub struct Part {
    /// The part's id.
    pub id: PartId,
    /// Data rows.
    pub rows: u64,
    /// Size of `N.csv`.
    pub csv_bytes: u64,
    /// Size of `N.parquet`.
    pub parquet_bytes: u64,
    /// Row groups of `N.parquet`.
    pub row_groups: u32,
    /// As [`Receipt::footer_bytes`].
    pub footer_bytes: u32,
    /// The number of columns.
    pub columns_count: u32,
    /// Memory that [`Receipt::source`] takes when the receipt is read; 0 if there is none.
    pub source_bytes: u32,
    /// The columns; `None` if the registry had no room for one more schema, so that they must be read from the receipt.
    pub schema: Option<Arc<Schema>>,
    /// `None` for format version 1, until the part has been verified.
    pub checks: Option<Checks>,
    /// The hash of the upload's key, if it had one.
    pub key_hash: Option<NonZeroU64>,
    /// Where the part is in a segment; `None` if it has its own files.
    pub packed: Option<Box<Packed>>,
}

impl Part {
    /// The part that a receipt describes.
    pub fn of(receipt: &Receipt, schema: Option<Arc<Schema>>) -> Self {
        Self {
            checks: receipt.checks(),
            key_hash: receipt.idempotency_key.as_ref().map(IdempotencyKey::hash),
            id: receipt.part,
            rows: receipt.rows,
            csv_bytes: receipt.csv.bytes,
            parquet_bytes: receipt.parquet.bytes,
            row_groups: receipt.row_groups,
            footer_bytes: receipt.footer_bytes,
            columns_count: u32::try_from(receipt.columns.len()).unwrap_or(u32::MAX),
            source_bytes: receipt.source.as_ref().map_or(0, |source| source.memory_bytes()),
            schema,
            packed: None,
        }
    }

    /// Whether the two describe the same files, as far as is known: a part of format version 1 has no checksums at first.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let facts = |part: &Self| {
            let sizes = (part.csv_bytes, part.parquet_bytes, part.footer_bytes);
            (part.id, part.rows, sizes, part.row_groups, part.columns_count)
        };
        let have_checks = self.checks.is_some() && other.checks.is_some();
        facts(self) == facts(other) && (!have_checks || self.checks == other.checks)
    }

    /// Whether the Parquet file is read in one piece, see [`SMALL_PARQUET_BYTES`].
    pub fn is_small_parquet(&self) -> bool {
        is_small_parquet(self.parquet_bytes, self.footer_bytes)
    }

    /// Whether it is small enough to be packed into a segment.
    pub fn is_packable(&self) -> bool {
        self.csv_bytes <= PACKED_CSV_BYTES_MAX && self.checks.is_some()
    }

    /// The number of column chunks in the Parquet file. Its footer has an entry for each.
    pub fn column_chunks(&self) -> u64 {
        u64::from(self.row_groups) * u64::from(self.columns_count)
    }
}
