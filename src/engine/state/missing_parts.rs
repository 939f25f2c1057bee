//! Which parts are missing from the table because they are in quarantine.

use crate::{error::Error, limits::MISSING_PARTS_LISTED_MAX, model::part::PartId};

/// Parts that are missing from the table: their number, and some of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingParts {
    /// The smallest ids, in order.
    listed: Vec<PartId>,
    count: usize,
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
        self.listed.first().map(|&first| Error::PartsMissing { first, count: self.count })
    }

    /// Notes that the loss of a missing part was accepted. Returns whether the ids that are not listed have to be looked up
    /// again.
    pub(crate) fn remove(&mut self, id: PartId) -> bool {
        if let Ok(index) = self.listed.binary_search(&id) {
            self.listed.remove(index);
        }
        self.count = self.count.saturating_sub(1);
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
