//! The line of a file on which a row begins, for errors. Scanners count rows, which costs them nothing; lines are counted from
//! the start of the file once an error has occurred.
//!
//! A line ends with LF, CRLF or CR, also inside a quoted cell, as an editor shows it. So a row may have several lines, and an
//! empty line is no row.

use memchr::memchr2_iter;

use super::{row_end::QuoteState, scanner::BYTE_ORDER_MARK};
use crate::{
    engine::storage::reader::{Blocks, Reader},
    error::Error,
    limits::TASK_BYTES,
};

/// Counts the lines before a row.
pub struct LineCount {
    /// What may still be the rest of a byte order mark.
    byte_order_mark: &'static [u8],
    /// Rows, with the header, that begin before the wanted one and have not begun yet.
    rows_left: u64,
    state: QuoteState,
    /// Whether the next byte begins a row, or is the end of an empty line.
    at_row_start: bool,
    /// Line ends before the current position. A CR counts when the next byte is no LF.
    line_ends: u64,
    after_cr: bool,
}

impl LineCount {
    /// For a data row of a file, from 1, or the header, 0.
    pub fn before_row(row: u64) -> Self {
        Self {
            byte_order_mark: BYTE_ORDER_MARK,
            rows_left: row, // the header counts, the wanted row does not
            state: QuoteState::CellStart,
            at_row_start: true,
            line_ends: 0,
            after_cr: false,
        }
    }

    /// Reads the next bytes of the file. Returns the line of the row once it has begun.
    pub fn feed(&mut self, mut block: &[u8]) -> Option<u64> {
        while let (Some((expected, mark)), Some((byte, rest))) =
            (self.byte_order_mark.split_first(), block.split_first())
        {
            if byte != expected {
                self.byte_order_mark = &[];
                break;
            }
            (self.byte_order_mark, block) = (mark, rest);
        }
        let mut at = 0;
        while at < block.len() {
            if self.at_row_start {
                let empty = block[at..].iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
                self.count_line_ends(&block[at..at + empty]);
                at += empty;
                if at == block.len() {
                    return None;
                }
                if self.rows_left == 0 {
                    return Some(self.line_ends + u64::from(self.after_cr) + 1);
                }
                self.at_row_start = false;
                self.rows_left -= 1;
                self.state = QuoteState::CellStart;
            }
            let end = self.state.row_end(&block[at..]).map(|len| at + len + 1);
            self.count_line_ends(&block[at..end.unwrap_or(block.len())]);
            at = end?;
            self.at_row_start = true;
        }
        None
    }

    fn count_line_ends(&mut self, bytes: &[u8]) {
        let Some(&first) = bytes.first() else { return };
        if std::mem::take(&mut self.after_cr) && first != b'\n' {
            self.line_ends += 1;
        }
        for at in memchr2_iter(b'\n', b'\r', bytes) {
            match (bytes[at], bytes.get(at + 1)) {
                (b'\r', Some(b'\n')) => {}
                (b'\r', None) => self.after_cr = true,
                _ => self.line_ends += 1,
            }
        }
    }
}

/// The row that an error is in; 0 is the header.
fn row_of(error: &Error) -> Option<u64> {
    let Error::Csv(error) = error else { return None };
    error.row().map(|row| row.number)
}

fn on_line(error: Error, line: Option<u64>) -> Error {
    match (error, line) {
        (Error::Csv(error), Some(line)) => error.on_line(line).into(),
        (error, _) => error,
    }
}

/// The error with its line, if it is in a row of this file, which is in memory.
pub fn with_line_of(error: Error, csv: &[u8]) -> Error {
    let line = row_of(&error).and_then(|row| LineCount::before_row(row).feed(csv));
    on_line(error, line)
}

/// The error with its line, if it is in a row of `file`. `run` runs a step of the search on a worker. If the file cannot be
/// read again, the error stays as it is.
pub async fn with_line<F>(error: Error, file: &Reader, mut run: impl FnMut(LineSearch) -> F) -> Error
where
    F: Future<Output = Result<LineSearch, Error>>,
{
    let Some(row) = row_of(&error) else { return error };
    let mut search = LineSearch::new(file, row);
    while search.line.is_none() && search.offset < search.file_bytes {
        match run(search).await {
            Ok(next) => search = next,
            Err(_unreadable) => return error,
        }
    }
    on_line(error, search.line)
}

/// The search for the line of a row in a file, step by step, so that each step can be a task of a worker.
pub struct LineSearch {
    file_bytes: u64,
    blocks: Blocks,
    offset: u64,
    count: LineCount,
    line: Option<u64>,
}

impl LineSearch {
    fn new(file: &Reader, row: u64) -> Self {
        let (file_bytes, blocks) = (file.bytes(), file.blocks());
        Self { file_bytes, blocks, offset: 0, count: LineCount::before_row(row), line: None }
    }

    /// Reads about [`TASK_BYTES`] more.
    pub fn step(mut self) -> Result<Self, Error> {
        let stop = self.file_bytes.min(self.offset + TASK_BYTES as u64);
        while self.line.is_none() && self.offset < stop {
            let block = self.blocks.from(self.offset)?;
            self.offset += block.len() as u64;
            self.line = self.count.feed(block);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the line of each row, with the file whole, byte by byte, and in two blocks with every possible border.
    fn check(csv: &str, expected: &[u64]) {
        for (row, &line) in (0..).zip(expected) {
            let csv = csv.as_bytes();
            assert_eq!(LineCount::before_row(row).feed(csv), Some(line), "row {row}: {csv:?}");
            for cut in 0..csv.len() {
                let (left, right) = csv.split_at(cut);
                let mut count = LineCount::before_row(row);
                let found = count.feed(left).or_else(|| count.feed(right));
                assert_eq!(found, Some(line), "row {row}, cut at {cut}: {csv:?}");
            }
            let mut count = LineCount::before_row(row);
            assert_eq!(csv.chunks(1).find_map(|byte| count.feed(byte)), Some(line), "row {row}, byte by byte: {csv:?}");
        }
        assert_eq!(LineCount::before_row(expected.len() as u64).feed(csv.as_bytes()), None, "{csv:?}");
    }

    #[test]
    fn lines_are_as_an_editor_shows_them() {
        check("a\n1\n2", &[1, 2, 3]);
        check("a\r\n1\r\n2\r\n", &[1, 2, 3]);
        check("a\r1\r2\r", &[1, 2, 3]);
        check("\n\r\na\n\n\r\r\n1\r\r2", &[3, 7, 9]);
        check("a,b\n\"1\n2\",\"x\r\ny\rz\"\n3,4\n", &[1, 2, 6]);
        check("\"a\n\n\",b\r\n\"\"\"\n\",5\" pipe\n3,4\n", &[1, 4, 6]);
        check("\u{feff}a\n1\n", &[1, 2]);
        check("\u{feff}\n\"a\n\"\n1\n", &[2, 4]);
        check("", &[]);
    }
}
