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
    reading::{SegmentIndex, parquet_extension},
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
    /// Those that are whole and not replaced.
    pub(crate) kept: BTreeMap<SegmentId, SegmentReceipt>,
    /// Those that cannot be used, with the reason.
    pub(in crate::engine::storage) damaged: Vec<(SegmentId, String)>,
    /// Segments without a receipt, and those that others replace, with the extensions of their files.
    pub(in crate::engine::storage) leftovers: BTreeMap<SegmentId, BTreeSet<String>>,
    /// All files of each segment, by extension.
    files: BTreeMap<SegmentId, BTreeSet<String>>,
}

impl FoundSegments {
    /// Whether a part with this number can be in one of the segments that are kept.
    pub(in crate::engine::storage) fn covers(&self, part: PartId) -> bool {
        self.kept.keys().any(|id| id.covers(part))
    }

    /// Whether one of the segments that are kept replaces this one.
    pub(in crate::engine::storage) fn replaces(&self, other: SegmentId) -> bool {
        self.kept.keys().any(|id| id.replaces(other))
    }

    /// Which of these parts are in a segment. A segment whose index is damaged is not kept.
    pub(crate) fn packed(
        &mut self,
        store: &Store,
        parts: impl Iterator<Item = PartId>,
    ) -> Result<BTreeSet<PartId>, Error> {
        let mut packed = BTreeSet::new();
        let mut open: Option<SegmentIndex> = None;
        let mut of = None;
        for part in parts {
            let Some(id) = self.kept.keys().copied().find(|id| id.covers(part)) else { continue };
            if of != Some(id) {
                let segment = self.kept.get(&id).and_then(|receipt| Segment::of(receipt, Vec::new())).map(Arc::new);
                open = segment.map(|segment| SegmentIndex::open(store, &segment)).transpose()?;
                of = Some(id);
            }
            let Some(index) = &mut open else { continue };
            let Some(block) = index.block_from(part)? else { continue };
            if index.numbers(block)?.contains(&part) {
                packed.insert(part);
            }
        }
        Ok(packed)
    }
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
        for (&id, files) in &found.files {
            if !files.contains("segment") {
                found.leftovers.insert(id, files.clone());
                continue;
            }
            match self.check_segment(id)? {
                Ok(receipt) => {
                    found.kept.insert(id, receipt);
                }
                Err(reason) => found.damaged.push((id, reason)),
            }
        }
        let ids: Vec<_> = found.kept.keys().copied().collect();
        for &id in ids.iter().filter(|id| ids.iter().any(|other| other.replaces(**id))) {
            found.kept.remove(&id);
            found.leftovers.insert(id, found.files[&id].clone());
        }
        Ok(found)
    }

    /// The receipt of a segment whose files have the sizes that it gives, or what is wrong with it.
    fn check_segment(&self, id: SegmentId) -> Result<Result<SegmentReceipt, String>, Error> {
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
        Ok(Ok(receipt))
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
        let mut text = Vec::new();
        file.take(RECEIPT_TEXT_BYTES_MAX as u64).read_to_end(&mut text).map_err(what())?;
        if verify_record(&text) != RecordChecksum::Valid {
            return Ok(Err("receipt: it is not what was written".to_owned()));
        }
        #[derive(serde::Deserialize)]
        struct Version {
            format: u32,
        }
        if let Ok(Version { format }) = serde_json::from_slice(&text)
            && format > SEGMENT_FORMAT_VERSION
        {
            let root = self.root.display();
            return Err(Error::DataFolder(format!(
                "data folder {root}: segment {id} has format version {format}, this program knows \
                 {SEGMENT_FORMAT_VERSION}: use a newer one"
            )));
        }
        let receipt = serde_json::from_slice(&text);
        Ok(receipt.map_err(|error| format!("receipt: {error}")).and_then(|receipt: SegmentReceipt| {
            let is_right = receipt.segment == id && Segment::of(&receipt, Vec::new()).is_some();
            if is_right { Ok(receipt) } else { Err("receipt: it is of another segment".to_owned()) }
        }))
    }

    /// Deletes what a start finds of parts and segments that are in other segments now, and of segments without a receipt. Returns
    /// how many files of the latter there were.
    pub(in crate::engine::storage) fn delete_replaced(
        &self,
        parts: &BTreeSet<PartId>,
        found: &FoundSegments,
        set_aside: &BTreeMap<SegmentId, BTreeSet<String>>,
    ) -> Result<usize, Error> {
        parts.iter().for_each(|id| self.delete_replaced_part(*id));
        let mut leftovers = 0;
        for (id, extensions) in &found.leftovers {
            leftovers += self.delete_segment_files(*id, "parts", extensions.iter().map(String::as_str))?;
        }
        for (id, extensions) in set_aside {
            self.delete_segment_files(*id, "removed", extensions.iter().map(String::as_str))?;
        }
        Ok(leftovers)
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
