//! The figures of the server for monitoring.

use std::{
    fs::File,
    io::Read,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    engine::{
        runtime::context::Context,
        state::{Lane, jobs::JobCounts, lock_check::assert_unlocked},
        storage::Store,
    },
    error::Error,
};

/// The server's figures at one moment. Counts of bytes, except the memory, are since its start.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Parts of the table.
    pub parts: usize,
    /// The limit of `parts`.
    pub parts_max: usize,
    /// Parts in quarantine whose loss no operator has accepted.
    pub parts_missing: usize,
    /// Damaged files that the last verification of the data folder found.
    pub damaged_files: u64,
    /// Jobs of both kinds by their state.
    pub jobs: JobCounts,
    /// Tasks that wait for a worker, lane by lane.
    pub waiting: [(Lane, usize); Lane::ALL.len()],
    /// Bytes of CSV received, including those of failed uploads.
    pub received_bytes: u64,
    /// Bytes written to scratch files because they did not fit in memory.
    pub spilled_bytes: u64,
    /// Resident memory of the process.
    pub resident_bytes: u64,
}

/// Measures the figures.
///
/// Errors: the memory of the process cannot be read; the server is shutting down.
pub(super) async fn stats(context: &Context) -> Result<Stats, Error> {
    let measure = |store: &Arc<Store>| Ok((store.spilled_bytes(), resident_bytes()?));
    let (spilled_bytes, resident_bytes) = context.on_worker(Lane::Question, measure).await?;
    let waiting = context.state.waiting_work();
    let (parts, parts_missing, jobs) =
        context.state.with(|state| (state.parts.len(), state.parts.missing().count(), state.jobs.counts()));
    Ok(Stats {
        parts,
        parts_max: context.limits.parts_max,
        parts_missing,
        damaged_files: context.damaged_files.load(Ordering::Relaxed),
        jobs,
        waiting,
        received_bytes: context.received_bytes.load(Ordering::Relaxed),
        spilled_bytes,
        resident_bytes,
    })
}

/// The resident memory of this process, as Linux reports it (`VmRSS` in proc(5)).
fn resident_bytes() -> Result<u64, Error> {
    const STATUS_BYTES_MAX: u64 = 64 * 1024;
    assert_unlocked();
    let mut status = String::new();
    let read = File::open("/proc/self/status").and_then(|file| file.take(STATUS_BYTES_MAX).read_to_string(&mut status));
    read.map_err(Error::io("/proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Error::Internal("/proc/self/status has no VmRSS".to_owned()))
}
