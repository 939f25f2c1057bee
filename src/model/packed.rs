//! What is in memory of segments: many small parts in a few files. Plain data; no files.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{part_id::PartId, schema::Schema};
use crate::limits::PART_BYTES;

/// A segment's name: the numbers of the parts that it may have, and how often it was written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentId {
    /// No part of the segment has a smaller number.
    pub first: PartId,
    /// No part of the segment has a greater number.
    pub last: PartId,
    /// 1, and one more each time a segment of the same parts is written anew.
    pub version: u32,
}

impl SegmentId {
    /// `1-1024-1`, as in the names of its files.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('-');
        let (first, last) = (PartId::parse(numbers.next()?)?, PartId::parse(numbers.next()?)?);
        let version: u32 = numbers.next()?.parse().ok()?;
        let id = Self { first, last, version };
        (numbers.next().is_none() && first <= last && id.to_string() == text).then_some(id)
    }

    /// Whether a part with this number can be in the segment.
    pub fn covers(self, part: PartId) -> bool {
        (self.first..=self.last).contains(&part)
    }

    /// Whether a committed segment with this name replaces one called `other`.
    pub fn replaces(self, other: Self) -> bool {
        let is_within = self.first <= other.first && other.last <= self.last;
        let is_same_range = self.first == other.first && self.last == other.last;
        is_within && (!is_same_range || self.version > other.version)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.first, self.last, self.version)
    }
}

/// What the registry keeps of a segment. Its size depends on the number of distinct headers in it, not on that of its parts.
#[derive(Debug)]
pub struct Segment {
    /// Its name.
    pub id: SegmentId,
    /// Its parts, with those that were removed since it was written.
    pub parts: u64,
    /// Size of its CSV file.
    pub csv_bytes: u64,
    /// What the CSV is verified against: its checksum if it is one block, otherwise the seed of its block list.
    pub csv_check: u64,
    /// Size of its index.
    pub index_bytes: u64,
    /// The same for the index.
    pub index_check: u64,
    /// Blocks of the index.
    pub index_blocks: u64,
    /// What the list of the blocks is verified against.
    pub fences_check: u64,
    /// How many key hashes it has, and the seed of the checksums of their pages.
    pub keys: (u64, u64),
    /// Its Parquet files.
    pub files: Box<[SegmentParquet]>,
}

/// A segment that another one has replaced, and which files it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplacedSegment {
    /// Its name.
    pub id: SegmentId,
    /// How many Parquet files it has.
    pub parquet_files: usize,
    /// Whether it has a file of key hashes.
    pub has_keys: bool,
}

impl ReplacedSegment {
    /// The files of this segment.
    pub fn of(segment: &Segment) -> Self {
        Self { id: segment.id, parquet_files: segment.files.len(), has_keys: segment.keys.0 > 0 }
    }
}

/// A Parquet file of a segment, with all parts that have the same columns.
#[derive(Debug)]
pub struct SegmentParquet {
    /// The parts, with those that were removed since the segment was written.
    pub parts: u64,
    /// Their data rows.
    pub rows: u64,
    /// Bytes of the Parquet files that they had.
    pub parts_parquet_bytes: u64,
    /// The file's size.
    pub bytes: u64,
    /// Its row groups.
    pub row_groups: u32,
    /// Size of its footer, without the tail of 8 bytes.
    pub footer_bytes: u32,
    /// What it is verified against: the checksum of a small file, otherwise that of its footer.
    pub check: u64,
    /// The number of columns.
    pub columns_count: u32,
    /// Bytes that the columns may take in the receipt of a segment.
    pub text_bytes: u32,
    /// Half of the hash of the columns, which takes less room. It is only used to choose what is packed.
    pub schema_hash: u64,
    /// The columns; `None` if the registry had no room for them.
    pub schema: Option<Arc<Schema>>,
}

impl Segment {
    /// How many parts with files of their own take about as much memory: the segment and its entry in the map are two, and two
    /// Parquet files are one.
    pub fn weight(&self) -> usize {
        2 + self.files.len().div_ceil(2)
    }
}

/// See [`Segment::weight`]: a segment, the two counts of its `Arc`, and its entry in a node of the map that may be half empty.
const _: () = assert!(size_of::<Segment>() + 16 + 2 * 16 <= 2 * PART_BYTES);
const _: () = assert!(2 * size_of::<SegmentParquet>() <= PART_BYTES);

/// Where the CSV of a packed part is.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The segment that has the part.
    pub segment: Arc<Segment>,
    /// Which of the segment's Parquet files has its rows.
    pub file: u32,
    /// Where the part begins in the segment's CSV file.
    pub csv_start: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let id = SegmentId::parse("1-1024-2").expect("a name");
        assert_eq!((id.first.get(), id.last.get(), id.version), (1, 1024, 2));
        assert_eq!(id.to_string(), "1-1024-2");
        for text in ["", "1", "1-2", "2-1-1", "01-2-1", "1-2-01", "1-2-1-1", "0-2-1", "1-2-x", "1--2-1"] {
            assert_eq!(SegmentId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_longer_or_newer_segment_replaces_the_others() {
        let id = |text| SegmentId::parse(text).expect("a name");
        assert!(id("1-20-1").replaces(id("1-10-3")) && id("1-20-1").replaces(id("5-20-1")));
        assert!(id("1-20-2").replaces(id("1-20-1")) && !id("1-20-1").replaces(id("1-20-1")));
        assert!(!id("1-20-1").replaces(id("1-21-1")) && !id("1-20-1").replaces(id("21-30-1")));
        assert!(id("3-5-1").covers(PartId::new(5).expect("a number")) && !id("3-5-1").covers(PartId::FIRST));
    }
}
