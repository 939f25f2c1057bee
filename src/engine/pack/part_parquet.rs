//! The Parquet file of a part that is in a segment, made from its rows for a download.

use std::sync::Arc;

use super::rows::ParquetOfParts;
use crate::{
    engine::{
        ingest::memory_plan::Plan, parts::part_file::PartFile, runtime::context::Context, state::Lane, storage::Store,
    },
    error::Error,
    limits::{READ_BLOCK_BYTES, SMALL_CONVERSION_BYTES},
    model::{format::Format, part::Part},
};

/// Makes the file.
///
/// Errors: its CSV or its receipt is damaged or cannot be read.
pub(crate) async fn open(context: &Arc<Context>, part: Arc<Part>) -> Result<PartFile, Error> {
    let plan = Plan::for_file(part.csv_bytes, part.columns_count as usize, READ_BLOCK_BYTES)?;
    let memory = context.small_conversions.reserve(plan.memory_bytes.min(SMALL_CONVERSION_BYTES)).await?;
    let of = Arc::clone(&part);
    let make = move |store: &Arc<Store>| {
        let _memory = memory;
        let receipt = store.receipt_of(&of)?;
        let mut parquet = ParquetOfParts::new(store, &receipt.columns, plan.layout)?;
        parquet.add(&of, store.open_part(&of, Format::Csv)?)?;
        Ok(parquet.finish()?.draft)
    };
    let draft = context.on_worker(Lane::Question, make).await?;
    PartFile::made(context, part, draft).await
}
