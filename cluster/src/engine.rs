//! The server's side of the cluster: asks the scheduler's executors about parts.

use std::{sync::Arc, time::Duration};

use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use datafusion::{
    arrow::array::RecordBatch,
    datasource::memory::MemorySourceConfig,
    error::Result,
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::{
        ExecutionPlan, Partitioning, coalesce_partitions::CoalescePartitionsExec, repartition::RepartitionExec,
    },
};
use datafusion_proto::{physical_plan::AsExecutionPlan, protobuf::PhysicalPlanNode};
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use tally::{
    engine::runtime::part_engine::{
        GroupAnswer, GroupEngine, GroupQuestion, PartAnswer, PartEngine, PartQuestion, answers_of,
    },
    error::Error,
    model::part::Part,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt;

use crate::{
    codec::Codec,
    job::{Ended, Job, Jobs, Rows},
    merge_groups::MergeGroupsExec,
    read_parts::ReadPartsExec,
    tls::Tls,
    wire::{
        answers::{self, Answered},
        parts,
        question::Question,
    },
};

/// Bytes of a message; Ballista's own limit.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Questions that are on the cluster at once.
const QUESTIONS_MAX: usize = 4;
/// How long the scheduler may take to say whether it has executors.
const READY_MAX: Duration = Duration::from_secs(5);
/// Lists of parts in a job. A task of an executor reads one or more of them.
const LISTS_MAX: usize = 64;
/// Parts, or bytes of CSV, for which a job has one more list.
const LIST_PARTS: usize = 16;
const LIST_BYTES: u64 = 8 * 1024 * 1024;
/// Tasks that merge groups.
const MERGES_MAX: usize = 16;
/// What a part costs besides its bytes, as bytes.
const PART_BYTES: u64 = 64 * 1024;

/// Where the scheduler is.
pub(crate) struct Scheduler {
    /// `HOST:PORT`.
    pub(crate) address: String,
    pub(crate) tls: Option<Tls>,
}

/// The machines of a Ballista cluster.
pub struct Ballista {
    scheduler: Scheduler,
    channel: Channel,
    /// Names the sessions of this process at the scheduler.
    session: String,
    jobs: Jobs,
    answer_within: Duration,
}

impl Ballista {
    /// The cluster of a scheduler, which need not run yet. A question fails if it is not answered in time.
    ///
    /// Errors: `scheduler` is not `HOST:PORT`. It must be called in a runtime of tokio.
    pub fn new(scheduler: &str, tls: Option<Tls>, answer_within: Duration) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{scheduler}"))?.connect_timeout(READY_MAX);
        let endpoint = endpoint.http2_keep_alive_interval(Duration::from_secs(10)).keep_alive_timeout(READY_MAX);
        let endpoint = match &tls {
            Some(tls) => tls.endpoint(&endpoint)?,
            None => endpoint,
        };
        Ok(Self {
            scheduler: Scheduler { address: scheduler.to_owned(), tls },
            channel: endpoint.connect_lazy(),
            session: uuid::Uuid::new_v4().to_string(),
            jobs: Jobs::new(QUESTIONS_MAX),
            answer_within,
        })
    }

    /// Ends all questions, and waits a few seconds until the scheduler has cancelled their jobs.
    pub async fn close(&self) {
        self.jobs.close().await;
    }

    /// The rows of the answer to a question.
    fn rows(&self, parts: Vec<Arc<Part>>, question: Question) -> BoxStream<'_, Result<Rows, Error>> {
        answers_of(move |tx| async move {
            let run = self.jobs.until_closed(self.run(&parts, question, tx));
            let answered = timeout(self.answer_within, run).await;
            let seconds = self.answer_within.as_secs();
            answered.unwrap_or_else(|_elapsed| Err(Error::Cluster(format!("it took more than {seconds} s"))))
        })
    }

    /// Runs a job, and sends its rows.
    async fn run(&self, parts: &[Arc<Part>], question: Question, tx: mpsc::Sender<Rows>) -> Result<(), Error> {
        let permit = self.jobs.permit().await?;
        self.check_executors().await?;
        let plan = plan(parts, question).and_then(|plan| encode(&plan));
        let plan = plan.map_err(|error| Error::Internal(format!("the plan of a question: {error}")))?;
        if plan.len() > MESSAGE_BYTES_MAX {
            return Err(Error::Internal(format!("the plan of a question has {} bytes", plan.len())));
        }
        let client = SchedulerGrpcClient::new(self.channel.clone())
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut job = Job::submit(permit, client, self.session.clone(), plan).await?;
        let ended = loop {
            if let Some(ended) = job.poll().await? {
                break ended;
            }
            if job.is_time_to_look() {
                self.check_executors().await?;
            }
        };
        let mut is_complete = true;
        match ended {
            Ended::Done(locations) => {
                for location in locations {
                    is_complete &= job.fetch(&self.scheduler, location, &tx).await?;
                }
            }
            Ended::Failed => is_complete = false,
        }
        match is_complete {
            true => Ok(()),
            false => tx.send(Rows::Lost).await.ok().ok_or(Error::Cancelled),
        }
    }

    /// Errors: the scheduler cannot be reached, or has no executors. It would let a job wait for one without an end.
    async fn check_executors(&self) -> Result<(), Error> {
        let Scheduler { address: scheduler, tls } = &self.scheduler;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let request = http::Request::get(format!("{scheme}://{scheduler}/readyz")).body(tonic::body::Body::empty());
        let request = request.map_err(|error| Error::Internal(error.to_string()))?;
        let unreachable = |why: String| Error::Cluster(format!("its scheduler {scheduler} cannot be reached: {why}"));
        let answer = timeout(READY_MAX, self.channel.clone().oneshot(request)).await;
        let answer = answer.map_err(|elapsed| unreachable(elapsed.to_string()))?;
        let answer = answer.map_err(|error| unreachable(error.to_string()))?;
        if answer.status() == http::StatusCode::SERVICE_UNAVAILABLE {
            return Err(Error::Cluster(format!("its scheduler {scheduler} has no executors")));
        }
        if !answer.status().is_success() {
            return Err(Error::Cluster(format!("{scheduler} is no scheduler: it answers {}", answer.status())));
        }
        Ok(())
    }
}

impl PartEngine for Ballista {
    fn ask(&self, parts: Vec<Arc<Part>>, question: PartQuestion) -> BoxFuture<'_, Result<Vec<PartAnswer>, Error>> {
        Box::pin(async move {
            let (mut rows, mut found) = (self.rows(parts, Question::Parts(question)), Vec::new());
            while let Some(rows) = rows.next().await {
                match rows? {
                    Rows::Batch(batch) => found.append(&mut answered(&batch)?.parts),
                    Rows::Lost => {} // what is missing is asked for again
                }
            }
            Ok(found)
        })
    }
}

impl GroupEngine for Ballista {
    fn groups(&self, parts: Vec<Arc<Part>>, question: GroupQuestion) -> BoxStream<'_, Result<GroupAnswer, Error>> {
        let rows = self.rows(parts, Question::Groups(question));
        let answers = rows.and_then(|rows| async move {
            Ok::<_, Error>(match rows {
                Rows::Batch(batch) => {
                    let Answered { parts, groups } = answered(&batch)?;
                    vec![Ok(GroupAnswer::Groups(groups)), Ok(GroupAnswer::Parts(parts))]
                }
                Rows::Lost => vec![Ok(GroupAnswer::Lost)],
            })
        });
        answers.map_ok(stream::iter).try_flatten().boxed()
    }
}

fn answered(batch: &RecordBatch) -> Result<Answered, Error> {
    answers::of_batch(batch).map_err(|error| Error::Internal(error.to_string()))
}

/// The parts as lists in memory, an operator that reads each list, one that merges groups of the same key, and one that has all
/// answers.
fn plan(parts: &[Arc<Part>], question: Question) -> Result<Arc<dyn ExecutionPlan>> {
    let lists = lists(parts).map(|list| Ok(vec![parts::to_batch(list)?])).collect::<Result<Vec<Vec<RecordBatch>>>>()?;
    let source = MemorySourceConfig::try_new_exec(&lists, parts::schema(), None)?;
    #[cfg(feature = "faults")]
    if crate::faults::makes_a_leaf() {
        let leaf = crate::leaf::LeafExec::new(lists.concat(), question, None);
        return Ok(Arc::new(CoalescePartitionsExec::new(Arc::new(leaf))));
    }
    let layout = question.layout();
    let mut plan: Arc<dyn ExecutionPlan> = Arc::new(ReadPartsExec::new(source, question, None));
    if let Some(layout) = layout
        && lists.len() > 1
    {
        let key: Arc<dyn PhysicalExpr> = Arc::new(Column::new_with_schema(answers::KEY, &answers::schema())?);
        let by_key = Partitioning::Hash(vec![key], lists.len().min(MERGES_MAX));
        plan = Arc::new(MergeGroupsExec::new(Arc::new(RepartitionExec::try_new(plan, by_key)?), layout));
    }
    // With this operator the answers of finished tasks are not lost if their executor is: the tasks are run again.
    Ok(Arc::new(CoalescePartitionsExec::new(plan)))
}

/// Divides parts into lists of parts that follow each other, of about the same size.
fn lists(parts: &[Arc<Part>]) -> impl Iterator<Item = &[Arc<Part>]> {
    let cost = |part: &Arc<Part>| part.csv_bytes.saturating_add(PART_BYTES);
    let all = parts.iter().fold(0, |all: u64, part| all.saturating_add(cost(part)));
    let by_bytes = usize::try_from(all / LIST_BYTES).unwrap_or(usize::MAX);
    let count = by_bytes.max(parts.len() / LIST_PARTS).clamp(1, LISTS_MAX);
    let of_list = all.div_ceil(count as u64);
    let mut rest = parts;
    std::iter::from_fn(move || {
        let (mut bytes, mut len) = (0_u64, 0);
        while len < rest.len() && bytes < of_list {
            bytes = bytes.saturating_add(cost(&rest[len]));
            len += 1;
        }
        let (list, after) = rest.split_at(len);
        rest = after;
        (!list.is_empty()).then_some(list)
    })
}

fn encode(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<u8>> {
    let node = PhysicalPlanNode::try_from_physical_plan(Arc::clone(plan), &Codec::new(None))?;
    let mut bytes = Vec::new();
    node.try_encode(&mut bytes)?;
    Ok(bytes)
}
