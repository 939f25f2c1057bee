//! What is packed next. Pure: it looks at a snapshot of the table.
//!
//! The oldest small parts become a segment of up to [`RUN_PARTS`] parts. [`MERGED_SEGMENTS`] segments of about the same size that
//! follow each other become one, as in a log-structured merge tree, so each part is written about log(n) times.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, OrdSet};

use crate::{
    engine::state::registry::Snapshot,
    limits::{PACKED_CSV_BYTES_MAX, PACKED_FILES_MAX, PACKED_SEGMENT_BYTES_MAX},
    model::{
        packed::{Segment, SegmentId},
        part::{Part, PartId},
    },
};

/// Parts of a segment that is made of parts, at most.
pub(super) const RUN_PARTS: usize = 1024;
/// Segments that become one.
pub(super) const MERGED_SEGMENTS: usize = 8;
/// With more segments than this, they are merged before more parts are packed.
const SEGMENTS_BEFORE_PARTS: usize = 64;
/// A segment is written anew if at least one in so many of its parts was purged.
const PURGED_SHARE: u64 = 16;

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
}

/// The next run; `None` if there is nothing to do. The newest `unpacked_max` small parts keep their own files. `is_forced`: runs need
/// not be full.
pub(super) fn next_run(table: &Snapshot, special: &Special, unpacked_max: usize, is_forced: bool) -> Option<Run> {
    // Segments come first if there are many, so that their number is bounded while parts keep coming.
    let many_segments = table.segments.len() > SEGMENTS_BEFORE_PARTS;
    let segments_first = many_segments.then(|| run_of_segments(table, special)).flatten();
    segments_first
        .or_else(|| run_of_parts(table, special, unpacked_max, is_forced))
        .or_else(|| run_of_segments(table, special))
        .or_else(|| run_of_purged(table, special, is_forced))
}

/// Parts that are not simply packed.
#[derive(Default)]
pub(super) struct Special {
    /// All purged parts of segments.
    pub(super) purged: BTreeSet<PartId>,
    /// Parts that cannot be packed, because they are damaged; nor can the segments that have them.
    pub(super) damaged: BTreeSet<PartId>,
    /// Segments that may be put back. Others must not cover their numbers.
    pub(super) in_quarantine: Arc<[SegmentId]>,
}

impl Special {
    /// Whether a segment of parts with these numbers would cover one that is in quarantine.
    fn covers_quarantine(&self, first: PartId, last: PartId) -> bool {
        self.in_quarantine.iter().any(|segment| first <= segment.last && segment.first <= last)
    }

    fn is_damaged(&self, segment: &Segment) -> bool {
        self.damaged.range(segment.id.first..=segment.id.last).next().is_some()
    }
}

/// Whether a part can be in a segment.
fn is_small(part: &Part) -> bool {
    part.csv_bytes <= PACKED_CSV_BYTES_MAX && part.checks.is_some()
}

fn run_of_parts(table: &Snapshot, special: &Special, unpacked_max: usize, is_forced: bool) -> Option<Run> {
    let least = if is_forced { 2 } else { RUN_PARTS };
    if table.parts.len() < unpacked_max.saturating_add(least) {
        return None;
    }
    let is_in_gap = |part: &Part| !table.segments.get_prev(&part.id).is_some_and(|(_, of)| of.id.covers(part.id));
    let is_wanted = |part: &&Arc<Part>| is_small(part) && is_in_gap(part) && !special.damaged.contains(&part.id);
    let small = table.parts.values().filter(is_wanted).count();
    let wanted = small.saturating_sub(unpacked_max);
    let (mut run, mut schemas): (Vec<Arc<Part>>, BTreeSet<_>) = (Vec::new(), BTreeSet::new());
    for part in table.parts.values().filter(is_wanted).take(wanted) {
        let is_other_side = run.last().is_some_and(|last| {
            let segment = table.segments.get_next(&last.id);
            segment.is_some_and(|(_, segment)| segment.id.first < part.id)
                || special.covers_quarantine(last.id, part.id)
        });
        if run.len() == RUN_PARTS || schemas.len() == PACKED_FILES_MAX || (is_other_side && run.len() >= least) {
            break;
        }
        if is_other_side {
            run.clear(); // too few parts between two segments: they are packed with these
            schemas.clear();
        }
        // Of a part whose schema is not in memory, nothing else is known.
        schemas.insert(part.schema.as_ref().map_or((0, Some(part.id)), |schema| (schema.hash(), None)));
        run.push(Arc::clone(part));
    }
    if run.len() < least && schemas.len() < PACKED_FILES_MAX {
        return None;
    }
    let (first, last) = (run.first()?.id, run.last()?.id);
    Some(Run { id: SegmentId { first, last, version: 1 }, parts: run, segments: Vec::new(), purged: Vec::new() })
}

/// The size class of a segment: those of one class become one of the next.
fn class(segment: &Segment) -> u32 {
    let runs = segment.parts.div_ceil(RUN_PARTS as u64).max(1);
    runs.ilog(MERGED_SEGMENTS as u64)
}

fn run_of_segments(table: &Snapshot, special: &Special) -> Option<Run> {
    let segments: Vec<_> = table.segments.values().cloned().collect();
    let classes: BTreeSet<_> = segments.iter().map(|segment| class(segment)).collect();
    for of_class in classes {
        // The longest stretches of segments that are not larger.
        for stretch in segments.split(|segment| class(segment) > of_class || special.is_damaged(segment)) {
            let is_free = |chosen: &&[Arc<Segment>]| {
                let (first, last) = (chosen[0].id.first, chosen[chosen.len() - 1].id.last);
                fits(chosen) && !special.covers_quarantine(first, last)
            };
            if let Some(chosen) = stretch.windows(MERGED_SEGMENTS).find(is_free) {
                return Some(merge(table, chosen.to_vec(), special));
            }
        }
    }
    None
}

/// Whether these segments can be one: it would not be too large, and no segment is larger than all others together, or it would be
/// written again for a few small ones each time.
fn fits(segments: &[Arc<Segment>]) -> bool {
    let parts: u64 = segments.iter().map(|segment| segment.parts).sum();
    if segments.iter().any(|segment| segment.parts > parts - segment.parts) {
        return false;
    }
    let bytes: u64 = segments.iter().map(|segment| segment.csv_bytes).sum();
    let files = || segments.iter().flat_map(|segment| &segment.files);
    let known: BTreeSet<_> = files().filter_map(|file| file.schema.as_ref().map(|schema| schema.hash())).collect();
    let unknown = files().filter(|file| file.schema.is_none()).count();
    bytes <= PACKED_SEGMENT_BYTES_MAX && known.len() + unknown <= PACKED_FILES_MAX
}

/// A segment of which enough parts were purged; if `is_forced`, one.
fn run_of_purged(table: &Snapshot, special: &Special, is_forced: bool) -> Option<Run> {
    let is_wanted = |segment: &&Arc<Segment>| {
        let count = special.purged.range(segment.id.first..=segment.id.last).count() as u64;
        let is_enough = is_forced || count * PURGED_SHARE >= segment.parts;
        count > 0 && is_enough && !special.is_damaged(segment)
    };
    table.segments.values().find(is_wanted).map(|segment| merge(table, vec![Arc::clone(segment)], special))
}

/// The run that makes one segment of these, and of small parts that are between them.
fn merge(table: &Snapshot, segments: Vec<Arc<Segment>>, special: &Special) -> Run {
    let first = segments.first().map_or(PartId::FIRST, |segment| segment.id.first);
    let last = segments.last().map_or(first, |segment| segment.id.last);
    let version = match &segments[..] {
        [only] => only.id.version + 1,
        _ => 1,
    };
    let between = table
        .parts
        .range(first..=last)
        .map(|(_, part)| part)
        .filter(|part| is_small(part) && !special.damaged.contains(&part.id));
    let of_segments = |id: &&PartId| segments.iter().any(|segment| segment.id.covers(**id));
    Run {
        id: SegmentId { first, last, version },
        parts: between.cloned().collect(),
        purged: special.purged.range(first..=last).filter(of_segments).copied().collect(),
        segments,
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{packed::SegmentParquet, part::Checks};

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
            files: vec![file],
        })
    }

    fn table(parts: impl IntoIterator<Item = Arc<Part>>, segments: impl IntoIterator<Item = Arc<Segment>>) -> Snapshot {
        let parts = parts.into_iter().map(|part| (part.id, part)).collect();
        let segments = segments.into_iter().map(|segment| (segment.id.first, segment)).collect();
        Snapshot::of(parts, segments, OrdSet::new())
    }

    /// The name of the next segment, and how many parts and segments it is made of.
    fn next(
        table: &Snapshot,
        special: &Special,
        unpacked_max: usize,
        is_forced: bool,
    ) -> Option<(String, usize, usize)> {
        let run = next_run(table, special, unpacked_max, is_forced)?;
        Some((run.id.to_string(), run.parts.len(), run.segments.len()))
    }

    fn named(name: &str, parts: usize, segments: usize) -> Option<(String, usize, usize)> {
        Some((name.to_owned(), parts, segments))
    }

    #[test]
    fn the_oldest_small_parts_are_packed_when_there_are_enough() {
        let none = Special::default();
        let few = table((1..=63).map(|number| part(number, 9)), []);
        assert_eq!(next(&few, &none, 0, false), None);
        assert_eq!(next(&few, &none, 0, true), named("1-63-1", 63, 0));
        assert_eq!(next(&few, &none, 62, true), None, "one part alone stays as it is");
        assert_eq!(next(&few, &none, 60, true), named("1-3-1", 3, 0));
        // Their schemas are not in memory, so each may have its own.
        let many = table((1..=2000).map(|number| part(number, 9)), []);
        assert_eq!(next(&many, &none, 0, false), named("1-64-1", 64, 0));
        assert_eq!(next(&many, &none, 2000, false), None);
    }

    #[test]
    fn large_and_damaged_parts_are_left_out() {
        let parts = || (1..=9).map(|number| part(number, if number % 3 == 0 { PACKED_CSV_BYTES_MAX + 1 } else { 9 }));
        assert_eq!(next(&table(parts(), []), &Special::default(), 0, true), named("1-8-1", 6, 0));
        let damaged = Special { damaged: [1, 4].into_iter().filter_map(PartId::new).collect(), ..Special::default() };
        assert_eq!(next(&table(parts(), []), &damaged, 0, true), named("2-8-1", 4, 0));
        let segments = (0..8).map(|index| segment(10 * index + 1, 10 * index + 10));
        assert_eq!(next(&table([], segments), &damaged, 0, true), None, "the first segment has a damaged part");
    }

    #[test]
    fn a_run_does_not_reach_over_a_segment() {
        let parts = [1, 2, 3, 30, 31].map(|number| part(number, 9));
        let none = Special::default();
        assert_eq!(next(&table(parts, [segment(10, 20)]), &none, 0, true), named("1-3-1", 3, 0));
        let parts = [1, 15, 30, 31].map(|number| part(number, 9));
        assert_eq!(next(&table(parts, [segment(10, 20)]), &none, 0, true), named("30-31-1", 2, 0));
    }

    #[test]
    fn a_run_does_not_cover_a_segment_in_quarantine() {
        let lost = Special { in_quarantine: Arc::new([segment(10, 20).id]), ..Special::default() };
        let parts = [1, 2, 3, 30, 31].map(|number| part(number, 9));
        assert_eq!(next(&table(parts, []), &lost, 0, true), named("1-3-1", 3, 0));
        let segments = (0..9).map(|index| segment(100 * index + 30, 100 * index + 50));
        assert_eq!(next(&table([], segments), &lost, 0, false), named("30-750-1", 0, 8));
        let around = [segment(1, 5)].into_iter().chain((0..7).map(|index| segment(100 * index + 30, 100 * index + 50)));
        assert_eq!(next(&table([], around), &lost, 0, false), None);
    }

    #[test]
    fn eight_segments_of_a_size_become_one_with_the_parts_between_them() {
        let none = Special::default();
        let segments = |count| (0..count).map(|index| segment(100 * index + 1, 100 * index + 50));
        assert_eq!(next(&table([], segments(7)), &none, 0, false), None);
        assert_eq!(next(&table([], segments(9)), &none, 0, false), named("1-750-1", 0, 8));
        assert_eq!(next(&table([part(60, 9)], segments(8)), &none, 10, false), named("1-750-1", 1, 8));
        let large = segment(1_000, 1_000 + 8 * RUN_PARTS as u64);
        let around = (0..4).map(|index| segment(10 * index + 1, 10 * index + 5));
        let after = (0..7).map(|index| segment(100_000 + 10 * index, 100_005 + 10 * index));
        assert_eq!(next(&table([], around.chain([large]).chain(after)), &none, 0, false), None, "it is larger");
    }

    #[test]
    fn a_segment_is_written_anew_when_many_of_its_parts_are_purged() {
        let purged =
            |count: u64| Special { purged: (1..=count).filter_map(PartId::new).collect(), ..Special::default() };
        let table = table([], [segment(1, 64)]);
        assert_eq!(next(&table, &purged(3), 0, false), None);
        assert_eq!(next(&table, &purged(4), 0, false), named("1-64-2", 0, 1));
    }
}
