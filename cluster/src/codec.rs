//! The operators as messages. All other operators are Ballista's and DataFusion's.

use std::{fmt, sync::Arc};

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::{error::Result, execution::TaskContext, physical_plan::ExecutionPlan};
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use tally::engine::{part_reader::PartReader, runtime::group_rows::ValueLayout};

use crate::{
    merge_groups::MergeGroupsExec,
    read_parts::ReadPartsExec,
    wire::{malformed, question},
};

/// What the operator's message begins with. A message of Ballista, which is protobuf, cannot begin with this byte: it would be
/// the end of a group.
const MARK: &[u8] = b"\x0ctally";

/// What follows [`MARK`] for the operator that merges groups. No question begins with it.
const MERGE: &[u8] = b"m";

/// The same for the leaf of a test.
#[cfg(feature = "faults")]
const LEAF: &[u8] = b"l";

fn layout_of(bytes: &[u8]) -> Result<ValueLayout> {
    let mut numbers = bytes.as_chunks().0.iter().map(|bytes| usize::try_from(u64::from_le_bytes(*bytes)).ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(numbers), Some(number_bytes)) if bytes.len() == 16 && number_bytes > 0 => {
            Ok(ValueLayout { numbers, number_bytes })
        }
        _ => Err(malformed("another layout of values")),
    }
}

/// Encodes and decodes the operators.
pub struct Codec {
    ballista: BallistaPhysicalExtensionCodec,
    /// What decoded operators read with. Only executors have it.
    reader: Option<Arc<PartReader>>,
}

impl Codec {
    /// The codec of a server or a scheduler; with a reader, that of an executor.
    pub fn new(reader: Option<Arc<PartReader>>) -> Self {
        Self { ballista: BallistaPhysicalExtensionCodec::default(), reader }
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").field("reads", &self.reader.is_some()).finish_non_exhaustive()
    }
}

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(bytes) = bytes.strip_prefix(MARK) else {
            return self.ballista.try_decode(bytes, inputs, context, converter);
        };
        #[cfg(feature = "faults")]
        if let Some(leaf) = bytes.strip_prefix(LEAF) {
            return Ok(Arc::new(crate::leaf::LeafExec::of_bytes(leaf, self.reader.clone())?));
        }
        let [input] = inputs else { return Err(malformed(format!("{} inputs", inputs.len()))) };
        if let Some(layout) = bytes.strip_prefix(MERGE) {
            return Ok(Arc::new(MergeGroupsExec::new(Arc::clone(input), layout_of(layout)?)));
        }
        let question = question::of_bytes(bytes)?;
        Ok(Arc::new(ReadPartsExec::new(Arc::clone(input), question, self.reader.clone())))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        #[cfg(feature = "faults")]
        if let Some(leaf) = node.downcast_ref::<crate::leaf::LeafExec>() {
            bytes.extend_from_slice(MARK);
            bytes.extend_from_slice(LEAF);
            bytes.extend(leaf.to_bytes()?);
            return Ok(());
        }
        if let Some(merge) = node.downcast_ref::<MergeGroupsExec>() {
            let ValueLayout { numbers, number_bytes } = merge.layout();
            bytes.extend_from_slice(MARK);
            bytes.extend_from_slice(MERGE);
            bytes.extend([numbers, number_bytes].into_iter().flat_map(|number| (number as u64).to_le_bytes()));
            return Ok(());
        }
        let Some(read) = node.downcast_ref::<ReadPartsExec>() else {
            return self.ballista.try_encode(node, bytes, converter);
        };
        bytes.extend_from_slice(MARK);
        bytes.extend(question::to_bytes(read.question()));
        Ok(())
    }
}
