//! The registry: the parts of the table, in memory, under the lock.

use std::{collections::HashMap, sync::Arc};

use imbl::OrdMap;

use super::missing_parts::MissingParts;
use crate::{
    limits::{PARTS_WARNING_PERCENT, SCHEMA_BYTES_MAX},
    model::{
        part::{Part, PartId},
        schema::Schema,
    },
};

/// All parts of the table in the order of their ids, and their headers, shared.
pub struct Registry {
    pub(super) parts: OrdMap<PartId, Arc<Part>>,
    /// Headers by a hash of names and types. Two headers of one hash: the second is not shared, which is only larger.
    pub(super) schemas: HashMap<u128, Arc<Schema>>,
    pub(super) schema_bytes: usize,
    /// Given out for the next part to be published; never given out twice.
    pub(super) next_id: PartId,
    /// Ids given out whose part is not in `parts` yet.
    pub(super) reserved: usize,
    /// Parts that there may be.
    pub(super) parts_max: usize,
    /// Parts that should be in `parts` and are in quarantine.
    pub(super) missing: MissingParts,
    /// Parts of format version 1, which are verified whole at their first use.
    pub(super) unchecked: usize,
}

impl Registry {
    /// All parts as they are now. The copy is O(1) and does not change.
    pub fn snapshot(&self) -> OrdMap<PartId, Arc<Part>> {
        self.parts.clone()
    }

    /// How many parts.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many parts there may be from here on.
    pub fn set_parts_max(&mut self, parts_max: usize) {
        self.parts_max = parts_max;
    }

    /// How many parts there may be.
    pub fn parts_max(&self) -> usize {
        self.parts_max
    }

    /// Whether there may be no more parts than there are or are about to be.
    pub fn is_full(&self) -> bool {
        self.parts.len() + self.reserved >= self.parts_max
    }

    /// How many parts make the table nearly full.
    pub fn warning_len(&self) -> usize {
        (self.parts_max * PARTS_WARNING_PERCENT).div_ceil(100)
    }

    /// An id for a part that is about to be published; none if the table is full. It must come back by `insert` or
    /// `release`.
    pub fn reserve(&mut self) -> Option<PartId> {
        if self.is_full() || self.next_id == PartId::END {
            return None;
        }
        self.reserved += 1;
        let id = self.next_id;
        self.next_id = id.next();
        Some(id)
    }

    /// A reserved id was not used. Its number is not given out again.
    pub fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// A part under a reserved id: from here on it is in every sum. Says whether the table is nearly full with it, and
    /// was not before.
    pub fn insert(&mut self, part: Arc<Part>) -> bool {
        self.release();
        self.parts.insert(part.id, part);
        self.parts.len() == self.warning_len()
    }

    /// A part that was found at start, and the ids that must not be given out again.
    pub fn restore(&mut self, part: Arc<Part>) {
        self.skip_to(part.id);
        self.unchecked += usize::from(part.checks.is_none());
        self.parts.insert(part.id, part);
    }

    /// Whether a part is in the table.
    pub fn contains(&self, id: PartId) -> bool {
        self.parts.contains_key(&id)
    }

    /// The parts in quarantine whose loss no operator has accepted.
    pub fn missing(&self) -> &MissingParts {
        &self.missing
    }

    /// What a look at the quarantine found.
    pub fn set_missing(&mut self, missing: MissingParts) {
        self.missing = missing;
    }

    /// The loss of a missing part was accepted. Says whether the quarantine has to be looked at again.
    pub fn accept_loss(&mut self, id: PartId) -> bool {
        self.missing.remove(id)
    }

    /// How many parts are of format version 1.
    pub fn unchecked(&self) -> usize {
        self.unchecked
    }

    /// A part of format version 1 that has been verified whole, in its new version.
    pub fn replace(&mut self, part: Arc<Part>) {
        if let Some(old) = self.parts.get_mut(&part.id) {
            self.unchecked -= usize::from(old.checks.is_none() && part.checks.is_some());
            *old = part;
        }
    }

    /// Ids up to this one are not given out again. The end of the range, which is in quarantine if it is anywhere, counts
    /// for nothing.
    pub fn skip_to(&mut self, id: PartId) {
        if id != PartId::END {
            self.next_id = self.next_id.max(id.next());
        }
    }

    /// The header kept under a hash.
    pub fn schema(&self, hash: u128) -> Option<Arc<Schema>> {
        self.schemas.get(&hash).cloned()
    }

    /// Keeps a header if there is room for it, and says whether.
    pub fn keep_schema(&mut self, hash: u128, schema: &Arc<Schema>) -> bool {
        let bytes = self.schema_bytes + schema.bytes();
        let fits = bytes <= SCHEMA_BYTES_MAX && !self.schemas.contains_key(&hash);
        if fits {
            self.schema_bytes = bytes;
            self.schemas.insert(hash, Arc::clone(schema));
        }
        fits
    }
}
