//! The figures of the server for monitoring.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    engine::{
        runtime::context::Context,
        state::{
            Lane,
            jobs::JobCounts,
            lock_check::assert_unlocked,
            registry::Totals,
            transfers::{TransferKind, TransferNow},
        },
        storage::Store,
    },
    error::Error,
    limits::UPLOADS_LISTED_MAX,
};

/// The server's figures at one moment. Counts of bytes, except the memory, are since its start.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Parts of the table.
    pub parts: usize,
    /// The limit of `parts`.
    pub parts_max: usize,
    /// Parts that have their own files.
    pub unpacked: usize,
    /// Segments.
    pub segments: usize,
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

/// What the server does at one moment.
#[derive(Clone, Debug)]
pub struct Activity {
    /// The figures.
    pub stats: Stats,
    /// The figures of the table.
    pub overview: Overview,
    /// The most memory that the process may have, if its control group has a limit.
    pub memory_bytes_max: Option<u64>,
    /// How many uploads run.
    pub uploads_count: usize,
    /// The uploads that have run longest.
    pub uploads: Vec<TransferNow>,
}

/// The figures of the whole table at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Parts.
    pub parts: usize,
    /// The limit of `parts`.
    pub parts_max: usize,
    /// Parts that have their own files.
    pub unpacked: usize,
    /// Segments.
    pub segments: usize,
    /// Data rows of all parts.
    pub rows: u64,
    /// Different names of columns, up to [`COLUMN_NAMES_MAX`](crate::limits::COLUMN_NAMES_MAX).
    pub columns: usize,
    /// Bytes of all CSV files.
    pub csv_bytes: u64,
    /// Bytes of all Parquet files.
    pub parquet_bytes: u64,
    /// Parts in quarantine whose loss no operator has accepted.
    pub parts_missing: usize,
    /// Removed parts that still have files.
    pub parts_removed: usize,
}

/// The figures of the whole table.
pub(super) fn overview(context: &Context) -> Overview {
    context.state.with(|state| {
        let parts = &state.parts;
        let Totals { rows, csv_bytes, parquet_bytes } = parts.totals();
        Overview {
            parts: parts.len(),
            parts_max: parts.parts_max(),
            unpacked: parts.unpacked(),
            segments: parts.segments_count(),
            rows,
            columns: parts.column_names().count(),
            csv_bytes,
            parquet_bytes,
            parts_missing: parts.missing().count(),
            parts_removed: parts.removed().len(),
        }
    })
}

/// Measures the figures.
///
/// Errors: the memory of the process cannot be read; the server is shutting down.
pub(super) async fn stats(context: &Context) -> Result<Stats, Error> {
    measure(context, Lane::Question).await
}

/// Measures the figures, and lists what runs. It does not wait behind other work.
pub(super) async fn activity(context: &Context) -> Result<Activity, Error> {
    let stats = measure(context, Lane::Probe).await?;
    let memory_bytes_max = context.on_worker(Lane::Probe, |_store| Ok(memory_bytes_max())).await?;
    let (uploads_count, uploads) = context.state.with(|state| {
        let uploads = &state.transfers[TransferKind::Upload as usize];
        (uploads.running_count(), uploads.oldest(UPLOADS_LISTED_MAX))
    });
    Ok(Activity { stats, overview: overview(context), memory_bytes_max, uploads_count, uploads })
}

async fn measure(context: &Context, lane: Lane) -> Result<Stats, Error> {
    let measure = |store: &Arc<Store>| Ok((store.spilled_bytes(), resident_bytes()?));
    let (spilled_bytes, resident_bytes) = context.on_worker(lane, measure).await?;
    let waiting = context.state.waiting_work();
    let (parts, unpacked, segments, parts_missing, jobs) = context.state.with(|state| {
        let parts = &state.parts;
        (parts.len(), parts.unpacked(), parts.segments_count(), parts.missing().count(), state.jobs.counts())
    });
    Ok(Stats {
        parts,
        parts_max: context.limits.parts_max,
        unpacked,
        segments,
        parts_missing,
        damaged_files: context.damaged_files.load(Ordering::Relaxed),
        jobs,
        waiting,
        received_bytes: context.received_bytes.load(Ordering::Relaxed),
        spilled_bytes,
        resident_bytes,
    })
}

/// The smallest limit of memory among the control groups of this process, as Linux reports it (cgroups(7)): version 2, or the
/// memory controller of version 1.
fn memory_bytes_max() -> Option<u64> {
    let groups = read_text(Path::new("/proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let (_number, of) = line.split_once(':')?;
        let (controllers, group) = of.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // In a container, the path may be one that the host sees, and the limit is that of the root.
        let ancestors = Path::new(group.trim_start_matches('/')).ancestors();
        ancestors.filter_map(|group| limit_in(&Path::new(root).join(group).join(file))).min()
    });
    limits.min()
}

/// The limit in a file; `None` if there is none.
fn limit_in(path: &Path) -> Option<u64> {
    /// Version 1 has the largest multiple of a page where there is no limit.
    const NO_LIMIT_MIN: u64 = 1 << 60;
    read_text(path).ok()?.trim().parse().ok().filter(|&bytes| bytes < NO_LIMIT_MIN)
}

/// A text of the kernel's.
fn read_text(path: &Path) -> io::Result<String> {
    const TEXT_BYTES_MAX: u64 = 64 * 1024;
    assert_unlocked();
    let mut text = String::new();
    File::open(path)?.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The resident memory of this process, as Linux reports it (`VmRSS` in proc(5)).
fn resident_bytes() -> Result<u64, Error> {
    let status = read_text(Path::new("/proc/self/status")).map_err(Error::io("/proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Error::Internal("/proc/self/status has no VmRSS".to_owned()))
}
