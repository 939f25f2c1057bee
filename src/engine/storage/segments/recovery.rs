//! Segments at start: which are whole, which others they replace, and which files are left over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    sync::Arc,
};

use super::{
    super::{
        checksums::{RecordChecksum, verify_record},
        data_folder,
        names::parse_segment_file_name,
        store::Store,
    },
    reading::{SegmentIndex, key_pages_bytes, parquet_extension},
    replaced::DROPPED,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    limits::RECEIPT_TEXT_BYTES_MAX,
    model::{
        packed::{Segment, SegmentId},
        part::PartId,
        segment::{SEGMENT_FORMAT_VERSION, SegmentReceipt},
    },
};

/// The segments that a start found.
#[derive(Default)]
pub(crate) struct FoundSegments {
    /// Those that are whole and not replaced. Their receipts, which can be long, are read again when they are needed.
    pub(crate) kept: BTreeMap<SegmentId, Arc<Segment>>,
    /// Those that cannot be used, with the reason.
    pub(in crate::engine::storage) damaged: Vec<(SegmentId, String)>,
    /// Those that were dropped, because all their parts were purged. Files of them may be left, and in `removed/` of those that they
    /// had replaced. (One in `parts/` that they cover is of parts that they did not have.)
    pub(super) dropped: Vec<SegmentId>,
    /// Those that others replace.
    pub(in crate::engine::storage) replaced: Vec<SegmentId>,
    /// Those without a receipt.
    pub(in crate::engine::storage) without_receipt: Vec<SegmentId>,
    /// All files of each segment, by extension.
    pub(in crate::engine::storage) files: BTreeMap<SegmentId, BTreeSet<String>>,
}

impl FoundSegments {
    /// The extensions of a segment's files in `parts/`.
    pub(super) fn files_of(&self, id: SegmentId) -> impl Iterator<Item = &str> {
        self.files.get(&id).into_iter().flatten().map(String::as_str)
    }

    /// Which of these parts are in a segment that is kept. A segment whose index is damaged is not kept any more.
    ///
    /// Errors: an index cannot be read now.
    pub(crate) fn packed(&mut self, store: &Store, parts: &BTreeSet<PartId>) -> Result<BTreeSet<PartId>, Error> {
        let mut packed = BTreeSet::new();
        let ids: Vec<_> = self.kept.keys().copied().collect();
        for id in ids {
            let mut wanted = parts.range(id.first..=id.last).copied().peekable();
            if wanted.peek().is_none() {
                continue;
            }
            let Some(segment) = self.kept.get(&id) else { continue };
            match parts_of(store, segment, wanted) {
                Ok(of_segment) => packed.extend(of_segment),
                Err(Error::Damaged { what, .. }) => {
                    self.kept.remove(&id);
                    self.damaged.push((id, what));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(packed)
    }
}

/// Which of these parts, in the order of their numbers, are in the segment. Each block of the index is read once.
fn parts_of(store: &Store, segment: &Arc<Segment>, parts: impl Iterator<Item = PartId>) -> Result<Vec<PartId>, Error> {
    let (mut found, mut block) = (Vec::new(), Vec::new());
    let mut index = SegmentIndex::open(store, segment)?;
    for part in parts {
        if block.last().is_none_or(|last| *last < part) {
            let Some(number) = index.block_from(part)? else { break };
            block = index.entries(number)?.entries.iter().map(|entry| entry.id).collect();
        }
        if block.binary_search(&part).is_ok() {
            found.push(part);
        }
    }
    Ok(found)
}

/// The parts of the first block of a segment.
fn first_parts(store: &Store, segment: &Arc<Segment>) -> Result<BTreeSet<PartId>, Error> {
    if segment.index_blocks == 0 {
        return Ok(BTreeSet::new());
    }
    let entries = SegmentIndex::open(store, segment)?.entries(0)?.entries;
    Ok(entries.iter().map(|entry| entry.id).collect())
}

impl Store {
    /// Lists the segments in `parts/`. Nothing is changed.
    ///
    /// Errors: a receipt has a newer version; a file cannot be read now.
    pub(in crate::engine::storage) fn find_segments(&self) -> Result<FoundSegments, Error> {
        let mut found = FoundSegments::default();
        for path in self.entries("parts")? {
            if let Some((id, extension)) = parse_segment_file_name(&path) {
                found.files.entry(id).or_default().insert(extension.to_owned());
            }
        }
        for path in self.entries("removed")? {
            if let Some((id, DROPPED)) = parse_segment_file_name(&path) {
                found.dropped.push(id);
            }
        }
        for (&id, files) in &found.files {
            if found.dropped.contains(&id) {
                found.replaced.push(id);
                continue;
            }
            if !files.contains("segment") {
                found.without_receipt.push(id);
                continue;
            }
            match self.check_segment(id)? {
                Ok(segment) => {
                    found.kept.insert(id, segment);
                }
                Err(reason) => found.damaged.push((id, reason)),
            }
        }
        self.find_replaced(&mut found)?;
        Ok(found)
    }

    /// Finds segments that others replace. Those whose numbers others cover, but not their parts, are damaged: somebody put them
    /// back after the others were written.
    fn find_replaced(&self, found: &mut FoundSegments) -> Result<(), Error> {
        let ids: Vec<_> = found.kept.keys().copied().collect();
        for id in ids.iter().filter(|id| ids.iter().any(|other| other.replaces(**id))) {
            let segment = found.kept.remove(id);
            let first = match segment.map(|segment| first_parts(self, &segment)).transpose() {
                Ok(first) => first.unwrap_or_default(),
                Err(Error::Damaged { what, .. }) => {
                    found.damaged.push((*id, what));
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Purged parts are not in the other segment, so the first part alone would not do.
            if first.is_empty() || !found.packed(self, &first)?.is_empty() {
                found.replaced.push(*id);
            } else {
                found.damaged.push((*id, "another segment was written in its place".to_owned()));
            }
        }
        Ok(())
    }

    /// A segment whose files have the sizes that its receipt gives, or what is wrong with it.
    fn check_segment(&self, id: SegmentId) -> Result<Result<Arc<Segment>, String>, Error> {
        assert_unlocked();
        let receipt = match self.segment_receipt(id)? {
            Ok(receipt) => receipt,
            Err(what) => return Ok(Err(what)),
        };
        let mut sizes = vec![
            ("csv".to_owned(), receipt.csv.info.bytes),
            ("index".to_owned(), receipt.index.info.bytes),
            ("fences".to_owned(), receipt.fences.info.bytes),
        ];
        for (file, packed) in receipt.files.iter().enumerate() {
            sizes.push((parquet_extension(file), packed.parquet.bytes));
        }
        if let Some(keys) = &receipt.keys {
            sizes.push(("keys".to_owned(), key_pages_bytes(keys.count)));
        }
        for (extension, expected) in sizes {
            match fs::symlink_metadata(self.segment_path(id, &extension)).map(|metadata| metadata.len()) {
                Ok(found) if found == expected => {}
                Ok(found) => return Ok(Err(format!("{extension}: {found} bytes, the receipt says {expected}"))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(Err(format!("{extension}: {error}")));
                }
                Err(error) => return Err(Error::io(format!("segment {id}, {extension}"))(error)),
            }
        }
        // The sizes of block lists are not in the receipt. They are verified page by page as they are read.
        let lists = [("sums", &receipt.csv), ("index-sums", &receipt.index), ("fences-sums", &receipt.fences)];
        for (extension, _) in lists.iter().filter(|(_, file)| file.sums_seed.is_some()) {
            if let Err(error) = fs::symlink_metadata(self.segment_path(id, extension)) {
                return Ok(Err(format!("{extension}: {error}")));
            }
        }
        let segment = Segment::of(&receipt, Vec::new()).map(Arc::new);
        Ok(segment.ok_or_else(|| "receipt: a checksum in it is not 16 hexadecimal digits".to_owned()))
    }

    /// The receipt of a segment, or what is wrong with it.
    ///
    /// Errors: it cannot be read; it has a newer version.
    pub(crate) fn segment_receipt(&self, id: SegmentId) -> Result<Result<SegmentReceipt, String>, Error> {
        let what = || Error::io(format!("receipt of segment {id}"));
        let opened = self.open_segment_file(id, "segment");
        let (file, _bytes) = match opened {
            Err(error) if data_folder::is_no_regular_file(&error) => return Ok(Err(format!("receipt: {error}"))),
            opened => opened.map_err(what())?,
        };
        parse_segment_receipt(id, file).map_err(|error| match error {
            Error::DataFolder(newer) => Error::DataFolder(format!("data folder {}: {newer}", self.root.display())),
            other => other,
        })
    }

    /// Moves all files of a segment to `quarantine/`, its receipt last.
    pub(crate) fn move_segment_to_quarantine(&self, id: SegmentId) -> Result<(), Error> {
        let mut names = vec!["segment".to_owned()];
        for path in self.entries("parts")? {
            if let Some((of, extension)) = parse_segment_file_name(&path)
                && of == id
                && extension != "segment"
            {
                names.insert(0, extension.to_owned());
            }
        }
        for extension in names {
            self.move_to_quarantine(&self.segment_path(id, &extension), &id.to_string(), &extension)?;
        }
        Ok(())
    }
}

/// The receipt of a segment in this file, or what is wrong with it.
///
/// Errors: it cannot be read; it has a newer version.
pub(in crate::engine::storage) fn parse_segment_receipt(
    id: SegmentId,
    file: impl Read,
) -> Result<Result<SegmentReceipt, String>, Error> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let mut text = Vec::new();
    let read = file.take(RECEIPT_TEXT_BYTES_MAX as u64).read_to_end(&mut text);
    read.map_err(Error::io(format!("receipt of segment {id}")))?;
    if verify_record(&text) != RecordChecksum::Valid {
        return Ok(Err("receipt: it is not what was written".to_owned()));
    }
    if let Ok(Version { format }) = serde_json::from_slice(&text)
        && format > SEGMENT_FORMAT_VERSION
    {
        return Err(Error::DataFolder(format!(
            "segment {id} has format version {format}, this program knows {SEGMENT_FORMAT_VERSION}: use a newer one"
        )));
    }
    let receipt = serde_json::from_slice(&text);
    Ok(receipt.map_err(|error| format!("receipt: {error}")).and_then(|receipt: SegmentReceipt| {
        let is_right = receipt.segment == id && Segment::of(&receipt, Vec::new()).is_some();
        if is_right { Ok(receipt) } else { Err("receipt: it is of another segment".to_owned()) }
    }))
}
