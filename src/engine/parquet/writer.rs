//! Writes the Parquet file of a part from record batches, with features that every reader supports: types of format version
//! 1.0, Snappy (LZ4 in wide tables), dictionaries, DELTA_BINARY_PACKED for integers.
//!
//! Memory: one row group, or one page of each column if the others wait in a spill file.

use std::{
    collections::HashSet,
    io, mem,
    sync::{Arc, OnceLock, mpsc},
};

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch},
    datatypes::Int64Type,
};

use parquet::{
    arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions},
    basic::{Compression, Encoding},
    errors::ParquetError,
    file::{
        metadata::RowGroupMetaData,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};

use super::{
    batch::arrow_schema,
    buffered_pages::{ChunkPagesFactory, PageBuffer},
    chunk_checksums::ChunkChecksums,
};
use crate::{
    engine::storage::{Store, draft::Draft, spill_file::SpillFile},
    error::Error,
    limits::{DICTIONARY_BYTES_MAX, DICTIONARY_COLUMNS_MAX, ROW_GROUP_ROWS_MAX},
    model::{
        part::PARQUET_TAIL_BYTES,
        schema::{Column, ColumnType},
    },
};

/// The footer's `created_by`.
pub(super) const CREATED_BY: &str = concat!("tally version ", env!("CARGO_PKG_VERSION"));

/// Tables with more columns do not use DELTA_BINARY_PACKED: its encoder reserves 1 MiB for each column.
pub(crate) const DELTA_COLUMNS_MAX: usize = 32;

/// Writes the rows of a part to a draft.
pub struct PartWriter {
    output: Output,
    layout: Layout,
    spill_file: Option<Arc<SpillFile>>,
    /// The channel for the checksums of each column chunk that is written.
    chunks_written: (mpsc::Sender<Vec<u64>>, mpsc::Receiver<Vec<u64>>),
    /// The checksums of all row groups that are written.
    checksums: ChunkChecksums,
    /// The errors of the draft and the spill file, which the Parquet writer does not always pass on.
    failures: Vec<Arc<OnceLock<io::ErrorKind>>>,
}

/// The file of a [`PartWriter`].
enum Output {
    /// The encodings are chosen from the first rows, which have not arrived.
    Waiting(Draft, Vec<Column>),
    Open(Box<ArrowWriter<Draft>>),
    Failed,
}

/// A finished Parquet file that is not published yet.
pub struct WrittenFile {
    /// The file.
    pub draft: Draft,
    /// Its row groups.
    pub row_groups: u32,
    /// The size of its footer without the tail of 8 bytes.
    pub footer_bytes: u32,
    /// Bytes of each column, over all row groups.
    pub column_bytes: Vec<u64>,
}

/// A CSV file converted to Parquet, and its columns and rows for the receipt.
pub struct Converted {
    /// The file.
    pub parquet: WrittenFile,
    /// The columns with their types.
    pub columns: Vec<Column>,
    /// Data rows.
    pub rows: u64,
}

/// The layout of a part's Parquet file, which bounds the memory of the conversion and the size of the footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// A row group is written when its encoded pages have this size.
    pub row_group_bytes: usize,
    /// The size of a page.
    pub page_bytes: usize,
    /// Whether complete pages wait in a spill file until their row group is written.
    pub spill: bool,
}

impl PartWriter {
    /// Begins the file.
    pub fn new(store: &Store, columns: &[Column], layout: Layout) -> Result<Self, Error> {
        let draft = store.draft()?;
        let spill_file = if layout.spill { Some(Arc::new(store.spill_file()?)) } else { None };
        let mut failures = vec![draft.failure()];
        failures.extend(spill_file.as_ref().map(|spill_file| spill_file.failure()));
        let output = Output::Waiting(draft, columns.to_vec());
        let (chunks_written, checksums) = (mpsc::channel(), ChunkChecksums::default());
        Ok(Self { output, layout, spill_file, chunks_written, checksums, failures })
    }

    /// Adds rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let rows_max = ROW_GROUP_ROWS_MAX;
        let bytes_max = self.layout.row_group_bytes;
        self.open(Some(batch))?;
        let writer = self.writer()?;
        let written = writer.write(batch);
        // Not `memory_size`, which also counts memory that encoders reserve but do not use.
        let full = writer.in_progress_size() >= bytes_max || writer.in_progress_rows() >= rows_max;
        written.map_err(|error| write_error(&error, &self.failures))?;
        if full { self.flush() } else { Ok(()) }
    }

    /// Writes the last row group and the footer.
    pub fn finish(mut self) -> Result<WrittenFile, Error> {
        self.open(None)?;
        self.flush()?;
        let Output::Open(mut writer) = self.output else {
            return Err(after_failure());
        };
        let (row_groups, column_bytes) = (writer.flushed_row_groups().len(), column_bytes(writer.flushed_row_groups()));
        let before_footer = writer.bytes_written();
        self.checksums.entry(before_footer).into_iter().for_each(|entry| writer.append_key_value_metadata(entry));
        writer.inner_mut().begin_tail(before_footer as u64);
        let draft = writer.into_inner().map_err(|error| write_error(&error, &self.failures))?;
        written(draft, row_groups, column_bytes, before_footer)
    }

    /// Chooses the encodings from the first rows, if there are any, and opens the writer.
    pub(super) fn open(&mut self, first: Option<&RecordBatch>) -> Result<(), Error> {
        if matches!(self.output, Output::Open(_)) {
            return Ok(());
        }
        let Output::Waiting(draft, columns) = mem::replace(&mut self.output, Output::Failed) else {
            return Err(after_failure());
        };
        // The Arrow schema would add nothing to the Parquet types.
        let properties = properties(&columns, self.layout.page_bytes, first);
        let mut options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let pages = match &self.spill_file {
            Some(spill_file) => PageBuffer::SpillFile(Arc::clone(spill_file)),
            None => PageBuffer::Memory,
        };
        options = options
            .with_page_store_factory(Arc::new(ChunkPagesFactory { pages, checksums: self.chunks_written.0.clone() }));
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
        self.chunks_written.1.try_iter().flatten().for_each(|sum| self.checksums.push(sum));
        if let Some(spill_file) = &self.spill_file {
            spill_file.clear();
        }
        Ok(())
    }
}

/// A finished file, whose footer begins at `before_footer`.
pub(super) fn written(
    draft: Draft,
    row_groups: usize,
    column_bytes: Vec<u64>,
    before_footer: usize,
) -> Result<WrittenFile, Error> {
    let footer_bytes = draft.bytes() - before_footer as u64 - PARQUET_TAIL_BYTES as u64;
    let too_large = |_| Error::Internal("a parquet footer of more than 4 GiB".to_owned());
    Ok(WrittenFile {
        draft,
        row_groups: u32::try_from(row_groups).map_err(too_large)?,
        footer_bytes: u32::try_from(footer_bytes).map_err(too_large)?,
        column_bytes,
    })
}

/// Bytes of each column's chunks.
pub(super) fn column_bytes(row_groups: &[RowGroupMetaData]) -> Vec<u64> {
    let mut bytes = vec![0; row_groups.first().map_or(0, |group| group.num_columns())];
    for group in row_groups {
        for (sum, chunk) in bytes.iter_mut().zip(group.columns()) {
            *sum += chunk.byte_range().1;
        }
    }
    bytes
}

fn after_failure() -> Error {
    Error::Internal("a parquet file is written to after an error".to_owned())
}

/// Chooses encodings and compression from the columns' types and the first rows.
fn properties(columns: &[Column], page_bytes: usize, first: Option<&RecordBatch>) -> WriterProperties {
    // A dictionary starts with 4,096 slots and a Snappy encoder takes up to 34 KiB: too much for each of 4,096 columns.
    let wide = columns.len() > DICTIONARY_COLUMNS_MAX;
    let mut properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_compression(if wide { Compression::LZ4_RAW } else { Compression::SNAPPY })
        .set_dictionary_enabled(!wide)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_data_page_size_limit(page_bytes)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        // `write` ends row groups itself, because the spill file is cleared then.
        .set_max_row_group_row_count(None);
    for (index, column) in columns.iter().enumerate() {
        let path = || ColumnPath::new(vec![column.name.clone()]);
        match column.column_type {
            ColumnType::Utf8 => {
                // Statistics would keep the smallest and the largest text of each column in memory.
                properties = properties.set_column_statistics_enabled(path(), EnabledStatistics::None);
            }
            ColumnType::Float64 | ColumnType::Boolean => {}
            ColumnType::Int64 | ColumnType::Date32 | ColumnType::Timestamp | ColumnType::TimestampUtc
                if columns.len() <= DELTA_COLUMNS_MAX =>
            {
                // Packed deltas are about as small as with Snappy, and need no second pass.
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

/// Estimates from some values whether dictionary indices need fewer bits than packed deltas. A dictionary that becomes too
/// large has a lasting cost: every sum must read the dictionary and the pages that use it.
fn dictionary_pays(values: &Int64Array) -> bool {
    /// Fewer values fit in one page of deltas; with a dictionary they would take two pages.
    const VALUES_MIN: usize = 1024;
    /// How often a value must occur, on average.
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
        // Deltas may wrap, as in the encoder.
        let delta = value.wrapping_sub(last.replace(value).unwrap_or(value));
        (least, greatest) = (least.min(delta), greatest.max(delta));
    }
    let width = |most: u64| u64::BITS - most.leading_zeros();
    width(distinct.len() as u64 - 1) <= width(greatest.wrapping_sub(least).cast_unsigned())
}

/// The Parquet writer sometimes reports an I/O error only as text; the draft and the spill file have recorded its kind.
pub(super) fn write_error(error: &ParquetError, failures: &[Arc<OnceLock<io::ErrorKind>>]) -> Error {
    match failures.iter().find_map(|failure| failure.get()) {
        Some(&kind) => Error::io("the parquet file")(kind.into()),
        None => Error::Internal(format!("parquet: {error}")),
    }
}
