//! Which rows of a segment's Parquet files are of parts that were removed since the segment was written: they are still there.

use std::{ops::Range, sync::Arc};

use imbl::OrdSet;

use super::{super::store::Store, index::Entry, reading::SegmentIndex};
use crate::{
    error::Error,
    model::{packed::Segment, part::PartId},
};

/// For each Parquet file of a segment, the rows of removed parts, counted from 0, in ascending order. `None` if there are more
/// than `ranges_max` such ranges. The index is read up to the last of these parts.
///
/// Errors: the index is damaged or cannot be read.
pub(crate) fn removed_rows(
    store: &Store,
    segment: &Arc<Segment>,
    removed: &OrdSet<PartId>,
    ranges_max: usize,
) -> Result<Option<Vec<Vec<Range<u64>>>>, Error> {
    let mut found = vec![Vec::<Range<u64>>::new(); segment.files.len()];
    let Some(last) = removed.range(segment.id.first..=segment.id.last).next_back() else { return Ok(Some(found)) };
    let mut rows_before = vec![0_u64; segment.files.len()];
    let mut ranges_count = 0;
    let mut index = SegmentIndex::open(store, segment)?;
    for block in 0..segment.index_blocks {
        let parts = index.entries(block)?.entries;
        for Entry { id, rows, file, .. } in &parts {
            let (Some(ranges), Some(start)) = (found.get_mut(*file), rows_before.get_mut(*file)) else {
                return Err(Error::Damaged {
                    part: *id,
                    what: format!(
                        "segment {}, index: it names a Parquet file that the segment does not have",
                        segment.id
                    ),
                });
            };
            let end = start.saturating_add(*rows);
            if *rows > 0 && removed.contains(id) {
                match ranges.last_mut() {
                    Some(before) if before.end == *start => before.end = end,
                    _ => {
                        ranges.push(*start..end);
                        ranges_count += 1;
                    }
                }
                if ranges_count > ranges_max {
                    return Ok(None);
                }
            }
            *start = end;
        }
        if parts.last().is_some_and(|part| part.id >= *last) {
            break;
        }
    }
    Ok(Some(found))
}
