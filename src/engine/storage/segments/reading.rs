//! Reading segments: entries and receipts from the index, the CSV of one part, and the Parquet files.

use std::{fs::File, io, sync::Arc};

use super::{
    super::{
        checksums::{PAGE_BYTES_MAX, PAGE_SUMS_MAX, listed_blocks, read_page},
        data_folder,
        names::FileName,
        reader::{Blocks, Check, Reader, read_at},
        store::Store,
    },
    index::{Entry, FENCE_BYTES, Fence, decompress, read_entries},
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::{
        checksum::to_hex,
        packed::{Packed, Segment, SegmentId},
        part::{FileInfo, Part, PartId, Receipt},
        schema::Schema,
        segment::SegmentReceipt,
    },
};

/// The files of one segment that are open, so that parts which follow each other are read without opening it again.
#[derive(Default)]
pub struct OpenSegment {
    csv: Option<(SegmentId, Reader)>,
    receipts: Option<OpenReceipts>,
}

/// The receipts of a block of an index.
struct OpenReceipts {
    segment: SegmentId,
    text: Vec<u8>,
    /// Where the line after the one that was last asked for begins: parts are mostly asked for in order.
    next: usize,
}

impl OpenReceipts {
    fn find(&mut self, part: &Part) -> Option<Receipt> {
        // The number is compared before the whole text is read.
        let number = format!("\"part\":{},", part.id);
        let (before, after) = self.text.split_at(self.next);
        for (mut end, text) in [(self.next, after), (0, before)] {
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                end += line.len();
                let head = &line[..line.len().min(64)];
                if !head.windows(number.len()).any(|window| window == number.as_bytes()) {
                    continue;
                }
                let receipt = serde_json::from_slice(line).ok().filter(|receipt: &Receipt| receipt.part == part.id);
                if let Some(mut receipt) = receipt {
                    self.next = end;
                    receipt.segment = Some(self.segment);
                    if receipt.csv.xxh3.is_empty() {
                        receipt.csv.xxh3 = part.checks.map_or_else(String::new, |checks| to_hex(checks.csv));
                    }
                    return Some(receipt);
                }
            }
        }
        None
    }
}

/// The index of a segment, open.
pub struct SegmentIndex {
    segment: Arc<Segment>,
    index: Blocks,
    fences: Blocks,
}

/// The key hashes of a segment, a page at a time, from a file that is opened once.
pub struct KeyPages {
    segment: Arc<Segment>,
    file: Option<File>,
    page: u64,
}

impl KeyPages {
    /// Begins with the first page of a segment that has keys.
    pub fn new(segment: &Arc<Segment>) -> Self {
        Self { segment: Arc::clone(segment), file: None, page: 0 }
    }

    /// The hashes of the next page, in order; empty after the last.
    ///
    /// Errors: the file is damaged or cannot be read.
    pub fn next(&mut self, store: &Store) -> Result<Vec<u64>, Error> {
        if self.page >= self.segment.keys.0.div_ceil(PAGE_SUMS_MAX as u64) {
            return Ok(Vec::new());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(store.open_keys(&self.segment)?),
        };
        let hashes = read_hashes(&self.segment, file, self.page)?;
        self.page += 1;
        Ok(hashes)
    }
}

/// Verifies the key hashes of a segment, some pages at a time.
pub struct KeyCheck {
    pages: KeyPages,
    found: u64,
    last: u64,
}

impl KeyCheck {
    /// Begins with the first page.
    pub fn new(segment: &Arc<Segment>) -> Self {
        Self { pages: KeyPages::new(segment), found: 0, last: 0 }
    }

    /// Verifies the next pages. Returns how many bytes they have, and whether there may be more.
    pub fn step(&mut self, store: &Store, pages_max: usize) -> Result<(u64, bool), Error> {
        let (segment, mut bytes) = (Arc::clone(&self.pages.segment), 0);
        let damaged = || FileName::Segment(segment.id, "keys").damaged("its hashes are not in order, or not all there");
        for _page in 0..pages_max {
            let hashes = self.pages.next(store)?;
            let Some((first, last)) = hashes.first().zip(hashes.last()) else {
                let is_whole = self.found == segment.keys.0;
                return if is_whole { Ok((bytes, false)) } else { Err(damaged()) };
            };
            if *first < self.last || !hashes.is_sorted() {
                return Err(damaged());
            }
            self.last = *last;
            self.found += hashes.len() as u64;
            bytes += 8 * (hashes.len() as u64 + 1); // with the checksum of the page
        }
        Ok((bytes, true))
    }
}

/// The parts of a block of an index.
pub struct PackedBlock {
    /// Which block, from 0.
    pub number: u64,
    /// Its parts, in the order of their numbers, with those that were removed since the segment was written.
    pub parts: Vec<Arc<Part>>,
}

/// What a block of an index says of its parts, with those that were removed since the segment was written.
pub struct BlockEntries {
    /// Where the CSV of the first begins in that of the segment. The others follow.
    pub csv_start: u64,
    /// In the order of the numbers.
    pub entries: Vec<Entry>,
}

/// A file of a segment besides its receipt and the lists of checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentFile {
    /// The CSV of its parts.
    Csv,
    /// What is known of each part.
    Index,
    /// Where the blocks of the index are.
    Fences,
    /// Hashes of idempotency keys.
    Keys,
    /// A Parquet file.
    Parquet(usize),
}

impl SegmentFile {
    /// All files of a segment.
    pub fn all(receipt: &SegmentReceipt) -> Vec<Self> {
        let mut all = vec![Self::Csv, Self::Index, Self::Fences];
        all.extend(receipt.keys.is_some().then_some(Self::Keys));
        all.extend((0..receipt.files.len()).map(Self::Parquet));
        all
    }

    /// Size and checksum of the file; `None` for one whose pages have their own checksums.
    pub fn info(self, receipt: &SegmentReceipt) -> Option<&FileInfo> {
        match self {
            Self::Csv => Some(&receipt.csv.info),
            Self::Index => Some(&receipt.index.info),
            Self::Fences => Some(&receipt.fences.info),
            Self::Keys => None,
            Self::Parquet(file) => receipt.files.get(file).map(|packed| &packed.parquet),
        }
    }

    /// What its name ends with.
    pub fn extension(self) -> String {
        match self {
            Self::Csv => "csv".to_owned(),
            Self::Index => "index".to_owned(),
            Self::Fences => "fences".to_owned(),
            Self::Keys => "keys".to_owned(),
            Self::Parquet(file) => parquet_extension(file),
        }
    }
}

impl SegmentIndex {
    /// Opens the index of a segment.
    pub fn open(store: &Store, segment: &Arc<Segment>) -> Result<Self, Error> {
        let index = store.open_segment(segment, SegmentFile::Index)?;
        let fences = store.open_segment(segment, SegmentFile::Fences)?;
        Ok(Self { segment: Arc::clone(segment), index: index.blocks(), fences: fences.blocks() })
    }

    /// The first block with a part whose number is `id` or greater; `None` if there is none.
    pub fn block_from(&mut self, id: PartId) -> Result<Option<u64>, Error> {
        self.first_block(|fence| fence.last >= id.get())
    }

    /// The block that has this byte of the segment's CSV.
    pub fn block_at(&mut self, csv_offset: u64) -> Result<u64, Error> {
        let after = self.first_block(|fence| fence.csv_start > csv_offset)?;
        Ok(after.unwrap_or(self.segment.index_blocks).saturating_sub(1))
    }

    /// The first block for which `is_after` holds; it holds for all blocks after that.
    fn first_block(&mut self, is_after: impl Fn(&Fence) -> bool) -> Result<Option<u64>, Error> {
        let (mut low, mut high) = (0, self.segment.index_blocks);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_after(&self.fence(middle)?) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(Some(low).filter(|block| *block < self.segment.index_blocks))
    }

    /// The parts of a block.
    pub fn block(&mut self, number: u64) -> Result<PackedBlock, Error> {
        let BlockEntries { mut csv_start, entries } = self.entries(number)?;
        let parts = entries.into_iter().map(|entry| {
            let start = csv_start;
            csv_start = start.checked_add(entry.csv_bytes)?;
            Some(Arc::new(entry.into_part(&self.segment, start)?))
        });
        let parts = parts.collect::<Option<_>>();
        Ok(PackedBlock { number, parts: parts.ok_or_else(|| self.foreign_block(number))? })
    }

    /// What a block says of its parts.
    pub fn entries(&mut self, number: u64) -> Result<BlockEntries, Error> {
        let fence = self.fence(number)?;
        let bytes = read_range(&mut self.index, fence.at, fence.entries_bytes as usize)?;
        let entries = read_entries(&self.segment, &bytes);
        let entries = entries.filter(|entries| entries.last().is_some_and(|entry| entry.id.get() == fence.last));
        let entries = entries.ok_or_else(|| self.foreign_block(number))?;
        Ok(BlockEntries { csv_start: fence.csv_start, entries })
    }

    fn foreign_block(&self, number: u64) -> Error {
        self.index.damaged(&format!("its block {number} is not one of this segment"))
    }

    /// The receipts of a block, one a line.
    fn receipts(&mut self, number: u64) -> Result<Vec<u8>, Error> {
        let fence = self.fence(number)?;
        let at = fence.at.saturating_add(fence.entries_bytes.into());
        let compressed = read_range(&mut self.index, at, fence.receipts_bytes as usize)?;
        let text = decompress(&compressed, fence.text_bytes);
        text.ok_or_else(|| self.index.damaged(&format!("the receipts of its block {number} cannot be read")))
    }

    fn fence(&mut self, number: u64) -> Result<Fence, Error> {
        let bytes = read_range(&mut self.fences, number * FENCE_BYTES as u64, FENCE_BYTES)?;
        Fence::read(&bytes).ok_or_else(|| self.fences.damaged(&format!("it ends before its entry {number}")))
    }
}

/// Verified bytes from `offset` on.
fn read_range(blocks: &mut Blocks, offset: u64, bytes: usize) -> Result<Vec<u8>, Error> {
    let mut found = Vec::new();
    while found.len() < bytes {
        let some = blocks.from(offset.saturating_add(found.len() as u64))?;
        if some.is_empty() {
            return Err(blocks.damaged("it is shorter than its fences say"));
        }
        found.extend_from_slice(&some[..some.len().min(bytes - found.len())]);
    }
    Ok(found)
}

impl Store {
    /// The CSV of a packed part.
    pub(crate) fn open_packed_csv(
        &self,
        part: &Part,
        packed: &Packed,
        open: &mut OpenSegment,
    ) -> Result<Reader, Error> {
        let Packed { segment, csv_start, .. } = packed;
        let whole = match &open.csv {
            Some((id, csv)) if *id == segment.id => csv,
            _ => &open.csv.insert((segment.id, self.open_segment(segment, SegmentFile::Csv)?)).1,
        };
        let checks = part.checks.ok_or_else(|| Error::Internal(format!("packed part {} has no checksum", part.id)))?;
        if csv_start.checked_add(part.csv_bytes).is_none_or(|end| end > whole.bytes) {
            return Err(whole.damaged("it is shorter than its index says"));
        }
        Ok(Reader {
            file: Arc::clone(&whole.file),
            start: *csv_start,
            bytes: part.csv_bytes,
            name: FileName::Part(part.id, crate::model::format::Format::Csv),
            check: Check::OneBlock(checks.csv),
        })
    }

    /// The receipt of a packed part.
    pub(crate) fn packed_receipt(
        &self,
        part: &Part,
        segment: &Arc<Segment>,
        open: &mut OpenSegment,
    ) -> Result<Receipt, Error> {
        if let Some(receipts) = &mut open.receipts
            && receipts.segment == segment.id
            && let Some(receipt) = receipts.find(part)
        {
            return Ok(receipt);
        }
        let mut index = SegmentIndex::open(self, segment)?;
        let damaged = || Error::Damaged {
            part: part.id,
            what: format!("segment {}, index: it has no receipt of this part", segment.id),
        };
        let block = index.block_from(part.id)?.ok_or_else(damaged)?;
        let receipts = OpenReceipts { segment: segment.id, text: index.receipts(block)?, next: 0 };
        open.receipts.insert(receipts).find(part).ok_or_else(damaged)
    }

    /// Opens a file of a segment. Its blocks are verified as they are read, but a Parquet file by the caller.
    pub(crate) fn open_segment(&self, segment: &Segment, file: SegmentFile) -> Result<Reader, Error> {
        let id = segment.id;
        match file {
            SegmentFile::Csv => self.open_checked(id, "csv", "sums", segment.csv_bytes, segment.csv_check),
            SegmentFile::Index => {
                self.open_checked(id, "index", "index-sums", segment.index_bytes, segment.index_check)
            }
            SegmentFile::Fences => {
                let bytes = segment.index_blocks.saturating_mul(FENCE_BYTES as u64);
                self.open_checked(id, "fences", "fences-sums", bytes, segment.fences_check)
            }
            SegmentFile::Parquet(file) => self.open_segment_parquet(segment, file),
            SegmentFile::Keys => Err(Error::Internal(format!("segment {id}, keys: they are read by pages"))),
        }
    }

    /// A Parquet file of a segment. It is verified by the caller.
    pub(crate) fn open_segment_parquet(&self, segment: &Segment, file: usize) -> Result<Reader, Error> {
        let name = FileName::Segment(segment.id, "parquet");
        let opened = self.open_segment_file(segment.id, &parquet_extension(file));
        let reader = Reader::of(Ok(opened.map_err(|error| not_there(&name, error))?), name)?;
        match segment.files.get(file) {
            Some(expected) if expected.bytes == reader.bytes => Ok(reader),
            _ => Err(reader.damaged("its size is not what its receipt says")),
        }
    }

    /// The columns of a Parquet file of a segment.
    ///
    /// Errors: the segment's receipt, which is read if they are not in memory, is damaged or cannot be read.
    pub(crate) fn segment_schema(&self, segment: &Segment, file: usize) -> Result<Arc<Schema>, Error> {
        if let Some(schema) = segment.files.get(file).and_then(|parquet| parquet.schema.clone()) {
            return Ok(schema);
        }
        let receipt = self.receipt_of_segment(segment)?;
        let no_file = || Error::Internal(format!("segment {} has no Parquet file {file}", segment.id));
        Ok(Arc::new(Schema::of(&receipt.files.get(file).ok_or_else(no_file)?.columns)))
    }

    /// The receipt of a segment, which can be long.
    ///
    /// Errors: it is damaged, or cannot be read.
    pub(crate) fn receipt_of_segment(&self, segment: &Segment) -> Result<SegmentReceipt, Error> {
        let damaged =
            |what: String| Error::Damaged { part: segment.id.first, what: format!("segment {}: {what}", segment.id) };
        let receipt = self.segment_receipt(segment.id)?.map_err(damaged)?;
        if receipt.files.len() != segment.files.len() {
            return Err(damaged("its receipt is of another segment".to_owned()));
        }
        Ok(receipt)
    }

    /// Whether a part of the segment may have a key with this hash. If not, none has.
    pub(crate) fn may_have_key(&self, segment: &Segment, hash: u64) -> Result<bool, Error> {
        let (count, _seed) = segment.keys;
        if count == 0 {
            return Ok(false);
        }
        // Hashes are spread evenly, so the first guess is nearly always the right page or one beside it. Steps from there are
        // doubled, because clients can choose keys with similar hashes.
        let (mut low, mut high) = (0, count.div_ceil(PAGE_SUMS_MAX as u64) - 1);
        let guess = (u128::from(hash) * u128::from(high + 1)) >> 64;
        let (mut number, mut step) = (u64::try_from(guess).unwrap_or(high), 1);
        loop {
            let hashes = self.key_hashes(segment, number)?;
            if hash < hashes[0] && number > low {
                high = number - 1;
                number = high.saturating_sub(step - 1).max(low);
            } else if hash > hashes[hashes.len() - 1] && number < high {
                low = number + 1;
                number = (low + step - 1).min(high);
            } else {
                return Ok(hashes.binary_search(&hash).is_ok());
            }
            step = (2 * step).min((high - low) / 2 + 1);
        }
    }

    /// The key hashes of a segment in one page of its file; empty after the last.
    pub(crate) fn key_hashes(&self, segment: &Segment, page_number: u64) -> Result<Vec<u64>, Error> {
        if page_number >= segment.keys.0.div_ceil(PAGE_SUMS_MAX as u64) {
            return Ok(Vec::new());
        }
        read_hashes(segment, &self.open_keys(segment)?, page_number)
    }

    fn open_keys(&self, segment: &Segment) -> Result<File, Error> {
        let name = FileName::Segment(segment.id, "keys");
        let opened = self.open_segment_file(segment.id, "keys");
        opened.map(|(file, _bytes)| file).map_err(|error| not_there(&name, error))
    }

    /// A file of a segment that has this size, verified as it is read.
    fn open_checked(
        &self,
        id: SegmentId,
        extension: &'static str,
        sums: &'static str,
        bytes: u64,
        check: u64,
    ) -> Result<Reader, Error> {
        let name = FileName::Segment(id, extension);
        let opened = self.open_segment_file(id, extension).map_err(|error| not_there(&name, error))?;
        let mut reader = Reader::of(Ok(opened), name)?;
        if reader.bytes != bytes {
            return Err(reader.damaged(&format!("{} bytes, the receipt says {bytes}", reader.bytes)));
        }
        reader.check = if listed_blocks(bytes) == 0 {
            Check::OneBlock(check)
        } else {
            let name = FileName::Segment(id, sums);
            let (list, _bytes) = self.open_segment_file(id, sums).map_err(|error| not_there(&name, error))?;
            Check::BlockList(Arc::new(list), check)
        };
        Ok(reader)
    }

    /// Opens a file of a segment: from `parts/`, or from `removed/` if the segment was replaced since the caller took its
    /// snapshot of the table.
    pub(super) fn open_segment_file(&self, id: SegmentId, extension: &str) -> io::Result<(File, u64)> {
        assert_unlocked();
        match data_folder::open_with_size(&self.segment_path(id, extension)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                data_folder::open_with_size(&self.removed_segment_path(id, extension))
            }
            opened => opened,
        }
    }
}

/// The error for a file of a segment that cannot be opened: it is damaged if it is not there.
fn not_there(name: &FileName, error: io::Error) -> Error {
    if data_folder::is_no_regular_file(&error) {
        name.damaged(&error.to_string())
    } else {
        Error::io(name.to_string())(error)
    }
}

/// Bytes of the file that has so many key hashes.
pub(super) fn key_pages_bytes(count: u64) -> u64 {
    8 * (count + count.div_ceil(PAGE_SUMS_MAX as u64))
}

fn read_hashes(segment: &Segment, file: &File, page_number: u64) -> Result<Vec<u64>, Error> {
    let name = FileName::Segment(segment.id, "keys");
    let mut page = vec![0; PAGE_BYTES_MAX];
    let read = read_at(file, page_number * PAGE_BYTES_MAX as u64, &mut page);
    let read = read.map_err(Error::io(name.to_string()))?;
    let hashes = read_page(segment.keys.1, page_number, &page[..read]).filter(|hashes| !hashes.is_empty());
    hashes.ok_or_else(|| name.damaged(&format!("its page {page_number} is not what was written")))
}

/// The extension of a Parquet file of a segment.
pub(super) fn parquet_extension(file: usize) -> String {
    if file == 0 { "parquet".to_owned() } else { format!("{file}.parquet") }
}
