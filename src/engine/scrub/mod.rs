//! Verifies all stored files: for `tally verify`, and in the background with `--scrub-interval`.
//!
//! A scan reads the files of all parts in the order of their ids, then those of the jobs. It runs as short tasks in the job
//! lane of the workers, so that uploads and questions continue meanwhile. A scan changes nothing. Only [`verify_folder`],
//! which locks the data folder like a server, moves damaged parts to quarantine. While a server runs, a damaged part stays
//! in the table, so that questions that need it are refused until its files have been restored.

pub mod scan;
mod segments;

pub use self::scan::{DamagedFile, Progress};
use self::{scan::Scan, segments::Segments};
use crate::{
    engine::{
        jobs::record,
        runtime::{
            context::Context,
            paced_source::{PacedSource, Source},
            workers::Workers,
        },
        state::{
            Lane, Shared,
            transfers::{Origin, Pace},
        },
        storage::{self, Store, recover::Found, segments::recovery::FoundSegments},
    },
    error::Error,
    model::{durability::Durability, packed::Segment, part::PartId},
};
use std::{
    collections::BTreeSet,
    iter,
    path::Path,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// A running verification of all stored files, for a client. Dropping it ends it. It also ends if the client reads its
/// progress so slowly that another call needs its permit.
pub struct Verification(PacedSource<Option<Progress>>);

/// A scan of all files that are stored when it begins.
struct StoredFiles {
    context: Arc<Context>,
    /// `None` while a task runs, and after the end.
    scan: Option<Scan>,
    damaged_count: u64,
}

/// The result of verifying a data folder that no server uses.
#[derive(Debug)]
pub struct VerifiedFolder {
    /// Parts that were moved to quarantine.
    pub set_aside: Vec<PartId>,
    /// How many parts are in quarantine whose loss no operator has accepted, including `set_aside`.
    pub missing_count: usize,
}

/// Begins to verify all files that are stored now.
///
/// Errors: another verification is running.
pub(super) async fn verify(context: &Arc<Context>, origin: Origin) -> Result<Verification, Error> {
    let permit = context.verify_calls.enter(origin, CancellationToken::new()).await;
    let permit = permit.ok_or(Error::VerificationRunning)?;
    Ok(Verification(PacedSource::new(StoredFiles::new(Arc::clone(context)), permit)))
}

impl Verification {
    /// The pace of the client, to be updated by the code that sends the progress.
    pub fn pace(&self) -> Arc<Pace> {
        self.0.pace()
    }

    /// Runs the next task of the verification; returns `None` at the end. Damaged files are also logged and counted.
    ///
    /// Errors: the folder of jobs cannot be read; the server is shutting down; the client was too slow.
    pub async fn next(&mut self) -> Result<Option<Progress>, Error> {
        self.0.next().await
    }
}

impl StoredFiles {
    fn new(context: Arc<Context>) -> Self {
        // Not a snapshot, which would keep the files of parts that are removed meanwhile.
        let (state, mut after) = (context.state.clone(), None);
        let last = state.with(|state| state.parts.snapshot()).last();
        let parts = iter::from_fn(move || {
            let next = state.with(|state| state.parts.next_unpacked(after)).filter(|part| Some(part.id) <= last)?;
            after = Some(next.id);
            Some((next.id, Some(next)))
        });
        let (of_parts, of_segments) = (context.state.clone(), context.state.clone());
        let segments = Segments {
            left: context.state.with(|state| state.parts.snapshot()).segments.values().map(|it| it.id).collect(),
            is_in_table: Box::new(move |id| {
                of_segments.with(|state| state.parts.segment_of(id.first)).is_some_and(|segment| segment.id == id)
            }),
            damaged: Vec::new(),
        };
        let scan = Scan::new(parts, move |id| of_parts.with(|state| state.parts.contains_unpacked(id)), segments);
        Self { context, scan: Some(scan), damaged_count: 0 }
    }
}

impl Source for StoredFiles {
    type Piece = Option<Progress>;

    async fn next(&mut self) -> Result<Option<Progress>, Error> {
        let Some(mut scan) = self.scan.take() else { return Ok(None) };
        let context = &self.context;
        let store = Arc::clone(&context.store);
        let wide_permit = match scan.is_wide_read_next() {
            true => Some(Arc::clone(&context.wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?),
            false => None,
        };
        let task = move || {
            let more = scan.step(&store, wide_permit.is_some())?;
            drop(wide_permit);
            Ok((scan, more))
        };
        let (mut scan, more) = context.workers.run(Lane::Job, task).await.flatten()?;
        let progress = std::mem::take(&mut scan.progress);
        for DamagedFile { file, what } in &progress.damaged {
            tracing::error!(file, what, "damaged");
        }
        self.damaged_count += progress.damaged.len() as u64;
        if more {
            context.damaged_files.fetch_max(self.damaged_count, Ordering::Relaxed);
            self.scan = Some(scan);
        } else {
            context.damaged_files.store(self.damaged_count, Ordering::Relaxed);
        }
        Ok(Some(progress))
    }
}

/// Verifies all stored files at regular intervals, until the engine is closed or dropped.
pub(super) async fn keep_scrubbing(context: Weak<Context>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(context) = context.upgrade() else { return };
        match scrub(context).await {
            Ok(()) => {}
            Err(Error::Draining) => return,
            Err(error) => tracing::error!(%error, "the scrub failed"),
        }
    }
}

async fn scrub(context: Arc<Context>) -> Result<(), Error> {
    let started = Instant::now();
    let (mut files, mut bytes, mut damaged) = (0, 0, 0);
    let mut stored = StoredFiles::new(context);
    while let Some(progress) = stored.next().await? {
        files += progress.files;
        bytes += progress.bytes;
        damaged += progress.damaged.len();
    }
    tracing::info!(files, bytes, damaged, duration_ms = started.elapsed().as_millis(), "scrubbed");
    Ok(())
}

/// The id of the process that uses a data folder; `None` if no process does.
pub async fn holder(root: &Path) -> Result<Option<u64>, Error> {
    let root = root.to_owned();
    let workers = Workers::start(Shared::new()).map_err(Error::io("worker threads"))?;
    let holder = workers.run(Lane::Job, move || storage::lock_holder(&root)).await.flatten();
    workers.close();
    holder
}

/// Verifies a data folder that no server uses, and recovers it as a server does at start: removes leftovers of uploads that
/// were never acknowledged, and moves damaged parts to quarantine.
///
/// Errors: the folder does not exist, or is in use; a file operation fails.
pub async fn verify_folder(root: &Path, mut report: impl FnMut(Progress)) -> Result<VerifiedFolder, Error> {
    if !root.join("parts").is_dir() {
        return Err(Error::DataFolder(format!("data folder {}: it is not there", root.display())));
    }
    let workers = Workers::start(Shared::new()).map_err(Error::io("worker threads"))?;
    let root = root.to_owned();
    let open = move || {
        let store = Store::open(&root, Durability::Fsync)?;
        record::find(&store)?; // a newer version is refused before anything is changed
        let mut parts = BTreeSet::new();
        let mut segments = FoundSegments::default();
        let found = store.clean_up(|found| match found {
            Found::Segment(receipt) => {
                segments.kept.extend(Segment::of(&receipt, Vec::new()).map(|segment| (segment.id, Arc::new(segment))));
            }
            Found::Part(receipt) => {
                parts.insert(receipt.part);
            }
        })?;
        parts.extend(found.quarantined.iter().map(|(id, _reason)| *id));
        Ok((Arc::new(store), parts, segments, found))
    };
    let (store, parts, segments, found) = workers.run(Lane::Job, open).await.flatten()?;
    let mut found_segments = segments;
    let left = found_segments.kept.keys().copied().collect();
    let segments = Segments { left, is_in_table: Box::new(|_| true), damaged: Vec::new() };
    let mut scan = Scan::new(parts.into_iter().map(|id| (id, None)), |_| true, segments);
    loop {
        let store = Arc::clone(&store);
        let task = move || {
            let more = scan.step(&store, true)?;
            Ok((scan, more))
        };
        let more;
        (scan, more) = workers.run(Lane::Job, task).await.flatten()?;
        report(std::mem::take(&mut scan.progress));
        if !more {
            break;
        }
    }
    // The scan has reported the same parts, except one that is undamaged and has the last id.
    let mut damaged_parts = scan.damaged_parts;
    for (id, reason) in found.quarantined {
        if damaged_parts.insert(id) {
            let what = Error::Damaged { part: id, what: reason }.to_string();
            let damaged = vec![DamagedFile { file: format!("parts/{id}.json"), what }];
            report(Progress { damaged, ..Progress::default() });
        }
    }
    let mut damaged_segments = scan.segments.damaged;
    for (id, reason) in found.segments_quarantined {
        let what = Error::Damaged { part: id.first, what: format!("segment {id}: {reason}") }.to_string();
        let damaged = vec![DamagedFile { file: format!("parts/{id}.segment"), what }];
        report(Progress { damaged, ..Progress::default() });
        damaged_segments.push(id);
    }
    let firsts = damaged_segments.iter().map(|id| id.first);
    let set_aside = damaged_parts.iter().copied().chain(firsts).collect();
    let put_in_order = move || {
        damaged_parts.iter().try_for_each(|id| store.move_part_to_quarantine(*id))?;
        damaged_segments.iter().try_for_each(|id| store.move_segment_to_quarantine(*id))?;
        found_segments.kept.retain(|id, _| !damaged_segments.contains(id));
        let quarantine = store.quarantine()?;
        let packed = found_segments.packed(&store, &quarantine.parts)?;
        let is_served = |id: &PartId| store.has_receipt(*id) || packed.contains(id);
        Ok(quarantine.missing(is_served, |id| found_segments.kept.contains_key(&id)).count())
    };
    let missing_count = workers.run(Lane::Job, put_in_order).await.flatten()?;
    workers.close();
    Ok(VerifiedFolder { set_aside, missing_count })
}

#[cfg(test)]
mod tests {
    use super::scan::StoredFile;
    use crate::engine::{
        jobs::record::{Record, RecordState, Work},
        state::jobs::JobId,
        storage::names::JobFile,
    };

    use super::*;

    /// Scans one file and returns the names of the files that were found damaged.
    fn damaged(store: &Store, target: StoredFile) -> Vec<String> {
        let segments = Segments { left: Default::default(), is_in_table: Box::new(|_| true), damaged: Vec::new() };
        let mut scan = Scan::new(std::iter::empty(), |_| true, segments);
        scan.jobs = Some(Vec::new().into_iter());
        scan.pending_files.push_back(target);
        while scan.step(store, true).expect("readable") {}
        scan.progress.damaged.into_iter().map(|damaged| damaged.file).collect()
    }

    #[test]
    fn a_job_that_ended_since_its_record_was_read_is_not_damaged() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let name = "0b5e2c14-6f1a-4a52-9a0e-1f7a4e5b3c2d";
        let id: JobId = name.parse().expect("a name");
        let (by, sum, header) = (vec!["a".to_owned()], vec!["b".to_owned()], vec!["a".to_owned(), "b".to_owned()]);
        let mut record = Record::new(id, 1, Work::GroupSum { by, sum, header }, Some(7));
        let of_input = |record: &Record| StoredFile::JobFile(Arc::new(record.clone()), JobFile::Input);
        let queued = record.clone();
        assert_eq!(damaged(&store, of_input(&queued)), Vec::<String>::new(), "the job is gone");
        assert_eq!(damaged(&store, StoredFile::Record(name.to_owned())), Vec::<String>::new(), "the job is gone");
        record.publish(&store).expect("published");
        assert_eq!(damaged(&store, of_input(&queued)), [format!("jobs/{name}.input")]);
        record.state = RecordState::Failed { reason: "why".to_owned() };
        record.publish(&store).expect("published");
        assert_eq!(damaged(&store, of_input(&queued)), Vec::<String>::new(), "it needs no input any more");
        record.state = RecordState::Done { bytes: 1, check: None };
        record.publish(&store).expect("published");
        assert_eq!(damaged(&store, of_input(&queued)), [format!("jobs/{name}.result")]);
    }
}
