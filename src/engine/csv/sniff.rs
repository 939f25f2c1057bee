//! Recognises files that are not CSV with commas in UTF-8. Read as such CSV, many of them would have one column with a strange
//! name, and every sum over a column that their sender knows would be 0.
//!
//! Only the first bytes of a file are looked at. An ordinary file costs a look at its first byte and a search for the first
//! comma or row end.

use memchr::{memchr, memchr3};

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

/// Rows of which each must have a separator that the header has, too.
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
    // The common case: a comma ends the first cell. In quotes, a comma may be part of the name.
    let end = memchr3(b',', b'\n', b'\r', text).unwrap_or(text.len());
    match text.first()? {
        b'#' if text.get(1) != Some(&b',') => return Some(ForeignFile::Comment), // a column may be called "#"
        b'"' => {}
        _ if text.starts_with(b"sep=") => return separator_line(text),
        _ if text.get(end) == Some(&b',') => return None,
        _ => {}
    }
    separated(text)
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

/// A first line that is `sep=` and one character.
fn separator_line(text: &[u8]) -> Option<ForeignFile> {
    match text.strip_prefix(b"sep=") {
        Some([byte, b'\n' | b'\r', ..]) => {
            let separator = Separator::ALL.into_iter().find(|separator| separator.byte() == *byte);
            Some(ForeignFile::SeparatorLine(separator))
        }
        _ => separated(text),
    }
}

/// Whether the header is one column, and has a separator that each of the first rows has, too. There must be such a row.
fn separated(text: &[u8]) -> Option<ForeignFile> {
    let is_whole_file = text.len() < SNIFFED_BYTES_MAX;
    let (header, mut rest) = next_row(text)?;
    if occurs(header, b',') {
        return None;
    }
    let mut candidates = Separator::ALL.map(|separator| occurs(header, separator.byte()).then_some(separator));
    let mut rows = 0;
    while rows < ROWS_MAX && candidates.iter().any(Option::is_some) {
        let (row, after) = match next_row(rest) {
            Some(found) => found,
            None if is_whole_file && !rest.is_empty() => (rest, &rest[rest.len()..]),
            None => break,
        };
        rest = after;
        if row.is_empty() {
            continue;
        }
        rows += 1;
        for candidate in &mut candidates {
            *candidate = candidate.filter(|separator| occurs(row, separator.byte()));
        }
    }
    let found = candidates.into_iter().flatten().next()?;
    (rows > 0).then_some(ForeignFile::Separated(found))
}

/// The first row, and what follows its row end. `None` if no row ends in `text`. Whatever the separator is, there is an even
/// number of quotes before a row end.
fn next_row(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = outside_quotes(text, |byte| matches!(byte, b'\n' | b'\r'))?;
    Some((&text[..end], &text[end + 1..]))
}

fn occurs(row: &[u8], wanted: u8) -> bool {
    memchr(wanted, row).is_some() && outside_quotes(row, |byte| byte == wanted).is_some()
}

/// The index of the first byte like this that is not in quotes.
fn outside_quotes(text: &[u8], is_wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut in_quotes = false;
    text.iter().position(|&byte| {
        in_quotes ^= byte == b'"';
        !in_quotes && is_wanted(byte)
    })
}
