//! Parquet: the writer of a part, and the reader that takes one column's chunks and nothing else.
//!
//! Only what every engine reads is written: format version 1.0 types, Snappy (LZ4 in wide tables), dictionaries,
//! DELTA_BINARY_PACKED for integers. Memory: the writer holds one row group, or one page of each column while the others
//! lie in a scratch file; the reader holds one page, or a piece of a chunk and a dictionary where it sums pages as they
//! stand.

use std::{
    collections::HashSet,
    fmt,
    io::{self, BufReader, Read},
    mem,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch},
    datatypes::Int64Type,
};
use bytes::{Buf, Bytes};
use parquet::{
    arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions, PageKey, PageStore, PageStoreArgs, PageStoreFactory},
    basic::{Compression, Encoding, Type},
    column::{
        page::{Page, PageMetadata, PageReader},
        reader::{ColumnReader, get_column_reader},
    },
    data_type::{AsBytes, DataType},
    errors::ParquetError,
    file::{
        metadata::{
            ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader,
            ParquetStatisticsPolicy, RowGroupMetaData,
        },
        properties::{EnabledStatistics, WriterProperties},
        reader::{ChunkReader, Length},
        serialized_reader::SerializedPageReader,
    },
    schema::types::ColumnPath,
};

use super::{
    cell,
    convert::arrow_schema,
    fold::Sum,
    pages::{Pages, SLACK_BYTES, Taken, Unknown},
    part::{Column, ColumnType, Part},
    store::{Draft, Reader, Scratch, Store},
};
use crate::{
    error::{CellProblem, Error},
    limits::{DICTIONARY_BYTES_MAX, DICTIONARY_COLUMNS_MAX, KIB, MIB, ROW_GROUP_ROWS_MAX, SLICE_ROWS},
};

/// What a footer says of its maker.
pub(super) const CREATED_BY: &str = concat!("tally version ", env!("CARGO_PKG_VERSION"));
/// Values that are decoded at once.
const VALUES_MAX: usize = 16 * 1024;
/// Texts that are decoded at once: they lie in the page, so this bounds their handles alone.
pub(super) const TEXTS_MAX: usize = 1024;
/// Tables with more columns have plain integers: the encoder of packed deltas reserves 1 MiB for each column.
pub(super) const DELTA_COLUMNS_MAX: usize = 32;
/// A file up to this size is read whole: it is one page of the system's cache, so no less would be read of a disk.
const SMALL_FILE_BYTES: usize = 4 * KIB;
/// A column chunk up to this size is read in one piece.
const CHUNK_BYTES_MAX: usize = MIB;
/// Bytes of a chunk that are read at once where its pages are summed as they stand: in the core's cache until then.
const PIECE_BYTES: usize = 128 * KIB;
/// The footer's length and the magic number at the very end.
const TAIL_BYTES: usize = 8;

/// Writes the rows of a part to a draft.
pub struct PartWriter {
    output: Output,
    layout: Layout,
    scratch: Option<Arc<Scratch>>,
    /// What the draft or the scratch file failed with, which the Parquet writer does not always hand on.
    failures: Vec<Arc<OnceLock<io::ErrorKind>>>,
}

/// The file of a [`PartWriter`].
enum Output {
    /// No row has come yet, so the encodings are not chosen.
    Waiting(Draft, Vec<Column>),
    Open(Box<ArrowWriter<Draft>>),
    /// An error ended it.
    Failed,
}

/// A finished Parquet file that is not published yet.
pub struct Written {
    /// The file.
    pub draft: Draft,
    /// Its row groups.
    pub row_groups: u32,
    /// The size of its footer without the tail of 8 bytes.
    pub footer_bytes: u32,
}

/// How the Parquet file of a part is laid out, so that its conversion keeps to its memory and its footer stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// A row group is written out when its encoded pages take so much.
    pub row_group_bytes: usize,
    /// A page is complete when it takes so much.
    pub page_bytes: usize,
    /// Whether complete pages wait on disk for the end of their row group.
    pub spill: bool,
}

impl PartWriter {
    /// Begins the file.
    pub fn new(store: &Store, columns: &[Column], layout: Layout) -> Result<Self, Error> {
        let draft = store.draft()?;
        let scratch = if layout.spill { Some(Arc::new(store.scratch()?)) } else { None };
        let mut failures = vec![draft.failure()];
        failures.extend(scratch.as_ref().map(|scratch| scratch.failure()));
        Ok(Self { output: Output::Waiting(draft, columns.to_vec()), layout, scratch, failures })
    }

    /// Adds rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let rows_max = ROW_GROUP_ROWS_MAX;
        let bytes_max = self.layout.row_group_bytes;
        self.open(Some(batch))?;
        let writer = self.writer()?;
        let written = writer.write(batch);
        // Not `memory_size`, which counts what encoders reserve and never touch.
        let full = writer.in_progress_size() >= bytes_max || writer.in_progress_rows() >= rows_max;
        written.map_err(|error| write_error(&error, &self.failures))?;
        if full { self.flush() } else { Ok(()) }
    }

    /// Writes the last row group and the footer.
    pub fn finish(mut self) -> Result<Written, Error> {
        self.open(None)?;
        self.flush()?;
        let Output::Open(writer) = self.output else {
            return Err(after_failure());
        };
        let row_groups = writer.flushed_row_groups().len();
        let before_footer = writer.bytes_written();
        let draft = writer.into_inner().map_err(|error| write_error(&error, &self.failures))?;
        written(draft, row_groups, before_footer)
    }

    /// Chooses the encodings by the first rows, if there are any.
    fn open(&mut self, first: Option<&RecordBatch>) -> Result<(), Error> {
        if matches!(self.output, Output::Open(_)) {
            return Ok(());
        }
        let Output::Waiting(draft, columns) = mem::replace(&mut self.output, Output::Failed) else {
            return Err(after_failure());
        };
        // The Arrow schema in the footer would say nothing that the Parquet types do not.
        let properties = properties(&columns, self.layout.page_bytes, first);
        let mut options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        if let Some(scratch) = &self.scratch {
            options = options.with_page_store_factory(Arc::new(Spill(Arc::clone(scratch))));
        }
        let writer = ArrowWriter::try_new_with_options(draft, arrow_schema(&columns), options)
            .map_err(|error| write_error(&error, &self.failures))?;
        self.output = Output::Open(Box::new(writer));
        Ok(())
    }

    fn writer(&mut self) -> Result<&mut ArrowWriter<Draft>, Error> {
        match &mut self.output {
            Output::Open(writer) => Ok(writer),
            Output::Waiting(..) | Output::Failed => Err(after_failure()),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let flushed = self.writer()?.flush();
        flushed.map_err(|error| write_error(&error, &self.failures))?;
        if let Some(scratch) = &self.scratch {
            scratch.clear();
        }
        Ok(())
    }
}

/// A file that is finished, of which so many bytes stand before the footer.
pub(super) fn written(draft: Draft, row_groups: usize, before_footer: usize) -> Result<Written, Error> {
    let footer_bytes = draft.bytes() - before_footer as u64 - TAIL_BYTES as u64;
    let too_large = |_| Error::Internal("a parquet footer of more than 4 GiB".to_owned());
    Ok(Written {
        draft,
        row_groups: u32::try_from(row_groups).map_err(too_large)?,
        footer_bytes: u32::try_from(footer_bytes).map_err(too_large)?,
    })
}

fn after_failure() -> Error {
    Error::Internal("a parquet file is written on after an error".to_owned())
}

/// How the columns are written, by their types and the first rows.
fn properties(columns: &[Column], page_bytes: usize, first: Option<&RecordBatch>) -> WriterProperties {
    // Dictionaries begin with 4,096 slots, and a Snappy encoder keeps up to 34 KiB: too much for each of 4,096 columns.
    let wide = columns.len() > DICTIONARY_COLUMNS_MAX;
    let mut properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_compression(if wide { Compression::LZ4_RAW } else { Compression::SNAPPY })
        .set_dictionary_enabled(!wide)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_data_page_size_limit(page_bytes)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        // `write` ends row groups, so that it knows when the scratch file can be cleared.
        .set_max_row_group_row_count(None);
    for (index, column) in columns.iter().enumerate() {
        let path = || ColumnPath::new(vec![column.name.clone()]);
        match column.column_type {
            ColumnType::Utf8 => {
                // The least and the greatest text would be kept whole for each column until the row group ends.
                properties = properties.set_column_statistics_enabled(path(), EnabledStatistics::None);
            }
            ColumnType::Float64 | ColumnType::Boolean => {}
            ColumnType::Int64 | ColumnType::Date32 | ColumnType::Timestamp | ColumnType::TimestampUtc
                if columns.len() <= DELTA_COLUMNS_MAX =>
            {
                // Packed deltas are as small as Snappy would make them and need no second pass.
                properties = properties
                    .set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED)
                    .set_column_compression(path(), Compression::UNCOMPRESSED);
                let integers = first.and_then(|batch| batch.column(index).as_primitive_opt::<Int64Type>());
                if integers.is_some_and(|values| !dictionary_pays(values)) {
                    properties = properties.set_column_dictionary_enabled(path(), false);
                }
            }
            ColumnType::Int64 | ColumnType::Date32 | ColumnType::Timestamp | ColumnType::TimestampUtc => {}
        }
    }
    properties.build()
}

/// Whether places in a dictionary are narrower than packed deltas would be, judged by some values. A dictionary that is
/// given up when it is full costs more than the time to make it: its part of the column is read with it in every sum.
fn dictionary_pays(values: &Int64Array) -> bool {
    /// Fewer values are one page of deltas, and would be two pages with a dictionary.
    const VALUES_MIN: usize = 1024;
    /// How often a value must come, on average.
    const USES_MIN: usize = 4;
    let count = values.len() - values.null_count();
    if count < VALUES_MIN {
        return false;
    }
    let mut distinct = HashSet::with_hasher(ahash::RandomState::new());
    let (mut least, mut greatest, mut last) = (i64::MAX, i64::MIN, None);
    for value in values.iter().flatten() {
        distinct.insert(value);
        if distinct.len() > count / USES_MIN {
            return false;
        }
        // They may wrap, as the encoder's do.
        let delta = value.wrapping_sub(last.replace(value).unwrap_or(value));
        (least, greatest) = (least.min(delta), greatest.max(delta));
    }
    let width = |most: u64| u64::BITS - most.leading_zeros();
    width(distinct.len() as u64 - 1) <= width(greatest.wrapping_sub(least).cast_unsigned())
}

/// Pages of one row group in a scratch file. A key is the page's offset and, in its low 24 bits, its length, so that
/// the pages of a row group of any size take no memory.
#[derive(Clone)]
struct Spill(Arc<Scratch>);

impl fmt::Debug for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spill")
    }
}

impl PageStoreFactory for Spill {
    fn create(&self, _column: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>, ParquetError> {
        Ok(Box::new(self.clone()))
    }
}

impl PageStore for Spill {
    fn put(&mut self, page: Bytes) -> Result<PageKey, ParquetError> {
        let offset = self.0.put(&page)?;
        if page.len() >> 24 != 0 || offset >> 40 != 0 {
            return Err(ParquetError::General(format!("a page of {} bytes at {offset}", page.len())));
        }
        Ok(PageKey::new(offset << 24 | page.len() as u64))
    }

    fn take(&mut self, key: PageKey) -> Result<Bytes, ParquetError> {
        let (offset, bytes) = (key.get() >> 24, key.get() & 0xff_ffff);
        Ok(self.0.get(offset, usize::try_from(bytes)?)?.into())
    }
}

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
    let damaged = |what: String| Error::Damaged { part: part.id, what: format!("parquet: {what}") };
    let (footer, tail) = checked_tail(file, part)?;
    let row_groups = footer.row_groups();
    let rows_at_start = rows_before;
    let mut bytes = 0;
    while let Some(group) = row_groups.get(row_group) {
        if bytes >= bytes_max || rows_before - rows_at_start >= SLICE_ROWS {
            return Ok(Ok(Stretch { next: Some((row_group, rows_before)), bytes }));
        }
        let rows = u64::try_from(group.num_rows()).map_err(|error| damaged(error.to_string()))?;
        let chunk = chunk_of(group, (column_index, name)).map_err(damaged)?;
        let quick = if column_type == ColumnType::Int64 { sum_pages(file, &tail, chunk, rows) } else { None };
        if let Some(pages) = quick.filter(|pages| pages.rows == rows) {
            sum.merge(pages.sum);
        } else {
            let result = match (column_type, open_chunk(file, group, (column_index, name)).map_err(damaged)?) {
                (ColumnType::Int64, ColumnReader::Int64ColumnReader(reader)) => sum_integers(reader, sum),
                (ColumnType::Utf8, ColumnReader::ByteArrayColumnReader(reader)) => sum_texts(reader, rows_before, sum),
                _ => {
                    return Err(damaged(format!("its column {column_index} is not of type {column_type}")));
                }
            };
            match result.map_err(|error| damaged(error.to_string()))? {
                Ok(found) if found == rows => {}
                Ok(found) => return Err(damaged(format!("row group {row_group} has {found} of {rows} rows"))),
                Err(bad_cell) => return Ok(Err(bad_cell)),
            }
        }
        bytes += chunk.byte_range().1;
        rows_before += rows;
        row_group += 1;
    }
    Ok(Ok(Stretch { next: None, bytes }))
}

/// Reads the values of one column chunk.
pub(super) type TypedReader<T> = parquet::column::reader::ColumnReaderImpl<T>;

/// Replaces `levels` and `values` by those of the next rows: at most so many, and fewer at the end of a page, so that
/// texts, which lie in their page, keep one page in memory. Says how many rows; 0 after the last.
pub(super) fn read_rows<T: DataType>(
    reader: &mut TypedReader<T>,
    rows_max: usize,
    levels: &mut Vec<i16>,
    values: &mut Vec<T::T>,
) -> Result<usize, ParquetError> {
    levels.clear();
    values.clear();
    let mut read = || Ok(reader.read_records(rows_max, Some(&mut *levels), None, &mut *values)?.0);
    match read()? {
        0 => read(), // the rows before these ended with their page, so there was only the empty one
        count => Ok(count),
    }
}

/// Adds all values and says how many rows there were.
fn sum_integers(
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
            match cell::summand(value.len(), value.as_bytes()) {
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

/// The footer of a part's file, if it agrees with the receipt.
pub(super) fn checked_footer(file: &Reader, part: &Part) -> Result<ParquetMetaData, Error> {
    Ok(checked_tail(file, part)?.0)
}

/// The same, and the file's last bytes, in which it stands; all bytes of a small file.
fn checked_tail(file: &Reader, part: &Part) -> Result<(ParquetMetaData, Bytes), Error> {
    let damaged = |what: String| Error::Damaged { part: part.id, what: format!("parquet: {what}") };
    let tail = read_tail(file, part).map_err(|error| damaged(error.to_string()))?;
    let footer = decode_footer(&tail, part).map_err(|error| damaged(error.to_string()))?;
    let row_groups = footer.num_row_groups() == part.row_groups as usize;
    if !row_groups || footer.file_metadata().num_rows() != part.rows.cast_signed() {
        return Err(damaged("its footer disagrees with the receipt".to_owned()));
    }
    Ok((footer, tail))
}

/// The chunk of a column in a row group, if it is the column that the receipt has there; or what is wrong with it.
fn chunk_of<'a>(
    group: &'a RowGroupMetaData,
    (column_index, name): (usize, &str),
) -> Result<&'a ColumnChunkMetaData, String> {
    let Some(chunk) = group.columns().get(column_index) else {
        return Err(format!("it has no column {column_index}"));
    };
    if chunk.column_descr().path().parts() != [name] {
        return Err(format!("its column {column_index} is another one"));
    }
    // The library takes for granted that they are not negative.
    let offsets = [Some(chunk.data_page_offset()), chunk.dictionary_page_offset(), Some(chunk.compressed_size())];
    if offsets.into_iter().flatten().any(i64::is_negative) {
        return Err(format!("its column {column_index} begins before the file"));
    }
    Ok(chunk)
}

/// The sum of a column chunk of integers straight from its pages; none if there is anything in it that our writer does
/// not write, or that cannot be read: the library's reader has the word on it.
fn sum_pages(file: &Reader, tail: &[u8], chunk: &ColumnChunkMetaData, rows: u64) -> Option<Pages> {
    let descriptor = chunk.column_descr();
    let levels = (descriptor.max_def_level(), descriptor.max_rep_level());
    let plain = chunk.compression() == Compression::UNCOMPRESSED && descriptor.physical_type() == Type::INT64;
    if !plain || levels != (1, 0) {
        return None;
    }
    let (mut offset, bytes) = chunk.byte_range();
    let chunk_end = offset.checked_add(bytes)?;
    let mut pages = Pages::new(rows);
    let tail_start = file.bytes() - tail.len() as u64;
    if offset >= tail_start && chunk_end <= file.bytes().saturating_sub(SLACK_BYTES as u64) {
        let [mut start, end] = [offset, chunk_end].map(|at| usize::try_from(at - tail_start).unwrap_or(usize::MAX));
        while start < end {
            match pages.take(&tail[start..end + SLACK_BYTES]) {
                Ok(Taken::Page(bytes)) => start += bytes,
                Ok(Taken::Longer(_)) | Err(Unknown) => return None,
            }
        }
        return Some(pages);
    }
    let mut buffer = vec![0; usize::try_from(bytes).ok()?.min(PIECE_BYTES) + SLACK_BYTES];
    let (mut start, mut end) = (0, 0);
    while start < end || offset < chunk_end {
        match pages.take(&buffer[start..end + SLACK_BYTES]) {
            Ok(Taken::Page(bytes)) => start += bytes,
            Ok(Taken::Longer(bytes)) if offset < chunk_end && bytes <= CHUNK_BYTES_MAX => {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
                if buffer.len() < bytes + SLACK_BYTES {
                    buffer.resize(bytes + SLACK_BYTES, 0);
                }
                let free = buffer.len() - SLACK_BYTES - end;
                let piece = usize::try_from(chunk_end - offset).map_or(free, |left| left.min(free));
                if file.read_at(offset, &mut buffer[end..end + piece]).ok()? != piece {
                    return None;
                }
                end += piece;
                offset += piece as u64;
            }
            Ok(Taken::Longer(_)) | Err(Unknown) => return None,
        }
    }
    Some(pages)
}

/// The chunk of a column in a row group as the library reads it; or what is wrong with it.
pub(super) fn open_chunk(
    file: &Reader,
    group: &RowGroupMetaData,
    column: (usize, &str),
) -> Result<ColumnReader, String> {
    let chunk = chunk_of(group, column)?;
    let descriptor = chunk.column_descr_ptr();
    let open = || -> Result<_, ParquetError> {
        let window = Arc::new(Window::open(file, chunk.byte_range())?);
        SerializedPageReader::new(window, chunk, usize::try_from(group.num_rows())?, None)
    };
    let pages = Apart { pages: open().map_err(|error| error.to_string())?, data_before: false };
    Ok(get_column_reader(descriptor, Box::new(pages) as Box<dyn PageReader>))
}

/// The pages of a column chunk with an empty one after each that has rows. `read_records` would go on from page to page
/// until it has as many rows as it was asked for, and each text would keep its page. At an empty page it ends, and the
/// decoder lets go of the page before.
struct Apart<P> {
    pages: P,
    data_before: bool,
}

impl<P: PageReader> PageReader for Apart<P> {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        if mem::take(&mut self.data_before) {
            return Ok(Some(Page::DataPage {
                buf: Bytes::from_static(&[0; 4]), // the length of its levels
                num_values: 0,
                encoding: Encoding::PLAIN,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            }));
        }
        let page = self.pages.get_next_page()?;
        self.data_before = page.as_ref().is_some_and(Page::is_data_page);
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.pages.skip_next_page()
    }
}

impl<P: PageReader> Iterator for Apart<P> {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

fn read_tail(file: &Reader, part: &Part) -> Result<Bytes, ParquetError> {
    let footer_bytes = part.footer_bytes as usize + TAIL_BYTES;
    let offset = (file.bytes().checked_sub(footer_bytes as u64))
        .ok_or_else(|| ParquetError::EOF("its footer is longer than the file".to_owned()))?;
    match usize::try_from(file.bytes()) {
        Ok(bytes) if bytes <= SMALL_FILE_BYTES => read_exactly(file, 0, bytes),
        _ => read_exactly(file, offset, footer_bytes),
    }
}

fn decode_footer(tail: &[u8], part: &Part) -> Result<ParquetMetaData, ParquetError> {
    let footer_bytes = part.footer_bytes as usize;
    let (footer, mut end) = tail[tail.len() - footer_bytes - TAIL_BYTES..].split_at(footer_bytes);
    if end.get_u32_le() as usize != footer_bytes || end != b"PAR1" {
        return Err(ParquetError::General("its end is no Parquet footer of the known size".to_owned()));
    }
    let options = ParquetMetaDataOptions::new()
        .with_column_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_encoding_stats_policy(ParquetStatisticsPolicy::SkipAll);
    ParquetMetaDataReader::decode_metadata_with_options(footer, Some(&options))
}

fn read_exactly(file: &Reader, offset: u64, bytes: usize) -> Result<Bytes, ParquetError> {
    if offset + bytes as u64 > file.bytes() {
        return Err(ParquetError::EOF(format!("{bytes} bytes at {offset} are beyond its end")));
    }
    let mut buffer = vec![0; bytes];
    if file.read_at(offset, &mut buffer)? != bytes {
        return Err(ParquetError::EOF(format!("{bytes} bytes at {offset} are beyond its end")));
    }
    Ok(buffer.into())
}

/// One column chunk of a file: whoever reads through it cannot read beside it.
struct Window {
    file: Reader,
    start: u64,
    end: u64,
    /// The whole chunk, if it is small.
    loaded: Option<Bytes>,
}

impl Window {
    fn open(file: &Reader, (start, bytes): (u64, u64)) -> Result<Self, ParquetError> {
        let loaded = match usize::try_from(bytes) {
            Ok(bytes) if bytes <= CHUNK_BYTES_MAX => Some(read_exactly(file, start, bytes)?),
            _ => None,
        };
        Ok(Self { file: file.clone(), start, end: start + bytes, loaded })
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.end
    }
}

impl ChunkReader for Window {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        if start < self.start || start > self.end {
            return Err(ParquetError::EOF(format!("offset {start} is outside of the column chunk")));
        }
        Ok(match &self.loaded {
            Some(bytes) => Box::new(bytes.slice(usize::try_from(start - self.start)?..).reader()),
            None => Box::new(BufReader::with_capacity(
                1024, // page headers alone are read this way
                WindowReader { file: self.file.clone(), at: start, end: self.end },
            )),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start < self.start || start.saturating_add(length as u64) > self.end {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are outside of the column chunk")));
        }
        match &self.loaded {
            Some(bytes) => {
                let start = usize::try_from(start - self.start)?;
                Ok(bytes.slice(start..start + length))
            }
            None => read_exactly(&self.file, start, length),
        }
    }
}

struct WindowReader {
    file: Reader,
    at: u64,
    end: u64,
}

impl Read for WindowReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.file.read_at(self.at, &mut buffer[..wanted])?;
        self.at += read as u64;
        Ok(read)
    }
}

/// A failed write shows through the Parquet writer as text at times; the draft knows what it was.
pub(super) fn write_error(error: &ParquetError, failures: &[Arc<OnceLock<io::ErrorKind>>]) -> Error {
    match failures.iter().find_map(|failure| failure.get()) {
        Some(&kind) => Error::io("the parquet file")(kind.into()),
        None => Error::Internal(format!("parquet: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{
            Durability,
            columns::{Cell, ColumnRef, PartColumns, Position},
            convert::{BatchBuilder, Typer},
            csv::{Resume, Row, Rows, Scanner, Wanted},
            integers::Integers,
            part::PartId,
            store::reads,
        },
        limits::{CELL_BYTES_MAX, CsvLimits, PAGE_BYTES, ROW_GROUP_BYTES, SLICE_BYTES},
    };

    /// Rows into batches into row groups of one batch each.
    struct Batches(BatchBuilder, PartWriter);

    impl Rows for Batches {
        type Error = Error;

        fn header(&mut self, _names: &[String]) -> Result<(), Error> {
            Ok(())
        }

        fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
            self.0.push(&row)?;
            if self.0.is_full() {
                self.1.write(&self.0.take()?)?;
            }
            Ok(())
        }
    }

    fn scan<R: Rows<Error = Error>>(csv: &[u8], rows: R) -> R {
        struct Through<R>(R);
        impl<R: Rows<Error = Error>> Rows for Through<R> {
            type Error = Error;
            fn header(&mut self, names: &[String]) -> Result<(), Error> {
                self.0.header(names)
            }
            fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
                self.0.row(row)
            }
        }
        let mut rows = Through(rows);
        let mut scanner = Scanner::new(crate::limits::CsvLimits::default(), Wanted::All, Resume::default());
        scanner.feed(csv, &mut rows).and_then(|()| scanner.finish(&mut rows)).expect("valid");
        rows.0
    }

    #[test]
    fn only_the_columns_chunks_and_the_footer_are_read() {
        check_reads(Layout { row_group_bytes: 1, page_bytes: 4096, spill: false });
    }

    #[test]
    fn pages_that_waited_on_disk_are_the_same() {
        check_reads(Layout { row_group_bytes: 100_000, page_bytes: 4096, spill: true });
    }

    fn check_reads(layout: Layout) {
        const ROWS: u64 = 40_000;
        let mut csv = b"x,text,big\n".to_vec();
        for row in 0..ROWS {
            csv.extend_from_slice(format!("{row},text {row},{}\n", row * 1_000_003 % 7_777_777).as_bytes());
        }
        let (_written, file, part) = convert(&csv, ROWS, layout);
        assert!(part.row_groups > 1, "the test wants several row groups");
        for (index, (name, column_type, total)) in [
            ("x", ColumnType::Int64, Ok(ROWS * (ROWS - 1) / 2)),
            ("text", ColumnType::Utf8, Err(1)),
            ("big", ColumnType::Int64, Ok((0..ROWS).map(|row| row * 1_000_003 % 7_777_777).sum())),
        ]
        .into_iter()
        .enumerate()
        {
            reads::take();
            let mut sum = Sum::default();
            let result = sum_column(&file, &part, (index, name, column_type), (0, 0), u64::MAX, &mut sum);
            match (result.expect("readable"), total) {
                (Ok(Stretch { next: None, .. }), Ok(total)) => assert_eq!(sum.total(), Ok(total.cast_signed())),
                (Err(bad), Err(row)) => assert_eq!(bad.row, row),
                other => panic!("{other:?}"),
            }
            check_inside(&file, &part, [index]);
        }

        let refs = [("big", 2, ColumnType::Int64), ("text", 1, ColumnType::Utf8)];
        let [big, text] = refs.map(|(name, index, column_type)| ColumnRef { index, name, column_type });
        reads::take();
        let open = PartColumns::open(&file, &part).expect("a footer");
        // The lengths of stretches are those of a block, of some blocks, and odd ones.
        for rows_max in [TEXTS_MAX, 9999, 100_000] {
            let (mut at, mut found) = (Position::default(), Vec::new());
            while let Some((stretch, after)) = open.stretch(at, &[&big, &text], rows_max).expect("readable") {
                let count = u32::try_from(stretch.rows_count()).expect("few");
                assert!(count as usize <= rows_max, "{stretch:?}");
                let mut rows: Vec<(u32, i64)> = (0..count).map(|offset| (offset, 0)).collect();
                let rare = |_, data: &mut i64, cell: Cell<'_>| {
                    let Cell::Int64(value) = cell else { panic!("{cell:?}") };
                    *data = value;
                    Ok(value % 1000 == 0)
                };
                open.narrow(&big, &stretch, &mut rows, rare).expect("readable");
                let all = |offset, data: &mut i64, cell: Cell<'_>| {
                    let row = stretch.row_number(offset) - 1;
                    assert_eq!((cell, *data % 1000), (Cell::Utf8(&format!("text {row}")), 0));
                    *data = row.cast_signed();
                    Ok(row % 2 == 0)
                };
                open.narrow(&text, &stretch, &mut rows, all).expect("readable");
                found.extend(rows.into_iter().map(|(_, row)| row.cast_unsigned()));
                at = after;
            }
            let wanted = |row: &u64| (row * 1_000_003 % 7_777_777).is_multiple_of(1000) && row.is_multiple_of(2);
            assert_eq!(found, (0..ROWS).filter(wanted).collect::<Vec<_>>(), "stretches of {rows_max}");
        }
        check_inside(&file, &part, [1, 2]);
    }

    /// A file of some rows as a part; it is there for as long as the draft is.
    fn convert(csv: &[u8], rows: u64, layout: Layout) -> (Written, Reader, Part) {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let columns = scan(csv, Typer::default()).into_columns();
        let writer = PartWriter::new(&store, &columns, layout).expect("a writer");
        let Batches(mut batch, mut writer) = scan(csv, Batches(BatchBuilder::new(&columns), writer));
        writer.write(&batch.take().expect("a batch")).expect("written");
        let mut written = writer.finish().expect("finished");
        let file = written.draft.reader().expect("opened");
        let part = Part {
            id: PartId::FIRST,
            rows,
            csv_bytes: csv.len() as u64,
            parquet_bytes: file.bytes(),
            row_groups: written.row_groups,
            footer_bytes: written.footer_bytes,
            columns_count: u32::try_from(columns.len()).expect("few"),
            schema: None,
        };
        (written, file, part)
    }

    /// Integers of many kinds: constant, in runs, ascending, of any width, at the edges; some, all or none of them null.
    fn integers(random: &mut fastrand::Rng, rows: usize) -> Int64Array {
        let (kind, nulls) = (random.u8(..7), [0.0, 0.0, 0.01, 0.5, 1.0][random.usize(..5)]);
        let (base, bits) = (random.i64(..) >> random.u8(..64), random.u8(1..64));
        let edges = [i64::MIN, i64::MAX, -1, 0, 1];
        let mut value = |row: usize| match kind {
            0 => base,
            1 => base.wrapping_add(row as i64 / 100),
            2 => base.wrapping_add(row as i64 * 3),
            3 => edges[random.usize(..edges.len())],
            4 => random.i64(-50_000..50_000),
            5 => [base, 7, i64::from(bits)][random.usize(..3)],
            _ => base.wrapping_add((random.u64(..) >> bits).cast_signed()),
        };
        let values: Vec<_> = (0..rows).map(&mut value).collect();
        values.into_iter().map(|value| (random.f64() >= nulls).then_some(value)).collect()
    }

    /// A file of integers, of the encodings that are chosen by its first rows or of those that earlier versions had.
    fn write_integers(store: &Store, batches: &[Int64Array], chosen: bool) -> (Written, Reader, Part) {
        let columns = [Column { name: "x".to_owned(), column_type: ColumnType::Int64, nulls: 0 }];
        let layout = Layout { row_group_bytes: 100_000, page_bytes: PAGE_BYTES, spill: false };
        let mut writer = PartWriter::new(store, &columns, layout).expect("a writer");
        if !chosen {
            writer.open(None).expect("opened");
        }
        for values in batches {
            let batch = RecordBatch::try_new(arrow_schema(&columns), vec![Arc::new(values.clone())]);
            writer.write(&batch.expect("a batch")).expect("written");
        }
        let mut written = writer.finish().expect("finished");
        let file = written.draft.reader().expect("opened");
        let part = Part {
            id: PartId::FIRST,
            rows: batches.iter().map(|values| values.len() as u64).sum(),
            csv_bytes: 0,
            parquet_bytes: file.bytes(),
            row_groups: written.row_groups,
            footer_bytes: written.footer_bytes,
            columns_count: 1,
            schema: None,
        };
        (written, file, part)
    }

    /// Rows and sum of a chunk as the library reads it.
    fn library_sum(file: &Reader, group: &RowGroupMetaData) -> Result<(u64, Sum), String> {
        let ColumnReader::Int64ColumnReader(reader) = open_chunk(file, group, (0, "x"))? else {
            return Err("not of integers".to_owned());
        };
        let mut sum = Sum::default();
        match sum_integers(reader, &mut sum).map_err(|error| error.to_string())? {
            Ok(rows) => Ok((rows, sum)),
            Err(bad_cell) => Err(format!("{bad_cell:?}")),
        }
    }

    fn check_pages(store: &Store, batches: &[Int64Array], what: &str) {
        let values = batches.iter().flatten().flatten();
        let total = values.fold(Sum::default(), |mut sum, value| {
            sum.add(value);
            sum
        });
        for chosen in [true, false] {
            let (_written, file, part) = write_integers(store, batches, chosen);
            let (footer, tail) = checked_tail(&file, &part).expect("a footer");
            let mut found = Sum::default();
            for group in footer.row_groups() {
                let pages = sum_pages(&file, &tail, group.column(0), rows_of(group)).expect("pages of our writer");
                assert_eq!(Ok((pages.rows, pages.sum)), library_sum(&file, group), "{what}, {chosen}");
                found.merge(pages.sum);
            }
            assert_eq!(found, total, "{what}, {chosen}");
        }
    }

    fn rows_of(group: &RowGroupMetaData) -> u64 {
        u64::try_from(group.num_rows()).expect("not below 0")
    }

    #[test]
    fn pages_are_summed_as_the_library_reads_them() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let rows = [0, 1, 2, 63, 64, 65, 66, 256, 257, 258, 1000, 5000, 16_384];
            let batches: Vec<_> = (0..random.usize(1..5))
                .map(|_| {
                    let rows = rows[random.usize(..rows.len())];
                    integers(&mut random, rows)
                })
                .collect();
            check_pages(&store, &batches, &format!("seed {seed}"));
        }
        let mut random = fastrand::Rng::with_seed(1);
        for width in 0..64_u32 {
            let mut value = || random.u64(..).checked_shr(64 - width).unwrap_or(0).cast_signed();
            let values: Int64Array = (0..3000).map(|_| Some(value())).collect();
            check_pages(&store, &[values], &format!("width {width}"));
        }
    }

    #[test]
    fn pages_of_files_that_were_converted_while_they_came_are_summed_as_they_stand() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        for seed in 0..40 {
            let mut random = fastrand::Rng::with_seed(seed);
            let rows = [1, 64, 65, 256, 257, 5000, 60_000][random.usize(..7)];
            let columns = [integers(&mut random, rows), integers(&mut random, rows)];
            let mut csv = b"a,b\n0,0\n".to_vec(); // a column without a value would be text
            for row in 0..rows {
                let text = |column: &Int64Array| {
                    if column.is_null(row) { String::new() } else { column.value(row).to_string() }
                };
                csv.extend_from_slice(format!("{},{}\n", text(&columns[0]), text(&columns[1])).as_bytes());
            }
            let mut converted = Integers::of_file(&store, CsvLimits::default(), &csv).expect("integers");
            let file = converted.parquet.draft.reader().expect("opened");
            let part = Part {
                id: PartId::FIRST,
                rows: converted.rows,
                csv_bytes: csv.len() as u64,
                parquet_bytes: file.bytes(),
                row_groups: converted.parquet.row_groups,
                footer_bytes: converted.parquet.footer_bytes,
                columns_count: 2,
                schema: None,
            };
            let (footer, tail) = checked_tail(&file, &part).expect("a footer");
            for (index, values) in columns.iter().enumerate() {
                let total = values.iter().flatten().fold(Sum::default(), |mut sum, value| {
                    sum.add(value);
                    sum
                });
                let mut found = Sum::default();
                for group in footer.row_groups() {
                    let pages =
                        sum_pages(&file, &tail, group.column(index), rows_of(group)).expect("pages that are known");
                    assert_eq!(pages.rows, u64::try_from(group.num_rows()).expect("rows"), "seed {seed}");
                    found.merge(pages.sum);
                }
                assert_eq!(found, total, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_damaged_chunk_is_summed_as_the_library_reads_it_or_not_at_all() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let (mut same, mut refused) = (0, 0);
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let values = integers(&mut random, 1500);
            let (_written, file, part) = write_integers(&store, &[values], seed % 2 == 0);
            let footer = checked_footer(&file, &part).expect("a footer");
            let group = footer.row_group(0);
            let (start, bytes) = group.column(0).byte_range();
            let [start, bytes] = [start, bytes].map(|value| usize::try_from(value).expect("small"));
            let good = file.block(0, usize::try_from(file.bytes()).expect("small")).expect("readable");
            for _ in 0..100 {
                let mut bad = good.clone();
                for _ in 0..random.usize(1..4) {
                    // The headers are at the front, and in what follows most bytes are values.
                    let among = if random.bool() { bytes } else { bytes.min(80) };
                    let at = random.usize(..among);
                    bad[start + at] = if random.bool() { random.u8(..) } else { bad[start + at] ^ 1 << random.u8(..8) };
                }
                let mut damaged = store.temp_folder().file().expect("a file");
                damaged.append(&bad).expect("written");
                // Whole, as the sum has a small file, or with a footer that was read before.
                let tail = if random.bool() { &bad[..] } else { &bad[bad.len() - TAIL_BYTES..] };
                match sum_pages(&damaged.reader(), tail, group.column(0), rows_of(group)) {
                    Some(pages) => {
                        assert_eq!(Ok((pages.rows, pages.sum)), library_sum(&damaged.reader(), group), "seed {seed}");
                        same += 1;
                    }
                    None => refused += 1,
                }
            }
        }
        assert!(same > 500 && refused > 500, "the test wants both: {same} and {refused}");
    }

    #[test]
    fn stretches_of_long_cells_are_short_and_the_same_for_all_columns() {
        // One row group, whose first cells are too long for a slice and whose others are one page.
        const ROWS: usize = 40;
        let text = |row: usize| "x".repeat(if row < 20 { CELL_BYTES_MAX - row } else { row });
        let mut csv = b"text,x\n".to_vec();
        for row in 0..ROWS {
            let x = if row % 3 == 0 { String::new() } else { row.to_string() };
            csv.extend_from_slice(format!("{},{x}\n", text(row)).as_bytes());
        }
        let layout = Layout { row_group_bytes: ROW_GROUP_BYTES, page_bytes: PAGE_BYTES, spill: false };
        let (_written, file, part) = convert(&csv, ROWS as u64, layout);
        assert_eq!(part.row_groups, 1);
        let refs = [("text", 0, ColumnType::Utf8), ("x", 1, ColumnType::Int64)];
        let [texts, numbers] = refs.map(|(name, index, column_type)| ColumnRef { index, name, column_type });
        let open = PartColumns::open(&file, &part).expect("a footer");
        let (mut at, mut found, mut stretches) = (Position::default(), 0, 0);
        while let Some((stretch, after)) = open.stretch(at, &[&texts, &numbers], 1000).expect("readable") {
            assert!(stretch.bytes() <= SLICE_BYTES as u64, "{stretch:?}");
            let row_of = |offset| usize::try_from(stretch.row_number(offset)).expect("few") - 1;
            let count = u32::try_from(stretch.rows_count()).expect("few");
            let mut rows: Vec<(u32, ())> = (0..count).map(|offset| (offset, ())).collect();
            let check_text = |offset, (): &mut (), cell: Cell<'_>| {
                assert!(cell == Cell::Utf8(&text(row_of(offset))), "row {}", row_of(offset));
                Ok(row_of(offset) % 2 == 0)
            };
            open.narrow(&texts, &stretch, &mut rows, check_text).expect("readable");
            let check_number = |offset, (): &mut (), cell: Cell<'_>| {
                let row = row_of(offset);
                assert_eq!(cell, if row % 3 == 0 { Cell::Empty } else { Cell::Int64(row as i64) });
                Ok(true)
            };
            open.narrow(&numbers, &stretch, &mut rows, check_number).expect("readable");
            (at, found, stretches) = (after, found + rows.len(), stretches + 1);
        }
        assert_eq!(found, ROWS / 2);
        assert!(stretches > 1, "the test wants stretches that begin within a row group");
    }

    /// Everything that was read since the last time is of these columns or of the footer.
    fn check_inside<const N: usize>(file: &Reader, part: &Part, columns: [usize; N]) {
        let reads = reads::take();
        let footer = checked_footer(file, part).expect("a footer");
        let footer_start = file.bytes() - u64::from(part.footer_bytes) - TAIL_BYTES as u64;
        let chunks = |group: &RowGroupMetaData| columns.map(|index| group.column(index).byte_range());
        let chunks = footer.row_groups().iter().flat_map(chunks).map(|(start, bytes)| start..start + bytes);
        let allowed: Vec<_> = chunks.chain(std::iter::once(footer_start..file.bytes())).collect();
        assert!(!reads.is_empty());
        for read in reads {
            let inside = allowed.iter().any(|range| range.start <= read.start && read.end <= range.end);
            assert!(inside, "bytes {read:?} are neither of columns {columns:?} nor of the footer: {allowed:?}");
        }
    }
}
