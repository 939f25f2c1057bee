//! What is packed next. Pure: it looks at a snapshot of the table.
//!
//! The oldest small parts become a segment of up to [`RUN_PARTS`] parts. [`MERGED_SEGMENTS`] segments of about the same size that
//! follow each other become one, as in a log-structured merge tree, so each part is written about log(n) times.
//!
//! Segments are not merged if the receipt would be too long, because they have too many different lists of columns. Then the
//! number of segments grows with that of the parts; they count towards `--parts-max` with their Parquet files.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, OrdSet};

use crate::{
    engine::state::registry::Snapshot,
    limits::{
        PACKED_FILES_MAX, PACKED_REST_TEXT_BYTES, PACKED_SEGMENT_BYTES_MAX, SEGMENT_RECEIPT_BYTES_MAX, URGENT_RUN_PARTS,
    },
    model::{
        packed::{Segment, SegmentId},
        part::{Part, PartId},
    },
};

/// Parts of a segment that is made of parts, at most.
pub(super) const RUN_PARTS: usize = 1024;
/// Segments that become one.
pub(super) const MERGED_SEGMENTS: usize = 8;
/// With more segments than this, they are merged before more parts are packed, and fewer at once if eight cannot be merged.
const SEGMENTS_BEFORE_PARTS: usize = 64;
/// A segment is written anew if at least one in so many of its parts was purged.
const PURGED_SHARE: u64 = 16;
/// Bytes of the index for a part, about.
const INDEX_BYTES: u64 = 512;
/// The disk must have this much room besides what a segment takes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// What is done next.
pub(super) enum Next {
    Write(Run),
    /// All parts of this segment were purged. It is removed without being written anew.
    Drop(Arc<Segment>, Vec<PartId>),
    /// There is nothing to do; or everything that could be done takes more room than the disk has.
    Nothing {
        is_disk_too_full: bool,
    },
}

/// What has to be known besides the table.
#[derive(Clone, Default)]
pub(super) struct Circumstances {
    /// All purged parts of segments.
    pub(super) purged: OrdSet<PartId>,
    /// Parts that cannot be packed, because they are damaged; nor can the segments that have them.
    pub(super) damaged: BTreeSet<PartId>,
    /// Segments that may be put back. Others must not cover their numbers.
    pub(super) in_quarantine: Arc<[SegmentId]>,
    /// The newest small parts, so many of them, keep their own files.
    pub(super) unpacked_max: usize,
    /// Packing was asked for: runs need not be full, and what was purged has to go.
    pub(super) is_forced: bool,
    /// The table is nearly full, or many purged parts are still in segments.
    pub(super) is_urgent: bool,
    /// Room on the disk.
    pub(super) free_bytes: u64,
}

/// Parts and segments that become one segment.
#[derive(Clone)]
pub(super) struct Run {
    /// The segment's name.
    pub(super) id: SegmentId,
    /// Parts that have their own files.
    pub(super) parts: Vec<Arc<Part>>,
    pub(super) segments: Vec<Arc<Segment>>,
    /// Purged parts of these segments, which the new one does not have.
    pub(super) purged: Vec<PartId>,
}

impl Run {
    /// The parts that the segment will have.
    pub(super) fn snapshot(&self) -> Snapshot {
        let parts: OrdMap<_, _> = self.parts.iter().map(|part| (part.id, Arc::clone(part))).collect();
        let segments = self.segments.iter().map(|segment| (segment.id.first, Arc::clone(segment))).collect();
        let removed: OrdSet<_> = self.purged.iter().copied().collect();
        Snapshot::of(parts, segments, removed)
    }

    /// Bytes of its CSV, at most.
    pub(super) fn csv_bytes(&self) -> u64 {
        let segments: u64 = self.segments.iter().map(|segment| segment.csv_bytes).sum();
        segments + self.parts.iter().map(|part| part.csv_bytes).sum::<u64>()
    }

    /// Bytes that are written for it, about.
    fn written_bytes(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| bytes_of(segment)).sum::<u64>();
        segments + self.parts.iter().map(|part| bytes_of_part(part)).sum::<u64>()
    }
}

fn bytes_of(segment: &Segment) -> u64 {
    segment.csv_bytes + segment.index_bytes + segment.files.iter().map(|file| file.bytes).sum::<u64>()
}

fn bytes_of_part(part: &Part) -> u64 {
    part.csv_bytes + part.parquet_bytes + INDEX_BYTES
}

/// What is done next.
pub(super) fn next(table: &Snapshot, now: &Circumstances) -> Next {
    let mut planner = Planner { table, now, after: None, is_disk_too_full: false };
    if let Some((segment, purged)) = planner.without_parts() {
        return Next::Drop(segment, purged);
    }
    // Segments come first if there are many, so that their number is bounded while parts keep coming.
    let many_segments = table.segments.len() > SEGMENTS_BEFORE_PARTS;
    let mut run = if many_segments { planner.run_of_segments() } else { None };
    if run.is_none() && (now.is_urgent || now.is_forced) {
        run = planner.run_of_purged();
    }
    let run = run
        .or_else(|| planner.run_of_parts())
        .or_else(|| planner.run_of_segments())
        .or_else(|| planner.run_of_purged());
    match run {
        Some(run) => Next::Write(run),
        None => Next::Nothing { is_disk_too_full: planner.is_disk_too_full },
    }
}

/// The oldest small parts after this number, if there are enough for a segment: those that are packed while segments before them
/// are made one.
pub(super) fn next_newer(table: &Snapshot, now: &Circumstances, after: PartId) -> Option<Run> {
    Planner { table, now, after: Some(after), is_disk_too_full: false }.run_of_parts()
}

struct Planner<'a> {
    table: &'a Snapshot,
    now: &'a Circumstances,
    /// Only parts after this number are packed.
    after: Option<PartId>,
    /// Whether a run was left out, because the disk has too little room for it.
    is_disk_too_full: bool,
}

impl Planner<'_> {
    /// Whether a segment of parts with these numbers would cover one that is in quarantine.
    fn covers_quarantine(&self, first: PartId, last: PartId) -> bool {
        self.now.in_quarantine.iter().any(|segment| first <= segment.last && segment.first <= last)
    }

    fn is_damaged(&self, segment: &Segment) -> bool {
        self.now.damaged.range(segment.id.first..=segment.id.last).next().is_some()
    }

    fn purged_in(&self, segment: &Segment) -> impl Iterator<Item = PartId> + use<'_> {
        self.now.purged.range(segment.id.first..=segment.id.last).copied()
    }

    /// Bytes of a segment that the disk has room for. What it replaces is deleted later.
    fn room_bytes(&self) -> u64 {
        let free = self.now.free_bytes.saturating_sub(FREE_BYTES_MIN);
        free - free / 8
    }

    fn fits_on_disk(&mut self, run: Run) -> Option<Run> {
        let fits = run.written_bytes() <= self.room_bytes();
        self.is_disk_too_full |= !fits;
        fits.then_some(run)
    }

    fn without_parts(&self) -> Option<(Arc<Segment>, Vec<PartId>)> {
        self.table.segments.values().find_map(|segment| {
            let is_empty = self.purged_in(segment).count() as u64 >= segment.parts;
            is_empty.then(|| (Arc::clone(segment), self.purged_in(segment).collect()))
        })
    }

    fn run_of_parts(&mut self) -> Option<Run> {
        let (table, now) = (self.table, self.now);
        let least = match (now.is_forced, now.is_urgent) {
            (true, _) => 2,
            (false, true) => URGENT_RUN_PARTS,
            (false, false) => RUN_PARTS,
        };
        if table.parts.len() < now.unpacked_max.saturating_add(least) {
            return None;
        }
        let is_in_gap = |part: &Part| !table.segments.get_prev(&part.id).is_some_and(|(_, of)| of.id.covers(part.id));
        let is_after = |part: &Part| self.after.is_none_or(|after| part.id > after);
        let is_wanted = |part: &&Arc<Part>| {
            part.is_packable() && is_after(part) && is_in_gap(part) && !now.damaged.contains(&part.id)
        };
        let wanted = table.parts.values().filter(is_wanted).count().saturating_sub(now.unpacked_max);
        let room_bytes = self.room_bytes();
        let (mut run, mut bytes, mut is_cut): (Vec<Arc<Part>>, u64, bool) = (Vec::new(), 0, false);
        for part in table.parts.values().filter(is_wanted).take(wanted) {
            let is_other_side = run.last().is_some_and(|last| {
                let segment = table.segments.get_next(&last.id);
                segment.is_some_and(|(_, segment)| segment.id.first < part.id)
                    || self.covers_quarantine(last.id, part.id)
            });
            if run.len() == RUN_PARTS || (is_other_side && run.len() >= least) {
                break;
            }
            if is_other_side {
                (run, bytes) = (Vec::new(), 0); // too few parts between two segments: they are packed with these
            }
            bytes += bytes_of_part(part);
            if bytes > room_bytes {
                is_cut = true;
                break;
            }
            run.push(Arc::clone(part));
        }
        if run.len() < if is_cut { 2 } else { least } {
            self.is_disk_too_full |= is_cut;
            return None;
        }
        let (first, last) = (run.first()?.id, run.last()?.id);
        Some(Run { id: SegmentId { first, last, version: 1 }, parts: run, segments: Vec::new(), purged: Vec::new() })
    }

    fn run_of_segments(&mut self) -> Option<Run> {
        let segments: Vec<_> = self.table.segments.values().cloned().collect();
        let classes: BTreeSet<_> = segments.iter().map(|segment| class(segment)).collect();
        let counts: &[usize] =
            if segments.len() > SEGMENTS_BEFORE_PARTS { &[MERGED_SEGMENTS, 4, 2] } else { &[MERGED_SEGMENTS] };
        for count in counts {
            for of_class in &classes {
                // The longest stretches of segments that are not larger.
                let is_end = |segment: &Arc<Segment>| class(segment) > *of_class || self.is_damaged(segment);
                let stretches: Vec<_> = segments.split(is_end).collect();
                for chosen in stretches.into_iter().flat_map(|stretch| stretch.windows(*count)) {
                    let (first, last) = (chosen[0].id.first, chosen[chosen.len() - 1].id.last);
                    if can_be_one(chosen)
                        && !self.covers_quarantine(first, last)
                        && let Some(run) = self.fits_on_disk(self.merge(chosen.to_vec()))
                    {
                        return Some(run);
                    }
                }
            }
        }
        None
    }

    /// The segment with the most purged parts, if they are enough.
    fn run_of_purged(&mut self) -> Option<Run> {
        let is_any_enough = self.now.is_forced || self.now.is_urgent;
        let counted = self.table.segments.values().map(|segment| (self.purged_in(segment).count() as u64, segment));
        let enough = counted.filter(|(count, segment)| {
            let is_enough = is_any_enough || count * PURGED_SHARE >= segment.parts;
            *count > 0 && is_enough && !self.is_damaged(segment)
        });
        let mut enough: Vec<_> = enough.collect();
        enough.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        enough.into_iter().find_map(|(_, segment)| self.fits_on_disk(self.merge(vec![Arc::clone(segment)])))
    }

    /// The run that makes one segment of these, and of small parts that are between them.
    fn merge(&self, segments: Vec<Arc<Segment>>) -> Run {
        let first = segments.first().map_or(PartId::FIRST, |segment| segment.id.first);
        let last = segments.last().map_or(first, |segment| segment.id.last);
        let version = match &segments[..] {
            [only] => only.id.version + 1,
            _ => 1,
        };
        let between = self
            .table
            .parts
            .range(first..=last)
            .map(|(_, part)| part)
            .filter(|part| part.is_packable() && !self.now.damaged.contains(&part.id));
        Run {
            id: SegmentId { first, last, version },
            parts: between.cloned().collect(),
            purged: segments.iter().flat_map(|segment| self.purged_in(segment)).collect(),
            segments,
        }
    }
}

/// The size class of a segment: those of one class become one of the next.
fn class(segment: &Segment) -> u32 {
    let runs = segment.parts.div_ceil(RUN_PARTS as u64).max(1);
    runs.ilog(MERGED_SEGMENTS as u64)
}

/// Whether these segments can be one: neither it nor its receipt would be too large, and no segment is larger than all others
/// together, or it would be written again for a few small ones each time.
fn can_be_one(segments: &[Arc<Segment>]) -> bool {
    let parts: u64 = segments.iter().map(|segment| segment.parts).sum();
    if segments.iter().any(|segment| segment.parts > parts - segment.parts) {
        return false;
    }
    let bytes: u64 = segments.iter().map(|segment| segment.csv_bytes).sum();
    let (mut schemas, mut text_bytes) = (BTreeSet::new(), PACKED_REST_TEXT_BYTES);
    for file in segments.iter().flat_map(|segment| &segment.files) {
        if schemas.insert(file.schema_hash) {
            text_bytes += file.text_bytes as usize;
        }
        if schemas.len() > PACKED_FILES_MAX || text_bytes > SEGMENT_RECEIPT_BYTES_MAX {
            return false;
        }
    }
    bytes <= PACKED_SEGMENT_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use crate::{
        limits::PACKED_CSV_BYTES_MAX,
        model::{packed::SegmentParquet, part::Checks},
    };

    use super::*;

    fn part(number: u64, csv_bytes: u64) -> Arc<Part> {
        Arc::new(Part {
            id: PartId::new(number).expect("above 0"),
            rows: 1,
            csv_bytes,
            parquet_bytes: 1,
            row_groups: 1,
            footer_bytes: 1,
            columns_count: 1,
            source_bytes: 0,
            schema: None,
            checks: Some(Checks { csv: 0, parquet: 0, chunks_in_sums: false }),
            key_hash: None,
            packed: None,
        })
    }

    fn segment(first: u64, last: u64) -> Arc<Segment> {
        let id = |number| PartId::new(number).expect("above 0");
        let file = SegmentParquet {
            parts: last - first + 1,
            rows: 1,
            parts_parquet_bytes: 1,
            bytes: 1,
            row_groups: 1,
            footer_bytes: 1,
            check: 0,
            columns_count: 1,
            text_bytes: 700,
            schema_hash: 0,
            schema: None,
        };
        Arc::new(Segment {
            id: SegmentId { first: id(first), last: id(last), version: 1 },
            parts: last - first + 1,
            csv_bytes: 1,
            csv_check: 0,
            index_bytes: 1,
            index_check: 0,
            index_blocks: 1,
            fences_check: 0,
            keys: (0, 0),
            files: Box::new([file]),
        })
    }

    fn table(parts: impl IntoIterator<Item = Arc<Part>>, segments: impl IntoIterator<Item = Arc<Segment>>) -> Snapshot {
        let parts = parts.into_iter().map(|part| (part.id, part)).collect();
        let segments = segments.into_iter().map(|segment| (segment.id.first, segment)).collect();
        Snapshot::of(parts, segments, OrdSet::new())
    }

    fn now(unpacked_max: usize, is_forced: bool) -> Circumstances {
        Circumstances { unpacked_max, is_forced, free_bytes: u64::MAX, ..Circumstances::default() }
    }

    fn purged(numbers: impl IntoIterator<Item = u64>) -> OrdSet<PartId> {
        numbers.into_iter().filter_map(PartId::new).collect()
    }

    /// The name of the next segment, and how many parts and segments it is made of.
    fn run(table: &Snapshot, now: &Circumstances) -> Option<(String, usize, usize)> {
        match next(table, now) {
            Next::Write(run) => Some((run.id.to_string(), run.parts.len(), run.segments.len())),
            Next::Drop(segment, purged) => panic!("{} is dropped, and {purged:?}", segment.id),
            Next::Nothing { .. } => None,
        }
    }

    fn named(name: &str, parts: usize, segments: usize) -> Option<(String, usize, usize)> {
        Some((name.to_owned(), parts, segments))
    }

    #[test]
    fn the_oldest_small_parts_are_packed_when_there_are_enough() {
        let few = table((1..=63).map(|number| part(number, 9)), []);
        assert_eq!(run(&few, &now(0, false)), None);
        assert_eq!(run(&few, &now(0, true)), named("1-63-1", 63, 0));
        assert_eq!(run(&few, &now(62, true)), None, "one part alone stays as it is");
        assert_eq!(run(&few, &now(60, true)), named("1-3-1", 3, 0));
        let many = table((1..=2000).map(|number| part(number, 9)), []);
        assert_eq!(run(&many, &now(0, false)), named("1-1024-1", 1024, 0));
        assert_eq!(run(&many, &now(2000, false)), None);
    }

    #[test]
    fn large_and_damaged_parts_are_left_out() {
        let parts = || (1..=9).map(|number| part(number, if number % 3 == 0 { PACKED_CSV_BYTES_MAX + 1 } else { 9 }));
        assert_eq!(run(&table(parts(), []), &now(0, true)), named("1-8-1", 6, 0));
        let damaged = Circumstances { damaged: [1, 4].into_iter().filter_map(PartId::new).collect(), ..now(0, true) };
        assert_eq!(run(&table(parts(), []), &damaged), named("2-8-1", 4, 0));
        let segments = (0..8).map(|index| segment(10 * index + 1, 10 * index + 10));
        assert_eq!(run(&table([], segments), &damaged), None, "the first segment has a damaged part");
    }

    #[test]
    fn a_run_does_not_reach_over_a_segment() {
        let parts = [1, 2, 3, 30, 31].map(|number| part(number, 9));
        assert_eq!(run(&table(parts, [segment(10, 20)]), &now(0, true)), named("1-3-1", 3, 0));
        let parts = [1, 15, 30, 31].map(|number| part(number, 9));
        assert_eq!(run(&table(parts, [segment(10, 20)]), &now(0, true)), named("30-31-1", 2, 0));
    }

    #[test]
    fn a_run_does_not_cover_a_segment_in_quarantine() {
        let lost = |is_forced| Circumstances { in_quarantine: Arc::new([segment(10, 20).id]), ..now(0, is_forced) };
        let parts = [1, 2, 3, 30, 31].map(|number| part(number, 9));
        assert_eq!(run(&table(parts, []), &lost(true)), named("1-3-1", 3, 0));
        let segments = (0..9).map(|index| segment(100 * index + 30, 100 * index + 50));
        assert_eq!(run(&table([], segments), &lost(false)), named("30-750-1", 0, 8));
        let around = [segment(1, 5)].into_iter().chain((0..7).map(|index| segment(100 * index + 30, 100 * index + 50)));
        assert_eq!(run(&table([], around), &lost(false)), None);
    }

    #[test]
    fn eight_segments_of_a_size_become_one_with_the_parts_between_them() {
        let segments = |count| (0..count).map(|index| segment(100 * index + 1, 100 * index + 50));
        assert_eq!(run(&table([], segments(7)), &now(0, false)), None);
        assert_eq!(run(&table([], segments(9)), &now(0, false)), named("1-750-1", 0, 8));
        assert_eq!(run(&table([part(60, 9)], segments(8)), &now(10, false)), named("1-750-1", 1, 8));
        let large = segment(1_000, 1_000 + 8 * RUN_PARTS as u64);
        let around = (0..4).map(|index| segment(10 * index + 1, 10 * index + 5));
        let after = (0..7).map(|index| segment(100_000 + 10 * index, 100_005 + 10 * index));
        assert_eq!(run(&table([], around.chain([large]).chain(after)), &now(0, false)), None, "it is larger");
    }

    #[test]
    fn newer_parts_are_packed_while_segments_before_them_become_one() {
        let parts = (1..=60).chain(2001..=4000).map(|number| part(number, 9));
        let table = table(parts, (0..8).map(|index| segment(100 * index + 101, 100 * index + 150)));
        let newer = |after, unpacked_max| {
            let run = next_newer(&table, &now(unpacked_max, false), PartId::new(after).expect("above 0"));
            run.map(|run| (run.id.to_string(), run.parts.len(), run.segments.len()))
        };
        assert_eq!(run(&table, &now(0, false)), named("2001-3024-1", 1024, 0), "60 parts between are too few");
        assert_eq!(newer(850, 0), named("2001-3024-1", 1024, 0));
        assert_eq!(newer(2500, 0), named("2501-3524-1", 1024, 0));
        assert_eq!(newer(2500, 477), None, "the newest keep their own files");
        assert_eq!(newer(3500, 0), None, "too few");
    }

    #[test]
    fn a_segment_is_written_anew_when_many_of_its_parts_are_purged() {
        let with = |count, is_forced| Circumstances { purged: purged(1..=count), ..now(0, is_forced) };
        let one = table([], [segment(1, 64)]);
        assert_eq!(run(&one, &with(3, false)), None);
        assert_eq!(run(&one, &with(4, false)), named("1-64-2", 0, 1));
        // One is enough if there are many in all segments, or if packing was asked for: first the segment with the most.
        let two = table([], [segment(1, 64), segment(101, 200)]);
        let numbers = [1, 101, 102];
        let urgent = Circumstances { purged: purged(numbers), is_urgent: true, ..now(0, false) };
        assert_eq!(run(&two, &urgent), named("101-200-2", 0, 1));
        assert_eq!(run(&two, &Circumstances { purged: purged(numbers), ..now(0, true) }), named("101-200-2", 0, 1));
        assert_eq!(run(&two, &Circumstances { purged: purged(numbers), ..now(0, false) }), None);
    }

    #[test]
    fn a_segment_without_parts_is_dropped() {
        let two = table([], [segment(1, 64), segment(101, 103)]);
        match next(&two, &Circumstances { purged: purged([1, 101, 102, 103]), ..now(0, false) }) {
            Next::Drop(segment, purged) => assert_eq!((segment.id.first.get(), purged.len()), (101, 3)),
            _ => panic!("101-103-1 has no parts"),
        }
    }

    #[test]
    fn what_the_disk_has_no_room_for_is_left_out_and_less_is_taken() {
        let with = |bytes: u64, is_forced| Circumstances { free_bytes: FREE_BYTES_MIN + bytes, ..now(0, is_forced) };
        let parts = || (1..=100).map(|number| part(number, 999));
        let each = 999 + 1 + INDEX_BYTES;
        assert_eq!(run(&table(parts(), []), &with(120 * each, true)), named("1-100-1", 100, 0));
        assert_eq!(run(&table(parts(), []), &with(80 * each, true)), named("1-70-1", 70, 0));
        assert!(matches!(next(&table(parts(), []), &with(each, true)), Next::Nothing { is_disk_too_full: true }));
        assert!(matches!(next(&table([], []), &with(0, true)), Next::Nothing { is_disk_too_full: false }));
        // 70 segments that do not fit as one: parts are packed nevertheless.
        let large = |first| {
            let mut large = Arc::into_inner(segment(first, first + 9)).expect("one");
            large.csv_bytes = 1000 * each;
            Arc::new(large)
        };
        let many = || (0..70).map(|index| large(1000 + 10 * index));
        assert_eq!(run(&table(parts(), many()), &with(120 * each, true)), named("1-100-1", 100, 0));
        // Two of them fit.
        assert_eq!(run(&table(parts(), many()), &with(2500 * each, true)), named("1000-1019-1", 0, 2));
        assert_eq!(run(&table(parts(), many()), &with(u64::MAX / 2, true)), named("1000-1079-1", 0, 8));
    }

    #[test]
    fn segments_whose_receipt_would_be_too_long_are_not_merged() {
        let with = |text_bytes: usize, lists: u64| {
            let segments = (0..8).map(move |index| {
                let mut one = Arc::into_inner(segment(100 * index + 1, 100 * index + 50)).expect("one");
                one.files[0].text_bytes = u32::try_from(text_bytes).expect("few");
                one.files[0].schema_hash = index % lists;
                Arc::new(one)
            });
            run(&table([], segments), &now(0, false))
        };
        let most = (SEGMENT_RECEIPT_BYTES_MAX - PACKED_REST_TEXT_BYTES) / 8;
        assert_eq!(with(most, 8), named("1-750-1", 0, 8));
        assert_eq!(with(most + 1, 8), None);
        assert_eq!(with(most + 1, 7), named("1-750-1", 0, 8), "two have the same columns");
    }
}
