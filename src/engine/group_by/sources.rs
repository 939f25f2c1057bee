//! What a group sum reads: one file, or all parts of the table, from Parquet where that is possible (`columnar.rs`). Each file is
//! opened when it is reached. The Parquet files of segments come after all parts.

use std::{path::Path, sync::Arc};

use super::{
    columnar_part::{ColumnarPart, part_of, use_of_segment},
    spec::{COLUMNAR_BYTES_MIN, GroupBy, Plan},
};
use crate::{
    engine::{
        csv::{
            header::read_header,
            split::{CAREFUL_GUESS, guess_row_start},
            stored::STORED_LIMITS,
        },
        parts::segment_rows::Divided,
        state::registry::Snapshot,
        storage::{
            Store,
            reader::Reader,
            segments::{
                cursor::PartCursor,
                reading::{OpenSegment, SegmentIndex},
            },
        },
    },
    error::{Error, column_sum::ColumnSumError, csv::CsvError},
    limits::{CsvLimits, PACKED_CSV_BYTES_MAX, PACKED_CURSOR_BYTES, ROW_BYTES_CEILING},
    model::{
        format::Format,
        packed::Segment,
        part::{Part, PartId},
        schema::{ColumnType, Schema},
    },
};

/// CSV files in order.
#[derive(Clone)]
pub enum Sources {
    /// A file that is not a part.
    File {
        /// The file.
        file: Reader,
        /// How long its rows and cells may be, and how many columns it may have.
        limits: CsvLimits,
    },
    /// A snapshot of the table's parts. Parts that lack a column of the question add nothing.
    Parts {
        /// The data folder that has their files.
        store: Arc<Store>,
        /// The parts.
        parts: SourceParts,
    },
}

/// The parts of a group sum.
#[derive(Clone)]
pub struct SourceParts {
    divided: Arc<Divided>,
}

/// A byte of all sources, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// The number of a part; 0 for a file that is not a part.
    pub(super) source: u64,
    pub(super) offset: u64,
}

impl Position {
    /// After all sources.
    pub(super) const END: Self = Self { source: u64::MAX, offset: 0 };

    /// Of the first Parquet file of a segment, if any is read. No part has such a number.
    const SEGMENTS: u64 = 1 << 63;

    /// The start of the source after this one.
    pub(super) fn next_source(self) -> Self {
        Self { source: self.source + 1, offset: 0 }
    }
}

/// What is kept open between two parts.
#[derive(Default)]
pub(super) struct OpenFiles {
    cursor: Option<PartCursor>,
    open: OpenSegment,
}

/// An open source that has all columns of the question.
pub(super) struct Source {
    pub(super) id: u64,
    pub(super) file: Reader,
    pub(super) limits: CsvLimits,
    /// Its receipt and its columns, if it is a part.
    pub(super) part: Option<(Arc<Part>, Arc<Schema>)>,
    /// Which of the columns to sum are of doubles; empty if none is.
    doubles: Vec<bool>,
}

/// What [`Sources::open`] finds.
pub(super) enum Opened {
    Source(Box<Source>),
    Columnar(ColumnarPart),
    /// A part that lacks a column of the question, and the size of its CSV.
    LacksColumn {
        bytes: u64,
    },
    /// There is no further source.
    End,
}

/// Why reading a source failed.
#[derive(Debug)]
pub(super) enum SourceError {
    /// Something is wrong with the CSV. Rows are counted from where the reader began.
    Csv(CsvError),
    /// A part's CSV is not what its receipt says.
    Damaged(String),
    /// A part's column has a type that cannot be summed.
    NotSummable { column: String, column_type: ColumnType },
    /// Not an error of the content, for example a file that cannot be opened.
    Other(Error),
}

impl From<CsvError> for SourceError {
    fn from(error: CsvError) -> Self {
        Self::Csv(error)
    }
}

impl From<Error> for SourceError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Sources {
    /// One file that is not a part.
    ///
    /// Errors: it cannot be read; it is not a regular file.
    pub fn file(path: &Path) -> Result<Self, Error> {
        Ok(Self::File { file: Reader::open(path)?, limits: CsvLimits::default() })
    }

    /// The parts of a table.
    pub fn parts(store: Arc<Store>, parts: Snapshot) -> Self {
        Self::Parts { store, parts: SourceParts { divided: Arc::new(Divided::by_parts(parts)) } }
    }

    /// The same rows, with those of segments from Parquet where that is possible; `None` if it is possible nowhere.
    pub(super) fn with_segments(&self, spec: &GroupBy, plan: &Plan) -> Option<Self> {
        let Self::Parts { store, parts: SourceParts { divided } } = self else { return None };
        let parts = &divided.parts;
        if parts.last().is_some_and(|last| last.get() >= Position::SEGMENTS) {
            return None;
        }
        let bytes_min = plan.columnar_bytes_min;
        let use_of = |rows: &_, schema: &_| use_of_segment(store, rows, schema, spec, bytes_min);
        let divided = Divided::of(store, parts.clone(), use_of);
        let is_by_parts = divided.is_by_parts(parts);
        let sources = Self::Parts { store: Arc::clone(store), parts: SourceParts { divided: Arc::new(divided) } };
        (!is_by_parts).then_some(sources)
    }

    /// Whether there are parts in segments.
    pub(super) fn have_segments(&self) -> bool {
        matches!(self, Self::Parts { parts, .. } if !parts.divided.parts.segments.is_empty())
    }

    /// Whether Parquet files of segments are read.
    fn reads_segments(&self) -> bool {
        matches!(self, Self::Parts { parts, .. } if !parts.divided.files.is_empty())
    }

    /// The size of all sources together. A segment of which only some files are read from Parquet counts with its whole CSV, too.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { file, .. } => file.bytes(),
            Self::Parts { parts, .. } => {
                let Divided { parts, .. } = &*parts.divided;
                let packed: u64 = parts.segments.values().map(|segment| segment.csv_bytes).sum();
                packed
                    + parts.parts.values().map(|part| part.csv_bytes).sum::<u64>()
                    + self.segment_bytes().sum::<u64>()
            }
        }
    }

    /// The size of each Parquet file of a segment that is read, as a part's.
    fn segment_bytes(&self) -> impl Iterator<Item = u64> {
        let files = match self {
            Self::File { .. } => &[][..],
            Self::Parts { parts, .. } => &parts.divided.files,
        };
        files.iter().map(|rows| part_of(rows).map_or(0, |part| part.csv_bytes))
    }

    /// Bytes in memory for finding the rows of parts in segments, for each partition.
    pub(super) fn cursor_bytes(&self) -> usize {
        match self {
            Self::Parts { parts, .. } if !parts.divided.parts.segments.is_empty() || self.reads_segments() => {
                PACKED_CURSOR_BYTES
            }
            Self::Parts { .. } | Self::File { .. } => 0,
        }
    }

    /// An upper bound of a row's length: the longest row that is allowed, or the largest file if that is smaller.
    pub(super) fn row_bytes_max(&self) -> usize {
        let (allowed, file_bytes) = match self {
            Self::File { file, limits } => (limits.row_bytes_max, file.bytes()),
            Self::Parts { parts, .. } => {
                let Divided { parts, .. } = &*parts.divided;
                let packed = if parts.segments.is_empty() { 0 } else { PACKED_CSV_BYTES_MAX };
                let own = parts.parts.values().map(|part| part.csv_bytes);
                // A file that is read from Parquet counts as a part that is: see `columnar.rs`.
                let of_segments = self.segment_bytes().map(|bytes| bytes.max(COLUMNAR_BYTES_MIN));
                (ROW_BYTES_CEILING, own.chain(of_segments).max().unwrap_or(0).max(packed))
            }
        };
        usize::try_from(file_bytes).unwrap_or(usize::MAX).min(allowed)
    }

    /// Splits the sources into `count` byte ranges of about the same size, and returns where each begins.
    ///
    /// Errors: the index of a segment is damaged or cannot be read.
    pub(super) fn split(&self, count: usize) -> Result<Vec<Position>, Error> {
        let total = u128::from(self.bytes());
        let boundary = |index: usize| total * index as u128 / count as u128;
        let mut starts = vec![Position::default()];
        let mut before = 0;
        let mut add = |source, bytes: u64| {
            while starts.len() < count && boundary(starts.len()) < before + u128::from(bytes) {
                let offset = u64::try_from(boundary(starts.len()) - before).unwrap_or(0);
                // A file is not split within its byte order mark.
                starts.push(Position { source, offset: if offset < 4 { 0 } else { offset } });
            }
            before += u128::from(bytes);
        };
        match self {
            Self::File { file, .. } => add(0, file.bytes()),
            Self::Parts { store, parts } => {
                let Divided { parts, .. } = &*parts.divided;
                let (mut own, mut segments) = (parts.parts.iter().peekable(), parts.segments.iter().peekable());
                loop {
                    match (own.peek(), segments.peek()) {
                        (None, None) => break,
                        (Some((id, part)), next) if next.is_none_or(|(first, _)| *first > *id) => {
                            add(id.get(), part.csv_bytes);
                            own.next();
                        }
                        (_, Some((_, segment))) => {
                            add_blocks(store, segment, &mut add)?;
                            segments.next();
                        }
                        (Some(_), None) => {
                            own.next();
                        }
                    }
                }
                (Position::SEGMENTS..).zip(self.segment_bytes()).for_each(|(source, bytes)| add(source, bytes));
            }
        }
        if let Self::Parts { store, parts } = self {
            move_to_parts(store, &parts.divided, &mut starts)?;
        }
        // A part inside the numbers of a segment may come before one of its blocks.
        starts.sort_unstable();
        starts.dedup();
        Ok(starts)
    }

    /// Opens the first source whose id is `id` or greater; its id is returned with it.
    pub(super) fn open(
        &self,
        id: u64,
        spec: &GroupBy,
        plan: &Plan,
        files: &mut OpenFiles,
    ) -> (u64, Result<Opened, SourceError>) {
        match self {
            Self::File { file, limits } if id == 0 => {
                let source = Source { id, file: file.clone(), limits: *limits, part: None, doubles: Vec::new() };
                (id, Ok(Opened::Source(Box::new(source))))
            }
            Self::File { .. } => (id, Ok(Opened::End)),
            Self::Parts { store, parts } if id >= Position::SEGMENTS && self.reads_segments() => {
                (id, open_segment(store, &parts.divided, id))
            }
            Self::Parts { store, parts } => {
                let cursor = files.cursor.get_or_insert_with(|| parts.divided.cursor());
                let next = PartId::new(id.max(1)).map(|first| cursor.first_from(store, first)).transpose();
                match next.map(Option::flatten) {
                    Ok(None) if self.reads_segments() => {
                        (Position::SEGMENTS, open_segment(store, &parts.divided, Position::SEGMENTS))
                    }
                    Ok(None) => (id, Ok(Opened::End)),
                    Ok(Some(part)) => (part.id.get(), open_part(store, &part, spec, plan, &mut files.open)),
                    Err(error) => (id, Err(error.into())),
                }
            }
        }
    }

    /// The error for the caller. `rows_before` is the number of rows of the source before those that were counted.
    pub(super) fn error(&self, id: u64, error: SourceError, rows_before: u64) -> Error {
        let part = PartId::new(id);
        match (error, part) {
            (SourceError::Other(error), _) => error,
            (SourceError::Csv(error), None) => error.after_rows(rows_before).into(),
            (SourceError::Csv(CsvError::Summand { row, column, cell, problem }), Some(part)) => {
                Error::Cell { part, row: row.number + rows_before, column, cell, problem }
            }
            (SourceError::Csv(error), Some(part)) => {
                Error::Damaged { part, what: format!("csv: {}", error.after_rows(rows_before)) }
            }
            (SourceError::Damaged(what), Some(part)) => Error::Damaged { part, what: format!("csv: {what}") },
            (SourceError::NotSummable { column, column_type }, Some(part)) => {
                ColumnSumError::NotSummable { part, column, column_type }.into()
            }
            (SourceError::Damaged(what), None) => Error::Internal(format!("a file that is not a part: {what}")),
            (SourceError::NotSummable { column, .. }, None) => {
                Error::Internal(format!("a file without types: {column}"))
            }
        }
    }
}

/// Opens a Parquet file of a segment.
fn open_segment(store: &Store, divided: &Divided, id: u64) -> Result<Opened, SourceError> {
    let index = usize::try_from(id - Position::SEGMENTS).unwrap_or(usize::MAX);
    let Some(rows) = divided.files.get(index) else { return Ok(Opened::End) };
    Ok(Opened::Columnar(ColumnarPart::of_segment(store, rows)?))
}

fn open_part(
    store: &Store,
    part: &Arc<Part>,
    spec: &GroupBy,
    plan: &Plan,
    open: &mut OpenSegment,
) -> Result<Opened, SourceError> {
    let schema = store.schema_with(part, open)?;
    if spec.by().iter().chain(spec.sum()).any(|name| schema.find(name).is_none()) {
        return Ok(Opened::LacksColumn { bytes: part.csv_bytes });
    }
    if let Some(columnar) = ColumnarPart::open(store, part, &schema, spec, plan.columnar_bytes_min)? {
        return Ok(Opened::Columnar(columnar));
    }
    let mut doubles = Vec::new();
    for (sum_index, column) in spec.sum().iter().enumerate() {
        match schema.find(column) {
            Some((_, ColumnType::Int64 | ColumnType::Utf8)) | None => {}
            Some((_, ColumnType::Float64)) => {
                doubles.resize(spec.sum().len(), false);
                doubles[sum_index] = true;
            }
            Some((index, _)) if store.is_without_values_with(part, index, open)? => {} // it has the type of earlier parts
            Some((_, column_type)) => return Err(SourceError::NotSummable { column: column.clone(), column_type }),
        }
    }
    let file = store.open_part_with(part, Format::Csv, open)?;
    let (id, part) = (part.id.get(), Some((Arc::clone(part), schema)));
    Ok(Opened::Source(Box::new(Source { id, file, limits: STORED_LIMITS, part, doubles })))
}

/// Adds the parts of a segment for [`Sources::split`], block by block: each as if it were the first part of its block.
fn add_blocks(store: &Store, segment: &Arc<Segment>, add: &mut impl FnMut(u64, u64)) -> Result<(), Error> {
    /// Blocks that are looked at: enough to split a segment about evenly.
    const BLOCKS_MAX: u64 = 64;
    let mut index = SegmentIndex::open(store, segment)?;
    let step = segment.index_blocks.div_ceil(BLOCKS_MAX).max(1);
    let mut starts = Vec::new();
    let mut number = 0;
    while number < segment.index_blocks {
        let first = index
            .block(number)?
            .parts
            .first()
            .map(|part| (part.id.get(), part.packed.as_ref().map_or(0, |it| it.csv_start)));
        starts.extend(first);
        number += step;
    }
    for (at, (id, start)) in starts.iter().enumerate() {
        let end = starts.get(at + 1).map_or(segment.csv_bytes, |(_, start)| *start);
        add(*id, end - start);
    }
    Ok(())
}

/// Moves a start in a part that is removed or left out to the next one that is read.
fn move_to_parts(store: &Store, divided: &Divided, starts: &mut [Position]) -> Result<(), Error> {
    if divided.left_out.is_empty() && divided.parts.removed.is_empty() {
        return Ok(());
    }
    let mut cursor = divided.cursor();
    for start in starts.iter_mut().filter(|start| start.source < Position::SEGMENTS) {
        let Some(id) = PartId::new(start.source) else { continue };
        let found = cursor.first_from(store, id)?.map_or(Position::SEGMENTS, |part| part.id.get());
        if found != start.source {
            *start = Position { source: found, offset: 0 };
        }
    }
    Ok(())
}

impl Source {
    /// Whether the cells of this column to sum are doubles.
    #[inline]
    pub(super) fn is_double(&self, sum_index: usize) -> bool {
        self.doubles.get(sum_index).copied().unwrap_or(false)
    }

    /// The names of the columns, and a guess where the first row starts at or after `offset`; `None` if that cannot be
    /// guessed.
    pub(super) fn guess(&self, offset: u64) -> Result<Option<(Vec<String>, u64)>, SourceError> {
        let Some(names) = self.header()? else { return Ok(None) };
        let start = guess_row_start(&self.file, offset, names.len(), self.limits, CAREFUL_GUESS)?;
        Ok(start.map(|start| (names, start)))
    }

    /// The names of the columns; `None` if something is wrong with the header. The partition that reads the file from its
    /// start reports that.
    fn header(&self) -> Result<Option<Vec<String>>, Error> {
        match read_header(&self.file, self.limits) {
            Ok(names) => Ok(Some(names)),
            Err(Error::Csv(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
