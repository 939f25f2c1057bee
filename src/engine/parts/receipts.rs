//! Reading the receipts of many parts, a page at a time.

use std::sync::Arc;

use crate::{
    engine::{runtime::context::Context, state::Lane},
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

/// Reads the receipts of a page.
pub(crate) async fn read_page(context: &Arc<Context>, page: Page) -> Result<Vec<Receipt>, Error> {
    if page.parts.is_empty() {
        return Ok(Vec::new());
    }
    let store = Arc::clone(&context.store);
    context.workers.run(Lane::Question, move || page.parts.iter().map(|part| store.receipt_of(part)).collect()).await?
}
