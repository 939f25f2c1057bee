//! The answer of `tally.v1.Tally/ListColumns`.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tonic::{Extensions, Status};

use super::{
    budget_layer::OpenCall,
    call_budget::{Call, Reservation},
    call_log::CallLog,
    convert::{to_status, to_table_column},
};
use crate::{
    engine::TableColumns,
    error::logged::Logged,
    limits::{RECEIPTS_PAGE_BYTES, RECEIPTS_PAGE_BYTES_MIN},
    proto::pb::tally::TableColumn,
};

/// A stream of columns.
pub(super) type ColumnStream = Pin<Box<dyn Stream<Item = Result<TableColumn, Status>> + Send>>;

/// Finds the columns page by page as the client reads them, so that their number does not matter.
pub(super) fn list_columns(columns: TableColumns, request: &Extensions) -> Result<ColumnStream, Status> {
    let log = CallLog::start("Tally/ListColumns", request);
    let call = OpenCall::of(request)?;
    let table_parts = columns.parts_count() as u64;
    let pages = stream::try_unfold((columns, call, 0, log), move |(mut columns, call, listed, log)| async move {
        let page = match next_page(&mut columns, &call).await {
            Ok(page) => page,
            Err((error, status)) => {
                tracing::warn!(
                    call = "Tally/ListColumns",
                    peer = log.peer(),
                    error,
                    duration_ms = log.end(),
                    "refused"
                );
                return Err(status);
            }
        };
        if page.columns.is_empty() {
            tracing::info!(
                call = "Tally/ListColumns",
                peer = log.peer(),
                columns = listed,
                duration_ms = log.end(),
                "listed"
            );
            return Ok(None);
        }
        let Page { columns: page, reservation } = page;
        let listed = listed + page.len();
        let answers = stream::iter(page).map(move |column| {
            let _until_the_last = &reservation;
            Ok(column)
        });
        Ok(Some((answers, (columns, call, listed, log))))
    });
    Ok(pages.try_flatten().map_ok(move |column| to_table_column(column, table_parts)).boxed())
}

/// Some columns, and memory for them until the client has read them.
struct Page {
    columns: Vec<crate::engine::TableColumn>,
    reservation: Reservation,
}

/// Errors: the text for the log, and the status. If there is little memory, the page is short.
async fn next_page(columns: &mut TableColumns, call: &Arc<Call>) -> Result<Page, (String, Status)> {
    let (bytes, reservation) = match call.try_reserve(RECEIPTS_PAGE_BYTES) {
        Ok(reservation) => (RECEIPTS_PAGE_BYTES, reservation),
        Err(_little_memory) => {
            let reserved = call.reserve(RECEIPTS_PAGE_BYTES_MIN).map_err(Status::from);
            let reservation = reserved.map_err(|status| (status.message().to_owned(), status))?;
            (RECEIPTS_PAGE_BYTES_MIN, reservation)
        }
    };
    match columns.next_page(bytes).await {
        Ok(columns) => Ok(Page { columns, reservation }),
        Err(error) => Err((Logged(&error).to_string(), to_status(&error))),
    }
}
