//! What the server measures of itself, for those who watch it.

use std::{
    fs::File,
    io::Read,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    engine::{
        Engine,
        state::{Lane, jobs::JobCounts, lock_check::assert_unlocked},
    },
    error::Error,
};

/// The server's figures at one moment; those in bytes but the memory count from its start.
#[derive(Clone, Copy, Debug)]
pub struct Vitals {
    /// Parts of the table.
    pub parts: usize,
    /// Parts that it may have.
    pub parts_max: usize,
    /// Parts in quarantine whose loss no operator has accepted.
    pub parts_missing: usize,
    /// Files that the last verification of all that is stored found damaged.
    pub damaged_files: u64,
    /// Jobs of both kinds by their state.
    pub jobs: JobCounts,
    /// Slices that wait for a worker, lane by lane.
    pub waiting: [(Lane, usize); Lane::ALL.len()],
    /// Bytes of CSV that came in, whatever became of them.
    pub received_bytes: u64,
    /// Bytes that went to scratch files for want of memory.
    pub spilled_bytes: u64,
    /// Memory of the process.
    pub resident_bytes: u64,
}

impl Engine {
    /// Errors: the system does not tell the memory; the server is shutting down.
    pub async fn vitals(&self) -> Result<Vitals, Error> {
        let Engine(inner) = self;
        let waiting = inner.state.waiting_work();
        let store = Arc::clone(&inner.store);
        let measure = move || Ok((store.spilled_bytes(), resident_bytes()?));
        let (spilled_bytes, resident_bytes) = inner.workers.run(Lane::Question, measure).await.flatten()?;
        Ok(Vitals {
            parts: self.parts_count(),
            parts_max: inner.limits.parts_max,
            parts_missing: self.missing_count(),
            damaged_files: self.damaged_files(),
            jobs: self.job_counts(),
            waiting,
            received_bytes: inner.received_bytes.load(Ordering::Relaxed),
            spilled_bytes,
            resident_bytes,
        })
    }
}

/// This process's memory without what is swapped out, as Linux reports it (`VmRSS`, proc(5)).
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
