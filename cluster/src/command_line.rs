//! The command line: three roles of one program.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, builder::BoolishValueParser, value_parser};
use tally::{config::ServeArgs, engine::runtime::part_engine::Cluster};

use crate::{
    engine::Ballista,
    executor,
    executor::Executor,
    scheduler,
    tls::{Tls, TlsArgs},
};

/// How often executors tell the scheduler that they are alive, and after how long without that they are taken for dead.
pub(crate) const HEARTBEAT_S: u64 = 1;
pub(crate) const EXECUTOR_TIMEOUT_S: u64 = 5;

/// Tally on several machines: a server whose sums, group sums and statistics are computed by executors, which read the same data folder.
#[derive(Debug, Parser)]
#[command(
    name = "tally-cluster",
    version,
    after_help = "Start one scheduler, an executor on each machine, and one server; docs/cluster.md describes them.\n\
                  Exit codes: 0 done, 1 failed (a line on standard error says why), 2 wrong usage."
)]
pub struct Cli {
    /// The role.
    #[command(subcommand)]
    pub role: Role,
}

/// The roles. The doc comment of each one's arguments is its `--help`.
#[allow(missing_docs)]
#[derive(Debug, Subcommand)]
pub enum Role {
    Serve(Box<ServeRole>),
    Scheduler(SchedulerRole),
    Executor(ExecutorRole),
}

/// Run the server: `tally serve`, whose questions about the table are answered by the executors of a scheduler. Everything else is the same.
#[derive(Args, Debug)]
pub struct ServeRole {
    /// Address of the scheduler, as HOST:PORT. It need not run when the server starts. Without it, the server reads the parts itself.
    #[arg(long, env = "TALLY_SCHEDULER", value_name = "HOST:PORT", value_parser = host_and_port)]
    pub scheduler: Option<HostPort>,

    /// Seconds after which a question to the cluster fails, and its job is cancelled.
    #[arg(long, env = "TALLY_ANSWER_WITHIN_S", value_name = "SECONDS", default_value_t = 600, value_parser = value_parser!(u64).range(1..=86_400))]
    pub answer_within_s: u64,

    /// TLS between the machines.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// What `tally serve` takes.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Run the scheduler, which divides questions among executors.
#[derive(Args, Debug)]
pub struct SchedulerRole {
    /// Address to listen on. Port 0 means a free port, which the ready line names.
    #[arg(long, env = "TALLY_SCHEDULER_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:5450")]
    pub listen: SocketAddr,

    /// Name by which executors reach this scheduler. The address of --listen if it is not given.
    #[arg(long, env = "TALLY_SCHEDULER_HOST", value_name = "NAME")]
    pub host: Option<String>,

    /// How far it is open.
    #[command(flatten)]
    pub reach: Reach,
}

/// Run an executor, which reads parts.
#[derive(Args, Debug)]
pub struct ExecutorRole {
    /// Address of the scheduler, as HOST:PORT.
    #[arg(long, env = "TALLY_SCHEDULER", value_name = "HOST:PORT", value_parser = host_and_port)]
    pub scheduler: HostPort,

    /// The server's data folder, which this machine has mounted. It is only read.
    #[arg(long, env = "TALLY_DATA", value_name = "DIR", default_value = "./tally-data")]
    pub data: PathBuf,

    /// Address to listen on.
    #[arg(long, env = "TALLY_EXECUTOR_LISTEN", value_name = "IP", default_value = "127.0.0.1")]
    pub listen: IpAddr,

    /// Name by which the scheduler and other executors reach this one. The address of --listen if it is not given.
    #[arg(long, env = "TALLY_EXECUTOR_HOST", value_name = "NAME")]
    pub host: Option<String>,

    /// Port for tasks.
    #[arg(long, env = "TALLY_TASK_PORT", value_name = "PORT", default_value_t = 5451, value_parser = value_parser!(u16).range(1..))]
    pub task_port: u16,

    /// Port from which rows are fetched.
    #[arg(long, env = "TALLY_FETCH_PORT", value_name = "PORT", default_value_t = 5452, value_parser = value_parser!(u16).range(1..))]
    pub fetch_port: u16,

    /// Tasks that run at once. As many as there are cores if it is not given.
    #[arg(long, env = "TALLY_SLOTS", value_name = "COUNT", value_parser = value_parser!(u16).range(1..=1024))]
    pub slots: Option<u16>,

    /// Folder for rows until they are fetched, and for groups that do not fit in memory. A folder of this process in the system's if it is not given.
    #[arg(long, env = "TALLY_WORK_DIR", value_name = "DIR")]
    pub work_dir: Option<PathBuf>,

    /// How far it is open.
    #[command(flatten)]
    pub reach: Reach,
}

/// How far a scheduler or an executor is open.
#[derive(Args, Debug)]
pub struct Reach {
    /// TLS between the machines.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Listen on an address that other machines can reach, without TLS. Whoever reaches it can ask for groups of any columns, and so read
    /// the table: use it only in a network that is closed to others.
    #[arg(long, env = "TALLY_INSECURE_ALLOW_ANYONE", value_parser = BoolishValueParser::new())]
    pub insecure_allow_anyone: bool,
}

impl Reach {
    fn check(&self, address: IpAddr, host: Option<&str>) -> Result<(), String> {
        let has_tls = self.tls.cluster_ca.is_some();
        if has_tls && address.is_unspecified() {
            return Err(format!("with TLS, --listen names one address of this machine, and not {address}"));
        }
        if !address.is_loopback() && !has_tls && !self.insecure_allow_anyone {
            let flags = "--cluster-ca, --cluster-cert and --cluster-key, or --insecure-allow-anyone";
            return Err(format!("other machines can reach {address}: this needs {flags}"));
        }
        match address.is_unspecified() && host.is_none() {
            true => Err(format!("--listen {address} needs --host, the name by which others reach this machine")),
            false => Ok(()),
        }
    }
}

/// A host and a port.
#[derive(Clone, Debug)]
pub struct HostPort {
    host: String,
    port: u16,
}

fn host_and_port(text: &str) -> Result<HostPort, String> {
    let wrong = || format!("{text:?} is not HOST:PORT");
    let (host, port) = text.rsplit_once(':').filter(|(host, _port)| !host.is_empty()).ok_or_else(wrong)?;
    let port = port.parse().map_err(|error| format!("{}: {error}", wrong()))?;
    Ok(HostPort { host: host.to_owned(), port })
}

/// Runs a role to its end.
pub async fn run(cli: Cli) -> ExitCode {
    let ended = match cli.role {
        Role::Serve(role) => return serve(*role).await,
        Role::Scheduler(role) => run_scheduler(role).await,
        Role::Executor(role) => run_executor(role).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) -> ExitCode {
    let _nobody_reads_it = writeln!(io::stderr(), "error: {error}");
    ExitCode::FAILURE
}

async fn serve(role: ServeRole) -> ExitCode {
    let Some(HostPort { host, port }) = role.scheduler else {
        return tally::server::serve_with(role.serve, None).await;
    };
    let tls = match Tls::read(&role.tls) {
        Ok(tls) => tls,
        Err(error) => return failed(&error),
    };
    match Ballista::new(&format!("{host}:{port}"), tls, Duration::from_secs(role.answer_within_s)) {
        Ok(cluster) => {
            let cluster = Arc::new(cluster);
            let ended = tally::server::serve_with(role.serve, Some(Arc::clone(&cluster) as Arc<dyn Cluster>)).await;
            cluster.close().await;
            ended
        }
        Err(error) => failed(&format!("--scheduler {host}:{port}: {error}")),
    }
}

async fn run_scheduler(role: SchedulerRole) -> Result<(), String> {
    role.reach.check(role.listen.ip(), role.host.as_deref())?;
    start_logging();
    let run = scheduler::run(role.listen, role.host, Tls::read(&role.reach.tls)?);
    until_signal(async { run.await.map_err(|error| error.to_string()) }).await
}

async fn run_executor(role: ExecutorRole) -> Result<(), String> {
    role.reach.check(role.listen, role.host.as_deref())?;
    let tls = Tls::read(&role.reach.tls)?;
    start_logging();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let temporary = std::env::temp_dir().join(format!("tally-executor-{}", std::process::id()));
    let work_dir = role.work_dir.clone().unwrap_or_else(|| temporary.clone());
    std::fs::create_dir_all(&work_dir).map_err(|error| format!("{}: {error}", work_dir.display()))?;
    let executor = Executor {
        scheduler: (role.scheduler.host, role.scheduler.port),
        data: &role.data,
        address: role.listen,
        host: role.host,
        ports: (role.task_port, role.fetch_port),
        slots: role.slots.map_or(cores, usize::from),
        work_dir: work_dir.display().to_string(),
        tls,
    };
    let ran = executor::run(executor).await.map_err(|error| error.to_string());
    if role.work_dir.is_none() {
        let _it_is_in_the_systems_folder = std::fs::remove_dir_all(temporary);
    }
    ran
}

/// Runs `work` until it ends or a signal comes. Process 1 of a container is ended by no signal that it does not handle.
async fn until_signal(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| format!("signal handlers: {error}"))?;
    tokio::select! {
        ended = work => ended,
        _signal = terminate.recv() => Ok(()),
        _signal = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Logs to standard error: warnings of libraries, and more if RUST_LOG says so.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_error| tracing_subscriber::EnvFilter::new("warn,tally=info,tally_cluster=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

/// Writes a line on standard output.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn other_machines_are_let_in_only_on_request() {
        let tls = TlsArgs { cluster_ca: None, cluster_cert: None, cluster_key: None };
        let reach = |insecure_allow_anyone| Reach { tls: tls.clone(), insecure_allow_anyone };
        for (address, is_allowed) in [("127.0.0.1", true), ("::1", true), ("0.0.0.0", false), ("10.0.0.1", false)] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(reach(false).check(address, Some("name")).is_ok(), is_allowed, "{address}");
            reach(true).check(address, Some("name")).expect("allowed");
            assert_eq!(reach(true).check(address, None).is_err(), address.is_unspecified(), "{address}");
        }
    }

    #[test]
    fn schedulers_have_a_host_and_a_port() {
        for text in ["a:1", "[::1]:65535", "10.0.0.1:5450"] {
            host_and_port(text).expect("a host and a port");
        }
        for text in ["", "a", "a:", ":1", "a:65536", "a:x"] {
            host_and_port(text).expect_err(text);
        }
    }
}
