//! Paths that more than one module has to know.

/// The statistics' shutdown: a GET that changes something.
pub(super) const SHUTDOWN_PATH: &str = "/api/graceful_shutdown";
/// Where the results of statistics are fetched; a job's id follows.
pub(super) const RESULTS_PATH: &str = "/api/get_results/";
/// The file-processing tasks; a task's id may follow.
pub(super) const TASKS_PATH: &str = "/api/v1/file-processing/tasks/";

/// Whether a path is one of the original statistics servers', whose clients expect another form of error.
pub(super) fn is_statistics_path(path: &str) -> bool {
    path.starts_with("/api/") && !path.starts_with("/api/v1/")
}
