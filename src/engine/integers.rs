//! A file of integers into Parquet while it comes in: most large tables are nothing else. Its cells are parsed where they
//! stand in the block, kept in one flat buffer, and packed into pages at once: one pass, without a batch in between. //!
//! It is a bet. What is no such file, or may be none, ends it ([`Integers::see`] gives up): then the file is typed and
//! converted from its draft by the path that takes everything and words all errors. So nothing here reports what is
//! wrong with a file, and what it accepts must be exactly what `csv.rs` and `convert.rs` would make of it.
//!
//! Formats: DELTA_BINARY_PACKED, RLE levels and data pages of version 1, as in Parquet's Encodings.md.
//!
//! Memory: [`CLAIM_BYTES`], whatever the file's size.

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
    checksums::{BlockHasher, CHUNK_BLOCK_BYTES},
    convert::arrow_schema,
    csv::{Resume, Row, Rows, Scanner, Wanted},
    deltas,
    integer_rows::{CELLS_MAX, Cells, Number, Table},
    parquet::{CREATED_BY, ChunkSums, DELTA_COLUMNS_MAX, write_error, written},
    part::{Column, ColumnType},
    staging::Converted,
    store::{Draft, SoFar, Store},
};
use crate::{
    error::{CsvError, Error},
    limits::{COLUMN_CHUNK_ENTRY_BYTES, CsvLimits, DRAFT_BYTES_HELD, KIB, MIB, ROW_GROUP_ROWS_MAX},
};

/// A row group is written out when its pages take so much.
const PAGES_BYTES_MAX: usize = 4 * MIB;
/// Column chunks of a file: their entries of the footer wait in memory for its end.
const COLUMN_CHUNKS_MAX: usize = 2 * KIB;
/// An integer's longest text.
const CELL_BYTES_MAX: usize = 20;
/// What is gathered, its nulls, one column of it and that as a page, which is there twice while it grows, to twice its
/// length; the pages, an eighth more at most; the footer and the checksums in it; what the draft holds.
pub const CLAIM_BYTES: usize = CELLS_MAX * (8 + 8 + 8 + 3 * 10)
    + PAGES_BYTES_MAX / 8 * 9
    + COLUMN_CHUNKS_MAX * COLUMN_CHUNK_ENTRY_BYTES
    + ChunkSums::bytes_max(COLUMN_CHUNKS_MAX, COLUMN_CHUNKS_MAX * PAGES_BYTES_MAX)
    + DRAFT_BYTES_HELD;

/// A file that has been all integers so far.
pub struct Integers {
    table: Table,
    /// A row whose end has not come yet.
    carry: Vec<u8>,
    output: Output,
}

/// The Parquet file.
struct Output {
    columns: Vec<Chunk>,
    writer: SerializedFileWriter<Draft>,
    failures: Vec<Arc<OnceLock<io::ErrorKind>>>,
    group_rows: usize,
    chunks_left: usize,
    rows: u64,
    /// Of the blocks of all column chunks, in the order of the file.
    chunk_sums: ChunkSums,
}

/// A column's pages in the row group at hand.
struct Chunk {
    name: String,
    pages: Vec<Bytes>,
    /// Of the page before this one, which will be about as long.
    page_bytes: usize,
    bytes: usize,
    range: Option<(i64, i64)>,
    group_nulls: u64,
    nulls: u64,
}

/// Why it was given up.
#[derive(Debug)]
pub enum Stop {
    /// It is not such a file, or may be none.
    Unsuited,
    /// The disk.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Integers {
    /// Begins with the first block of a file, which must hold its header and a row that tells the types.
    pub fn begin(store: &Store, limits: CsvLimits, first: &[u8]) -> Result<Self, Stop> {
        let (names, header_bytes) = header(first, limits).ok_or(Stop::Unsuited)?;
        // No row of integers is too long, then.
        let row_bytes = names.len() * (CELL_BYTES_MAX + 1);
        let fits = limits.cell_bytes_max >= CELL_BYTES_MAX && limits.row_bytes_max >= row_bytes;
        if names.len() > DELTA_COLUMNS_MAX || !fits {
            return Err(Stop::Unsuited);
        }
        // Before a file is begun: most that are none show it in their first rows.
        let rows = &first[header_bytes..];
        let mut table = Table::new(names.len(), first.len());
        let taken = table.parse(rows).ok_or(Stop::Unsuited)?;
        if !table.has_all_types() {
            return Err(Stop::Unsuited);
        }
        let mut integers = Self { table, carry: Vec::new(), output: Output::new(store, names)? };
        if integers.table.is_full() {
            integers.output.pages(&mut integers.table)?;
        }
        integers.see(&rows[taken..])?;
        Ok(integers)
    }

    /// A whole file that is in memory.
    pub fn of_file(store: &Store, limits: CsvLimits, csv: &[u8]) -> Result<Converted, Stop> {
        Self::begin(store, limits, csv)?.finish()
    }

    /// The next bytes of the file.
    pub fn see(&mut self, mut block: &[u8]) -> Result<(), Stop> {
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
    pub fn finish(mut self) -> Result<Converted, Stop> {
        if !self.carry.is_empty() {
            let mut carry = std::mem::take(&mut self.carry);
            carry.push(b'\n');
            self.rows(&carry)?;
        }
        self.output.finish(&mut self.table)
    }

    /// Takes all complete rows and returns what follows them.
    fn rows<'a>(&mut self, mut block: &'a [u8]) -> Result<&'a [u8], Stop> {
        loop {
            let taken = self.table.parse(block).ok_or(Stop::Unsuited)?;
            block = &block[taken..];
            if !self.table.is_full() {
                return Ok(block);
            }
            self.output.pages(&mut self.table)?;
        }
    }

    fn carry_on(&mut self, rest: &[u8]) -> Result<(), Stop> {
        self.carry.extend_from_slice(rest);
        let row_bytes_max = self.table.columns * (CELL_BYTES_MAX + 1);
        if self.carry.len() > row_bytes_max { Err(Stop::Unsuited) } else { Ok(()) }
    }
}

/// The names of the columns, and where the rows begin. None: the block does not tell, or the file is refused.
fn header(first: &[u8], limits: CsvLimits) -> Option<(Vec<String>, usize)> {
    #[derive(Default)]
    struct Header {
        names: Vec<String>,
        has_rows: bool,
    }
    impl Rows for Header {
        type Error = CsvError;
        fn header(&mut self, names: &[String]) -> Result<(), CsvError> {
            self.names = names.to_vec();
            Ok(())
        }
        fn row(&mut self, _row: Row<'_>) -> Result<(), CsvError> {
            self.has_rows = true;
            Ok(())
        }
    }
    let end = memchr::memchr(b'\n', first)? + 1;
    let mut header = Header::default();
    let mut scanner = Scanner::new(limits, Wanted::All, Resume::default());
    scanner.feed(&first[..end], &mut header).ok()?;
    // After a header that ended in a carriage return, a quoted cell may have begun.
    let is_all = scanner.into_resume().offset == end as u64;
    (is_all && !header.names.is_empty() && !header.has_rows).then_some((header.names, end))
}

impl Output {
    fn new(store: &Store, names: Vec<String>) -> Result<Self, Error> {
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
        let chunk = |column: Column| Chunk {
            name: column.name,
            pages: Vec::new(),
            page_bytes: 0,
            bytes: 0,
            range: None,
            group_nulls: 0,
            nulls: 0,
        };
        let columns = columns.into_iter().map(chunk).collect();
        let chunks_left = COLUMN_CHUNKS_MAX;
        Ok(Self { columns, writer, failures, group_rows: 0, chunks_left, rows: 0, chunk_sums: ChunkSums::default() })
    }

    /// Makes a page of each column of what the table holds.
    fn pages(&mut self, table: &mut Table) -> Result<(), Stop> {
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
            self.row_group()?;
        }
        Ok(())
    }

    /// Writes the row group out.
    fn row_group(&mut self) -> Result<(), Stop> {
        // Beyond it, row groups must grow with the file.
        self.chunks_left = self.chunks_left.checked_sub(self.columns.len()).ok_or(Stop::Unsuited)?;
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
                column.pages.iter().for_each(|page| hasher.update(page, |sum| self.chunk_sums.push(sum)));
                hasher.end().into_iter().for_each(|sum| self.chunk_sums.push(sum));
                group.append_column(&Pages(std::mem::take(&mut column.pages), column.bytes as u64), close)?;
                column.bytes = 0;
            }
            group.close()?;
            Ok::<_, ParquetError>(())
        };
        write().map_err(|error| write_error(&error, &self.failures))?;
        self.group_rows = 0;
        Ok(())
    }

    fn finish(mut self, table: &mut Table) -> Result<Converted, Stop> {
        if table.rows() > 0 {
            self.pages(table)?;
        }
        if self.group_rows > 0 {
            self.row_group()?;
        }
        let rows = self.rows;
        if self.columns.iter().any(|column| column.nulls == rows) {
            return Err(Stop::Unsuited);
        }
        let columns = self
            .columns
            .into_iter()
            .map(|column| Column { name: column.name, column_type: ColumnType::Int64, nulls: column.nulls })
            .collect();
        let (row_groups, before_footer) = (self.writer.flushed_row_groups().len(), self.writer.bytes_written());
        self.chunk_sums.entry(before_footer).into_iter().for_each(|entry| self.writer.append_key_value_metadata(entry));
        self.writer.inner_mut().begin_tail(before_footer as u64);
        let draft = self.writer.into_inner().map_err(|error| write_error(&error, &self.failures))?;
        Ok(Converted { parquet: written(draft, row_groups, before_footer)?, columns, rows })
    }
}

impl Chunk {
    /// A page of one column of `columns`, the one at `index`. `column` has a cell for each row; those that `empty` names by
    /// their place among all cells are taken out of it.
    fn page<N: Number>(
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
            // One run of levels that are 1: its length, then the level.
            let mut run = Vec::new();
            deltas::put_varint((rows as u64) << 1, &mut run);
            run.push(1);
            page.extend_from_slice(&u32::try_from(run.len())?.to_le_bytes());
            page.append(&mut run);
        } else {
            // Groups of eight levels, a bit each, lowest first.
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
            deltas::put_varint((bits.len() as u64) << 1 | 1, &mut run);
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
        let mut sink = TrackedWrite::new(BeforePage { page: &data, passed: false, written: Vec::new() });
        SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, bytes))?;
        self.bytes += sink.bytes_written();
        let BeforePage { passed, written, .. } = sink.into_inner()?;
        self.pages.push(Bytes::from(written));
        if passed {
            self.pages.push(data);
        }
        Ok(())
    }
}

/// Keeps what is written before a page. The page itself is there already: what is written from where it stands passes, and
/// must be the last. A short page does not: it comes in one piece with what is before it.
struct BeforePage<'a> {
    page: &'a [u8],
    passed: bool,
    written: Vec<u8>,
}

impl Write for BeforePage<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.passed {
            return Err(io::Error::other("a page is followed by something"));
        }
        self.passed = std::ptr::eq(bytes, self.page);
        if !self.passed {
            self.written.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The pages of a chunk, one after the other, as what Parquet's writer copies from.
struct Pages(Vec<Bytes>, u64);

impl Length for Pages {
    fn len(&self) -> u64 {
        self.1
    }
}

impl ChunkReader for Pages {
    type T = PagesFrom;

    fn get_read(&self, start: u64) -> Result<PagesFrom, ParquetError> {
        let mut pages = PagesFrom(self.0.iter().cloned().collect());
        io::copy(&mut (&mut pages).take(start), &mut io::sink())?;
        Ok(pages)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let mut bytes = vec![0; length];
        self.get_read(start)?.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

struct PagesFrom(VecDeque<Bytes>);

impl Read for PagesFrom {
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use arrow::{array::Array, array::AsArray, datatypes::Int64Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::engine::{
        cell,
        convert::Typer,
        integer_rows::{LANES, Rest, parse_plain},
        simd,
        store::Durability,
    };

    /// Rows of cells.
    type Content = Vec<Vec<Option<i64>>>;

    impl Table {
        fn values(&self) -> Vec<i64> {
            match &self.cells {
                Cells::Narrow(flat) => flat.cells.iter().copied().map(i64::from).collect(),
                Cells::Wide(flat) => flat.cells.clone(),
            }
        }
    }

    /// Random rows, and their text with all kinds of row ends and empty lines in it.
    fn random_table(random: &mut fastrand::Rng) -> (Content, Vec<u8>) {
        let columns = random.usize(1..=5);
        let rows = *random.choice(&[1, 2, 63, 64, 65, 66, 127, 129, 256, 257, 258, 513, 1000]).expect("some");
        let null_percent = *random.choice(&[0, 0, 1, 60]).expect("some");
        let bits_max = *random.choice(&[20, 64]).expect("some");
        let bits: Vec<u32> = (0..columns).map(|_| random.u32(1..=bits_max)).collect();
        let mut csv = (0..columns).map(|column| format!("c{column}")).collect::<Vec<_>>().join(",");
        csv.push_str(if random.bool() { "\n" } else { "\r\n" });
        let mut cells = Content::new();
        for row in 0..rows {
            let cell = |bits: &u32| {
                let value = random.u64(..) >> (64 - bits);
                // The first row has no null: no column may be without a value.
                let is_null = row > 0 && random.u32(..100) < null_percent;
                (!is_null).then(|| if random.bool() { value.cast_signed() } else { value.cast_signed().wrapping_neg() })
            };
            let row: Vec<_> = bits.iter().map(cell).collect();
            if columns > 1 || row[0].is_some() {
                let text = |cell: &Option<i64>| cell.map_or(String::new(), |value| value.to_string());
                csv.push_str(&row.iter().map(text).collect::<Vec<_>>().join(","));
                csv.push_str(random.choice(&["\n", "\n", "\r\n", "\r", "\n\n"]).expect("some"));
                cells.push(row);
            }
        }
        if random.bool() {
            csv.truncate(csv.trim_end().len());
        }
        (cells, csv.into_bytes())
    }

    fn read(parquet: impl parquet::file::reader::ChunkReader + 'static) -> Content {
        let batches = ParquetRecordBatchReaderBuilder::try_new(parquet).expect("a footer").build().expect("a reader");
        let mut cells = Content::new();
        for batch in batches {
            let batch = batch.expect("rows");
            let columns: Vec<_> = batch.columns().iter().map(|column| column.as_primitive::<Int64Type>()).collect();
            let cell =
                |row, column: &arrow::array::PrimitiveArray<Int64Type>| column.is_valid(row).then(|| column.value(row));
            cells.extend((0..batch.num_rows()).map(|row| columns.iter().map(|column| cell(row, column)).collect()));
        }
        cells
    }

    #[test]
    fn what_parquet_readers_see_is_what_was_sent() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"));
        let mut random = fastrand::Rng::with_seed(5);
        for round in 0..600 {
            let (cells, csv) = random_table(&mut random);
            let mut typer = Typer::default();
            let mut scanner = Scanner::new(CsvLimits::default(), Wanted::All, Resume::default());
            scanner.feed(&csv, &mut typer).and_then(|()| scanner.finish(&mut typer)).expect("a table");
            // The header and the first row at least, then cut anywhere.
            let row_end = |from: usize| {
                csv[from.min(csv.len())..].iter().position(|byte| *byte < b' ').map_or(csv.len(), |at| from + at + 1)
            };
            let first = row_end(row_end(row_end(0) + 1) + 1).min(csv.len());
            let mut at = random.usize(first..=csv.len());
            let mut integers = match Integers::begin(&store, CsvLimits::default(), &csv[..at]) {
                Ok(integers) => integers,
                // The one row has no end yet.
                Err(Stop::Unsuited) if cells.len() == 1 => continue,
                Err(stop) => panic!("round {round}: {stop:?}"),
            };
            while at < csv.len() {
                let end = csv.len().min(at + 1 + random.usize(..200));
                integers.see(&csv[at..end]).expect("integers");
                at = end;
            }
            let mut converted = integers.finish().expect("integers");
            assert_eq!(converted.rows, cells.len() as u64, "round {round}");
            assert_eq!(converted.columns, typer.into_columns(), "round {round}");
            assert!(converted.parquet.draft.reader().is_ok());
            let path = folder.path().join("tmp").read_dir().expect("drafts").next().expect("one").expect("it").path();
            assert!(read(File::open(path).expect("open")) == cells, "round {round}: other cells");
        }
    }

    /// What the path that takes everything makes of a file: its columns and, if all are integers, their values.
    fn carefully(limits: CsvLimits, csv: &[u8]) -> Option<(Vec<Column>, Content)> {
        #[derive(Default)]
        struct All(Typer, Vec<Vec<Vec<u8>>>);
        impl Rows for All {
            type Error = Error;
            fn header(&mut self, names: &[String]) -> Result<(), Error> {
                self.0.header(names)
            }
            fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
                self.1.push(row.cells().map(<[u8]>::to_vec).collect());
                self.0.row(row)
            }
        }
        let mut all = All::default();
        let mut scanner = Scanner::new(limits, Wanted::All, Resume::default());
        scanner.feed(csv, &mut all).and_then(|()| scanner.finish(&mut all)).ok()?;
        let All(typer, rows) = all;
        let columns = typer.into_columns();
        if columns.iter().any(|column| column.column_type != ColumnType::Int64) {
            return None;
        }
        let values = |row: &Vec<Vec<u8>>| row.iter().map(|cell| cell::parse_int64(cell)).collect();
        Some((columns, rows.iter().map(values).collect()))
    }

    /// The same in blocks, by the path of this file, if it takes it.
    fn quickly(store: &Store, limits: CsvLimits, blocks: &[&[u8]]) -> Option<Converted> {
        let mut integers = unless_stopped(Integers::begin(store, limits, blocks[0]))?;
        for block in &blocks[1..] {
            unless_stopped(integers.see(block))?;
        }
        unless_stopped(integers.finish())
    }

    fn unless_stopped<T>(result: Result<T, Stop>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Stop::Unsuited) => None,
            Err(Stop::Failed(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn what_is_taken_of_hostile_files_is_what_the_careful_path_makes_of_them() {
        const HOSTILE: [&[u8]; 32] = [
            b"\"",
            b"\"\"",
            b"\r\"",
            b"\"\n",
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\n",
            b",",
            b",,",
            b"-",
            b"--",
            b"+",
            b" ",
            b"\t",
            b"\0",
            b"0",
            b"00",
            b"-0",
            b"9",
            b"9223372036854775807",
            b"9223372036854775808",
            b"-9223372036854775808",
            b"-9223372036854775809",
            b"99999999999999999999",
            b".",
            b"1e3",
            b"x",
            b":",
            b"/",
            b"\xff",
            b"\xef\xbb\xbf",
        ];
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let (mut taken, mut given_up, mut refused) = (0, 0, 0);
        for seed in 0..6000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (_cells, mut csv) = random_table(&mut random);
            if random.u8(..4) == 0 {
                csv.truncate(random.usize(1..=csv.len()));
            }
            for _ in 0..random.usize(0..3) {
                // Mostly near the header, where the two paths differ most.
                let among = if random.bool() { csv.len() } else { csv.len().min(12) };
                let at = random.usize(0..=among);
                let end = csv.len().min(at + random.usize(0..3));
                csv.splice(at..end, HOSTILE[random.usize(..HOSTILE.len())].iter().copied());
            }
            let limits = match random.usize(..4) {
                0 => CsvLimits {
                    columns_max: 2,
                    cell_bytes_max: random.usize(15..25),
                    row_bytes_max: random.usize(20..90),
                },
                _ => CsvLimits::default(),
            };
            let mut blocks = Vec::new();
            let mut rest = &csv[..];
            while !rest.is_empty() {
                let most = if blocks.is_empty() { rest.len() } else { rest.len().min(100) };
                let (block, after) = rest.split_at(random.usize(1..=most));
                blocks.push(block);
                rest = after;
            }
            if blocks.is_empty() {
                continue;
            }
            let careful = carefully(limits, &csv);
            let what = || format!("seed {seed}: {:?}", String::from_utf8_lossy(&csv));
            match (quickly(&store, limits, &blocks), careful) {
                (Some(mut converted), Some((columns, cells))) => {
                    assert_eq!(converted.rows, cells.len() as u64, "{}", what());
                    assert_eq!(converted.columns, columns, "{}", what());
                    let file = converted.parquet.draft.reader().expect("readable");
                    let bytes = file.block(0, usize::MAX).expect("readable");
                    assert!(read(Bytes::from(bytes)) == cells, "{}", what());
                    taken += 1;
                }
                (Some(_), None) => panic!("taken, and is none: {}", what()),
                (None, Some(_)) => given_up += 1,
                (None, None) => refused += 1,
            }
        }
        let all = [taken, given_up, refused];
        assert!(all.iter().all(|count| *count > 300), "the test wants all three: {all:?}");
    }

    #[test]
    fn vectors_read_what_their_plain_twin_reads() {
        let (mut narrow, mut wide, mut plain_only) = (0, 0, 0);
        for seed in 0..6000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (cells, csv) = random_table(&mut random);
            let columns = cells[0].len();
            let header = csv.iter().position(|byte| *byte < b' ').expect("its end") + 1;
            let mut rows = csv[header..].to_vec();
            if random.bool() && !rows.is_empty() {
                let at = random.usize(..rows.len());
                rows[at] = b",,\n\r\"-0+ x\xff\0.:/9"[random.usize(..16)];
            }
            let file_bytes = random.usize(1..=rows.len() + 1);
            let mut table = Table::new(columns, file_bytes);
            let mut plain = vec![0_i64; table.values().len()];
            let mut rest = &rows[..];
            let what = || format!("seed {seed}, {columns} columns: {:?}", String::from_utf8_lossy(&rows));
            // A table that is full is emptied, until no row is left or one is none of integers.
            loop {
                let by_vectors = match &mut table.cells {
                    Cells::Narrow(flat) => i32::read(rest, columns, &mut flat.cells, 0, &mut Vec::new()),
                    Cells::Wide(flat) => i64::read(rest, columns, &mut flat.cells, 0, &mut Vec::new()),
                };
                match (by_vectors.bytes > 0, &table.cells) {
                    (true, Cells::Narrow(_)) => narrow += 1,
                    (true, Cells::Wide(_)) => wide += 1,
                    (false, _) => plain_only += 1,
                }
                let (mut filled, mut empty) = (0, Vec::new());
                let expected = parse_plain(rest, columns, &mut plain, &mut filled, &mut empty);
                let found = table.parse(rest);
                // What is not ASCII is seen together with what stands before it, and that depends on where one begins.
                if let (None, Some(Rest::Taken(bytes))) = (&found, &expected)
                    && !rest[*bytes..].is_ascii()
                {
                    break;
                }
                assert_eq!(found.map(Rest::Taken), expected, "{}", what());
                let Some(taken) = found else { break };
                assert_eq!(table.values()[..table.filled], plain[..filled], "{}", what());
                assert_eq!((table.filled, &table.empty), (filled, &empty), "{}", what());
                rest = &rest[taken..];
                if taken == 0 || !table.is_full() {
                    break;
                }
                table.clear();
            }
        }
        let all = [narrow, wide, plain_only];
        assert!(!simd::serves(1) || all.iter().all(|count| *count > 300), "the test wants all three: {all:?}");
    }

    #[test]
    fn long_cells_are_kept_wherever_they_stand_among_short_ones() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let mut random = fastrand::Rng::with_seed(7);
        for columns in [1, 3, 17] {
            let page = CELLS_MAX / columns;
            let places = [
                (0, 10_000_000),
                (page - 1, -10_000_000),
                (page, 1 << 30),
                (page + page / 2, i64::MIN),
                (2 * page - 2, 99_999_999),
                (2 * page + 5, i64::MAX),
            ];
            for (row, long) in places {
                let short = |random: &mut fastrand::Rng| random.i64(-9_999_999..10_000_000) >> random.u32(..24);
                // A line without text would be no row.
                let cell = |random: &mut fastrand::Rng| (columns == 1 || random.u8(..50) > 0).then(|| short(random));
                let mut cells: Content =
                    (0..3 * page + 3).map(|_| (0..columns).map(|_| cell(&mut random)).collect()).collect();
                let column = random.usize(..columns);
                cells[row][column] = Some(long);
                cells[1].fill(Some(-1)); // each column has a value
                let mut csv = (0..columns).map(|column| format!("c{column}")).collect::<Vec<_>>().join(",");
                for row in &cells {
                    let text = |cell: &Option<i64>| cell.map_or(String::new(), |value| value.to_string());
                    csv.push('\n');
                    csv.push_str(&row.iter().map(text).collect::<Vec<_>>().join(","));
                }

                let (first, rest) = csv.as_bytes().split_at(64 * KIB);
                let mut integers = Integers::begin(&store, CsvLimits::default(), first).expect("integers");
                let is_wide = |integers: &Integers| matches!(integers.table.cells, Cells::Wide(_));
                let mut were_wide = vec![is_wide(&integers)];
                for block in rest.chunks(7000) {
                    integers.see(block).expect("integers");
                    were_wide.push(is_wide(&integers));
                }
                let what = format!("{long} in row {row}, column {column} of {columns}");
                assert!(were_wide.contains(&true) && were_wide.contains(&false), "{what}: {were_wide:?}");

                let mut converted = integers.finish().expect("integers");
                let file = converted.parquet.draft.reader().expect("readable");
                let bytes = Bytes::from(file.block(0, usize::MAX).expect("readable"));
                assert!(read(bytes.clone()) == cells, "{what}");
                let metadata = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a footer").metadata().clone();
                for column in 0..columns {
                    let ranges = metadata.row_groups().iter().filter_map(|group| {
                        match group.column(column).statistics().expect("statistics") {
                            Statistics::Int64(of) => of.min_opt().copied().zip(of.max_opt().copied()),
                            _ => None,
                        }
                    });
                    let range = ranges.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
                    let values = || cells.iter().filter_map(|row| row[column]);
                    assert_eq!(range, values().min().zip(values().max()), "{what}: column {column}");
                }
            }
        }
    }

    #[test]
    fn long_pages_are_not_copied_behind_their_headers() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let mut output = Output::new(&store, vec!["a".to_owned()]).expect("a draft");
        let mut random = fastrand::Rng::with_seed(1);
        for (rows, pieces) in [(10, 1), (CELLS_MAX, 2)] {
            let mut column: Vec<i32> = (0..rows).map(|_| random.i32(-9_999_999..10_000_000)).collect();
            output.columns[0].page(&mut column, 1, 0, &[]).expect("a page");
            assert_eq!(output.columns[0].pages.len(), pieces);
            output.columns[0].pages.clear();
        }
    }

    #[test]
    fn no_odd_cell_is_read_wherever_it_stands() {
        for cell in ["07", "00", "-0", "-", "--1", "1-", "-,", "x", "1,", "\n7", "12345678x", "007"] {
            for before in 0..LANES {
                let rows = format!(
                    "{},1\n{}5,{cell}\n{}",
                    "1".repeat(1 + before % 4),
                    "5,5\n".repeat(before / 4),
                    "5,5\n".repeat(40)
                );
                let mut table = Table::new(2, rows.len());
                assert_eq!(table.parse(rows.as_bytes()), None, "{rows:?}");
            }
        }
    }

    #[test]
    fn long_files_have_many_pages_and_row_groups() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Store::open(folder.path(), Durability::None).expect("a data folder");
        let mut random = fastrand::Rng::with_seed(3);
        let mut csv = b"a,b\n".to_vec();
        let mut cells = Content::new();
        while csv.len() < 20 * MIB {
            let row = vec![Some(random.i64(..)), random.bool().then(|| random.i64(-9..9))];
            let text = |cell: &Option<i64>| cell.map_or(String::new(), |value| value.to_string());
            csv.extend_from_slice(row.iter().map(text).collect::<Vec<_>>().join(",").as_bytes());
            csv.push(b'\n');
            cells.push(row);
        }
        let blocks: Vec<_> = csv.chunks(130_000).collect();
        let mut converted = quickly(&store, CsvLimits::default(), &blocks).expect("integers");
        assert!(converted.parquet.row_groups > 1);
        let file = converted.parquet.draft.reader().expect("readable");
        assert!(read(Bytes::from(file.block(0, usize::MAX).expect("readable"))) == cells);
    }

    #[test]
    fn what_is_no_table_of_integers_is_given_up() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let store = Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"));
        let of = |csv: &[u8]| Integers::of_file(&store, CsvLimits::default(), csv);
        assert!(of(b"a,b\n1,2\n-3,\n,9223372036854775807\n").is_ok());
        let cells: [&[u8]; 16] = [
            b"007",
            b"-0",
            b"+5",
            b" 5",
            b"5 ",
            b"-",
            b"1.5",
            b"x",
            b"9223372036854775808",
            b"\"5\"",
            b"5\"",
            b"\0",
            b"1,2",
            b"\xc3\xa9",
            b"\xff",
            b"12345678:",
        ];
        for cell in cells {
            for before in [&b"a,b\n1,1\n"[..], b"a,b\n1,1\n1,222222222\n"] {
                let csv = [before, b"1,", cell, b"\n1,1\n"].concat();
                assert!(matches!(of(&csv), Err(Stop::Unsuited)), "{}", String::from_utf8_lossy(&csv));
            }
        }
        for csv in [
            "",
            "a",
            "a\n",
            "\na\n1\n",
            "a,a\n1,1\n",
            "a,b\n1\n",
            "a,b\n,1\n",
            "a\r1\r2\n3\n",
            "\"a\nb\"\n1\n",
            "a\r\"\n1\n2\n",
        ] {
            assert!(matches!(of(csv.as_bytes()), Err(Stop::Unsuited)), "{csv:?}");
        }
    }
}
