//! Parts that were removed from the table and still have files: those that can be restored, and those that are being purged.

use std::{collections::BTreeMap, sync::Arc};

use crate::model::{
    part::{Part, PartId},
    schema::Schema,
};

/// Parts that a search looks at while it holds the lock.
const SEARCH_STEP_PARTS: usize = 256;

/// What can be done with a removed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It can be restored.
    Kept {
        /// When it was removed, in seconds since 1970.
        since_s: u32,
    },
    /// Its files are being deleted.
    Purged,
}

impl Removal {
    /// Whether the part cannot be restored any more: it is purged, or was removed at least `undo_s` seconds ago.
    pub fn is_final(self, now_s: u32, undo_s: u32) -> bool {
        match self {
            Self::Purged => true,
            Self::Kept { since_s } => now_s >= since_s.saturating_add(undo_s),
        }
    }
}

/// What is listed of a part that can be restored.
#[derive(Clone, Copy, Debug)]
pub struct KeptPart {
    /// Its number.
    pub part: PartId,
    /// Data rows.
    pub rows: u64,
    /// Size of its CSV file.
    pub csv_bytes: u64,
    /// Size of its Parquet file.
    pub parquet_bytes: u64,
    /// When it was removed, in seconds since 1970.
    pub since_s: u32,
}

/// A part that was removed. Its entry lasts as long as its files.
pub(super) struct RemovedPart {
    pub(super) part: Arc<Part>,
    pub(super) removal: Removal,
    /// Whether it is in a segment, so that it has no files of its own.
    pub(super) is_packed: bool,
}

/// The removed parts in the order of their ids. Each counts as a part of the table, so that there is room to restore it.
#[derive(Default)]
pub struct RemovedParts(BTreeMap<PartId, RemovedPart>);

impl RemovedPart {
    pub(super) fn can_be_deleted(&self, now_s: u32, undo_s: u32) -> bool {
        // What is left of a purged part of a segment goes when the segment is written anew.
        let is_done = self.is_packed && self.removal == Removal::Purged;
        self.removal.is_final(now_s, undo_s) && Arc::strong_count(&self.part) == 1 && !is_done
    }
}

impl RemovedParts {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was done with a part; `None` if it was not removed, or is gone.
    pub fn get(&self, id: PartId) -> Option<Removal> {
        self.0.get(&id).map(|removed| removed.removal)
    }

    /// The schema of a removed part, if it is in memory.
    pub fn schema(&self, id: PartId) -> Option<Arc<Schema>> {
        self.0.get(&id)?.part.schema.clone()
    }

    /// Whether a removed part is in a segment.
    pub fn is_packed(&self, id: PartId) -> bool {
        self.0.get(&id).is_some_and(|removed| removed.is_packed)
    }

    pub(super) fn insert(&mut self, part: Arc<Part>, removal: Removal) {
        self.0.insert(part.id, RemovedPart { part, removal, is_packed: false });
    }

    pub(super) fn insert_packed(&mut self, part: Arc<Part>, removal: Removal) {
        self.0.insert(part.id, RemovedPart { part, removal, is_packed: true });
    }

    pub(super) fn remove(&mut self, id: PartId) -> Option<Arc<Part>> {
        self.0.remove(&id).map(|removed| removed.part)
    }

    /// Adds the parts after `after` that can be restored, in order, as long as `found` has room without growing.
    pub fn list(&self, after: Option<PartId>, found: &mut Vec<KeptPart>) {
        let first = after.map_or(PartId::FIRST, PartId::next);
        for (&part, RemovedPart { part: of, removal, .. }) in self.0.range(first..) {
            if found.len() == found.capacity() {
                return;
            }
            if let Removal::Kept { since_s } = *removal {
                let Part { rows, csv_bytes, parquet_bytes, .. } = **of;
                found.push(KeptPart { part, rows, csv_bytes, parquet_bytes, since_s });
            }
        }
    }

    /// Whether a question still has the part in its snapshot of the table, and so may read its files.
    pub fn is_read(&self, id: PartId) -> bool {
        self.0.get(&id).is_some_and(|removed| Arc::strong_count(&removed.part) > 1)
    }

    /// Whether a part's files can be deleted: no question reads them, and it is purged or its time is over.
    pub fn can_be_deleted(&self, id: PartId, now_s: u32, undo_s: u32) -> bool {
        self.0.get(&id).is_some_and(|removed| removed.can_be_deleted(now_s, undo_s))
    }

    /// The first of the next [`SEARCH_STEP_PARTS`] parts that is wanted.
    pub(super) fn search(&self, after: Option<PartId>, is_wanted: impl Fn(&RemovedPart) -> bool) -> Search {
        let first = after.map_or(PartId::FIRST, PartId::next);
        let mut looked_at = 0;
        for (&id, removed) in self.0.range(first..) {
            if is_wanted(removed) {
                return Search::Found(id);
            }
            looked_at += 1;
            if looked_at == SEARCH_STEP_PARTS {
                return Search::After(id);
            }
        }
        Search::End
    }
}

/// The result of a step of a search.
pub(super) enum Search {
    Found(PartId),
    /// It goes on after this part.
    After(PartId),
    End,
}
