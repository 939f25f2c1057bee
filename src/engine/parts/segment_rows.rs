//! Which rows of a table are read from the Parquet files of segments, each of which has the rows of many parts. The other parts are
//! read one by one, as if there were no segments.
//!
//! Rows of parts that were removed since their segment was written are still in its Parquet files. They are passed over.
//!
//! The parts are not read in their order then. So a caller that meets an error reads all parts again, in their order and without
//! these files, and finds the error that is the first in the table.

use std::{ops::Range, sync::Arc};

use crate::{
    engine::{
        state::registry::Snapshot,
        storage::{
            Store,
            reader::Reader,
            segments::{
                cursor::{FilesLeftOut, PartCursor},
                removed_rows::removed_rows,
            },
        },
    },
    error::{Error, Kind},
    limits::PACKED_REMOVED_RANGES_MAX,
    model::{
        packed::{Segment, SegmentParquet},
        part::Part,
        schema::Schema,
    },
};

/// What a question reads of the parts that have their rows in one Parquet file of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileUse {
    /// Nothing, because they lack a column.
    Nothing,
    /// The Parquet file.
    Parquet,
    /// The CSV of each part.
    Csv,
}

/// A Parquet file of a segment, and which of its rows are read.
#[derive(Clone)]
pub(crate) struct SegmentRows {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: usize,
    /// The rows of removed parts, counted from 0, in ascending order.
    pub(crate) removed: Arc<[Range<u64>]>,
}

impl SegmentRows {
    /// What is known of the file.
    ///
    /// Errors: the segment has no such file.
    pub(crate) fn parquet(&self) -> Result<&SegmentParquet, Error> {
        let missing = || Error::Internal(format!("segment {} has no Parquet file {}", self.segment.id, self.file));
        self.segment.files.get(self.file).ok_or_else(missing)
    }

    /// The file as if it were that of one part.
    ///
    /// Errors: as [`Self::parquet`].
    pub(crate) fn part(&self) -> Result<Part, Error> {
        Ok(self.parquet()?.as_part(self.segment.id))
    }

    /// Its columns.
    ///
    /// Errors: those of [`Store::segment_schema`].
    pub(crate) fn schema(&self, store: &Store) -> Result<Arc<Schema>, Error> {
        store.segment_schema(&self.segment, self.file)
    }

    /// Opens the file, which the caller verifies.
    ///
    /// Errors: it cannot be opened, or has another size.
    pub(crate) fn open(&self, store: &Store) -> Result<Reader, Error> {
        store.open_segment_parquet(&self.segment, self.file)
    }
}

/// Logs why all parts are read again, one by one, if a file may be damaged. Other errors are found again, or one before them.
pub(crate) fn note_fallback(error: &Error) {
    if matches!(error.kind(), Kind::DataLoss) {
        tracing::warn!(%error, "parts in segments are read one by one, because reading them together has failed");
    }
}

/// The rows of a snapshot of the table, and where they are read.
pub(crate) struct Divided {
    /// The Parquet files of segments that are read.
    pub(crate) files: Vec<SegmentRows>,
    /// What is read part by part, without `left_out`.
    pub(crate) parts: Snapshot,
    /// The files whose parts are not in `parts`, though some of their segments are.
    pub(crate) left_out: Arc<FilesLeftOut>,
}

impl Divided {
    /// All parts are read one by one.
    pub(crate) fn by_parts(parts: Snapshot) -> Self {
        Self { files: Vec::new(), parts, left_out: Arc::default() }
    }

    /// Divides the parts. `use_of` says what is read of a file; if it fails, the CSV is read, which finds the error. It is not
    /// asked about files without rows.
    pub(crate) fn of(
        store: &Store,
        parts: Snapshot,
        use_of: impl Fn(&SegmentRows, &Schema) -> Result<FileUse, Error>,
    ) -> Self {
        let mut divided = Self::by_parts(parts.clone());
        let (mut left_out, mut ranges_count) = (FilesLeftOut::new(), 0);
        for (first, segment) in &parts.segments {
            let none: Arc<[Range<u64>]> = Arc::from([]);
            let file = |file| SegmentRows { segment: Arc::clone(segment), file, removed: Arc::clone(&none) };
            let use_of = |file: &SegmentRows| match file.parquet() {
                Ok(parquet) if parquet.rows == 0 => Ok(FileUse::Nothing),
                Ok(_) => use_of(file, &*file.schema(store)?),
                Err(error) => Err(error),
            };
            let mut files: Vec<_> = (0..segment.files.len()).map(file).collect();
            let mut uses: Vec<_> = files.iter().map(|file| use_of(file).unwrap_or(FileUse::Csv)).collect();
            if uses.contains(&FileUse::Parquet) {
                let left = PACKED_REMOVED_RANGES_MAX - ranges_count;
                match removed_rows(store, segment, &parts.removed, left) {
                    Ok(Some(removed)) => {
                        ranges_count += removed.iter().map(Vec::len).sum::<usize>();
                        files.iter_mut().zip(removed).for_each(|(file, removed)| file.removed = removed.into());
                    }
                    Ok(None) | Err(_) => uses.fill(FileUse::Csv),
                }
            }
            if !uses.contains(&FileUse::Csv) {
                divided.parts.segments.remove(first);
            } else if uses.iter().any(|it| *it != FileUse::Csv) {
                left_out.insert(*first, uses.iter().map(|it| *it != FileUse::Csv).collect());
            }
            let read = files.into_iter().zip(uses).filter(|(_, it)| *it == FileUse::Parquet);
            divided.files.extend(read.map(|(file, _)| file));
        }
        divided.left_out = Arc::new(left_out);
        divided
    }

    /// Whether these parts, which were divided, are all read one by one.
    pub(crate) fn is_by_parts(&self, parts: &Snapshot) -> bool {
        self.files.is_empty() && self.left_out.is_empty() && self.parts.segments.len() == parts.segments.len()
    }

    /// A cursor on the parts that are read one by one.
    pub(crate) fn cursor(&self) -> PartCursor {
        PartCursor::without(self.parts.clone(), Arc::clone(&self.left_out))
    }
}
