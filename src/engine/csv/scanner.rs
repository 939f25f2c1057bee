//! Splits CSV bytes into rows: the dialect (RFC 4180 as docs/csv.md narrows it), the limits, the positions of errors.
//!
//! A [`Scanner`] takes blocks that may end anywhere, and calls a [`Rows`] for each row. Rows and errors do not depend on
//! where the blocks end. Nothing here knows files or the meaning of cells.
//!
//! Rows are scanned in the block, without a copy. For the sum of one column there are three methods, tried in this order:
//! vector code adds up plain rows ([`kernels::sum_rows`]); vector code finds the column's cells ([`kernels::find_cells`]);
//! `scan` visits every separator. For all columns, vector code finds the separators of plain rows (`plain_rows.rs`), and `scan`
//! reads the others. A row with a quote is parsed again by `deliver_quoted`.
//!
//! Memory: one row that crosses the end of a block, and the spans of one row's cells; both bounded by [`CsvLimits`].

use std::collections::HashSet;

use memchr::{memchr, memrchr2};

use super::{
    row_end::QuoteState,
    rows::{Cells, Resume, Row, Rows, Span, Wanted},
    text::text_of,
};
use crate::{
    engine::{
        kernels::{self, LANES, RowCell, Stopped, classify::structure},
        values::sum::Sum,
    },
    error::{
        csv::{CellFault, CellPosition, CsvError, FileRow},
        foreign_file::Use,
    },
    limits::{CsvLimits, HEADER_BYTES_MAX, KIB, NAME_BYTES_MAX},
};

/// Turns blocks of bytes into rows.
pub struct Scanner {
    limits: CsvLimits,
    wanted: Wanted,
    pub(super) names: Vec<String>,
    pub(super) rows: u64,
    pub(super) longest_row_bytes: usize,
    pub(super) offset: u64,        // of the next byte to be fed
    bom_possible: bool,            // only the first bytes of a file can be a byte order mark
    pub(super) carry: Vec<u8>,     // a row whose end has not been fed
    carry_state: QuoteState,       // the state after its last byte
    pub(super) spans: Vec<Span>,   // scratch, for one row
    pub(super) unescaped: Vec<u8>, // scratch: cells of one row that had doubled quotes
    pub(super) marks: Vec<u32>,    // scratch: where cells may end
}

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl Scanner {
    /// Continues where another scanner stopped; `Resume::default()` is the start of a file.
    pub fn new(limits: CsvLimits, wanted: Wanted, resume: Resume) -> Self {
        Self {
            limits,
            wanted,
            rows: resume.rows,
            longest_row_bytes: 0,
            offset: resume.offset,
            bom_possible: resume.offset == 0,
            names: resume.names,
            carry: Vec::new(),
            carry_state: QuoteState::CellStart,
            spans: Vec::new(),
            unescaped: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Scans the next bytes of the file.
    pub fn feed<R: Rows>(&mut self, block: &[u8], rows: &mut R) -> Result<(), R::Error> {
        self.offset += block.len() as u64;
        let mut rest = self.skip_byte_order_mark(block);
        // The header, and the row that began in the last block, go through the carry; the rest is scanned where it is.
        while !rest.is_empty() && (self.names.is_empty() || !self.carry.is_empty()) {
            rest = self.complete_carried_row(rest, rows)?;
        }
        // If the block is within the limits, so are its rows and cells.
        let is_small = rest.len() <= self.limits.row_bytes_max.min(self.limits.cell_bytes_max);
        let scanned = match self.wanted {
            Wanted::Column(column) if R::TAKES_SUMS && is_small => self.scan_sums(rest, column, rows)?,
            Wanted::All if PLAIN_BYTES <= self.limits.row_bytes_max.min(self.limits.cell_bytes_max) => {
                self.scan_plain(rest, rows)?
            }
            Wanted::Column(_) | Wanted::All => self.scan(rest, rows, u64::MAX)?,
        };
        let unfinished = &rest[scanned..];
        if !unfinished.is_empty() {
            self.carry.extend_from_slice(unfinished);
            self.carry_state = QuoteState::CellStart;
            self.carry_state.row_end(unfinished);
            self.check_row_bytes(self.carry.len())?;
        }
        Ok(())
    }

    /// Ends the file, whose last row may lack a row end.
    pub fn finish<R: Rows>(&mut self, rows: &mut R) -> Result<(), R::Error> {
        if !self.carry.is_empty() {
            self.deliver_carry(rows)?;
        }
        if self.names.is_empty() { Err(CsvError::NoHeader.into()) } else { Ok(()) }
    }

    /// The position after the last complete row.
    pub fn into_resume(self) -> Resume {
        Resume { offset: self.offset - self.carry.len() as u64, rows: self.rows, names: self.names }
    }

    fn skip_byte_order_mark<'a>(&mut self, mut block: &'a [u8]) -> &'a [u8] {
        while self.bom_possible && !block.is_empty() {
            if block[0] != BYTE_ORDER_MARK[self.carry.len()] {
                self.bom_possible = false;
                self.carry_state = if self.carry.is_empty() { QuoteState::CellStart } else { QuoteState::Plain };
                break;
            }
            self.carry.push(block[0]);
            block = &block[1..];
            if self.carry == BYTE_ORDER_MARK {
                self.bom_possible = false;
                self.carry.clear();
            }
        }
        block
    }

    /// Completes the carried row, and reads nothing after it. Returns the index in `block` after its row end; 0 if no row
    /// is carried, `None` if the row does not end in `block`.
    pub(super) fn feed_row_end<R: Rows>(&mut self, block: &[u8], rows: &mut R) -> Result<Option<usize>, R::Error> {
        if self.carry.is_empty() {
            return Ok(Some(0));
        }
        let rest = self.complete_carried_row(block, rows)?;
        // If the rest is empty, the row may or may not have ended with the block; an empty carry shows that it did.
        let end = if self.carry.is_empty() { Some(block.len() - rest.len()) } else { None };
        self.offset += end.unwrap_or(block.len()) as u64;
        Ok(end)
    }

    /// Appends to the carried row up to its end, and delivers it if the end is there. Returns what follows.
    fn complete_carried_row<'a, R: Rows>(&mut self, block: &'a [u8], rows: &mut R) -> Result<&'a [u8], R::Error> {
        let end = self.carry_state.row_end(block);
        self.carry.extend_from_slice(&block[..end.unwrap_or(block.len())]);
        self.check_row_bytes(self.carry.len())?;
        let Some(end) = end else { return Ok(&[]) };
        self.deliver_carry(rows)?;
        Ok(&block[end + 1..])
    }

    fn deliver_carry<R: Rows>(&mut self, rows: &mut R) -> Result<(), R::Error> {
        let mut carry = std::mem::take(&mut self.carry);
        self.carry_state = QuoteState::CellStart;
        if carry.is_empty() {
            // An empty line is no row.
        } else if self.names.is_empty() {
            self.read_header(&carry)?;
            rows.header(&self.names)?;
        } else if !self.deliver_one_cell(&mut carry, rows)? {
            self.deliver_quoted(&carry, rows)?;
        }
        carry.clear();
        self.carry = carry;
        Ok(())
    }

    /// Delivers a row to a receiver that takes sums. Returns false if the row needs `deliver_quoted`.
    fn deliver_one_cell<R: Rows>(&mut self, row: &mut Vec<u8>, rows: &mut R) -> Result<bool, R::Error> {
        let Wanted::Column(column) = self.wanted else { return Ok(false) };
        if !R::TAKES_SUMS || row.len() > self.limits.cell_bytes_max {
            return Ok(false);
        }
        row.push(b'\n');
        let scanned = self.scan_column(row, column, rows)?;
        row.pop();
        Ok(scanned > 0)
    }

    /// As `scan`, for a receiver that takes sums: plain rows are added up together.
    fn scan_sums<R: Rows>(&mut self, block: &[u8], column: usize, rows: &mut R) -> Result<usize, R::Error> {
        let mut at = 0;
        if kernels::serves(self.names.len()) {
            let piece_end = |at: usize| block.len().min(at + SUMMED_BYTES);
            while let Some(last) = memrchr2(b'\n', b'\r', &block[at..piece_end(at)]) {
                let piece = &block[at..=at + last];
                if let Some(added) = kernels::sum_rows(piece, self.names.len(), column) {
                    self.rows += added.rows;
                    rows.sum(Sum::of(added.total));
                    at += piece.len();
                    continue;
                }
                let scanned = self.scan_column(piece, column, rows)?;
                at += scanned;
                if scanned < piece.len() {
                    break; // the piece ended inside a quoted cell
                }
            }
        }
        Ok(at + self.scan_column(&block[at..], column, rows)?)
    }

    /// As `scan`, for one column of rows that are within the limits.
    fn scan_column<R: Rows>(&mut self, block: &[u8], column: usize, rows: &mut R) -> Result<usize, R::Error> {
        let mut cells = [RowCell::default(); CELLS_AT_ONCE];
        let mut at = 0;
        loop {
            let rest = &block[at..];
            let found = kernels::find_cells(rest, self.names.len(), column, &mut cells);
            for cell in &cells[..found.count] {
                let row = &rest[cell.row..];
                let (mut start, mut end) = (cell.start - cell.row, cell.end - cell.row);
                if row[start] == b'"' {
                    (start, end) = (start + 1, end - 1);
                    if memchr(b'"', &row[start..end]).is_some() {
                        self.deliver_quoted(&row[..cell.row_end - cell.row], rows)?;
                        continue;
                    }
                }
                self.rows += 1;
                let spans = [Span { start, end, unescaped: false }];
                rows.row(Row { number: self.rows, bytes: row, unescaped: &[], cells: Cells::Spans(&spans) })?;
            }
            at += found.next;
            match found.stopped {
                Stopped::Full => {}
                Stopped::End => return Ok(at),
                // More rows are probably irregular, so the rest is scanned.
                Stopped::Irregular => return Ok(at + self.scan(&block[at..], rows, u64::MAX)?),
            }
        }
    }

    /// Scans up to `rows_max` rows in the block, and returns the start of the next row, or of the row that does not end in the
    /// block. Quotes are rare, so a row that has one is parsed again by `deliver_quoted`.
    pub(super) fn scan<R: Rows>(&mut self, block: &[u8], rows: &mut R, rows_max: u64) -> Result<usize, R::Error> {
        let rows_end = self.rows.saturating_add(rows_max);
        let columns = self.names.len();
        let wanted = self.wanted;
        let mut row = 0; // where the row starts
        let mut cell = 0; // where the cell starts
        let mut cells = 0; // cells of the row that have ended
        let mut found = Span { start: 0, end: 0, unescaped: false }; // the one cell that is wanted
        let mut base = 0; // where the next 64 bytes start
        self.spans.clear();
        'lanes: while base < block.len() {
            let mut marks = structure(block, base);
            while marks != 0 {
                let at = base + marks.trailing_zeros() as usize;
                marks &= marks - 1;
                let byte = block[at];
                if byte == b'"' {
                    if at != cell {
                        continue; // a quote inside an unquoted cell is text
                    }
                    let Some(len) = QuoteState::CellStart.row_end(&block[row..]) else {
                        return Ok(row);
                    };
                    self.deliver_quoted(&block[row..row + len], rows)?;
                    row += len + 1;
                    base = row;
                    (cell, cells) = (row, 0);
                    self.spans.clear();
                    if self.rows == rows_end {
                        return Ok(row);
                    }
                    continue 'lanes;
                }
                let is_row_end = byte != b',';
                if is_row_end && at == row {
                    // An empty line is no row.
                    row = at + 1;
                    cell = row;
                    continue;
                }
                let span = Span { start: cell - row, end: at - row, unescaped: false };
                match wanted {
                    Wanted::Column(column) if column == cells => found = span,
                    Wanted::All if cells < columns => self.spans.push(span),
                    Wanted::Column(_) | Wanted::All => {}
                }
                cells += 1;
                cell = at + 1;
                if is_row_end {
                    if wanted == Wanted::All {
                        self.deliver(&block[row..], at - row, cells, rows)?;
                        self.spans.clear();
                    } else {
                        let bytes = &block[row..];
                        self.check_row(bytes, at - row, cells)?;
                        self.rows += 1;
                        let spans = std::slice::from_ref(&found);
                        rows.row(Row { number: self.rows, bytes, unescaped: &[], cells: Cells::Spans(spans) })?;
                    }
                    (row, cells) = (cell, 0);
                    if self.rows == rows_end {
                        return Ok(row);
                    }
                }
            }
            base += LANES;
        }
        Ok(row)
    }

    /// Checks a row whose spans are known, and delivers it. It is the first `len` of `bytes`.
    fn deliver<R: Rows>(&mut self, bytes: &[u8], len: usize, cells: usize, rows: &mut R) -> Result<(), R::Error> {
        if len > self.limits.cell_bytes_max {
            self.check_row_bytes(len)?;
            for (column_index, span) in self.spans.iter().enumerate() {
                self.check_cell_bytes(column_index, span.end - span.start)?;
            }
        }
        self.check_row(bytes, len, cells)?;
        self.rows += 1;
        self.longest_row_bytes = self.longest_row_bytes.max(len);
        rows.row(Row { number: self.rows, bytes, unescaped: &self.unescaped, cells: Cells::Spans(&self.spans) })
    }

    /// Checks the length and the number of cells of a row, which is the first `len` of `bytes`.
    fn check_row(&self, bytes: &[u8], len: usize, cells: usize) -> Result<(), CsvError> {
        self.check_row_bytes(len)?;
        if cells == self.names.len() { Ok(()) } else { Err(self.ragged(&bytes[..len], cells)) }
    }

    #[cold]
    fn ragged(&self, row: &[u8], cells: usize) -> CsvError {
        let header_cells = self.names.len();
        let mut rest = row;
        // An empty cell at the end is a comma and at most a pair of quotes. Within a quoted cell, such a pair is no end.
        let is_empty = |_| {
            let before = rest.strip_suffix(b",\"\"").or_else(|| rest.strip_suffix(b","));
            before.map(|before| rest = before).is_some()
        };
        let extra_are_empty = cells > header_cells && (header_cells..cells).all(is_empty);
        let first_extra = if extra_are_empty { header_cells } else { first_with_text(row, header_cells) };
        let row = self.next_row();
        CsvError::Ragged { row, cells, header_cells, first_extra, extra_are_empty, used_for: Use::Upload }
    }

    /// The row after those that were delivered.
    fn next_row(&self) -> FileRow {
        if self.names.is_empty() { FileRow::HEADER } else { (self.rows + 1).into() }
    }

    /// Finds the spans of a row that may have quoted cells, and delivers it.
    fn deliver_quoted<R: Rows>(&mut self, bytes: &[u8], rows: &mut R) -> Result<(), R::Error> {
        self.check_row_bytes(bytes.len())?;
        let cells = self.split(bytes, self.names.len(), self.wanted)?;
        self.deliver(bytes, bytes.len(), cells, rows)?;
        self.spans.clear();
        Ok(())
    }

    /// Fills `spans` with those of the first `cells_max` cells of a row that are wanted, and counts all cells.
    pub(super) fn split(&mut self, bytes: &[u8], cells_max: usize, wanted: Wanted) -> Result<usize, CsvError> {
        self.spans.clear();
        self.unescaped.clear();
        let mut cells = 0;
        let mut at = 0;
        loop {
            let mut span = Span { start: at, end: 0, unescaped: false };
            if bytes.get(at) == Some(&b'"') {
                let unescaped_start = self.unescaped.len();
                let mut from = at + 1; // the first byte not copied yet
                let mut search = from;
                let close = loop {
                    let Some(quote) = memchr(b'"', &bytes[search..]).map(|offset| search + offset) else {
                        return Err(self.cell_error(cells, CellFault::UnclosedQuote));
                    };
                    if bytes.get(quote + 1) != Some(&b'"') {
                        break quote;
                    }
                    self.unescaped.extend_from_slice(&bytes[from..=quote]);
                    search = quote + 2;
                    from = search;
                };
                if from == at + 1 {
                    span = Span { start: from, end: close, unescaped: false };
                } else {
                    self.unescaped.extend_from_slice(&bytes[from..close]);
                    span = Span { start: unescaped_start, end: self.unescaped.len(), unescaped: true };
                }
                at = close + 1;
                if !matches!(bytes.get(at), None | Some(b',')) {
                    return Err(self.cell_error(cells, CellFault::TextAfterQuote));
                }
            } else {
                at += memchr(b',', &bytes[at..]).unwrap_or(bytes.len() - at);
                span.end = at;
            }
            if cells < cells_max {
                self.check_cell_bytes(cells, span.end - span.start)?;
                if wanted.has(cells) {
                    self.spans.push(span);
                }
            }
            cells += 1;
            if at == bytes.len() {
                return Ok(cells);
            }
            at += 1;
        }
    }

    fn read_header(&mut self, bytes: &[u8]) -> Result<(), CsvError> {
        let columns_max = self.limits.columns_max;
        let cells = self.split(bytes, columns_max, Wanted::All)?;
        if cells > columns_max {
            return Err(CsvError::TooManyColumns { row: FileRow::HEADER, columns_max });
        }
        let row = Row { number: 0, bytes, unescaped: &self.unescaped, cells: Cells::Spans(&self.spans) };
        let mut names = Vec::with_capacity(cells);
        for (column_index, cell) in row.cells().enumerate() {
            if cell.len() > NAME_BYTES_MAX {
                return Err(self.cell_error(column_index, CellFault::TooLong { bytes_max: NAME_BYTES_MAX }));
            }
            names.push(text_of(cell).map_err(|fault| self.cell_error(column_index, fault))?.to_owned());
        }
        // Several columns may be without a name if they are without values, which the receiver of the rows checks.
        let mut seen = HashSet::with_capacity(cells);
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str()) && !name.is_empty()) {
            return Err(CsvError::DuplicateColumn { row: FileRow::HEADER, name: twice.clone() });
        }
        self.names = names;
        self.spans.clear();
        Ok(())
    }

    fn check_row_bytes(&self, bytes: usize) -> Result<(), CsvError> {
        let bytes_max = self.limits.row_bytes_max;
        if self.names.is_empty() && bytes > bytes_max.min(HEADER_BYTES_MAX) {
            return Err(CsvError::HeaderTooLong { row: FileRow::HEADER, bytes_max: bytes_max.min(HEADER_BYTES_MAX) });
        }
        if bytes > bytes_max {
            return Err(CsvError::RowTooLong { row: self.next_row(), bytes_max });
        }
        Ok(())
    }

    fn check_cell_bytes(&self, column_index: usize, bytes: usize) -> Result<(), CsvError> {
        let bytes_max = self.limits.cell_bytes_max;
        if bytes <= bytes_max { Ok(()) } else { Err(self.cell_error(column_index, CellFault::TooLong { bytes_max })) }
    }

    fn cell_error(&self, column_index: usize, problem: CellFault) -> CsvError {
        CsvError::Cell { position: CellPosition::new(self.next_row(), column_index, &self.names), problem }
    }
}

/// The index of the first cell from `from` on that has a text, or `from`. The row may have any number of cells.
fn first_with_text(row: &[u8], from: usize) -> usize {
    let mut rest = row;
    for index in 0.. {
        let (cell, after) = rest.split_at(cell_end(rest));
        if index >= from && !matches!(cell, b"" | b"\"\"") {
            return index;
        }
        let Some((_comma, next)) = after.split_first() else { break };
        rest = next;
    }
    from
}

/// The length of the cell at the start of `text`, with its quotes.
fn cell_end(text: &[u8]) -> usize {
    let mut at = 0;
    if text.first() == Some(&b'"') {
        at = 1;
        while let Some(quote) = memchr(b'"', &text[at..]) {
            at += quote + 1;
            if text.get(at) != Some(&b'"') {
                break;
            }
            at += 1; // the second of two
        }
    }
    at + memchr(b',', &text[at..]).unwrap_or(text.len() - at)
}

/// Bytes of rows that are added up together if they are plain. Smaller in tests, so that small files have many pieces.
const SUMMED_BYTES: usize = if cfg!(test) { 200 } else { 16 * KIB };

/// Rows in which one call finds a column's cells.
const CELLS_AT_ONCE: usize = if cfg!(test) { 4 } else { 128 };

/// Bytes in which separators are found at once. A longer row is not plain.
pub(super) const PLAIN_BYTES: usize = if cfg!(test) { 70 } else { 8 * KIB };
