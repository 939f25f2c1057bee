//! Compares the path for integers with the general conversion, on hostile files that are cut anywhere.

use std::{fs::File, sync::Arc};

use arrow::{array::Int64Array, datatypes::Int64Type};
use bytes::Bytes;
use parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, file::statistics::Statistics};

use super::integers::Integers;
use crate::{
    engine::{
        csv::{
            infer::Typer,
            rows::{Resume, Row, Rows, Wanted},
            scanner::Scanner,
        },
        kernels::{
            self, LANES,
            integer_table::Number as _,
            integer_table::{CELLS_MAX, Cells, ParseEnd, Table, parse_plain},
        },
        parquet::{
            integer_writer::{IntegerWriter, IntegersError},
            tests::{part_of, random_integers, sum_of_pages},
            writer::Converted,
        },
        storage::Store,
        values::{parse, sum::Sum},
    },
    error::Error,
    limits::{CsvLimits, KIB, MIB},
    model::{
        durability::Durability,
        schema::{Column, ColumnType},
    },
};
use arrow::array::{Array as _, AsArray as _};

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
fn parquet_has_what_was_sent() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"));
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..600 {
        let (cells, csv) = random_table(&mut random);
        let mut typer = Typer::default();
        let mut scanner = Scanner::new(CsvLimits::default(), Wanted::All, Resume::default());
        scanner.feed(&csv, &mut typer).and_then(|()| scanner.finish(&mut typer)).expect("a table");
        // The first block has at least the header and the first row.
        let row_end = |from: usize| {
            csv[from.min(csv.len())..].iter().position(|byte| *byte < b' ').map_or(csv.len(), |at| from + at + 1)
        };
        let first = row_end(row_end(row_end(0) + 1) + 1).min(csv.len());
        let mut at = random.usize(first..=csv.len());
        let mut integers = match Integers::begin(&store, CsvLimits::default(), &csv[..at]) {
            Ok(integers) => integers,
            // The only row is incomplete.
            Err(IntegersError::Unsuited) if cells.len() == 1 => continue,
            Err(stop) => panic!("round {round}: {stop:?}"),
        };
        while at < csv.len() {
            let end = csv.len().min(at + 1 + random.usize(..200));
            integers.push(&csv[at..end]).expect("integers");
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

/// The columns that the general path finds in a file and their values; `None` unless all are integers.
fn by_general_path(limits: CsvLimits, csv: &[u8]) -> Option<(Vec<Column>, Content)> {
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
    let values = |row: &Vec<Vec<u8>>| row.iter().map(|cell| parse::parse_int64(cell)).collect();
    Some((columns, rows.iter().map(values).collect()))
}

/// The conversion by the path for integers, block by block; `None` if it does not accept the file.
fn by_integers_path(store: &Store, limits: CsvLimits, blocks: &[&[u8]]) -> Option<Converted> {
    let mut integers = accepted(Integers::begin(store, limits, blocks[0]))?;
    for block in &blocks[1..] {
        accepted(integers.push(block))?;
    }
    accepted(integers.finish())
}

fn accepted<T>(result: Result<T, IntegersError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(IntegersError::Unsuited) => None,
        Err(IntegersError::Failed(error)) => panic!("{error}"),
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn hostile_files_are_converted_as_on_the_general_path() {
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
            // Often near the header, where the two paths differ most.
            let among = if random.bool() { csv.len() } else { csv.len().min(12) };
            let at = random.usize(0..=among);
            let end = csv.len().min(at + random.usize(0..3));
            csv.splice(at..end, HOSTILE[random.usize(..HOSTILE.len())].iter().copied());
        }
        let limits = match random.usize(..4) {
            0 => {
                CsvLimits { columns_max: 2, cell_bytes_max: random.usize(15..25), row_bytes_max: random.usize(20..90) }
            }
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
        let general = by_general_path(limits, &csv);
        let what = || format!("seed {seed}: {:?}", String::from_utf8_lossy(&csv));
        match (by_integers_path(&store, limits, &blocks), general) {
            (Some(mut converted), Some((columns, cells))) => {
                assert_eq!(converted.rows, cells.len() as u64, "{}", what());
                assert_eq!(converted.columns, columns, "{}", what());
                let file = converted.parquet.draft.reader().expect("readable");
                let bytes = file.block(0, usize::MAX).expect("readable");
                assert!(read(Bytes::from(bytes)) == cells, "{}", what());
                taken += 1;
            }
            (Some(_), None) => panic!("accepted, but not a file of integers: {}", what()),
            (None, Some(_)) => given_up += 1,
            (None, None) => refused += 1,
        }
    }
    let all = [taken, given_up, refused];
    assert!(all.iter().all(|count| *count > 300), "the test wants all three: {all:?}");
}

#[test]
fn vectors_parse_what_scalar_code_parses() {
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
        // A full table is emptied, until no row is left or a row has a cell that is not an integer.
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
            // A byte that is not ASCII is handled together with the bytes before it, which depend on where parsing begins.
            if let (None, Some(ParseEnd::Done(bytes))) = (&found, &expected)
                && !rest[*bytes..].is_ascii()
            {
                break;
            }
            assert_eq!(found.map(ParseEnd::Done), expected, "{}", what());
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
    assert!(!kernels::serves(1) || all.iter().all(|count| *count > 300), "the test wants all three: {all:?}");
}

#[test]
fn long_cells_among_short_ones_are_kept() {
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
            // An empty line is no row.
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
                integers.push(block).expect("integers");
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
    let mut output = IntegerWriter::new(&store, vec!["a".to_owned()]).expect("a draft");
    let mut random = fastrand::Rng::with_seed(1);
    for (rows, pieces) in [(10, 1), (CELLS_MAX, 2)] {
        let mut column: Vec<i32> = (0..rows).map(|_| random.i32(-9_999_999..10_000_000)).collect();
        output.columns[0].page(&mut column, 1, 0, &[]).expect("a page");
        assert_eq!(output.columns[0].pages.len(), pieces);
        output.columns[0].pages.clear();
    }
}

#[test]
fn invalid_cells_are_rejected_at_any_offset() {
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
    let mut converted = by_integers_path(&store, CsvLimits::default(), &blocks).expect("integers");
    assert!(converted.parquet.row_groups > 1);
    let file = converted.parquet.draft.reader().expect("readable");
    assert!(read(Bytes::from(file.block(0, usize::MAX).expect("readable"))) == cells);
}

#[test]
fn files_that_are_not_of_integers_are_not_accepted() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(Store::open(folder.path(), Durability::None).expect("a data folder"));
    let of = |csv: &[u8]| Integers::of_file(&store, CsvLimits::default(), csv);
    for csv in ["a,b\n1,2\n-3,\n,9223372036854775807\n", "\n\na\n1\n", "a\r1\r2\n3\n", "\"a\nb\"\n1\n"] {
        assert!(of(csv.as_bytes()).is_ok(), "{csv:?}");
    }
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
            assert!(matches!(of(&csv), Err(IntegersError::Unsuited)), "{}", String::from_utf8_lossy(&csv));
        }
    }
    for csv in ["", "a", "a\n", "a,a\n1,1\n", "a,b\n1\n", "a,b\n,1\n", "a\r\"\n1\n2\n"] {
        assert!(matches!(of(csv.as_bytes()), Err(IntegersError::Unsuited)), "{csv:?}");
    }
}

/// `parquet/page_sum.rs` must support these pages.
#[test]
fn pages_of_integer_files_are_summed_without_the_library() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Store::open(folder.path(), Durability::None).expect("a data folder");
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let rows = [1, 64, 65, 256, 257, 5000, 60_000][random.usize(..7)];
        let columns = [random_integers(&mut random, rows), random_integers(&mut random, rows)];
        let mut csv = b"a,b\n0,0\n".to_vec(); // a column without a value would be text
        for row in 0..rows {
            let text = |column: &Int64Array| {
                if column.is_null(row) { String::new() } else { column.value(row).to_string() }
            };
            csv.extend_from_slice(format!("{},{}\n", text(&columns[0]), text(&columns[1])).as_bytes());
        }
        let mut converted = Integers::of_file(&store, CsvLimits::default(), &csv).expect("integers");
        let (file, part) = part_of(&mut converted.parquet, converted.rows, 2);
        for (index, values) in columns.iter().enumerate() {
            let total = values.iter().flatten().fold(Sum::default(), |mut sum, value| {
                sum.add(value);
                sum
            });
            assert_eq!(sum_of_pages(&file, &part, index, ["a", "b"][index]), total, "seed {seed}");
        }
    }
}
