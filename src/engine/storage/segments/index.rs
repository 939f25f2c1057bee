//! The index of a segment: an entry for each part, for questions, and its receipt, for those who look at the part.
//!
//! ```text
//! index     blocks, one after another, each of up to 256 parts
//! block     the entries of its parts; then their receipts, one JSON object a line, compressed (Zstandard, RFC 8878)
//! fences    for each block 36 bytes, little endian: the number of its last part, where its CSV begins, where it begins in
//!           the index (8 bytes each); bytes of its entries, of its compressed receipts, and of these as text (4 bytes each)
//! entry     number minus that of the part before (the first: the number itself), rows, bytes of CSV, which Parquet file of
//!           the segment, bytes, row groups and footer of the Parquet file that the part had, bytes of its source in memory,
//!           whether it has a key (varints); its CSV's checksum, and if it has one the hash of its key (8 bytes each)
//! ```
//!
//! Both files are verified block by block, as all files are (`storage/reader.rs`).

use std::{num::NonZeroU64, sync::Arc};

use zstd_safe::{CCtx, DCtx, get_error_name};

use crate::{
    engine::values::varint::{put_u64, take_u64},
    error::Error,
    limits::{PACKED_BLOCK_PARTS, PACKED_RECEIPTS_BYTES, RECEIPT_TEXT_BYTES_MAX},
    model::{
        packed::{Packed, Segment},
        part::{Checks, Part, PartId},
    },
};

/// Bytes of a fence.
pub(super) const FENCE_BYTES: usize = 36;
/// The level of compression of receipts.
const RECEIPTS_LEVEL: i32 = 3;

/// Where a block is, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    /// The number of its last part.
    pub(super) last: u64,
    /// Where its first part begins in the segment's CSV.
    pub(super) csv_start: u64,
    /// Where it begins in the index.
    pub(super) at: u64,
    pub(super) entries_bytes: u32,
    pub(super) receipts_bytes: u32,
    /// Bytes of the receipts as text.
    pub(super) text_bytes: u32,
}

impl Fence {
    fn put(&self, out: &mut Vec<u8>) {
        for number in [self.last, self.csv_start, self.at] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.entries_bytes, self.receipts_bytes, self.text_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let fence = Self {
            last: take_fixed(&mut rest)?,
            csv_start: take_fixed(&mut rest)?,
            at: take_fixed(&mut rest)?,
            entries_bytes: take_fixed_u32(&mut rest)?,
            receipts_bytes: take_fixed_u32(&mut rest)?,
            text_bytes: take_fixed_u32(&mut rest)?,
        };
        rest.is_empty().then_some(fence)
    }
}

fn take_fixed(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

fn take_fixed_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

/// The bytes of a block and of its fence.
pub(super) struct EndedBlock {
    pub(super) block: Vec<u8>,
    pub(super) fence: Vec<u8>,
}

/// Collects the parts of a block.
#[derive(Default)]
pub(super) struct BlockBuilder {
    entries: Vec<u8>,
    receipts: Vec<u8>,
    parts: usize,
    last: u64,
    csv_start: u64,
    /// Bytes of the index before this block.
    at: u64,
}

impl BlockBuilder {
    /// Adds a part, whose number is greater than that of the part before. `file` is its Parquet file in the segment, and
    /// `receipt` its receipt without line ends.
    pub(super) fn push(&mut self, part: &Part, file: usize, csv_checksum: u64, receipt: &[u8]) {
        let before = if self.parts == 0 { 0 } else { self.last };
        for number in [
            part.id.get() - before,
            part.rows,
            part.csv_bytes,
            file as u64,
            part.parquet_bytes,
            part.row_groups.into(),
            part.footer_bytes.into(),
            part.source_bytes.into(),
            part.key_hash.is_some().into(),
        ] {
            put_u64(number, &mut self.entries);
        }
        self.entries.extend_from_slice(&csv_checksum.to_le_bytes());
        if let Some(hash) = part.key_hash {
            self.entries.extend_from_slice(&hash.get().to_le_bytes());
        }
        self.receipts.extend_from_slice(receipt);
        self.receipts.push(b'\n');
        (self.last, self.parts) = (part.id.get(), self.parts + 1);
    }

    pub(super) fn is_full(&self) -> bool {
        self.parts >= PACKED_BLOCK_PARTS || self.receipts.len() >= PACKED_RECEIPTS_BYTES
    }

    /// Ends the block; `None` if it has no parts. The next block's CSV begins at
    /// `csv_end`.
    pub(super) fn finish(&mut self, csv_end: u64) -> Result<Option<EndedBlock>, Error> {
        if self.parts == 0 {
            return Ok(None);
        }
        let mut block = std::mem::take(&mut self.entries);
        let entries_bytes = block.len();
        let compressed = compress(&self.receipts)?;
        block.extend_from_slice(&compressed);
        let too_long = |_| Error::Internal("a block of an index has more than 4 GiB".to_owned());
        let fence = Fence {
            last: self.last,
            csv_start: self.csv_start,
            at: self.at,
            entries_bytes: u32::try_from(entries_bytes).map_err(too_long)?,
            receipts_bytes: u32::try_from(compressed.len()).map_err(too_long)?,
            text_bytes: u32::try_from(self.receipts.len()).map_err(too_long)?,
        };
        let mut fence_bytes = Vec::with_capacity(FENCE_BYTES);
        fence.put(&mut fence_bytes);
        let at = self.at + block.len() as u64;
        *self = Self { csv_start: csv_end, at, ..Self::default() };
        Ok(Some(EndedBlock { block, fence: fence_bytes }))
    }
}

/// What the index says of a part.
pub struct Entry {
    /// Its number.
    pub id: PartId,
    /// Its data rows.
    pub rows: u64,
    /// Bytes of its CSV.
    pub csv_bytes: u64,
    /// The checksum of its CSV.
    pub csv_checksum: u64,
    /// Which Parquet file of the segment has its rows.
    pub file: usize,
    /// Bytes, row groups and footer of the Parquet file that it had.
    parquet: (u64, u32, u32),
    source_bytes: u32,
    key_hash: Option<NonZeroU64>,
}

impl Entry {
    /// Takes the next entry of a block from `bytes`. `before` is the number of the part before it, or 0.
    fn take(bytes: &mut &[u8], before: u64) -> Option<Self> {
        let id = PartId::new(before.checked_add(take_u64(bytes)?)?)?;
        let (rows, csv_bytes) = (take_u64(bytes)?, take_u64(bytes)?);
        let file = usize::try_from(take_u64(bytes)?).ok()?;
        let parquet_bytes = take_u64(bytes)?;
        let [row_groups, footer_bytes, source_bytes] =
            [(); 3].map(|()| take_u64(bytes).and_then(|number| u32::try_from(number).ok()));
        let has_key = take_u64(bytes)? == 1;
        let csv_checksum = take_fixed(bytes)?;
        let key_hash = if has_key { Some(NonZeroU64::new(take_fixed(bytes)?)?) } else { None };
        let parquet = (parquet_bytes, row_groups?, footer_bytes?);
        Some(Self { id, rows, csv_bytes, csv_checksum, file, parquet, source_bytes: source_bytes?, key_hash })
    }

    /// The part, whose CSV begins at `csv_start` in that of the segment.
    pub(super) fn into_part(self, segment: &Arc<Segment>, csv_start: u64) -> Option<Part> {
        let (file, file_index) = (segment.files.get(self.file)?, u32::try_from(self.file).ok()?);
        let (parquet_bytes, row_groups, footer_bytes) = self.parquet;
        Some(Part {
            id: self.id,
            rows: self.rows,
            csv_bytes: self.csv_bytes,
            parquet_bytes,
            row_groups,
            footer_bytes,
            columns_count: file.columns_count,
            source_bytes: self.source_bytes,
            schema: file.schema.clone(),
            checks: Some(Checks { csv: self.csv_checksum, parquet: 0, chunks_in_sums: false }),
            key_hash: self.key_hash,
            packed: Some(Box::new(Packed { segment: Arc::clone(segment), csv_start, file: file_index })),
        })
    }
}

/// The entries of a block of this segment; `None` if the bytes are not one.
pub(super) fn read_entries(segment: &Segment, mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let (mut entries, mut before) = (Vec::with_capacity(PACKED_BLOCK_PARTS), 0);
    while !bytes.is_empty() {
        let entry = Entry::take(&mut bytes, before).filter(|entry| segment.id.covers(entry.id))?;
        before = entry.id.get();
        entries.push(entry);
    }
    Some(entries)
}

fn compress(text: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |what: &str| Error::Internal(format!("zstd: {what}"));
    let mut compressor = CCtx::try_create().ok_or_else(|| failed("out of memory"))?;
    let mut compressed = Vec::with_capacity(zstd_safe::compress_bound(text.len()));
    compressor.compress(&mut compressed, text, RECEIPTS_LEVEL).map_err(|code| failed(get_error_name(code)))?;
    Ok(compressed)
}

/// The receipts of a block as text; `None` if they are damaged.
pub(super) fn decompress(compressed: &[u8], text_bytes: u32) -> Option<Vec<u8>> {
    let text_bytes = text_bytes as usize;
    if text_bytes > PACKED_RECEIPTS_BYTES + RECEIPT_TEXT_BYTES_MAX {
        return None; // damaged bytes must not decide how much memory is taken
    }
    let mut text = Vec::with_capacity(text_bytes);
    DCtx::try_create()?.decompress(&mut text, compressed).ok()?;
    (text.len() == text_bytes).then_some(text)
}
