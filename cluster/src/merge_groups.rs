//! The operator that merges groups of the same key. Its input and its output are rows of answers ([`wire::answers`](crate::wire::answers)),
//! which are shuffled by key before it; the rows that are no groups pass.
//!
//! It need not merge all: the server does. So it takes a fixed number of bytes for groups. When they are full, it passes on the groups
//! that it has, and begins again.
//!
//! DataFusion's own aggregates are not used, because their sums wrap or end at 38 digits. This one adds in the
//! [layout](ValueLayout) of the question, and fails if a number does not fit.

use std::{collections::HashMap, fmt, sync::Arc};

use datafusion::{
    arrow::{
        array::{RecordBatch, UInt32Array},
        compute::take_record_batch,
    },
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
use futures_util::{StreamExt, TryStreamExt, stream};
use tally::engine::runtime::group_rows::{GroupRows, ValueLayout};

use crate::wire::{answers, malformed};

/// Bytes of the groups that a task has in memory.
const GROUPS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of a group besides its key and its value: two allocations, and an entry of the map.
const GROUP_BYTES: usize = 96;
/// Bytes of the groups of a batch of rows.
const BATCH_BYTES: usize = 1024 * 1024;

/// Merges groups of the same key.
pub struct MergeGroupsExec {
    input: Arc<dyn ExecutionPlan>,
    layout: ValueLayout,
    properties: Arc<PlanProperties>,
}

impl MergeGroupsExec {
    /// Merges the groups of `input`, whose values have this layout.
    pub fn new(input: Arc<dyn ExecutionPlan>, layout: ValueLayout) -> Self {
        let partitioning = Partitioning::UnknownPartitioning(input.output_partitioning().partition_count());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(answers::schema()),
            partitioning,
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { input, layout, properties: Arc::new(properties) }
    }

    /// What values are made of.
    pub fn layout(&self) -> ValueLayout {
        self.layout
    }
}

impl fmt::Debug for MergeGroupsExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergeGroupsExec").field("layout", &self.layout).field("input", &self.input).finish()
    }
}

impl DisplayAs for MergeGroupsExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MergeGroupsExec: {} numbers", self.layout.numbers)
    }
}

impl ExecutionPlan for MergeGroupsExec {
    fn name(&self) -> &'static str {
        "MergeGroupsExec"
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

    /// The groups are divided already.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|children| DataFusionError::Internal(format!("{} inputs instead of one", children.len())))?;
        Ok(Arc::new(Self::new(input, self.layout)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?.map(|batch| batch.map(Some));
        // After the last batch, what is left is passed on.
        let input = input.chain(stream::once(async { Ok(None) }));
        let mut groups = Groups { layout: self.layout, values: HashMap::new(), bytes: 0, bytes_max: GROUPS_BYTES_MAX };
        let merged = input.map(move |batch| {
            let batches = match batch? {
                Some(batch) => groups.add(&batch)?,
                None => groups.take()?,
            };
            Ok::<_, DataFusionError>(stream::iter(batches.into_iter().map(Ok::<_, DataFusionError>)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(answers::schema(), merged.try_flatten())))
    }
}

/// The groups of a task.
struct Groups {
    layout: ValueLayout,
    values: HashMap<Box<[u8]>, Box<[u8]>>,
    bytes: usize,
    bytes_max: usize,
}

impl Groups {
    /// Adds the groups among some rows, and returns the other rows, and groups if there is no room for more.
    fn add(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let (others, mut out) = (answers::others_in(batch)?, Vec::new());
        if !others.is_empty() {
            out.push(take_record_batch(batch, &UInt32Array::from(others))?);
        }
        for (key, value) in answers::groups_in(batch)? {
            if let Some(total) = self.values.get_mut(key) {
                self.layout.add(total, value).ok_or_else(|| malformed("a sum of groups that does not fit"))?;
                continue;
            }
            if value.len() != self.layout.bytes() {
                return Err(malformed("a group of another layout"));
            }
            let bytes = GROUP_BYTES + key.len() + value.len();
            if self.bytes + bytes > self.bytes_max {
                out.append(&mut self.take()?);
            }
            self.bytes += bytes;
            self.values.insert(key.into(), value.into());
        }
        Ok(out)
    }

    /// All groups as rows. Then there are none.
    fn take(&mut self) -> Result<Vec<RecordBatch>> {
        self.bytes = 0;
        let (mut out, mut rows) = (Vec::new(), GroupRows::default());
        for (key, value) in self.values.drain() {
            rows.push(&key, &value);
            if rows.bytes() >= BATCH_BYTES {
                out.push(answers::groups_to_batch(&rows)?);
                rows = GroupRows::default();
            }
        }
        if !rows.is_empty() {
            out.push(answers::groups_to_batch(&rows)?);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tally::{
        engine::runtime::part_engine::{PartAnswer, PartOutcome},
        model::part::PartId,
    };

    use super::*;

    const LAYOUT: ValueLayout = ValueLayout { numbers: 1, number_bytes: 16 };

    fn value(count: u64, number: i128) -> Vec<u8> {
        [&count.to_le_bytes()[..], &number.to_le_bytes()].concat()
    }

    fn batch(groups: &[(String, i128)]) -> RecordBatch {
        let mut rows = GroupRows::default();
        groups.iter().for_each(|(key, number)| rows.push(key.as_bytes(), &value(1, *number)));
        answers::groups_to_batch(&rows).expect("rows")
    }

    #[test]
    fn groups_are_added_up_in_any_memory() {
        for bytes_max in [0, 1000, 1_000_000] {
            let mut groups = Groups { layout: LAYOUT, values: HashMap::new(), bytes: 0, bytes_max };
            let (mut expected, mut out) = (BTreeMap::<String, (u64, i128)>::new(), Vec::new());
            for round in 0..10_i128 {
                let some: Vec<_> = (0..40).map(|key| (format!("k{}", key % (7 + round)), round << 70)).collect();
                for (key, number) in &some {
                    let total = expected.entry(key.clone()).or_default();
                    *total = (total.0 + 1, total.1 + number);
                }
                out.append(&mut groups.add(&batch(&some)).expect("added"));
            }
            let emitted_before = out.len();
            assert_eq!(emitted_before == 0, bytes_max == 1_000_000, "{bytes_max}");
            out.append(&mut groups.take().expect("taken"));
            let mut found = BTreeMap::<String, Vec<u8>>::new();
            for batch in &out {
                for (key, more) in answers::of_batch(batch).expect("groups").groups.iter() {
                    let key = String::from_utf8(key.to_vec()).expect("text");
                    let total = found.entry(key).or_insert_with(|| value(0, 0));
                    LAYOUT.add(total, more).expect("it fits");
                }
            }
            let expected: BTreeMap<_, _> =
                expected.into_iter().map(|(key, (count, number))| (key, value(count, number))).collect();
            assert_eq!(found, expected, "{bytes_max}");
        }
    }

    #[test]
    fn other_rows_pass_and_overflow_is_an_error() {
        let mut groups = Groups { layout: LAYOUT, values: HashMap::new(), bytes: 0, bytes_max: 1_000_000 };
        let answer = PartAnswer { part: PartId::new(3).expect("above 0"), outcome: PartOutcome::Passed };
        let passed = groups.add(&answers::to_batch(&[answer]).expect("rows")).expect("passed");
        assert_eq!(answers::of_batch(&passed[0]).expect("answers").parts.len(), 1);
        assert!(groups.add(&batch(&[("a".to_owned(), i128::MAX)])).expect("added").is_empty());
        groups.add(&batch(&[("a".to_owned(), 1)])).expect_err("it does not fit");
        let mut other = GroupRows::default();
        other.push(b"b", &[0; 8]);
        groups.add(&answers::groups_to_batch(&other).expect("rows")).expect_err("another layout");
    }
}
