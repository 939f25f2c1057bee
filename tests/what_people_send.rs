//! Files as people really send them: other separators and formats, names and numbers as other programs write them, and errors
//! that name the line. Each file goes along every path: an upload whole and in pieces, small and large, and a group sum of
//! the file.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

mod common;

use std::io::Write as _;

use common::{DataFolder, TestEngine, upload_cut};
use tally::{
    engine::{
        group_by::{
            group_sum::GroupSum,
            sources::Sources,
            spec::{GroupBy, Plan},
        },
        state::transfers::Origin,
    },
    error::{ColumnPosition, Error},
    model::{format::Format, part::Receipt, schema::ColumnType},
};
use tempfile::{NamedTempFile, TempDir};

const INVALID_UTF8: &str = "perhaps Windows-1252: upload with --encoding windows-1252";

struct Table {
    engine: TestEngine,
    /// Removed after the engine was closed.
    _folder: DataFolder,
}

impl Table {
    async fn new() -> Self {
        let folder = DataFolder::new();
        Self { engine: folder.open().await, _folder: folder }
    }

    /// The error of an upload, which is the same whole, byte by byte, and cut in the middle.
    async fn refusal(&self, csv: &[u8]) -> String {
        let every_byte: Vec<usize> = (1..csv.len().min(300)).collect();
        let whole = upload_cut(&self.engine, csv, &[]).await.expect_err("refused").to_string();
        for cuts in [&[csv.len() / 2][..], &every_byte] {
            assert_eq!(upload_cut(&self.engine, csv, cuts).await.expect_err("refused").to_string(), whole);
        }
        whole
    }

    /// The sum of a column, on which both formats agree.
    async fn sum(&self, column: &str) -> Result<i64, String> {
        let csv = self.engine.column_sum(column, Format::Csv).await;
        let parquet = self.engine.column_sum(column, Format::Parquet).await;
        let [csv, parquet] = [csv, parquet].map(|sum| sum.map(|sum| sum.total).map_err(|error| error.to_string()));
        assert_eq!(csv, parquet, "{column:?}");
        csv
    }

    async fn types(&self, csv: &str) -> Vec<ColumnType> {
        let receipt: Receipt = self.engine.upload_valid(csv).await;
        receipt.columns.iter().map(|column| column.column_type).collect()
    }
}

/// The group sum of a file, or its error, which does not depend on how the file is split.
async fn group_sum(csv: &[u8], by: &[&str], sum: &[&str]) -> Result<String, String> {
    let folder = TempDir::new().expect("a folder");
    let mut file = NamedTempFile::new_in(folder.path()).expect("a file");
    file.write_all(csv).expect("written");
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let mut results = Vec::new();
    for (partitions_max, task_bytes) in [(1, 8 << 20), (5, 1000), (3, 1)] {
        let task_bytes = if csv.len() > 10_000 { task_bytes.max(100_000) } else { task_bytes };
        let plan = Plan {
            bytes_max: 1 << 20,
            partitions_max,
            partition_bytes_min: 16,
            task_bytes,
            columnar_bytes_min: u64::MAX,
            range_bytes: 1 << 20,
        };
        let standalone = GroupSum::standalone(folder.path(), plan).expect("threads");
        let spec = GroupBy::new(names(by), names(sum)).expect("columns");
        let header = [spec.by(), spec.sum()].concat();
        let sources = Sources::file(file.path()).expect("opened");
        let result = match standalone.run(sources, spec, None, |_bytes| ()).await {
            Ok(groups) => groups.write_csv(&header, Vec::new()).await,
            Err(error) => Err(error),
        };
        standalone.workers.close();
        results.push(result.map(|csv| String::from_utf8(csv).expect("text")).map_err(|error| error.to_string()));
    }
    assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
    results.swap_remove(0)
}

#[tokio::test]
async fn foreign_files_are_refused_with_a_hint() {
    let table = Table::new().await;
    let utf16 = |text: &str, big_endian: bool| -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    let utf32 = |text: &str| -> Vec<u8> { text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect() };
    let long_header = (0..3000).map(|index| format!("c{index}")).collect::<Vec<_>>().join(";");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"k;x\na;1\nb;2\n".to_vec(), "the separator looks like \";\": upload with --delimiter \";\""),
        (b"k\tx\r\na\t1\r\n".to_vec(), "the separator looks like a tab: upload with --delimiter tab"),
        (b"k|x\na|1".to_vec(), "the separator looks like \"|\": upload with --delimiter \"|\""),
        (b"\xef\xbb\xbf\n\"k\";\"x\"\n\n\"a;\n\";\"1,5\"\n".to_vec(), "the separator looks like \";\""),
        (format!("{long_header}\n{long_header}\n").into_bytes(), "the separator looks like \";\""),
        (b"sep=;\nk;x\na;1\n".to_vec(), "the first line is \"sep=\" and a separator"),
        (b"\xef\xbb\xbfsep=,\r\nk,x\r\na,1\r\n".to_vec(), "only Excel understands: remove it"),
        (b"\"sep=;\"\r\nk;x\r\na;1\r\n".to_vec(), "the first line is \"sep=\" and a separator"),
        (b"SEP=:\nk:x\na:1\n".to_vec(), "only Excel understands: remove it"),
        (b"k;\"Price, EUR\";x\na;\"2,5\";1\n".to_vec(), "the separator looks like \";\""),
        (b"k;Price, EUR;x\na;2,50;1\nb;3,00;2\n".to_vec(), "the separator looks like \";\""),
        (b"k;x\na;1\nremark\n".to_vec(), "the separator looks like \";\""),
        (b"k|x\nremark\na|1\nb|2".to_vec(), "the separator looks like \"|\""),
        (
            [b"Sales\n".as_slice(), &b"k;x\na;1\n".repeat(6)].concat(),
            "the first line looks like a title above the header: remove it, and",
        ),
        (
            [b"Sales,\nx,k\n".as_slice(), &b"1,a\n".repeat(10)].concat(),
            "the first line looks like a title above the header: remove it, or",
        ),
        (
            [b"Sales,\nk,x\n".as_slice(), &b"a,1\n".repeat(10)].concat(),
            "the first line looks like a title above the header: remove it, or",
        ),
        (b"#,x\n1,2\n".to_vec(), "the header begins with \"#\""),
        (b"# made by x\nk,x\na,1\n".to_vec(), "the header begins with \"#\""),
        (b"#k,x\na,1\n".to_vec(), "the header begins with \"#\""),
        ("\u{feff}\u{feff}k,x\na,1\n".into(), "the file begins with two byte order marks: remove one"),
        (b"<!DOCTYPE html>\n<html></html>\n".to_vec(), "the file is HTML"),
        (b"\n <HTML lang=en>\n".to_vec(), "the file is HTML"),
        (b"<?xml version=\"1.0\"?>\n<a/>\n".to_vec(), "the file is XML"),
        (b"%PDF-1.7\n%\xe2\xe3\n".to_vec(), "the file is a PDF document"),
        (b"[{\"k\":\"a\",\"x\":1}]\n".to_vec(), "the file is JSON"),
        (b"{ \"k\": 1 }\n{\"k\": 2}\n".to_vec(), "the file is JSON"),
        (b"PK\x03\x04\x14\0".to_vec(), "the file is a ZIP archive or an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0".to_vec(), "the file is an Excel workbook"),
        (b"\x1f\x8b\x08\0".to_vec(), "the file is compressed with gzip: upload with --decompress gzip"),
        (b"\x28\xb5\x2f\xfd\x04".to_vec(), "the file is compressed with zstd: upload with --decompress zstd"),
        (b"\xfd7zXZ\0\0\x04".to_vec(), "the file is compressed with xz: decompress it first"),
        (b"PAR1\x15\x04\x15".to_vec(), "the file is Parquet"),
        (utf16("\u{feff}k,x\na,1\n", false), "the file is in UTF-16: upload with --encoding utf-16le"),
        (utf16("\u{feff}k,x\na,1\n", true), "the file is in UTF-16: upload with --encoding utf-16be"),
        (utf16("k,x\na,1\n", false), "the file is in UTF-16: upload with --encoding utf-16le"),
        (utf16("k,x\na,1\n", true), "the file is in UTF-16: upload with --encoding utf-16be"),
        (utf32("\u{feff}k,x\na,1\n"), "the file is in UTF-32: save it as UTF-8"),
        (utf32("k,x\na,1\n"), "the file is in UTF-32: save it as UTF-8"),
    ];
    for (csv, hint) in cases {
        let shown = String::from_utf8_lossy(&csv[..csv.len().min(100)]).into_owned();
        let found = table.refusal(&csv).await;
        assert!(found.contains(hint), "{shown:?}: {found}");
        // A file that is larger than the bytes that are looked at.
        let rest = csv.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&csv);
        let large = [&csv[..], &rest.repeat(100_000 / csv.len() + 1)].concat();
        assert_eq!(table.refusal(&large).await, found, "{shown:?}");
        let (what, _) = found.split_once(": ").expect("a hint");
        let alone = group_sum(&csv, &["k"], &["x"]).await.expect_err("refused");
        assert!(alone.starts_with(what) && !alone.contains("--"), "a group sum has no options: {alone}");
    }
    assert_eq!(table.engine.parts_count(), 0);
}

#[tokio::test]
async fn files_that_only_resemble_others_are_accepted() {
    let table = Table::new().await;
    let files = [
        "a;b\n1\n2\n",        // the rows have no such separator
        "a;b\n",              // there is no row
        "a;b\n1;2\n3\n4\n",   // most rows have none
        "x,y;z\n1,2;3\n",     // a comma is there, too
        "a;b,c;d\n1;2,3\n",   // not all rows have it as often as the header
        "a;b,c\n1;2,3\n",     // commas separate as many cells
        "\"a;b\"\n\"1;2\"\n", // part of the text
        "note\na;b\n",        // the header has none, and there is one row
        "note\na;b\nc\n",     // nor do all rows have it
        "note,\na,b\nc,d\n",  // a column of texts without a name
        "note,\na,1\nb,2\n",  // a column of numbers without a name
        "note,\na,\n1,2\n",   // or of numbers and nothing
        "note,\na,b\n1,2\nc,d\n",
        "note,\nk,x\n", // there is nothing below it
        "sep\n1\n",
        "sep=,x\n1,2\n",
        "\"#\",x\n1,2\n",
        "x,#\n1,2\n",
        "PAR1,x\n1,2\n",
        "PK,x\n1,2\n",
        "[id],[name]\n1,a\n",
        "<DATE>,<OPEN>\n1,2\n",
        "{x},y\n1,2\n",
        "%PDF,x\n1,2\n",
        "(x),y\n1,2\n",
        "tags\nred|blue\ngreen|red\n", // one column of texts
    ];
    for csv in files {
        table.engine.upload_valid(csv).await;
    }
    assert_eq!(table.sum("a;b").await, Err("part 3, row 1, column \"a;b\": \"1;2\" is not an integer".to_owned()));
    assert_eq!(table.sum("#").await, Ok(3));
}

/// The error that a group sum of a file gives instead of this one of an upload: it has no options.
fn of_group_sum(error: &str) -> String {
    let error = error.replace("; upload with --drop-trailing-empty", "; remove them");
    error.replace("upload with --encoding windows-1252", "save the file as UTF-8")
}

/// The error in the file made of `begin`, good rows, and `end`, along every path; for small and large files.
async fn check_line(begin: &str, row: &str, end: &str, error: impl Fn(u64, u64) -> String) {
    check_line_after(&[0, 1, 100, 30_000], begin, row, end, error).await;
}

async fn check_line_after(rows: &[u64], begin: &str, row: &str, end: &str, error: impl Fn(u64, u64) -> String) {
    let table = Table::new().await;
    let lines_in = |text: &str| text.replace("\r\n", "\n").matches(['\n', '\r']).count() as u64;
    for &rows in rows {
        let csv = format!("{begin}{}{end}", row.repeat(usize::try_from(rows).expect("few")));
        let expected = error(rows + 1, lines_in(begin) + rows * lines_in(row) + 1);
        let found = table.refusal(csv.as_bytes()).await;
        assert_eq!(found, expected, "{begin:?}, {rows} times {row:?}, {end:?}");
        let alone = group_sum(csv.as_bytes(), &["k"], &["n"]).await;
        assert_eq!(alone, Err(of_group_sum(&expected)), "a group sum of {begin:?}, {rows} times {row:?}, {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_the_line_along_every_path() {
    let short = |row, line| format!("row {row} (line {line}) has 1 cell, the header has 2");
    check_line("k,n\n", "1,2\n", "3\n", short).await;
    // More bytes than one task reads.
    check_line_after(&[80_000], "k,n\n", &format!("{},2\n", "x".repeat(120)), "3\n", short).await;
    check_line("\u{feff}\r\n\nk,n\r\n", "1,2\r\n", "3", short).await;
    check_line("\"k\",n\r", "\"a\n\r\nb\r\",2\n\n", "3\r4,5", short).await;
    check_line("k,n\n", "\"\"\"\n\",2\n", "\"a\",2,\n", |row, line| {
        let empty = "its extra cells are empty; upload with --drop-trailing-empty";
        format!("row {row} (line {line}) has 3 cells, the header has 2: {empty}")
    })
    .await;
    check_line("k,n\n", "5\" pipe,2\n", "\"a\"b,2\n", |row, line| {
        let hint = "a quote inside a quoted cell is written twice";
        format!("row {row} (line {line}), column \"k\": text after a closing quote: {hint}")
    })
    .await;
    check_line("k,n\n", "\u{e9},2\n", "\"a,2\n3,4\n", |row, line| {
        format!("row {row} (line {line}), column \"k\": a quoted cell is not closed")
    })
    .await;
    check_line("k,n,unused\n", "a,2,\u{6f22}\n", "a,2,\0\n", |row, line| {
        format!("row {row} (line {line}), column \"unused\": a NUL byte")
    })
    .await;
}

#[tokio::test]
async fn the_line_is_data() {
    let table = Table::new().await;
    let error = upload_cut(&table.engine, b"a,b\n\"1\n\",2\n3,\0\n", &[]).await.expect_err("a NUL byte");
    let position = error.position();
    assert_eq!((position.part, position.row, position.line), (None, Some(2), Some(4)));
    assert_eq!(position.column, Some(ColumnPosition::Name("b")));
}

/// Uploads and group sums refuse the same bytes with the same words, also in columns that the group sum does not use.
#[tokio::test]
async fn one_rule_says_what_a_file_may_contain() {
    let table = Table::new().await;
    let filler = "a,1,\u{6f22}\n".repeat(20_000);
    for (bad, problem) in [
        (&b"x\0y"[..], "a NUL byte".to_owned()),
        (b"M\xfcller", format!("invalid UTF-8 (byte 0xfc), {INVALID_UTF8}")),
        (b"\"\xe6\xbc\"", format!("invalid UTF-8 (byte 0xe6), {INVALID_UTF8}")),
        (b"\xe6\xbc", format!("invalid UTF-8 (byte 0xe6), {INVALID_UTF8}")), // cut off by the end of the file
        (b"\xed\xa0\x80", format!("invalid UTF-8 (byte 0xed), {INVALID_UTF8}")),
    ] {
        for filler in ["", &filler] {
            for last in [&b"\n"[..], b"", b"\nb,x,y\nc\n"] {
                let csv = [b"k,n,unused\n", filler.as_bytes(), b"b,2,", bad, last].concat();
                let row = filler.matches('\n').count() + 1;
                let expected = format!("row {row} (line {}), column \"unused\": {problem}", row + 1);
                if !last.ends_with(b"c\n") {
                    assert_eq!(table.refusal(&csv).await, expected);
                }
                assert_eq!(group_sum(&csv, &["k"], &["n"]).await, Err(of_group_sum(&expected)));
            }
        }
        let csv = [b"k,n,", bad, b"\na,1,2\n"].concat();
        let expected = format!("header (line 1), column 3: {problem}");
        assert_eq!(table.refusal(&csv).await, expected);
        assert_eq!(group_sum(&csv, &["k"], &["n"]).await, Err(of_group_sum(&expected)));
    }
    assert_eq!(table.engine.parts_count(), 0);
}

#[tokio::test]
async fn several_columns_without_a_name_must_be_without_values() {
    let table = Table::new().await;
    let csv = "k,n,,\na,1,,\n\nb,2,,\"\"\n";
    let receipt = table.engine.upload_valid(csv).await;
    let names: Vec<_> = receipt.columns.iter().map(|column| (column.name.as_str(), column.nulls)).collect();
    assert_eq!(names, [("k", 0), ("n", 0), ("unnamed 3", 2), ("unnamed 4", 2)]);
    for (column, total) in [("n", 3), ("unnamed 3", 0), ("", 0)] {
        assert_eq!(table.sum(column).await, Ok(total), "{column:?}");
    }
    let groups = "k,n\na,1\nb,2\n";
    assert_eq!(group_sum(csv.as_bytes(), &["k"], &["n"]).await.as_deref(), Ok(groups));
    let stored = table
        .engine
        .group_sum(Origin::SERVER, GroupBy::new(vec!["unnamed 4".into()], vec!["n".into()]).expect("columns"));
    let groups = stored.await.expect("groups").next_block().await.expect("a block");
    assert_eq!((groups.len(), groups[0].totals[0]), (1, 3));
    // A name that is taken.
    let receipt = table.engine.upload_valid("unnamed 2,,\n5,,\n").await;
    let names: Vec<_> = receipt.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["unnamed 2", "unnamed 2_", "unnamed 3"]);
    // A file of integers alone, and one with text; small and large.
    for filler in ["", &"1,,\n".repeat(30_000)] {
        for cell in ["7", "text", "\" \""] {
            let csv = format!("n,,\n{filler}2,,{cell}\n");
            let row = filler.matches('\n').count() + 1;
            let what = "a value in one of several columns without a name: give each of them a name in the header";
            let expected = format!("row {row} (line {}), column 3: {what}", row + 1);
            assert_eq!(table.refusal(csv.as_bytes()).await, expected);
            assert_eq!(group_sum(csv.as_bytes(), &["n"], &[""]).await, Err("the file has no column \"\"".to_owned()));
            assert_eq!(group_sum(csv.as_bytes(), &["unnamed 2"], &["n"]).await, Err(expected));
        }
    }
    // Also a file of integers whose columns all have values.
    for rows in [1, 30_000] {
        let csv = format!("n,,\n{}", "1,2,3\n".repeat(rows));
        let what = "a value in one of several columns without a name: give each of them a name in the header";
        assert_eq!(table.refusal(csv.as_bytes()).await, format!("row 1 (line 2), column 2: {what}"));
    }
    // A single one may have values.
    table.engine.upload_valid(",n\n0,1\n1,2\n").await;
    assert_eq!(table.sum("").await, Ok(1));
    // Names that are the same are refused by name.
    assert_eq!(table.refusal(b"n,,n,\n1,,2,\n").await, "the header (line 1) names two columns \"n\"");
    assert_eq!(table.engine.parts_count(), 3);
}

#[tokio::test]
async fn numbers_as_pandas_writes_them_can_be_summed() {
    let table = Table::new().await;
    assert_eq!(table.types("k,n\na,1.0\nb,\nc,3.0\n").await, [ColumnType::Utf8, ColumnType::Float64]);
    assert_eq!(table.sum("n").await, Ok(4));
    assert_eq!(table.types("k,n\na,-1e3\nb,2\nc,0.0\n").await, [ColumnType::Utf8, ColumnType::Float64]);
    assert_eq!(table.types("k,n\na,+5.0\nb,007\nc, 1. \n").await, [ColumnType::Utf8, ColumnType::Utf8]);
    assert_eq!(table.sum("n").await, Ok(4 - 998 + 13));
    let spec = || GroupBy::new(vec!["k".into()], vec!["n".into()]).expect("columns");
    let mut groups =
        table.engine.group_sum(Origin::SERVER, spec()).await.expect("groups").next_block().await.expect("a block");
    groups.sort_by(|one, other| one.cells.cmp(&other.cells));
    let totals: Vec<_> = groups.iter().map(|group| (group.cells[0].as_str(), group.totals[0])).collect();
    assert_eq!(totals, [("a", 1 - 1000 + 5), ("b", 2 + 7), ("c", 3 + 1)]);
    // A group sum of a file knows no types.
    let groups = group_sum(b"k,n\na,1.0\na,\nb,-3.\n", &["k"], &["n"]).await;
    assert_eq!(groups.as_deref(), Ok("k,n\na,1\nb,-3\n"));

    for (csv, error) in [
        ("n\n1.0\n\"\"\n2.50\n0.5\n", "row 3, column \"n\": \"2.5\" is not an integer"),
        (
            "n\n1.0\n9007199254740993\n",
            "row 2, column \"n\": \"9007199254740992.0\" is not below 2^53, where a double is exact",
        ),
        ("n\n-1e300\n", "row 1, column \"n\": \"-1e300\" is not below 2^53, where a double is exact"),
        ("n\nx\n1.0\n", "row 1, column \"n\": \"x\" is not an integer"),
        ("n\n+1.5\n1.0\n", "row 1, column \"n\": \"+1.5\" is not an integer"),
        ("n\n+9223372036854775808.0\n", "row 1, column \"n\": \"+9223372036854775808.0\" does not fit in 64 bits"),
    ] {
        let table = Table::new().await;
        table.engine.upload_valid(csv).await;
        let expected = format!("part 1, {error}");
        assert_eq!(table.sum("n").await, Err(expected.clone()), "{csv:?}");
        let rows: String = csv.lines().skip(1).map(|cell| format!("a,{cell}\n")).collect();
        table.engine.upload_valid(format!("k,m\n{rows}")).await;
        let spec = GroupBy::new(vec!["k".into()], vec!["m".into()]).expect("columns");
        let Err(found) = table.engine.group_sum(Origin::SERVER, spec).await else { panic!("{csv:?} has group sums") };
        let expected = expected.replace("part 1", "part 2").replace("\"n\"", "\"m\"");
        assert_eq!(found.to_string(), expected, "{csv:?}");
    }
    let sum: Result<_, Error> = table.engine.column_sum("n", Format::Csv).await;
    assert_eq!(sum.expect("a sum").read.parts, 3);
}

/// A large column of doubles, whose sum needs several tasks and byte ranges.
#[tokio::test]
async fn many_integral_doubles_are_summed_exactly() {
    let table = Table::new().await;
    let rows: String = (0..600_000).map(|row| format!("{},{row}.0\n", if row % 3 == 0 { "" } else { "7.0" })).collect();
    table.engine.upload_valid(format!("a,b\n{rows}")).await;
    assert_eq!(table.sum("a").await, Ok(400_000 * 7));
    assert_eq!(table.sum("b").await, Ok(600_000 * 599_999 / 2));
    table.engine.upload_valid(format!("a,b\n{rows}1.0,0.25\n")).await;
    assert_eq!(table.sum("a").await, Ok(2 * 400_000 * 7 + 1));
    let error = "part 2, row 600001, column \"b\": \"0.25\" is not an integer";
    assert_eq!(table.sum("b").await, Err(error.to_owned()));
    // Integers that the fast path of other columns would add.
    let rows = "2\n".repeat(5000) + &"9007199254740993\n".repeat(5000);
    table.engine.upload_valid(format!("c\n{rows}1.0\n")).await;
    let error = "part 3, row 5001, column \"c\": \"9007199254740992.0\" is not below 2^53, where a double is exact";
    assert_eq!(table.sum("c").await, Err(error.to_owned()));
}

#[tokio::test]
async fn booleans_and_times_as_python_prints_them() {
    let table = Table::new().await;
    let csv = "t,b,z,m\n2021-12-19 13:12:30,True,2021-12-19 13:12:30Z,TRUE\n2021-12-19T13:12:30.5,false,,false\n";
    let expected = [ColumnType::Timestamp, ColumnType::Boolean, ColumnType::TimestampUtc, ColumnType::Utf8];
    assert_eq!(table.types(csv).await, expected);
    let error = "part 1, column \"b\": its type is Boolean, not an integer";
    assert_eq!(table.sum("b").await, Err(error.to_owned()));
}
