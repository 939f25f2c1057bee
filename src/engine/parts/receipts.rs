//! Reading the receipts of many parts, a page at a time.

use std::sync::Arc;

use crate::{
    engine::{runtime::context::Context, state::Lane, storage::Store},
    error::Error,
    limits::{HEADER_BYTES_MAX, NAME_BYTES_MAX, RECEIPT_BYTES, RECEIPT_COLUMN_BYTES, TASK_PARTS_MAX},
    model::part::{Part, PartId, Receipt},
};

/// Parts whose receipts are read by one task.
pub struct Page {
    /// As long as they are here, their files are not deleted, even if they are purged.
    parts: Vec<Arc<Part>>,
    /// About how much memory the receipts take once they are read.
    pub bytes: usize,
}

/// Chooses the parts after `after`, in order: at most `count_max`, and no more than fit in `bytes_max`, but at least one if there
/// is one.
pub(crate) fn receipts_page(context: &Arc<Context>, after: Option<PartId>, count_max: usize, bytes_max: usize) -> Page {
    let mut page = Page { parts: Vec::new(), bytes: 0 };
    let parts = context.state.with(|state| state.parts.snapshot());
    let after = after.map_or(0, PartId::get);
    let Some(first) = PartId::new(after.saturating_add(1)) else { return page };
    for (_, part) in parts.range(first..).take(count_max.min(TASK_PARTS_MAX)) {
        let columns = part.columns_count as usize;
        let names =
            part.schema.as_ref().map_or(HEADER_BYTES_MAX.min(columns * NAME_BYTES_MAX), |schema| schema.bytes() / 2);
        let bytes = RECEIPT_BYTES + columns * RECEIPT_COLUMN_BYTES + names + part.source_bytes as usize;
        if !page.parts.is_empty() && page.bytes + bytes > bytes_max {
            break;
        }
        page.bytes += bytes;
        page.parts.push(Arc::clone(part));
    }
    page
}

/// A part of the table whose receipt is damaged or cannot be read: what the registry knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadablePart {
    /// The part's id.
    pub part: PartId,
    /// Data rows.
    pub rows: u64,
    /// The number of columns.
    pub columns_count: u32,
    /// Bytes of the CSV.
    pub csv_bytes: u64,
    /// Bytes of the Parquet file.
    pub parquet_bytes: u64,
    /// What is wrong with the receipt.
    pub what: String,
}

/// The receipt of a part for a list, which has the other parts nevertheless if it cannot be read. That is logged.
pub(super) fn listed_receipt(store: &Store, part: &Part) -> Result<Receipt, UnreadablePart> {
    store.receipt_of(part).map_err(|error| {
        tracing::error!(part = %part.id, %error, "the receipt of a listed part cannot be read");
        let Part { id, rows, columns_count, csv_bytes, parquet_bytes, .. } = *part;
        UnreadablePart { part: id, rows, columns_count, csv_bytes, parquet_bytes, what: error.to_string() }
    })
}

/// Reads the receipts of a page.
///
/// Errors: the server is shutting down.
pub(crate) async fn read_page(
    context: &Arc<Context>,
    page: Page,
) -> Result<Vec<Result<Receipt, UnreadablePart>>, Error> {
    if page.parts.is_empty() {
        return Ok(Vec::new());
    }
    let read = move |store: &Arc<Store>| Ok(page.parts.iter().map(|part| listed_receipt(store, part)).collect());
    context.on_worker(Lane::Question, read).await
}
