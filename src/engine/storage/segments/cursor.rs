//! The parts of a snapshot of the table one after another, those that have their own files and those in segments, in the order
//! of their numbers. The entries of the parts in segments are read from the indexes, a block at a time.
//!
//! Memory: one block of an index, of at most [`PACKED_BLOCK_PARTS`](crate::limits::PACKED_BLOCK_PARTS) parts.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::store::Store,
    reading::{PackedBlock, SegmentIndex},
};
use crate::{
    engine::state::registry::{Located, Snapshot},
    error::Error,
    model::{
        packed::{Packed, Segment, SegmentId},
        part::{Part, PartId, Receipt},
    },
};

/// Parquet files of segments whose parts a cursor leaves out: by the smallest number that a segment covers, for each of its files
/// whether its parts are left out.
pub(crate) type FilesLeftOut = BTreeMap<PartId, Vec<bool>>;

/// A cursor on the parts of a snapshot.
pub(crate) struct PartCursor {
    snapshot: Snapshot,
    left_out: Arc<FilesLeftOut>,
    /// The index that was read last, and its block.
    open: Option<Open>,
}

struct Open {
    segment: SegmentId,
    index: SegmentIndex,
    block: PackedBlock,
}

impl PartCursor {
    /// A cursor on these parts.
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self::without(snapshot, Arc::default())
    }

    /// A cursor on these parts, without those whose rows are in some Parquet files of segments.
    pub(crate) fn without(snapshot: Snapshot, left_out: Arc<FilesLeftOut>) -> Self {
        Self { snapshot, left_out, open: None }
    }

    /// The parts that it is on.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether all parts have their own files, so that no file is read to find them.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.snapshot.segments.is_empty()
    }

    /// The first part after `after`.
    ///
    /// Errors: an index is damaged or cannot be read.
    pub(crate) fn next(&mut self, store: &Store, after: Option<PartId>) -> Result<Option<Arc<Part>>, Error> {
        self.first_from(store, after.map_or(PartId::FIRST, PartId::next))
    }

    /// The first part whose number is `from` or greater.
    pub(crate) fn first_from(&mut self, store: &Store, from: PartId) -> Result<Option<Arc<Part>>, Error> {
        let own = self.snapshot.parts.range(from..).next().map(|(_, part)| Arc::clone(part));
        let before = self.snapshot.segments.get_prev(&from).map(|(_, segment)| Arc::clone(segment));
        let mut segment = before.filter(|segment| segment.id.covers(from));
        loop {
            if segment.is_none() {
                segment = self.snapshot.segments.range(from..).next().map(|(_, segment)| Arc::clone(segment));
            }
            let Some(current) = segment else { return Ok(own) };
            if own.as_ref().is_some_and(|own| own.id < current.id.first) {
                return Ok(own);
            }
            if let Some(packed) = self.first_in(store, &current, from)? {
                return Ok(Some(match own {
                    Some(own) if own.id < packed.id => own,
                    _ => packed,
                }));
            }
            // All of its parts from here on were removed.
            let after = current.id.last.next();
            segment = self.snapshot.segments.range(after..).next().map(|(_, segment)| Arc::clone(segment));
            if segment.is_none() {
                return Ok(own);
            }
        }
    }

    /// The last part whose number is smaller than `before`.
    pub(crate) fn previous(&mut self, store: &Store, before: PartId) -> Result<Option<Arc<Part>>, Error> {
        let own = self.snapshot.parts.range(..before).next_back().map(|(_, part)| Arc::clone(part));
        let mut segments = self.snapshot.segments.range(..before).rev().map(|(_, segment)| Arc::clone(segment));
        let candidates: Vec<_> = segments.by_ref().take(1).collect();
        let mut next = candidates.into_iter().next();
        while let Some(segment) = next {
            if own.as_ref().is_some_and(|own| own.id > segment.id.last) {
                return Ok(own);
            }
            if let Some(packed) = self.last_in(store, &segment, before)? {
                return Ok(Some(match own {
                    Some(own) if own.id > packed.id => own,
                    _ => packed,
                }));
            }
            next = self.snapshot.segments.range(..segment.id.first).next_back().map(|(_, segment)| Arc::clone(segment));
        }
        Ok(own)
    }

    fn first_in(&mut self, store: &Store, segment: &Arc<Segment>, from: PartId) -> Result<Option<Arc<Part>>, Error> {
        let Some(mut number) = self.block_from(store, segment, from)? else { return Ok(None) };
        loop {
            let is_wanted = self.is_wanted();
            let block = self.block(store, segment, number)?;
            let start = block.parts.partition_point(|part| part.id < from);
            let found = block.parts[start..].iter().find(|part| is_wanted(part));
            if let Some(part) = found {
                return Ok(Some(Arc::clone(part)));
            }
            number += 1;
            if number == segment.index_blocks {
                return Ok(None);
            }
        }
    }

    fn last_in(&mut self, store: &Store, segment: &Arc<Segment>, before: PartId) -> Result<Option<Arc<Part>>, Error> {
        // A segment without parts was written by an earlier version, when all its parts were purged.
        let Some(last) = segment.index_blocks.checked_sub(1) else { return Ok(None) };
        let mut number = self.block_from(store, segment, before)?.unwrap_or(last);
        loop {
            let is_wanted = self.is_wanted();
            let block = self.block(store, segment, number)?;
            let end = block.parts.partition_point(|part| part.id < before);
            let found = block.parts[..end].iter().rfind(|part| is_wanted(part));
            if let Some(part) = found {
                return Ok(Some(Arc::clone(part)));
            }
            let Some(earlier) = number.checked_sub(1) else { return Ok(None) };
            number = earlier;
        }
    }

    /// Whether the cursor is on a part of a segment.
    fn is_wanted(&self) -> impl Fn(&Part) -> bool + use<> {
        let (removed, left_out) = (self.snapshot.removed.clone(), Arc::clone(&self.left_out));
        move |part| {
            let is_left_out = |packed: &Packed| {
                let files = left_out.get(&packed.segment.id.first);
                files.and_then(|files| files.get(packed.file as usize)).copied().unwrap_or(false)
            };
            !removed.contains(&part.id) && !part.packed.as_deref().is_some_and(is_left_out)
        }
    }

    /// The block that has the first part from `id` on. The block that is open is looked at first, and then the one after it.
    fn block_from(&mut self, store: &Store, segment: &Arc<Segment>, id: PartId) -> Result<Option<u64>, Error> {
        if let Some(Open { block, segment: of, .. }) = &self.open
            && *of == segment.id
            && let Some((first, last)) = block.parts.first().zip(block.parts.last())
            && first.id <= id
        {
            if id <= last.id {
                return Ok(Some(block.number));
            }
            if id == last.id.next() {
                return Ok(Some(block.number + 1).filter(|number| *number < segment.index_blocks));
            }
        }
        self.index(store, segment)?.block_from(id)
    }

    fn index(&mut self, store: &Store, segment: &Arc<Segment>) -> Result<&mut SegmentIndex, Error> {
        if self.open.as_ref().is_none_or(|open| open.segment != segment.id) {
            let mut index = SegmentIndex::open(store, segment)?;
            let block = match segment.index_blocks {
                0 => PackedBlock { number: 0, parts: Vec::new() },
                _ => index.block(0)?,
            };
            self.open = Some(Open { segment: segment.id, index, block });
        }
        let open = self.open.as_mut().ok_or_else(|| Error::Internal("an index was not opened".to_owned()))?;
        Ok(&mut open.index)
    }

    fn block(&mut self, store: &Store, segment: &Arc<Segment>, number: u64) -> Result<&PackedBlock, Error> {
        self.index(store, segment)?;
        let open = self.open.as_mut().ok_or_else(|| Error::Internal("an index was not opened".to_owned()))?;
        if open.block.number != number {
            open.block = open.index.block(number)?;
        }
        Ok(&open.block)
    }
}

/// The part that was located; `None` if there is no such part.
pub(crate) fn find_now(store: &Store, located: Option<Located>, id: PartId) -> Result<Option<Arc<Part>>, Error> {
    match located {
        None => Ok(None),
        Some(Located::Part(part)) => Ok(Some(part)),
        Some(Located::Segment(segment)) => find_in(store, &segment, id),
    }
}

/// A part of a segment, whether it was removed or not.
pub(crate) fn find_in(store: &Store, segment: &Arc<Segment>, id: PartId) -> Result<Option<Arc<Part>>, Error> {
    let mut index = SegmentIndex::open(store, segment)?;
    let Some(block) = index.block_from(id)? else { return Ok(None) };
    Ok(index.block(block)?.parts.into_iter().find(|part| part.id == id))
}

impl Store {
    /// The receipt of a removed part, which is in `segment` or has its own files. `None` if it cannot be read.
    pub(crate) fn receipt_of_removed(&self, id: PartId, segment: Option<&Arc<Segment>>) -> Option<Receipt> {
        let Some(segment) = segment else { return self.removed_receipt(id) };
        let part = find_in(self, segment, id).ok()??;
        self.receipt_of(&part).ok()
    }
}
