//! An open Parquet file of a part: its verified footer and its column chunks.

use std::{mem, sync::Arc};

use bytes::{Buf, Bytes};
use parquet::{
    arrow::ArrowSchemaConverter,
    basic::Encoding,
    column::{
        page::{Page, PageMetadata, PageReader},
        reader::{ColumnReader, get_column_reader},
    },
    errors::ParquetError,
    file::{
        metadata::{
            ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader,
            ParquetStatisticsPolicy, RowGroupMetaData,
        },
        serialized_reader::SerializedPageReader,
    },
};

use super::{
    batch::arrow_schema,
    chunk_checksums::{CHECKSUM_DIGITS, CHUNK_CHECKSUMS_KEY},
    window::{CHUNK_BYTES_MAX, Window},
};
use crate::{
    engine::storage::{
        checksums::{CHUNK_BLOCK_BYTES, checksum, listed_blocks},
        reader::Reader,
    },
    error::Error,
    model::{
        checksum::from_hex,
        part::{PARQUET_TAIL_BYTES, Part},
        schema::Column,
    },
};

/// A part's Parquet file, its footer verified and read.
pub(crate) struct ParquetFile<'a> {
    pub(super) file: &'a Reader,
    pub(super) footer: ParquetMetaData,
    /// All bytes of a small file, verified; `None` for a larger file.
    pub(super) whole: Option<Bytes>,
    /// The index of the chunks' first checksum in the part's list of checksums; `None` if the footer has them.
    pub(super) listed_from: Option<u64>,
}

impl<'a> ParquetFile<'a> {
    /// Reads the footer. Errors: it does not match its checksum or the receipt; it cannot be read.
    pub(crate) fn open(file: &'a Reader, part: &Part) -> Result<Self, Error> {
        Self::of(file, part, Tail::read(file, part)?)
    }

    /// As [`ParquetFile::open`], with the end of the file.
    pub(super) fn of(file: &'a Reader, part: &Part, tail: Tail) -> Result<Self, Error> {
        let footer = decode_footer(&tail.bytes, part).map_err(|error| file.damaged(&error.to_string()))?;
        let listed_from = tail.listed_from;
        let parquet = Self { file, footer, whole: tail.whole(part).cloned(), listed_from };
        let row_groups = parquet.footer.num_row_groups() == part.row_groups as usize;
        if !row_groups || parquet.footer.file_metadata().num_rows() != part.rows.cast_signed() {
            return Err(parquet.damaged("its footer does not match the receipt"));
        }
        Ok(parquet)
    }

    pub(super) fn row_groups(&self) -> &[RowGroupMetaData] {
        self.footer.row_groups()
    }

    /// The chunk of a column in a row group. Errors: the column at this index has another name.
    pub(super) fn chunk(&self, row_group: usize, column_index: usize, name: &str) -> Result<Chunk<'_>, Error> {
        let group = self.footer.row_group(row_group);
        let Some(metadata) = group.columns().get(column_index) else {
            return Err(self.damaged(&format!("it has no column {column_index}")));
        };
        if metadata.column_descr().path().parts() != [name] {
            return Err(self.damaged(&format!("its column {column_index} is not the one in the receipt")));
        }
        let (start, bytes) = metadata.byte_range();
        let end = start.checked_add(bytes).filter(|&end| end <= self.file.bytes());
        let end = end.ok_or_else(|| self.damaged(&format!("its column {column_index} ends beyond the file")))?;
        Ok(Chunk { parquet: self, group, metadata, start, end, row_group, column_index })
    }

    /// The blocks of the column chunks from the one with the byte at `offset` of the file on, each at the end of the one before
    /// it: at most `count_max`. Empty if no chunk has that byte.
    pub(super) fn chunk_blocks_from(&self, offset: u64, count_max: usize) -> Result<Vec<FileBlock>, Error> {
        let (mut found, mut next, mut first) = (Vec::new(), offset, None);
        let chunks = self.footer.row_groups().iter().flat_map(RowGroupMetaData::columns);
        let mut listed = 0; // the index among the blocks of all chunks
        for (start, bytes) in chunks.map(ColumnChunkMetaData::byte_range) {
            for at in (0..bytes).step_by(CHUNK_BLOCK_BYTES) {
                let block_bytes = (bytes - at).min(CHUNK_BLOCK_BYTES as u64);
                let (block_start, end) = (start.saturating_add(at), start.saturating_add(at + block_bytes));
                let is_next = if first.is_none() { (block_start..end).contains(&next) } else { block_start == next };
                if is_next && found.len() < count_max {
                    first.get_or_insert(listed);
                    found.push(FileBlock {
                        start: block_start,
                        bytes: u32::try_from(block_bytes).unwrap_or(u32::MAX),
                        sum: 0,
                    });
                    next = end;
                } else if first.is_some() {
                    return self.with_sums(first, found);
                }
                listed += 1;
            }
        }
        self.with_sums(first, found)
    }

    /// Adds their checksums to blocks that follow each other. `first`: the index of the first one among the blocks of all chunks.
    fn with_sums(&self, first: Option<u64>, mut blocks: Vec<FileBlock>) -> Result<Vec<FileBlock>, Error> {
        let Some(first) = first else { return Ok(blocks) };
        let sums = self.block_checksums(first, blocks.len())?;
        blocks.iter_mut().zip(sums).for_each(|(block, sum)| block.sum = sum);
        Ok(blocks)
    }

    /// Reads a block of a chunk, and compares it with its checksum. `listed` is its index among the blocks of all chunks.
    /// Returns the offset of the block in the file.
    fn verify_block(
        &self,
        chunk: &ColumnChunkMetaData,
        index: u64,
        listed: u64,
        block: &mut Vec<u8>,
    ) -> Result<u64, Error> {
        let ((chunk_start, chunk_bytes), offset) = (chunk.byte_range(), index * CHUNK_BLOCK_BYTES as u64);
        let left = usize::try_from(chunk_bytes - offset).unwrap_or(usize::MAX);
        block.resize(CHUNK_BLOCK_BYTES.min(left), 0);
        let start = chunk_start.saturating_add(offset);
        self.file.fill_unverified(start, block)?;
        if self.block_checksums(listed, 1)? != [checksum(block)] {
            let end = start + block.len() as u64;
            return Err(self.damaged(&format!("the bytes from {start} to {end} are not what was written")));
        }
        Ok(start)
    }

    /// The number of blocks of all column chunks.
    pub(crate) fn blocks_count(&self) -> u64 {
        self.footer.row_groups().iter().flat_map(RowGroupMetaData::columns).map(blocks).sum()
    }

    /// Compares blocks of the column chunks with their checksums, from block `from` on, until `bytes_max` bytes have been
    /// read. Returns how many bytes were read, and the index of the next block, if there is one.
    pub(crate) fn verify_blocks(&self, from: u64, bytes_max: u64) -> Result<(u64, Option<u64>), Error> {
        if self.whole.is_some() {
            return Ok((self.file.bytes(), None)); // `open` has verified it
        }
        let (mut first, mut bytes, mut block) = (0, 0, Vec::new());
        for chunk in self.footer.row_groups().iter().flat_map(RowGroupMetaData::columns) {
            let next_first = first + blocks(chunk);
            for index in from.max(first)..next_first {
                if bytes >= bytes_max {
                    return Ok((bytes, Some(index)));
                }
                self.verify_block(chunk, index - first, index, &mut block)?;
                bytes += block.len() as u64;
            }
            first = next_first;
        }
        Ok((bytes, None))
    }

    /// The checksums of a chunk's blocks.
    pub(super) fn chunk_checksums(&self, row_group: usize, column_index: usize) -> Result<Vec<u64>, Error> {
        let (group, groups) = (self.footer.row_group(row_group), &self.footer.row_groups()[..row_group]);
        let before = groups.iter().flat_map(RowGroupMetaData::columns).chain(&group.columns()[..column_index]);
        let first: u64 = before.map(blocks).sum();
        self.block_checksums(first, usize::try_from(blocks(group.column(column_index))).unwrap_or(usize::MAX))
    }

    /// The checksums of `count` blocks, from block `first` of all column chunks on.
    fn block_checksums(&self, first: u64, count: usize) -> Result<Vec<u64>, Error> {
        if let Some(listed_from) = self.listed_from {
            return self.file.block_checksums(listed_from + first, count);
        }
        let entries = self.footer.file_metadata().key_value_metadata();
        let entry = entries.and_then(|entries| entries.iter().find(|entry| entry.key == CHUNK_CHECKSUMS_KEY));
        let text = entry.and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        let checksums = || -> Option<Vec<u64>> {
            let start = usize::try_from(first).ok()?.checked_mul(CHECKSUM_DIGITS)?;
            let text = text.get(start..start.checked_add(count.checked_mul(CHECKSUM_DIGITS)?)?)?;
            text.as_bytes().chunks(CHECKSUM_DIGITS).map(|digits| from_hex(std::str::from_utf8(digits).ok()?)).collect()
        };
        checksums().ok_or_else(|| self.damaged("its footer has no checksums of the column chunks"))
    }

    pub(super) fn damaged(&self, what: &str) -> Error {
        self.file.damaged(what)
    }

    /// Turns an error of the library into ours. An error of ours that the library has passed on is returned as it was.
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

/// Bytes of a file that are verified together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileBlock {
    /// Its offset in the file.
    pub(super) start: u64,
    /// How long it is, up to [`CHUNK_BLOCK_BYTES`].
    pub(super) bytes: u32,
    /// The checksum of its bytes.
    pub(super) sum: u64,
}

impl FileBlock {
    pub(super) fn has(&self, offset: u64) -> bool {
        offset >= self.start && offset - self.start < u64::from(self.bytes)
    }
}

/// The end of a file, verified: its footer and the [`PARQUET_TAIL_BYTES`] after it, or all of a small file.
pub(super) struct Tail {
    pub(super) start: u64,
    pub(super) bytes: Bytes,
    /// As in [`ParquetFile`].
    pub(super) listed_from: Option<u64>,
}

impl Tail {
    pub(super) fn start(file: &Reader, part: &Part) -> Result<u64, Error> {
        let footer_bytes = u64::from(part.footer_bytes) + PARQUET_TAIL_BYTES as u64;
        let start = file.bytes().checked_sub(footer_bytes);
        let start = start.ok_or_else(|| file.damaged("its footer is longer than the file"))?;
        Ok(if part.is_small_parquet() { 0 } else { start })
    }

    pub(super) fn read(file: &Reader, part: &Part) -> Result<Self, Error> {
        let checks = part.checks.ok_or_else(|| Error::Internal(format!("part {} was not verified", part.id)))?;
        let start = Self::start(file, part)?;
        let bytes = usize::try_from(file.bytes() - start).unwrap_or(usize::MAX);
        let bytes = Bytes::from(file.read_unverified(start, bytes)?);
        if checksum(&bytes) != checks.parquet {
            let is_whole = part.is_small_parquet();
            let what = if is_whole { "it is not what was written" } else { "its footer is not what was written" };
            return Err(file.damaged(what));
        }
        let listed_from = checks.chunks_in_sums.then(|| listed_blocks(part.csv_bytes));
        Ok(Self { start, bytes, listed_from })
    }

    /// All bytes of a small file; `None` for a larger file.
    pub(super) fn whole(&self, part: &Part) -> Option<&Bytes> {
        part.is_small_parquet().then_some(&self.bytes)
    }

    /// The footer; `None` if it does not end as it should.
    pub(super) fn footer(&self, part: &Part) -> Option<&[u8]> {
        split_footer(&self.bytes, part)
    }
}

/// The footer in the bytes at the end of a file; `None` if it does not end as it should.
fn split_footer<'t>(tail: &'t [u8], part: &Part) -> Option<&'t [u8]> {
    let footer_bytes = part.footer_bytes as usize;
    let start = tail.len().checked_sub(footer_bytes.checked_add(PARQUET_TAIL_BYTES)?)?;
    let (footer, mut end) = tail[start..].split_at(footer_bytes);
    (end.get_u32_le() as usize == footer_bytes && end == b"PAR1").then_some(footer)
}

/// The number of blocks of a column chunk.
fn blocks(chunk: &ColumnChunkMetaData) -> u64 {
    chunk.byte_range().1.div_ceil(CHUNK_BLOCK_BYTES as u64)
}

/// A column chunk of a part's file. Its bytes are verified before they are returned.
pub(super) struct Chunk<'a> {
    pub(super) parquet: &'a ParquetFile<'a>,
    group: &'a RowGroupMetaData,
    pub(super) metadata: &'a ColumnChunkMetaData,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) row_group: usize,
    pub(super) column_index: usize,
}

impl Chunk<'_> {
    /// Opens the chunk with the library's reader.
    pub(super) fn open(&self) -> Result<ColumnReader, Error> {
        let pages = WithEmptyPages { pages: self.pages()?, data_before: false };
        Ok(get_column_reader(self.metadata.column_descr_ptr(), Box::new(pages) as Box<dyn PageReader>))
    }

    /// Its pages, decompressed.
    pub(super) fn pages(&self) -> Result<SerializedPageReader<Window>, Error> {
        let window = Arc::new(self.window()?);
        let pages = SerializedPageReader::new(window, self.metadata, self.rows_count()?, None);
        pages.map_err(|error| self.parquet.read_error(error))
    }

    /// The number of rows of its row group.
    pub(super) fn rows_count(&self) -> Result<usize, Error> {
        usize::try_from(self.group.num_rows()).map_err(|error| self.parquet.damaged(&error.to_string()))
    }

    /// Whether all its values are indices in one dictionary.
    pub(super) fn is_dictionary(&self) -> bool {
        let only = |encoding| self.metadata.page_encoding_stats_mask().is_some_and(|mask| mask.is_only(encoding));
        self.metadata.dictionary_page_offset().is_some()
            && (only(Encoding::RLE_DICTIONARY) || only(Encoding::PLAIN_DICTIONARY))
    }

    fn window(&self) -> Result<Window, Error> {
        if let Some(whole) = &self.parquet.whole {
            let [start, end] = [self.start, self.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
            let loaded = Some(whole.slice(start..end));
            return Ok(Window { loaded, ..self.window_with(Vec::new()) });
        }
        let mut window = self.window_with(self.parquet.chunk_checksums(self.row_group, self.column_index)?);
        if self.end - self.start <= CHUNK_BYTES_MAX as u64 {
            let mut bytes = vec![0; usize::try_from(self.end - self.start).unwrap_or(usize::MAX)];
            for (index, block) in bytes.chunks_mut(CHUNK_BLOCK_BYTES).enumerate() {
                window.read_block(index, block)?;
            }
            window.loaded = Some(bytes.into());
        }
        Ok(window)
    }

    fn window_with(&self, checksums: Vec<u64>) -> Window {
        Window::new(self.parquet.file, self.start..self.end, checksums)
    }
}

/// The pages of a column chunk, with an empty page after each data page. `read_records` reads page after page until it has
/// as many rows as it was asked for, and each decoded text keeps its page in memory. It returns at an empty page, where
/// the decoder also releases the page before.
struct WithEmptyPages<P> {
    pages: P,
    data_before: bool,
}

impl<P: PageReader> PageReader for WithEmptyPages<P> {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        if mem::take(&mut self.data_before) {
            return Ok(Some(Page::DataPage {
                buf: Bytes::from_static(&[0; 4]), // the length of the levels
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

impl<P: PageReader> Iterator for WithEmptyPages<P> {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

pub(super) fn decode_footer(tail: &[u8], part: &Part) -> Result<ParquetMetaData, ParquetError> {
    decode_footer_with(tail, part, ParquetStatisticsPolicy::SkipAll)
}

fn decode_footer_with(
    tail: &[u8],
    part: &Part,
    statistics: ParquetStatisticsPolicy,
) -> Result<ParquetMetaData, ParquetError> {
    let footer = split_footer(tail, part).ok_or_else(|| {
        ParquetError::General("it does not end with a Parquet footer of the expected size".to_owned())
    })?;
    let options = ParquetMetaDataOptions::new()
        .with_column_stats_policy(statistics)
        .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_encoding_stats_as_mask(true);
    let footer = ParquetMetaDataReader::decode_metadata_with_options(footer, Some(&options))?;
    // The library would not check this.
    let is_negative = |chunk: &ColumnChunkMetaData| {
        let offsets = [Some(chunk.data_page_offset()), chunk.dictionary_page_offset(), Some(chunk.compressed_size())];
        offsets.into_iter().flatten().any(i64::is_negative)
    };
    if footer.row_groups().iter().flat_map(RowGroupMetaData::columns).any(is_negative) {
        return Err(ParquetError::General("a column chunk has a negative offset or size".to_owned()));
    }
    Ok(footer)
}

/// The byte ranges of a file's column chunks, in the order of row groups and columns. `tail` is the footer and the 8 bytes
/// after it.
///
/// Errors: the footer's rows, names, types or empty cells are not those of the receipt; there is a gap between chunks, which
/// our writer does not leave.
pub(crate) fn checked_chunk_ranges(tail: &[u8], part: &Part, columns: &[Column]) -> Result<Vec<(u64, u64)>, String> {
    let footer = decode_footer_with(tail, part, ParquetStatisticsPolicy::KeepAll).map_err(|error| error.to_string())?;
    let schema = ArrowSchemaConverter::new().convert(&arrow_schema(columns)).map_err(|error| error.to_string())?;
    let found = footer.file_metadata();
    let rows = found.num_rows() == part.rows.cast_signed() && footer.num_row_groups() == part.row_groups as usize;
    if !rows || found.schema_descr().root_schema() != schema.root_schema() {
        return Err("its rows or columns are not those of the receipt".to_owned());
    }
    columns.iter().enumerate().try_for_each(|(index, column)| check_empty_cells(&footer, index, column))?;
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

/// Compares the number of a column's empty cells with the footer. Columns of text have no statistics; no answer depends on
/// how many of their cells are empty.
fn check_empty_cells(footer: &ParquetMetaData, index: usize, column: &Column) -> Result<(), String> {
    let chunks = footer.row_groups().iter().filter_map(|group| group.columns().get(index));
    let nulls: Option<u64> = chunks.map(|chunk| chunk.statistics()?.null_count_opt()).sum();
    if nulls.is_none_or(|nulls| nulls == column.nulls) {
        return Ok(());
    }
    let Column { name, nulls, .. } = column;
    Err(format!("its column {name:?} does not have {nulls} cells without a value, as the receipt says"))
}
