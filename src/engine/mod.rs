//! The engine: the one entry to the table. Every surface converts its request, makes one call of [`Engine`] and converts
//! the answer. Nothing here or below knows a protocol.
//!
//! [`Engine`] is a facade: each of its methods calls a feature, and features work with a [`Context`].

mod browse;
pub mod csv;
pub mod group_by;
pub mod ingest;
pub mod jobs;
pub mod kernels;
pub mod numstore;
pub mod pack;
pub mod parquet;
pub mod part_reader;
pub mod parts;
pub mod query;
mod questions;
mod readiness;
pub mod runtime;
pub mod scrub;
mod start;
pub mod state;
pub mod stats;
pub mod storage;
pub mod survey;
pub mod values;

#[cfg(test)]
mod engine_tests;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;

use self::{
    group_by::{calls, output::Groups, spec::GroupBy},
    ingest::{commit, load, queues::Queues, upload},
    jobs::{cancel, record_changes, result_file, submit},
    parts::{quarantine, receipts, removal},
    runtime::{
        context::Context,
        detached::detached,
        part_engine::Cluster,
        secret_file,
        transfers::{Admission, Paced, Permit},
    },
    scrub::Verification,
    state::{Lane, transfers::Origin},
    storage::reader::Reader,
    survey::question::SurveyQuestion,
};
use zeroize::Zeroizing;

use crate::{
    error::Error,
    limits::Limits,
    model::{
        dialect::Dialect,
        part::{PartId, Receipt},
    },
};

pub use self::{
    ingest::{
        keyed::Uploaded,
        load::Loaded,
        rewrite::{DialectFrom, StreamOptions, UploadFrom},
    },
    jobs::result_file::ResultFile,
    parts::{
        column_figures::{ColumnSummary, ColumnsPage},
        columns::{TableColumn, TableColumns, TypeInParts},
        receipts::{Page, UnreadablePart},
        removal::{RemovedPart, RestorablePart},
    },
    state::{
        jobs::{Job, JobCounts, JobId, JobState},
        missing_parts::MissingParts,
        numbers::{Factorial, Key},
    },
    stats::{Activity, Overview, Stats},
    storage::{Store, recover::RecoveryReport},
};
pub use crate::model::{
    column_sum::{ColumnSum, Read},
    durability::Durability,
    file_mode::FileMode,
};

/// A handle on the table; clones are handles on the same.
#[derive(Clone)]
pub struct Engine {
    context: Arc<Context>,
    queues: Queues,
}

impl Engine {
    /// Starts the workers, opens the data folder and puts it in order.
    ///
    /// Errors: the folder is in use, cannot be written, or holds parts of a newer version.
    pub async fn open(root: &Path, durability: Durability, limits: Limits) -> Result<(Self, RecoveryReport), Error> {
        Self::open_with(root, durability, limits, None).await
    }

    /// As [`Self::open`]. If there is a cluster, its machines read the parts for column sums.
    pub async fn open_with(
        root: &Path,
        durability: Durability,
        limits: Limits,
        cluster: Option<Arc<dyn Cluster>>,
    ) -> Result<(Self, RecoveryReport), Error> {
        let (context, queues, found) = start::start(root, durability, limits, cluster).await?;
        Ok((Self { context, queues }, found))
    }

    /// Appends one CSV file of the server's own.
    pub async fn upload<S>(&self, body: S) -> Result<Receipt, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        self.upload_from(UploadFrom::server(None), body).await.map(|uploaded| uploaded.receipt)
    }

    /// Appends one file to the table while it arrives, as the CSV that it means. If the returned future is dropped, the upload
    /// stops after its current task and leaves nothing. If an upload with the same key was added, this one adds nothing.
    ///
    /// Errors: the file's or the stream's; too many uploads; a slow one; a full disk; a key that was used for other bytes.
    pub async fn upload_from<S>(&self, from: UploadFrom, body: S) -> Result<Uploaded, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        if from.has_no_key() {
            commit::check_room(&self.context.state)?;
        }
        pack::slow_down(&self.context).await;
        let permit = self.upload_permit(from.origin).await?;
        let body = Paced::new(body, permit.pace(), self.context.limits.upload_idle_max);
        let (context, queues) = (Arc::clone(&self.context), self.queues.clone());
        detached(|cancel| async move {
            let _permit = permit; // it is free again when the work has ended, not when the caller has gone
            upload::run(context, queues, from.key, body, from.dialect, cancel).await
        })
        .await
    }

    /// Appends a file of this machine to the table, unless a part has the same CSV: then an earlier start loaded it.
    pub async fn load(&self, path: &Path, dialect: &Dialect) -> Result<Loaded, Error> {
        let file = load::open(&self.context, path).await?;
        if let Some(found) = load::find(&self.context, &file, dialect).await? {
            return Ok(found);
        }
        let body = load::blocks_of(&self.context, file);
        Ok(Loaded::Now(self.upload_from(UploadFrom::server(Some(dialect.clone())), body).await?.receipt.part))
    }

    async fn upload_permit(&self, origin: Origin) -> Result<Permit, Error> {
        let uploads_max = self.context.limits.uploads_max;
        self.context.uploads.enter(origin, CancellationToken::new()).await.ok_or(Error::TooManyUploads { uploads_max })
    }

    /// Gives permits for calls that hold a connection for as long as their client sends or reads.
    pub fn long_calls(&self, calls_max: usize) -> Admission {
        Admission::for_long_calls(&self.context.state, calls_max)
    }

    /// The same for a file that is not a part, for a job: it waits for its turn however many wait. A total that does not
    /// fit in 64 bits is an error of the [`Groups`], which hold the turn.
    pub async fn group_sum_file(
        &self,
        lane: Lane,
        file: Reader,
        spec: GroupBy,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Groups, Error> {
        calls::group_sum_file(&self.context, lane, file, spec, progress).await
    }

    /// How long a call may make no progress.
    pub fn call_idle_max(&self) -> Duration {
        self.context.limits.call_idle_max
    }

    /// Which receipts after a part fit in `bytes_max`, in order: at least one, if any is left.
    pub async fn receipts_page(
        &self,
        after: Option<PartId>,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Page, Error> {
        receipts::receipts_page(&self.context, after, count_max, bytes_max).await
    }

    /// Reads such a page.
    pub async fn read_page(&self, page: Page) -> Result<Vec<Result<Receipt, UnreadablePart>>, Error> {
        receipts::read_page(&self.context, page).await
    }

    /// Gives a key of NumStore a value. Returns the total of all values. Errors: it does not fit in 64 bits; too many keys.
    pub async fn set_number(&self, key: Key, value: i64) -> Result<i64, Error> {
        numstore::set(&self.context, key, value).await
    }

    /// The factorial of the value of a key of NumStore. Errors: it was never set; its value is below 0 or above 20.
    pub async fn factorial(&self, key: Key) -> Result<Factorial, Error> {
        numstore::factorial(&self.context, key).await
    }

    /// Accepts a statistic over the survey's parts. Errors: as many jobs as there may be; no more are accepted; a full disk.
    pub async fn submit_survey(&self, question: SurveyQuestion) -> Result<JobId, Error> {
        let context = Arc::clone(&self.context);
        detached(|_cancel| submit::submit_survey(context, question)).await
    }

    /// Accepts a CSV file, as it comes, to be grouped and summed. The columns of the result are named by `header`. If
    /// the returned future is dropped before all of it has come, nothing is kept.
    ///
    /// Errors: those of `submit_survey` and of an upload. What is wrong with the file is the job's error.
    pub async fn submit_task<S>(
        &self,
        origin: Origin,
        body: S,
        group: GroupBy,
        header: Vec<String>,
    ) -> Result<JobId, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        let permit = self.upload_permit(origin).await?;
        let body = Paced::new(body, permit.pace(), self.context.limits.upload_idle_max);
        let context = Arc::clone(&self.context);
        detached(|cancel| async move {
            let _permit = permit;
            submit::submit_task(context, cancel, body, group, header).await
        })
        .await
    }

    /// The state of a job; `None` if there is no such job.
    pub fn job(&self, id: JobId) -> Option<Job> {
        self.context.state.with(|state| state.jobs.get(id))
    }

    /// All statistics that are known, in the order in which they were asked.
    pub fn survey_jobs(&self) -> Vec<Job> {
        self.context.state.with(|state| state.jobs.surveys())
    }

    /// How many jobs have not ended.
    pub fn jobs_undone(&self) -> usize {
        self.context.state.with(|state| state.jobs.undone())
    }

    /// Accepts no more jobs. Those that were accepted are finished.
    pub fn refuse_jobs(&self) {
        record_changes::refuse_jobs(&self.context);
    }

    /// Stops a job, which then fails. Says whether there was something to stop.
    pub async fn cancel_job(&self, id: JobId) -> Result<bool, Error> {
        let context = Arc::clone(&self.context);
        detached(|_cancel| cancel::cancel(context, id)).await
    }

    /// The result of a job that is done. Errors: there is none, or none any more.
    pub async fn open_result(&self, id: JobId) -> Result<ResultFile, Error> {
        result_file::open_result(&self.context, id).await
    }

    /// Notes that a result was fetched whole: it is removed at the next look.
    pub async fn mark_downloaded(&self, id: JobId) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        detached(|_cancel| result_file::mark_downloaded(context, id)).await
    }

    /// The one line of a file that holds a secret. Errors: it has none.
    pub async fn read_secret(&self, path: &Path) -> Result<Zeroizing<String>, Error> {
        let path = path.to_owned();
        self.context.on_worker(Lane::Question, move |_store| secret_file::read_secret(&path)).await
    }

    /// The text of a file of an operator, which has at most `bytes_max` bytes. Errors: it has more; it cannot be read.
    pub async fn read_text(&self, path: &Path, bytes_max: usize, is_secret: bool) -> Result<Zeroizing<String>, Error> {
        let path = path.to_owned();
        self.context.on_worker(Lane::Question, move |_store| secret_file::read_text(&path, bytes_max, is_secret)).await
    }

    /// Gives what an earlier start made in the data folder the mode that new files have.
    pub async fn apply_file_mode(&self, mode: FileMode) -> Result<(), Error> {
        self.context.on_worker(Lane::Upload, move |store| store.apply_file_mode(mode)).await
    }

    /// The parts that are missing from the table.
    pub fn missing_parts(&self) -> MissingParts {
        self.context.state.with(|state| state.parts.missing().clone())
    }

    /// Accepts the loss of a part in quarantine, and says how many are missing still. Accepting it again changes nothing.
    /// Errors: the part is not in quarantine; the record cannot be written.
    pub async fn forget_part(&self, id: PartId) -> Result<usize, Error> {
        quarantine::forget_part(&self.context, id).await
    }

    /// Removes a part from the table. Errors: there is no such part; it cannot be recorded.
    pub async fn remove_part(&self, id: PartId, purge: bool) -> Result<RemovedPart, Error> {
        removal::remove_part(&self.context, id, purge).await
    }

    /// Some of the removed parts that can be restored: at most `count_max`, after a part, in order.
    pub fn removed_parts(&self, after: Option<PartId>, count_max: usize) -> Vec<RestorablePart> {
        removal::removed_parts(&self.context, after, count_max)
    }

    /// Puts a removed part back, and returns how many parts there are. Errors: it was not removed; its files are damaged.
    pub async fn restore_part(&self, id: PartId) -> Result<usize, Error> {
        removal::restore_part(&self.context, id).await
    }

    /// Packs all small parts into segments now, and returns how many were written. Errors: a part is damaged; a full disk.
    pub async fn pack(&self) -> Result<usize, Error> {
        pack::pack_now(&self.context).await
    }

    /// Begins to verify all that is stored now. Errors: another call does that already.
    pub async fn verify(&self, origin: Origin) -> Result<Verification, Error> {
        scrub::verify(&self.context, origin).await
    }

    /// Has a worker write a file without a name in the data folder. Errors: it cannot, or not within `time_max`.
    pub async fn check_ready(&self, time_max: Duration) -> Result<(), Error> {
        readiness::check_ready(&self.context, time_max).await
    }

    /// Lets the workers end when their queue is empty. What is called after it fails with [`Error::Draining`].
    pub fn close(&self) {
        self.context.number_calls.close();
        self.context.workers.close();
    }

    /// Waits, after [`Self::close`], until the workers have ended, so that no file is being written.
    pub async fn closed(&self) {
        self.context.workers.ended().await;
    }
}
