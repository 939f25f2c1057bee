//! Writing a segment: its parts are added in order, then its Parquet files, then it is committed.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::Arc,
};

use super::{
    super::{
        checksums::PageWriter,
        checksums::add_checksum,
        data_folder,
        draft::{ClosedDraft, Draft},
        store::Store,
        sync::{sync_file, sync_folder},
    },
    index::{BlockBuilder, EndedBlock},
    reading::parquet_extension,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    limits::{PACKED_FILES_MAX, PACKED_REST_TEXT_BYTES, RECEIPT_TEXT_BYTES_MAX, SEGMENT_RECEIPT_BYTES_MAX},
    model::{
        checksum::to_hex,
        packed::SegmentId,
        part::{Part, PartId, Receipt},
        schema::{Column, Schema, packed_text_bytes},
        segment::{CheckedFile, KeyHashes, PackedFile, SEGMENT_FORMAT_VERSION, SegmentReceipt},
    },
};

/// A segment that is being written. What it has written is removed when it is dropped without having been committed.
pub struct SegmentWriter {
    store: Arc<Store>,
    id: SegmentId,
    csv: Draft,
    index: Draft,
    fences: Draft,
    block: BlockBuilder,
    index_blocks: u64,
    keys: Draft,
    key_pages: PageWriter,
    keys_seed: u64,
    keys_count: u64,
    /// What is known of each Parquet file, and its draft once it has been written.
    files: Vec<(PackedFile, Option<ClosedDraft>)>,
    /// Bytes that the lists of columns may take in the receipt.
    text_bytes: usize,
    /// The files by the hash of their columns.
    file_of: HashMap<u128, usize>,
}

/// A segment whose files are in `parts/`, and whose receipt is a draft.
pub struct PreparedSegment {
    store: Arc<Store>,
    receipt: SegmentReceipt,
    draft: Draft,
    is_committed: bool,
}

impl SegmentWriter {
    /// Begins a segment.
    pub fn new(store: &Arc<Store>, id: SegmentId) -> Result<Self, Error> {
        let keys_seed = fastrand::u64(..);
        Ok(Self {
            store: Arc::clone(store),
            id,
            csv: store.draft_with_block_checksums()?,
            index: store.draft_with_block_checksums()?,
            fences: store.draft_with_block_checksums()?,
            block: BlockBuilder::default(),
            index_blocks: 0,
            keys: store.draft()?,
            key_pages: PageWriter::new(keys_seed),
            keys_seed,
            keys_count: 0,
            files: Vec::new(),
            text_bytes: PACKED_REST_TEXT_BYTES,
            file_of: HashMap::new(),
        })
    }

    /// Ends its range at this part, the last that was added, because the others of its run have no room.
    pub fn end_at(&mut self, last: PartId) {
        self.id.last = last;
    }

    /// Whether there is room for a part with these columns. There always is if another part has them.
    pub fn has_room_for(&self, columns: &[Column]) -> bool {
        let text_bytes = self.text_bytes + packed_text_bytes(columns.iter().map(|column| column.name.as_str()));
        let has_room = self.files.len() < PACKED_FILES_MAX && text_bytes <= SEGMENT_RECEIPT_BYTES_MAX;
        has_room || self.file_of.contains_key(&Schema::hash_of(columns))
    }

    /// The Parquet file of parts whose columns have this hash.
    pub fn file_with(&self, schema_hash: u128) -> Option<usize> {
        self.file_of.get(&schema_hash).copied()
    }

    /// How many Parquet files it needs: one for each distinct list of columns.
    pub fn files_count(&self) -> usize {
        self.files.len()
    }

    /// The columns of a Parquet file.
    pub fn columns(&self, file: usize) -> &[Column] {
        self.files.get(file).map_or(&[], |(file, _)| &file.columns)
    }

    /// Bytes of the CSV so far.
    pub fn csv_bytes(&self) -> u64 {
        self.csv.bytes()
    }

    /// Adds a part, whose number is greater than that of the part before. Returns which of the Parquet files its rows belong in.
    pub fn add(&mut self, part: &Part, receipt: &Receipt, csv: &[u8]) -> Result<usize, Error> {
        let file = self.file_of(receipt)?;
        let checks = receipt.checks().ok_or_else(|| Error::Internal("a packed part has no checksums".to_owned()))?;
        let text = serde_json::to_vec(&without_csv_checksum(receipt, checks.csv));
        let text = text.map_err(|error| Error::Internal(format!("receipt: {error}")))?;
        self.csv.write_all(csv).map_err(Error::io("a new segment"))?;
        self.block.push(part, file, checks.csv, &text);
        if self.block.is_full() {
            self.end_block()?;
        }
        let packed = &mut self.files[file].0;
        packed.parts += 1;
        packed.rows = packed.rows.wrapping_add(receipt.rows);
        packed.parts_parquet_bytes = packed.parts_parquet_bytes.wrapping_add(receipt.parquet.bytes);
        for (sum, column) in packed.columns.iter_mut().zip(&receipt.columns) {
            sum.nulls = sum.nulls.wrapping_add(column.nulls);
        }
        for (count, column) in packed.with_values.iter_mut().zip(&receipt.columns) {
            *count += u64::from(column.nulls < receipt.rows);
        }
        if receipt.column_bytes.len() == receipt.columns.len() {
            for (sum, bytes) in packed.column_bytes.iter_mut().zip(&receipt.column_bytes) {
                *sum = sum.wrapping_add(*bytes);
            }
        } else {
            packed.parts_without_bytes += 1;
        }
        Ok(file)
    }

    /// The Parquet file for a part's columns.
    fn file_of(&mut self, receipt: &Receipt) -> Result<usize, Error> {
        let schema = Schema::of(&receipt.columns);
        let (count, columns_count) = (self.files.len(), receipt.columns.len());
        let file = *self.file_of.entry(schema.hash()).or_insert(count);
        if file == count {
            let mut columns = receipt.columns.clone();
            columns.iter_mut().for_each(|column| column.nulls = 0);
            let info = || crate::model::part::FileInfo { bytes: 0, xxh3: String::new() };
            let packed = PackedFile {
                columns,
                column_bytes: vec![0; columns_count],
                with_values: vec![0; columns_count],
                parts: 0,
                parts_without_bytes: 0,
                rows: 0,
                parts_parquet_bytes: 0,
                parquet: info(),
                row_groups: 0,
                footer_bytes: 0,
                footer_xxh3: String::new(),
            };
            self.text_bytes += packed_text_bytes(packed.columns.iter().map(|column| column.name.as_str()));
            self.files.push((packed, None));
        } else if Schema::of(&self.files[file].0.columns) != schema {
            return Err(Error::Internal("two lists of columns have the same hash".to_owned()));
        }
        Ok(file)
    }

    /// Adds the hash of a part's key. They come in order.
    pub fn add_key(&mut self, hash: u64) -> Result<(), Error> {
        self.keys_count += 1;
        match self.key_pages.push(hash) {
            Some(page) => self.keys.write_all(&page).map_err(Error::io("a new segment")),
            None => Ok(()),
        }
    }

    /// Sets the Parquet file of the parts that have the columns of this file. It is synced and closed.
    pub fn set_parquet(&mut self, file: usize, draft: Draft, row_groups: u32, footer_bytes: u32) -> Result<(), Error> {
        if let Some((packed, slot)) = self.files.get_mut(file) {
            packed.parquet = draft.info();
            packed.footer_xxh3 = to_hex(draft.tail_checksum());
            (packed.row_groups, packed.footer_bytes) = (row_groups, footer_bytes);
            *slot = Some(draft.close().map_err(Error::io("a new segment"))?);
        }
        Ok(())
    }

    fn end_block(&mut self) -> Result<(), Error> {
        if let Some(EndedBlock { block, fence }) = self.block.finish(self.csv.bytes())? {
            let written = self.index.write_all(&block).and_then(|()| self.fences.write_all(&fence));
            written.map_err(Error::io("a new segment"))?;
            self.index_blocks += 1;
        }
        Ok(())
    }

    /// Gives its files their names in `parts/`, syncs them, and writes its receipt as a draft. After an error all of them are
    /// removed.
    pub fn prepare(mut self) -> Result<PreparedSegment, Error> {
        assert_unlocked();
        let what = || Error::io("a new segment");
        self.end_block()?;
        if let Some(page) = self.key_pages.end() {
            self.keys.write_all(&page).map_err(what())?;
        }
        let (files, parquet): (Vec<_>, Vec<_>) = std::mem::take(&mut self.files).into_iter().unzip();
        let checked = |draft: &Draft| CheckedFile { info: draft.info(), sums_seed: draft.sums_seed().map(to_hex) };
        let receipt = SegmentReceipt {
            format: SEGMENT_FORMAT_VERSION,
            segment: self.id,
            csv: checked(&self.csv),
            index: checked(&self.index),
            index_blocks: self.index_blocks,
            fences: checked(&self.fences),
            keys: (self.keys_count > 0).then(|| KeyHashes { count: self.keys_count, seed: to_hex(self.keys_seed) }),
            files,
        };
        let text = serde_json::to_vec(&receipt).map(add_checksum);
        let text = text.map_err(|error| Error::Internal(format!("receipt of a segment: {error}")))?;
        if text.len() > RECEIPT_TEXT_BYTES_MAX {
            let what = format!("the receipt of segment {} has {} bytes, and could not be read", self.id, text.len());
            return Err(Error::Internal(what));
        }
        let mut prepared =
            PreparedSegment { draft: self.store.draft()?, store: self.store, receipt, is_committed: false };
        let Self { id, csv, index, fences, keys, .. } = self;
        let store = &prepared.store;
        let path = |extension: &str| store.segment_path(id, extension);
        csv.publish(&path("csv"), &path("sums"))?;
        index.publish(&path("index"), &path("index-sums"))?;
        fences.publish(&path("fences"), &path("fences-sums"))?;
        if prepared.receipt.keys.is_some() {
            keys.publish(&path("keys"), &path("sums"))?;
        }
        for (file, draft) in parquet.into_iter().enumerate() {
            let draft = draft.ok_or_else(|| Error::Internal("a Parquet file of a segment is missing".to_owned()))?;
            draft.rename(&path(&parquet_extension(file)))?;
        }
        prepared.sync()?;
        let written = prepared.draft.write_all(&text).and_then(|()| prepared.draft.sync());
        written.map_err(what())?;
        Ok(prepared)
    }
}

impl PreparedSegment {
    /// The receipt.
    pub fn receipt(&self) -> &SegmentReceipt {
        &self.receipt
    }

    fn sync(&self) -> Result<(), Error> {
        let what = || Error::io(format!("segment {}", self.receipt.segment));
        // The Parquet files were synced when they were closed.
        for extension in fixed_extensions(self.receipt.keys.is_some()) {
            match data_folder::open(&self.store.segment_path(self.receipt.segment, extension)) {
                Err(error) if extension.ends_with("sums") && error.kind() == io::ErrorKind::NotFound => {}
                file => file.and_then(|file| sync_file(&file)).map_err(what())?,
            }
        }
        Ok(())
    }

    fn extensions(&self) -> Vec<String> {
        extensions(self.receipt.keys.is_some(), self.receipt.files.len())
    }

    /// Commits it: renames its receipt, and syncs the folder.
    pub fn commit(mut self) -> Result<(), Error> {
        let id = self.receipt.segment;
        let (to, folder) = (self.store.segment_path(id, "segment"), self.store.root.join("parts"));
        self.draft.rename(&to)?;
        sync_folder(&folder).map_err(Error::io(format!("segment {id}")))?;
        self.is_committed = true;
        Ok(())
    }
}

impl Drop for PreparedSegment {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        let id = self.receipt.segment;
        // The receipt first: the next start removes files without a receipt, but a receipt without files is a damaged segment. The
        // packer may write files of these names again.
        let extensions = std::iter::once("segment".to_owned()).chain(self.extensions());
        self.store.remove_or_at_start(extensions.map(|extension| self.store.segment_path(id, &extension)));
    }
}

/// A receipt without the checksum of the CSV if the part's entry in the index has it: it cannot be compressed.
fn without_csv_checksum(receipt: &Receipt, in_entry: u64) -> Receipt {
    let mut receipt = receipt.clone();
    if receipt.csv.xxh3 == to_hex(in_entry) {
        receipt.csv.xxh3.clear();
    }
    receipt
}

/// The files of a segment besides its receipt. Block lists may be missing.
pub(super) fn extensions(has_keys: bool, parquet_files: usize) -> Vec<String> {
    fixed_extensions(has_keys).map(str::to_owned).chain((0..parquet_files).map(parquet_extension)).collect()
}

fn fixed_extensions(has_keys: bool) -> impl Iterator<Item = &'static str> {
    ["csv", "sums", "index", "index-sums", "fences", "fences-sums"].into_iter().chain(has_keys.then_some("keys"))
}
