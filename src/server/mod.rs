//! `tally serve`: starts the server, and drains it after a signal. No request logic belongs here.
//!
//! This folder calls src/api/, which never imports it.

use std::{
    future::Future,
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::select;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use self::{
    access_files::AccessFiles,
    audit_file::AuditLog,
    capacity::Capacity,
    connections::ConnectionIds,
    grpc::{Entry, serve_grpc, services},
    http::{HTTP_SHORT_HEAD_MAX, Handler, serve_http, serve_probes},
    listen::{addresses_of, bind},
    logging::{Log, start_logging},
    signals::signals,
    tls::Acceptor,
};
use crate::{
    access::{
        audit::{Audit, Event},
        pages::PageRules,
    },
    api::{
        grpc::call_budget::CallBudget,
        http::{
            events::compute_events,
            router::{probe_router, router},
            surface::Surface,
        },
        metrics::Metrics,
    },
    config::{Config, ServeArgs},
    engine::{Engine, Loaded, RecoveryReport, runtime::part_engine::Cluster, state::jobs::JOB_EVENTS},
    error::{Error, logged::log_values},
    model::part::PartId,
};

mod access_files;
mod audit_file;
mod capacity;
mod connections;
mod grpc;
mod http;
mod http2;
mod listen;
mod log_file;
mod log_queue;
mod logging;
mod preface;
mod signals;
mod tls;
mod usage;
mod wide;

/// How long running calls may take to finish after a signal.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How long workers may go on after that.
const WORKERS_END_MAX: Duration = Duration::from_secs(5);

/// The names that the health service knows; the empty name is the whole server.
const SERVICES: [&str; 4] = ["", "Table", "NumStore", "tally.v1.Tally"];

/// Runs `tally serve` until a signal has drained it. The exit code is 0; 1 if the server fails, or 2 for flags that
/// contradict each other, both with a line on standard error.
pub async fn serve_command(args: ServeArgs) -> ExitCode {
    serve_with(args, None).await
}

/// As [`serve_command`]. If there is a cluster, its machines read the parts for sums, group sums and statistics.
pub async fn serve_with(args: ServeArgs, cluster: Option<Arc<dyn Cluster>>) -> ExitCode {
    let config = match Config::of(&args) {
        Ok(config) => config,
        Err(error) => {
            let _nobody_reads_it = writeln!(io::stderr(), "error: {error}");
            return ExitCode::from(2);
        }
    };
    let result = async {
        config.file_mode.set_umask();
        log_values(args.log_values);
        let log = Arc::new(start_logging(&args, config.log_file.as_ref())?);
        let shutdown = signals(Arc::clone(&log)).map_err(|error| format!("signal handlers: {error}"))?;
        let served = serve(config, cluster, &log, shutdown).await.map_err(|error| error.to_string());
        log.flush();
        served
    };
    match result.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_reads_it = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until `shutdown` completes and then all running calls have finished, or [`DRAIN_MAX`] has passed.
///
/// Errors: the data folder or an address cannot be used.
async fn serve(
    config: Config,
    cluster: Option<Arc<dyn Cluster>>,
    log: &Log,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    // Before the data folder is opened, so that a file that cannot be written is told at once; and closed after all else.
    let audit_log = config.audit_log.as_ref().map(AuditLog::start).transpose()?;
    let audit = audit_log.as_ref().map(|log| log.audit.clone());
    let capacity = Capacity::find(config.access.tls.is_some())?;
    let mut limits = config.limits;
    limits.uploads_max = limits.uploads_max.min(capacity.uploads_max);
    let hangups = AccessFiles::hangups(&config.access).map_err(Error::io("signal handlers"))?;
    let (engine, found) = Engine::open_with(&config.data, config.durability, limits, cluster).await?;
    report(&found);
    tracing::debug!(target: JOB_EVENTS, threads = limits.jobs.statistics_at_once, "statistics that run at once");
    engine.apply_file_mode(config.file_mode).await?;
    // Before files are loaded, which may take hours.
    let files = AccessFiles::read(&config.access, &engine, audit).await?;
    let mut shutdown = Box::pin(shutdown);
    if !load(&engine, &config, files.access.audit(), &mut shutdown).await? {
        close(&engine).await;
        return Ok(());
    }
    let access = files.access.clone();
    let metrics = Arc::new(Metrics::new(&log.counts));
    let (idle_max, long_calls_max) = (limits.upload_idle_max, capacity.long_calls_max);
    let surface = Surface::new(
        engine.clone(),
        Arc::clone(&metrics),
        access.clone(),
        PageRules::new(config.allowed_origins.clone(), config.allowed_hosts.clone()),
        idle_max,
        long_calls_max,
    );
    let (listeners, http_listeners, probe_listeners) = (bind(&config.grpc)?, bind(&config.http)?, bind(&config.probe)?);
    files.record(files.started());
    log.flush(); // the report comes before the ready line
    say_ready(&config, [&listeners, &http_listeners, &probe_listeners], &engine, &found)?;

    let (health_reporter, health) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health_reporter.set_service_status(service, ServingStatus::Serving).await;
    }
    let budget = CallBudget::new(engine.call_idle_max());
    let services = services(&engine, metrics, health, &budget, access.audit().is_some())?;
    // Each server gets the time since when it drains.
    let (stop, stopped) = watch::channel(None);
    let (stop_http, http_stopped) = watch::channel(None);
    let ids = ConnectionIds::default();
    let until_stopped = wait_for_stop(stopped.clone());
    let [grpc_acceptor, acceptor] = files.acceptors();
    let entry = Entry { acceptor: grpc_acceptor, access: access.clone(), wide_max: capacity.wide_max };
    let grpc = serve_grpc(listeners, capacity.grpc, ids.clone(), entry, budget, services, until_stopped);
    let handler = Handler { router: router(surface.clone()), access: access.clone(), acceptor, idle_max };
    let until_stopped = wait_for_stop(http_stopped.clone());
    let http = serve_http(http_listeners, capacity.http, ids.clone(), handler, until_stopped);
    let (router, idle_max) = (probe_router(surface.clone()), HTTP_SHORT_HEAD_MAX);
    let handler = Handler { router, access, acceptor: Acceptor(None), idle_max };
    let probes = serve_probes(probe_listeners, capacity.probes, ids, handler, wait_for_stop(http_stopped));
    // HTTP stops after gRPC, so that probes see the drain and clients can ask for the states of jobs.
    let server = async {
        let grpc = async {
            grpc.await;
            stop_http.send_replace(*stopped.borrow());
        };
        tokio::select! {
            _ended = async { tokio::join!(grpc, http, probes, compute_events(&surface)) } => {}
            () = files.reread_at(hangups) => {}
        }
    };

    let drained = Box::pin(drain(shutdown, &files, &surface, &health_reporter, &stop));
    select(Box::pin(server), drained).await;
    close(&engine).await;
    files.record(Event::Stopped);
    tracing::info!("stopped");
    Ok(())
}

/// Tells all who ask, after `shutdown`, that the server drains, and stops gRPC. Completes when what still runs is cut off.
async fn drain(
    shutdown: impl Future<Output = ()>,
    files: &AccessFiles,
    surface: &Surface,
    health: &HealthReporter,
    stop: &watch::Sender<Option<Instant>>,
) {
    shutdown.await;
    tracing::info!("draining");
    files.record(Event::Draining);
    surface.drain();
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    stop.send_replace(Some(Instant::now()));
    sleep(DRAIN_MAX).await;
    tracing::warn!("calls still ran after {} s and were cut off", DRAIN_MAX.as_secs());
}

/// Ends the workers, which may still write what was queued before, such as the states of jobs.
async fn close(engine: &Engine) {
    engine.close();
    if timeout(WORKERS_END_MAX, engine.closed()).await.is_err() {
        tracing::warn!("workers still ran after {} s and were cut off", WORKERS_END_MAX.as_secs());
    }
}

/// Completes when the server is to stop, with the time since when.
async fn wait_for_stop(mut moment: watch::Receiver<Option<Instant>>) -> Instant {
    let stopped = moment.wait_for(Option::is_some).await;
    stopped.ok().and_then(|moment| *moment).unwrap_or_else(Instant::now)
}

fn report(found: &RecoveryReport) {
    if found.leftovers > 0 {
        let parts = found.removed_parts.iter().map(PartId::to_string).collect::<Vec<_>>().join(" ");
        tracing::warn!(
            files = found.leftovers,
            parts = &*parts,
            "removed files of uploads that were never acknowledged; the named parts had files but no receipt"
        );
    }
    for (job, reason) in &found.jobs_quarantined {
        tracing::error!(job, reason, "moved to quarantine: the job is unknown from now on");
    }
    for (part, reason) in &found.quarantined {
        tracing::error!(%part, %reason, "moved to quarantine: the part is missing from the table");
    }
    for (segment, reason) in &found.segments_quarantined {
        tracing::error!(%segment, %reason, "moved to quarantine: all parts of the segment are missing from the table");
    }
    if let Some(error) = found.missing.error() {
        tracing::error!(parts = found.missing.count(), "{error}");
    }
}

/// Adds the files of `--load` to the table. Returns `false` if `shutdown` completed before.
async fn load(
    engine: &Engine,
    config: &Config,
    audit: Option<&Audit>,
    mut shutdown: impl Future<Output = ()> + Unpin,
) -> Result<bool, Error> {
    for file in &config.load {
        let loaded = tokio::select! {
            loaded = engine.load(file, &config.load_dialect) => loaded,
            () = &mut shutdown => return Ok(false),
        };
        match loaded.map_err(|error| Error::Load { file: file.clone(), cause: Box::new(error) })? {
            Loaded::Now(part) => {
                tracing::info!(%part, file = %file.display(), "loaded");
                if let Some(audit) = audit {
                    audit.event(Event::Loaded { part: part.get() });
                }
            }
            Loaded::Before(part) => tracing::info!(%part, file = %file.display(), "is in the table already"),
            Loaded::Removed(part) => tracing::warn!(
                %part, file = %file.display(),
                "not loaded: this part holds the same rows and was removed. Restore it with tally restore, or purge it with tally remove --purge and start again"
            ),
            Loaded::InQuarantine(part) => tracing::error!(
                %part, file = %file.display(),
                "not loaded: this part is in quarantine and may hold the same rows. Restore it, or accept the loss with tally forget, and start again"
            ),
        }
    }
    Ok(true)
}

/// Writes the only line on standard output, for people and for programs that wait for it.
fn say_ready(
    config: &Config,
    [grpc, http, probe]: [&[TcpListener]; 3],
    engine: &Engine,
    found: &RecoveryReport,
) -> Result<(), Error> {
    let mut line = format!("ready: grpc {}", addresses_of(grpc)?);
    if !http.is_empty() {
        line += &format!("; http {}", addresses_of(http)?);
    }
    if !probe.is_empty() {
        line += &format!("; probe {}", addresses_of(probe)?);
    }
    let (parts, data) = (engine.parts_count(), config.data.display());
    let plural = if parts == 1 { "" } else { "s" };
    line += &format!("; {parts} part{plural} in {data}");
    if found.missing.count() > 0 {
        line += &format!(", {} in quarantine", found.missing.count());
    }
    let mut out = io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::io("standard output"))
}
