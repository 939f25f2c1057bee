//! What a start deletes and moves because of segments: what they have replaced, and what is left of segments that were never
//! committed. Nothing is deleted unless a segment has it, verified.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{quarantine::Quarantine, recover::FilesPresent, removed_parts::RemovedFiles, store::Store},
    cursor::find_in,
    reading::OpenSegment,
    recovery::FoundSegments,
    replaced::DROPPED,
};
use crate::{
    error::Error,
    model::{format::Format, part::PartId, part::Receipt},
};

/// Files of parts that are also in a segment.
#[derive(Default)]
pub(in crate::engine::storage) struct BesideSegments {
    /// Left from before the parts were packed.
    replaced: Vec<PartId>,
    /// Not what the segment has, with the reason.
    foreign: Vec<(PartId, String)>,
}

impl Store {
    /// Compares parts that have their own files with those of the same numbers in segments. Nothing is changed.
    ///
    /// Errors: a file cannot be read now.
    pub(in crate::engine::storage) fn compare_with_segments(
        &self,
        segments: &FoundSegments,
        removed: &RemovedFiles,
        files: BTreeMap<PartId, FilesPresent>,
    ) -> Result<BesideSegments, Error> {
        let (mut found, mut open) = (BesideSegments::default(), OpenSegment::default());
        for (id, present) in files {
            if !present.receipt && removed.replaced.contains(&id) {
                found.replaced.push(id); // it was being moved out of parts/
                continue;
            }
            let own = if present.receipt { self.receipt(id) } else { Err(Error::NoSuchPart { part: id.get() }) };
            match own.and_then(|own| self.is_packed_as(segments, &own, &mut open)) {
                Ok(true) => found.replaced.push(id),
                Ok(false) => found.foreign.push((id, "the segment has other bytes".to_owned())),
                Err(error @ Error::Io { .. }) => return Err(error),
                Err(error) => found.foreign.push((id, error.to_string())),
            }
        }
        Ok(found)
    }

    /// Whether a segment has this part undamaged.
    fn is_packed_as(&self, segments: &FoundSegments, own: &Receipt, open: &mut OpenSegment) -> Result<bool, Error> {
        let segment = segments.kept.iter().find(|(id, _)| id.covers(own.part)).map(|(_, segment)| segment);
        let Some(segment) = segment else { return Ok(false) };
        let Some(part) = find_in(self, segment, own.part)? else { return Ok(false) };
        let packed = self.receipt_with(&part, open)?;
        if (Receipt { segment: None, ..packed }) != *own {
            return Ok(false);
        }
        let csv = self.open_part_with(&part, Format::Csv, open)?;
        csv.block(0, usize::try_from(part.csv_bytes).unwrap_or(usize::MAX))?;
        Ok(true)
    }

    /// Moves the files of parts that a segment has out of `parts/`, and those to quarantine that are not what it has. Returns the
    /// parts whose files outside `parts/` can be deleted, which may take long.
    pub(in crate::engine::storage) fn clean_up_replaced(
        &self,
        removed: &RemovedFiles,
        packed: &BTreeSet<PartId>,
        beside: BesideSegments,
    ) -> Result<BTreeSet<PartId>, Error> {
        for (id, reason) in beside.foreign {
            tracing::warn!(part = %id, reason, "this part is in a segment: its own files in parts/ are moved to quarantine");
            self.move_part_to_quarantine(id)?;
        }
        // Those that cannot be moved stay until the next start.
        let (mut replaced, left): (BTreeSet<_>, BTreeSet<_>) =
            beside.replaced.into_iter().partition(|id| self.set_aside_part(*id, true));
        // Those of which nothing else is left are deleted with the marks that they are purged; those that no segment has stay, for
        // somebody who looks for what was lost.
        let purged = removed.packed_purged.difference(packed).filter(|id| removed.replaced.contains(id));
        purged.for_each(|id| self.delete_replaced_part(*id, true));
        replaced.extend(removed.replaced.intersection(packed).filter(|id| !left.contains(id)));
        Ok(replaced)
    }

    /// Deletes segments that others have replaced, and those that were never committed. Returns how many files of the latter there
    /// were. A segment that has lost its receipt is damaged.
    pub(in crate::engine::storage) fn clean_up_segments(
        &self,
        found: &mut FoundSegments,
        (files, packed): (&BTreeMap<PartId, FilesPresent>, &BTreeSet<PartId>),
        removed: &RemovedFiles,
        quarantine: &Quarantine,
    ) -> Result<usize, Error> {
        let mut leftovers = 0;
        let removed_parts = removed.all_parts().filter(|id| !removed.replaced.contains(id));
        let known: BTreeSet<_> = removed_parts.chain(&quarantine.parts).copied().collect();
        for id in std::mem::take(&mut found.without_receipt) {
            // What it was made of is still there if it was never committed.
            let is_known = |part: PartId| {
                known.contains(&part)
                    || files.get(&part).is_some_and(|present| present.receipt)
                    || found.kept.keys().any(|segment| segment.covers(part))
                    || found.damaged.iter().any(|(segment, _)| *segment != id && segment.covers(part))
            };
            if !quarantine.segments.contains_key(&id) && is_known(id.first) && is_known(id.last) {
                leftovers += self.delete_segment_files(id, "parts", found.files_of(id))?;
            } else {
                found.damaged.push((id, "receipt: it is not there".to_owned()));
            }
        }
        for id in &found.replaced {
            self.delete_segment_files(*id, "parts", found.files_of(*id))?;
        }
        // As with parts, those that replace nothing undamaged stay.
        for (id, extensions) in &removed.segments {
            let is_dropped = found.dropped.contains(id);
            if !is_dropped && !found.kept.keys().chain(&found.dropped).any(|later| later.replaces(*id)) {
                continue;
            }
            let files = extensions.iter().map(String::as_str).filter(|extension| *extension != DROPPED);
            self.delete_segment_files(*id, "removed", files)?;
            if is_dropped {
                let marks = removed.packed_purged.range(id.first..=id.last).filter(|part| !packed.contains(part));
                marks.for_each(|part| self.delete_mark(*part));
                self.delete_drop_mark(*id);
            }
        }
        for id in quarantine.accepted_segments.iter().filter(|id| found.kept.contains_key(id)) {
            self.remove_record_of_loss(*id)?; // it is back
        }
        Ok(leftovers)
    }
}
