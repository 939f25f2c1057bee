//! Unit tests of the writer and the readers, which must agree.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use parquet::{column::reader::ColumnReader, file::metadata::RowGroupMetaData};

use super::{
    batch::{BatchBuilder, arrow_schema},
    column_reader::{Cell, ColumnRef, PartColumns, Position},
    column_sum::{Progress, RowGroupStart, StoredColumn, SumError, sum_integers, sum_pages},
    file::{Chunk, ParquetFile, Tail, decode_footer},
    numbers::Numbers,
    read_rows::TEXTS_MAX,
    slim_footer::IntegerColumn,
    text_codes::TextCodes,
    writer::{Layout, PartWriter, WrittenFile},
};
use crate::{
    engine::{
        csv::{
            infer::Typer,
            rows::{Resume, Row, Rows, Wanted},
            scanner::Scanner,
        },
        storage::{
            Store,
            reader::{Reader, reads},
        },
        values::sum::Sum,
    },
    error::Error,
    limits::{CELL_BYTES_MAX, PAGE_BYTES, ROW_GROUP_BYTES, TASK_BYTES},
    model::{
        durability::Durability,
        format::Format,
        part::{Checks, PARQUET_TAIL_BYTES, Part, PartId},
        schema::{Column, ColumnType},
    },
};

/// Converts rows to batches, and each batch to a row group.
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
        let column = StoredColumn { file: &file, part: &part, index, name, column_type };
        match (column.sum(RowGroupStart::default(), u64::MAX, &mut sum), total) {
            (Ok(Progress { next: None, .. }), Ok(total)) => assert_eq!(sum.total(), Ok(total.cast_signed())),
            (Err(SumError::BadCell(bad)), Err(row)) => assert_eq!(bad.row, row),
            other => panic!("{other:?}"),
        }
        check_inside(&file, &part, [index]);
    }

    let parquet = ParquetFile::open(&file, &part).expect("a footer");
    check_footer(&parquet, &part, 0, "x");
    check_footer(&parquet, &part, 2, "big");
    let refs = [("big", 2, ColumnType::Int64), ("text", 1, ColumnType::Utf8)];
    let [big, text] = refs.map(|(name, index, column_type)| ColumnRef { index, name, column_type });
    reads::take();
    let open = PartColumns::open(&file, &part).expect("a footer");
    // Ranges of one block, of several blocks, and of other lengths.
    for rows_max in [TEXTS_MAX, 9999, 100_000] {
        let (mut at, mut found) = (Position::default(), Vec::new());
        while let Some((range, after)) = open.next_rows(at, &[&big, &text], rows_max).expect("readable") {
            let count = u32::try_from(range.rows_count()).expect("few");
            assert!(count as usize <= rows_max, "{range:?}");
            let mut rows: Vec<(u32, i64)> = (0..count).map(|offset| (offset, 0)).collect();
            let rare = |_, data: &mut i64, cell: Cell<'_>| {
                let Cell::Int64(value) = cell else { panic!("{cell:?}") };
                *data = value;
                Ok(value % 1000 == 0)
            };
            open.filter_rows(&big, &range, &mut rows, rare).expect("readable");
            let all = |offset, data: &mut i64, cell: Cell<'_>| {
                let row = range.row_number(offset) - 1;
                assert_eq!((cell, *data % 1000), (Cell::Utf8(&format!("text {row}")), 0));
                *data = row.cast_signed();
                Ok(row % 2 == 0)
            };
            open.filter_rows(&text, &range, &mut rows, all).expect("readable");
            found.extend(rows.into_iter().map(|(_, row)| row.cast_unsigned()));
            at = after;
        }
        let wanted = |row: &u64| (row * 1_000_003 % 7_777_777).is_multiple_of(1000) && row.is_multiple_of(2);
        assert_eq!(found, (0..ROWS).filter(wanted).collect::<Vec<_>>(), "ranges of {rows_max}");
    }
    check_inside(&file, &part, [1, 2]);
}

/// Converts a CSV file to a part. Its Parquet file exists as long as the draft.
fn convert(csv: &[u8], rows: u64, layout: Layout) -> (WrittenFile, Reader, Part) {
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

/// The part of a Parquet file.
pub(crate) fn part_of(written: &mut WrittenFile, rows: u64, columns: usize) -> (Reader, Part) {
    let file = written.draft.reader().expect("opened");
    let mut part = Part {
        id: PartId::FIRST,
        rows,
        csv_bytes: 0,
        parquet_bytes: file.bytes(),
        row_groups: written.row_groups,
        footer_bytes: written.footer_bytes,
        columns_count: u32::try_from(columns).expect("few"),
        key_hash: None,
        packed: None,
        source_bytes: 0,
        schema: None,
        checks: None,
    };
    let (draft, is_small) = (&written.draft, part.is_small_parquet());
    let parquet = if is_small { draft.check() } else { draft.tail_checksum() };
    part.checks = Some(Checks { csv: 0, parquet, chunks_in_sums: false });
    (file, part)
}

/// Integers of many kinds: constant, in runs, ascending, of any width, at the edges; with no, some or only nulls.
pub(crate) fn random_integers(random: &mut fastrand::Rng, rows: usize) -> Int64Array {
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

/// A file of integers, with encodings that are chosen from its first rows, or with those of earlier versions.
fn write_integers(store: &Store, batches: &[Int64Array], chosen: bool) -> (WrittenFile, Reader, Part) {
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

/// The rows and the sum of a chunk, read by the library.
fn library_sum(chunk: &Chunk<'_>) -> Result<(u64, Sum), String> {
    let ColumnReader::Int64ColumnReader(reader) = chunk.open().map_err(|error| error.to_string())? else {
        return Err("not of integers".to_owned());
    };
    let mut sum = Sum::default();
    let rows = sum_integers(reader, &mut sum).map_err(|error| error.to_string())?;
    Ok((rows, sum))
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
            let chunk = parquet.chunk(index, 0, "x").expect("a chunk");
            let pages = sum_pages(&chunk, rows_of(group)).expect("readable").expect("pages of our writer");
            assert_eq!(Ok((pages.rows, pages.sum)), library_sum(&chunk), "{what}, {chosen}");
            found.merge(pages.sum);
        }
        assert_eq!(found, total, "{what}, {chosen}");
        check_footer(&parquet, &part, 0, "x");
        check_rows(&parquet, batches, what);
    }
}

/// What is read of the footer for the sum of a column is what the library reads.
fn check_footer(parquet: &ParquetFile<'_>, part: &Part, index: usize, name: &str) {
    let tail = Tail::read(parquet.file, part).expect("a footer");
    let footer = tail.footer(part).expect("its end");
    let column = IntegerColumn::find(footer, index, name).expect("a footer of our writer");
    assert_eq!((column.rows, column.chunks.len()), (part.rows, parquet.row_groups().len()));
    for (row_group, chunk) in column.chunks.iter().enumerate() {
        let expected = parquet.chunk(row_group, index, name).expect("a chunk");
        let rows = rows_of(&parquet.row_groups()[row_group]);
        assert_eq!((chunk.start, chunk.end, chunk.rows), (expected.start, expected.end, rows));
        if parquet.whole.is_none() {
            let checksums = parquet.chunk_checksums(row_group, index).expect("checksums");
            assert_eq!(column.checksums(chunk), Some(checksums));
        }
    }
    // A chunk has the name of its column, so without a row group no name is wrong.
    assert_eq!(IntegerColumn::find(footer, index, "other").is_none(), !column.chunks.is_empty());
    assert_eq!(IntegerColumn::find(footer, 100, name), None);
}

/// Any bytes are refused or read; a footer that is cut is refused.
#[test]
fn damaged_footers_are_refused() {
    let mut csv = String::from("x,text,big\n");
    (0..9000_u64).for_each(|row| csv += &format!("{row},text {row},{}\n", row * 1_000_003 % 7_777_777));
    let (_written, file, part) =
        convert(csv.as_bytes(), 9000, Layout { row_group_bytes: 1, page_bytes: 4096, spill: false });
    let tail = Tail::read(&file, &part).expect("a footer");
    let footer = tail.footer(&part).expect("its end");
    assert_eq!(IntegerColumn::find(footer, 1, "text"), None, "not of integers");
    let intact = IntegerColumn::find(footer, 2, "big").expect("as our writer writes it");
    for end in 0..footer.len() {
        assert_eq!(IntegerColumn::find(&footer[..end], 2, "big"), None, "cut at {end}");
    }
    let (mut random, mut same) = (fastrand::Rng::with_seed(1), 0);
    for _ in 0..20_000 {
        let mut damaged = footer.to_vec();
        let at = random.usize(..damaged.len());
        damaged[at] = random.u8(..);
        same += usize::from(IntegerColumn::find(&damaged, 2, "big").as_ref() == Some(&intact));
    }
    assert!((1000..19_000).contains(&same), "most of a footer is about other columns, but not all: {same}");
}

/// Reads all rows in pieces, as numbers and as codes: some are passed over, and of some only a few rows are read.
fn check_rows(parquet: &ParquetFile<'_>, batches: &[Int64Array], what: &str) {
    let mut values = batches.iter().flatten();
    let mut random = fastrand::Rng::with_seed(7);
    for (index, group) in parquet.row_groups().iter().enumerate() {
        let chunk = parquet.chunk(index, 0, "x").expect("a chunk");
        let open = "it can be read";
        let mut integers = Numbers::<i64>::open(&chunk, ColumnType::Int64).expect(open).expect("integers");
        let mut doubles = Numbers::<f64>::open(&chunk, ColumnType::Int64).expect(open).expect("doubles");
        let mut texts = TextCodes::open(&chunk, ColumnType::Int64).expect(open);
        let (mut integers_read, mut doubles_read, mut codes) = (Vec::new(), Vec::new(), Vec::new());
        let mut left = usize::try_from(rows_of(group)).expect("few");
        while left > 0 {
            let count = random.usize(1..=left.min(6000));
            left -= count;
            let here: Vec<_> = values.by_ref().take(count).collect();
            let wanted_one_in = [1, 2, 1000][random.usize(..3)];
            let wanted: Vec<u32> = (0..).take(count).filter(|_| random.usize(..wanted_one_in) == 0).collect();
            let expected: Vec<_> = match random.u8(..3) {
                0 => {
                    integers.skip(count).expect(open);
                    doubles.skip(count).expect(open);
                    texts.iter_mut().for_each(|texts| texts.skip(count).expect(open));
                    continue;
                }
                1 => {
                    integers.read(count, &mut integers_read).expect(open);
                    doubles.read(count, &mut doubles_read).expect(open);
                    texts.iter_mut().for_each(|texts| texts.read(count, &mut codes).expect(open));
                    here
                }
                _ => {
                    integers.read_some(count, &wanted, &mut integers_read).expect(open);
                    doubles.read_some(count, &wanted, &mut doubles_read).expect(open);
                    texts.iter_mut().for_each(|texts| texts.read_some(count, &wanted, &mut codes).expect(open));
                    wanted.iter().map(|&row| here[row as usize]).collect()
                }
            };
            let found = integers_read.iter().zip(&doubles_read).map(|(&integer, &double)| {
                assert!(double.is_nan() || double.to_bits() == (integer as f64).to_bits(), "{what}");
                (!double.is_nan()).then_some(integer)
            });
            assert_eq!(found.collect::<Vec<_>>(), expected, "{what}");
            assert!(
                integers_read.iter().zip(&expected).all(|(&integer, value)| integer == value.unwrap_or(0)),
                "{what}"
            );
            if let Some(texts) = &texts {
                let text = |&code: &u32| String::from_utf8_lossy(texts.texts().text(code)).into_owned();
                let shown = |value: &Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
                let found: Vec<_> = codes.iter().map(text).collect();
                assert_eq!(found, expected.iter().map(shown).collect::<Vec<_>>(), "{what}");
            }
        }
        assert!(integers.read(1, &mut integers_read).is_err(), "{what}: there is no other row");
    }
}

/// The sum of an integer column, all of whose pages must be summed without the library.
pub(crate) fn sum_of_pages(file: &Reader, part: &Part, column_index: usize, name: &str) -> Sum {
    let parquet = ParquetFile::open(file, part).expect("a footer");
    let mut sum = Sum::default();
    for (row_group, group) in parquet.row_groups().iter().enumerate() {
        let chunk = parquet.chunk(row_group, column_index, name).expect("a chunk");
        let pages = sum_pages(&chunk, rows_of(group)).expect("readable").expect("pages that are known");
        assert_eq!(pages.rows, rows_of(group));
        sum.merge(pages.sum);
    }
    sum
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
                random_integers(&mut random, rows)
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
fn a_damaged_chunk_is_summed_as_the_library_reads_it_or_not_at_all() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Store::open(folder.path(), Durability::None).expect("a data folder");
    let (mut same, mut refused) = (0, 0);
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let values = random_integers(&mut random, 1500);
        let (_written, file, part) = write_integers(&store, &[values], seed % 2 == 0);
        let intact = ParquetFile::open(&file, &part).expect("a footer");
        let rows = rows_of(&intact.row_groups()[0]);
        let (start, bytes) = intact.row_groups()[0].column(0).byte_range();
        let [start, bytes] = [start, bytes].map(|value| usize::try_from(value).expect("small"));
        let good = file.block(0, usize::try_from(file.bytes()).expect("small")).expect("readable");
        for _ in 0..100 {
            let mut bad = good.clone();
            for _ in 0..random.usize(1..4) {
                // The header is at the front; most other bytes are values.
                let among = if random.bool() { bytes } else { bytes.min(80) };
                let at = random.usize(..among);
                bad[start + at] = if random.bool() { random.u8(..) } else { bad[start + at] ^ 1 << random.u8(..8) };
            }
            // Checksums would reject these bytes; the decoder must not rely on that.
            let footer = decode_footer(&bad, &part).expect("a footer");
            let parquet = ParquetFile { file: &file, footer, whole: Some(bad.into()), listed_from: None };
            let chunk = parquet.chunk(0, 0, "x").expect("a chunk");
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
fn a_file_that_cannot_be_read_is_not_damaged() {
    let values = [random_integers(&mut fastrand::Rng::with_seed(1), 70_000)];
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Store::open(folder.path(), Durability::None).expect("a data folder");
    let (_written, file, part) = write_integers(&store, &values, true);
    let unreadable = Reader::unreadable(Format::Parquet, file.bytes());
    let is_io = |error: Error| matches!(&error, Error::Io { what, .. } if what == "part 1, parquet");
    assert!(ParquetFile::open(&unreadable, &part).err().is_some_and(is_io), "the footer");
    // Reading fails only after the footer.
    let parquet = ParquetFile { file: &unreadable, ..ParquetFile::open(&file, &part).expect("a footer") };
    let chunk = parquet.chunk(0, 0, "x").expect("a chunk");
    assert!(sum_pages(&chunk, rows_of(&parquet.row_groups()[0])).err().is_some_and(is_io), "the pages");
    assert!(chunk.open().err().is_some_and(is_io), "as the library reads it");
}

#[test]
fn ranges_of_long_cells_are_short_and_the_same_for_all_columns() {
    // One row group. Its first cells are too long for one task; the others are one page.
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
    let (mut at, mut found, mut ranges) = (Position::default(), 0, 0);
    while let Some((range, after)) = open.next_rows(at, &[&texts, &numbers], 1000).expect("readable") {
        assert!(range.bytes() <= TASK_BYTES as u64, "{range:?}");
        let row_of = |offset| usize::try_from(range.row_number(offset)).expect("few") - 1;
        let count = u32::try_from(range.rows_count()).expect("few");
        let mut rows: Vec<(u32, ())> = (0..count).map(|offset| (offset, ())).collect();
        let check_text = |offset, (): &mut (), cell: Cell<'_>| {
            assert!(cell == Cell::Utf8(&text(row_of(offset))), "row {}", row_of(offset));
            Ok(row_of(offset) % 2 == 0)
        };
        open.filter_rows(&texts, &range, &mut rows, check_text).expect("readable");
        let check_number = |offset, (): &mut (), cell: Cell<'_>| {
            let row = row_of(offset);
            assert_eq!(cell, if row % 3 == 0 { Cell::Empty } else { Cell::Int64(row as i64) });
            Ok(true)
        };
        open.filter_rows(&numbers, &range, &mut rows, check_number).expect("readable");
        (at, found, ranges) = (after, found + rows.len(), ranges + 1);
    }
    assert_eq!(found, ROWS / 2);
    assert!(ranges > 1, "the test wants ranges that begin within a row group");
}

/// Checks that only these columns and the footer were read since the last check.
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
