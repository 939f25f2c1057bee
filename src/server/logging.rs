//! Where log lines go: standard error, and the file of `--log-file`.

use std::io;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{EnvFilter, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    api::http::{
        log::ROUTES,
        log_file::{self, LostLines},
    },
    config::{LogFile, LogFormat, ServeArgs},
};

/// Logs to standard error, and the calls of HTTP to a file too. What was logged there is written when the guard is
/// dropped.
pub(super) fn start_logging(
    args: &ServeArgs,
    file: Option<&LogFile>,
) -> Result<(Option<WorkerGuard>, LostLines), String> {
    use tracing_subscriber::Layer as _;
    let filter = EnvFilter::try_new(&args.log).map_err(|error| format!("--log: {error}"))?;
    let logs = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let logs = match args.log_format {
        LogFormat::Text => logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    let (routes, guard, lost_lines) = match file {
        Some(file) => {
            let (writer, guard, lost_lines) = log_file::open(file).map_err(|error| format!("--log-file: {error}"))?;
            let routes = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_target(false)
                .with_level(false)
                .with_writer(writer);
            let routes = routes.with_filter(Targets::new().with_target(ROUTES, tracing::Level::DEBUG));
            (Some(routes), Some(guard), lost_lines)
        }
        None => (None, None, LostLines::default()),
    };
    let started = tracing_subscriber::registry().with(logs.with_filter(filter)).with(routes).try_init();
    started.map(|()| (guard, lost_lines)).map_err(|error| format!("logging: {error}"))
}
