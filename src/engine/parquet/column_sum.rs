//! The sum of one column of a part's Parquet file. It reads the footer and the column's chunks, and nothing else.
//!
//! Memory: one page, or where `page_sum.rs` sums the pages, the blocks of one page and a dictionary.

use bytes::Bytes;
use parquet::{
    basic::{Compression, Type},
    column::reader::ColumnReader,
    data_type::{AsBytes, ByteArray, DataType},
    errors::ParquetError,
};

use super::{
    file::{Chunk, ParquetFile, Tail},
    hybrid::{SLACK_BYTES, UnsupportedPage},
    page_sum::{PageStatus, PageSum},
    read_rows::{TEXTS_MAX, TypedReader, read_rows},
    slim_footer::IntegerColumn,
    window::{CHUNK_BYTES_MAX, Window},
};
use crate::{
    engine::{
        storage::{checksums::CHUNK_BLOCK_BYTES, reader::Reader},
        values::{parse, sum::Sum},
    },
    error::{Error, csv::CellProblem},
    limits::TASK_ROWS,
    model::{part::Part, schema::ColumnType},
};

/// Values that are decoded together.
const VALUES_MAX: usize = 16 * 1024;

/// The first cell of a column that cannot be added.
#[derive(Debug)]
pub struct BadCell {
    /// Data row of the part, from 1.
    pub row: u64,
    /// Its text.
    pub cell: String,
    /// What is wrong with it.
    pub problem: CellProblem,
}

/// Why a column could not be summed.
#[derive(Debug)]
pub enum SumError {
    /// A cell cannot be added.
    BadCell(BadCell),
    /// The file does not match its receipt, or cannot be read.
    Failed(Error),
}

impl From<Error> for SumError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A row group, and how many rows of the part are before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowGroupStart {
    /// Which row group, from 0.
    pub row_group: usize,
    /// Rows of the part before it.
    pub rows_before: u64,
}

/// What one call of [`StoredColumn::sum`] read.
#[derive(Debug)]
pub struct Progress {
    /// The next row group; `None` after the last.
    pub next: Option<RowGroupStart>,
    /// Rows of the part that have been read up to here.
    pub rows: u64,
    /// Bytes of the column's chunks.
    pub bytes: u64,
}

/// A column of a stored Parquet file.
pub struct StoredColumn<'a> {
    /// The file.
    pub file: &'a Reader,
    /// Its part.
    pub part: &'a Part,
    /// The column's index in the part.
    pub index: usize,
    /// Its name.
    pub name: &'a str,
    /// Its type in the part.
    pub column_type: ColumnType,
}

impl StoredColumn<'_> {
    /// Adds the cells of the row groups from `start` on, until about `bytes_max` bytes or [`TASK_ROWS`] rows are read.
    pub fn sum(&self, start: RowGroupStart, bytes_max: u64, sum: &mut Sum) -> Result<Progress, SumError> {
        let tail = Tail::read(self.file, self.part)?;
        if self.column_type == ColumnType::Int64
            && let Some(progress) = self.sum_integers(&tail, start, bytes_max, sum)?
        {
            return Ok(progress);
        }
        let parquet = ParquetFile::of(self.file, self.part, tail)?;
        let mut at = start;
        let mut bytes = 0;
        while let Some(group) = parquet.row_groups().get(at.row_group) {
            if bytes >= bytes_max || at.rows_before - start.rows_before >= TASK_ROWS {
                return Ok(Progress { next: Some(at), rows: at.rows_before, bytes });
            }
            let rows = u64::try_from(group.num_rows()).map_err(|error| parquet.damaged(&error.to_string()))?;
            let chunk = parquet.chunk(at.row_group, self.index, self.name)?;
            self.sum_chunk(&chunk, rows, at, sum)?;
            bytes += chunk.metadata.byte_range().1;
            at = RowGroupStart { row_group: at.row_group + 1, rows_before: at.rows_before + rows };
        }
        Ok(Progress { next: None, rows: at.rows_before, bytes })
    }

    /// As [`StoredColumn::sum`], without the library. `None` if our writer would have written the file differently; then
    /// nothing was added.
    fn sum_integers(
        &self,
        tail: &Tail,
        start: RowGroupStart,
        bytes_max: u64,
        sum: &mut Sum,
    ) -> Result<Option<Progress>, Error> {
        let footer = tail.footer(self.part);
        let Some(column) = footer.and_then(|footer| IntegerColumn::find(footer, self.index, self.name)) else {
            return Ok(None);
        };
        if column.rows != self.part.rows || column.chunks.len() != self.part.row_groups as usize {
            return Ok(None);
        }
        let (mut at, mut bytes, mut found) = (start, 0, Sum::default());
        while let Some(chunk) = column.chunks.get(at.row_group) {
            if bytes >= bytes_max || at.rows_before - start.rows_before >= TASK_ROWS {
                sum.merge(found);
                return Ok(Some(Progress { next: Some(at), rows: at.rows_before, bytes }));
            }
            if chunk.end > self.file.bytes() {
                return Ok(None);
            }
            let source =
                PageSource { file: self.file, whole: tail.whole(self.part), start: chunk.start, end: chunk.end };
            let checksums = || match tail.listed_from {
                Some(first) => self.file.block_checksums(first + chunk.first_block, chunk.blocks()),
                None => Ok(column.checksums(chunk).unwrap_or_default()),
            };
            match sum_source(&source, checksums, chunk.rows)? {
                Some(pages) if pages.rows == chunk.rows => found.merge(pages.sum),
                _ => return Ok(None),
            }
            bytes += chunk.end - chunk.start;
            at = RowGroupStart { row_group: at.row_group + 1, rows_before: at.rows_before + chunk.rows };
        }
        sum.merge(found);
        Ok(Some(Progress { next: None, rows: at.rows_before, bytes }))
    }

    /// Adds the cells of one chunk, which must have `rows` rows.
    fn sum_chunk(&self, chunk: &Chunk<'_>, rows: u64, at: RowGroupStart, sum: &mut Sum) -> Result<(), SumError> {
        let (parquet, Self { index, column_type, .. }) = (chunk.parquet, self);
        let pages = if *column_type == ColumnType::Int64 { sum_pages(chunk, rows)? } else { None };
        if let Some(pages) = pages.filter(|pages| pages.rows == rows) {
            sum.merge(pages.sum);
            return Ok(());
        }
        let found = match (column_type, chunk.open()?) {
            (ColumnType::Int64, ColumnReader::Int64ColumnReader(reader)) => {
                sum_integers(reader, sum).map_err(|error| parquet.read_error(error))?
            }
            (ColumnType::Float64, ColumnReader::DoubleColumnReader(reader)) => {
                let shown = |value: &f64| format!("{value:?}");
                sum_values(parquet, reader, at.rows_before, sum, |&value| parse::integral(value).map(Some), shown)?
            }
            (ColumnType::Utf8, ColumnReader::ByteArrayColumnReader(reader)) => {
                let summand = |text: &ByteArray| parse::summand(text.len(), text.as_bytes());
                let shown = |text: &ByteArray| String::from_utf8_lossy(text.as_bytes()).into_owned();
                sum_values(parquet, reader, at.rows_before, sum, summand, shown)?
            }
            _ => return Err(parquet.damaged(&format!("its column {index} is not of type {column_type}")).into()),
        };
        if found != rows {
            let what = format!("row group {} has {found} of {rows} rows", at.row_group);
            return Err(parquet.damaged(&what).into());
        }
        Ok(())
    }
}

/// Adds all values, and returns the number of rows.
pub(super) fn sum_integers(
    mut reader: TypedReader<parquet::data_type::Int64Type>,
    sum: &mut Sum,
) -> Result<u64, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let mut rows = 0;
    loop {
        let count = read_rows(&mut reader, VALUES_MAX, &mut levels, &mut values)?;
        if count == 0 {
            return Ok(rows);
        }
        sum.add_all(&values);
        rows += count as u64;
    }
}

/// Adds the summands of all values, and returns the number of rows. `shown` is the text of a value in an error.
fn sum_values<P: DataType>(
    parquet: &ParquetFile<'_>,
    mut reader: TypedReader<P>,
    rows_before: u64,
    sum: &mut Sum,
    summand: impl Fn(&P::T) -> Result<Option<i64>, CellProblem>,
    shown: impl Fn(&P::T) -> String,
) -> Result<u64, SumError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let mut rows = 0;
    loop {
        let count = read_rows(&mut reader, TEXTS_MAX, &mut levels, &mut values);
        let count = count.map_err(|error| parquet.read_error(error))?;
        if count == 0 {
            return Ok(rows);
        }
        for (index, value) in values.iter().enumerate() {
            match summand(value) {
                Ok(Some(summand)) => sum.add(summand),
                Ok(None) => {}
                Err(problem) => {
                    // Nulls have no value, so the row follows from the definition levels.
                    let mut present = levels.iter().enumerate().filter(|(_, level)| **level > 0);
                    let offset = present.nth(index).map_or(index, |(offset, _)| offset);
                    let row = rows_before + rows + offset as u64 + 1;
                    return Err(SumError::BadCell(BadCell { row, cell: shown(value), problem }));
                }
            }
        }
        rows += count as u64;
    }
}

/// Sums a chunk of integers without the library. `None` if our writer would have written it differently: the caller then
/// reads it with the library.
pub(super) fn sum_pages(chunk: &Chunk<'_>, rows: u64) -> Result<Option<PageSum>, Error> {
    let descriptor = chunk.metadata.column_descr();
    let levels = (descriptor.max_def_level(), descriptor.max_rep_level());
    let plain = chunk.metadata.compression() == Compression::UNCOMPRESSED && descriptor.physical_type() == Type::INT64;
    if !plain || levels != (1, 0) {
        return Ok(None);
    }
    let Chunk { parquet, start, end, .. } = *chunk;
    let source = PageSource { file: parquet.file, whole: parquet.whole.as_ref(), start, end };
    sum_source(&source, || parquet.chunk_checksums(chunk.row_group, chunk.column_index), rows)
}

/// The bytes of a chunk.
struct PageSource<'a> {
    file: &'a Reader,
    /// All bytes of a small file, verified.
    whole: Option<&'a Bytes>,
    start: u64,
    end: u64,
}

/// Sums the pages of a chunk of integers that are not compressed. `checksums` returns those of its blocks.
fn sum_source(
    source: &PageSource<'_>,
    checksums: impl FnOnce() -> Result<Vec<u64>, Error>,
    rows: u64,
) -> Result<Option<PageSum>, Error> {
    let mut pages = PageSum::new(rows);
    let PageSource { file, whole, start: chunk_start, end: chunk_end } = *source;
    if let Some(whole) = whole {
        if chunk_end + SLACK_BYTES as u64 > whole.len() as u64 {
            return Ok(None);
        }
        let [mut start, end] = [chunk_start, chunk_end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        while start < end {
            match pages.add_page(&whole[start..end + SLACK_BYTES]) {
                Ok(PageStatus::Added(bytes)) => start += bytes,
                Ok(PageStatus::Incomplete(_)) | Err(UnsupportedPage) => return Ok(None),
            }
        }
        return Ok(Some(pages));
    }
    let window = Window::new(file, chunk_start..chunk_end, checksums()?);
    let chunk_bytes = usize::try_from(chunk_end - chunk_start).unwrap_or(usize::MAX);
    let mut buffer = vec![0; chunk_bytes.min(CHUNK_BLOCK_BYTES) + SLACK_BYTES];
    // `read` bytes of the chunk have been read. Those in `buffer[start..end]` have not been added yet.
    let (mut read, mut start, mut end) = (0, 0, 0);
    while start < end || read < chunk_bytes {
        match pages.add_page(&buffer[start..end + SLACK_BYTES]) {
            Ok(PageStatus::Added(bytes)) => start += bytes,
            Ok(PageStatus::Incomplete(bytes)) if read < chunk_bytes && bytes <= CHUNK_BYTES_MAX => {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
                let block_bytes = CHUNK_BLOCK_BYTES.min(chunk_bytes - read);
                if buffer.len() < end + block_bytes + SLACK_BYTES {
                    buffer.resize(end + block_bytes + SLACK_BYTES, 0);
                }
                window.read_block(read / CHUNK_BLOCK_BYTES, &mut buffer[end..end + block_bytes])?;
                end += block_bytes;
                read += block_bytes;
            }
            Ok(PageStatus::Incomplete(_)) | Err(UnsupportedPage) => return Ok(None),
        }
    }
    Ok(Some(pages))
}
