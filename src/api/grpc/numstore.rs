//! The service `NumStore`, whose clients come from an earlier course project. Its calls are many and small, so those
//! that succeed are logged at the level debug.

use tonic::{Request, Response, Status};

use super::convert::{to_reply, to_status};
use crate::{
    api::caller::Caller,
    engine::{Engine, Factorial},
    error::Error,
    limits::REQUEST_BYTES_MAX,
    proto::pb::{
        FactRequest, FactResponse, SetNumRequest, SetNumResponse,
        num_store_server::{NumStore, NumStoreServer},
    },
};

/// The handlers of `NumStore`.
pub(crate) struct NumStoreService(Engine);

#[tonic::async_trait]
impl NumStore for NumStoreService {
    async fn set_num(&self, request: Request<SetNumRequest>) -> Result<Response<SetNumResponse>, Status> {
        let peer = Caller::peer_of(request.extensions());
        let SetNumRequest { key, value } = request.into_inner();
        let result = self.set_key(key, value).await;
        match &result {
            Ok(total) => tracing::debug!(call = "NumStore/SetNum", peer, value, total, "set"),
            Err(error) => tracing::warn!(call = "NumStore/SetNum", peer, value, %error, "refused"),
        }
        result.map(|total| Response::new(SetNumResponse { total })).map_err(|error| to_status(&error))
    }

    async fn fact(&self, request: Request<FactRequest>) -> Result<Response<FactResponse>, Status> {
        let peer = Caller::peer_of(request.extensions());
        let result = self.factorial_of(request.into_inner().key).await;
        match &result {
            Ok(Factorial { factorial, hit }) => {
                tracing::debug!(call = "NumStore/Fact", peer, factorial, hit, "answered")
            }
            // A client that has just begun usually asks for keys that are not set yet.
            Err(error) => tracing::debug!(call = "NumStore/Fact", peer, %error, "refused"),
        }
        let ok = |Factorial { factorial, hit }| FactResponse { value: factorial, hit, error: String::new() };
        Ok(Response::new(to_reply(result, ok, |error| FactResponse { value: 0, hit: false, error })?))
    }
}

impl NumStoreService {
    /// The service, for a gRPC server.
    pub(crate) fn server(engine: Engine) -> NumStoreServer<Self> {
        NumStoreServer::new(Self(engine)).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    async fn set_key(&self, key: String, value: i64) -> Result<i64, Error> {
        self.0.set_number(key.try_into()?, value).await
    }

    async fn factorial_of(&self, key: String) -> Result<Factorial, Error> {
        self.0.factorial(key.try_into()?).await
    }
}
