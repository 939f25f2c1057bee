//! The header: the first row of a file, and the names in it.

use std::{borrow::Cow, collections::HashSet, ops::Range};

use super::{
    file_scan::FileScan,
    row_end::QuoteState,
    rows::{Cells, Resume, Row, Rows, Wanted},
    scanner::{BYTE_ORDER_MARK, Scanner},
    text::text_of,
};
use crate::{
    engine::storage::reader::Reader,
    error::{
        Error,
        csv::{CellFault, CellPosition, CsvError},
    },
    limits::{COLUMNS_MAX, CsvLimits, HEADER_BYTES_MAX, KIB},
};

/// Bytes of a file that are read at once to find its header.
const HEADER_BLOCK_BYTES: usize = 16 * KIB;

/// The names of a file's columns. Reads about as far as the end of the header.
///
/// Errors: the header is invalid; there is no header, or more empty lines before it than a header may have bytes.
pub fn read_header(file: &Reader, limits: CsvLimits) -> Result<Vec<String>, Error> {
    let mut scan = FileScan::new(file.clone(), limits, Wanted::All, Resume::default(), OnlyHeader);
    for _ in 0..=2 * HEADER_BYTES_MAX / HEADER_BLOCK_BYTES {
        match scan.step(HEADER_BLOCK_BYTES) {
            Ok(true) => break,
            Ok(false) => {}
            Err(HeaderStop::Found(names)) => return Ok(names),
            Err(HeaderStop::Failed(error)) => return Err(error),
        }
    }
    Err(CsvError::NoHeader.into())
}

/// The names of the columns of a file that begins with `first`, and the offset after the header's row end. `None` if the
/// header is incomplete or invalid, or if several columns have no name.
pub fn parse_header(first: &[u8], limits: CsvLimits) -> Option<(Vec<String>, usize)> {
    let rows_start = header_range(first).end + 1;
    let mut scanner = Scanner::new(limits, Wanted::All, Resume::default());
    match scanner.feed(first.get(..rows_start)?, &mut OnlyHeader) {
        Err(HeaderStop::Found(names)) if unnamed_columns(&names).is_empty() => Some((names, rows_start)),
        Err(HeaderStop::Found(_) | HeaderStop::Failed(_)) | Ok(()) => None,
    }
}

/// The columns without a name, by index, if there are several: they must be without values, too. A single one may have
/// values.
pub fn unnamed_columns(names: &[String]) -> Vec<usize> {
    let unnamed = || names.iter().enumerate().filter(|(_, name)| name.is_empty());
    if unnamed().nth(1).is_none() { Vec::new() } else { unnamed().map(|(index, _)| index).collect() }
}

/// Checks that a row has no value in the [`unnamed_columns`].
pub fn check_unnamed(row: &Row<'_>, unnamed: &[usize]) -> Result<(), CsvError> {
    match unnamed.iter().find(|&&column_index| !row.cell(column_index).is_empty()) {
        None => Ok(()),
        Some(&column_index) => {
            let position = CellPosition::new(row.number.into(), column_index, &[]);
            Err(CsvError::Cell { position, problem: CellFault::Unnamed })
        }
    }
}

/// The names that columns have in a receipt and in Parquet, where all names are different: if several columns have no name,
/// `unnamed 4` is the one at position 4, with `_` after it while another column has that name.
pub fn stored_names(names: &[String]) -> Cow<'_, [String]> {
    let unnamed = unnamed_columns(names);
    if unnamed.is_empty() {
        return Cow::Borrowed(names);
    }
    let taken: HashSet<&String> = names.iter().collect();
    let mut stored = names.to_vec();
    for index in unnamed {
        let mut name = format!("unnamed {}", index + 1);
        while taken.contains(&name) {
            name.push('_');
        }
        stored[index] = name;
    }
    Cow::Owned(stored)
}

/// The text of the header of a file that is in memory; empty if the file has none.
pub fn header_of(csv: &[u8]) -> &[u8] {
    &csv[header_range(csv)]
}

/// From the first byte of the header to its row end, or to the end of `csv`.
fn header_range(csv: &[u8]) -> Range<usize> {
    let text_start = if csv.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let empty_lines = csv[text_start..].iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
    let start = text_start + empty_lines;
    let end = QuoteState::CellStart.row_end(&csv[start..]).map_or(csv.len(), |len| start + len);
    start..end
}

/// Ends a scan as soon as the header is known.
struct OnlyHeader;

enum HeaderStop {
    Found(Vec<String>),
    Failed(Error),
}

impl Rows for OnlyHeader {
    type Error = HeaderStop;

    fn header(&mut self, names: &[String]) -> Result<(), HeaderStop> {
        Err(HeaderStop::Found(names.to_vec()))
    }

    fn row(&mut self, _row: Row<'_>) -> Result<(), HeaderStop> {
        Ok(())
    }
}

impl From<CsvError> for HeaderStop {
    fn from(error: CsvError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Error> for HeaderStop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The cells of a single row.
pub fn split_record(text: &str) -> Result<Vec<String>, CellFault> {
    let mut scanner = Scanner::new(CsvLimits::default(), Wanted::All, Resume::default());
    let bytes = text.as_bytes();
    match scanner.split(bytes, COLUMNS_MAX, Wanted::All) {
        Ok(_) => {}
        Err(CsvError::Cell { problem, .. }) => return Err(problem),
        Err(_impossible) => return Err(CellFault::TextAfterQuote),
    }
    let row = Row { number: 0, bytes, unescaped: &scanner.unescaped, cells: Cells::Spans(&scanner.spans) };
    row.cells().map(|cell| text_of(cell).map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_parsed_once_it_is_complete() {
        let limits = CsvLimits::default();
        let complete = [
            ("a,b\n1,2\n", "a|b", 4),
            ("a,b\r\n1,2\n", "a|b", 4),
            ("a,b\r1,2\r", "a|b", 4),
            ("\u{feff}\n\r\na,\"b\n\"\"c\"\n1,2\n", "a|b\n\"c", 16),
        ];
        for (first, names, rows_start) in complete {
            let parsed = parse_header(first.as_bytes(), limits).map(|(names, start)| (names.join("|"), start));
            assert_eq!(parsed, Some((names.to_owned(), rows_start)), "{first:?}");
        }
        for first in ["", "\n\n", "a,b", "a,\"b\n1,2\n", "a,a\n1,2\n", "a,\"b\"c\n1,2\n", "\u{feff}", "a,,\n1,2,3\n"] {
            assert_eq!(parse_header(first.as_bytes(), limits), None, "{first:?}");
        }
    }

    #[test]
    fn stored_names_are_different() {
        for (names, stored) in [
            (&["", "x"][..], &["", "x"][..]),
            (&["x", "", ""], &["x", "unnamed 2", "unnamed 3"]),
            (&["", "unnamed 1", "unnamed 1_", ""], &["unnamed 1__", "unnamed 1", "unnamed 1_", "unnamed 4"]),
        ] {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(*stored_names(&names), *stored);
        }
    }
}
