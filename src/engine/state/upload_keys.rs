//! The idempotency keys of uploads: which parts have, by their hashes, and those that uploads have claimed.

use std::{collections::HashMap, num::NonZeroU64};

use tokio_util::sync::CancellationToken;

use crate::{
    limits::{PARTS_MAX, UPLOADS_MAX},
    model::idempotency_key::IdempotencyKey,
};

/// Half of the hash of each part's key, and how many parts have it. So a new key is nearly always recognized as new without
/// a search. The parts have the whole hashes, and the receipts the keys.
pub struct PartKeys(HashMap<u32, u32>);

impl PartKeys {
    /// Room for a key of every part, so that it never grows under the lock.
    pub(super) fn new() -> Self {
        Self(HashMap::with_capacity(PARTS_MAX))
    }

    pub(super) fn insert(&mut self, hash: Option<NonZeroU64>) {
        if let Some(hash) = hash {
            *self.0.entry(half(hash)).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, hash: Option<NonZeroU64>) {
        let Some(hash) = hash.map(half) else { return };
        if let Some(count) = self.0.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&hash);
            }
        }
    }

    /// Whether a part may have a key with this hash. If not, none has.
    pub fn may_contain(&self, hash: NonZeroU64) -> bool {
        self.0.contains_key(&half(hash))
    }
}

#[allow(clippy::cast_possible_truncation, reason = "half of the hash is wanted")]
fn half(hash: NonZeroU64) -> u32 {
    hash.get() as u32
}

/// The keys that uploads have claimed.
pub struct ClaimedKeys(HashMap<IdempotencyKey, CancellationToken>);

/// The answer to an upload that claims its key.
pub enum KeyClaim {
    /// The key is the upload's, until it is released.
    Claimed,
    /// Another upload has it. The token is cancelled when it is released.
    InUse(CancellationToken),
    /// Too many keys are claimed.
    TooMany,
}

impl ClaimedKeys {
    /// Room for the keys of all uploads, twice, so that it never grows under the lock.
    pub(super) fn new() -> Self {
        Self(HashMap::with_capacity(2 * UPLOADS_MAX))
    }

    /// Claims a key.
    pub fn claim(&mut self, key: &IdempotencyKey) -> KeyClaim {
        if let Some(ended) = self.0.get(key) {
            return KeyClaim::InUse(ended.clone());
        }
        if self.0.len() >= UPLOADS_MAX {
            return KeyClaim::TooMany;
        }
        self.0.insert(key.clone(), CancellationToken::new());
        KeyClaim::Claimed
    }

    /// Releases a key. The token is to be cancelled outside of the lock, because that wakes tasks.
    pub fn release(&mut self, key: &IdempotencyKey) -> Option<CancellationToken> {
        self.0.remove(key)
    }
}
