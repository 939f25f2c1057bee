//! Rows of a dialect to rows with commas, quoted as RFC 4180 needs it. If the delimiter was named, they are also quoted so that
//! `sniff.rs` does not take the file for one of another kind if it is downloaded and sent again.
//!
//! Row ends are kept as they are, also those of empty lines, so that an error in a row names the same row and line as in the
//! file that came. Memory: the start of a cell. A longer cell is written in quotes while it is read.

use memchr::{memchr, memchr3};

use crate::{
    engine::csv::{
        scanner::BYTE_ORDER_MARK,
        write::{is_other_separator, write_cell, write_in_quotes, write_name, write_quoted},
    },
    error::dialect::DialectError,
    limits::{CELL_START_BYTES, COLUMNS_MAX, NULL_TEXTS_BYTES_MAX, REWRITE_EMPTY_CELLS_MAX},
    model::dialect::{Dialect, NullTexts},
};

/// More empty cells are not written, because a row that has them is refused.
const _: () = assert!(REWRITE_EMPTY_CELLS_MAX > COLUMNS_MAX);

/// The state of a file whose rows are rewritten.
pub(super) struct Rewriter {
    delimiter: u8,
    /// Whether the file is taken whatever it looks like, see `sniff.rs`, which looks at what is written here.
    is_accepted: bool,
    null: NullTexts,
    trim: bool,
    drop_trailing_empty: bool,
    state: State,
    /// Bytes of a byte order mark that were seen at the start of the file.
    mark_bytes: usize,
    cell: Cell,
    row: Row,
    /// Rows that have ended; the first is the header.
    rows: u64,
    /// Columns of the header, once it has ended.
    header_cells: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of the file, where a byte order mark is skipped.
    FileStart,
    /// Before a cell. White space may have been skipped.
    CellStart,
    /// In a cell without quotes.
    Plain,
    /// In a quoted cell.
    Quoted,
    /// After a quote in a quoted cell: it ends the cell, or it is the first of two. White space may have been skipped.
    Closing { skipped: bool },
    /// After something that no row may have: the rest is copied, and the scanner reports the fault.
    Invalid,
}

/// The cell that is being read.
#[derive(Default)]
struct Cell {
    /// Text that is not written yet.
    text: Vec<u8>,
    /// Whether a quote and some of the text are written.
    is_open: bool,
}

/// The row that is being written.
#[derive(Default)]
struct Row {
    /// Cells that have ended.
    cells: u64,
    /// Cells that are written, with the one that is open.
    written: u64,
    /// Whether the first cell is written and empty.
    first_is_empty: bool,
}

impl Rewriter {
    pub(super) fn new(dialect: &Dialect) -> Self {
        Self {
            delimiter: dialect.delimiter.map_or(b',', |delimiter| delimiter.byte()),
            is_accepted: dialect.delimiter.is_some(),
            null: dialect.null.clone(),
            trim: dialect.trim,
            drop_trailing_empty: dialect.drop_trailing_empty,
            state: State::FileStart,
            mark_bytes: 0,
            cell: Cell::default(),
            row: Row::default(),
            rows: 0,
            header_cells: 0,
        }
    }

    /// Appends to `output` what the next bytes of the file become.
    ///
    /// Errors: white space that is too long to be kept.
    pub(super) fn push(&mut self, mut text: &[u8], output: &mut Vec<u8>) -> Result<(), DialectError> {
        while let Some(&byte) = text.first() {
            let taken = match self.state {
                State::FileStart => self.take_mark(byte, output)?,
                State::CellStart => self.begin_cell(byte, output)?,
                State::Plain => {
                    let end = memchr3(self.delimiter, b'\n', b'\r', text).unwrap_or(text.len());
                    self.take_text(&text[..end], output)?;
                    match text.get(end) {
                        Some(&byte) => self.end_cell_at(byte, output) + end,
                        None => end,
                    }
                }
                State::Quoted => {
                    let quote = memchr(b'"', text);
                    self.take_text(&text[..quote.unwrap_or(text.len())], output)?;
                    if quote.is_some() {
                        self.state = State::Closing { skipped: false };
                    }
                    quote.map_or(text.len(), |quote| quote + 1)
                }
                State::Closing { skipped } => self.after_quote(byte, skipped, output)?,
                State::Invalid => {
                    output.extend_from_slice(text);
                    text.len()
                }
            };
            text = &text[taken..];
        }
        Ok(())
    }

    /// Ends the file, whose last row may lack a row end.
    pub(super) fn finish(&mut self, output: &mut Vec<u8>) -> Result<(), DialectError> {
        if self.state == State::FileStart {
            self.end_mark(output)?;
        }
        match self.state {
            State::Quoted => {
                // The quote stays open, so that the scanner reports it.
                self.open_cell(output);
            }
            State::CellStart if self.row.cells == 0 => {}
            State::CellStart | State::Plain | State::Closing { .. } => {
                self.end_cell(output);
                self.end_row(output);
            }
            State::FileStart | State::Invalid => {}
        }
        Ok(())
    }

    /// Takes a byte that may belong to a byte order mark.
    fn take_mark(&mut self, byte: u8, output: &mut Vec<u8>) -> Result<usize, DialectError> {
        if byte != BYTE_ORDER_MARK[self.mark_bytes] {
            self.end_mark(output)?;
            return Ok(0);
        }
        self.mark_bytes += 1;
        if self.mark_bytes == BYTE_ORDER_MARK.len() {
            self.state = State::CellStart;
        }
        Ok(1)
    }

    /// What has looked like a byte order mark is text.
    fn end_mark(&mut self, output: &mut Vec<u8>) -> Result<(), DialectError> {
        self.state = if self.mark_bytes == 0 { State::CellStart } else { State::Plain };
        self.take_text(&BYTE_ORDER_MARK[..self.mark_bytes], output)
    }

    /// Takes the first byte of a cell, or white space before it.
    fn begin_cell(&mut self, byte: u8, output: &mut Vec<u8>) -> Result<usize, DialectError> {
        let is_row_end = matches!(byte, b'\n' | b'\r');
        if is_row_end && self.row.cells == 0 {
            output.push(byte); // an empty line is no row
            return Ok(1);
        }
        if byte == self.delimiter || is_row_end {
            return Ok(self.end_cell_at(byte, output));
        }
        if byte == b'"' {
            self.state = State::Quoted;
            return Ok(1);
        }
        if self.trim && is_space(byte) {
            return Ok(1);
        }
        self.state = State::Plain;
        self.take_text(&[byte], output)?;
        Ok(1)
    }

    /// Takes a byte after a quote in a quoted cell.
    fn after_quote(&mut self, byte: u8, skipped: bool, output: &mut Vec<u8>) -> Result<usize, DialectError> {
        if byte == self.delimiter || matches!(byte, b'\n' | b'\r') {
            return Ok(self.end_cell_at(byte, output));
        }
        if byte == b'"' && !skipped {
            self.take_text(b"\"", output)?;
            self.state = State::Quoted;
            return Ok(1);
        }
        if self.trim && is_space(byte) {
            self.state = State::Closing { skipped: true };
            return Ok(1);
        }
        self.open_cell(output);
        output.extend_from_slice(b"\" "); // a fault in plain CSV, whatever follows
        self.state = State::Invalid;
        Ok(0)
    }

    /// Adds text to the cell. What is too long to be kept is written.
    fn take_text(&mut self, mut text: &[u8], output: &mut Vec<u8>) -> Result<(), DialectError> {
        if self.trim && !self.cell.is_open && self.cell.text.is_empty() {
            text = text.trim_ascii_start(); // in quotes
        }
        while !text.is_empty() {
            let room = CELL_START_BYTES - self.cell.text.len();
            let (taken, rest) = text.split_at(text.len().min(room));
            self.cell.text.extend_from_slice(taken);
            text = rest;
            if self.cell.text.len() == CELL_START_BYTES {
                self.write_start(output)?;
            }
        }
        Ok(())
    }

    /// Writes the text of a long cell, but not the white space at its end, which may have to be removed.
    fn write_start(&mut self, output: &mut Vec<u8>) -> Result<(), DialectError> {
        let kept = if self.trim { self.cell.text.len() - self.cell.text.trim_ascii_end().len() } else { 0 };
        // As much text must be left as to know that it does not mean "no value"; of an open cell, some.
        let text_min = if self.cell.is_open { 1 } else { NULL_TEXTS_BYTES_MAX + 1 };
        if self.cell.text.len() - kept < text_min {
            let (row, column) = (self.rows, self.row.cells + 1);
            return Err(DialectError::LongWhiteSpace { row, column, bytes: CELL_START_BYTES - NULL_TEXTS_BYTES_MAX });
        }
        let spaces = self.cell.text.split_off(self.cell.text.len() - kept);
        self.open_cell(output);
        self.cell.text = spaces;
        Ok(())
    }

    /// Writes the text of the cell in quotes that are not closed.
    fn open_cell(&mut self, output: &mut Vec<u8>) {
        if !self.cell.is_open {
            self.begin_output(output);
            output.push(b'"');
            self.cell.is_open = true;
        }
        write_in_quotes(output, &self.cell.text);
        self.cell.text.clear();
    }

    /// Ends the cell at a delimiter or a row end, which is taken.
    fn end_cell_at(&mut self, byte: u8, output: &mut Vec<u8>) -> usize {
        self.end_cell(output);
        if byte != self.delimiter {
            self.end_row(output);
            output.push(byte);
        }
        1
    }

    fn end_cell(&mut self, output: &mut Vec<u8>) {
        self.state = State::CellStart;
        let Cell { mut text, is_open } = std::mem::take(&mut self.cell);
        if self.trim {
            text.truncate(text.trim_ascii_end().len());
        }
        if is_open {
            write_in_quotes(output, &text);
            output.push(b'"');
        } else {
            let is_null = self.rows > 0 && self.null.has(&text);
            self.write_short_cell(if is_null { b"" } else { &text }, output);
        }
        self.row.cells += 1;
        text.clear();
        self.cell.text = text; // its memory is used again
    }

    fn write_short_cell(&mut self, text: &[u8], output: &mut Vec<u8>) {
        let cells_min = if self.rows == 0 { 1 } else { self.header_cells };
        let may_be_dropped = self.drop_trailing_empty && text.is_empty() && self.row.cells >= cells_min;
        if may_be_dropped {
            return; // unless another cell follows
        }
        self.begin_output(output);
        self.row.first_is_empty = self.row.cells == 0 && text.is_empty();
        // In a table of one column, other separators may make a header look like a title.
        let is_misleading =
            || self.is_accepted && self.header_cells == 1 && text.iter().any(|byte| is_other_separator(*byte));
        if self.rows == 0 && self.is_accepted {
            write_name(output, text, usize::try_from(self.row.cells).unwrap_or(usize::MAX));
        } else if is_misleading() {
            write_quoted(output, text);
        } else {
            write_cell(output, text);
        }
    }

    /// Writes the empty cells before the current one that are not written yet, and what separates it from them.
    fn begin_output(&mut self, output: &mut Vec<u8>) {
        let commas = self.row.cells - self.row.written + u64::from(self.row.written > 0);
        // A row that has more is refused, so the rest need not be written.
        for _ in 0..commas.min(REWRITE_EMPTY_CELLS_MAX as u64) {
            output.push(b',');
        }
        self.row.written = self.row.cells + 1;
    }

    /// Ends the row, without its row end.
    fn end_row(&mut self, output: &mut Vec<u8>) {
        if self.row.written == 1 && self.row.first_is_empty {
            output.extend_from_slice(b"\"\""); // an empty line would be no row
        }
        if self.rows == 0 {
            self.header_cells = self.row.written;
        }
        self.rows += 1;
        self.row = Row::default();
    }
}

/// White space that is removed around a cell: as column sums ignore it.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace()
}
