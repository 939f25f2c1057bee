//! What `read_parts.rs` must not be, for a test: an operator that has its parts itself, so that it is a leaf of the plan. Ballista gives
//! each task its share of what the leaves of a plan have only for those leaves that it knows. So all tasks read the same parts.

use std::{fmt, io::Cursor, sync::Arc};

use datafusion::{
    arrow::{
        array::RecordBatch,
        ipc::{reader::StreamReader, writer::StreamWriter},
    },
    common::tree_node::TreeNodeRecursion,
    datasource::memory::MemorySourceConfig,
    error::Result,
    execution::TaskContext,
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
        execution_plan::{Boundedness, EmissionType},
    },
};
use tally::engine::part_reader::PartReader;

use crate::{
    read_parts::ReadPartsExec,
    wire::{answers, malformed, parts, question, question::Question},
};

/// Reads the parts of its lists.
pub(crate) struct LeafExec {
    lists: Vec<RecordBatch>,
    question: Question,
    reader: Option<Arc<PartReader>>,
    properties: Arc<PlanProperties>,
}

impl LeafExec {
    /// Asks a question about lists of parts.
    pub(crate) fn new(lists: Vec<RecordBatch>, question: Question, reader: Option<Arc<PartReader>>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(answers::schema()),
            Partitioning::UnknownPartitioning(lists.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { lists, question, reader, properties: Arc::new(properties) }
    }

    /// The operator as a message.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let question = question::to_bytes(&self.question);
        let mut bytes = (question.len() as u64).to_le_bytes().to_vec();
        bytes.extend(question);
        let mut writer = StreamWriter::try_new(bytes, &parts::schema())?;
        for list in &self.lists {
            writer.write(list)?;
        }
        Ok(writer.into_inner()?)
    }

    /// The operator of a message.
    pub(crate) fn of_bytes(bytes: &[u8], reader: Option<Arc<PartReader>>) -> Result<Self> {
        let cut = || malformed("a leaf that ends early");
        let (len, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
        let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|error| malformed(error.to_string()))?;
        let (question, lists) = rest.split_at_checked(len).ok_or_else(cut)?;
        let lists = StreamReader::try_new(Cursor::new(lists), None)?.collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(lists, question::of_bytes(question)?, reader))
    }
}

impl fmt::Debug for LeafExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafExec").field("question", &self.question).finish_non_exhaustive()
    }
}

impl DisplayAs for LeafExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeafExec: {} lists", self.lists.len())
    }
}

impl ExecutionPlan for LeafExec {
    fn name(&self) -> &'static str {
        "LeafExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let lists: Vec<_> = self.lists.iter().map(|list| vec![list.clone()]).collect();
        let source = MemorySourceConfig::try_new_exec(&lists, parts::schema(), None)?;
        ReadPartsExec::new(source, self.question.clone(), self.reader.clone()).execute(partition, context)
    }
}
