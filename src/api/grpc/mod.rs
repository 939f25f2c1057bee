//! gRPC: protobuf to the engine and back. Handlers are three moves: convert in, one engine call, convert out.
//!
//! `frames` and `adapter` make every upload a stream, whatever its messages are on the wire. `budget` and `hold` bound what
//! calls hold in memory.

use std::{net::SocketAddr, time::Instant};

use futures_util::{Stream, TryStreamExt};
use tonic::{Extensions, Status};
use tracing::field::{DisplayValue, display};

use self::adapter::ContentStream;
use crate::{
    api::Caller,
    engine::Engine,
    error::{Error, logged::Logged},
    limits::REQUEST_BYTES_MAX,
    model::part::Receipt,
    proto::pb::{num_store_server::NumStoreServer, table_server::TableServer, tally::tally_server::TallyServer},
};

pub(crate) mod adapter;
pub(crate) mod budget;
mod convert;
pub(crate) mod count;
pub(crate) mod frames;
pub(crate) mod hold;
mod numstore;
mod table;
mod tally;

/// P3's service.
pub fn table_server(engine: Engine) -> TableServer<table::TableService> {
    TableServer::new(table::TableService(engine)).max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// P2's service.
pub fn numstore_server(engine: Engine) -> NumStoreServer<numstore::NumStoreService> {
    NumStoreServer::new(numstore::NumStoreService(engine)).max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// What goes beyond both.
pub fn tally_server(engine: Engine) -> TallyServer<tally::TallyService> {
    TallyServer::new(tally::TallyService(engine)).max_decoding_message_size(REQUEST_BYTES_MAX)
}

/// The one upload path: the content to the engine.
async fn upload(
    engine: &Engine,
    Caller { origin, peer, .. }: Caller,
    content: ContentStream,
    call: &'static str,
) -> Result<Receipt, Error> {
    let log = CallLog { call, peer: peer.map(display), started: Instant::now(), ended: false };
    let body = content.map_err(|status| convert::from_status(&status));
    let result = engine.upload_from(origin, body).await;
    let (peer, ms) = (log.peer(), log.end());
    match &result {
        Ok(receipt) => {
            let (part, rows, bytes) = (receipt.part, receipt.rows, receipt.csv.bytes);
            tracing::info!(call, peer, %part, rows, columns = receipt.columns.len(), bytes, ms, "kept");
        }
        Err(error) => tracing::warn!(call, peer, error = %Logged(error), ms, "refused"),
    }
    result
}

/// Sees to it that every call that may take long leaves one line in the log: the one that its handler writes after `end`, or the one that
/// says that the client did not wait for it.
pub(super) struct CallLog {
    call: &'static str,
    peer: Option<DisplayValue<SocketAddr>>,
    started: Instant,
    ended: bool,
}

impl CallLog {
    fn start(call: &'static str, request: &Extensions) -> Self {
        Self { call, peer: Caller::peer_of(request), started: Instant::now(), ended: false }
    }

    /// The client's address, for the same line.
    fn peer(&self) -> Option<DisplayValue<SocketAddr>> {
        self.peer.clone()
    }

    /// The call's duration in ms, for the line that the caller writes now.
    fn end(mut self) -> u128 {
        self.ended = true;
        self.started.elapsed().as_millis()
    }
}

impl Drop for CallLog {
    fn drop(&mut self) {
        if !self.ended {
            tracing::warn!(
                call = self.call,
                peer = self.peer,
                ms = self.started.elapsed().as_millis(),
                "cancelled by the client"
            );
        }
    }
}

/// A stream of answers.
pub(super) type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
