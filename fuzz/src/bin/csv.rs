//! Reads a CSV file with each fast path and with the simple code beside it, and compares sums, errors and Parquet.
//!
//! The last two bytes of an input choose a column and where the file is cut into blocks. The bytes before them are the file.
#![no_main]

use std::sync::{Arc, LazyLock};

use arrow::{array::AsArray, datatypes::Int64Type};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use tally::{
    engine::{
        Durability, Store,
        csv::{
            infer::Typer,
            rows::{Resume, Row, Rows, Wanted},
            scanner::Scanner,
        },
        ingest::integers::Integers,
        parquet::{
            hybrid::SLACK_BYTES,
            integer_writer::IntegersError,
            page_sum::{PageStatus, PageSum},
            writer::Converted,
        },
        values::{parse, sum::Sum},
    },
    error::{Error, csv::CsvError},
    limits::CsvLimits,
    model::schema::{Column, ColumnType},
};
use tempfile::TempDir;

static STORE: LazyLock<(Arc<Store>, TempDir)> = LazyLock::new(|| {
    // In memory if there is such a folder, because nearly every input creates a file.
    let folder = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a folder");
    let store = Store::open(folder.path(), Durability::None).expect("a data folder");
    (Arc::new(store), folder)
});

/// The cells and types of a file, by the code that accepts every file.
#[derive(Default)]
struct Careful {
    typer: Typer,
    columns_count: usize,
    cells: Vec<Vec<Vec<u8>>>,
}

impl Rows for Careful {
    type Error = Error;

    fn header(&mut self, names: &[String]) -> Result<(), Error> {
        self.columns_count = names.len();
        self.typer.header(names)
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
        self.cells.push(row.cells().map(<[u8]>::to_vec).collect());
        self.typer.row(row)
    }
}

/// The sum of a column, with the fast path if `FAST`.
#[derive(Default)]
struct Summing<const FAST: bool>(Sum);

impl<const FAST: bool> Rows for Summing<FAST> {
    type Error = CsvError;

    const TAKES_SUMS: bool = FAST;

    fn header(&mut self, _names: &[String]) -> Result<(), CsvError> {
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
        let (len, window) = row.first_cell().expect("the wanted cell");
        let value = parse::summand(len, window).map_err(|problem| CsvError::Summand {
            row: row.number.into(),
            column: String::new(),
            cell: String::from_utf8_lossy(&window[..len]).into_owned(),
            problem,
        })?;
        self.0.add(value.unwrap_or(0));
        Ok(())
    }

    fn sum(&mut self, sum: Sum) {
        self.0.merge(sum);
    }
}

fn sum<const FAST: bool>(column: usize, blocks: &[&[u8]]) -> Result<(i128, u64), String> {
    let mut rows = Summing::<FAST>::default();
    let mut scanner = Scanner::new(CsvLimits::default(), Wanted::Column(column), Resume::default());
    let result = blocks.iter().try_for_each(|block| scanner.feed(block, &mut rows));
    result.and_then(|()| scanner.finish(&mut rows)).map_err(|error| error.to_string())?;
    Ok((rows.0.exact(), scanner.into_resume().rows))
}

/// Converts a file with the path for integers; `None` if that path does not accept it.
fn convert_integers(blocks: &[&[u8]]) -> Option<Converted> {
    let mut integers = unless_unsuited(Integers::begin(&STORE.0, CsvLimits::default(), blocks[0]))?;
    for block in &blocks[1..] {
        unless_unsuited(integers.push(block))?;
    }
    unless_unsuited(integers.finish())
}

fn unless_unsuited<T>(result: Result<T, IntegersError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(IntegersError::Unsuited) => None,
        Err(IntegersError::Failed(error)) => panic!("{error}"),
    }
}

fn check_parquet(mut converted: Converted, columns: &[Column], cells: &[Vec<Vec<u8>>]) {
    assert!(columns.iter().all(|column| column.column_type == ColumnType::Int64), "taken, and not of integers");
    assert_eq!(converted.columns, columns);
    assert_eq!(converted.rows, cells.len() as u64);
    let expected: Vec<Vec<Option<i64>>> =
        cells.iter().map(|row| row.iter().map(|cell| parse::parse_int64(cell)).collect()).collect();
    let file = converted.parquet.draft.reader().and_then(|file| file.block(0, usize::MAX).map(Bytes::from));
    let file = file.expect("readable");

    let mut found = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file.clone()).expect("a footer").build().expect("a reader") {
        let batch = batch.expect("rows");
        let columns: Vec<_> = batch.columns().iter().map(|column| column.as_primitive::<Int64Type>()).collect();
        found.extend(
            (0..batch.num_rows())
                .map(|row| columns.iter().map(|column| column.iter().nth(row).flatten()).collect::<Vec<_>>()),
        );
    }
    assert_eq!(found, expected);

    let footer = ArrowReaderMetadata::load(&file, Default::default()).expect("a footer");
    for (column, name) in columns.iter().enumerate() {
        let mut total = Sum::default();
        for group in footer.metadata().row_groups() {
            let (start, length) = group.column(column).byte_range();
            let mut bytes = file.slice(start as usize..(start + length) as usize).to_vec();
            bytes.extend([0xa5; SLACK_BYTES]);
            let mut pages = PageSum::new(group.num_rows() as u64);
            let mut at = 0;
            while at + SLACK_BYTES < bytes.len() {
                match pages.add_page(&bytes[at..]) {
                    Ok(PageStatus::Added(taken)) => at += taken,
                    other => panic!("{other:?} of a page that our writer wrote"),
                }
            }
            total.merge(pages.sum);
        }
        let expected: i128 = expected.iter().filter_map(|row| row[column]).map(i128::from).sum();
        assert_eq!(total.exact(), expected, "column {:?}", name.name);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((file, &[choice, cut])) = input.split_last_chunk::<2>() else { return };
    let (left, right) = file.split_at(usize::from(cut) * 17 % (file.len() + 1));

    let mut careful = Careful::default();
    let mut scanner = Scanner::new(CsvLimits::default(), Wanted::All, Resume::default());
    let read = scanner.feed(file, &mut careful).and_then(|()| scanner.finish(&mut careful));

    let column = usize::from(choice) % careful.columns_count.max(1);
    let expected = sum::<false>(column, &[file]);
    assert_eq!(sum::<true>(column, &[file]), expected);
    assert_eq!(sum::<true>(column, &[left, right]), expected);

    for blocks in [&[file][..], &[left, right]] {
        if let Some(converted) = convert_integers(blocks) {
            read.as_ref().expect("taken, and refused by the careful path");
            let mut typer = Typer::default();
            let mut scanner = Scanner::new(CsvLimits::default(), Wanted::All, Resume::default());
            scanner.feed(file, &mut typer).and_then(|()| scanner.finish(&mut typer)).expect("read before");
            check_parquet(converted, &typer.into_columns(), &careful.cells);
        }
    }
});
