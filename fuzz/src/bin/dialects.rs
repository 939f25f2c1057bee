//! Files of other dialects become CSV, which does not depend on where they are cut; CSV that was made so stays as it is.
//!
//! The first six bytes of an input choose the delimiter, the encoding, the compression, the texts that mean no value, and the flags.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tally::{
    engine::csv::{
        dialect::{Compression, Transformer},
        rows::{Resume, Row, Rows, Wanted},
        scanner::Scanner,
    },
    error::csv::CsvError,
    limits::CsvLimits,
    model::dialect::{Decompress, Dialect, NullTexts},
};

const DELIMITERS: [&str; 6] = [",", ";", "tab", "|", " ", "\u{1}"];
const ENCODINGS: [&str; 8] =
    ["utf-8", "windows-1252", "utf-16le", "utf-16be", "shift_jis", "gb18030", "iso-2022-jp", "big5"];
const NULLS: [&[&str]; 4] = [&[], &["NA"], &["", "-"], &["NULL", "\"", ","]];
/// Bytes of text that a file may become.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// All cells of a file.
#[derive(Default)]
struct Cells {
    names: Vec<String>,
    rows: Vec<Vec<Vec<u8>>>,
}

impl Rows for Cells {
    type Error = CsvError;

    fn header(&mut self, names: &[String]) -> Result<(), CsvError> {
        self.names = names.to_vec();
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
        self.rows.push(row.cells().map(<[u8]>::to_vec).collect());
        Ok(())
    }
}

fn cells(csv: &[u8]) -> Option<Cells> {
    let (mut cells, mut scanner) =
        (Cells::default(), Scanner::new(CsvLimits::default(), Wanted::All, Resume::default()));
    scanner.feed(csv, &mut cells).and_then(|()| scanner.finish(&mut cells)).ok()?;
    Some(cells)
}

fn transform<'a>(
    dialect: &Dialect,
    compression: Option<Compression>,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, String> {
    let mut transformer = Transformer::new(dialect, compression, TEXT_BYTES_MAX).expect("memory");
    let mut csv = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            transformer.step(&mut piece, &mut csv).map_err(|error| error.to_string())?;
        }
    }
    transformer.finish(&mut csv).map_err(|error| error.to_string())?;
    Ok(csv)
}

fn pick<T: Copy>(all: &[T], byte: u8) -> Option<T> {
    all.get(usize::from(byte) % (all.len() + 1)).copied()
}

fuzz_target!(|input: &[u8]| {
    let Some((options, file)) = input.split_first_chunk::<6>() else { return };
    let [delimiter, encoding, decompress, null, trim, drop_trailing_empty] = *options;
    let nulls = pick(&NULLS, null).unwrap_or(&[]).iter().map(|text| (*text).to_owned()).collect();
    let dialect = Dialect {
        delimiter: pick(&DELIMITERS, delimiter).map(|text| text.parse().expect("a delimiter")),
        encoding: pick(&ENCODINGS, encoding).map(|name| name.parse().expect("an encoding")),
        null: NullTexts::new(nulls).expect("few"),
        trim: trim % 2 == 1,
        drop_trailing_empty: drop_trailing_empty % 2 == 1,
        decompress: pick(&[Decompress::Auto, Decompress::Gzip, Decompress::Zstd], decompress),
    };
    let compression = dialect.decompress.and_then(|decompress| Compression::of(decompress, file));
    let whole = transform(&dialect, compression, std::iter::once(file));
    // A compressed file may have two faults, in its text and in its compression. Which one is found first depends on the cuts.
    let is_same = |other: Result<Vec<u8>, String>| {
        let have_both_faults = compression.is_some() && other.is_err() && whole.is_err();
        assert!(other == whole || have_both_faults, "{other:?} instead of {whole:?}");
    };
    is_same(transform(&dialect, compression, file.chunks(1)));
    let half = file.len() / 2;
    is_same(transform(&dialect, compression, [&file[..half], &file[half..]].into_iter()));

    let Ok(csv) = whole else { return };
    if dialect.encoding.is_some() {
        assert!(std::str::from_utf8(&csv).is_ok(), "decoded, and not UTF-8");
    }
    // What was written anew and is read without a fault has the same cells when it is written anew once more.
    let again = Dialect { delimiter: Some(",".parse().expect("a delimiter")), ..Dialect::default() };
    let (Some(before), true) = (cells(&csv), dialect.changes_rows()) else { return };
    let rewritten = transform(&again, None, std::iter::once(&csv[..])).expect("CSV");
    let after = cells(&rewritten).expect("CSV that can be read");
    assert_eq!((before.names, before.rows), (after.names, after.rows));
});
