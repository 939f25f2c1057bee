//! A server inside the test that answers what the real one does not: it is full, not serving, slow or wrong.

use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use tally::proto::pb::{
    FactRequest, FactResponse, SetNumRequest, SetNumResponse,
    num_store_server::{NumStore, NumStoreServer},
    tally::{
        DamagedFile, ForgetRequest, ForgetResponse, GroupBlock, GroupSumRequest, ListColumnsRequest, ListFilesRequest,
        ListFilesResponse, ListPartsRequest, ListQuarantineRequest, ListQuarantineResponse, ListRemovedRequest,
        ListRemovedResponse, PackRequest, PackResponse, Receipt, RemovePartRequest, RemovePartResponse,
        RestorePartRequest, RestorePartResponse, SumRequest, SumResponse, TableColumn, UploadChunk, VerifyProgress,
        VerifyRequest,
        tally_server::{Tally, TallyServer},
    },
};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;

/// A server in this process that is not serving, whose disk is full, and whose lists end with an error.
pub(crate) struct StandIn {
    _runtime: Runtime,
    pub(crate) address: String,
}

impl StandIn {
    pub(crate) fn start() -> Self {
        Self::with(Wrong)
    }

    pub(crate) fn with(numstore: impl NumStore) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (reporter, health) = tonic_health::server::health_reporter();
        runtime.block_on(reporter.set_service_status("", ServingStatus::NotServing));
        let server = tonic::transport::Server::builder()
            .add_service(health)
            .add_service(TallyServer::new(Full))
            .add_service(NumStoreServer::new(numstore));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { _runtime: runtime, address }
    }
}

struct Full;

#[tonic::async_trait]
impl Tally for Full {
    type ListPartsStream = BoxStream<'static, Result<Receipt, Status>>;
    type ListColumnsStream = BoxStream<'static, Result<TableColumn, Status>>;
    type ListFilesStream = BoxStream<'static, Result<ListFilesResponse, Status>>;
    type GroupSumStream = BoxStream<'static, Result<GroupBlock, Status>>;
    type VerifyStream = BoxStream<'static, Result<VerifyProgress, Status>>;

    async fn upload(&self, _: Request<Streaming<UploadChunk>>) -> Result<Response<Receipt>, Status> {
        Err(Status::resource_exhausted("the disk is full: \u{1b}[31m0 bytes are left"))
    }

    async fn list_parts(&self, _: Request<ListPartsRequest>) -> Result<Response<Self::ListPartsStream>, Status> {
        let receipt = Receipt { part: 1, rows: 2, uploaded_at: "\u{1b}[31mtoday".to_owned(), ..Receipt::default() };
        Ok(Response::new(stream::iter([Ok(receipt), Err(Status::data_loss("part 2 is damaged"))]).boxed()))
    }

    async fn sum(&self, _: Request<SumRequest>) -> Result<Response<SumResponse>, Status> {
        Ok(Response::new(SumResponse::default()))
    }

    async fn group_sum(&self, _: Request<GroupSumRequest>) -> Result<Response<Self::GroupSumStream>, Status> {
        Err(Status::unavailable("the server is shutting down"))
    }

    /// A server that is older than this call.
    async fn list_columns(&self, _: Request<ListColumnsRequest>) -> Result<Response<Self::ListColumnsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    /// A server that is older than this call.
    async fn list_files(&self, _: Request<ListFilesRequest>) -> Result<Response<Self::ListFilesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    /// A server that is older than this call.
    async fn list_quarantine(
        &self,
        _: Request<ListQuarantineRequest>,
    ) -> Result<Response<ListQuarantineResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let damaged = DamagedFile { file: "parts/1.csv".to_owned(), what: "\u{1b}[31mdamaged".to_owned() };
        let progress = VerifyProgress { files: 1, bytes: 2, damaged: vec![damaged] };
        Ok(Response::new(stream::iter([Ok(progress), Err(Status::unavailable("shutting down"))]).boxed()))
    }

    async fn remove_part(&self, request: Request<RemovePartRequest>) -> Result<Response<RemovePartResponse>, Status> {
        Err(Status::not_found(format!("there is no part {}", request.into_inner().part)))
    }

    async fn restore_part(
        &self,
        request: Request<RestorePartRequest>,
    ) -> Result<Response<RestorePartResponse>, Status> {
        Err(Status::not_found(format!("there is no part {}", request.into_inner().part)))
    }

    async fn pack(&self, _: Request<PackRequest>) -> Result<Response<PackResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_removed(&self, _: Request<ListRemovedRequest>) -> Result<Response<ListRemovedResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        Err(Status::not_found(format!("part {} is not in quarantine", request.into_inner().part)))
    }
}

/// Answers after some time.
pub(crate) struct Slow;

pub(crate) const SLOW_MS: u64 = 20;

#[tonic::async_trait]
impl NumStore for Slow {
    async fn set_num(&self, _: Request<SetNumRequest>) -> Result<Response<SetNumResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(SLOW_MS)).await;
        Ok(Response::new(SetNumResponse { total: 1 }))
    }

    async fn fact(&self, _: Request<FactRequest>) -> Result<Response<FactResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(SLOW_MS)).await;
        Ok(Response::new(FactResponse { value: 1, hit: false, error: String::new() }))
    }
}

/// Gives wrong factorials, and refuses to set a number.
struct Wrong;

#[tonic::async_trait]
impl NumStore for Wrong {
    async fn set_num(&self, request: Request<SetNumRequest>) -> Result<Response<SetNumResponse>, Status> {
        match request.into_inner().value {
            15 => Err(Status::resource_exhausted("there are 0 keys, which is the limit")),
            value => Ok(Response::new(SetNumResponse { total: value })),
        }
    }

    async fn fact(&self, request: Request<FactRequest>) -> Result<Response<FactResponse>, Status> {
        match request.into_inner().key.as_str() {
            "key0" => Ok(Response::new(FactResponse { value: 121, hit: true, error: String::new() })),
            "key1" => {
                Ok(Response::new(FactResponse { error: "key \"key1\" is not set".to_owned(), ..Default::default() }))
            }
            "key2" => {
                Ok(Response::new(FactResponse { error: "key \"key0\" is not set".to_owned(), ..Default::default() }))
            }
            _ => std::future::pending().await,
        }
    }
}
