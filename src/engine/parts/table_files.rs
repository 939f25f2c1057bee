//! The files of the table at one moment, for other engines: which files have each row of the table exactly once.
//!
//! Of Parquet, a part that has its own files has one file, and a segment has one for each distinct list of columns. Rows of parts
//! that were removed since a segment was written are still in its files: they are listed after the files, by their positions.
//! Of CSV, each part is a byte range of a file: a segment's CSV has the files of its parts one after another, each with its header.
//!
//! Memory: a page, and while it is made a block of an index.

use std::sync::Arc;

use super::quarantine::whole_table_and;
use crate::{
    engine::{
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::{
            Store,
            segments::{
                cursor::PartCursor,
                index::Entry,
                reading::{SegmentFile, SegmentIndex},
            },
        },
    },
    error::Error,
    model::{
        format::Format,
        packed::{Segment, SegmentId},
        part::{Part, PartId},
    },
};

/// Blocks of an index that one task reads.
const TASK_BLOCKS: usize = 16;

/// What a list of files is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesHead {
    /// Parts of the table.
    pub parts: usize,
    /// Their rows: those of all files, without those of removed parts.
    pub rows: u64,
    /// Segments of the table.
    pub segments: usize,
    /// Removed parts whose rows are still in the files.
    pub removed_parts: usize,
}

/// A file of the table, or the part of a CSV file that one part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFile {
    /// Its path in the data folder. A segment may replace it at any time: then it is in `removed/` for a minute.
    pub path: String,
    /// No part in it has a smaller number.
    pub first: PartId,
    /// No part in it has a greater number.
    pub last: PartId,
    /// Its parts, with removed ones.
    pub parts: u64,
    /// Its rows, with those of removed parts.
    pub rows: u64,
    /// Of CSV, where the part begins in the file.
    pub offset: Option<u64>,
    /// Its size; of CSV, that of the part.
    pub bytes: u64,
}

/// Rows of a file that are not in the table any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedRows {
    /// The path of the file, as in [`TableFile::path`].
    pub path: String,
    /// The part that was removed.
    pub part: PartId,
    /// The position of its first row in the file, from 0.
    pub first_row: u64,
    /// How many rows it has.
    pub rows: u64,
}

/// Some of what is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesPage {
    /// Files, in the order of their first parts.
    Files(Vec<TableFile>),
    /// Rows of these files that are not in the table, in the order of their parts.
    Removed(Vec<RemovedRows>),
    /// There is no more.
    End,
}

/// The files of the table at one moment, page by page.
pub struct TableFiles {
    context: Arc<Context>,
    format: Format,
    head: FilesHead,
    snapshot: Snapshot,
    stage: Stage,
}

/// What is listed next.
enum Stage {
    Parquet(ParquetCursor),
    /// Parts from this number on.
    Csv(PartId),
    Removed(RemovedCursor),
    End,
}

/// The files of the table as it is now.
///
/// Errors: a part is missing from the table; removed parts have rows in the files, unless `with_removed`.
pub(crate) fn table_files(context: &Arc<Context>, format: Format, with_removed: bool) -> Result<TableFiles, Error> {
    let (table, rows) = whole_table_and(context, |parts| parts.totals().rows)?;
    let snapshot = table.parts;
    let removed = match format {
        Format::Parquet => snapshot.removed.len(),
        Format::Csv => 0, // byte ranges leave them out
    };
    if let (Some(&first), false, true) = (snapshot.removed.get_min(), with_removed, removed > 0) {
        return Err(Error::RemovedRows { first, count: removed });
    }
    let head = FilesHead { parts: snapshot.len(), rows, segments: snapshot.segments.len(), removed_parts: removed };
    let stage = match format {
        Format::Parquet => Stage::Parquet(ParquetCursor::default()),
        Format::Csv => Stage::Csv(PartId::FIRST),
    };
    Ok(TableFiles { context: Arc::clone(context), format, head, snapshot, stage })
}

impl TableFiles {
    /// What the list is about.
    pub fn head(&self) -> FilesHead {
        self.head
    }

    /// What tells the data folder from others: see `FilesHead` in `proto/tally.proto`.
    pub fn folder_id(&self) -> &str {
        self.context.store.id()
    }

    /// The format of the files.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The next page: at most `count_max` entries, and at least one.
    ///
    /// Errors: an index is damaged or cannot be read.
    pub async fn next_page(&mut self, count_max: usize) -> Result<FilesPage, Error> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::End) {
                Stage::Parquet(mut cursor) => {
                    let files = cursor.next_files(&self.snapshot, count_max);
                    if !files.is_empty() {
                        self.stage = Stage::Parquet(cursor);
                        return Ok(FilesPage::Files(files));
                    }
                    self.stage = Stage::Removed(RemovedCursor { next: PartId::FIRST, at: None });
                }
                Stage::Csv(from) => {
                    let (files, next) =
                        self.on_worker(move |store, parts| csv_files(store, parts, from, count_max)).await?;
                    self.stage = next.map_or(Stage::End, Stage::Csv);
                    if !files.is_empty() {
                        return Ok(FilesPage::Files(files));
                    }
                }
                Stage::Removed(cursor) => {
                    let (removed, next) =
                        self.on_worker(move |store, parts| cursor.step(store, &parts, count_max)).await?;
                    self.stage = next.map_or(Stage::End, Stage::Removed);
                    if !removed.is_empty() {
                        return Ok(FilesPage::Removed(removed));
                    }
                }
                Stage::End => return Ok(FilesPage::End),
            }
        }
    }

    /// Runs `work` on a worker, with a permit if it reads an index.
    async fn on_worker<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Store, Snapshot) -> Result<T, Error> + Send + 'static,
    {
        let _permit = match self.snapshot.segments.is_empty() {
            true => None,
            false => Some(self.context.packed_questions.acquire().await.ok().ok_or(Error::Draining)?),
        };
        let snapshot = self.snapshot.clone();
        self.context.on_worker(Lane::Question, move |store| work(store, snapshot)).await
    }
}

/// Which Parquet file comes next. All are known from memory.
#[derive(Default)]
struct ParquetCursor {
    /// The last part with its own files that was listed.
    part: Option<PartId>,
    /// The last segment that was listed, by the smallest number that it covers.
    segment: Option<PartId>,
    /// Files of the segment after that one that were listed.
    files: usize,
}

impl ParquetCursor {
    fn next_files(&mut self, table: &Snapshot, count_max: usize) -> Vec<TableFile> {
        let from = |last: Option<PartId>| last.map_or(PartId::FIRST, PartId::next);
        let mut found = Vec::new();
        while found.len() < count_max.max(1) {
            let part = table.parts.range(from(self.part)..).next().map(|(_, part)| part);
            let segment = table.segments.range(from(self.segment)..).next().map(|(_, segment)| segment);
            match (part, segment) {
                (None, None) => break,
                (Some(part), segment) if segment.is_none_or(|segment| part.id < segment.id.first) => {
                    found.push(own_file(part, Format::Parquet));
                    self.part = Some(part.id);
                }
                (_, Some(segment)) => match segment.files.get(self.files) {
                    Some(file) => {
                        found.push(TableFile {
                            path: segment_path(segment.id, SegmentFile::Parquet(self.files)),
                            first: segment.id.first,
                            last: segment.id.last,
                            parts: file.parts,
                            rows: file.rows,
                            offset: None,
                            bytes: file.bytes,
                        });
                        self.files += 1;
                    }
                    None => (self.segment, self.files) = (Some(segment.id.first), 0),
                },
                (Some(_), None) => break, // not reached: see the second arm
            }
        }
        found
    }
}

fn own_file(part: &Part, format: Format) -> TableFile {
    let (offset, bytes) = match format {
        Format::Csv => (Some(0), part.csv_bytes),
        Format::Parquet => (None, part.parquet_bytes),
    };
    let path = format!("parts/{}.{format}", part.id);
    TableFile { path, first: part.id, last: part.id, parts: 1, rows: part.rows, offset, bytes }
}

fn segment_path(segment: SegmentId, file: SegmentFile) -> String {
    format!("parts/{segment}.{}", file.extension())
}

/// Some parts from a number on, and where the others begin; `None` if there are no others.
fn csv_files(
    store: &Store,
    parts: Snapshot,
    from: PartId,
    count_max: usize,
) -> Result<(Vec<TableFile>, Option<PartId>), Error> {
    let (mut cursor, mut next, mut found) = (PartCursor::new(parts), from, Vec::new());
    while found.len() < count_max.max(1) {
        let Some(part) = cursor.first_from(store, next)? else { return Ok((found, None)) };
        next = part.id.next();
        found.push(match &part.packed {
            None => own_file(&part, Format::Csv),
            Some(packed) => TableFile {
                path: segment_path(packed.segment.id, SegmentFile::Csv),
                offset: Some(packed.csv_start),
                ..own_file(&part, Format::Csv)
            },
        });
    }
    Ok((found, Some(next)))
}

/// Where the search for removed rows is.
struct RemovedCursor {
    /// Removed parts with smaller numbers were listed.
    next: PartId,
    at: Option<AtBlock>,
}

/// A block of the index of a segment that has removed parts.
struct AtBlock {
    segment: Arc<Segment>,
    block: u64,
    /// For each Parquet file of the segment, the rows of all parts in the blocks before.
    rows: Vec<u64>,
}

impl RemovedCursor {
    /// One task: some removed parts, and where the others are; `None` if there are no others.
    fn step(
        mut self,
        store: &Store,
        table: &Snapshot,
        count_max: usize,
    ) -> Result<(Vec<RemovedRows>, Option<Self>), Error> {
        let mut found = Vec::new();
        for _block in 0..TASK_BLOCKS {
            let Some(removed) = table.removed.range(self.next..).next().copied() else { return Ok((found, None)) };
            let Some((_, segment)) = table.segments.get_prev(&removed).filter(|(_, of)| of.id.covers(removed)) else {
                return Err(Error::Internal(format!("the removed part {removed} is in no segment")));
            };
            let at = self.at.take().filter(|at| at.segment.id == segment.id);
            let mut at = at.unwrap_or_else(|| AtBlock {
                segment: Arc::clone(segment),
                block: 0,
                rows: vec![0; segment.files.len()],
            });
            if at.block == segment.index_blocks {
                return Err(Error::Internal(format!("segment {} has no part {removed}", segment.id)));
            }
            let mut rows = at.rows.clone();
            for Entry { id, rows: of_part, file, .. } in SegmentIndex::open(store, segment)?.entries(at.block)?.entries
            {
                let Some(before) = rows.get_mut(file) else {
                    let what = format!("segment {}, index: it has no Parquet file {file}", segment.id);
                    return Err(Error::Damaged { part: id, what });
                };
                if id >= self.next && table.removed.contains(&id) {
                    if found.len() == count_max.max(1) {
                        // The others of this block come with the next page.
                        return Ok((found, Some(Self { next: id, at: Some(at) })));
                    }
                    let path = segment_path(segment.id, SegmentFile::Parquet(file));
                    found.push(RemovedRows { path, part: id, first_row: *before, rows: of_part });
                    self.next = id.next();
                }
                *before = before.saturating_add(of_part);
            }
            (at.rows, at.block) = (rows, at.block + 1);
            self.at = Some(at);
            if found.len() == count_max.max(1) {
                break;
            }
        }
        Ok((found, Some(self)))
    }
}
