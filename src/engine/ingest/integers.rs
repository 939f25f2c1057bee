//! The fast path for files whose cells are all integers, as in most large tables: CSV blocks to Parquet in one pass. Cells are
//! parsed in the block, collected in one flat buffer, and packed into pages without an Arrow batch in between.
//!
//! At anything else the attempt ends ([`IntegersError::Unsuited`]), and the general path (`engine/csv` and `convert.rs`)
//! reads the file from its draft and reports what is wrong with it, if anything is. Invariant: a file that is accepted here
//! is converted exactly as on the general path.
//!
//! Formats: DELTA_BINARY_PACKED, RLE levels and data pages of version 1, as in Encodings.md of the Parquet specification.
//!
//! Memory: at most [`MEMORY_BYTES`] for a file of any size.

use crate::{
    engine::{
        csv::header::parse_header,
        kernels::integer_table::{CELLS_MAX, Table},
        parquet::{
            chunk_checksums::ChunkChecksums,
            integer_writer::{INTEGER_CHUNKS_MAX, IntegerWriter, IntegersError, PAGES_BYTES_MAX},
            writer::{Converted, DELTA_COLUMNS_MAX},
        },
        storage::{Store, draft::SyncHandle},
    },
    limits::{COLUMN_CHUNK_ENTRY_BYTES, CsvLimits, DRAFT_BUFFER_BYTES},
};

/// The length of the longest text of a 64-bit integer.
const INTEGER_BYTES_MAX: usize = 20;
/// Bytes to reserve for one file. Line by line: the collected cells with their nulls, one column, and its page (while its
/// buffer grows there are two, and the new one is up to twice as long as its content); the finished pages, at most an
/// eighth more; the entries of the footer; the checksums; the buffer of the draft.
pub const MEMORY_BYTES: usize = CELLS_MAX * (8 + 8 + 8 + 3 * 10)
    + PAGES_BYTES_MAX / 8 * 9
    + INTEGER_CHUNKS_MAX * COLUMN_CHUNK_ENTRY_BYTES
    + ChunkChecksums::bytes_max(INTEGER_CHUNKS_MAX, INTEGER_CHUNKS_MAX * PAGES_BYTES_MAX)
    + DRAFT_BUFFER_BYTES;

/// A file whose cells so far are all integers, and its Parquet file.
pub struct Integers {
    pub(super) table: Table,
    /// The start of a row whose end has not arrived.
    partial_row: Vec<u8>,
    output: IntegerWriter,
}

impl Integers {
    /// Begins with the first block of a file. It must have the header and a value in each column.
    pub fn begin(store: &Store, limits: CsvLimits, first: &[u8]) -> Result<Self, IntegersError> {
        let (names, header_bytes) = parse_header(first, limits).ok_or(IntegersError::Unsuited)?;
        // These checks are enough to know that no row of integers is too long.
        let row_bytes = names.len() * (INTEGER_BYTES_MAX + 1);
        let fits = limits.cell_bytes_max >= INTEGER_BYTES_MAX && limits.row_bytes_max >= row_bytes;
        if names.len() > DELTA_COLUMNS_MAX || !fits {
            return Err(IntegersError::Unsuited);
        }
        // Parsed before the Parquet file is created, as most unsuited files are recognised by their first rows.
        let rows = &first[header_bytes..];
        let mut table = Table::new(names.len(), first.len());
        let taken = table.parse(rows).ok_or(IntegersError::Unsuited)?;
        if !table.has_all_types() {
            return Err(IntegersError::Unsuited);
        }
        let mut integers = Self { table, partial_row: Vec::new(), output: IntegerWriter::new(store, names)? };
        if integers.table.is_full() {
            integers.output.write_pages(&mut integers.table)?;
        }
        integers.push(&rows[taken..])?;
        Ok(integers)
    }

    /// Converts a whole file that is in memory.
    pub fn of_file(store: &Store, limits: CsvLimits, csv: &[u8]) -> Result<Converted, IntegersError> {
        Self::begin(store, limits, csv)?.finish()
    }

    /// Parses the next bytes of the file.
    pub fn push(&mut self, mut block: &[u8]) -> Result<(), IntegersError> {
        if !self.partial_row.is_empty() {
            let Some(end) = block.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                return self.keep_partial_row(block);
            };
            let (first, rest) = block.split_at(end + 1);
            self.partial_row.extend_from_slice(first);
            let partial_row = std::mem::take(&mut self.partial_row);
            self.parse_rows(&partial_row)?;
            block = rest;
        }
        let rest = self.parse_rows(block)?;
        self.keep_partial_row(rest)
    }

    /// The part of the Parquet file that is written, to be synced.
    pub fn partial_file(&self) -> Option<SyncHandle> {
        self.output.writer.inner().sync_handle("the parquet file")
    }

    /// Ends the file: the last row, and the footer of the Parquet file.
    pub fn finish(mut self) -> Result<Converted, IntegersError> {
        if !self.partial_row.is_empty() {
            let mut partial_row = std::mem::take(&mut self.partial_row);
            partial_row.push(b'\n');
            self.parse_rows(&partial_row)?;
        }
        self.output.finish(&mut self.table)
    }

    /// Parses all complete rows, and returns the bytes after them.
    fn parse_rows<'a>(&mut self, mut block: &'a [u8]) -> Result<&'a [u8], IntegersError> {
        loop {
            let taken = self.table.parse(block).ok_or(IntegersError::Unsuited)?;
            block = &block[taken..];
            if !self.table.is_full() {
                return Ok(block);
            }
            self.output.write_pages(&mut self.table)?;
        }
    }

    fn keep_partial_row(&mut self, rest: &[u8]) -> Result<(), IntegersError> {
        self.partial_row.extend_from_slice(rest);
        let row_bytes_max = self.table.columns * (INTEGER_BYTES_MAX + 1);
        if self.partial_row.len() > row_bytes_max { Err(IntegersError::Unsuited) } else { Ok(()) }
    }
}
