//! Recognises files that are not CSV with commas in UTF-8. Read as such CSV, many of them would have one column with a strange
//! name, and every sum over a column that their sender knows would be 0.
//!
//! Only the first bytes of a file are looked at. An ordinary file costs a look at its first byte and a search for the first
//! comma or row end.

use memchr::{memchr2, memchr3};

use super::scanner::BYTE_ORDER_MARK;
use crate::{
    error::{
        csv::CsvError,
        foreign_file::{ForeignFile, Separator, Use},
    },
    limits::RECEIVE_BLOCK_BYTES,
};

/// What to do with a file that does not look like CSV with commas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Foreign {
    /// Refuse it, with a hint.
    #[default]
    Refuse,
    /// Read it as CSV with commas all the same, for a caller that has named the separator.
    Accept,
}

impl Foreign {
    /// Checks a file that begins with `first`, see [`sniff`].
    pub fn check(self, first: &[u8], used_for: Use) -> Result<(), CsvError> {
        match self {
            Self::Refuse => sniff(first).map_or(Ok(()), |file| Err(CsvError::Foreign { file, used_for })),
            Self::Accept => Ok(()),
        }
    }
}

/// Bytes of a file that are looked at. The first block of an upload has as many, so the result does not depend on how a file
/// arrives.
pub const SNIFFED_BYTES_MAX: usize = RECEIVE_BLOCK_BYTES;

/// How HTML may begin. Some programs give such files the name `.xls`.
const HTML_STARTS: [&str; 6] = ["<!doctype", "<html", "<head", "<body", "<table", "<!--"];

/// Rows that are looked at.
const ROWS_MAX: usize = 10;

/// What a file seems to be that begins with `first`: its first [`SNIFFED_BYTES_MAX`] bytes, or the whole file if that is
/// shorter. `None` for CSV with commas, and for a file of which nothing is known.
pub fn sniff(first: &[u8]) -> Option<ForeignFile> {
    let first = &first[..first.len().min(SNIFFED_BYTES_MAX)];
    let text = first.strip_prefix(BYTE_ORDER_MARK).unwrap_or(first);
    if text.starts_with(BYTE_ORDER_MARK) {
        return Some(ForeignFile::TwoByteOrderMarks);
    }
    if !text.first()?.is_ascii_alphanumeric() || first.get(1) == Some(&0) || first.starts_with(b"P") {
        let known = binary(first).or_else(|| markup(text.trim_ascii_start()));
        if known.is_some() {
            return known;
        }
    }
    let empty_lines = text.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
    let text = &text[empty_lines..];
    if text.first() == Some(&b'#') {
        return Some(ForeignFile::Comment);
    }
    if let Some(separator) = separator_line(text) {
        return Some(ForeignFile::SeparatorLine(separator));
    }
    // The common case: a comma ends the first cell, which has nothing that is special.
    let (cell, rest) = text.split_at(memchr3(b',', b'\n', b'\r', text).unwrap_or(text.len()));
    let is_plain = !cell.iter().any(|byte| matches!(byte, b'"' | b';' | b'\t' | b'|'));
    match rest {
        [b',', b'\n' | b'\r', ..] => {} // perhaps a title
        [b',', ..] if is_plain => return None,
        _ => {}
    }
    by_rows(text)
}

/// Formats with a magic number, and text that is not UTF-8.
fn binary(first: &[u8]) -> Option<ForeignFile> {
    const OLD_EXCEL: &[u8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1";
    let magic: [(&[u8], ForeignFile); 8] = [
        (b"\x1f\x8b", ForeignFile::Gzip),
        (b"\x28\xb5\x2f\xfd", ForeignFile::Zstd),
        (b"\xfd7zXZ\0", ForeignFile::Xz),
        (b"PK\x03\x04", ForeignFile::Zip),
        (b"PK\x05\x06", ForeignFile::Zip),
        (b"PAR1\x15", ForeignFile::Parquet), // the last byte begins a header in Thrift's compact protocol
        (b"%PDF-", ForeignFile::Pdf),
        (OLD_EXCEL, ForeignFile::OldExcel),
    ];
    if let Some((_, file)) = magic.iter().find(|(magic, _)| first.starts_with(magic)) {
        return Some(*file);
    }
    // With a byte order mark, or else by the NUL bytes of an ASCII character.
    match *first {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some(ForeignFile::Utf32),
        [0xff, 0xfe, ..] => Some(ForeignFile::Utf16Le),
        [0xfe, 0xff, ..] => Some(ForeignFile::Utf16Be),
        [1..=0x7f, 0, 0, 0, ..] | [0, 0, 0, 1..=0x7f, ..] => Some(ForeignFile::Utf32),
        [1..=0x7f, 0, 1..=0x7f, 0, ..] => Some(ForeignFile::Utf16Le),
        [0, 1..=0x7f, 0, 1..=0x7f, ..] => Some(ForeignFile::Utf16Be),
        _ => None,
    }
}

/// Formats of text, by the first bytes that are not white space. Names in brackets, as in `[id],[name]` or `<DATE>,<OPEN>`,
/// are none of them.
fn markup(text: &[u8]) -> Option<ForeignFile> {
    let starts_with = |start: &str| {
        let found = text.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start.as_bytes()));
        found && text.get(start.len()).is_none_or(|next| matches!(next, b'>' | b' ' | b'\t' | b'\r' | b'\n'))
    };
    let (first, rest) = text.split_first()?;
    let next = rest.trim_ascii_start().first();
    match (first, next) {
        (b'<', _) if HTML_STARTS.into_iter().any(starts_with) => Some(ForeignFile::Html),
        (b'<', _) if starts_with("<?xml") => Some(ForeignFile::Xml),
        (b'{', Some(b'"' | b'}')) | (b'[', Some(b'{' | b'[' | b'"' | b']')) => Some(ForeignFile::Json),
        _ => None,
    }
}

/// The separator in a first line that is `sep=` and one character, perhaps in quotes; `Some(None)` if it is none of
/// [`Separator::ALL`]. In quotes, it may also be a name: then nothing is separated by the character.
fn separator_line(text: &[u8]) -> Option<Option<Separator>> {
    const LINE_BYTES_MAX: usize = "\"sep=;\"\n".len();
    if !matches!(text.first(), Some(b's' | b'S' | b'"')) {
        return None;
    }
    let (line, rest) = text.split_at(memchr2(b'\n', b'\r', &text[..text.len().min(LINE_BYTES_MAX)])?);
    let quoted = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\""));
    let (start, [byte]) = quoted.unwrap_or(line).split_at_checked("sep=".len())? else { return None };
    if quoted.is_some() && count(rest, *byte) == 0 {
        return None;
    }
    let found = Separator::ALL.into_iter().find(|separator| separator.byte() == *byte);
    start.eq_ignore_ascii_case(b"sep=").then_some(found)
}

/// What the header and the first rows say together. There must be a row.
fn by_rows(text: &[u8]) -> Option<ForeignFile> {
    let is_whole_file = text.len() < SNIFFED_BYTES_MAX;
    let (header, mut rest) = next_row(text)?;
    let mut rows = Vec::with_capacity(ROWS_MAX);
    while rows.len() < ROWS_MAX {
        let (row, after) = match next_row(rest) {
            Some(found) => found,
            None if is_whole_file && !rest.is_empty() => (rest, &rest[rest.len()..]),
            None => break,
        };
        rest = after;
        if !row.is_empty() {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return None;
    }
    let separated = Separator::ALL.into_iter().find(|separator| is_separated(header, &rows, separator.byte()));
    if let Some(separator) = separated {
        return Some(ForeignFile::Separated(separator));
    }
    let below = Separator::ALL.into_iter().find(|separator| is_title(header, &rows, separator.byte()));
    if below.is_some() || is_padded_title(header, &rows) {
        return Some(ForeignFile::Title(below));
    }
    None
}

/// Whether cells are separated by this byte: the header has it and no comma, and so have half of the rows, for some may be
/// remarks or totals. If the header has commas, too, it must have fewer of them, and each row as many separators as the
/// header: then the commas belong to names and numbers.
fn is_separated(header: &[u8], rows: &[&[u8]], separator: u8) -> bool {
    let (separators, commas) = (count(header, separator), count(header, b','));
    if commas == 0 {
        let with_separator = rows.iter().filter(|row| count(row, separator) > 0).count();
        separators > 0 && 2 * with_separator >= rows.len()
    } else {
        separators > commas && rows.iter().all(|row| count(row, separator) == separators)
    }
}

/// Whether a single cell stands above a table with this separator: it occurs equally often in each of at least two rows, and
/// below the first of them, which has the names, half of a column's cells are numbers. (A column of texts such as `red|blue` is
/// no table.)
fn is_title(header: &[u8], rows: &[&[u8]], separator: u8) -> bool {
    let is_one_cell = count(header, b',') == 0 && count(header, separator) == 0;
    let separators = count(rows[0], separator);
    let is_table = separators > 0 && rows.len() > 1 && rows.iter().all(|row| count(row, separator) == separators);
    is_one_cell
        && is_table
        && (0..=separators).any(|column| {
            let is_number = |row: &&[u8]| row.split(|byte| *byte == separator).nth(column).is_some_and(is_number);
            let numbers = rows[1..].iter().filter(|row| is_number(row)).count();
            !is_number(&rows[0]) && 2 * numbers >= rows.len() - 1
        })
}

/// Whether a title stands above the header of a table of two columns, and a spreadsheet has added a comma for the second one,
/// which so has no name: below it are two texts, and one of these columns then has numbers. (With more columns, several would
/// have no name, but values, which is an error in any case.)
fn is_padded_title(header: &[u8], rows: &[&[u8]]) -> bool {
    let is_padded = header.len() > 1 && header.ends_with(b",") && count(header, b',') == 1;
    let [names, rows @ ..] = rows else { return false };
    if !is_padded || cells_of_two(names).iter().any(|name| name.is_empty() || is_number(name)) {
        return false;
    }
    (0..2).any(|column| {
        let mut cells = rows.iter().map(|row| cells_of_two(row)[column]).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some() && cells.all(is_number)
    })
}

/// The texts of the cells of a row with two cells.
fn cells_of_two(row: &[u8]) -> [&[u8]; 2] {
    let comma = outside_quotes(row, |byte| byte == b',').unwrap_or(row.len());
    let (first, second) = row.split_at(comma);
    [first, second.strip_prefix(b",").unwrap_or_default()].map(|cell| {
        let cell = cell.trim_ascii();
        cell.strip_prefix(b"\"").and_then(|cell| cell.strip_suffix(b"\"")).unwrap_or(cell)
    })
}

/// Whether a cell seems to be a number.
fn is_number(cell: &[u8]) -> bool {
    let digits = cell.strip_prefix(b"-").or_else(|| cell.strip_prefix(b"+")).unwrap_or(cell);
    digits.first().is_some_and(u8::is_ascii_digit) && digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

/// The first row, and what follows its row end. `None` if no row ends in `text`. Whatever the separator is, there is an even
/// number of quotes before a row end.
fn next_row(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = outside_quotes(text, |byte| matches!(byte, b'\n' | b'\r'))?;
    Some((&text[..end], &text[end + 1..]))
}

/// How often a byte occurs outside of quotes.
fn count(row: &[u8], wanted: u8) -> usize {
    let mut in_quotes = false;
    let is_wanted = |byte: &&u8| {
        in_quotes ^= **byte == b'"';
        !in_quotes && **byte == wanted
    };
    row.iter().filter(is_wanted).count()
}

/// The index of the first byte like this that is not in quotes.
fn outside_quotes(text: &[u8], is_wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut in_quotes = false;
    text.iter().position(|&byte| {
        in_quotes ^= byte == b'"';
        !in_quotes && is_wanted(byte)
    })
}
