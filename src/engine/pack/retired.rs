//! What segments have replaced: files that were moved out of `parts/`, and can be read for another minute, or until no question
//! has them in its snapshot of the table.
//!
//! Memory: about a byte for each run of part numbers, so 3,000 parts a second take a few KiB a minute. Of parts that are still in
//! a snapshot there is also a pointer each, as long as the snapshot exists, which keeps more of each part than that.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    engine::{
        storage::segments::replaced::ReplacedSegment,
        values::varint::{put_u64, take_u64},
    },
    limits::{PACKED_RETIRED_BATCH_BYTES, PACKED_RETIRED_BYTES},
    model::{
        packed::Segment,
        part::{Part, PartId},
    },
};

/// How long what was replaced can still be read.
const RETIRED_FOR: Duration = Duration::from_secs(60);

/// What was replaced and is not deleted yet, the oldest first.
#[derive(Default)]
pub(super) struct Retired {
    batches: VecDeque<Batch>,
    /// Bytes of all of them, without the pointers to what is in snapshots.
    bytes: usize,
}

/// What one segment has replaced.
pub(super) struct Batch {
    since: Instant,
    parts: PartIds,
    segments: Vec<ReplacedSegment>,
    /// Those of the parts and segments that a snapshot has, or had when this was last looked at. No other can be read again.
    read_parts: Vec<Arc<Part>>,
    read_segments: Vec<Arc<Segment>>,
}

impl Batch {
    /// Parts in the order of their numbers, and segments, which are not in the table any more. Their files were moved just now.
    pub(super) fn new(mut parts: Vec<Arc<Part>>, mut segments: Vec<Arc<Segment>>) -> Self {
        let ids = PartIds::of(parts.iter().map(|part| part.id));
        let replaced = segments.iter().map(|segment| ReplacedSegment::of(segment)).collect();
        keep_read(&mut parts);
        keep_read(&mut segments);
        Self { since: Instant::now(), parts: ids, segments: replaced, read_parts: parts, read_segments: segments }
    }

    /// The numbers of the parts.
    pub(super) fn parts(&self) -> impl Iterator<Item = PartId> {
        self.parts.iter()
    }

    /// The files of the segments.
    pub(super) fn into_segments(self) -> Vec<ReplacedSegment> {
        self.segments
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
    /// Whether one more batch fits. If not, packing has to wait until some are a minute old.
    pub(super) fn has_room(&self) -> bool {
        self.bytes + PACKED_RETIRED_BATCH_BYTES <= PACKED_RETIRED_BYTES
    }

    pub(super) fn push(&mut self, batch: Batch) {
        self.bytes += batch.bytes();
        self.batches.push_back(batch);
    }

    /// A batch whose minute is over at `now` and that nobody reads. Its files can be deleted.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Batch> {
        for batch in &mut self.batches {
            batch.is_read();
        }
        let is_over = |batch: &mut Batch| now.duration_since(batch.since) >= RETIRED_FOR && !batch.is_read();
        let index = self.batches.iter_mut().position(is_over)?;
        let batch = self.batches.remove(index)?;
        self.bytes -= batch.bytes();
        Some(batch)
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
        batch.iter().flat_map(Batch::parts).map(PartId::get).collect()
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
            assert!(retired.has_room());
            retired.push(batch((first..first + 1138).filter(|number| number % 10 != 0)));
        }
        assert!(retired.pop(start + Duration::from_secs(59)).is_none());
        let over = Instant::now() + RETIRED_FOR;
        for run in 0..60 * 3 {
            let first = 1 + 1138 * run;
            let expected: Vec<_> = (first..first + 1138).filter(|number| number % 10 != 0).collect();
            assert_eq!(numbers(retired.pop(over)), expected);
        }
        assert!(retired.pop(over).is_none() && retired.bytes == 0);
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
        assert_eq!(numbers(retired.pop(over)), [1, 2]);
    }

    #[test]
    fn there_is_no_room_for_any_number_of_batches() {
        let mut retired = Retired::default();
        let mut parts = 0;
        while retired.has_room() {
            retired.push(batch((0..1024).map(|index| parts + 2 * index + 1)));
            parts += 4096;
        }
        assert!(retired.bytes <= PACKED_RETIRED_BYTES);
        assert!(retired.batches.len() * 1024 > 180_000, "{} batches", retired.batches.len());
    }
}
