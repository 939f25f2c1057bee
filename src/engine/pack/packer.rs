//! Writes segments, one after another, until there is nothing to pack.
//!
//! A segment that is made of many others may take minutes. Uploads would have to wait for it once the table is nearly full of parts
//! that have their own files. So the oldest of these are packed in between, at most for half of the time.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep},
};

use super::{
    commit::{commit, drop_segment},
    plan::{Circumstances, Next, RUN_PARTS, Run, next, next_newer},
    retired::Batch,
    write::{Packing, Step},
};
use crate::{
    engine::{
        ingest::memory_plan,
        parquet::writer::Layout,
        runtime::{context::Context, detached::detached},
        state::{Lane, registry::Snapshot},
        storage::{Store, segments::writing::PreparedSegment},
    },
    error::Error,
    limits::{
        COLUMNS_MAX, PACKED_RETIRED_BATCH_BYTES, PACKED_RETIRED_BYTES, PACKING_BYTES, READ_BLOCK_BYTES,
        SEGMENT_RECEIPT_BYTES_MAX, SMALL_CONVERSION_BYTES, SMALL_UPLOAD_BYTES,
    },
    model::{packed::SegmentId, part::PartId},
};

/// Damaged parts that are remembered, so that others are packed.
const DAMAGED_MAX: usize = 1024;
/// How long others wait for memory before packing notices it in a pause.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Time between two looks for newer parts while segments are made one.
const LOOK_FOR_NEWER: Duration = Duration::from_secs(1);
/// Segments are written anew for any purged part if one for so many parts of `--parts-max` is in them.
const PURGED_URGENT: usize = 4;

/// What packing has to remember between two segments.
pub(super) struct Packer {
    /// Segments that may be put back. Others must not cover their numbers.
    in_quarantine: Arc<[SegmentId]>,
    /// Parts that could not be packed. They are tried again after the next start.
    damaged: BTreeSet<PartId>,
    /// Whether the last look found too little room on the disk, of which the log has a line.
    is_disk_too_full: bool,
    /// The same for the numbers of replaced parts.
    is_waiting: bool,
    /// Bytes for the numbers of replaced parts.
    room: Arc<Semaphore>,
    /// What was replaced is deleted from here.
    replaced: mpsc::Sender<Batch>,
}

/// What was done.
pub(super) struct Packed {
    /// Segments that were written.
    pub(super) segments: usize,
    /// Whether packing has to wait until something that was replaced is deleted.
    pub(super) waits: bool,
}

impl Packer {
    pub(super) fn new(in_quarantine: Arc<[SegmentId]>, replaced: mpsc::Sender<Batch>) -> Self {
        Self {
            in_quarantine,
            damaged: BTreeSet::new(),
            is_disk_too_full: false,
            is_waiting: false,
            room: Arc::new(Semaphore::new(PACKED_RETIRED_BYTES)),
            replaced,
        }
    }

    /// Writes segments until there is nothing to pack.
    ///
    /// Errors: the first one that is met. A part that is damaged is left out from then on.
    pub(super) async fn pack_all(&mut self, context: &Arc<Context>, is_forced: bool) -> Result<Packed, Error> {
        let mut segments = 0;
        loop {
            let Some(room) = self.take_room() else { return Ok(Packed { segments, waits: true }) };
            let (table, now) = self.circumstances(context, is_forced).await?;
            let free_bytes = now.free_bytes;
            match context.workers.run(Lane::Pack, move || next(&table, &now)).await? {
                Next::Write(run) => {
                    context.state.with(|state| state.parts.set_packing_stuck(false));
                    segments += usize::from(self.pack(context, run, room, None).await?);
                }
                Next::Drop(segment, purged) => {
                    let replaced = drop_segment(context, segment, purged).await?;
                    self.push(replaced, room).await?;
                }
                Next::Nothing { is_disk_too_full } => {
                    if is_disk_too_full && !self.is_disk_too_full {
                        tracing::warn!(
                            free_bytes,
                            "the disk has too little room for packing; parts keep their own files"
                        );
                    }
                    self.is_disk_too_full = is_disk_too_full;
                    return Ok(Packed { segments, waits: false });
                }
            }
        }
    }

    /// Room for the numbers of what one more segment replaces.
    fn take_room(&mut self) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(PACKED_RETIRED_BATCH_BYTES).ok();
        if room.is_none() && !self.is_waiting {
            tracing::warn!(
                "so much was packed within a minute that packing waits until the replaced files are deleted"
            );
        }
        self.is_waiting = room.is_none();
        room
    }

    async fn push(&self, replaced: Option<Batch>, room: OwnedSemaphorePermit) -> Result<(), Error> {
        let Some(batch) = replaced else { return Ok(()) };
        self.replaced.send(batch.with_room(room)).await.ok().ok_or(Error::Draining)
    }

    /// The table as it is, and what else decides what is packed.
    async fn circumstances(&self, context: &Arc<Context>, is_forced: bool) -> Result<(Snapshot, Circumstances), Error> {
        let free_bytes = context.on_worker(Lane::Pack, Store::free_bytes).await?;
        Ok(context.state.with(|state| {
            let parts = &state.parts;
            let is_urgent = parts.is_nearly_full() || parts.packed_purged().len() >= parts.parts_max() / PURGED_URGENT;
            let now = Circumstances {
                purged: parts.packed_purged().clone(),
                damaged: self.damaged.clone(),
                in_quarantine: Arc::clone(&self.in_quarantine),
                unpacked_max: if is_forced { 0 } else { context.limits.pack_above },
                is_forced,
                is_urgent,
                free_bytes,
            };
            (parts.snapshot(), now)
        }))
    }

    /// Writes and commits one segment. `false`, and nothing has changed, if a part of it was removed meanwhile.
    /// `memory`: that of a run whose memory was reserved before.
    async fn pack(
        &mut self,
        context: &Arc<Context>,
        run: Run,
        room: OwnedSemaphorePermit,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Result<bool, Error> {
        let written = self.write(context, run, memory).await;
        if let Err(Error::Damaged { part, .. }) = &written
            && self.damaged.len() < DAMAGED_MAX
        {
            self.damaged.insert(*part);
        }
        let (prepared, run) = written?;
        let of = Arc::clone(context);
        // Detached, so that a segment on the disk is also in the registry.
        let replaced = detached(move |_cancel| async move { commit(&of, run, *prepared).await }).await?;
        context.packed.notify_waiters();
        let is_written = replaced.is_some();
        self.push(replaced, room).await?;
        Ok(is_written)
    }

    /// Writes a segment, but does not commit it.
    async fn write(
        &mut self,
        context: &Arc<Context>,
        run: Run,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Result<(Box<PreparedSegment>, Run), Error> {
        let last = run.id.last;
        let is_long = !run.segments.is_empty() && !is_small(&run);
        let mut writing = Writing::begin(context, run, memory).await?;
        let (mut newer_at, mut for_newer) = (Instant::now(), Duration::ZERO);
        loop {
            match writing.step(context).await? {
                Written::Prepared(prepared, run) => return Ok((prepared, run)),
                Written::More(more) => writing = more,
            }
            let began = Instant::now();
            if is_long && newer_at <= began && 2 * for_newer <= writing.started.elapsed() {
                let bytes = self.pack_newer(context, last).await?;
                writing.bytes += bytes; // so that both together keep to `--pack-bytes-per-s`
                newer_at = if bytes == 0 { began + LOOK_FOR_NEWER } else { began };
                for_newer += began.elapsed();
            }
        }
    }

    /// Packs the oldest small parts after `after`, where segments are being made one, if there are enough. Returns how many bytes of
    /// CSV they have.
    async fn pack_newer(&mut self, context: &Arc<Context>, after: PartId) -> Result<u64, Error> {
        let enough = context.limits.pack_above.saturating_add(RUN_PARTS);
        if context.state.with(|state| state.parts.unpacked() < enough) {
            return Ok(0);
        }
        let Some(room) = self.take_room() else { return Ok(0) };
        let (table, now) = self.circumstances(context, false).await?;
        let run = context.workers.run(Lane::Pack, move || next_newer(&table, &now, after)).await?;
        let Some(run) = run.filter(is_small) else { return Ok(0) };
        let (memory_bytes, _layout) = plan_memory(&run)?;
        if memory_bytes + PACKING_BYTES > SMALL_CONVERSION_BYTES {
            return Ok(0);
        }
        // The segments that are being made one have their memory from the other pool, so nothing waits for itself.
        let memory = context.small_conversions.reserve(memory_bytes + PACKING_BYTES).await?;
        let bytes = run.csv_bytes();
        match Box::pin(self.pack(context, run, room, Some(memory))).await {
            Ok(_is_written) => Ok(bytes),
            Err(Error::Draining) => Err(Error::Draining),
            Err(error) => {
                tracing::error!(%error, "newer parts could not be packed; this is tried again");
                Ok(0)
            }
        }
    }
}

/// A segment that is being written.
struct Writing {
    packing: Box<Packing>,
    is_small: bool,
    memory_bytes: usize,
    memory: Option<OwnedSemaphorePermit>,
    /// Whether the memory was reserved before. Then there are no pauses, because others may need it.
    has_all_memory: bool,
    started: Instant,
    /// About how many bytes were read.
    bytes: u64,
}

/// The result of a step.
enum Written {
    More(Writing),
    /// The segment can be committed. It is made of the run, which may have fewer parts than before.
    Prepared(Box<PreparedSegment>, Run),
}

impl Writing {
    async fn begin(context: &Arc<Context>, run: Run, memory: Option<OwnedSemaphorePermit>) -> Result<Self, Error> {
        let (is_small, (memory_bytes, layout)) = (is_small(&run), plan_memory(&run)?);
        let begin = move |store: &Arc<Store>| Packing::new(store, run, layout).map(Box::new);
        let packing = context.on_worker(Lane::Pack, begin).await?;
        let has_all_memory = memory.is_some();
        Ok(Self { packing, is_small, memory_bytes, memory, has_all_memory, started: Instant::now(), bytes: 0 })
    }

    /// One task, and a pause if it was faster than `--pack-bytes-per-s`.
    async fn step(mut self, context: &Arc<Context>) -> Result<Written, Error> {
        let pool = if self.is_small { &context.small_conversions } else { &context.large_conversions };
        if self.packing.converts() && self.memory.is_none() {
            self.memory = Some(pool.reserve(self.memory_bytes).await?);
        }
        let packing = self.packing;
        match context.workers.run(Lane::Pack, move || packing.step()).await.flatten()? {
            Step::Prepared(prepared, run) => return Ok(Written::Prepared(prepared, run)),
            Step::More(more, read) => {
                self.packing = more;
                self.bytes += read;
            }
        }
        if self.has_all_memory {
            return Ok(Written::More(self));
        }
        if !self.packing.has_open_parquet() {
            self.memory = None;
        }
        let pace = Duration::from_millis(self.bytes * 1000 / context.limits.pack_bytes_per_s.max(1));
        let may_give_up = self.memory.is_some() && self.packing.may_give_up();
        while self.started.elapsed() < pace && !(may_give_up && pool.is_waited_for()) {
            sleep(pace.saturating_sub(self.started.elapsed()).min(PAUSE_MAX)).await;
        }
        if may_give_up && pool.is_waited_for() {
            let mut packing = self.packing;
            let give_up = move || {
                packing.give_up();
                packing
            };
            self.packing = context.workers.run(Lane::Pack, give_up).await?;
            self.memory = None;
        }
        Ok(Written::More(self))
    }
}

fn is_small(run: &Run) -> bool {
    run.csv_bytes() <= SMALL_UPLOAD_BYTES
}

/// The memory that writing a segment takes while it has a Parquet file open, and the layout of its Parquet files.
fn plan_memory(run: &Run) -> Result<(usize, Layout), Error> {
    let columns = run
        .parts
        .iter()
        .map(|part| part.columns_count)
        .chain(run.segments.iter().flat_map(|segment| segment.files.iter().map(|file| file.columns_count)));
    let columns = columns.max().unwrap_or(1) as usize;
    let plan = memory_plan::Plan::for_file(run.csv_bytes(), columns.min(COLUMNS_MAX), READ_BLOCK_BYTES)?;
    // When the Parquet files are written, the same memory does for the text of the receipt, in a buffer that doubles.
    Ok((plan.memory_bytes.max(2 * SEGMENT_RECEIPT_BYTES_MAX), plan.layout))
}
