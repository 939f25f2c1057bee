//! The engine: the one door to the table. Every surface converts its request, makes one call here and converts the
//! answer. No protocol is known below this line.
//!
//! Read in this order: [`part`], [`checksums`], [`cell`], [`csv`], [`fold`], [`convert`], [`parquet`], [`deltas`], [`integers`], [`store`],
//! [`state`], [`transfers`], [`workers`], [`claims`], [`staging`], [`small`], [`spool`], [`upload`], `verify`, [`query`]; beside the table [`numbers`]; for
//! statistics [`mean`], [`columns`], [`python`], [`survey`]; for group sums [`totals`], [`runs`], [`sources`], [`strand`],
//! [`group`]; above both [`jobs`] and its records; [`vitals`] and `readiness`.

pub mod csv;
pub mod group_by;
pub mod ingest;
pub mod jobs;
pub mod kernels;
pub mod numstore;
pub mod parquet;
pub mod parts;
pub mod query;
mod readiness;
pub mod runtime;
pub mod scrub;
pub mod state;
pub mod stats;
pub mod storage;
pub mod survey;
pub mod values;

#[cfg(test)]
mod engine_tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{
        group_by::{
            group_sum::GroupSum,
            output::{Groups, StoredGroups},
            sources::Sources,
            spec::{GroupBy, Plan},
        },
        ingest::{
            commit,
            commit_queue::{self, Waiting},
            small_files::{SmallFile, Stage},
            upload,
        },
        jobs::{
            record,
            recover::{self, Recovered},
            result_file, run,
        },
        parts::{receipts, selection},
        query::column_sum,
        runtime::{
            memory_pool::Pool,
            secret_file,
            transfers::{Admission, Paced, Permit},
            workers::{Workers, panic_text},
        },
        state::{
            Lane, Shared,
            transfers::{Origin, TransferKind, Transfers},
        },
        storage::reader::Reader,
        survey::{answer::Answer, question::SurveyQuestion},
    },
    error::Error,
    limits::{
        GROUP_BYTES_MAX, GROUP_CALLS_MAX, GROUP_WAITS_MAX, HTTP_LONG_CALL_WAITS_MAX, LARGE_CONVERSION_BYTES,
        LARGE_JSON_BODIES_MAX, LARGE_JSON_BODY_S, LARGE_JSON_BODY_WAITS_MAX, Limits, NUMSTORE_CALLS_MAX,
        RECEIPTS_PAGE_BYTES, SMALL_CONVERSION_BYTES, SURVEY_MEMORY_BYTES, SURVEYS_AT_ONCE, SYNCS_MAX, UPLOAD_WAITS_MAX,
        UPLOADS_MAX, VERIFY_CALLS_MAX, WIDE_READS_MAX,
    },
    model::{
        format::Format,
        part::{Part, PartId, Receipt},
        schema::Schema,
    },
};

pub use crate::engine::jobs::result_file::ResultFile;
pub use crate::engine::parts::receipts::Page;
pub use crate::engine::query::column_sum::ColumnSum;
pub use crate::engine::query::column_sum::Read;
pub use crate::engine::state::jobs::Job;
pub use crate::engine::state::jobs::JobCounts;
pub use crate::engine::state::jobs::JobId;
pub use crate::engine::state::jobs::JobState;
pub use crate::engine::state::missing_parts::MissingParts;
pub use crate::engine::state::numbers::Factorial;
pub use crate::engine::state::numbers::Key;
pub use crate::engine::stats::Vitals;
pub use crate::engine::storage::Store;
pub use crate::engine::storage::recover::Found;
pub use crate::model::durability::Durability;
pub use crate::model::file_mode::FileMode;

/// A handle on the table; clones are handles on the same.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pub(crate) struct Inner {
    state: Shared,
    workers: Workers,
    store: Arc<Store>,
    limits: Limits,
    /// Gives permits for uploads.
    uploads: Admission,
    /// Syncs of files of large uploads that may run at once.
    syncs: Arc<Semaphore>,
    /// Small uploads on their way to a worker.
    small_files: mpsc::Sender<SmallFile>,
    /// Uploads on their way to the next commit.
    commits: mpsc::Sender<Waiting>,
    /// Memory for conversions of large and of small uploads, apart, so that small ones never wait for large ones.
    large: Pool,
    small: Pool,
    /// Memory for statistics, apart, so that they never wait behind conversions.
    surveys: Pool,
    /// Wide Parquet footers that may be in memory at once.
    wide_reads: Arc<Semaphore>,
    /// Parts of format version 1 that may be verified whole at once.
    upgrades: Semaphore,
    /// Calls of NumStore that may compute at once.
    number_calls: Semaphore,
    /// Group sums that may be in memory at once: one.
    group_room: Arc<Semaphore>,
    /// Calls that may wait for it, and those that there may be at once. A job is none of them.
    group_waits: Semaphore,
    group_calls: Arc<Semaphore>,
    /// Whose turn it is to check that work gets done.
    check_turn: Arc<Semaphore>,
    /// Whose turn it is to accept the loss of a part.
    forget_turn: Arc<Semaphore>,
    /// Calls for a verification of all that is stored.
    verify_calls: Arc<Semaphore>,
    /// Files that the last verification found damaged, for `vitals`.
    damaged_files: AtomicU64,
    /// Bytes of CSV that came in, for `vitals`.
    received_bytes: AtomicU64,
}

impl Engine {
    /// Starts the workers, opens the data folder and puts it in order.
    ///
    /// Errors: the folder is in use, cannot be written, or holds parts of a newer version.
    pub async fn open(root: &Path, durability: Durability, limits: Limits) -> Result<(Self, Found), Error> {
        let state = Shared::new();
        state.with(|state| state.parts.set_parts_max(limits.parts_max));
        let workers = Workers::start(state.clone()).map_err(Error::io("worker threads"))?;
        let (root, shared) = (root.to_owned(), state.clone());
        let recover = move || {
            let store = Store::open(&root, durability)?;
            let found_jobs = record::find(&store)?; // a newer version is refused before anything is changed
            let mut found = store.recover(|receipt| {
                let schema = upload::share_schema(&shared, Schema::of(&receipt.columns));
                let part = Arc::new(Part::of(&receipt, schema));
                shared.with(|state| state.parts.restore(part));
            })?;
            let Recovered { jobs, leftovers, set_aside } = recover::recover(&store, found_jobs)?;
            found.leftovers += leftovers;
            found.jobs_set_aside = set_aside;
            shared.with(|state| {
                found.in_quarantine.iter().for_each(|id| state.parts.skip_to(*id));
                state.parts.set_missing(found.missing.clone());
                state.jobs = jobs;
            });
            Ok((store, found))
        };
        let (store, found) = workers.run(Lane::Upload, recover).await.flatten().inspect_err(|_| workers.close())?;
        if state.with(|state| state.parts.len() >= state.parts.warning_len()) {
            commit::warn_nearly_full(&state);
        }
        let store = Arc::new(store);
        let (commits, queue) = mpsc::channel(UPLOADS_MAX);
        tokio::spawn(commit_queue::keep_committing(workers.clone(), Arc::clone(&store), queue));
        let (small_files, queue) = mpsc::channel(UPLOADS_MAX);
        let stage =
            Stage { workers: workers.clone(), store: Arc::clone(&store), state: state.clone(), limits: limits.csv };
        tokio::spawn(stage.keep_staging(queue));
        let inner = Inner {
            uploads: Admission::new(&state, TransferKind::Upload, Transfers::new(limits.uploads_max, UPLOAD_WAITS_MAX)),
            state,
            workers,
            store,
            small_files,
            commits,
            limits,
            syncs: Arc::new(Semaphore::new(SYNCS_MAX)),
            large: Pool::new(LARGE_CONVERSION_BYTES),
            small: Pool::new(SMALL_CONVERSION_BYTES),
            surveys: Pool::new(SURVEYS_AT_ONCE * SURVEY_MEMORY_BYTES),
            wide_reads: Arc::new(Semaphore::new(WIDE_READS_MAX)),
            upgrades: Semaphore::new(1),
            number_calls: Semaphore::new(NUMSTORE_CALLS_MAX),
            group_room: Arc::new(Semaphore::new(1)),
            received_bytes: AtomicU64::new(0),
            group_waits: Semaphore::new(GROUP_WAITS_MAX),
            group_calls: Arc::new(Semaphore::new(GROUP_CALLS_MAX)),
            check_turn: Arc::new(Semaphore::new(1)),
            forget_turn: Arc::new(Semaphore::new(1)),
            verify_calls: Arc::new(Semaphore::new(VERIFY_CALLS_MAX)),
            damaged_files: AtomicU64::new(0),
        };
        let engine = Self(Arc::new(inner));
        run::dispatch(&engine);
        tokio::spawn(recover::keep_sweeping(Arc::downgrade(&engine.0), limits.jobs.sweep_interval));
        if let Some(interval) = limits.scrub_interval {
            tokio::spawn(scrub::keep_scrubbing(Arc::downgrade(&engine.0), interval));
        }
        Ok((engine, found))
    }

    /// Appends one CSV file of the server's own.
    pub async fn upload<S>(&self, body: S) -> Result<Receipt, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        self.upload_from(Origin::SERVER, body).await
    }

    /// Appends one CSV file, as it comes, to the table. If the returned future is dropped, the upload stops at its
    /// next slice and leaves nothing.
    ///
    /// Errors: what is wrong with the file; as many uploads as there may be; one that is too slow; a full disk; an error
    /// of `body`.
    pub async fn upload_from<S>(&self, origin: Origin, body: S) -> Result<Receipt, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        commit::check_room(&self.0.state)?;
        let permit = self.upload_permit(origin).await?;
        let body = Paced::new(body, permit.pace(), self.0.limits.upload_idle_max);
        self.apart(|engine, cancel| async move {
            let _permit = permit; // it is free again when the work has ended, not when the caller has gone
            upload::run(engine, body, cancel).await
        })
        .await
    }

    /// Appends a file of this machine to the table, unless a part of it has the same bytes: then it was loaded by an
    /// earlier start. Says which part holds it, and whether it is new.
    pub async fn load(&self, path: &Path) -> Result<(PartId, bool), Error> {
        let path = path.to_owned();
        let file = self.0.workers.run(Lane::Upload, move || Reader::open(&path)).await.flatten()?;
        let parts = self.0.state.with(|state| state.parts.snapshot());
        let mut of_this_size = parts.values().filter(|part| part.csv_bytes == file.bytes()).peekable();
        if of_this_size.peek().is_some() {
            let checksum = upload::checksum(self, &file).await?;
            for part in of_this_size {
                let (store, id) = (Arc::clone(&self.0.store), part.id);
                let receipt = self.0.workers.run(Lane::Upload, move || store.receipt(id)).await.flatten()?;
                if receipt.csv.xxh3 == checksum {
                    return Ok((id, false));
                }
            }
        }
        let receipt = self.upload(upload::blocks_of(self, file)).await?;
        Ok((receipt.part, true))
    }

    async fn upload_permit(&self, origin: Origin) -> Result<Permit, Error> {
        let uploads_max = self.0.limits.uploads_max;
        self.0.uploads.enter(origin, CancellationToken::new()).await.ok_or(Error::TooManyUploads { uploads_max })
    }

    /// Gives permits for calls that hold a connection for as long as their client sends or reads.
    pub fn long_calls(&self, calls_max: usize) -> Admission {
        let calls = Transfers::new(calls_max, HTTP_LONG_CALL_WAITS_MAX);
        Admission::new(&self.0.state, TransferKind::LongCall, calls)
    }

    /// Gives permits for bodies of which few are held in memory at once.
    pub fn large_bodies(&self) -> Admission {
        let bodies = Transfers::new(LARGE_JSON_BODIES_MAX, LARGE_JSON_BODY_WAITS_MAX);
        let bodies = bodies.held_at_most(Duration::from_secs(LARGE_JSON_BODY_S));
        Admission::new(&self.0.state, TransferKind::LargeBody, bodies)
    }

    /// Runs `work` as a task of its own. If the caller goes away, `work` is told, and sees to the clean-up itself.
    async fn apart<T, F>(&self, work: impl FnOnce(Self, CancellationToken) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let cancel = CancellationToken::new();
        let _cancel_on_drop = cancel.clone().drop_guard();
        let task = tokio::spawn(work(self.clone(), cancel));
        task.await.unwrap_or_else(|stopped| {
            Err(match stopped.try_into_panic() {
                Ok(panic) => Error::Internal(format!("a call panicked: {}", panic_text(&*panic))),
                Err(_cancelled) => Error::Draining,
            })
        })
    }

    /// The exact sum of a column over all parts; 0 if none has it.
    ///
    /// Errors: the first cell, in part and row order, that is no integer; a column whose type is none; a total that
    /// does not fit in 64 bits; a damaged file; a part that is missing from the table.
    pub async fn column_sum(&self, column: &str, format: Format) -> Result<ColumnSum, Error> {
        column_sum::column_sum(self, column, format).await
    }

    /// A statistic of the survey: of all parts that have its columns.
    ///
    /// Errors: a question or state that no row with a value has; the first cell, in part and row order, that is no number
    /// where a value is wanted; more groups than there is memory for; a damaged file; a part that is missing from the table.
    pub async fn survey(&self, question: &SurveyQuestion) -> Result<Answer, Error> {
        survey::answer(self, question, Lane::Question, |_parts_done, _parts_count| ()).await
    }

    /// The exact sums of columns over all parts that have all the columns, for each group of rows; of the parts that
    /// there are when its turn has come, as such sums wait for one another. Its groups may be read at any pace.
    ///
    /// Errors: as for [`Engine::column_sum`]; a group that is too long for an answer; as many group sums as there may be;
    /// a full disk.
    pub async fn group_sum(&self, spec: GroupBy) -> Result<StoredGroups, Error> {
        let place = Arc::clone(&self.0.group_calls).try_acquire_owned();
        let place = place.ok().ok_or(Error::TooManyGroupCalls { calls_max: GROUP_CALLS_MAX })?;
        let room = if let Ok(room) = Arc::clone(&self.0.group_room).try_acquire_owned() {
            room
        } else {
            let waits = self.0.group_waits.try_acquire();
            let _waits = waits.ok().ok_or(Error::TooManyGroupWaits { waits_max: GROUP_WAITS_MAX })?;
            self.group_room().await?
        };
        let parts = selection::parts_to_read(self, Lane::Question).await?;
        let sources = Sources::Parts { store: Arc::clone(&self.0.store), parts };
        let groups = self.group(Lane::Question, sources, spec, room, |_bytes_read| ()).await?;
        Ok(groups.store().await?.with_place(place))
    }

    /// The same of a file that is no part, for a job: it waits for its turn however many wait. A total that does not
    /// fit is told by the [`Groups`], which hold the turn.
    pub async fn group_sum_file(
        &self,
        lane: Lane,
        file: Reader,
        spec: GroupBy,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Groups, Error> {
        let room = self.group_room().await?;
        self.group(lane, Sources::File { file, limits: self.0.limits.csv }, spec, room, progress).await
    }

    async fn group_room(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.0.group_room).acquire_owned().await.ok().ok_or(Error::Draining)
    }

    async fn group(
        &self,
        lane: Lane,
        sources: Sources,
        spec: GroupBy,
        room: OwnedSemaphorePermit,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Groups, Error> {
        let (workers, folder) = (self.0.workers.clone(), self.0.store.temp_folder());
        let group_sum = GroupSum { workers, lane, folder, plan: Plan::with_bytes(GROUP_BYTES_MAX) };
        group_sum.run(sources, spec, Some(room), progress).await
    }

    /// How long a call may make no progress.
    pub fn call_idle_max(&self) -> Duration {
        self.0.limits.call_idle_max
    }

    /// Some receipts in the order of their ids, at most `count_max`, at least one if any is left.
    pub async fn receipts(&self, after: Option<PartId>, count_max: usize) -> Result<Vec<Receipt>, Error> {
        self.read_page(self.receipts_page(after, count_max, RECEIPTS_PAGE_BYTES)).await
    }

    /// Which receipts these would be if they are to take no more than `bytes_max`; a single one may. For a caller that
    /// has to find the memory before they are read.
    pub fn receipts_page(&self, after: Option<PartId>, count_max: usize, bytes_max: usize) -> Page {
        receipts::receipts_page(self, after, count_max, bytes_max)
    }

    /// Reads such a page.
    pub async fn read_page(&self, page: Page) -> Result<Vec<Receipt>, Error> {
        receipts::read_page(self, page).await
    }

    /// Gives a key of NumStore a value. Returns the total of all values.
    ///
    /// Errors, which change nothing: the total would not fit in 64 bits; a key more than there may be.
    pub async fn set_number(&self, key: Key, value: i64) -> Result<i64, Error> {
        numstore::set(self, key, value).await
    }

    /// The factorial of the value of a key of NumStore.
    ///
    /// Errors: the key was never set; its value is below 0 or above 20.
    pub async fn factorial(&self, key: Key) -> Result<Factorial, Error> {
        numstore::factorial(self, key).await
    }

    /// Accepts a statistic over the survey's parts.
    ///
    /// Errors: as many jobs as there may be; no more jobs are accepted; the disk is full.
    pub async fn submit_survey(&self, question: SurveyQuestion) -> Result<JobId, Error> {
        self.apart(|engine, _| jobs::submit_survey(engine, question)).await
    }

    /// Accepts a CSV file of the server's own to be grouped and summed.
    pub async fn submit_task<S>(&self, body: S, group: GroupBy, header: Vec<String>) -> Result<JobId, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        self.submit_task_from(Origin::SERVER, body, group, header).await
    }

    /// Accepts a CSV file, as it comes, to be grouped and summed. The columns of the result are named by `header`. If
    /// the returned future is dropped before all of it has come, nothing is kept.
    ///
    /// Errors: those of `submit_survey`; as many uploads as there may be; an error of `body`. What is wrong with the
    /// file is the job's error.
    pub async fn submit_task_from<S>(
        &self,
        origin: Origin,
        body: S,
        group: GroupBy,
        header: Vec<String>,
    ) -> Result<JobId, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        commit::check_room(&self.0.state)?;
        let permit = self.upload_permit(origin).await?;
        let body = Paced::new(body, permit.pace(), self.0.limits.upload_idle_max);
        self.apart(|engine, cancel| async move {
            let _permit = permit;
            jobs::submit_task(engine, cancel, body, group, header).await
        })
        .await
    }

    /// How far a job is; none if there is no such job.
    pub fn job(&self, id: JobId) -> Option<Job> {
        self.0.state.with(|state| state.jobs.get(id))
    }

    /// All statistics that are known, in the order in which they were asked.
    pub fn survey_jobs(&self) -> Vec<Job> {
        self.0.state.with(|state| state.jobs.surveys())
    }

    /// How many jobs have not ended.
    pub fn jobs_undone(&self) -> usize {
        self.0.state.with(|state| state.jobs.undone())
    }

    /// From here on no job is accepted; those that were are finished.
    pub fn refuse_jobs(&self) {
        self.0.state.with(|state| state.jobs.refuse());
    }

    /// Stops a job, which then fails. Says whether there was something to stop.
    pub async fn cancel_job(&self, id: JobId) -> Result<bool, Error> {
        self.apart(|engine, _| jobs::cancel(engine, id)).await
    }

    /// The result of a job that is done.
    ///
    /// Errors: there is none, or none any more.
    pub async fn open_result(&self, id: JobId) -> Result<ResultFile, Error> {
        result_file::open_result(self, id).await
    }

    /// Notes that a result was fetched whole: it is removed at the next look.
    pub async fn mark_downloaded(&self, id: JobId) -> Result<(), Error> {
        self.apart(|engine, _| result_file::mark_downloaded(engine, id)).await
    }

    /// How many jobs are in which state.
    pub fn job_counts(&self) -> JobCounts {
        self.0.state.with(|state| state.jobs.counts())
    }

    /// The one line of a file that holds a secret. Errors: it has none.
    pub async fn read_secret(&self, path: PathBuf) -> Result<String, Error> {
        self.0.workers.run(Lane::Question, move || secret_file::read_secret(&path)).await.flatten()
    }

    /// Gives what an earlier start made in the data folder the mode that new files have.
    pub async fn apply_file_mode(&self, mode: FileMode) -> Result<(), Error> {
        let store = Arc::clone(&self.0.store);
        self.0.workers.run(Lane::Upload, move || store.apply_file_mode(mode)).await.flatten()
    }

    /// How many parts the table has.
    pub fn parts_count(&self) -> usize {
        self.0.state.with(|state| state.parts.len())
    }

    /// Lets the workers end when their queue is empty. What is called after it fails with [`Error::Draining`].
    pub fn close(&self) {
        self.0.number_calls.close();
        self.0.workers.close();
    }
}
