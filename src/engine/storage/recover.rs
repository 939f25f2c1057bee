//! Recovery at start: checks the receipts, removes leftovers, moves damaged parts to quarantine, and completes removals.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    time::SystemTime,
};

use super::{
    names::{parse_part_file_name, parse_segment_file_name},
    quarantine::Quarantine,
    receipts::{ReceiptFault, Unusable, parse_receipt},
    removed_parts::RemovedFiles,
    store::Store,
};
use crate::{
    engine::state::{lock_check::assert_unlocked, missing_parts::MissingParts},
    error::Error,
    model::{
        packed::SegmentId,
        part::{FORMAT_VERSION, PartId, Receipt},
        segment::SegmentReceipt,
    },
};

/// What a start found in the data folder.
#[derive(Debug, Default)]
pub struct RecoveryReport {
    /// How many files without a receipt were removed.
    pub leftovers: usize,
    /// The parts among them: those whose CSV or Parquet file was in `parts/`.
    pub removed_parts: Vec<PartId>,
    /// Parts that were moved to quarantine now, with the reason.
    pub quarantined: Vec<(PartId, String)>,
    /// Parts in quarantine, and those of segments in quarantine, that are not in the table, and whose loss no operator has accepted.
    pub missing: MissingParts,
    /// Jobs that were moved to quarantine now, with the reason.
    pub jobs_quarantined: Vec<(String, String)>,
    /// Parts that were removed from the table and can be restored, with the time of the removal.
    pub removed: BTreeMap<PartId, SystemTime>,
    /// The greatest number that is used by a part which is not in the table.
    pub last_used: Option<PartId>,
    /// Segments that were moved to quarantine now, with the reason.
    pub segments_quarantined: Vec<(SegmentId, String)>,
    /// All segments in quarantine.
    pub segments_in_quarantine: BTreeSet<SegmentId>,
    /// Parts of segments that also have a file of their own, a mark, or a copy in quarantine.
    pub packed: BTreeSet<PartId>,
    /// Removed parts of segments that can be restored, with the time of the removal.
    pub packed_removed: BTreeMap<PartId, SystemTime>,
    /// Purged parts of segments.
    pub packed_purged: BTreeSet<PartId>,
    /// Parts in segments whose own files are still to be deleted: they are not in `parts/` any more.
    pub replaced: BTreeSet<PartId>,
}

impl RecoveryReport {
    fn note_used(&mut self, used: impl Iterator<Item = PartId>) {
        self.last_used = used.max().max(self.last_used);
    }
}

/// What a start found undamaged.
#[derive(Debug)]
pub enum Found {
    /// A segment. All segments come before all parts.
    Segment(SegmentReceipt),
    /// A part that has its own files.
    Part(Receipt),
}

impl Store {
    /// Recovers the folder and calls `each` with the receipt of every undamaged segment, and then of every undamaged part, in
    /// the order of their ids.
    ///
    /// Errors: a receipt has a newer version, in which case nothing was changed; a file operation fails.
    pub fn recover(&self, mut each: impl FnMut(Found)) -> Result<RecoveryReport, Error> {
        let mut served = BTreeSet::new();
        let mut segments = BTreeSet::new();
        let mut found = self.clean_up(|found| {
            match &found {
                Found::Segment(receipt) => segments.insert(receipt.segment),
                Found::Part(receipt) => served.insert(receipt.part),
            };
            each(found);
        })?;
        found.quarantined.iter().try_for_each(|(id, _reason)| self.move_part_to_quarantine(*id))?;
        found.segments_quarantined.iter().try_for_each(|(id, _reason)| self.move_segment_to_quarantine(*id))?;
        let quarantine = self.quarantine()?;
        let is_served =
            |id: &PartId| served.contains(id) || found.packed.contains(id) || found.removed.contains_key(id);
        found.missing = quarantine.missing(is_served, |id| segments.contains(&id));
        found.note_used(quarantine.parts.iter().copied().chain(quarantine.segments.keys().map(|id| id.last)));
        found.segments_in_quarantine = quarantine.segments.into_keys().collect();
        Ok(found)
    }

    /// As [`Self::recover`], but damaged parts and segments stay where they are: the caller moves those in
    /// [`RecoveryReport::quarantined`] and [`RecoveryReport::segments_quarantined`]. What comes from `quarantine/` is left empty.
    pub(crate) fn clean_up(&self, mut each: impl FnMut(Found)) -> Result<RecoveryReport, Error> {
        assert_unlocked();
        let mut found = RecoveryReport::default();
        let mut files = self.list_parts()?;
        let was_in_quarantine = self.quarantine()?;
        let mut segments = self.find_segments()?;
        let removed = self.removed_files(|id| files.get(&id).is_some_and(|present| present.receipt))?;
        let asked = files.keys().chain(removed.all_parts()).chain(&was_in_quarantine.parts).copied().collect();
        found.packed = segments.packed(self, &asked)?;
        // A part that is in a segment has no files of its own.
        let mut beside_segments = files.clone();
        beside_segments.retain(|id, _| found.packed.contains(id));
        files.retain(|id, _| !found.packed.contains(id));
        let beside_segments = self.compare_with_segments(&segments, &removed, beside_segments)?;
        for segment in segments.kept.values() {
            each(Found::Segment(self.receipt_of_segment(segment)?));
        }
        for (&id, &present) in &files {
            if !present.receipt {
                continue;
            }
            match self.check_part(id) {
                Ok(receipt) => each(Found::Part(receipt)),
                Err(Unusable::Damaged(reason)) => found.quarantined.push((id, reason)),
                Err(Unusable::Unreadable(error)) => return Err(error),
            }
        }
        // Nothing has been changed up to here.
        found.replaced = self.clean_up_replaced(&removed, &found.packed, beside_segments)?;
        found.leftovers +=
            self.clean_up_segments(&mut segments, (&files, &found.packed), &removed, &was_in_quarantine)?;
        self.clean_up_parts(&files, &removed, &was_in_quarantine, &mut found)?;
        found.segments_quarantined = segments.damaged;
        // A mark without a part is deleted if its segment was written without the part, but not if the segment may come back.
        let is_without =
            |id: PartId| segments.kept.keys().any(|segment| segment.covers(id)) && !was_in_quarantine.covers(id);
        let is_lost = |id: PartId| found.segments_quarantined.iter().any(|(segment, _)| segment.covers(id));
        for id in removed.packed_purged.difference(&found.packed).filter(|id| is_without(**id) && !is_lost(**id)) {
            self.delete_mark(*id);
        }
        found.note_used(removed.all_parts().copied().chain(removed.segments.keys().map(|id| id.last)));
        found.note_used(found.segments_quarantined.iter().map(|(id, _)| id.last).collect::<Vec<_>>().into_iter());
        found.packed_purged = removed.packed_purged.intersection(&found.packed).copied().collect();
        found.packed_removed = removed.packed;
        found.packed_removed.retain(|id, _| found.packed.contains(id));
        found.removed = removed.parts;
        for entry in self.entries("tmp")? {
            self.remove(&entry)?;
            found.leftovers += 1;
        }
        Ok(found)
    }

    /// Removes leftovers of uploads, completes removals, and deletes what is left of purged parts.
    fn clean_up_parts(
        &self,
        files: &BTreeMap<PartId, FilesPresent>,
        removed: &RemovedFiles,
        was_in_quarantine: &Quarantine,
        found: &mut RecoveryReport,
    ) -> Result<(), Error> {
        for (&id, present) in files {
            if present.receipt {
                // The part is back, so its loss is no longer accepted. If it is damaged again, that is a new loss.
                if was_in_quarantine.accepted.contains(&id) {
                    self.remove(&self.quarantine_path(id, "forgotten"))?;
                }
                continue;
            }
            if removed.parts.contains_key(&id) {
                self.move_removed_files(id); // its removal or its restore was interrupted
                continue;
            }
            if removed.purged.contains(&id) {
                continue;
            }
            if was_in_quarantine.parts.contains(&id) {
                // Somebody moved these files back without their receipt. They must not be removed as leftovers.
                self.move_part_to_quarantine(id)?;
                continue;
            }
            for extension in present.extensions() {
                let path = self.part_path(id, extension);
                if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                    let what = format!("data folder: {} is a folder: move it elsewhere", path.display());
                    return Err(Error::DataFolder(what)); // it may contain a user's files
                }
                self.remove(&path)?;
                found.leftovers += 1;
            }
            found.removed_parts.push(id);
        }
        for id in &removed.purged {
            if let Err(error) = self.delete_purged(*id) {
                tracing::error!(part = %id, %error, "the next start tries to delete this purged part again");
            }
        }
        Ok(())
    }

    fn list_parts(&self) -> Result<BTreeMap<PartId, FilesPresent>, Error> {
        let mut files = BTreeMap::<PartId, FilesPresent>::new();
        for path in self.entries("parts")? {
            match parse_part_file_name(&path) {
                Some((id, "csv")) => files.entry(id).or_default().csv = true,
                Some((id, "parquet")) => files.entry(id).or_default().parquet = true,
                Some((id, "sums")) => files.entry(id).or_default().sums = true,
                Some((id, "json")) => files.entry(id).or_default().receipt = true,
                _ if parse_segment_file_name(&path).is_some() => {}
                _ => tracing::warn!(path = %path.display(), "unknown file, ignored"),
            }
        }
        Ok(files)
    }

    /// The receipt of a part whose files have the sizes that it gives, or what is wrong with the part.
    pub(super) fn check_part(&self, id: PartId) -> Result<Receipt, Unusable> {
        assert_unlocked();
        // A file that cannot be read now is not necessarily damaged: the start fails, and nothing has been changed.
        let text = self.read_receipt(id).map_err(Error::io(format!("receipt of part {id}")))?;
        let receipt = match parse_receipt(id, &text) {
            Err(ReceiptFault::Newer(format)) => {
                let root = self.root.display();
                let what = format!(
                    "data folder {root}: part {id} has format version {format}, this program knows {FORMAT_VERSION}: use a newer one"
                );
                return Err(Error::DataFolder(what).into());
            }
            Ok(receipt) => receipt,
            Err(ReceiptFault::Damaged(what)) => return Err(Unusable::Damaged(format!("receipt: {what}"))),
        };
        if id == PartId::END {
            let what = "receipt: its number is the last that there is, so none could follow it";
            return Err(Unusable::Damaged(what.to_owned()));
        }
        let has_block_checksums =
            receipt.checks.as_ref().is_some_and(|checks| checks.sums_seed.is_some() || checks.chunks_in_sums);
        // The size of the block list is not in the receipt. The list is verified page by page as it is read.
        let files = [("csv", Some(receipt.csv.bytes)), ("parquet", Some(receipt.parquet.bytes)), ("sums", None)];
        for (extension, bytes) in files.into_iter().filter(|(_, bytes)| bytes.is_some() || has_block_checksums) {
            match fs::symlink_metadata(self.part_path(id, extension)).map(|metadata| metadata.len()) {
                Ok(found) if found == bytes.unwrap_or(found) => {}
                Ok(found) => {
                    let expected = bytes.unwrap_or(found);
                    let what = format!("{extension}: {found} bytes, the receipt says {expected}");
                    return Err(Unusable::Damaged(what));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Unusable::Damaged(format!("{extension}: {error}")));
                }
                Err(error) => return Err(Error::io(format!("part {id}, {extension}"))(error).into()),
            }
        }
        Ok(receipt)
    }
}

/// Which files of a part exist.
#[derive(Clone, Copy, Default)]
pub(super) struct FilesPresent {
    csv: bool,
    parquet: bool,
    sums: bool,
    pub(super) receipt: bool,
}

impl FilesPresent {
    fn extensions(self) -> impl Iterator<Item = &'static str> {
        let files = [("csv", self.csv), ("parquet", self.parquet), ("sums", self.sums)];
        files.into_iter().filter(|(_, exists)| *exists).map(|(name, _)| name)
    }
}
