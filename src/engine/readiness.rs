//! The readiness check: a worker becomes free in time, and the disk responds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;

use crate::{
    engine::{runtime::context::Context, state::Lane},
    error::Error,
};

/// Creates and writes an unnamed file in the data folder, on a worker. A full disk is not an error, as stored parts can still be
/// read.
///
/// Errors: the file was not written within `time_max`; the data folder cannot be written for a reason other than a full disk;
/// the server is shutting down.
pub(super) async fn check_ready(context: &Context, time_max: Duration) -> Result<(), Error> {
    let has_worker = Arc::new(AtomicBool::new(false));
    let check = async {
        // One at a time: if the disk hangs, checks must not occupy all workers.
        let permit = Arc::clone(&context.readiness_checks).acquire_owned().await.ok().ok_or(Error::Draining)?;
        let (folder, has_worker) = (context.store.temp_folder(), Arc::clone(&has_worker));
        let touch = move || {
            let _permit = permit;
            has_worker.store(true, Ordering::Relaxed);
            folder.file()?.append(b"ready?")
        };
        context.workers.run(Lane::Probe, touch).await.flatten()
    };
    match timeout(time_max, check).await {
        Ok(Err(Error::DiskFull { .. })) => Ok(()),
        Ok(checked) => checked,
        Err(_elapsed) => {
            let who = if has_worker.load(Ordering::Relaxed) { "the data folder" } else { "a worker" };
            Err(Error::NotReady(format!("{who} did not answer within {} s", time_max.as_secs_f64())))
        }
    }
}
