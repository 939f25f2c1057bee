//! The numbers of parts.

use std::{fmt, num::NonZeroU64};

use serde::{Deserialize, Serialize};

/// A part's number, from 1. Parts are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartId(NonZeroU64);

impl PartId {
    /// The first part of a table.
    pub const FIRST: Self = Self(NonZeroU64::MIN);
    /// The end of the range. No part has this id, because no id could follow it.
    pub const END: Self = Self(NonZeroU64::MAX);

    /// `None` for 0.
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    /// The number as it is written: without a sign or leading zeros.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self::new(text.parse().ok()?)?;
        (id.to_string() == text).then_some(id)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The id after this one, or [`Self::END`].
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
