//! The segments of the registry: what takes their place, and the parts that were purged from them.

use std::sync::Arc;

use imbl::OrdSet;

use super::{registry::Registry, removed_parts::Removal};
use crate::model::{
    packed::Segment,
    part::{Part, PartId},
};

impl Registry {
    /// The purged parts that segments still have.
    pub fn packed_purged(&self) -> &OrdSet<PartId> {
        &self.packed_purged
    }

    /// What was done with a part; `None` if it was not removed, or is gone.
    pub fn removal(&self, id: PartId) -> Option<Removal> {
        let is_purged = self.packed_purged.contains(&id);
        self.removed.get(id).or_else(|| is_purged.then_some(Removal::Purged))
    }

    /// Whether the table has all of these parts and segments, unchanged.
    pub fn has_all(&self, parts: &[Arc<Part>], segments: &[Arc<Segment>]) -> bool {
        let is_here = |part: &Arc<Part>| self.parts.get(&part.id).is_some_and(|found| Arc::ptr_eq(found, part));
        let is_segment =
            |old: &Arc<Segment>| self.segments.get(&old.id.first).is_some_and(|found| Arc::ptr_eq(found, old));
        parts.iter().all(is_here) && segments.iter().all(is_segment)
    }

    /// Puts a segment in the place of parts and segments, all of which are in the table. `dropped` are removed parts that it does
    /// not have any more.
    pub fn replace_by_segment(
        &mut self,
        segment: Arc<Segment>,
        parts: &[Arc<Part>],
        segments: &[Arc<Segment>],
        dropped: &[PartId],
    ) {
        for part in parts {
            self.take_own(part.id);
            self.keys.remove(part.key_hash);
        }
        self.packed += parts.len();
        segments.iter().for_each(|old| self.take_segment(old));
        self.forget_purged(dropped);
        self.add_segment(segment);
    }

    /// Removes a segment that has no parts but these, which are purged.
    pub fn drop_segment(&mut self, segment: &Segment, purged: &[PartId]) {
        self.take_segment(segment);
        self.forget_purged(purged);
    }

    fn forget_purged(&mut self, purged: &[PartId]) {
        for id in purged {
            self.packed_removed.remove(id);
            self.packed_purged.remove(id);
        }
    }

    pub(super) fn add_segment(&mut self, segment: Arc<Segment>) {
        self.segments_weight += segment.weight();
        self.segments.insert(segment.id.first, segment);
    }

    fn take_segment(&mut self, segment: &Segment) {
        if let Some(segment) = self.segments.remove(&segment.id.first) {
            self.segments_weight -= segment.weight();
        }
    }
}
