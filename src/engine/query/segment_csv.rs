//! The column sum of segments from their CSV: the rows of many parts are scanned together.
//!
//! The CSV of each part is verified by its own checksum. Parts that begin with the header of the part before them lose it, and
//! what is left of them is scanned as one file. The position of a cell that cannot be added, or of damage, is not looked for
//! here: the caller then reads the parts one by one.

use std::sync::Arc;

use imbl::OrdSet;

use super::{csv_ranges::ColumnOfCsv, segment_sum::SegmentError};
use crate::{
    engine::{
        csv::{
            header::parse_header,
            rows::{Resume, Wanted},
            scanner::Scanner,
            stored::{STORED_LIMITS, check_header, check_rows},
        },
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::{
            Store,
            checksums::checksum,
            reader::Reader,
            segments::{
                index::Entry,
                reading::{BlockEntries, SegmentFile, SegmentIndex},
            },
        },
        values::sum::Sum,
    },
    limits::{PACKED_CURSOR_BYTES, PACKED_SUM_BYTES, SCAN_BYTES, TASK_BYTES},
    model::{
        column_sum::Read,
        packed::Segment,
        part::PartId,
        schema::{ColumnType, Schema},
    },
};

/// Blocks of an index that are summed together. Blocks of the smallest parts take a task less than 1 ms.
const UNIT_BLOCKS: u64 = 16;

/// What a task has in memory fits into the memory of a worker for a scan.
const _: () = assert!(PACKED_CURSOR_BYTES + 2 * PACKED_SUM_BYTES <= SCAN_BYTES);

/// Some blocks of a segment's index, whose parts are summed.
pub(super) struct CsvUnit {
    segment: Arc<Segment>,
    next: u64,
    end: u64,
    removed: OrdSet<PartId>,
    sum: Sum,
    read: Read,
}

/// All parts of the segments, in units.
pub(super) fn units(snapshot: &Snapshot) -> impl Iterator<Item = CsvUnit> + use<> {
    let (segments, removed) = (snapshot.segments.clone(), snapshot.removed.clone());
    segments.into_iter().flat_map(move |(_, segment)| {
        let removed = removed.clone();
        (0..segment.index_blocks.div_ceil(UNIT_BLOCKS)).map(move |unit| CsvUnit {
            segment: Arc::clone(&segment),
            next: unit * UNIT_BLOCKS,
            end: segment.index_blocks.min((unit + 1) * UNIT_BLOCKS),
            removed: removed.clone(),
            sum: Sum::default(),
            read: Read::default(),
        })
    })
}

impl CsvUnit {
    /// Sums the parts on a worker, one task after another.
    pub(super) async fn sum(mut self, context: &Arc<Context>, column: &Arc<str>) -> Result<(Sum, Read), SegmentError> {
        while self.next < self.end {
            let (store, column) = (Arc::clone(&context.store), Arc::clone(column));
            let task = move || {
                self.step(&store, &column)?;
                Ok::<_, SegmentError>(self)
            };
            self = context.workers.run(Lane::Question, task).await.map_err(SegmentError::Failed)??;
        }
        Ok((self.sum, self.read))
    }

    /// One task, which reads about [`TASK_BYTES`].
    fn step(&mut self, store: &Store, column: &str) -> Result<(), SegmentError> {
        let files = &self.segment.files;
        // It is read once for all files whose schemas are not in memory.
        let receipt = match files.iter().all(|file| file.schema.is_some()) {
            true => None,
            false => Some(store.receipt_of_segment(&self.segment)?),
        };
        let schema = |file: usize| match (&files[file].schema, &receipt) {
            (Some(schema), _) => Some(Arc::clone(schema)),
            (None, Some(receipt)) => {
                let columns = &receipt.files[file].columns;
                columns.iter().any(|it| it.name == column).then(|| Arc::new(Schema::of(columns)))
            }
            (None, None) => None,
        };
        let columns = (0..files.len()).map(|file| {
            let Some(schema) = schema(file) else { return Ok(None) };
            match schema.find(column) {
                None => Ok(None),
                Some((index, column_type @ (ColumnType::Int64 | ColumnType::Float64 | ColumnType::Utf8))) => {
                    Ok(Some(SegmentColumn { schema, index, column_type }))
                }
                Some(_) => Err(SegmentError::NeedsParts),
            }
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        if columns.iter().all(Option::is_none) {
            self.next = self.end;
            return Ok(());
        }
        let mut index = SegmentIndex::open(store, &self.segment)?;
        let csv = store.open_segment(&self.segment, SegmentFile::Csv)?;
        let headers = vec![Vec::new(); columns.len()];
        let mut rows = PackedRows {
            csv,
            removed: &self.removed,
            columns: &columns,
            headers,
            sum: Sum::default(),
            read: Read::default(),
        };
        while self.next < self.end && rows.read.bytes < TASK_BYTES as u64 {
            rows.add_block(&index.entries(self.next)?)?;
            self.next += 1;
        }
        self.sum.merge(rows.sum);
        self.read.add(rows.read);
        Ok(())
    }
}

/// The column to sum in the parts of one Parquet file of a segment.
struct SegmentColumn {
    schema: Arc<Schema>,
    index: usize,
    column_type: ColumnType,
}

/// Sums the rows of packed parts.
struct PackedRows<'a> {
    csv: Reader,
    removed: &'a OrdSet<PartId>,
    /// By Parquet file; `None` if its parts do not have the column.
    columns: &'a [Option<SegmentColumn>],
    /// The header that a part of the same file began with, up to its row end.
    headers: Vec<Vec<u8>>,
    sum: Sum,
    read: Read,
}

impl PackedRows<'_> {
    /// Adds the parts of a block that have the column and were not removed.
    fn add_block(&mut self, block: &BlockEntries) -> Result<(), SegmentError> {
        let (mut rest, mut start) = (block.entries.as_slice(), block.csv_start);
        while !rest.is_empty() {
            let (mut count, mut bytes) = (0, 0_u64);
            for entry in rest {
                let with_this = bytes.checked_add(entry.csv_bytes).ok_or(SegmentError::NeedsParts)?;
                if count > 0 && with_this > PACKED_SUM_BYTES as u64 {
                    break;
                }
                (count, bytes) = (count + 1, with_this);
            }
            let (some, others) = rest.split_at(count);
            self.add_parts(start, bytes, some)?;
            (rest, start) = (others, start + bytes);
        }
        Ok(())
    }

    /// Adds parts whose CSV is `bytes` long and begins at `start`.
    fn add_parts(&mut self, start: u64, bytes: u64, entries: &[Entry]) -> Result<(), SegmentError> {
        if start.checked_add(bytes).is_none_or(|end| end > self.csv.bytes()) {
            return Err(SegmentError::NeedsParts);
        }
        let bytes = usize::try_from(bytes).ok().ok_or(SegmentError::NeedsParts)?;
        let csv = self.csv.read_unverified(start, bytes)?;
        for (file, column) in self.columns.iter().enumerate() {
            match column {
                Some(column) if column.column_type == ColumnType::Float64 => {
                    self.add_parts_of::<true>(file, column, &csv, entries)?;
                }
                Some(column) => self.add_parts_of::<false>(file, column, &csv, entries)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Adds those of the parts that are in this Parquet file. Their CSV is verified here.
    fn add_parts_of<const DOUBLES: bool>(
        &mut self,
        file: usize,
        column: &SegmentColumn,
        csv: &[u8],
        entries: &[Entry],
    ) -> Result<(), SegmentError> {
        let mut rows = Rows::<DOUBLES> { column, text: Vec::new(), count: 0, sum: Sum::default() };
        let mut rest = csv;
        for entry in entries {
            let bytes = usize::try_from(entry.csv_bytes).ok().ok_or(SegmentError::NeedsParts)?;
            let (part, after) = rest.split_at_checked(bytes).ok_or(SegmentError::NeedsParts)?;
            rest = after;
            if entry.file != file || self.removed.contains(&entry.id) {
                continue;
            }
            if checksum(part) != entry.csv_checksum {
                return Err(SegmentError::NeedsParts);
            }
            self.read.add(Read { parts: 1, rows: entry.rows, bytes: entry.csv_bytes });
            let header = &mut self.headers[file];
            if header.is_empty() || !part.starts_with(header) {
                let Some((names, rows_start)) = parse_header(part, STORED_LIMITS) else {
                    rows.add_alone(part, entry.rows)?;
                    continue;
                };
                check_header(&names, &column.schema).ok().ok_or(SegmentError::NeedsParts)?;
                header.clear();
                header.extend_from_slice(&part[..rows_start]);
            }
            rows.add(&part[header.len()..], entry.rows);
        }
        self.sum.merge(rows.finish()?);
        Ok(())
    }
}

/// Rows of parts with the same columns.
struct Rows<'a, const DOUBLES: bool> {
    column: &'a SegmentColumn,
    text: Vec<u8>,
    /// How many rows the text should have.
    count: u64,
    /// The sum of the parts that were scanned alone.
    sum: Sum,
}

impl<const DOUBLES: bool> Rows<'_, DOUBLES> {
    /// Adds the rows of a part, whose last may lack a row end.
    fn add(&mut self, rows: &[u8], count: u64) {
        self.text.extend_from_slice(rows);
        if !matches!(rows.last(), None | Some(b'\n')) {
            self.text.push(b'\n');
        }
        self.count += count;
    }

    /// Adds a part whose header is special, such as one without a row end.
    fn add_alone(&mut self, part: &[u8], count: u64) -> Result<(), SegmentError> {
        let sum = self.scan(part, Resume::default(), count)?;
        self.sum.merge(sum);
        Ok(())
    }

    fn finish(self) -> Result<Sum, SegmentError> {
        // The text begins after a header, and so not at the first byte of a file.
        let resume = Resume { offset: 1, rows: 0, names: self.column.schema.names() };
        let mut sum = self.scan(&self.text, resume, self.count)?;
        sum.merge(self.sum);
        Ok(sum)
    }

    fn scan(&self, text: &[u8], resume: Resume, count: u64) -> Result<Sum, SegmentError> {
        let SegmentColumn { schema, index, .. } = self.column;
        let mut rows = ColumnOfCsv::<DOUBLES> { schema, sum: Sum::default() };
        let mut scanner = Scanner::new(STORED_LIMITS, Wanted::Column(*index), resume);
        let scanned = scanner.feed(text, &mut rows).and_then(|()| scanner.finish(&mut rows));
        scanned.ok().ok_or(SegmentError::NeedsParts)?;
        check_rows(scanner.into_resume().rows, count).ok().ok_or(SegmentError::NeedsParts)?;
        Ok(rows.sum)
    }
}
