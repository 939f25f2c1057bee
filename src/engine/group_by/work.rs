//! What all tasks of one group sum share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    sources::{Position, Sources},
    spec::{GroupBy, Plan},
};
use crate::{engine::storage::temp_file::TempFolder, error::Error, limits::READ_BLOCK_BYTES};

/// Shared by all tasks of one group sum.
pub(super) struct Work {
    pub(super) sources: Sources,
    pub(super) spec: GroupBy,
    pub(super) folder: TempFolder,
    pub(super) plan: Plan,
    /// An upper bound of the length of a row.
    pub(super) row_bytes_max: usize,
    /// Has one permit, so that one partition at a time reads a long row.
    pub(super) long_rows: Arc<Semaphore>,
    /// It is dropped after the last task has ended or was dropped.
    pub(super) _memory: Reservation,
}

/// The reservation of the memory of a group sum. When it is dropped, it is passed on to the receiver, or released if there is none.
pub(super) struct Reservation {
    permit: Option<OwnedSemaphorePermit>,
    next: Option<oneshot::Sender<Option<OwnedSemaphorePermit>>>,
}

impl Reservation {
    /// A reservation, and the receiver of its permit.
    pub(super) fn new(permit: Option<OwnedSemaphorePermit>) -> (Self, oneshot::Receiver<Option<OwnedSemaphorePermit>>) {
        let (tx, rx) = oneshot::channel();
        (Self { permit, next: Some(tx) }, rx)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(next) = self.next.take() {
            let _released_if_nobody_waits = next.send(self.permit.take());
        }
    }
}

impl Work {
    pub(super) fn new(sources: Sources, spec: GroupBy, folder: TempFolder, plan: Plan, memory: Reservation) -> Self {
        let (row_bytes_max, long_rows) = (sources.row_bytes_max(), Arc::new(Semaphore::new(1)));
        Self { sources, spec, folder, plan, row_bytes_max, long_rows, _memory: memory }
    }

    /// Where each partition begins.
    ///
    /// Errors: the index of a segment is damaged or cannot be read.
    pub(super) fn starts(&self) -> Result<Vec<Position>, Error> {
        let count = self.sources.bytes() / self.plan.partition_bytes_min.max(1);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.sources.split(count.clamp(1, self.plan.partitions_max.max(1)))
    }

    /// Bytes for all tables together.
    pub(super) fn tables_bytes(&self) -> usize {
        let Plan { bytes_max, .. } = self.plan;
        // A long row is in memory twice: as it is in the file, and as cells without quotes.
        let long_row_bytes = 2 * (self.row_bytes_max + READ_BLOCK_BYTES);
        let cursors_bytes = self.plan.partitions_max * self.sources.cursor_bytes();
        bytes_max.saturating_sub(long_row_bytes + cursors_bytes).max(bytes_max / 4)
    }
}
