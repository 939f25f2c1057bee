//! Writes the Parquet file of a part whose columns are all integers, while its bytes arrive.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    sync::{Arc, OnceLock},
};

use bytes::{Buf, Bytes};
use parquet::{
    arrow::ArrowSchemaConverter,
    basic::{Compression, Encoding},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::ParquetError,
    file::{
        metadata::ColumnChunkMetaData,
        properties::WriterProperties,
        reader::{ChunkReader, Length},
        statistics::Statistics,
        writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite},
    },
};

use super::{
    batch::arrow_schema,
    chunk_checksums::ChunkChecksums,
    writer::{CREATED_BY, Converted, column_bytes, write_error, written},
};
use crate::{
    engine::{
        kernels::integer_table::{Cells, Number, Table},
        storage::{
            Store,
            checksums::{BlockHasher, CHUNK_BLOCK_BYTES},
            draft::Draft,
        },
        values::varint,
    },
    error::Error,
    limits::{KIB, MIB, ROW_GROUP_ROWS_MAX},
    model::schema::{Column, ColumnType},
};

/// A row group is written when its pages have this size.
pub(crate) const PAGES_BYTES_MAX: usize = 4 * MIB;
/// Column chunks of a file. Their entries for the footer are in memory until the end of the file.
pub(crate) const INTEGER_CHUNKS_MAX: usize = 2 * KIB;
/// Writes pages and row groups of integer columns.
pub(crate) struct IntegerWriter {
    pub(crate) columns: Vec<ColumnPages>,
    pub(crate) writer: SerializedFileWriter<Draft>,
    failures: Vec<Arc<OnceLock<io::ErrorKind>>>,
    group_rows: usize,
    chunks_left: usize,
    rows: u64,
    /// The checksums of the blocks of all column chunks, in the order of the file.
    checksums: ChunkChecksums,
}

/// A column's pages in the current row group.
pub(crate) struct ColumnPages {
    name: String,
    pub(crate) pages: Vec<Bytes>,
    /// The size of the last page; the next one will be about as long.
    page_bytes: usize,
    bytes: usize,
    range: Option<(i64, i64)>,
    group_nulls: u64,
    nulls: u64,
}

/// Why a file was not converted by the path for integers.
#[derive(Debug)]
pub enum IntegersError {
    /// A cell is not an integer, or only the general conversion can tell whether the file is valid.
    Unsuited,
    /// A file operation failed.
    Failed(Error),
}

impl From<Error> for IntegersError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl IntegerWriter {
    pub(crate) fn new(store: &Store, names: Vec<String>) -> Result<Self, Error> {
        let int64 = |name| Column { name, column_type: ColumnType::Int64, nulls: 0 };
        let columns: Vec<_> = names.into_iter().map(int64).collect();
        let draft = store.draft()?;
        let failures = vec![draft.failure()];
        let properties =
            WriterProperties::builder().set_created_by(CREATED_BY.to_owned()).set_offset_index_disabled(true).build();
        let writer = ArrowSchemaConverter::new()
            .convert(&arrow_schema(&columns))
            .and_then(|schema| SerializedFileWriter::new(draft, schema.root_schema_ptr(), Arc::new(properties)))
            .map_err(|error| write_error(&error, &failures))?;
        let chunk = |column: Column| ColumnPages {
            name: column.name,
            pages: Vec::new(),
            page_bytes: 0,
            bytes: 0,
            range: None,
            group_nulls: 0,
            nulls: 0,
        };
        let columns = columns.into_iter().map(chunk).collect();
        let (chunks_left, checksums) = (INTEGER_CHUNKS_MAX, ChunkChecksums::default());
        Ok(Self { columns, writer, failures, group_rows: 0, chunks_left, rows: 0, checksums })
    }

    /// Writes the table's rows as one page of each column.
    pub(crate) fn write_pages(&mut self, table: &mut Table) -> Result<(), IntegersError> {
        let rows = table.rows();
        for (index, column) in self.columns.iter_mut().enumerate() {
            let Table { columns, ref mut cells, filled, ref empty } = *table;
            let page = match cells {
                Cells::Narrow(flat) => column.page(flat.gather(filled, columns, index), columns, index, empty),
                Cells::Wide(flat) => column.page(flat.gather(filled, columns, index), columns, index, empty),
            };
            page.map_err(|error| write_error(&error, &self.failures))?;
        }
        table.clear();
        self.group_rows += rows;
        self.rows += rows as u64;
        let bytes: usize = self.columns.iter().map(|column| column.bytes).sum();
        if bytes >= PAGES_BYTES_MAX || self.group_rows >= ROW_GROUP_ROWS_MAX {
            self.write_row_group()?;
        }
        Ok(())
    }

    fn write_row_group(&mut self) -> Result<(), IntegersError> {
        // A larger file needs larger row groups, which the general conversion writes.
        self.chunks_left = self.chunks_left.checked_sub(self.columns.len()).ok_or(IntegersError::Unsuited)?;
        let rows = self.group_rows;
        let mut write = || {
            let descriptors = self.writer.schema_descr().columns().to_vec();
            let mut group = self.writer.next_row_group()?;
            for (column, descriptor) in self.columns.iter_mut().zip(descriptors) {
                let bytes = i64::try_from(column.bytes)?;
                let (least, most) = column.range.take().unzip();
                let nulls = std::mem::take(&mut column.group_nulls);
                let metadata = ColumnChunkMetaData::builder(descriptor)
                    .set_encodings(vec![Encoding::RLE, Encoding::DELTA_BINARY_PACKED])
                    .set_compression(Compression::UNCOMPRESSED)
                    .set_num_values(i64::try_from(rows)?)
                    .set_total_compressed_size(bytes)
                    .set_total_uncompressed_size(bytes)
                    .set_data_page_offset(0)
                    .set_statistics(Statistics::new(least, most, None, Some(nulls), false))
                    .build()?;
                let close = ColumnCloseResult {
                    bytes_written: column.bytes as u64,
                    rows_written: rows as u64,
                    metadata,
                    bloom_filter: None,
                    column_index: None,
                    offset_index: None,
                };
                let mut hasher = BlockHasher::new(CHUNK_BLOCK_BYTES);
                column.pages.iter().for_each(|page| hasher.update(page, |sum| self.checksums.push(sum)));
                hasher.end().into_iter().for_each(|sum| self.checksums.push(sum));
                group.append_column(&ChunkBytes(std::mem::take(&mut column.pages), column.bytes as u64), close)?;
                column.bytes = 0;
            }
            group.close()?;
            Ok::<_, ParquetError>(())
        };
        write().map_err(|error| write_error(&error, &self.failures))?;
        self.group_rows = 0;
        Ok(())
    }

    pub(crate) fn finish(mut self, table: &mut Table) -> Result<Converted, IntegersError> {
        if table.rows() > 0 {
            self.write_pages(table)?;
        }
        if self.group_rows > 0 {
            self.write_row_group()?;
        }
        let rows = self.rows;
        if self.columns.iter().any(|column| column.nulls == rows) {
            return Err(IntegersError::Unsuited);
        }
        let columns = self
            .columns
            .into_iter()
            .map(|column| Column { name: column.name, column_type: ColumnType::Int64, nulls: column.nulls })
            .collect();
        let (row_groups, before_footer) = (self.writer.flushed_row_groups().len(), self.writer.bytes_written());
        let column_bytes = column_bytes(self.writer.flushed_row_groups());
        self.checksums.entry(before_footer).into_iter().for_each(|entry| self.writer.append_key_value_metadata(entry));
        self.writer.inner_mut().begin_tail(before_footer as u64);
        let draft = self.writer.into_inner().map_err(|error| write_error(&error, &self.failures))?;
        Ok(Converted { parquet: written(draft, row_groups, column_bytes, before_footer)?, columns, rows })
    }
}

impl ColumnPages {
    /// Adds a page for the column at `index` of `columns`. `column` has a cell for each row. `empty` has the indices of empty
    /// cells among the cells of all columns; these are removed from `column`.
    pub(crate) fn page<N: Number>(
        &mut self,
        column: &mut Vec<N>,
        columns: usize,
        index: usize,
        empty: &[u32],
    ) -> Result<(), ParquetError> {
        let rows = column.len();
        let mut page = Vec::with_capacity(self.page_bytes + self.page_bytes / 8);
        let nulls = empty.iter().filter(|empty| **empty as usize % columns == index).count();
        if nulls == 0 {
            // One RLE run of definition levels that are 1: its length, then the level.
            let mut run = Vec::new();
            varint::put_u64((rows as u64) << 1, &mut run);
            run.push(1);
            page.extend_from_slice(&u32::try_from(run.len())?.to_le_bytes());
            page.append(&mut run);
        } else {
            // One bit-packed run of definition levels, lowest bit first.
            let mut bits = vec![0_u8; rows.div_ceil(8)];
            let mut empty = empty.iter().map(|empty| *empty as usize).peekable();
            let mut present = 0;
            for row in 0..rows {
                let at = row * columns + index;
                while empty.next_if(|next| *next < at).is_some() {}
                if empty.peek() != Some(&at) {
                    bits[row / 8] |= 1 << (row % 8);
                    column[present] = column[row];
                    present += 1;
                }
            }
            column.truncate(present);
            let mut run = Vec::new();
            varint::put_u64((bits.len() as u64) << 1 | 1, &mut run);
            run.append(&mut bits);
            page.extend_from_slice(&u32::try_from(run.len())?.to_le_bytes());
            page.append(&mut run);
        }
        self.group_nulls += nulls as u64;
        self.nulls += nulls as u64;
        if let Some((least, most)) = N::put_deltas(column, &mut page) {
            let range = self.range.unwrap_or((least, most));
            self.range = Some((range.0.min(least), range.1.max(most)));
        }

        let bytes = page.len();
        self.page_bytes = bytes;
        let is_roomy = page.capacity() > bytes + bytes / 8;
        let data = if is_roomy { Bytes::copy_from_slice(&page) } else { Bytes::from(page) };
        let page = Page::DataPage {
            buf: data.clone(),
            num_values: u32::try_from(rows)?,
            encoding: Encoding::DELTA_BINARY_PACKED,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let mut sink = TrackedWrite::new(HeaderSink { page: &data, page_seen: false, written: Vec::new() });
        SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, bytes))?;
        self.bytes += sink.bytes_written();
        let HeaderSink { page_seen, written, .. } = sink.into_inner()?;
        self.pages.push(Bytes::from(written));
        if page_seen {
            self.pages.push(data);
        }
        Ok(())
    }
}

/// Collects the header that is written before a page. The page itself is recognised by its address and not copied; nothing
/// may follow it. A short page is written together with its header, so it is copied.
struct HeaderSink<'a> {
    page: &'a [u8],
    page_seen: bool,
    written: Vec<u8>,
}

impl Write for HeaderSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.page_seen {
            return Err(io::Error::other("bytes are written after a page"));
        }
        self.page_seen = std::ptr::eq(bytes, self.page);
        if !self.page_seen {
            self.written.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The pages of a chunk and their total size, from which the Parquet writer copies.
struct ChunkBytes(Vec<Bytes>, u64);

impl Length for ChunkBytes {
    fn len(&self) -> u64 {
        self.1
    }
}

impl ChunkReader for ChunkBytes {
    type T = ChunkBytesReader;

    fn get_read(&self, start: u64) -> Result<ChunkBytesReader, ParquetError> {
        let mut pages = ChunkBytesReader(self.0.iter().cloned().collect());
        io::copy(&mut (&mut pages).take(start), &mut io::sink())?;
        Ok(pages)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let mut bytes = vec![0; length];
        self.get_read(start)?.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

struct ChunkBytesReader(VecDeque<Bytes>);

impl Read for ChunkBytesReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(page) = self.0.front_mut() {
            if page.has_remaining() {
                let bytes = buffer.len().min(page.remaining());
                page.copy_to_slice(&mut buffer[..bytes]);
                return Ok(bytes);
            }
            self.0.pop_front();
        }
        Ok(0)
    }
}
