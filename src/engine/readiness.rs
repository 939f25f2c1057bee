//! Whether the engine gets work done: a worker is free in time, and the disk answers it.

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

/// Has a worker make and write a file without a name in the data folder.
///
/// A full disk is no error: what is stored is still served. Errors: that did not happen within `time_max`; the data
/// folder cannot be written for another reason; the server is going down.
pub(super) async fn check_ready(context: &Context, time_max: Duration) -> Result<(), Error> {
    let has_worker = Arc::new(AtomicBool::new(false));
    let check = async {
        // One at a time: where a disk hangs, checks must not take all workers.
        let turn = Arc::clone(&context.readiness_checks).acquire_owned().await.ok().ok_or(Error::Draining)?;
        let (folder, has_worker) = (context.store.temp_folder(), Arc::clone(&has_worker));
        let touch = move || {
            let _turn = turn;
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
