//! One job of the scheduler: it is submitted, asked for until it has ended, and its rows are fetched. At the end it is cancelled, or
//! its data is removed, also if the question is dropped while the job is being submitted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ballista_core::{
    client::BallistaClient,
    extension::BallistaConfigGrpcEndpoint,
    serde::{
        protobuf::{
            CancelJobParams, CleanJobDataParams, ExecuteQueryParams, GetJobStatusParams, PartitionLocation,
            execute_query_params::Query, execute_query_result, job_status::Status,
            scheduler_grpc_client::SchedulerGrpcClient,
        },
        scheduler::PartitionId,
    },
    version::insert_version_header,
};
use datafusion::{arrow::array::RecordBatch, physical_plan::SendableRecordBatchStream};
use futures_util::StreamExt;
use tally::error::Error;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::transport::Channel;

use crate::{
    engine::{MESSAGE_BYTES_MAX, Scheduler},
    faults,
};

/// How long a call of the scheduler may take. It decodes a plan of some megabytes.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Between two questions for the state of a job: at first, and later.
const POLL_FIRST: Duration = Duration::from_millis(4);
const POLL_LAST: Duration = Duration::from_millis(100);
/// How often to look whether there still are executors.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a server that stops waits for the end of its jobs.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How often and how long Ballista's client tries to fetch rows.
const FETCH_TRIES: u8 = 3;
const FETCH_WAIT_MS: u64 = 250;

type Client = SchedulerGrpcClient<Channel>;

/// How a job has ended.
pub(crate) enum Ended {
    /// Its rows are there. An executor that has them may be lost.
    Done(Vec<PartitionLocation>),
    /// The scheduler has given it up.
    Failed,
}

/// Some of a job's rows.
pub(crate) enum Rows {
    Batch(RecordBatch),
    /// Others are lost.
    Lost,
}

/// The jobs of a server, from their submission until they have ended at the scheduler, which may be after their question was
/// dropped.
pub(crate) struct Jobs {
    /// One for each job that exists at once. Each job may have a list of its parts in memory, as a message.
    permits: Arc<Semaphore>,
    /// Has a token for each job.
    tasks: TaskTracker,
    runtime: Handle,
    closing: CancellationToken,
}

impl Jobs {
    /// No jobs. Those that come run in the runtime that calls this.
    pub(crate) fn new(jobs_max: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(jobs_max)),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            closing: CancellationToken::new(),
        }
    }

    /// A permit for a job. It waits while as many jobs exist as are allowed.
    ///
    /// Errors: the process ends.
    pub(crate) async fn permit(&self) -> Result<JobPermit, Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok().ok_or(Error::Draining)?;
        Ok(JobPermit { _permit: permit, tracked: self.tasks.token(), runtime: self.runtime.clone() })
    }

    /// The result of `question`, which is dropped if the server stops.
    pub(crate) async fn until_closed<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            result = question => result,
            () = self.closing.cancelled() => Err(Error::Draining),
        }
    }

    /// Drops all questions, and waits a few seconds until their jobs have ended.
    pub(crate) async fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        if timeout(CLOSE_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!(jobs = self.tasks.len(), "jobs of the cluster were not ended in time");
        }
    }
}

/// The permit of one job. The server waits for it before it stops.
pub(crate) struct JobPermit {
    _permit: OwnedSemaphorePermit,
    tracked: TaskTrackerToken,
    runtime: Handle,
}

impl JobPermit {
    /// Runs a task that is waited for when the server stops.
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracked.task_tracker().spawn_on(task, &self.runtime)
    }
}

/// A job that runs.
pub(crate) struct Job {
    /// Until it has ended.
    permit: Option<Arc<JobPermit>>,
    client: Client,
    id: String,
    /// Whether it has ended by itself.
    has_ended: bool,
    poll_after: Duration,
    looked: Instant,
}

impl Job {
    /// Submits a plan. If the returned future is dropped, the job is cancelled as soon as the scheduler has taken it.
    ///
    /// Errors: the scheduler cannot be reached, or refuses the plan.
    pub(crate) async fn submit(
        permit: JobPermit,
        client: Client,
        session_id: String,
        plan: Vec<u8>,
    ) -> Result<Self, Error> {
        let permit = Arc::new(permit);
        let submission = Self::submit_to_its_end(Arc::clone(&permit), client, session_id, plan);
        let submitted = permit.spawn(submission).await;
        submitted.map_err(|error| Error::Internal(format!("the submission of a job: {error}")))?
    }

    async fn submit_to_its_end(
        permit: Arc<JobPermit>,
        mut client: Client,
        session_id: String,
        plan: Vec<u8>,
    ) -> Result<Self, Error> {
        let operation_id = uuid::Uuid::new_v4().to_string();
        let query = Some(Query::PhysicalPlan(plan));
        let mut request =
            tonic::Request::new(ExecuteQueryParams { session_id, settings: Vec::new(), operation_id, query });
        insert_version_header(request.metadata_mut());
        let answer = in_time(client.execute_query(request)).await?;
        faults::pause_submission().await;
        match answer.into_inner().result {
            Some(execute_query_result::Result::Success(job)) => {
                let (permit, looked) = (Some(permit), Instant::now());
                Ok(Self { permit, client, id: job.job_id, has_ended: false, poll_after: POLL_FIRST, looked })
            }
            other => Err(Error::Internal(format!("the scheduler refuses a plan: {other:?}"))),
        }
    }

    /// Waits a little, and returns where the job's rows are if it has ended.
    ///
    /// Errors: the scheduler cannot be reached, or does not know the job any more.
    pub(crate) async fn poll(&mut self) -> Result<Option<Ended>, Error> {
        sleep(self.poll_after).await;
        self.poll_after = (self.poll_after * 2).min(POLL_LAST);
        let status = in_time(self.client.get_job_status(GetJobStatusParams { job_id: self.id.clone() })).await?;
        let status = status.into_inner().status.ok_or_else(|| Error::Cluster("the job is unknown".to_owned()))?;
        match status.status {
            None | Some(Status::Queued(_) | Status::Running(_)) => Ok(None),
            Some(Status::Failed(failed)) => {
                tracing::warn!(job = self.id, error = failed.error, "a job of the cluster has failed");
                self.has_ended = true;
                Ok(Some(Ended::Failed))
            }
            Some(Status::Successful(done)) => {
                self.has_ended = true;
                Ok(Some(Ended::Done(done.partition_location)))
            }
        }
    }

    /// Sends the rows of a partition, and returns whether these are all.
    pub(crate) async fn fetch(
        &self,
        scheduler: &Scheduler,
        location: PartitionLocation,
        tx: &mpsc::Sender<Rows>,
    ) -> Result<bool, Error> {
        let lost = |error: &str| {
            tracing::warn!(job = self.id, error, "rows of a job could not be fetched");
            Ok(false)
        };
        let mut rows = match timeout(CALL_MAX, fetch(scheduler, location)).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => return lost(&error),
            Err(elapsed) => return lost(&elapsed.to_string()),
        };
        loop {
            match timeout(CALL_MAX, rows.next()).await {
                Ok(Some(Ok(batch))) => tx.send(Rows::Batch(batch)).await.ok().ok_or(Error::Cancelled)?,
                Ok(Some(Err(error))) => return lost(&error.to_string()),
                Ok(None) => return Ok(true),
                Err(elapsed) => return lost(&elapsed.to_string()),
            }
        }
    }

    /// Whether it is time to look for executors again.
    pub(crate) fn is_time_to_look(&mut self) -> bool {
        let is_time = self.looked.elapsed() >= LOOK_EVERY;
        if is_time {
            self.looked = Instant::now();
        }
        is_time
    }
}

impl Drop for Job {
    /// Cancels the job unless it has ended, and removes its data.
    fn drop(&mut self) {
        let (mut client, job_id, has_ended) = (self.client.clone(), std::mem::take(&mut self.id), self.has_ended);
        // A failure is only logged: the scheduler removes old jobs after a while.
        let end = async move {
            if !has_ended {
                in_time(client.cancel_job(CancelJobParams { job_id: job_id.clone() })).await?;
            }
            in_time(client.clean_job_data(CleanJobDataParams { job_id, remove_stage_ids: Vec::new() })).await?;
            Ok::<_, Error>(())
        };
        let Some(permit) = self.permit.take() else { return };
        let until_ended = Arc::clone(&permit);
        let _it_is_waited_for_in_close = permit.spawn(async move {
            let _permit = until_ended;
            if let Err(error) = end.await {
                tracing::warn!(%error, "a job of the cluster could not be ended");
            }
        });
    }
}

/// The rows of a partition, through the scheduler.
async fn fetch(scheduler: &Scheduler, location: PartitionLocation) -> Result<SendableRecordBatchStream, String> {
    let layout = location.layout();
    let executor = location.executor_meta.ok_or("it has no executor")?;
    let partition = location.partition_id.ok_or("it has no id")?;
    let port = u16::try_from(executor.port).map_err(|error| error.to_string())?;
    let endpoints = scheduler.tls.as_ref().map(|tls| Arc::new(BallistaConfigGrpcEndpoint::new(tls.endpoints())));
    let (host, scheduler_port) = scheduler.address.rsplit_once(':').ok_or("the scheduler has no port")?;
    let scheduler_port = scheduler_port.parse().map_err(|error| format!("the scheduler's port: {error}"))?;
    let (max, tries, wait_ms) = (MESSAGE_BYTES_MAX, FETCH_TRIES, FETCH_WAIT_MS);
    let has_tls = endpoints.is_some();
    let client = BallistaClient::try_new(host, scheduler_port, max, has_tls, endpoints, tries, wait_ms, 0, 0);
    let mut client = client.await.map_err(|error| error.to_string())?;
    let (id, partition): (_, PartitionId) = (&executor.id, partition.into());
    let rows = client.fetch_partition_proxied(id, &partition, location.file_id, layout, &executor.host, port, true);
    rows.await.map_err(|error| error.to_string())
}

/// A call of the scheduler.
async fn in_time<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Error> {
    match timeout(CALL_MAX, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(Error::Cluster(format!("its scheduler says {status}"))),
        Err(_elapsed) => Err(Error::Cluster("its scheduler does not answer".to_owned())),
    }
}
