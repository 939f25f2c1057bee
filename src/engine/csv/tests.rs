//! Unit tests of the scanner, with blocks that end anywhere.

use super::{
    rows::{Resume, Row, Rows, Wanted},
    scanner::Scanner,
};
use crate::{engine::values::sum::Sum, error::csv::CsvError, limits::CsvLimits};

/// Rows as text, with the header as row 0.
#[derive(Default)]
struct Collected(Vec<Vec<String>>);

impl Rows for Collected {
    type Error = CsvError;

    fn header(&mut self, names: &[String]) -> Result<(), CsvError> {
        self.0.push(names.to_vec());
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
        assert_eq!(row.number, self.0.len() as u64);
        self.0.push(row.cells().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect());
        Ok(())
    }
}

const SMALL: CsvLimits = CsvLimits { columns_max: 5, cell_bytes_max: 80, row_bytes_max: 200 };

fn scan(limits: CsvLimits, blocks: &[&[u8]]) -> Result<Vec<Vec<String>>, String> {
    let mut rows = Collected::default();
    let mut scanner = Scanner::new(limits, Wanted::All, Resume::default());
    let result = blocks.iter().try_for_each(|block| scanner.feed(block, &mut rows));
    match result.and_then(|()| scanner.finish(&mut rows)) {
        Ok(()) => Ok(rows.0),
        Err(error) => Err(error.to_string()),
    }
}

/// Scans the file as a whole, byte by byte, and in two blocks with every possible border.
fn check(csv: &str, expected: Result<&[&[&str]], &str>) {
    let csv = csv.as_bytes();
    let expected = expected
        .map(|rows| rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect())
        .map_err(str::to_owned);
    let shown = String::from_utf8_lossy(csv);
    assert_eq!(scan(SMALL, &[csv]), expected, "whole: {shown:?}");
    let bytes: Vec<&[u8]> = csv.chunks(1).collect();
    assert_eq!(scan(SMALL, &bytes), expected, "byte by byte: {shown:?}");
    for cut in 0..=csv.len() {
        let (left, right) = csv.split_at(cut);
        assert_eq!(scan(SMALL, &[left, right]), expected, "cut at {cut}: {shown:?}");
    }
}

#[test]
fn rows_end_as_they_come() {
    let rows: &[&[&str]] = &[&["x", "y"], &["1", "2"], &["3", "4"]];
    for csv in [
        "x,y\n1,2\n3,4\n",
        "x,y\n1,2\n3,4",
        "x,y\r\n1,2\r\n3,4\r\n",
        "x,y\r1,2\r3,4\r",
        "x,y\r1,2\n3,4\r\n",
        "\n\nx,y\n\n\r\n1,2\n\r\r3,4\n\n",
        "\u{feff}x,y\n1,2\n3,4\n",
        "\u{feff}\"x\",y\n\"1\",2\n3,\"4\"",
        "\u{feff}\nx,y\n1,2\n3,4\n",
    ] {
        check(csv, Ok(rows));
    }
}

#[test]
fn quotes_hold_anything() {
    check("a,b\n\"1,2\",\"3\n4\"\n", Ok(&[&["a", "b"], &["1,2", "3\n4"]]));
    check("a,b\n\"say \"\"hi\"\"\",\"\"\n\"\"\"\",x", Ok(&[&["a", "b"], &["say \"hi\"", ""], &["\"", "x"]]));
    check("\"a\r\n\",\"b,\"\n1,2", Ok(&[&["a\r\n", "b,"], &["1", "2"]]));
    check("a\n\"\"\nx\n", Ok(&[&["a"], &[""], &["x"]]));
    // A quote that does not open a cell is text.
    check("a,b\n5\" pipe,x\"y\"\n", Ok(&[&["a", "b"], &["5\" pipe", "x\"y\""]]));
    check("a,b\n \"x\",2\n", Ok(&[&["a", "b"], &[" \"x\"", "2"]]));
}

#[test]
fn empty_things() {
    check("", Err("the file has no header row"));
    check("\n\r\n\n", Err("the file has no header row"));
    check("\u{feff}", Err("the file has no header row"));
    check("x", Ok(&[&["x"]]));
    check(",\n,\n", Ok(&[&["", ""], &["", ""]])); // whether the columns have values, the receiver of the rows checks
    check(",x\n,\n", Ok(&[&["", "x"], &["", ""]]));
    check("\"\"\n1\n", Ok(&[&[""], &["1"]]));
}

#[test]
fn what_is_refused_says_where() {
    check("a,b\n1,2\n3\n", Err("row 2 has 1 cell, the header has 2"));
    check("a,b\n1,2,3", Err("row 1 has 3 cells, the header has 2"));
    check("a,b\n\"1\",2,3", Err("row 1 has 3 cells, the header has 2"));
    check("a,b\n1,\"2\n3,4\n", Err("row 1, column \"b\": a quoted cell is not closed"));
    check("a,b\n1,\"2\n3\"\n", Ok(&[&["a", "b"], &["1", "2\n3"]]));
    check("\"a,b\n1,2\n", Err("header, column 1: a quoted cell is not closed"));
    let after_quote = "text after a closing quote: a quote inside a quoted cell is written twice";
    check("a,b\n1,2\n\"1\"x,2\n", Err(&format!("row 2, column \"a\": {after_quote}")));
    check("a,b\n1,2,\"3\" \n", Err(&format!("row 1, column 3: {after_quote}")));
    check("a,\"b\"c\n", Err(&format!("header, column 2: {after_quote}")));
    check(",b\n\"1\"x,2\n", Err(&format!("row 1, column 1: {after_quote}")));
    check("a,b\0\n", Err("header, column 2: a NUL byte"));
    check("a,b,a\n", Err("the header names two columns \"a\""));
    check("a,b,c,d,e,f\n", Err("the header has more than 5 columns"));
    check("a,b,c,d,e\n1,2,3,4,5", Ok(&[&["a", "b", "c", "d", "e"], &["1", "2", "3", "4", "5"]]));
}

#[test]
fn extra_cells_that_are_empty_are_named() {
    let empty = ": its extra cells are empty; upload with --drop-trailing-empty";
    for (row, cells) in
        [("1,2,", 3), ("1,2,,", 4), ("1,2,\"\"", 3), ("1,2,\"\",,\"\"", 5), (",,", 3), ("1,\"x,\"\"\",", 3)]
    {
        let expected = format!("row 1 has {cells} cells, the header has 2{empty}");
        check(&format!("a,b\n{row}\n3,4\n"), Err(&expected));
        check(&format!("a,b\n{row}"), Err(&expected));
    }
    for (row, cells) in [("1,2,3,", 4), ("1,2,,4", 4), ("1,2, ", 3), ("1,2,\" \"", 3), ("1,2,\",\"\"\"", 3)] {
        check(&format!("a,b\n{row}\n"), Err(&format!("row 1 has {cells} cells, the header has 2")));
    }
}

#[test]
fn limits_hold_to_the_byte() {
    let cell = |len| "c".repeat(len);
    check(&format!("a,b\n{},2\n", cell(80)), Ok(&[&["a", "b"], &[&cell(80), "2"]]));
    check(&format!("a,b\n1,{}", cell(81)), Err("row 1, column \"b\": the cell is longer than 80 bytes"));
    check(&format!("a,b\n1,\"{}\"\"\"", cell(79)), Ok(&[&["a", "b"], &["1", &(cell(79) + "\"")]]));
    check(&format!("a,b\n1,\"{}\"\"\"", cell(80)), Err("row 1, column \"b\": the cell is longer than 80 bytes"));
    // A row with too many cells is reported as such, even if the extra cell is too long.
    let beyond = format!("a,b\n1,2,{}\n", cell(81));
    check(&beyond, Err("row 1 has 3 cells, the header has 2"));
    let row = |last| format!("a,b,c\n{},{},{}\n", cell(80), cell(80), cell(last));
    check(&row(38), Ok(&[&["a", "b", "c"], &[&cell(80), &cell(80), &cell(38)]]));
    check(&row(39), Err("row 1 is longer than 200 bytes; is a quote not closed?"));
    let open = format!("a,b\n1,2\n\"{}", cell(300));
    check(&open, Err("row 2 is longer than 200 bytes; is a quote not closed?"));
    check(&cell(201), Err("the header is longer than 200 bytes"));
}

#[test]
fn invalid_text_in_the_header() {
    let hint = "perhaps Windows-1252: upload with --encoding windows-1252";
    let expected = format!("header, column 2: invalid UTF-8 (byte 0xfc), {hint}");
    assert_eq!(scan(SMALL, &[b"a,M\xfcller\n"]), Err(expected));
}

#[test]
fn one_wanted_column_equals_that_column_of_all() {
    struct One<const FAST: bool>(Vec<String>);
    impl<const FAST: bool> Rows for One<FAST> {
        type Error = CsvError;

        const TAKES_SUMS: bool = FAST;

        fn header(&mut self, _names: &[String]) -> Result<(), CsvError> {
            Ok(())
        }
        fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
            self.0.extend(row.cells().map(|cell| String::from_utf8_lossy(cell).into_owned()));
            Ok(())
        }
        fn sum(&mut self, _sum: Sum) {
            panic!("no cell is an integer");
        }
    }
    fn column<const FAST: bool>(parts: [&[u8]; 2], column: usize) -> Result<Vec<String>, String> {
        let mut one = One::<FAST>(Vec::new());
        let mut scanner = Scanner::new(SMALL, Wanted::Column(column), Resume::default());
        let fed = parts.into_iter().try_for_each(|part| scanner.feed(part, &mut one));
        fed.and_then(|()| scanner.finish(&mut one)).map(|()| one.0).map_err(|error| error.to_string())
    }
    for csv in [
        "a,b,c\nA,\"B,\"\"\",C\nD,E,F\n,,\nG,\"H\n\",I",
        "a,b,c\nA,B,C\nD,\"E,F",
        "a,b,c\nA,B,C\nD,E\"\n",
        "a,b,c\nA,B,C\nD,E\",F,G\n",
        "a,b,c\nA,B,C\nD,\"E\"x,F\nG,H,I\n",
    ] {
        let csv = csv.as_bytes();
        let all = scan(SMALL, &[csv]);
        for (index, cut) in (0..3).flat_map(|index| (0..=csv.len()).map(move |cut| (index, cut))) {
            let parts = csv.split_at(cut).into();
            let expected = all.clone().map(|all| all[1..].iter().map(|row| row[index].clone()).collect());
            assert_eq!(column::<false>(parts, index), expected, "column {index}, cut at {cut}");
            assert_eq!(column::<true>(parts, index), expected, "fast, column {index}, cut at {cut}");
        }
    }
}

/// The sum of a column as in `query/csv_ranges.rs`, with vector code if `FAST`.
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
        let value = crate::engine::values::parse::summand(len, window).map_err(|problem| CsvError::Summand {
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

fn sum<const FAST: bool>(column: usize, blocks: &[&[u8]]) -> Result<(Sum, u64), String> {
    let mut rows = Summing::<FAST>::default();
    let mut scanner = Scanner::new(CsvLimits::default(), Wanted::Column(column), Resume::default());
    let result = blocks.iter().try_for_each(|block| scanner.feed(block, &mut rows));
    result.and_then(|()| scanner.finish(&mut rows)).map_err(|error| error.to_string())?;
    Ok((rows.0, scanner.rows))
}

/// Random hostile files: vector code gives the same sums and errors as reading row by row.
#[test]
fn sums_by_vectors_equal_those_row_by_row() {
    let (mut sums, mut errors) = (0, 0);
    for seed in 0..4000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let columns_count = [1, 2, 3, 5, 16, 17, 40][random.usize(..7)];
        let names: Vec<String> = (0..columns_count).map(|index| format!("c{index}")).collect();
        let mut text = names.join(",").into_bytes();
        let row_end: &[u8] = [&b"\n"[..], b"\r\n", b"\r"][random.usize(..3)];
        let quotes = random.bool();
        let oddness = [0, 0, 1, 30][random.usize(..4)];
        for _ in 0..random.usize(1..60) {
            text.extend_from_slice(row_end);
            for column in 0..columns_count {
                if column > 0 {
                    text.push(b',');
                }
                let number = (random.i64(..) >> random.u32(0..64)).to_string();
                let cell = match random.u32(..1000) {
                    kind if kind < oddness => {
                        ["x", " 7", "+1", "\"", "5\" pipe", "\"1\"2", "1,2", "9223372036854775808", "\"\"\"\""]
                            [random.usize(..9)]
                        .to_owned()
                    }
                    kind if quotes && kind < 200 => format!("\"{number}\""),
                    kind if quotes && kind < 210 => "\"\n\"".to_owned(),
                    kind if kind < 300 => String::new(),
                    _ => number,
                };
                text.extend_from_slice(cell.as_bytes());
            }
        }
        if random.bool() {
            text.extend_from_slice(row_end);
        }
        let column = random.usize(..columns_count);
        let expected = sum::<false>(column, &[&text]);
        let cut = random.usize(..=text.len());
        let (left, right) = text.split_at(cut);
        for blocks in [&[&text[..]][..], &[left, right]] {
            let shown = String::from_utf8_lossy(&text);
            assert_eq!(sum::<true>(column, blocks), expected, "seed {seed}, column {column}, cut {cut}: {shown:?}");
        }
        *(if expected.is_ok() { &mut sums } else { &mut errors }) += 1;
    }
    assert!(sums > 1000 && errors > 500, "{sums} sums, {errors} errors");
}

#[test]
fn a_scan_continues_where_another_stopped() {
    let csv = b"a,b\n1,2\n\"3\n\",4\r\n5,6";
    let whole = scan(SMALL, &[csv]).expect("valid");
    for cut in 0..=csv.len() {
        let mut rows = Collected::default();
        let mut first = Scanner::new(SMALL, Wanted::All, Resume::default());
        first.feed(&csv[..cut], &mut rows).expect("valid");
        let resume = first.into_resume();
        let offset = usize::try_from(resume.offset).expect("small");
        let mut second = Scanner::new(SMALL, Wanted::All, resume);
        second.feed(&csv[offset..], &mut rows).and_then(|()| second.finish(&mut rows)).expect("valid");
        assert_eq!(rows.0, whole, "cut at {cut}");
    }
}
