//! Starts the log, which goes to standard error and to the file of `--log-file`.

use std::{fs::File, io, os::fd::AsFd, panic};

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{EnvFilter, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use super::{
    log_file,
    log_queue::{Classified, LogQueue},
};
use crate::{
    api::{http::access_log::ROUTES, metrics::LogCounts},
    config::{LogFile, LogFormat, ServeArgs},
    engine::{runtime::workers::panic_text, state::jobs::JOB_EVENTS},
};

/// The log. Dropping it writes the lines in its queues, for at most a second.
pub(super) struct Log {
    queue: LogQueue,
    _file: Option<WorkerGuard>,
    /// How many lines were not written.
    pub(super) counts: LogCounts,
}

impl Log {
    /// Waits until all lines logged before are on standard error, for a second at most.
    pub(super) fn flush(&self) {
        self.queue.flush();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Starts logging to standard error, and the HTTP calls also to a file. No call waits for either.
pub(super) fn start_logging(args: &ServeArgs, file: Option<&LogFile>) -> Result<Log, String> {
    use tracing_subscriber::Layer as _;
    let filter = EnvFilter::try_new(&args.log).map_err(|error| format!("--log: {error}"))?;
    let (counts, is_json) = (LogCounts::default(), args.log_format == LogFormat::Json);
    // A separate handle: std's has a lock, for which other writers would wait while nobody reads standard error.
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let queue = stderr.and_then(|stderr| LogQueue::start(stderr, is_json, counts.clone()));
    let queue = queue.map_err(|error| format!("standard error: {error}"))?;
    let logs = tracing_subscriber::fmt::layer().with_writer(queue.clone());
    let logs = match args.log_format {
        LogFormat::Text => {
            logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).map_event_format(Classified).boxed()
        }
        LogFormat::Json => logs.json().flatten_event(true).map_event_format(Classified).boxed(),
    };
    let (routes, file) = match file {
        Some(file) => {
            let (writer, guard) = log_file::open(file, &counts.file).map_err(|error| format!("--log-file: {error}"))?;
            let routes = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(writer);
            let targets = [ROUTES, JOB_EVENTS].map(|target| (target, tracing::Level::DEBUG));
            let routes = routes.with_filter(Targets::new().with_targets(targets));
            (Some(routes), Some(guard))
        }
        None => (None, None),
    };
    let started = tracing_subscriber::registry().with(logs.with_filter(filter)).with(routes).try_init();
    started.map_err(|error| format!("logging: {error}"))?;
    // The default hook writes to standard error directly, and a panicking worker would wait while nobody reads it.
    panic::set_hook(Box::new(|info| {
        let (thread, location) = (std::thread::current(), info.location().map(ToString::to_string));
        let location = location.as_deref().unwrap_or("?");
        let (thread, panic) = (thread.name().unwrap_or("?"), panic_text(info.payload()));
        tracing::error!(thread, location, panic, "panicked");
    }));
    Ok(Log { queue, _file: file, counts })
}
