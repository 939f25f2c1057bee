//! The header: the first row of a file, and the names in it.

use super::{
    row_end::State,
    rows::{Resume, Row, Wanted, text_of},
    scanner::{BYTE_ORDER_MARK, Scanner},
};
use crate::{
    error::csv::{CellFault, CsvError},
    limits::{COLUMNS_MAX, CsvLimits},
};

/// The header row of a file that is in memory, as it stands there; empty if the file has none.
pub fn header_of(csv: &[u8]) -> &[u8] {
    let csv = csv.strip_prefix(BYTE_ORDER_MARK).unwrap_or(csv);
    let start = csv.iter().position(|byte| !matches!(byte, b'\n' | b'\r')).unwrap_or(csv.len());
    let header = &csv[start..];
    &header[..State::CellStart.row_end(header).unwrap_or(header.len())]
}

/// The cells of one row that stands by itself.
pub fn split_record(text: &str) -> Result<Vec<String>, CellFault> {
    let mut scanner = Scanner::new(CsvLimits::default(), Wanted::All, Resume::default());
    let bytes = text.as_bytes();
    match scanner.split(bytes, COLUMNS_MAX, Wanted::All) {
        Ok(_) => {}
        Err(CsvError::Cell { problem, .. }) => return Err(problem),
        Err(_impossible) => return Err(CellFault::TextAfterQuote),
    }
    let row = Row { number: 0, bytes, unescaped: &scanner.unescaped, spans: &scanner.spans };
    row.cells().map(|cell| text_of(cell).map(str::to_owned)).collect()
}
