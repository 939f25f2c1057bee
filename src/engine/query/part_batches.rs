//! Batches of parts, each of which is about enough for one task.

use std::sync::Arc;

use crate::{
    engine::parquet::wide::is_wide,
    limits::{TASK_BYTES, TASK_PARTS_MAX},
    model::{
        format::Format,
        part::{Part, PartId},
    },
};

/// Splits a list of parts into batches of consecutive parts that one task can read. A larger part is a batch by itself. A
/// wide part is the first of its batch.
pub(crate) struct PartBatches<I: Iterator<Item = (PartId, Arc<Part>)>> {
    pub(crate) parts: std::iter::Peekable<I>,
    pub(crate) format: Format,
}

impl<I: Iterator<Item = (PartId, Arc<Part>)>> Iterator for PartBatches<I> {
    type Item = Vec<Arc<Part>>;

    fn next(&mut self) -> Option<Vec<Arc<Part>>> {
        let size = |part: &Part| match self.format {
            Format::Csv => part.csv_bytes,
            Format::Parquet => part.parquet_bytes,
        };
        let (_, first) = self.parts.next()?;
        let mut bytes = size(&first);
        let mut batch = vec![first];
        while batch.len() < TASK_PARTS_MAX {
            let fits = |(_, part): &(PartId, Arc<Part>)| bytes + size(part) <= TASK_BYTES as u64 && !is_wide(part);
            let Some((_, part)) = self.parts.next_if(fits) else {
                break;
            };
            bytes += size(&part);
            batch.push(part);
        }
        Some(batch)
    }
}
