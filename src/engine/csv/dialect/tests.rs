//! Unit tests of dialects: against a simple parser of whole files, however the input is cut.

use std::io::Write as _;

use flate2::write::GzEncoder;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective};

use super::{Compression, Transformer};
use crate::{
    engine::csv::{
        rows::{Resume, Row, Rows, Wanted},
        scanner::Scanner,
        sniff::sniff,
    },
    error::{
        Error,
        csv::{CellFault, CsvError},
    },
    limits::{CELL_START_BYTES, COLUMNS_MAX, CsvLimits, KIB, MIB, REWRITE_BUFFER_BYTES, REWRITE_OUTPUT_BYTES},
    model::dialect::{Decompress, Dialect, NullTexts},
};

/// Rows of cells.
type Cells = Vec<Vec<Vec<u8>>>;

fn dialect(delimiter: &str) -> Dialect {
    Dialect { delimiter: Some(delimiter.parse().expect("a delimiter")), ..Dialect::default() }
}

fn nulls(texts: &[&str]) -> NullTexts {
    NullTexts::new(texts.iter().map(|text| (*text).to_owned()).collect()).expect("few")
}

/// What pieces of a file become, as the upload calls the transformer.
fn transform<'a>(
    dialect: &Dialect,
    compression: Option<Compression>,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, String> {
    let mut transformer = Transformer::new(dialect, compression, u64::MAX).expect("memory");
    let mut csv = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            transformer.step(&mut piece, &mut csv).map_err(|error| error.to_string())?;
        }
    }
    transformer.finish(&mut csv).map_err(|error| error.to_string())?;
    Ok(csv)
}

/// The same of a whole file, which must not depend on where it is cut.
fn csv_of(dialect: &Dialect, compression: Option<Compression>, file: &[u8]) -> Result<Vec<u8>, String> {
    let whole = transform(dialect, compression, std::iter::once(file));
    assert_eq!(transform(dialect, compression, file.chunks(1)), whole, "byte by byte");
    for bytes in [2, 3, 7, 4096] {
        assert_eq!(transform(dialect, compression, file.chunks(bytes)), whole, "blocks of {bytes} bytes");
    }
    whole
}

fn text_of(dialect: &Dialect, file: &str) -> String {
    let csv = csv_of(dialect, None, file.as_bytes()).expect("it can be rewritten");
    String::from_utf8(csv).expect("UTF-8")
}

/// The rows that a file means, read in the simplest way; `None` if a quote is wrong.
fn simple_rows(file: &[u8], dialect: &Dialect) -> Option<Cells> {
    let delimiter = dialect.delimiter.map_or(b',', |delimiter| delimiter.byte());
    let at_end = |byte: u8| byte == delimiter || byte == b'\n' || byte == b'\r';
    let mut rest = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let skip_spaces = |rest: &mut &[u8]| {
        while dialect.trim && rest.first().is_some_and(|byte| byte.is_ascii_whitespace() && !at_end(*byte)) {
            *rest = &rest[1..];
        }
    };
    let mut rows = Cells::new();
    while !rest.is_empty() {
        let (mut cells, mut has_quotes) = (Vec::new(), false);
        loop {
            skip_spaces(&mut rest);
            let mut cell = Vec::new();
            if let Some(quoted) = rest.strip_prefix(b"\"") {
                (rest, has_quotes) = (quoted, true);
                loop {
                    let quote = rest.iter().position(|byte| *byte == b'"')?;
                    cell.extend_from_slice(&rest[..quote]);
                    rest = &rest[quote + 1..];
                    match rest.strip_prefix(b"\"") {
                        Some(after) => rest = after,
                        None => break,
                    }
                    cell.push(b'"');
                }
                skip_spaces(&mut rest);
                if rest.first().is_some_and(|byte| !at_end(*byte)) {
                    return None;
                }
            } else {
                let end = rest.iter().position(|byte| at_end(*byte)).unwrap_or(rest.len());
                cell.extend_from_slice(&rest[..end]);
                rest = &rest[end..];
            }
            cells.push(if dialect.trim { cell.trim_ascii().to_vec() } else { cell });
            match rest.split_first() {
                Some((byte, after)) if *byte == delimiter => rest = after,
                after => {
                    rest = after.map_or(&[], |(_, after)| after);
                    break;
                }
            }
        }
        if cells.len() == 1 && cells[0].is_empty() && !has_quotes {
            continue; // an empty line
        }
        for cell in &mut cells {
            if !rows.is_empty() && dialect.null.has(cell) {
                cell.clear();
            }
        }
        let cells_min = rows.first().map_or(1, Vec::len);
        while dialect.drop_trailing_empty && cells.len() > cells_min && cells.last().is_some_and(Vec::is_empty) {
            cells.pop();
        }
        rows.push(cells);
    }
    Some(rows)
}

/// The rows of plain CSV, read with another program's parser.
fn rows_of(csv: &[u8]) -> Cells {
    let reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(csv);
    let records = reader.into_byte_records().map(|record| record.expect("CSV"));
    records.map(|record| record.iter().map(<[u8]>::to_vec).collect()).collect()
}

/// Keeps all cells.
#[derive(Default)]
struct Collected(Cells);

impl Rows for Collected {
    type Error = CsvError;

    fn header(&mut self, names: &[String]) -> Result<(), CsvError> {
        self.0.push(names.iter().map(|name| name.clone().into_bytes()).collect());
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
        self.0.push(row.cells().map(<[u8]>::to_vec).collect());
        Ok(())
    }
}

/// What the rest of an upload finds in plain CSV.
fn scan(csv: &[u8]) -> Result<Cells, CsvError> {
    let mut rows = Collected::default();
    let mut scanner = Scanner::new(CsvLimits::default(), Wanted::All, Resume::default());
    scanner.feed(csv, &mut rows)?;
    scanner.finish(&mut rows)?;
    Ok(rows.0)
}

fn random_file(random: &mut fastrand::Rng) -> Vec<u8> {
    let long = "x".repeat(CELL_START_BYTES - 1);
    let spaces = " ".repeat(CELL_START_BYTES / 9);
    let pieces = ["a", "1", ";", ";", ",", "\"", "\"", "\n", "\n", "\r\n", "\r", " ", "\t", "NA", "é", "\u{feff}"];
    let mut file = String::new();
    for _ in 0..random.usize(..30) {
        file += match random.usize(..40) {
            0 => &long,
            1 => &spaces,
            _ => pieces[random.usize(..pieces.len())],
        };
    }
    file.into_bytes()
}

#[test]
fn random_files_mean_what_a_simple_parser_reads() {
    let mut random = fastrand::Rng::with_seed(19);
    let mut invalid = 0;
    for _ in 0..1000 {
        let file = random_file(&mut random);
        for flags in 0..8 {
            let mut dialect = dialect([";", ",", "tab", " "][random.usize(..4)]);
            (dialect.trim, dialect.drop_trailing_empty) = (flags & 1 > 0, flags & 2 > 0);
            if flags & 4 > 0 {
                dialect.null = nulls(&["NA", "1"]);
            }
            let csv = csv_of(&dialect, None, &file).expect("nothing is too long");
            let shown =
                || format!("{dialect:?}\n{:?}\n{:?}", String::from_utf8_lossy(&file), String::from_utf8_lossy(&csv));
            match simple_rows(&file, &dialect) {
                Some(rows) => assert_eq!(rows_of(&csv), rows, "{}", shown()),
                None => {
                    invalid += 1;
                    assert!(scan(&csv).is_err(), "{}", shown());
                }
            }
        }
    }
    assert!(invalid > 500, "{invalid}");
}

/// With a comma, a file and what it is rewritten to are the same to the scanner: rows, and errors with their positions.
#[test]
fn rewriting_plain_csv_changes_nothing_that_it_means() {
    let mut random = fastrand::Rng::with_seed(20);
    for _ in 0..5000 {
        let file = random_file(&mut random);
        let csv = csv_of(&dialect(","), None, &file).expect("nothing is too long");
        assert_eq!(
            scan(&csv),
            scan(&file),
            "{:?}\n{:?}",
            String::from_utf8_lossy(&file),
            String::from_utf8_lossy(&csv)
        );
    }
}

#[test]
fn cells_are_quoted_where_plain_csv_needs_it() {
    let semicolon = dialect(";");
    for (file, csv) in [
        ("a;b\n1;2\n", "a,b\n1,2\n"),
        ("a;b\r\n1,5;\"x;y\"\r\n", "a,b\r\n\"1,5\",x;y\r\n"),
        ("a;b\n5\" disk;\"say \"\"hi\"\"\"\n", "a,b\n\"5\"\" disk\",\"say \"\"hi\"\"\"\n"),
        ("a;b\n\"1\n2\";3", "a,b\n\"1\n2\",3"),
        ("\u{feff}a;b\n1;2\n", "a,b\n1,2\n"),
        ("a;\u{feff}b\n", "a,\"\u{feff}b\"\n"),
        ("\n\na\n\n\"\"\n1\n", "\n\na\n\n\"\"\n1\n"),
        ("", ""),
    ] {
        assert_eq!(text_of(&semicolon, file), csv, "{file:?}");
    }
    assert_eq!(text_of(&dialect("tab"), "a\tb\n1\t\n"), "a,b\n1,\n");
    assert_eq!(text_of(&dialect("|"), "a|b\n|2\n"), "a,b\n,2\n");
}

#[test]
fn null_trim_and_trailing_cells() {
    let null = Dialect { null: nulls(&["NA", "-"]), ..Dialect::default() };
    assert_eq!(text_of(&null, "NA,b\nNA,\"-\"\nNAN, NA\n"), "NA,b\n,\nNAN, NA\n");
    assert_eq!(text_of(&null, "a\nNA\n1\n"), "a\n\"\"\n1\n", "no empty line, which would be no row");
    let trim = Dialect { trim: true, ..Dialect::default() };
    assert_eq!(text_of(&trim, " a ,\tb\n 1 , \" 2 \" \n  \n\"\"  ,3\n"), "a,b\n1,2\n\n,3\n");
    let both = Dialect { null: nulls(&["NA"]), ..trim };
    assert_eq!(text_of(&both, "a,b\n NA ,1\n"), "a,b\n,1\n");
    let drop = Dialect { drop_trailing_empty: true, ..Dialect::default() };
    assert_eq!(text_of(&drop, "a,b,,\n1,2,,\n3,,,\n4,5\n"), "a,b\n1,2\n3,\n4,5\n");
    assert_eq!(text_of(&drop, "a,,b,\n1,2,3,,,\n"), "a,,b\n1,2,3\n");
    assert_eq!(text_of(&drop, "a,\n1,,2\n"), "a\n1,,2\n", "the scanner refuses a value without a column");
    assert_eq!(text_of(&drop, ",,\n,,\n"), "\"\"\n\"\"\n");
}

#[test]
fn faults_are_left_for_the_scanner() {
    for (file, fault) in [
        ("a;b\n1;\"2\n3;4\n", CellFault::UnclosedQuote),
        ("a;b\n1;\"2\"x\n3;4\n", CellFault::TextAfterQuote),
        ("a;b\n1;\"2\" \n", CellFault::TextAfterQuote),
    ] {
        let csv = csv_of(&dialect(";"), None, file.as_bytes()).expect("it is copied");
        match scan(&csv) {
            Err(CsvError::Cell { position, problem }) => {
                assert_eq!(
                    (position.row, position.column.as_deref(), problem),
                    (1.into(), Some("b"), fault),
                    "{file:?}"
                );
            }
            other => panic!("{file:?}: {other:?}"),
        }
    }
    let csv = csv_of(&dialect(";"), None, b"a;b\n1;2\n\n1;2;3\n").expect("it is copied");
    assert_eq!(scan(&csv).expect_err("ragged").to_string(), "row 2 has 3 cells, the header has 2");
}

#[test]
fn memory_does_not_grow_with_a_cell_or_a_row() {
    let long = "y,".repeat(MIB);
    let csv = text_of(&dialect(";"), &format!("a;b\n{long};\"{long}\"\n"));
    assert_eq!(csv, format!("a,b\n\"{long}\",\"{long}\"\n"));
    let trim = Dialect { trim: true, ..dialect(";") };
    let spaces = " ".repeat(KIB - 1);
    assert_eq!(text_of(&trim, &format!("a\n{spaces}{spaces}{spaces}x{spaces}\n")), "a\nx\n");
    assert_eq!(text_of(&trim, &format!("a\nx{spaces}y\n")), format!("a\nx{spaces}y\n"));
    let middle = text_of(&trim, &format!("a\n{}{spaces}y{spaces}\n", "x".repeat(5000)));
    assert_eq!(middle, format!("a\n\"{}{spaces}y\"\n", "x".repeat(5000)));
    for start in ["x", &"x".repeat(5000)] {
        for end in ["", "y"] {
            let file = format!("a;b\n1;{start}{spaces}{spaces}{spaces}{end}\n");
            let error = csv_of(&trim, None, file.as_bytes()).expect_err("too long");
            assert_eq!(error, "row 1, column 2: a cell with 1024 or more bytes of white space: upload without trim");
        }
    }
    // A text that means no value is recognised before any such white space.
    let null = Dialect { null: nulls(&["NA"]), ..trim };
    assert_eq!(text_of(&null, &format!("a;b\n1;NA{spaces}\n")), "a,b\n1,\n");

    // A row of many empty cells with a value at its end is refused whatever their number, and is not written whole.
    let drop = Dialect { drop_trailing_empty: true, ..Dialect::default() };
    let file = format!("a\n1{}2\n", ",".repeat(MIB));
    let csv = text_of(&drop, &file);
    assert!(csv.len() < 2 * COLUMNS_MAX && matches!(scan(csv.as_bytes()), Err(CsvError::Ragged { .. })));

    let mut transformer = Transformer::new(&dialect(";"), None, u64::MAX).expect("memory");
    let quotes = vec![b'"'; MIB];
    let (mut rest, mut output) = (&quotes[..], Vec::with_capacity(REWRITE_BUFFER_BYTES));
    while !rest.is_empty() {
        output.clear();
        while !rest.is_empty() && output.len() < REWRITE_OUTPUT_BYTES {
            transformer.step(&mut rest, &mut output).expect("text");
        }
        assert_eq!(output.capacity(), REWRITE_BUFFER_BYTES);
    }
}

fn encoded(encoding: &str) -> Dialect {
    Dialect { encoding: Some(encoding.parse().expect("an encoding")), ..Dialect::default() }
}

fn utf_16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(to_bytes).collect()
}

#[test]
fn text_is_decoded() {
    let text = "né,日本\n1,🦀\n";
    let (le, be) = (utf_16(text, u16::to_le_bytes), utf_16(text, u16::to_be_bytes));
    for (encoding, file) in [
        ("utf-16le", le.clone()),
        ("utf-16be", be.clone()),
        ("utf-16", [b"\xff\xfe".to_vec(), le].concat()),
        ("utf-16", [b"\xfe\xff".to_vec(), be.clone()].concat()),
        ("windows-1252", [b"\xfe\xff".to_vec(), be].concat()), // a byte order mark overrides the name
        ("utf-8", ["\u{feff}", text].concat().into_bytes()),
    ] {
        assert_eq!(csv_of(&encoded(encoding), None, &file).as_deref(), Ok(text.as_bytes()), "{encoding}");
    }
    assert_eq!(csv_of(&encoded("latin1"), None, b"n\xe9,\x80\n").as_deref(), Ok("né,€\n".as_bytes()));
    assert_eq!(csv_of(&encoded("shift_jis"), None, b"\x93\xfa\x96{\n").as_deref(), Ok("日本\n".as_bytes()));
    let both = Dialect { encoding: encoded("latin1").encoding, ..dialect(";") };
    assert_eq!(csv_of(&both, None, b"n\xe9;b\n1,5;\x80\n").as_deref(), Ok("né,b\n\"1,5\",€\n".as_bytes()));
}

#[test]
fn bytes_that_the_encoding_does_not_have_are_an_error_with_their_offset() {
    for (encoding, file, error) in [
        ("utf-8", &b"a\n1\xff\n"[..], "byte 3 of the file is not valid UTF-8"),
        ("utf-8", b"a\n\xe2\x82", "byte 2 of the file is not valid UTF-8"),
        ("utf-16le", b"a\0\n\0\x00\xd8b\0", "byte 4 of the file is not valid UTF-16LE"),
        ("utf-16le", b"a\0\n", "byte 2 of the file is not valid UTF-16LE"),
        ("shift_jis", b"a\n\x93\n", "byte 2 of the file is not valid Shift_JIS"),
        ("windows-1253", b"a\n1\xd2\n", "byte 3 of the file is not valid windows-1253"),
    ] {
        assert_eq!(csv_of(&encoded(encoding), None, file), Err(error.to_owned()), "{encoding}");
    }
    let long = [vec![b'x'; 100 * KIB], vec![0xff]].concat();
    assert!(csv_of(&encoded("utf-8"), None, &long).is_err_and(|error| error.starts_with("byte 102400 ")));
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(text: &[u8], window_log: u32) -> Vec<u8> {
    let mut encoder = CCtx::create();
    encoder.set_parameter(CParameter::WindowLog(window_log)).expect("a parameter");
    encoder.set_parameter(CParameter::ChecksumFlag(true)).expect("a parameter");
    let mut file = vec![0; zstd_safe::compress_bound(text.len()) + KIB];
    let (mut to, mut from) = (OutBuffer::around(&mut file[..]), InBuffer::around(text));
    // In two calls, so that the encoder does not know the length and uses the whole window.
    encoder.compress_stream2(&mut to, &mut from, ZSTD_EndDirective::ZSTD_e_flush).expect("memory");
    encoder.compress_stream2(&mut to, &mut from, ZSTD_EndDirective::ZSTD_e_end).expect("memory");
    let bytes = to.pos();
    file.truncate(bytes);
    file
}

#[test]
fn files_are_decompressed() {
    let text: String = (0..20_000).map(|row| format!("{row};{}\n", row % 7)).collect();
    let rest: String = "a;b\n".to_owned() + &text;
    let (header, rows) = rest.as_bytes().split_at(4);
    for (compression, file) in [
        (Compression::Gzip, gzip(rest.as_bytes())),
        (Compression::Gzip, [gzip(header), gzip(b""), gzip(rows)].concat()),
        (Compression::Zstd, zstd(rest.as_bytes(), 23)),
        // With a frame that is skipped.
        (Compression::Zstd, [zstd(header, 10), b"\x50\x2a\x4d\x18\x03\0\0\0xyz".to_vec(), zstd(rows, 20)].concat()),
    ] {
        let plain = Dialect::default();
        assert_eq!(Compression::of(Decompress::Auto, &file), Some(compression));
        assert!(csv_of(&plain, Some(compression), &file).as_deref() == Ok(rest.as_bytes()), "{compression:?}");
        let csv = csv_of(&dialect(";"), Some(compression), &file).expect("valid");
        assert!(csv == rest.replace(';', ",").into_bytes(), "{compression:?}");

        for end in [1, 3, 11, file.len() / 2, file.len() - 1] {
            let error = csv_of(&plain, Some(compression), &file[..end]).expect_err("it is cut");
            assert!(error.contains("it is incomplete"), "{error}");
        }
        let mut damaged = file.clone();
        let middle = file.len() / 2;
        damaged[middle] ^= 0x10;
        assert!(csv_of(&plain, Some(compression), &damaged).is_err(), "{compression:?}");
        let error = csv_of(&plain, Some(compression), &[&file[..], b"x;1\n"].concat()).expect_err("text follows");
        assert!(error.starts_with("the file is not valid "), "{error}");
    }
    assert_eq!(Compression::of(Decompress::Auto, b"a;b\n"), None);
    assert_eq!(Compression::of(Decompress::Auto, b""), None);
    let error = csv_of(&Dialect::default(), Some(Compression::Gzip), b"a;b\n1;2\n3;4\n").expect_err("it is text");
    assert_eq!(error, "the file is not valid gzip: invalid gzip header");
    let latin = Dialect { encoding: encoded("utf-8").encoding, ..Dialect::default() };
    let error = csv_of(&latin, Some(Compression::Gzip), &gzip(b"a\n\xff\n")).expect_err("it is not UTF-8");
    assert_eq!(error, "byte 2 of the file, decompressed, is not valid UTF-8");
}

#[test]
fn a_large_window_is_refused() {
    let error = csv_of(&Dialect::default(), Some(Compression::Zstd), &zstd(b"a\n1\n", 24)).expect_err("too large");
    assert!(error.ends_with("; windows of up to 8 MiB are read"), "{error}");
}

/// A few KiB become a GiB: that is refused at the limit, and no step makes much.
#[test]
fn a_bomb_is_refused_step_by_step() {
    const PLAIN_BYTES_MAX: usize = 3 * MIB;
    let bomb = vec![b' '; 8 * MIB];
    let drop = Dialect { trim: true, ..Dialect::default() };
    for (compression, file) in [(Compression::Gzip, gzip(&bomb)), (Compression::Zstd, zstd(&bomb, 23))] {
        for dialect in [Dialect::default(), drop.clone()] {
            let mut transformer =
                Transformer::new(&dialect, Some(compression), PLAIN_BYTES_MAX as u64).expect("memory");
            let (mut rest, mut output, mut steps) = (&file[..], Vec::new(), 0);
            let error = loop {
                output.clear();
                let before = transformer.plain_bytes();
                if let Err(error) = transformer.step(&mut rest, &mut output) {
                    break error;
                }
                steps += 1;
                assert!(output.len() <= 128 * KIB && transformer.plain_bytes() - before <= 128 * KIB as u64);
                assert!(!rest.is_empty(), "the limit is not kept");
            };
            assert!(matches!(error, Error::UploadTooLarge { .. }), "{error}");
            assert!((20..=1000).contains(&steps), "{steps}");
        }
    }
}

#[test]
fn what_is_stored_is_not_taken_for_another_kind_of_file_when_it_is_sent_again() {
    let names = [
        "a",
        "",
        "#",
        "<html>",
        "sep=;",
        "sep=,",
        "title",
        "{\"a\"",
        "%PDF-",
        "a|b",
        "x\ty",
        "PK\u{3}\u{4}",
        "\u{feff}b",
    ];
    let texts = ["a", "1", "2.5", "", "a;b", "1|2", "x|1", "x|2", "y\t3", "-3"];
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..5_000 {
        let columns = random.usize(1..4);
        let mut row_of = |texts: &[&str]| {
            let cells =
                (0..columns).map(|_| format!("\"{}\"", texts[random.usize(..texts.len())].replace('"', "\"\"")));
            cells.collect::<Vec<_>>().join(";") + "\n"
        };
        let file: String = [row_of(&names), row_of(&texts), row_of(&texts), row_of(&texts), row_of(&texts)].concat();
        let stored = transform(&dialect(";"), None, std::iter::once(file.as_bytes())).expect("it can be rewritten");
        assert_eq!(sniff(&stored), None, "{file}{}", String::from_utf8_lossy(&stored));
    }
}
