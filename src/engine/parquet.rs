//! Parquet: the writer of a part, and the reader that takes one column's chunks and nothing else.
//!
//! Only what every engine reads is written: format version 1.0 types, Snappy (LZ4 in wide tables), dictionaries,
//! DELTA_BINARY_PACKED for integers. Memory: the writer holds one row group, or one page of each column while the others
//! lie in a scratch file; the reader holds one page, or a piece of a chunk and a dictionary where it sums pages as they
//! stand.

use std::{
    collections::HashSet,
    fmt,
    io::{self, Read},
    mem,
    sync::{Arc, OnceLock, mpsc},
};

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch},
    datatypes::Int64Type,
};
use bytes::{Buf, Bytes};
use crossbeam_utils::atomic::AtomicCell;
use parquet::{
    arrow::{
        ArrowSchemaConverter,
        arrow_writer::{ArrowWriter, ArrowWriterOptions, PageKey, PageStore, PageStoreArgs, PageStoreFactory},
    },
    basic::{Compression, Encoding, Type},
    column::{
        page::{Page, PageMetadata, PageReader},
        reader::{ColumnReader, get_column_reader},
    },
    data_type::{AsBytes, DataType},
    errors::ParquetError,
    file::{
        metadata::{
            ColumnChunkMetaData, KeyValue, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader,
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
    checksums::{BlockHasher, CHUNK_BLOCK_BYTES, checksum, from_hex, listed_blocks, to_hex},
    convert::arrow_schema,
    fold::Sum,
    pages::{Pages, SLACK_BYTES, Taken, Unknown},
    part::{Column, ColumnType, PARQUET_TAIL_BYTES, Part, SMALL_PARQUET_BYTES},
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
/// A column chunk up to this size is read in one piece.
const CHUNK_BYTES_MAX: usize = MIB;
/// No header of a page that our writer wrote is longer.
const PAGE_HEADER_BYTES_MAX: usize = 64 * KIB;

/// Writes the rows of a part to a draft.
pub struct PartWriter {
    output: Output,
    layout: Layout,
    scratch: Option<Arc<Scratch>>,
    /// Checksums of the blocks of the column chunks, as these are written.
    chunks_written: (mpsc::Sender<Vec<u64>>, mpsc::Receiver<Vec<u64>>),
    /// Those of all row groups that are written.
    chunk_sums: ChunkSums,
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
        let output = Output::Waiting(draft, columns.to_vec());
        let (chunks_written, chunk_sums) = (mpsc::channel(), ChunkSums::default());
        Ok(Self { output, layout, scratch, chunks_written, chunk_sums, failures })
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
        let Output::Open(mut writer) = self.output else {
            return Err(after_failure());
        };
        let row_groups = writer.flushed_row_groups().len();
        let before_footer = writer.bytes_written();
        self.chunk_sums.entry(before_footer).into_iter().for_each(|entry| writer.append_key_value_metadata(entry));
        writer.inner_mut().begin_tail(before_footer as u64);
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
        let pages = match &self.scratch {
            Some(scratch) => PagesIn::Scratch(Arc::clone(scratch)),
            None => PagesIn::Memory,
        };
        options =
            options.with_page_store_factory(Arc::new(ChunkPagesFactory { pages, sums: self.chunks_written.0.clone() }));
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
        self.chunks_written.1.try_iter().flatten().for_each(|sum| self.chunk_sums.push(sum));
        if let Some(scratch) = &self.scratch {
            scratch.clear();
        }
        Ok(())
    }
}

/// A file that is finished, of which so many bytes stand before the footer.
pub(super) fn written(draft: Draft, row_groups: usize, before_footer: usize) -> Result<Written, Error> {
    let footer_bytes = draft.bytes() - before_footer as u64 - PARQUET_TAIL_BYTES as u64;
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

/// What a footer calls the checksums of its column chunks: for each chunk, row group after row group, those of its blocks
/// of [`CHUNK_BLOCK_BYTES`], 16 hexadecimal digits each.
const CHUNK_SUMS_KEY: &str = "tally.chunks.xxh3";

/// Bytes that the checksum of one block takes there.
const CHUNK_SUM_DIGITS: usize = 16;

/// The checksums of a file's column chunks on their way into its footer.
#[derive(Default)]
pub(super) struct ChunkSums(String);

impl ChunkSums {
    /// Bytes for a file of so many column chunks and so many bytes.
    pub(super) const fn bytes_max(column_chunks: usize, file_bytes: usize) -> usize {
        (column_chunks + file_bytes / CHUNK_BLOCK_BYTES) * CHUNK_SUM_DIGITS
    }

    /// That of the next block.
    pub(super) fn push(&mut self, sum: u64) {
        self.0 += &to_hex(sum);
    }

    /// The footer's entry; none where the whole file has a checksum.
    pub(super) fn entry(self, before_footer: usize) -> Option<KeyValue> {
        let is_small = before_footer as u64 <= SMALL_PARQUET_BYTES;
        (!is_small).then(|| KeyValue::new(CHUNK_SUMS_KEY.to_owned(), self.0))
    }
}

/// Where the pages of a row group wait for its end.
#[derive(Clone)]
enum PagesIn {
    Memory,
    Scratch(Arc<Scratch>),
}

/// Makes a [`ChunkPages`] for each column chunk.
struct ChunkPagesFactory {
    pages: PagesIn,
    sums: mpsc::Sender<Vec<u64>>,
}

/// The pages of one column chunk, and the checksums of its blocks, which are made as its pages are taken: in the order of
/// the file. In a scratch file, a key is the page's offset and, in its low 24 bits, its length, so that the pages of a row
/// group of any size take no memory.
struct ChunkPages {
    pages: PagesIn,
    in_memory: Vec<Bytes>,
    bytes: usize,
    hasher: BlockHasher,
    sums: Vec<u64>,
    /// Where the sums go once all of its pages are taken. The writer drops a chunk before it begins with the next one.
    finished: mpsc::Sender<Vec<u64>>,
}

impl fmt::Debug for ChunkPagesFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkPagesFactory")
    }
}

impl PageStoreFactory for ChunkPagesFactory {
    fn create(&self, _column: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>, ParquetError> {
        Ok(Box::new(ChunkPages {
            pages: self.pages.clone(),
            in_memory: Vec::new(),
            bytes: 0,
            hasher: BlockHasher::new(CHUNK_BLOCK_BYTES),
            sums: Vec::new(),
            finished: self.sums.clone(),
        }))
    }
}

impl PageStore for ChunkPages {
    fn put(&mut self, page: Bytes) -> Result<PageKey, ParquetError> {
        match &self.pages {
            PagesIn::Memory => {
                self.bytes += page.len();
                self.in_memory.push(page);
                Ok(PageKey::new(self.in_memory.len() as u64 - 1))
            }
            PagesIn::Scratch(scratch) => {
                let offset = scratch.put(&page)?;
                if page.len() >> 24 != 0 || offset >> 40 != 0 {
                    return Err(ParquetError::General(format!("a page of {} bytes at {offset}", page.len())));
                }
                Ok(PageKey::new(offset << 24 | page.len() as u64))
            }
        }
    }

    fn take(&mut self, key: PageKey) -> Result<Bytes, ParquetError> {
        let page = match &self.pages {
            PagesIn::Memory => {
                let page = self.in_memory.get_mut(usize::try_from(key.get())?).map(mem::take);
                page.ok_or_else(|| ParquetError::General(format!("there is no page {}", key.get())))?
            }
            PagesIn::Scratch(scratch) => {
                let (offset, bytes) = (key.get() >> 24, key.get() & 0xff_ffff);
                scratch.get(offset, usize::try_from(bytes)?)?.into()
            }
        };
        self.bytes -= page.len().min(self.bytes);
        self.hasher.update(&page, |sum| self.sums.push(sum));
        Ok(page)
    }

    fn memory_size(&self) -> usize {
        self.bytes
    }
}

impl Drop for ChunkPages {
    fn drop(&mut self) {
        self.sums.extend(self.hasher.end());
        // Where nobody takes them, the file was given up.
        let _given_up = self.finished.send(mem::take(&mut self.sums));
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

/// A part's Parquet file, its footer verified and read.
pub(super) struct ParquetFile<'a> {
    file: &'a Reader,
    footer: ParquetMetaData,
    /// All bytes of a small file, verified; none of another.
    whole: Option<Bytes>,
    /// Where in the file's list of checksums those of the chunks begin; none if the footer has them.
    listed_from: Option<u64>,
}

impl<'a> ParquetFile<'a> {
    /// Reads the footer. Errors: it is not what was written; it is not what the receipt says; it cannot be read.
    pub(super) fn open(file: &'a Reader, part: &Part) -> Result<Self, Error> {
        let checks = part.checks.ok_or_else(|| Error::Internal(format!("part {} was not verified", part.id)))?;
        let is_whole = part.is_small_parquet();
        let footer_bytes = u64::from(part.footer_bytes) + PARQUET_TAIL_BYTES as u64;
        let tail_bytes = if is_whole { file.bytes() } else { footer_bytes };
        let start = file.bytes().checked_sub(footer_bytes.max(tail_bytes));
        let start = start.ok_or_else(|| file.damaged("its footer is longer than the file"))?;
        let tail = Bytes::from(file.read_unverified(start, usize::try_from(tail_bytes).unwrap_or(usize::MAX))?);
        if checksum(&tail) != checks.parquet {
            let what = if is_whole { "it is not what was written" } else { "its footer is not what was written" };
            return Err(file.damaged(what));
        }
        let listed_from = checks.chunks_in_sums.then(|| listed_blocks(part.csv_bytes));
        let footer = decode_footer(&tail, part).map_err(|error| file.damaged(&error.to_string()))?;
        let parquet = Self { file, footer, whole: is_whole.then_some(tail), listed_from };
        let row_groups = parquet.footer.num_row_groups() == part.row_groups as usize;
        if !row_groups || parquet.footer.file_metadata().num_rows() != part.rows.cast_signed() {
            return Err(parquet.damaged("its footer disagrees with the receipt"));
        }
        Ok(parquet)
    }

    pub(super) fn row_groups(&self) -> &[RowGroupMetaData] {
        self.footer.row_groups()
    }

    /// The chunk of a column in a row group. Errors: it is not the column that the receipt has there.
    pub(super) fn chunk(&self, row_group: usize, (column_index, name): (usize, &str)) -> Result<Chunk<'_>, Error> {
        let group = self.footer.row_group(row_group);
        let Some(metadata) = group.columns().get(column_index) else {
            return Err(self.damaged(&format!("it has no column {column_index}")));
        };
        if metadata.column_descr().path().parts() != [name] {
            return Err(self.damaged(&format!("its column {column_index} is another one")));
        }
        let (start, bytes) = metadata.byte_range();
        let end = start.checked_add(bytes).filter(|&end| end <= self.file.bytes());
        let end = end.ok_or_else(|| self.damaged(&format!("its column {column_index} ends beyond the file")))?;
        Ok(Chunk { parquet: self, group, metadata, start, end, place: (row_group, column_index) })
    }

    /// The checksums of a chunk's blocks.
    fn chunk_sums(&self, (row_group, column_index): (usize, usize)) -> Result<Vec<u64>, Error> {
        let blocks = |chunk: &ColumnChunkMetaData| chunk.byte_range().1.div_ceil(CHUNK_BLOCK_BYTES as u64);
        let (group, groups) = (self.footer.row_group(row_group), &self.footer.row_groups()[..row_group]);
        let before = groups.iter().flat_map(RowGroupMetaData::columns).chain(&group.columns()[..column_index]);
        let first: u64 = before.map(blocks).sum();
        let count = usize::try_from(blocks(group.column(column_index))).unwrap_or(usize::MAX);
        if let Some(listed_from) = self.listed_from {
            return self.file.listed_sums(listed_from + first, count);
        }
        let entries = self.footer.file_metadata().key_value_metadata();
        let entry = entries.and_then(|entries| entries.iter().find(|entry| entry.key == CHUNK_SUMS_KEY));
        let text = entry.and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        let sums = || -> Option<Vec<u64>> {
            let start = usize::try_from(first).ok()?.checked_mul(CHUNK_SUM_DIGITS)?;
            let text = text.get(start..start.checked_add(count.checked_mul(CHUNK_SUM_DIGITS)?)?)?;
            text.as_bytes().chunks(CHUNK_SUM_DIGITS).map(|digits| from_hex(std::str::from_utf8(digits).ok()?)).collect()
        };
        sums().ok_or_else(|| self.damaged("its footer has no checksums of the column chunks"))
    }

    /// The error that the file is not what was written.
    pub(super) fn damaged(&self, what: &str) -> Error {
        self.file.damaged(what)
    }

    /// What the library failed with: our own error, if it was one of a [`Window`].
    pub(super) fn read_error(&self, error: ParquetError) -> Error {
        match error {
            ParquetError::External(cause) => match cause.downcast::<Error>() {
                Ok(error) => *error,
                Err(cause) => self.damaged(&cause.to_string()),
            },
            error => self.damaged(&error.to_string()),
        }
    }
}

/// A column chunk of a part's file. No byte of it is handed out before it was verified.
pub(super) struct Chunk<'a> {
    parquet: &'a ParquetFile<'a>,
    group: &'a RowGroupMetaData,
    metadata: &'a ColumnChunkMetaData,
    start: u64,
    end: u64,
    /// Its row group and column.
    place: (usize, usize),
}

impl Chunk<'_> {
    /// The chunk as the library reads it.
    pub(super) fn open(&self) -> Result<ColumnReader, Error> {
        let descriptor = self.metadata.column_descr_ptr();
        let window = Arc::new(self.window()?);
        let rows = usize::try_from(self.group.num_rows()).map_err(|error| self.parquet.damaged(&error.to_string()))?;
        let pages = SerializedPageReader::new(window, self.metadata, rows, None);
        let pages = BetweenPages { pages: pages.map_err(|error| self.parquet.read_error(error))?, data_before: false };
        Ok(get_column_reader(descriptor, Box::new(pages) as Box<dyn PageReader>))
    }

    fn window(&self) -> Result<Window, Error> {
        if let Some(whole) = &self.parquet.whole {
            let [start, end] = [self.start, self.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
            let loaded = Some(whole.slice(start..end));
            return Ok(Window { loaded, ..self.window_with(Vec::new()) });
        }
        let mut window = self.window_with(self.parquet.chunk_sums(self.place)?);
        if self.end - self.start <= CHUNK_BYTES_MAX as u64 {
            let mut bytes = vec![0; usize::try_from(self.end - self.start).unwrap_or(usize::MAX)];
            for (index, block) in bytes.chunks_mut(CHUNK_BLOCK_BYTES).enumerate() {
                window.read_block(index, block)?;
            }
            window.loaded = Some(bytes.into());
        }
        Ok(window)
    }

    fn window_with(&self, sums: Vec<u64>) -> Window {
        let (file, cached) = (self.parquet.file.clone(), AtomicCell::new(None));
        Window { file, start: self.start, end: self.end, sums, loaded: None, cached }
    }
}

/// The sum of a column chunk of integers straight from its pages; none if there is anything in it that our writer does
/// not write: the library's reader then reads it.
fn sum_pages(chunk: &Chunk<'_>, rows: u64) -> Result<Option<Pages>, Error> {
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

/// The pages of a column chunk with an empty one after each that has rows. `read_records` would go on from page to page
/// until it has as many rows as it was asked for, and each text would keep its page. At an empty page it ends, and the
/// decoder lets go of the page before.
struct BetweenPages<P> {
    pages: P,
    data_before: bool,
}

impl<P: PageReader> PageReader for BetweenPages<P> {
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

impl<P: PageReader> Iterator for BetweenPages<P> {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

fn decode_footer(tail: &[u8], part: &Part) -> Result<ParquetMetaData, ParquetError> {
    let footer_bytes = part.footer_bytes as usize;
    let (footer, mut end) = tail[tail.len() - footer_bytes - PARQUET_TAIL_BYTES..].split_at(footer_bytes);
    if end.get_u32_le() as usize != footer_bytes || end != b"PAR1" {
        return Err(ParquetError::General("its end is no Parquet footer of the known size".to_owned()));
    }
    let options = ParquetMetaDataOptions::new()
        .with_column_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_encoding_stats_policy(ParquetStatisticsPolicy::SkipAll);
    let footer = ParquetMetaDataReader::decode_metadata_with_options(footer, Some(&options))?;
    // The library takes for granted that they are not negative.
    let is_negative = |chunk: &ColumnChunkMetaData| {
        let offsets = [Some(chunk.data_page_offset()), chunk.dictionary_page_offset(), Some(chunk.compressed_size())];
        offsets.into_iter().flatten().any(i64::is_negative)
    };
    if footer.row_groups().iter().flat_map(RowGroupMetaData::columns).any(is_negative) {
        return Err(ParquetError::General("a column chunk begins before the file".to_owned()));
    }
    Ok(footer)
}

/// Where the column chunks of a file are, in the order of row groups and columns, from its footer with the 8 bytes after it.
///
/// Errors: the receipt's rows, names or types are not those of the footer; the chunks do not follow one another, as our
/// writer has them.
pub(super) fn checked_chunk_ranges(tail: &[u8], part: &Part, columns: &[Column]) -> Result<Vec<(u64, u64)>, String> {
    let footer = decode_footer(tail, part).map_err(|error| error.to_string())?;
    let schema = ArrowSchemaConverter::new().convert(&arrow_schema(columns)).map_err(|error| error.to_string())?;
    let found = footer.file_metadata();
    let rows = found.num_rows() == part.rows.cast_signed() && footer.num_row_groups() == part.row_groups as usize;
    if !rows || found.schema_descr().root_schema() != schema.root_schema() {
        return Err("its rows or columns are not those of the receipt".to_owned());
    }
    let chunks = footer.row_groups().iter().flat_map(RowGroupMetaData::columns);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (start, bytes) in chunks.map(ColumnChunkMetaData::byte_range) {
        if ranges.last().is_some_and(|(_, end)| *end != start) {
            return Err(format!("its column chunk {} does not follow the one before it", ranges.len()));
        }
        ranges.push((start, start.saturating_add(bytes)));
    }
    Ok(ranges)
}

/// One column chunk of a file: whoever reads through it cannot read beside it, and sees verified bytes only.
struct Window {
    file: Reader,
    start: u64,
    end: u64,
    /// Of the chunk's blocks.
    sums: Vec<u64>,
    /// The whole chunk, verified, if it is small.
    loaded: Option<Bytes>,
    /// The block that was read last, and which: a page's header is read before its content.
    cached: AtomicCell<Option<(usize, Bytes)>>,
}

impl Window {
    /// Reads a block of the chunk, whose length is that of the buffer.
    fn read_block(&self, index: usize, block: &mut [u8]) -> Result<(), Error> {
        let start = self.start + (index * CHUNK_BLOCK_BYTES) as u64;
        self.file.fill_unverified(start, block)?;
        if self.sums.get(index) != Some(&checksum(block)) {
            let end = start + block.len() as u64;
            return Err(self.file.damaged(&format!("the bytes from {start} to {end} are not what was written")));
        }
        Ok(())
    }

    /// The same from the last one that was read, if it is that.
    fn block(&self, index: usize) -> Result<Bytes, Error> {
        let block = match self.cached.take() {
            Some((cached, block)) if cached == index => block,
            _ => {
                let left = (self.end - self.start).saturating_sub((index * CHUNK_BLOCK_BYTES) as u64);
                let mut block = vec![0; CHUNK_BLOCK_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))];
                self.read_block(index, &mut block)?;
                block.into()
            }
        };
        self.cached.store(Some((index, block.clone())));
        Ok(block)
    }

    /// Verified bytes from an offset in the chunk to the end of their block.
    fn rest_of_block(&self, at: usize) -> Result<Bytes, ParquetError> {
        let block = self.block(at / CHUNK_BLOCK_BYTES).map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(block.slice(block.len().min(at % CHUNK_BLOCK_BYTES)..))
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.end
    }
}

impl ChunkReader for Window {
    type T = Box<dyn Read>;

    /// Only page headers are read this way.
    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        if start < self.start || start > self.end {
            return Err(ParquetError::EOF(format!("offset {start} is outside of the column chunk")));
        }
        let at = usize::try_from(start - self.start)?;
        if let Some(bytes) = &self.loaded {
            return Ok(Box::new(bytes.slice(at..).reader()));
        }
        let first = self.rest_of_block(at)?;
        // A header may go on in the next block.
        let next_at = at + first.len();
        let has_next = (next_at as u64) < self.end - self.start && first.len() < PAGE_HEADER_BYTES_MAX;
        let next = if has_next { self.rest_of_block(next_at)? } else { Bytes::new() };
        Ok(Box::new(first.chain(next).reader()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start < self.start || start.saturating_add(length as u64) > self.end {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are outside of the column chunk")));
        }
        let at = usize::try_from(start - self.start)?;
        if let Some(bytes) = &self.loaded {
            return Ok(bytes.slice(at..at + length));
        }
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let rest = self.rest_of_block(at + bytes.len())?;
            bytes.extend_from_slice(&rest[..rest.len().min(length - bytes.len())]);
        }
        Ok(bytes.into())
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
            part::{Checks, Format, PartId},
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
        let (file, part) = part_of(&mut written, rows, columns.len());
        (written, file, part)
    }

    /// A Parquet file as one of a part.
    fn part_of(written: &mut Written, rows: u64, columns: usize) -> (Reader, Part) {
        let file = written.draft.reader().expect("opened");
        let mut part = Part {
            id: PartId::FIRST,
            rows,
            csv_bytes: 0,
            parquet_bytes: file.bytes(),
            row_groups: written.row_groups,
            footer_bytes: written.footer_bytes,
            columns_count: u32::try_from(columns).expect("few"),
            schema: None,
            checks: None,
        };
        let (draft, is_small) = (&written.draft, part.is_small_parquet());
        let parquet = if is_small { draft.check() } else { draft.tail_checksum() };
        part.checks = Some(Checks { csv: 0, parquet, chunks_in_sums: false });
        (file, part)
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
        let rows = batches.iter().map(|values| values.len() as u64).sum();
        let (file, part) = part_of(&mut written, rows, 1);
        (written, file, part)
    }

    /// Rows and sum of a chunk as the library reads it.
    fn library_sum(chunk: &Chunk<'_>) -> Result<(u64, Sum), String> {
        let ColumnReader::Int64ColumnReader(reader) = chunk.open().map_err(|error| error.to_string())? else {
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
            let parquet = ParquetFile::open(&file, &part).expect("a footer");
            let mut found = Sum::default();
            for (index, group) in parquet.row_groups().iter().enumerate() {
                let chunk = parquet.chunk(index, (0, "x")).expect("a chunk");
                let pages = sum_pages(&chunk, rows_of(group)).expect("readable").expect("pages of our writer");
                assert_eq!(Ok((pages.rows, pages.sum)), library_sum(&chunk), "{what}, {chosen}");
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
            let (file, part) = part_of(&mut converted.parquet, converted.rows, 2);
            let parquet = ParquetFile::open(&file, &part).expect("a footer");
            for (index, values) in columns.iter().enumerate() {
                let total = values.iter().flatten().fold(Sum::default(), |mut sum, value| {
                    sum.add(value);
                    sum
                });
                let mut found = Sum::default();
                for (row_group, group) in parquet.row_groups().iter().enumerate() {
                    let chunk = parquet.chunk(row_group, (index, ["a", "b"][index])).expect("a chunk");
                    let pages = sum_pages(&chunk, rows_of(group)).expect("readable").expect("pages that are known");
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
            let intact = ParquetFile::open(&file, &part).expect("a footer");
            let rows = rows_of(&intact.row_groups()[0]);
            let (start, bytes) = intact.row_groups()[0].column(0).byte_range();
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
                // No reading lets these bytes through: this is the second line of defence.
                let footer = decode_footer(&bad, &part).expect("a footer");
                let parquet = ParquetFile { file: &file, footer, whole: Some(bad.into()), listed_from: None };
                let chunk = parquet.chunk(0, (0, "x")).expect("a chunk");
                match sum_pages(&chunk, rows).expect("nothing is read") {
                    Some(pages) => {
                        assert_eq!(Ok((pages.rows, pages.sum)), library_sum(&chunk), "seed {seed}");
                        same += 1;
                    }
                    None => refused += 1,
                }
            }
        }
        assert!(same > 500 && refused > 500, "the test wants both: {same} and {refused}");
    }

    #[test]
    fn what_cannot_be_read_is_an_io_error_and_no_damage() {
        let values = [integers(&mut fastrand::Rng::with_seed(1), 70_000)];
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let (_written, file, part) = write_integers(&store, &values, true);
        let unreadable = Reader::unreadable(Format::Parquet, file.bytes());
        let is_io = |error: Error| matches!(&error, Error::Io { what, .. } if what == "part 1, parquet");
        assert!(ParquetFile::open(&unreadable, &part).err().is_some_and(is_io), "the footer");
        // As if reading had begun to fail after the footer.
        let parquet = ParquetFile { file: &unreadable, ..ParquetFile::open(&file, &part).expect("a footer") };
        let chunk = parquet.chunk(0, (0, "x")).expect("a chunk");
        assert!(sum_pages(&chunk, rows_of(&parquet.row_groups()[0])).err().is_some_and(is_io), "the pages");
        assert!(chunk.open().err().is_some_and(is_io), "as the library reads it");
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
        let parquet = ParquetFile::open(file, part).expect("a footer");
        let footer_start = file.bytes() - u64::from(part.footer_bytes) - PARQUET_TAIL_BYTES as u64;
        let chunks = |group: &RowGroupMetaData| columns.map(|index| group.column(index).byte_range());
        let chunks = parquet.row_groups().iter().flat_map(chunks).map(|(start, bytes)| start..start + bytes);
        let allowed: Vec<_> = chunks.chain(std::iter::once(footer_start..file.bytes())).collect();
        assert!(!reads.is_empty());
        for read in reads {
            let inside = allowed.iter().any(|range| range.start <= read.start && read.end <= range.end);
            assert!(inside, "bytes {read:?} are neither of columns {columns:?} nor of the footer: {allowed:?}");
        }
    }
}
