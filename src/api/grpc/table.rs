//! P3's service `Table`.

use tonic::{Request, Response, Status};

use super::{CallLog, adapter::Content, convert::to_reply};
use crate::{
    api::Caller,
    engine::{ColumnSum, Engine, Read},
    error::{Error, logged::Logged, quoted::Quoted},
    model::format::Format,
    proto::pb::{ColSumReq, ColSumResp, UploadReq, UploadResp, table_server::Table},
};

/// The handlers of `Table`.
pub struct TableService(pub(super) Engine);

#[tonic::async_trait]
impl Table for TableService {
    /// The message is empty: its content comes beside it, as the client sends it.
    async fn upload(&self, request: Request<UploadReq>) -> Result<Response<UploadResp>, Status> {
        let caller = Caller::of(request.extensions());
        let result = super::upload(&self.0, caller, Content::take(request.extensions())?, "Table/Upload").await;
        let reply = to_reply(result, |_| UploadResp { error: String::new() }, |error| UploadResp { error })?;
        Ok(Response::new(reply))
    }

    async fn column_sum(&self, request: Request<ColSumReq>) -> Result<Response<ColSumResp>, Status> {
        let log = CallLog::start("Table/ColumnSum", request.extensions());
        let ColSumReq { column, format } = request.into_inner();
        let result = self.sum(&column, &format).await;
        let (peer, ms) = (log.peer(), log.end());
        let (column, format) = (Quoted(&column), Quoted(&format));
        match &result {
            Ok(ColumnSum { total, read: Read { parts, rows, bytes } }) => {
                tracing::info!(call = "Table/ColumnSum", peer, %column, %format, total, parts, rows, bytes, ms, "summed");
            }
            Err(error) => {
                tracing::warn!(call = "Table/ColumnSum", peer, %column, %format, error = %Logged(error), ms, "refused")
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
    async fn sum(&self, column: &str, format: &str) -> Result<ColumnSum, Error> {
        self.0.column_sum(column, format.parse::<Format>()?).await
    }
}
