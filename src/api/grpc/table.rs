//! The service `Table`, whose clients come from a course project.

use tonic::{Request, Response, Status};

use super::{
    call_log::CallLog,
    client_body::Content,
    convert::to_reply,
    upload::{answer, upload},
};
use crate::{
    access::audit,
    engine::{ColumnSum, DialectFrom, Engine, Read},
    error::{Error, logged::Logged, quoted::Quoted},
    limits::REQUEST_BYTES_MAX,
    model::format::Format,
    proto::pb::{
        ColSumReq, ColSumResp, UploadReq, UploadResp,
        table_server::{Table, TableServer},
    },
};

/// The handlers of `Table`.
pub(crate) struct TableService(Engine);

#[tonic::async_trait]
impl Table for TableService {
    /// The message is empty: `upload_layer` passes its content in the request's extensions.
    async fn upload(&self, request: Request<UploadReq>) -> Result<Response<UploadResp>, Status> {
        let extensions = request.extensions();
        let result =
            upload(&self.0, extensions, Content::take(extensions)?, DialectFrom::Call(None), "Table/Upload").await;
        let replayed = result.as_ref().is_ok_and(|uploaded| uploaded.replayed);
        let reply = to_reply(result, |_| UploadResp { error: String::new() }, |error| UploadResp { error })?;
        Ok(answer(reply, replayed))
    }

    async fn column_sum(&self, request: Request<ColSumReq>) -> Result<Response<ColSumResp>, Status> {
        let log = CallLog::start("Table/ColumnSum", request.extensions());
        let (_, extensions, ColSumReq { column, format }) = request.into_parts();
        let result = self.sum(&column, &format).await;
        let (peer, duration_ms) = (log.peer(), log.end());
        let (column, format) = (Quoted(&column), Quoted(&format));
        match &result {
            Ok(ColumnSum { total, read: Read { parts, rows, bytes } }) => {
                tracing::info!(call = "Table/ColumnSum", peer, %column, %format, total, parts, rows, bytes, duration_ms, "summed");
            }
            Err(error) => {
                audit::failed(&extensions);
                tracing::warn!(call = "Table/ColumnSum", peer, %column, %format, error = %Logged(error), duration_ms, "refused")
            }
        }
        let ok = |sum: ColumnSum| ColSumResp { total: sum.total, error: String::new() };
        Ok(Response::new(to_reply(result, ok, |error| ColSumResp { total: 0, error })?))
    }

    async fn col_sum(&self, request: Request<ColSumReq>) -> Result<Response<ColSumResp>, Status> {
        self.column_sum(request).await
    }
}

impl TableService {
    /// The service, for a gRPC server.
    pub(crate) fn server(engine: Engine) -> TableServer<Self> {
        TableServer::new(Self(engine)).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    async fn sum(&self, column: &str, format: &str) -> Result<ColumnSum, Error> {
        self.0.column_sum(column, format.parse::<Format>()?).await
    }
}
