//! The operator that reads parts. Its input has a row for each part ([`wire::parts`]), its output one for each answer, and one for each
//! group that was found in a batch of its input ([`wire::answers`]).
//!
//! The rows come from an operator below it, and not from this one, because Ballista gives each task a part of what the leaves of
//! a plan have only for those leaves that it knows. It would give all parts to every task if this were one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use datafusion::{
    arrow::array::RecordBatch,
    common::tree_node::TreeNodeRecursion,
    error::{DataFusionError, Result},
    execution::TaskContext,
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
        SendableRecordBatchStream,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use tally::engine::{
    part_reader::PartReader,
    runtime::part_engine::{GroupAnswer, GroupQuestion, PartQuestion},
    storage::segments::reading::OpenSegment,
};

use crate::{
    faults,
    wire::{answers, parts, question::Question},
};

/// Reads parts.
pub struct ReadPartsExec {
    input: Arc<dyn ExecutionPlan>,
    question: Question,
    /// `None` on a server and on a scheduler, which execute no plan.
    reader: Option<Arc<PartReader>>,
    properties: Arc<PlanProperties>,
}

impl ReadPartsExec {
    /// Asks a question about the parts of `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, question: Question, reader: Option<Arc<PartReader>>) -> Self {
        let partitioning = Partitioning::UnknownPartitioning(input.output_partitioning().partition_count());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(answers::schema()),
            partitioning,
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { input, question, reader, properties: Arc::new(properties) }
    }

    /// The question.
    pub fn question(&self) -> &Question {
        &self.question
    }
}

impl fmt::Debug for ReadPartsExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadPartsExec").field("question", &self.question).field("input", &self.input).finish()
    }
}

impl DisplayAs for ReadPartsExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.question {
            Question::Parts(PartQuestion { format, .. }) => write!(f, "ReadPartsExec: {format}"),
            Question::Groups(_) => write!(f, "ReadPartsExec: groups"),
        }
    }
}

impl ExecutionPlan for ReadPartsExec {
    fn name(&self) -> &'static str {
        "ReadPartsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    /// The parts are divided already.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|children| DataFusionError::Internal(format!("{} inputs instead of one", children.len())))?;
        Ok(Arc::new(Self::new(input, self.question.clone(), self.reader.clone())))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let no_reader = || DataFusionError::Internal("parts are read by executors only".to_owned());
        let reader = Arc::clone(self.reader.as_ref().ok_or_else(no_reader)?);
        let question = self.question.clone();
        let input = self.input.execute(partition, context)?;
        let answers = input.and_then(move |batch| {
            let (reader, question) = (Arc::clone(&reader), question.clone());
            async move {
                Ok::<_, DataFusionError>(match question {
                    Question::Parts(question) => stream::once(read(reader, question, batch)).boxed(),
                    Question::Groups(question) => read_groups(&reader, question, &batch)?,
                })
            }
        });
        let answers = answers.try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(answers::schema(), answers)))
    }
}

/// Cancels what runs on another thread when it is dropped.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn read(reader: Arc<PartReader>, question: PartQuestion, batch: RecordBatch) -> Result<RecordBatch> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _cancel = CancelOnDrop(Arc::clone(&cancelled));
    let parts = parts::of_batch(&batch)?;
    let wide = reader.permit(&parts, &question).await;
    let wide = wide.map_err(|error| DataFusionError::Execution(error.to_string()))?;
    let work = move || {
        let _until_all_are_read = wide;
        let (mut found, mut open) = (Vec::new(), OpenSegment::default());
        for part in parts {
            let answer = reader.answer(&part, &question, &mut open, || cancelled.load(Ordering::Relaxed));
            let answer = answer.ok_or_else(|| DataFusionError::Execution("cancelled".to_owned()))?;
            found.extend(faults::instead_of(answer));
        }
        answers::to_batch(&found)
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| DataFusionError::Internal(error.to_string()))?
}

/// Reads the parts of a batch together.
fn read_groups(
    reader: &Arc<PartReader>,
    question: GroupQuestion,
    batch: &RecordBatch,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let answers = reader.groups_of(parts::of_batch(batch)?, question);
    let batches = answers.map(|answer| {
        let answer = answer.map_err(|error| DataFusionError::Execution(error.to_string()))?;
        let batches = match answer {
            GroupAnswer::Parts(answers) => {
                vec![answers::to_batch(&answers.into_iter().flat_map(faults::instead_of).collect::<Vec<_>>())]
            }
            GroupAnswer::Groups(groups) => {
                faults::groups_instead_of(groups).iter().map(answers::groups_to_batch).collect()
            }
            GroupAnswer::Lost => vec![Err(DataFusionError::Execution("groups are lost".to_owned()))],
        };
        Ok::<_, DataFusionError>(stream::iter(batches))
    });
    Ok(batches.try_flatten().boxed())
}
