//! The gRPC server: its services, and the bounds of each connection.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::try_join3};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::connections::connections;
use crate::{
    api::{
        grpc::{self, adapter::UploadLayer, count::CountLayer, pb},
        metrics::Metrics,
    },
    engine::Engine,
    error::Error,
    limits::{
        CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HEADER_LIST_BYTES_MAX, STREAM_WINDOW_BYTES,
        STREAMS_PER_CONNECTION_MAX, WIDE_CONNECTION_WINDOW_BYTES, WIDE_FRAME_BYTES_MAX, WIDE_STREAM_WINDOW_BYTES,
    },
};

/// How often a silent connection is asked whether it is still there, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves gRPC until `stopped`, and then until what runs has been answered.
pub(super) async fn serve_grpc(
    listeners: Vec<TcpListener>,
    engine: &Engine,
    metrics: Arc<Metrics>,
    health: HealthServer<impl Health>,
    stopped: impl Future<Output = ()>,
) -> Result<(), Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let internal = |error: tonic_reflection::server::Error| Error::Internal(format!("reflection: {error}"));
    let (v1, v1alpha) = (reflection().build_v1().map_err(internal)?, reflection().build_v1alpha().map_err(internal)?);
    let stopped = stopped.shared();
    // All connections of a tonic server have the same bounds, so there are two of them.
    let serve_all = |stream_window, connection_window, frame, connections| {
        Server::builder()
            .initial_stream_window_size(u32::try_from(stream_window).ok())
            .initial_connection_window_size(u32::try_from(connection_window).ok())
            .max_frame_size(u32::try_from(frame).ok())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(CountLayer(Arc::clone(&metrics)))
            .layer(UploadLayer)
            .add_service(health.clone())
            .add_service(v1.clone())
            .add_service(v1alpha.clone())
            .add_service(grpc::table_server(engine.clone()))
            .add_service(grpc::numstore_server(engine.clone()))
            .add_service(grpc::tally_server(engine.clone()))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections).map(Ok::<_, Infallible>), stopped.clone())
    };
    let ((to_wide, wide), (to_others, others)) = (mpsc::channel(1), mpsc::channel(1));
    let wide = serve_all(WIDE_STREAM_WINDOW_BYTES, WIDE_CONNECTION_WINDOW_BYTES, WIDE_FRAME_BYTES_MAX, wide);
    let others = serve_all(STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, others);
    let admit = async {
        let mut admitted = std::pin::pin!(connections(listeners).take_until(stopped.clone()));
        while let Some(connection) = admitted.next().await {
            let to = if connection.is_wide() { &to_wide } else { &to_others };
            // If nobody takes it, that server has stopped.
            let _taken_or_closed = to.send(connection).await;
        }
        drop((to_wide, to_others));
        Ok(())
    };
    let served = try_join3(wide, others, admit).await;
    served.map(|((), (), ())| ()).map_err(|error| Error::Internal(format!("server: {error}")))
}
