//! Reading the receipts of many parts, a page at a time.

use std::sync::Arc;

use crate::{
    engine::{
        runtime::context::Context,
        state::Lane,
        storage::{
            Store,
            segments::{cursor::PartCursor, reading::OpenSegment},
        },
    },
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
///
/// Errors: an index is damaged or cannot be read.
pub(crate) async fn receipts_page(
    context: &Arc<Context>,
    after: Option<PartId>,
    count_max: usize,
    bytes_max: usize,
) -> Result<Page, Error> {
    let mut cursor = PartCursor::new(context.state.with(|state| state.parts.snapshot()));
    context.on_worker(Lane::Question, move |store| choose(store, &mut cursor, after, count_max, bytes_max)).await
}

fn choose(
    store: &Store,
    cursor: &mut PartCursor,
    after: Option<PartId>,
    count_max: usize,
    bytes_max: usize,
) -> Result<Page, Error> {
    let mut page = Page { parts: Vec::new(), bytes: 0 };
    let mut after = after;
    while page.parts.len() < count_max.min(TASK_PARTS_MAX) {
        let Some(part) = cursor.next(store, after)? else { break };
        after = Some(part.id);
        let columns = part.columns_count as usize;
        let names =
            part.schema.as_ref().map_or(HEADER_BYTES_MAX.min(columns * NAME_BYTES_MAX), |schema| schema.bytes() / 2);
        let bytes = RECEIPT_BYTES + columns * RECEIPT_COLUMN_BYTES + names + part.source_bytes as usize;
        if !page.parts.is_empty() && page.bytes + bytes > bytes_max {
            break;
        }
        page.bytes += bytes;
        page.parts.push(part);
    }
    Ok(page)
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
pub(super) fn listed_receipt(store: &Store, part: &Part, open: &mut OpenSegment) -> Result<Receipt, UnreadablePart> {
    store.receipt_with(part, open).map_err(|error| {
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
    let read = move |store: &Arc<Store>| {
        let mut open = OpenSegment::default();
        Ok(page.parts.iter().map(|part| listed_receipt(store, part, &mut open)).collect())
    };
    context.on_worker(Lane::Question, read).await
}
