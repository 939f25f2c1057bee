//! Writes the Parquet file of a part from record batches.

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
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{
    batch::arrow_schema,
    buffered_pages::{ChunkPagesFactory, PagesIn},
    chunk_sums::ChunkSums,
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

/// What a footer says of its maker.
pub(super) const CREATED_BY: &str = concat!("tally version ", env!("CARGO_PKG_VERSION"));

/// Tables with more columns have plain integers: the encoder of packed deltas reserves 1 MiB for each column.
pub(crate) const DELTA_COLUMNS_MAX: usize = 32;

/// Writes the rows of a part to a draft.
pub struct PartWriter {
    output: Output,
    layout: Layout,
    spill_file: Option<Arc<SpillFile>>,
    /// Checksums of the blocks of the column chunks, as these are written.
    chunks_written: (mpsc::Sender<Vec<u64>>, mpsc::Receiver<Vec<u64>>),
    /// Those of all row groups that are written.
    chunk_sums: ChunkSums,
    /// What the draft or the spill_file file failed with, which the Parquet writer does not always hand on.
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
pub struct WrittenFile {
    /// The file.
    pub draft: Draft,
    /// Its row groups.
    pub row_groups: u32,
    /// The size of its footer without the tail of 8 bytes.
    pub footer_bytes: u32,
}

/// A CSV file as Parquet, and what its receipt says of the rows.
pub struct Converted {
    /// The file.
    pub parquet: WrittenFile,
    /// With their types.
    pub columns: Vec<Column>,
    /// Data rows.
    pub rows: u64,
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
        let spill_file = if layout.spill { Some(Arc::new(store.spill_file()?)) } else { None };
        let mut failures = vec![draft.failure()];
        failures.extend(spill_file.as_ref().map(|spill_file| spill_file.failure()));
        let output = Output::Waiting(draft, columns.to_vec());
        let (chunks_written, chunk_sums) = (mpsc::channel(), ChunkSums::default());
        Ok(Self { output, layout, spill_file, chunks_written, chunk_sums, failures })
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
    pub fn finish(mut self) -> Result<WrittenFile, Error> {
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
    pub(super) fn open(&mut self, first: Option<&RecordBatch>) -> Result<(), Error> {
        if matches!(self.output, Output::Open(_)) {
            return Ok(());
        }
        let Output::Waiting(draft, columns) = mem::replace(&mut self.output, Output::Failed) else {
            return Err(after_failure());
        };
        // The Arrow schema in the footer would say nothing that the Parquet types do not.
        let properties = properties(&columns, self.layout.page_bytes, first);
        let mut options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let pages = match &self.spill_file {
            Some(spill_file) => PagesIn::SpillFile(Arc::clone(spill_file)),
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
        if let Some(spill_file) = &self.spill_file {
            spill_file.clear();
        }
        Ok(())
    }
}

/// A file that is finished, of which so many bytes stand before the footer.
pub(super) fn written(draft: Draft, row_groups: usize, before_footer: usize) -> Result<WrittenFile, Error> {
    let footer_bytes = draft.bytes() - before_footer as u64 - PARQUET_TAIL_BYTES as u64;
    let too_large = |_| Error::Internal("a parquet footer of more than 4 GiB".to_owned());
    Ok(WrittenFile {
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
        // `write` ends row groups, so that it knows when the spill_file file can be cleared.
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

/// A failed write shows through the Parquet writer as text at times; the draft knows what it was.
pub(super) fn write_error(error: &ParquetError, failures: &[Arc<OnceLock<io::ErrorKind>>]) -> Error {
    match failures.iter().find_map(|failure| failure.get()) {
        Some(&kind) => Error::io("the parquet file")(kind.into()),
        None => Error::Internal(format!("parquet: {error}")),
    }
}
