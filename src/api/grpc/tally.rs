//! The service `tally.v1.Tally`.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    access_layer::status_of,
    budget_layer::OpenCall,
    call_budget::{Call, Reservation},
    call_log::CallLog,
    client_body::Content,
    columns::list_columns,
    convert::{to_group_block, to_progress, to_quarantine, to_receipt, to_removed, to_status, to_unreadable},
    sums,
    table_files::{FileStream, list_files},
    upload::{answer, upload},
};
use crate::{
    access::{Allowed, audit, rules::PURGE},
    api::caller::Caller,
    engine::{
        Engine, Overview, Page, RemovedPart, UnreadablePart, Uploaded,
        group_by::{output::StoredGroups, spec::GroupBy},
        scrub::Verification,
        state::transfers::Origin,
    },
    error::{Error, logged::Logged},
    limits::{RECEIPTS_PAGE_BYTES, RECEIPTS_PAGE_BYTES_MIN, REMOVED_LISTED_MAX, REQUEST_BYTES_MAX},
    model::part::{PartId, Receipt as EngineReceipt},
    proto::pb::tally::{
        ForgetRequest, ForgetResponse, GroupBlock, GroupSumRequest, ListColumnsRequest, ListFilesRequest,
        ListPartsRequest, ListQuarantineRequest, ListQuarantineResponse, ListRemovedRequest, ListRemovedResponse,
        PackRequest, PackResponse, Receipt, RemovePartRequest, RemovePartResponse, RestorePartRequest,
        RestorePartResponse, SumRequest, SumResponse, TableColumn, UploadChunk, VerifyProgress, VerifyRequest,
        tally_server::{Tally, TallyServer},
    },
};

/// The handlers of `tally.v1.Tally`.
pub(crate) struct TallyService(Engine);

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Tally for TallyService {
    type ListPartsStream = Answers<Receipt>;
    type ListColumnsStream = Answers<TableColumn>;
    type ListFilesStream = FileStream;
    type GroupSumStream = Answers<GroupBlock>;
    type VerifyStream = Answers<VerifyProgress>;

    async fn upload(&self, request: Request<Streaming<UploadChunk>>) -> Result<Response<Receipt>, Status> {
        let extensions = request.extensions();
        let mut content = Content::take(extensions)?;
        let dialect = content.dialect();
        let result = upload(&self.0, extensions, content, dialect, "Tally/Upload").await;
        let Uploaded { receipt, replayed } = result.map_err(|error| to_status(&error))?;
        Ok(answer(Receipt { replayed, ..to_receipt(receipt) }, replayed))
    }

    /// Reads receipts page by page as the client reads them, so that their number does not matter.
    async fn list_parts(&self, request: Request<ListPartsRequest>) -> Result<Response<Answers<Receipt>>, Status> {
        let log = CallLog::start("Tally/ListParts", request.extensions());
        let call = OpenCall::of(request.extensions())?;
        let ListPartsRequest { after, limit } = request.into_inner();
        let left = if limit == 0 { usize::MAX } else { usize::try_from(limit).unwrap_or(usize::MAX) };
        let engine = Arc::new(self.0.clone());
        let pages = stream::try_unfold((PartId::new(after), left, 0, log), move |(after, left, parts, log)| {
            let (engine, call) = (Arc::clone(&engine), Arc::clone(&call));
            async move {
                let read = match reserve_page(&engine, &call, after, left).await {
                    Ok((page, reservation)) => {
                        let read = engine.read_page(page).await.map(|page| (page, reservation));
                        read.map_err(|error| (Logged(&error).to_string(), to_status(&error)))
                    }
                    Err(refused) => Err(refused),
                };
                let (page, reservation) = match read {
                    Ok(read) => read,
                    Err((error, status)) => {
                        tracing::warn!(
                            call = "Tally/ListParts",
                            peer = log.peer(),
                            error,
                            duration_ms = log.end(),
                            "refused"
                        );
                        return Err(status);
                    }
                };
                let Some(last) = page.last() else {
                    tracing::info!(
                        call = "Tally/ListParts",
                        peer = log.peer(),
                        parts,
                        duration_ms = log.end(),
                        "listed"
                    );
                    return Ok(None);
                };
                let last = last.as_ref().map_or_else(|unreadable| unreadable.part, |receipt| receipt.part);
                let next = (Some(last), left - page.len(), parts + page.len(), log);
                Ok::<_, Status>(Some((receipts_of(page, reservation), next)))
            }
        });
        Ok(Response::new(pages.try_flatten().boxed()))
    }

    async fn list_columns(
        &self,
        request: Request<ListColumnsRequest>,
    ) -> Result<Response<Answers<TableColumn>>, Status> {
        list_columns(self.0.table_columns(), request.extensions()).map(Response::new)
    }

    async fn list_files(&self, request: Request<ListFilesRequest>) -> Result<Response<FileStream>, Status> {
        let (_, extensions, request) = request.into_parts();
        list_files(&self.0, request, &extensions).map(Response::new)
    }

    async fn sum(&self, request: Request<SumRequest>) -> Result<Response<SumResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        sums::sum(&self.0, request, &extensions).await.map(Response::new)
    }

    async fn group_sum(&self, request: Request<GroupSumRequest>) -> Result<Response<Answers<GroupBlock>>, Status> {
        let log = CallLog::start("Tally/GroupSum", request.extensions());
        let (call, Caller { origin, .. }) = (OpenCall::of(request.extensions())?, Caller::of(request.extensions()));
        let GroupSumRequest { by, sum } = request.into_inner();
        let groups = match self.groups(origin, by, sum).await {
            Ok(groups) => groups,
            Err(error) => {
                tracing::warn!(call = "Tally/GroupSum", peer = log.peer(), error = %Logged(&error), duration_ms = log.end(), "refused");
                return Err(to_status(&error));
            }
        };
        call.set_pace(groups.pace());
        let blocks = stream::try_unfold((groups, 0, log), |(mut groups, sent, log)| async move {
            match groups.next_block().await {
                Ok(block) if block.is_empty() => {
                    tracing::info!(
                        call = "Tally/GroupSum",
                        peer = log.peer(),
                        groups = sent,
                        duration_ms = log.end(),
                        "summed"
                    );
                    Ok(None)
                }
                Ok(block) => {
                    let sent = sent + block.len();
                    Ok(Some((to_group_block(block), (groups, sent, log))))
                }
                Err(error) => {
                    tracing::warn!(call = "Tally/GroupSum", peer = log.peer(), error = %Logged(&error), duration_ms = log.end(), "refused");
                    Err(to_status(&error))
                }
            }
        });
        Ok(Response::new(blocks.boxed()))
    }

    async fn list_quarantine(
        &self,
        _request: Request<ListQuarantineRequest>,
    ) -> Result<Response<ListQuarantineResponse>, Status> {
        Ok(Response::new(to_quarantine(&self.0.missing_parts())))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        let log = CallLog::start("Tally/Forget", request.extensions());
        let part = request.get_ref().part;
        audit::about_part(request.extensions(), part);
        let result = self.forget_part(part).await;
        let (peer, duration_ms) = (log.peer(), log.end());
        match result {
            Ok(missing) => {
                tracing::warn!(
                    call = "Tally/Forget",
                    peer,
                    part,
                    missing,
                    duration_ms,
                    "the loss of the part is accepted"
                );
                Ok(Response::new(ForgetResponse { quarantined: missing as u64 }))
            }
            Err(error) => {
                tracing::warn!(call = "Tally/Forget", peer, part, %error, duration_ms, "refused");
                Err(to_status(&error))
            }
        }
    }

    async fn remove_part(&self, request: Request<RemovePartRequest>) -> Result<Response<RemovePartResponse>, Status> {
        let log = CallLog::start("Tally/RemovePart", request.extensions());
        audit::about_part(request.extensions(), request.get_ref().part);
        if request.get_ref().purge {
            Allowed::to(request.extensions(), PURGE).map_err(|refusal| status_of(&refusal))?;
        }
        let RemovePartRequest { part, purge } = request.into_inner();
        let result = async { self.0.remove_part(part_id(part)?, purge).await }.await;
        let (peer, duration_ms) = (log.peer(), log.end());
        match result {
            Ok(RemovedPart { parts, restorable_until }) => {
                tracing::warn!(call = "Tally/RemovePart", peer, part, purge, parts, duration_ms, "the part is removed");
                let restorable_until = restorable_until.unwrap_or_default();
                Ok(Response::new(RemovePartResponse { parts: parts as u64, restorable_until }))
            }
            Err(error) => {
                tracing::warn!(call = "Tally/RemovePart", peer, part, %error, duration_ms, "refused");
                Err(to_status(&error))
            }
        }
    }

    async fn pack(&self, request: Request<PackRequest>) -> Result<Response<PackResponse>, Status> {
        let log = CallLog::start("Tally/Pack", request.extensions());
        let result = self.0.pack().await;
        let (peer, duration_ms) = (log.peer(), log.end());
        match result {
            Ok(segments_written) => {
                let Overview { segments, unpacked, .. } = self.0.overview();
                tracing::info!(call = "Tally/Pack", peer, segments_written, segments, unpacked, duration_ms, "packed");
                let [segments_written, segments, unpacked_parts] =
                    [segments_written, segments, unpacked].map(|count| count as u64);
                Ok(Response::new(PackResponse { segments_written, segments, unpacked_parts }))
            }
            Err(error) => {
                tracing::warn!(call = "Tally/Pack", peer, %error, duration_ms, "refused");
                Err(to_status(&error))
            }
        }
    }

    async fn restore_part(
        &self,
        request: Request<RestorePartRequest>,
    ) -> Result<Response<RestorePartResponse>, Status> {
        let log = CallLog::start("Tally/RestorePart", request.extensions());
        let part = request.get_ref().part;
        audit::about_part(request.extensions(), part);
        let result = async { self.0.restore_part(part_id(part)?).await }.await;
        let (peer, duration_ms) = (log.peer(), log.end());
        match result {
            Ok(parts) => {
                tracing::warn!(call = "Tally/RestorePart", peer, part, parts, duration_ms, "the part is restored");
                Ok(Response::new(RestorePartResponse { parts: parts as u64 }))
            }
            Err(error) => {
                tracing::warn!(call = "Tally/RestorePart", peer, part, %error, duration_ms, "refused");
                Err(to_status(&error))
            }
        }
    }

    async fn list_removed(
        &self,
        request: Request<ListRemovedRequest>,
    ) -> Result<Response<ListRemovedResponse>, Status> {
        let after = PartId::new(request.into_inner().after);
        Ok(Response::new(to_removed(self.0.removed_parts(after, REMOVED_LISTED_MAX))))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<Answers<VerifyProgress>>, Status> {
        let log = CallLog::start("Tally/Verify", request.extensions());
        let (call, Caller { origin, .. }) = (OpenCall::of(request.extensions())?, Caller::of(request.extensions()));
        let VerifyRequest { process } = request.into_inner();
        let verification = match self.begin_verification(origin, process).await {
            Ok(verification) => verification,
            Err(error) => {
                tracing::warn!(call = "Tally/Verify", peer = log.peer(), error = %Logged(&error), duration_ms = log.end(), "refused");
                return Err(to_status(&error));
            }
        };
        call.set_pace(verification.pace());
        let progress = stream::try_unfold((verification, 0, log), |(mut verification, damaged, log)| async move {
            match verification.next().await {
                Ok(Some(progress)) => {
                    let damaged = damaged + progress.damaged.len();
                    Ok(Some((to_progress(progress), (verification, damaged, log))))
                }
                Ok(None) => {
                    tracing::info!(
                        call = "Tally/Verify",
                        peer = log.peer(),
                        damaged,
                        duration_ms = log.end(),
                        "verified"
                    );
                    Ok(None)
                }
                Err(error) => {
                    tracing::warn!(call = "Tally/Verify", peer = log.peer(), error = %Logged(&error), duration_ms = log.end(), "refused");
                    Err(to_status(&error))
                }
            }
        });
        Ok(Response::new(progress.boxed()))
    }
}

impl TallyService {
    /// The service, for a gRPC server.
    pub(crate) fn server(engine: Engine) -> TallyServer<Self> {
        TallyServer::new(Self(engine)).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    async fn begin_verification(&self, origin: Origin, process: u64) -> Result<Verification, Error> {
        let own = u64::from(std::process::id());
        if process != 0 && process != own {
            return Err(Error::OtherServer { process, own });
        }
        self.0.verify(origin).await
    }

    async fn forget_part(&self, part: u64) -> Result<usize, Error> {
        let id = PartId::new(part).ok_or(Error::NotInQuarantine { part })?;
        self.0.forget_part(id).await
    }

    async fn groups(&self, origin: Origin, by: Vec<String>, sum: Vec<String>) -> Result<StoredGroups, Error> {
        self.0.group_sum(origin, GroupBy::new(by, sum)?).await
    }
}

fn part_id(part: u64) -> Result<PartId, Error> {
    PartId::new(part).ok_or(Error::NoSuchPart { part })
}

/// A page of receipts, and memory for it until the client has read them. If there is little memory, the page is short.
///
/// Errors, with their text for the log: there is no memory; an index cannot be read.
async fn reserve_page(
    engine: &Engine,
    call: &Call,
    after: Option<PartId>,
    count_max: usize,
) -> Result<(Page, Reservation), (String, Status)> {
    let failed = |error: Error| (Logged(&error).to_string(), to_status(&error));
    let page = engine.receipts_page(after, count_max, RECEIPTS_PAGE_BYTES).await.map_err(failed)?;
    if let Ok(reservation) = call.try_reserve(page.bytes) {
        return Ok((page, reservation));
    }
    let page = engine.receipts_page(after, count_max, RECEIPTS_PAGE_BYTES_MIN).await.map_err(failed)?;
    let reservation = call.reserve(page.bytes).map_err(|exhausted| {
        let status = Status::from(exhausted);
        (status.message().to_owned(), status)
    })?;
    Ok((page, reservation))
}

/// The receipts of a page as answers, which keep its reservation until the last one.
fn receipts_of(
    page: Vec<Result<EngineReceipt, UnreadablePart>>,
    reservation: Reservation,
) -> impl Stream<Item = Result<Receipt, Status>> {
    stream::iter(page).map(move |receipt| {
        let _until_the_last = &reservation;
        Ok(receipt.map_or_else(to_unreadable, to_receipt))
    })
}
