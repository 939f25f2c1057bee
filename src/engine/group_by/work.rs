//! Running steps of a group sum on the workers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    sources::{Mark, Sources},
    spec::{GroupBy, Plan},
};
use crate::{engine::storage::temp_file::TempFolder, limits::READ_BLOCK_BYTES};

/// What all slices of one group sum share.
pub(super) struct Work {
    pub(super) sources: Sources,
    pub(super) spec: GroupBy,
    pub(super) folder: TempFolder,
    pub(super) plan: Plan,
    /// No row of the sources is longer.
    pub(super) row_bytes_max: usize,
    /// One strand at a time reads rows that are long.
    pub(super) long_row_turn: Arc<Semaphore>,
    /// Travels with the work: the memory is free again when the last of it is dropped.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

impl Work {
    /// Where the strands begin.
    pub(super) fn marks(&self) -> Vec<Mark> {
        let count = self.sources.bytes() / self.plan.strand_bytes_min.max(1);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.sources.cut(count.clamp(1, self.plan.strands_max.max(1)))
    }

    /// What there is for all tables.
    pub(super) fn tables_bytes(&self) -> usize {
        let Plan { bytes_max, .. } = self.plan;
        // Its bytes, and its cells without their quotes.
        let long_row_bytes = 2 * (self.row_bytes_max + READ_BLOCK_BYTES);
        bytes_max.saturating_sub(long_row_bytes).max(bytes_max / 4)
    }
}
