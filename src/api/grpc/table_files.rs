//! The answer of `tally.v1.Tally/ListFiles`.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use tonic::{Extensions, Status};

use super::{
    budget_layer::OpenCall,
    call_budget::{Call, Reservation},
    call_log::CallLog,
    convert::{to_files_head, to_files_page, to_format, to_status},
};
use crate::{
    engine::{
        Engine,
        parts::table_files::{FilesPage, TableFiles},
    },
    error::{Error, logged::Logged},
    limits::{FILE_ENTRY_BYTES, RECEIPTS_PAGE_BYTES, RECEIPTS_PAGE_BYTES_MIN},
    model::format::Format,
    proto::pb::tally::{self, ListFilesRequest, ListFilesResponse},
};

const CALL: &str = "Tally/ListFiles";

/// A stream of pages.
pub(super) type FileStream = Pin<Box<dyn Stream<Item = Result<ListFilesResponse, Status>> + Send>>;

/// Lists the files page by page as the client reads them, so that their number does not matter.
pub(super) fn list_files(engine: &Engine, asked: ListFilesRequest, request: &Extensions) -> Result<FileStream, Status> {
    let log = CallLog::start(CALL, request);
    let call = OpenCall::of(request)?;
    let files = match begin(engine, asked) {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(call = CALL, peer = log.peer(), error = %Logged(&error), duration_ms = log.end(), "refused");
            return Err(to_status(&error));
        }
    };
    let head = ListFilesResponse {
        head: Some(to_files_head(files.head(), files.folder_id())),
        ..ListFilesResponse::default()
    };
    // A page keeps its memory until the client has read it.
    let state = (files, call, None, 0, log);
    let pages = stream::try_unfold(state, move |(mut files, call, before, listed, log)| async move {
        drop::<Option<Reservation>>(before);
        match next_page(&mut files, &call).await {
            Ok((FilesPage::End, _)) => {
                tracing::info!(call = CALL, peer = log.peer(), files = listed, duration_ms = log.end(), "listed");
                Ok(None)
            }
            Ok((page, reservation)) => {
                let listed = listed + if let FilesPage::Files(files) = &page { files.len() } else { 0 };
                Ok(Some((to_files_page(page), (files, call, Some(reservation), listed, log))))
            }
            Err((error, status)) => {
                tracing::warn!(call = CALL, peer = log.peer(), error, duration_ms = log.end(), "refused");
                Err(status)
            }
        }
    });
    Ok(stream::once(async { Ok(head) }).chain(pages).boxed())
}

fn begin(engine: &Engine, asked: ListFilesRequest) -> Result<TableFiles, Error> {
    let format = match asked.format() {
        tally::Format::Unspecified if asked.format == 0 => Format::Parquet,
        _given => to_format(asked.format)?,
    };
    engine.table_files(format, asked.with_removed)
}

/// Some files, and memory for them until the client has read them. Errors: the text for the log, and the status. If there is
/// little memory, the page is short.
async fn next_page(files: &mut TableFiles, call: &Arc<Call>) -> Result<(FilesPage, Reservation), (String, Status)> {
    let (bytes, reservation) = match call.try_reserve(RECEIPTS_PAGE_BYTES) {
        Ok(reservation) => (RECEIPTS_PAGE_BYTES, reservation),
        Err(_little_memory) => {
            let reserved = call.reserve(RECEIPTS_PAGE_BYTES_MIN).map_err(Status::from);
            let reservation = reserved.map_err(|status| (status.message().to_owned(), status))?;
            (RECEIPTS_PAGE_BYTES_MIN, reservation)
        }
    };
    match files.next_page(bytes / FILE_ENTRY_BYTES).await {
        Ok(page) => Ok((page, reservation)),
        Err(error) => Err((Logged(&error).to_string(), to_status(&error))),
    }
}
