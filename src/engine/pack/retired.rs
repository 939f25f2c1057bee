//! What segments have replaced: files that were moved out of `parts/`, and can be read for another minute, or until no question
//! has them in its snapshot of the table.
//!
//! Memory: about a byte for each run of part numbers, so 3,000 parts a second take a few KiB a minute; the packer reserves it. Of
//! parts that are still in a snapshot there is also a pointer each, as long as the snapshot exists, which keeps more of each part
//! than that.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep},
};

use crate::{
    engine::{
        runtime::context::Context,
        state::Lane,
        storage::{Store, segments::replaced::has_list},
        values::varint::{put_u64, take_u64},
    },
    error::Error,
    model::{
        packed::{ReplacedSegment, Segment},
        part::{Part, PartId},
    },
};

/// How long what was replaced can still be read.
const RETIRED_FOR: Duration = Duration::from_secs(60);
/// Time between two looks for something to delete, while there is anything.
const INTERVAL: Duration = Duration::from_secs(1);
/// Batches that wait to be taken over while files are deleted.
pub(super) const BATCHES_MAX: usize = 256;
/// Parts whose files one task deletes.
const TASK_PARTS: usize = 16;
/// Tasks that delete at once. On a disk that is told of each deleted block, one thread deletes about 400 files a second, which is
/// less than uploads and packing add.
const TASKS_AT_ONCE: usize = 4;

/// Deletes what was replaced some time ago and is not read any more, until the packer ends. First what an earlier run of the server
/// left.
pub(super) async fn keep_deleting(context: Weak<Context>, mut batches: mpsc::Receiver<Batch>, left: Vec<PartId>) {
    let left = PartIds::of(left.into_iter());
    if delete_parts(&context, &left, Files { have_lists: true, are_moved: true }).await.is_err() {
        return; // shutting down: the next start deletes them
    }
    let mut retired = Retired::default();
    loop {
        tokio::select! {
            batch = batches.recv() => match batch {
                Some(batch) => retired.push(batch),
                None => return,
            },
            () = sleep(INTERVAL), if !retired.is_empty() => {}
        }
        while let Some(batch) = retired.pop(Instant::now()) {
            match delete(&context, &batch).await {
                Ok(true) => {}
                Ok(false) => retired.push_again(batch),
                Err(_shutting_down) => return,
            }
        }
    }
}

/// Deletes the files of a batch. Returns whether none of them is in `parts/` any more.
async fn delete(context: &Weak<Context>, batch: &Batch) -> Result<bool, Error> {
    let are_moved = delete_parts(context, &batch.parts, batch.files).await?;
    let context = context.upgrade().ok_or(Error::Draining)?;
    let segments = batch.segments.clone();
    let delete = move |store: &Arc<Store>| {
        segments.iter().for_each(|segment| store.delete_replaced_segment(segment));
        Ok(())
    };
    context.on_worker(Lane::Pack, delete).await?;
    Ok(are_moved)
}

async fn delete_parts(context: &Weak<Context>, ids: &PartIds, files: Files) -> Result<bool, Error> {
    let tasks = stream::iter(ids.iter()).chunks(TASK_PARTS).map(|some| async move {
        let context = context.upgrade().ok_or(Error::Draining)?;
        let delete = move |store: &Arc<Store>| {
            let mut are_moved = true;
            for id in some {
                if files.are_moved || store.set_aside_part(id, files.have_lists) {
                    store.delete_replaced_part(id, files.have_lists);
                } else {
                    are_moved = false;
                }
            }
            Ok(are_moved)
        };
        context.on_worker(Lane::Pack, delete).await
    });
    tasks.buffer_unordered(TASKS_AT_ONCE).try_fold(true, async |all, some| Ok(all && some)).await
}

/// What was replaced and is not deleted yet, the oldest first.
#[derive(Default)]
struct Retired {
    batches: VecDeque<Batch>,
}

/// What is known of the files of some parts.
#[derive(Clone, Copy)]
struct Files {
    /// A part may have a list of checksums.
    have_lists: bool,
    /// None is in `parts/` any more.
    are_moved: bool,
}

/// What one segment has replaced.
pub(super) struct Batch {
    since: Instant,
    parts: PartIds,
    files: Files,
    segments: Vec<ReplacedSegment>,
    /// Those of the parts and segments that a snapshot has, or had when this was last looked at. No other can be read again.
    read_parts: Vec<Arc<Part>>,
    read_segments: Vec<Arc<Segment>>,
    /// The memory of this batch.
    room: Option<OwnedSemaphorePermit>,
}

impl Batch {
    /// Parts in the order of their numbers, and segments, which are not in the table any more. Their files were moved just now.
    pub(super) fn new(mut parts: Vec<Arc<Part>>, mut segments: Vec<Arc<Segment>>) -> Self {
        let ids = PartIds::of(parts.iter().map(|part| part.id));
        let files = Files { have_lists: parts.iter().any(|part| has_list(part)), are_moved: true };
        let replaced = segments.iter().map(|segment| ReplacedSegment::of(segment)).collect();
        keep_read(&mut parts);
        keep_read(&mut segments);
        let since = Instant::now();
        Self { since, parts: ids, files, segments: replaced, read_parts: parts, read_segments: segments, room: None }
    }

    /// The same, if some of the files could not be moved. This is tried again before they are deleted.
    pub(super) fn with_some_not_moved(mut self) -> Self {
        self.files.are_moved = false;
        self
    }

    /// Keeps what it needs of the [`PACKED_RETIRED_BATCH_BYTES`](crate::limits::PACKED_RETIRED_BATCH_BYTES) that were reserved for it.
    pub(super) fn with_room(mut self, mut room: OwnedSemaphorePermit) -> Self {
        drop(room.split(room.num_permits().saturating_sub(self.bytes())));
        self.room = Some(room);
        self
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.parts.0.len() + self.segments.len() * size_of::<ReplacedSegment>()
    }

    fn is_read(&mut self) -> bool {
        keep_read(&mut self.read_parts);
        keep_read(&mut self.read_segments);
        !self.read_parts.is_empty() || !self.read_segments.is_empty()
    }
}

/// Drops what nobody else has.
fn keep_read<T>(all: &mut Vec<Arc<T>>) {
    all.retain(|one| Arc::strong_count(one) > 1);
    all.shrink_to_fit();
}

impl Retired {
    fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn push(&mut self, batch: Batch) {
        self.batches.push_back(batch);
    }

    /// Keeps a batch for another minute, after which it is tried again.
    fn push_again(&mut self, batch: Batch) {
        self.push(Batch { since: Instant::now(), ..batch });
    }

    /// A batch whose minute is over at `now` and that nobody reads. Its files can be deleted.
    fn pop(&mut self, now: Instant) -> Option<Batch> {
        for batch in &mut self.batches {
            batch.is_read();
        }
        let is_over = |batch: &mut Batch| now.duration_since(batch.since) >= RETIRED_FOR && !batch.is_read();
        let index = self.batches.iter_mut().position(is_over)?;
        self.batches.remove(index)
    }
}

/// Numbers of parts in their order: for each run without a gap, the numbers left out before it, and how long it is (varints).
struct PartIds(Box<[u8]>);

impl PartIds {
    fn of(ids: impl Iterator<Item = PartId>) -> Self {
        let mut bytes = Vec::new();
        let (mut end, mut run) = (0, None::<(u64, u64)>);
        for id in ids.map(PartId::get) {
            match &mut run {
                Some((first, len)) if id == *first + *len => *len += 1,
                _ => {
                    put_run(&mut bytes, &mut end, run);
                    run = Some((id, 1));
                }
            }
        }
        put_run(&mut bytes, &mut end, run);
        Self(bytes.into())
    }

    fn iter(&self) -> impl Iterator<Item = PartId> {
        let (mut rest, mut end) = (&self.0[..], 0);
        let runs = std::iter::from_fn(move || {
            let first = end + take_u64(&mut rest)?;
            end = first + take_u64(&mut rest)?;
            Some(first..end)
        });
        runs.flatten().filter_map(PartId::new)
    }
}

fn put_run(bytes: &mut Vec<u8>, end: &mut u64, run: Option<(u64, u64)>) {
    if let Some((first, len)) = run {
        put_u64(first - *end, bytes);
        put_u64(len, bytes);
        *end = first + len;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use crate::limits::{PACKED_RETIRED_BATCH_BYTES, PACKED_RETIRED_BYTES};

    use super::*;

    fn part(number: u64) -> Arc<Part> {
        Arc::new(Part {
            id: PartId::new(number).expect("above 0"),
            rows: 1,
            csv_bytes: 1,
            parquet_bytes: 1,
            row_groups: 1,
            footer_bytes: 1,
            columns_count: 1,
            source_bytes: 0,
            schema: None,
            checks: None,
            key_hash: None,
            packed: None,
        })
    }

    fn batch(numbers: impl Iterator<Item = u64>) -> Batch {
        Batch::new(numbers.map(part).collect(), Vec::new())
    }

    fn numbers(batch: Option<Batch>) -> Vec<u64> {
        batch.iter().flat_map(|batch| batch.parts.iter()).map(PartId::get).collect()
    }

    #[test]
    fn numbers_come_back() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let gap = random.u64(1..5);
            let mut last = random.u64(0..1 << 40);
            let all: Vec<u64> = (0..random.usize(0..50))
                .map(|_| {
                    last += random.u64(1..=gap);
                    last
                })
                .collect();
            assert_eq!(numbers(Some(batch(all.iter().copied()))), all);
        }
    }

    #[test]
    fn nothing_is_deleted_before_a_minute_however_much_there_is() {
        let start = Instant::now();
        let mut retired = Retired::default();
        // 3,000 parts a second, in runs of 1,024; every tenth part is large and keeps its own files.
        for run in 0..60 * 3 {
            let first = 1 + 1138 * run;
            retired.push(batch((first..first + 1138).filter(|number| number % 10 != 0)));
        }
        let bytes: usize = retired.batches.iter().map(Batch::bytes).sum();
        assert!(
            bytes + PACKED_RETIRED_BATCH_BYTES as usize <= PACKED_RETIRED_BYTES,
            "{bytes} bytes: packing would have to wait"
        );
        assert!(retired.pop(start + Duration::from_secs(59)).is_none());
        let over = Instant::now() + RETIRED_FOR;
        for run in 0..60 * 3 {
            let first = 1 + 1138 * run;
            let expected: Vec<_> = (first..first + 1138).filter(|number| number % 10 != 0).collect();
            assert_eq!(numbers(retired.pop(over)), expected);
        }
        assert!(retired.pop(over).is_none() && retired.is_empty());
    }

    #[test]
    fn what_is_read_stays_until_it_is_not() {
        let over = Instant::now() + RETIRED_FOR + RETIRED_FOR;
        let read = part(2);
        let mut retired = Retired::default();
        retired.push(Batch::new(vec![part(1), Arc::clone(&read)], Vec::new()));
        retired.push(batch(5..7));
        assert_eq!(numbers(retired.pop(over)), [5, 6], "it waits for no other");
        assert!(retired.pop(over).is_none());
        drop(read);
        let batch = retired.pop(over).expect("nobody reads it");
        assert_eq!(numbers(Some(batch)), [1, 2]);
    }

    #[test]
    fn what_could_not_be_deleted_is_tried_again_after_another_minute() {
        let mut retired = Retired::default();
        retired.push(batch(1..3));
        let over = Instant::now() + RETIRED_FOR;
        let again = retired.pop(over).expect("its minute is over");
        retired.push_again(Batch { since: Instant::now() - RETIRED_FOR, ..again });
        assert!(retired.pop(Instant::now()).is_none());
        assert_eq!(numbers(retired.pop(Instant::now() + RETIRED_FOR)), [1, 2]);
    }

    #[test]
    fn a_batch_keeps_room_for_its_numbers_and_returns_the_rest() {
        let room = Arc::new(Semaphore::new(PACKED_RETIRED_BYTES));
        let (mut batches, mut bytes, mut parts) = (Vec::new(), 0, 0);
        while let Ok(permit) = Arc::clone(&room).try_acquire_many_owned(PACKED_RETIRED_BATCH_BYTES) {
            let batch = batch((0..1024).map(|index| parts + 2 * index + 1)).with_room(permit);
            bytes += batch.bytes();
            assert_eq!(room.available_permits(), PACKED_RETIRED_BYTES - bytes);
            batches.push(batch);
            parts += 4096;
        }
        assert!(batches.len() * 1024 > 180_000, "{} batches", batches.len());
        batches.clear();
        assert_eq!(room.available_permits(), PACKED_RETIRED_BYTES);
    }
}
