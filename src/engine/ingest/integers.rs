//! A file of integers into Parquet while it comes in: most large tables are nothing else. Its cells are parsed where they
//! stand in the block, kept in one flat buffer, and packed into pages at once: one pass, without a batch in between. //!
//! It is a bet. What is no such file, or may be none, ends it ([`Integers::see`] gives up): then the file is typed and
//! converted from its draft by the path that takes everything and words all errors. So nothing here reports what is
//! wrong with a file, and what it accepts must be exactly what `csv.rs` and `convert.rs` would make of it.
//!
//! Formats: DELTA_BINARY_PACKED, RLE levels and data pages of version 1, as in Parquet's Encodings.md.
//!
//! Memory: [`MEMORY_BYTES`], whatever the file's size.

use crate::{
    engine::{
        csv::header::parse_header,
        kernels::integer_table::{CELLS_MAX, Table},
        parquet::{
            chunk_sums::ChunkSums,
            integer_writer::{INTEGER_CHUNKS_MAX, IntegerWriter, IntegersError, PAGES_BYTES_MAX},
            writer::{Converted, DELTA_COLUMNS_MAX},
        },
        storage::{Store, draft::SoFar},
    },
    limits::{COLUMN_CHUNK_ENTRY_BYTES, CsvLimits, DRAFT_BUFFER_BYTES},
};

/// An integer's longest text.
const INTEGER_BYTES_MAX: usize = 20;
/// What is gathered, its nulls, one column of it and that as a page, which is there twice while it grows, to twice its
/// length; the pages, an eighth more at most; the footer and the checksums in it; what the draft holds.
pub const MEMORY_BYTES: usize = CELLS_MAX * (8 + 8 + 8 + 3 * 10)
    + PAGES_BYTES_MAX / 8 * 9
    + INTEGER_CHUNKS_MAX * COLUMN_CHUNK_ENTRY_BYTES
    + ChunkSums::bytes_max(INTEGER_CHUNKS_MAX, INTEGER_CHUNKS_MAX * PAGES_BYTES_MAX)
    + DRAFT_BUFFER_BYTES;

/// A file that has been all integers so far.
pub struct Integers {
    pub(super) table: Table,
    /// A row whose end has not come yet.
    carry: Vec<u8>,
    output: IntegerWriter,
}

impl Integers {
    /// Begins with the first block of a file, which must hold its header and a row that tells the types.
    pub fn begin(store: &Store, limits: CsvLimits, first: &[u8]) -> Result<Self, IntegersError> {
        let (names, header_bytes) = parse_header(first, limits).ok_or(IntegersError::Unsuited)?;
        // No row of integers is too long, then.
        let row_bytes = names.len() * (INTEGER_BYTES_MAX + 1);
        let fits = limits.cell_bytes_max >= INTEGER_BYTES_MAX && limits.row_bytes_max >= row_bytes;
        if names.len() > DELTA_COLUMNS_MAX || !fits {
            return Err(IntegersError::Unsuited);
        }
        // Before a file is begun: most that are none show it in their first rows.
        let rows = &first[header_bytes..];
        let mut table = Table::new(names.len(), first.len());
        let taken = table.parse(rows).ok_or(IntegersError::Unsuited)?;
        if !table.has_all_types() {
            return Err(IntegersError::Unsuited);
        }
        let mut integers = Self { table, carry: Vec::new(), output: IntegerWriter::new(store, names)? };
        if integers.table.is_full() {
            integers.output.write_pages(&mut integers.table)?;
        }
        integers.see(&rows[taken..])?;
        Ok(integers)
    }

    /// A whole file that is in memory.
    pub fn of_file(store: &Store, limits: CsvLimits, csv: &[u8]) -> Result<Converted, IntegersError> {
        Self::begin(store, limits, csv)?.finish()
    }

    /// The next bytes of the file.
    pub fn see(&mut self, mut block: &[u8]) -> Result<(), IntegersError> {
        if !self.carry.is_empty() {
            let Some(end) = block.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                return self.carry_on(block);
            };
            let (first, rest) = block.split_at(end + 1);
            self.carry.extend_from_slice(first);
            let carry = std::mem::take(&mut self.carry);
            self.rows(&carry)?;
            block = rest;
        }
        let rest = self.rows(block)?;
        self.carry_on(rest)
    }

    /// What is written of the Parquet file.
    pub fn so_far(&self) -> Option<SoFar> {
        self.output.writer.inner().so_far("the parquet file")
    }

    /// The end of the file.
    pub fn finish(mut self) -> Result<Converted, IntegersError> {
        if !self.carry.is_empty() {
            let mut carry = std::mem::take(&mut self.carry);
            carry.push(b'\n');
            self.rows(&carry)?;
        }
        self.output.finish(&mut self.table)
    }

    /// Takes all complete rows and returns what follows them.
    fn rows<'a>(&mut self, mut block: &'a [u8]) -> Result<&'a [u8], IntegersError> {
        loop {
            let taken = self.table.parse(block).ok_or(IntegersError::Unsuited)?;
            block = &block[taken..];
            if !self.table.is_full() {
                return Ok(block);
            }
            self.output.write_pages(&mut self.table)?;
        }
    }

    fn carry_on(&mut self, rest: &[u8]) -> Result<(), IntegersError> {
        self.carry.extend_from_slice(rest);
        let row_bytes_max = self.table.columns * (INTEGER_BYTES_MAX + 1);
        if self.carry.len() > row_bytes_max { Err(IntegersError::Unsuited) } else { Ok(()) }
    }
}
