//! Which parts are missing from the table because they, or the segments that have them, are in quarantine.

use crate::{
    error::Error,
    limits::MISSING_PARTS_LISTED_MAX,
    model::{packed::SegmentId, part::PartId},
};

/// Parts that are missing from the table: their number, and some of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingParts {
    /// The smallest ids, in order. Of a segment, the first that it may have.
    listed: Vec<PartId>,
    count: usize,
    /// Missing segments, with the number of their parts, which are counted.
    segments: Vec<(SegmentId, usize)>,
}

impl MissingParts {
    /// The number of missing parts.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The smallest ids, in order: at most [`MISSING_PARTS_LISTED_MAX`].
    pub fn listed(&self) -> &[PartId] {
        &self.listed
    }

    /// The error for a question that needs all parts; `None` if no part is missing.
    pub fn error(&self) -> Option<Error> {
        let first = *self.listed.first()?;
        Some(Error::PartsMissing { first, count: self.count, segment: self.segment_of(first) })
    }

    /// Whether this part is one of those that are listed, or may be in a missing segment.
    pub(crate) fn may_have(&self, id: PartId) -> bool {
        self.listed.binary_search(&id).is_ok() || self.segment_of(id).is_some()
    }

    /// The missing segment that may have the part.
    pub(crate) fn segment_of(&self, id: PartId) -> Option<SegmentId> {
        self.segments.iter().map(|(segment, _)| *segment).find(|segment| segment.covers(id))
    }

    /// Adds missing segments, with the number of parts of each.
    pub(crate) fn add_segments(&mut self, segments: impl Iterator<Item = (SegmentId, usize)>) {
        for (id, parts) in segments {
            self.segments.push((id, parts));
            self.count = self.count.saturating_add(parts);
            if let Err(index) = self.listed.binary_search(&id.first) {
                self.listed.insert(index, id.first);
                self.listed.truncate(MISSING_PARTS_LISTED_MAX);
            } else {
                self.count -= 1; // a part that is also missing by itself
            }
        }
    }

    /// Notes that the loss of a missing part was accepted. Returns whether the ids that are not listed have to be looked up
    /// again.
    pub(crate) fn remove(&mut self, id: PartId) -> bool {
        let segment = self.segments.iter().position(|(segment, _)| segment.first == id);
        let parts = segment.map_or(1, |index| self.segments.swap_remove(index).1);
        if let Ok(index) = self.listed.binary_search(&id) {
            self.listed.remove(index);
        }
        self.count = self.count.saturating_sub(parts);
        self.listed.is_empty() && self.count > 0
    }
}

/// From ids in ascending order.
impl FromIterator<PartId> for MissingParts {
    fn from_iter<I: IntoIterator<Item = PartId>>(ids: I) -> Self {
        let mut missing = Self::default();
        for id in ids {
            if missing.count < MISSING_PARTS_LISTED_MAX {
                missing.listed.push(id);
            }
            missing.count += 1;
        }
        missing
    }
}
