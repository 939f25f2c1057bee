//! How much room the table has: what counts towards `--parts-max`, and when uploads have to wait for packing.

use super::registry::Registry;
use crate::{
    error::Error,
    limits::{PART_BYTES, PARTS_WARNING_PERCENT, URGENT_RUN_PARTS},
    model::part::PartId,
};

/// Purged parts of segments that take the memory of a part: the number of each is in two sets.
const PURGED_PER_PART: usize = 4;
const _: () = assert!(PURGED_PER_PART * 2 * 2 * size_of::<PartId>() <= PART_BYTES);

impl Registry {
    /// Sets how many parts there may be.
    pub fn set_parts_max(&mut self, parts_max: usize) {
        self.parts_max = parts_max;
    }

    /// How many parts there may be.
    pub fn parts_max(&self) -> usize {
        self.parts_max
    }

    /// What counts towards `parts_max`: parts that have their own files; those that were removed, so that there is always room
    /// to restore them; and segments and purged parts that they still have, as many of which as take the memory of a part.
    pub fn taken(&self) -> usize {
        let purged = self.packed_purged.len().div_ceil(PURGED_PER_PART);
        self.parts.len() + self.removed.len() + self.segments_weight + purged
    }

    /// Whether the table is full, counting the parts that are about to be published.
    pub fn is_full(&self) -> bool {
        self.taken() + self.reserved >= self.parts_max
    }

    /// Why the table is full.
    pub fn too_many_parts(&self) -> Error {
        Error::TooManyParts {
            parts_max: self.parts_max,
            removed: self.removed.len(),
            purged: self.packed_purged.len(),
            segments: self.segments.len(),
        }
    }

    /// The number of parts at which the table is nearly full.
    pub fn warning_len(&self) -> usize {
        (self.parts_max * PARTS_WARNING_PERCENT).div_ceil(100)
    }

    /// Whether the table is nearly full.
    pub fn is_nearly_full(&self) -> bool {
        self.taken() + self.reserved >= self.warning_len()
    }

    /// Whether uploads have to wait for packing: the table is nearly full, and more small parts have their own files than need to.
    pub fn is_crowded(&self) -> bool {
        let can_be_packed = self.packable >= self.pack_above.saturating_add(URGENT_RUN_PARTS);
        self.is_nearly_full() && can_be_packed && !self.is_packing_stuck
    }

    /// Notes whether a look for something to pack found nothing, or failed.
    pub fn set_packing_stuck(&mut self, is_stuck: bool) {
        self.is_packing_stuck = is_stuck;
    }

    /// Sets how many small parts keep their own files.
    pub fn set_pack_above(&mut self, pack_above: usize) {
        self.pack_above = pack_above;
    }

    /// Reserves an id for a part that is about to be published; `None` if the table is full. `insert` or `release` must
    /// follow.
    pub fn reserve(&mut self) -> Option<PartId> {
        if self.is_full() || self.next_id == PartId::END {
            return None;
        }
        self.reserved += 1;
        let id = self.next_id;
        self.next_id = id.next();
        Some(id)
    }

    /// Gives up a reserved id, which is not used again.
    pub fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }
}
