//! The gRPC server: its services, the layers before them, and the limits of each connection.

use std::{convert::Infallible, sync::Arc, time::Instant};

use http::Extensions;
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::graceful::GracefulConnection,
};
use tokio::{net::TcpListener, sync::OwnedSemaphorePermit, time::timeout_at};
use tonic::{Status, body::Body, service::Routes};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::{Service, ServiceExt};

use super::{
    connections::{Accepted, Bounds, ConnectionIds, serve},
    http2::http2_server,
    preface::Prefaced,
    tls::{Acceptor, Transport},
    usage::{FollowedAnswer, Usage, follow},
    wide::WideServer,
};
use crate::{
    access::{
        Access,
        audit::{Audit, AuditedCall, Outcome},
    },
    api::{
        grpc::{
            access_layer::{AccessService, Verdict},
            budget_layer::BudgetService,
            call_budget::{Account, CallBudget},
            metrics_layer::MetricsService,
            numstore::NumStoreService,
            request_head::{Deadline, TooLong, without_unused_headers},
            table::TableService,
            tally::TallyService,
            upload_layer::UploadService,
        },
        metrics::Metrics,
    },
    engine::Engine,
    error::Error,
    limits::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX},
    proto::pb,
};

/// The health check, which is answered on every connection.
const PROBE_PATH: &str = "/grpc.health.v1.Health/Check";
/// The call that waits for changes of the health for as long as the client wants.
const WATCH_PATH: &str = "/grpc.health.v1.Health/Watch";

/// What a connection, and each of its calls, passes before it reaches the services.
pub(super) struct Entry {
    pub(super) acceptor: Acceptor,
    pub(super) access: Access,
    /// Connections that are wide.
    pub(super) wide_max: usize,
}

/// Serves gRPC until `stopped`, and then until all running calls have been answered.
pub(super) async fn serve_grpc(
    listeners: Vec<TcpListener>,
    bounds: Bounds,
    ids: ConnectionIds,
    Entry { acceptor, access, wide_max }: Entry,
    budget: CallBudget,
    services: impl CallService,
    stopped: impl Future<Output = Instant>,
) {
    let mut usual = http2_server(STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX);
    usual.max_concurrent_streams(STREAMS_PER_CONNECTION_MAX);
    let wide = WideServer::new(wide_max);
    let connect = |Accepted { stream, usage, .. }: Accepted| {
        let wide_permit = wide.permit();
        let server = if wide_permit.is_some() { &wide.server } else { &usual };
        let account = budget.open_account(usage.caller.close.clone(), usage.caller.peer);
        let stream = acceptor.accept(stream);
        connection(server, stream, usage, account, (access.clone(), services.clone()), wide_permit)
    };
    tokio::select! {
        () = serve(listeners, bounds, ids, connect, stopped) => {}
        never = budget.close_stalled() => match never {},
    }
}

/// The services and their layers.
pub(super) trait CallService:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> CallService for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

/// All services behind the layers that each call passes before it reaches them.
pub(super) fn services(
    engine: &Engine,
    metrics: Arc<Metrics>,
    health: HealthServer<impl Health>,
    budget: &CallBudget,
    has_audit: bool,
) -> Result<impl CallService, Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let internal = |error: tonic_reflection::server::Error| Error::Internal(format!("reflection: {error}"));
    let routes = Routes::new(health)
        .add_service(reflection().build_v1().map_err(internal)?)
        .add_service(reflection().build_v1alpha().map_err(internal)?)
        .add_service(TableService::server(engine.clone()))
        .add_service(NumStoreService::server(engine.clone()))
        .add_service(TallyService::server(engine.clone()))
        .prepare();
    let inner = AccessService { inner: BudgetService::new(UploadService { inner: routes }, budget) };
    Ok(MetricsService { inner, metrics, has_audit })
}

fn connection(
    server: &http2::Builder<TokioExecutor>,
    stream: Transport,
    usage: Arc<Usage>,
    account: Option<Account>,
    (access, services): (Access, impl CallService),
    wide_permit: Option<OwnedSemaphorePermit>,
) -> impl GracefulConnection<Error = hyper::Error> + Send + 'static {
    let certificate = stream.certificate();
    let service = service_fn(move |request| {
        let _until_the_connection_ends = &wide_permit;
        // Here and not in the call's task, because many calls may wait for their tasks to be polled.
        let shown = access.shown(request.headers(), certificate.name());
        let peer = usage.caller.peer.map(|peer| peer.ip());
        let verdict = Verdict::of(&access, request.uri().path(), &shown, peer);
        let mut request = without_unused_headers(request);
        let is_refused = verdict.is_refusal();
        request.extensions_mut().insert(verdict);
        if access.audit().is_some()
            && Audit::takes(request.uri().path(), is_refused)
            && let Some(call) = access.audited(request.uri().path(), Some(&shown), usage.caller.peer)
        {
            request.extensions_mut().insert(call);
        }
        if let Some(account) = account.clone() {
            request.extensions_mut().insert(account);
        }
        answer(Arc::clone(&usage), services.clone(), request)
    });
    server.serve_connection(TokioIo::new(Box::pin(Prefaced::new(stream))), service)
}

/// Answers one call. A health check is answered on every connection, and so is a call that will be refused; other calls only on
/// those that may be used for them.
async fn answer(
    usage: Arc<Usage>,
    services: impl CallService,
    request: Request<Incoming>,
) -> Result<Response<FollowedAnswer<Body>>, Infallible> {
    let is_probe = request.uri().path() == PROBE_PATH;
    let is_watch = request.uri().path() == WATCH_PATH;
    let needs_permit = !is_probe && !Verdict::refuses(request.extensions());
    follow(&usage, is_watch, request, async |request| {
        if needs_permit && usage.admit().await.is_err() {
            let status = Status::resource_exhausted("too many connections are in use: try again");
            return Ok(refused(request.extensions(), status));
        }
        if let Some(refusal) = TooLong::refusal_of(request.extensions()) {
            return Ok(refused(request.extensions(), refusal));
        }
        let deadline = Deadline::of(request.extensions());
        let answered = services.oneshot(request.map(Body::new));
        match deadline {
            None => answered.await,
            Some(deadline) => timeout_at(deadline, answered)
                .await
                .unwrap_or_else(|_elapsed| Ok(Status::deadline_exceeded("the call's time is up").into_http())),
        }
    })
    .await
}

/// The answer to a call that does not reach the services, which would give it its line in the audit log.
fn refused(call: &Extensions, status: Status) -> Response<Body> {
    if let Some(audited) = call.get::<AuditedCall>() {
        audited.end(Outcome::Refused, &format!("{:?}", status.code()));
    }
    status.into_http()
}
