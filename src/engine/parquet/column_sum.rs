//! Parquet: the writer of a part, and the reader that takes one column's chunks and nothing else.
//!
//! Only what every engine reads is written: format version 1.0 types, Snappy (LZ4 in wide tables), dictionaries,
//! DELTA_BINARY_PACKED for integers. Memory: the writer holds one row group, or one page of each column while the others
//! lie in a spill_file file; the reader holds one page, or a piece of a chunk and a dictionary where it sums pages as they
//! stand.

use parquet::{
    basic::{Compression, Type},
    column::reader::ColumnReader,
    data_type::AsBytes,
    errors::ParquetError,
};

use super::{
    file::{Chunk, ParquetFile},
    page_sum::{Pages, SLACK_BYTES, Taken, Unknown},
    read_rows::{TEXTS_MAX, TypedReader, read_rows},
    window::CHUNK_BYTES_MAX,
};
use crate::{
    engine::{
        storage::{checksums::CHUNK_BLOCK_BYTES, reader::Reader},
        values::{parse, sum::Sum},
    },
    error::{Error, csv::CellProblem},
    limits::SLICE_ROWS,
    model::{part::Part, schema::ColumnType},
};

/// Values that are decoded at once.
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

/// What one call of [`sum_column`] went through.
#[derive(Debug)]
pub struct Stretch {
    /// The next row group and the rows before it; none after the last.
    pub next: Option<(usize, u64)>,
    /// Bytes of the column's chunks.
    pub bytes: u64,
}

/// Adds a column's cells in the row groups from `row_group` on until about `bytes_max` bytes are read.
///
/// Errors: the file is not what the receipt says. The inner error is a cell that cannot be added.
pub fn sum_column(
    file: &Reader,
    part: &Part,
    (column_index, name, column_type): (usize, &str, ColumnType),
    (mut row_group, mut rows_before): (usize, u64),
    bytes_max: u64,
    sum: &mut Sum,
) -> Result<Result<Stretch, BadCell>, Error> {
    let parquet = ParquetFile::open(file, part)?;
    let rows_at_start = rows_before;
    let mut bytes = 0;
    while let Some(group) = parquet.row_groups().get(row_group) {
        if bytes >= bytes_max || rows_before - rows_at_start >= SLICE_ROWS {
            return Ok(Ok(Stretch { next: Some((row_group, rows_before)), bytes }));
        }
        let rows = u64::try_from(group.num_rows()).map_err(|error| parquet.damaged(&error.to_string()))?;
        let chunk = parquet.chunk(row_group, (column_index, name))?;
        let quick = if column_type == ColumnType::Int64 { sum_pages(&chunk, rows)? } else { None };
        if let Some(pages) = quick.filter(|pages| pages.rows == rows) {
            sum.merge(pages.sum);
        } else {
            let result = match (column_type, chunk.open()?) {
                (ColumnType::Int64, ColumnReader::Int64ColumnReader(reader)) => sum_integers(reader, sum),
                (ColumnType::Utf8, ColumnReader::ByteArrayColumnReader(reader)) => sum_texts(reader, rows_before, sum),
                _ => {
                    return Err(parquet.damaged(&format!("its column {column_index} is not of type {column_type}")));
                }
            };
            match result.map_err(|error| parquet.read_error(error))? {
                Ok(found) if found == rows => {}
                Ok(found) => return Err(parquet.damaged(&format!("row group {row_group} has {found} of {rows} rows"))),
                Err(bad_cell) => return Ok(Err(bad_cell)),
            }
        }
        bytes += chunk.metadata.byte_range().1;
        rows_before += rows;
        row_group += 1;
    }
    Ok(Ok(Stretch { next: None, bytes }))
}

/// Adds all values and says how many rows there were.
pub(super) fn sum_integers(
    mut reader: TypedReader<parquet::data_type::Int64Type>,
    sum: &mut Sum,
) -> Result<Result<u64, BadCell>, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let mut rows = 0;
    loop {
        let count = read_rows(&mut reader, VALUES_MAX, &mut levels, &mut values)?;
        if count == 0 {
            return Ok(Ok(rows));
        }
        sum.add_all(&values);
        rows += count as u64;
    }
}

/// Adds all texts that are integers and says how many rows there were.
fn sum_texts(
    mut reader: TypedReader<parquet::data_type::ByteArrayType>,
    rows_before: u64,
    sum: &mut Sum,
) -> Result<Result<u64, BadCell>, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let mut rows = 0;
    loop {
        let count = read_rows(&mut reader, TEXTS_MAX, &mut levels, &mut values)?;
        if count == 0 {
            return Ok(Ok(rows));
        }
        for (index, value) in values.iter().enumerate() {
            match parse::summand(value.len(), value.as_bytes()) {
                Ok(Some(summand)) => sum.add(summand),
                Ok(None) => {}
                Err(problem) => {
                    // Values stand without the nulls; the levels tell which row each belongs to.
                    let mut present = levels.iter().enumerate().filter(|(_, level)| **level > 0);
                    let offset = present.nth(index).map_or(index, |(offset, _)| offset);
                    let row = rows_before + rows + offset as u64 + 1;
                    let cell = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    return Ok(Err(BadCell { row, cell, problem }));
                }
            }
        }
        rows += count as u64;
    }
}

/// The sum of a column chunk of integers straight from its pages; none if there is anything in it that our writer does
/// not write: the library's reader then reads it.
pub(super) fn sum_pages(chunk: &Chunk<'_>, rows: u64) -> Result<Option<Pages>, Error> {
    let descriptor = chunk.metadata.column_descr();
    let levels = (descriptor.max_def_level(), descriptor.max_rep_level());
    let plain = chunk.metadata.compression() == Compression::UNCOMPRESSED && descriptor.physical_type() == Type::INT64;
    if !plain || levels != (1, 0) {
        return Ok(None);
    }
    let mut pages = Pages::new(rows);
    if let Some(whole) = &chunk.parquet.whole {
        if chunk.end + SLACK_BYTES as u64 > whole.len() as u64 {
            return Ok(None);
        }
        let [mut start, end] = [chunk.start, chunk.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        while start < end {
            match pages.take(&whole[start..end + SLACK_BYTES]) {
                Ok(Taken::Page(bytes)) => start += bytes,
                Ok(Taken::Longer(_)) | Err(Unknown) => return Ok(None),
            }
        }
        return Ok(Some(pages));
    }
    let window = chunk.window_with(chunk.parquet.chunk_sums(chunk.place)?);
    let chunk_bytes = usize::try_from(chunk.end - chunk.start).unwrap_or(usize::MAX);
    let mut buffer = vec![0; chunk_bytes.min(CHUNK_BLOCK_BYTES) + SLACK_BYTES];
    // Of the chunk, `read` bytes have been read; those from `start` to `end` of the buffer are in no page yet.
    let (mut read, mut start, mut end) = (0, 0, 0);
    while start < end || read < chunk_bytes {
        match pages.take(&buffer[start..end + SLACK_BYTES]) {
            Ok(Taken::Page(bytes)) => start += bytes,
            Ok(Taken::Longer(bytes)) if read < chunk_bytes && bytes <= CHUNK_BYTES_MAX => {
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
            Ok(Taken::Longer(_)) | Err(Unknown) => return Ok(None),
        }
    }
    Ok(Some(pages))
}
