//! What every feature of the engine works with: the lock, the workers, the store, and the permits and memory pools that
//! limit what runs at the same time. It knows no feature.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::SystemTime,
};

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use super::{memory_pool::Pool, part_engine::Cluster, transfers::Admission, workers::Workers};
use crate::{
    engine::{
        state::{
            Lane, Shared,
            transfers::{TransferKind, Transfers},
        },
        storage::Store,
    },
    error::Error,
    limits::{
        DECODERS_MAX, GROUP_CALL_WAITS_MAX, GROUP_CALLS_MAX, LARGE_CONVERSION_BYTES, Limits, NUMSTORE_CALLS_MAX,
        PACKED_QUESTIONS_MAX, SMALL_CONVERSION_BYTES, SURVEYS_BYTES, SYNCS_MAX, UPLOAD_WAITS_MAX,
        VERIFY_CALL_WAITS_MAX, VERIFY_CALLS_MAX, WIDE_READS_MAX,
    },
};

/// The context that all calls of one engine share.
pub struct Context {
    /// The lock and the tables that it guards.
    pub state: Shared,
    /// The threads that touch files and compute.
    pub workers: Workers,
    /// The data folder.
    pub store: Arc<Store>,
    /// Other machines that read the parts of a question. `None` if the workers do.
    pub cluster: Option<Arc<dyn Cluster>>,
    /// The limits that the operator may set.
    pub limits: Limits,
    /// Permits for uploads.
    pub uploads: Admission,
    /// Permits for syncs of large files; few run in parallel.
    pub syncs: Arc<Semaphore>,
    /// Memory for conversions of large files. Small files have a separate pool, so they never wait for large ones.
    pub large_conversions: Pool,
    /// Memory for conversions of small files.
    pub small_conversions: Pool,
    /// Permits for files that are decompressed. A decoder also needs memory for large conversions.
    pub decoders: Arc<Semaphore>,
    /// Memory for statistics. It is separate, so they never wait for conversions.
    pub statistics: Pool,
    /// Permits for having the Parquet footer of a wide part in memory.
    pub wide_reads: Arc<Semaphore>,
    /// The permit to change the files of a part: to remove or restore it, or to write what its upgrade from format version 1
    /// has found.
    pub part_changes: Semaphore,
    /// The permit to upgrade a part from format version 1, which reads all of its files first.
    pub upgrades: Semaphore,
    /// Permits for calls of NumStore that compute.
    pub number_calls: Semaphore,
    /// The permit for the memory of a group sum: there is one.
    pub group_memory: Arc<Semaphore>,
    /// Permits for open calls of GroupSum, whether they wait for `group_memory`, run or are being read. Jobs have none.
    pub group_calls: Admission,
    /// The permit for a readiness check.
    pub readiness_checks: Arc<Semaphore>,
    /// The permit for accepting the loss of a part.
    pub losses: Arc<Semaphore>,
    /// Permits for calls that verify all that is stored.
    pub verify_calls: Admission,
    /// How many damaged files the last verification found.
    pub damaged_files: AtomicU64,
    /// Bytes of CSV received since the start.
    pub received_bytes: AtomicU64,
    /// Permits for questions that read parts in segments.
    pub packed_questions: Arc<Semaphore>,
    /// Requests to pack all small parts now. The answer is how many segments were written.
    pub pack_requests: mpsc::Sender<oneshot::Sender<Result<usize, Error>>>,
    /// Notified when a segment was committed.
    pub packed: Notify,
}

impl Context {
    /// The context of an engine whose data folder is open.
    pub fn new(
        state: Shared,
        workers: Workers,
        store: Arc<Store>,
        limits: Limits,
        cluster: Option<Arc<dyn Cluster>>,
        pack_requests: mpsc::Sender<oneshot::Sender<Result<usize, Error>>>,
    ) -> Self {
        let admission = |kind, max, waits_max| Admission::new(&state, kind, Transfers::new(max, waits_max));
        Self {
            uploads: admission(TransferKind::Upload, limits.uploads_max, UPLOAD_WAITS_MAX),
            group_calls: admission(TransferKind::GroupSum, GROUP_CALLS_MAX, GROUP_CALL_WAITS_MAX),
            verify_calls: admission(TransferKind::Verify, VERIFY_CALLS_MAX, VERIFY_CALL_WAITS_MAX),
            state,
            workers,
            store,
            cluster,
            limits,
            syncs: Arc::new(Semaphore::new(SYNCS_MAX)),
            large_conversions: Pool::new(LARGE_CONVERSION_BYTES),
            small_conversions: Pool::new(SMALL_CONVERSION_BYTES),
            decoders: Arc::new(Semaphore::new(DECODERS_MAX)),
            statistics: Pool::new(SURVEYS_BYTES),
            wide_reads: Arc::new(Semaphore::new(WIDE_READS_MAX)),
            part_changes: Semaphore::new(1),
            upgrades: Semaphore::new(1),
            number_calls: Semaphore::new(NUMSTORE_CALLS_MAX),
            group_memory: Arc::new(Semaphore::new(1)),
            readiness_checks: Arc::new(Semaphore::new(1)),
            losses: Arc::new(Semaphore::new(1)),
            damaged_files: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            packed_questions: Arc::new(Semaphore::new(PACKED_QUESTIONS_MAX)),
            pack_requests,
            packed: Notify::new(),
        }
    }

    /// A time, and for how long a removed part can be restored, as [`Removal::is_final`] takes them.
    ///
    /// [`Removal::is_final`]: crate::engine::state::removed_parts::Removal::is_final
    pub fn undo_time(&self, now: SystemTime) -> (u32, u32) {
        (unix_seconds(now), u32::try_from(self.limits.undo.as_secs()).unwrap_or(u32::MAX))
    }

    /// Runs `work` on a worker, with the store.
    ///
    /// Errors: those of `work`; the server is shutting down.
    pub async fn on_worker<T, F>(&self, lane: Lane, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Store>) -> Result<T, Error> + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        self.workers.run(lane, move || work(&store)).await.flatten()
    }
}

/// Seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> u32 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
