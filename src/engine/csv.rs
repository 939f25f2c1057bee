//! CSV bytes into rows: the dialect (RFC 4180 as README.md narrows it), the limits, the positions of errors.
//!
//! A [`Scanner`] is fed blocks cut anywhere and calls a [`Rows`] once a row. What it delivers, and the error it ends
//! in, do not depend on where the blocks were cut. A [`FileScan`] feeds it from a file, a slice at a time. Nothing here
//! knows what a cell means.
//!
//! Memory: one row that crosses a block border, and the spans of one row's cells; both bounded by [`CsvLimits`].

use std::collections::HashSet;

use memchr::{memchr, memchr3, memrchr2};

use super::{
    fold::Sum,
    simd::{self, RowCell, Stopped},
    store::{Blocks, Reader},
};
use crate::{
    error::{CellFault, CsvError, Error, Place},
    limits::{COLUMNS_MAX, CsvLimits, HEADER_BYTES_MAX, KIB, NAME_BYTES_MAX, READ_BLOCK_BYTES},
};

/// Who receives the rows of a file.
pub trait Rows {
    /// What may stop the scan.
    type Error: From<CsvError>;

    /// Whether rows may come as what their cells of the one wanted column add up to.
    const TAKES_SUMS: bool = false;

    /// The names of the columns; called once, before any row.
    fn header(&mut self, names: &[String]) -> Result<(), Self::Error>;

    /// One row, all its cells or the one that was asked for.
    fn row(&mut self, row: Row<'_>) -> Result<(), Self::Error>;

    /// The sum of the wanted cells of some rows, which are integers all, or empty. Called if `TAKES_SUMS` alone.
    fn sum(&mut self, _sum: Sum) {}
}

/// A row of which the number of cells has been checked.
pub struct Row<'a> {
    /// From 1; the header is not counted.
    pub number: u64,
    /// From the row's start; what follows the row may stand behind it.
    bytes: &'a [u8],
    unescaped: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Row<'a> {
    /// The cells' texts: quotes removed, doubled quotes single. Any bytes; typing checks that they are UTF-8.
    pub fn cells(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (bytes, unescaped) = (self.bytes, self.unescaped);
        self.spans.iter().map(move |span| {
            let source = if span.unescaped { unescaped } else { bytes };
            &source[span.start..span.end]
        })
    }

    /// The first cell's length, and its text with whatever follows it in memory.
    pub fn first_cell(&self) -> Option<(usize, &'a [u8])> {
        self.spans.first().map(|&span| self.window(span))
    }

    /// The text of the cell at an index that the row has.
    #[inline]
    pub fn cell(&self, column_index: usize) -> &'a [u8] {
        let (len, window) = self.cell_window(column_index);
        &window[..len]
    }

    /// The same as [`Row::first_cell`] of the cell at an index that the row has.
    #[inline]
    pub fn cell_window(&self, column_index: usize) -> (usize, &'a [u8]) {
        self.window(self.spans[column_index])
    }

    #[inline]
    fn window(&self, span: Span) -> (usize, &'a [u8]) {
        let source = if span.unescaped { self.unescaped } else { self.bytes };
        (span.end - span.start, &source[span.start..])
    }
}

/// Which cells of a row are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them.
    All,
    /// One column's, by index.
    Column(usize),
}

impl Wanted {
    fn has(self, column_index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Column(wanted) => wanted == column_index,
        }
    }
}

/// Where a scan stands between two rows, so that another scanner can go on there.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// Bytes of the file before the next row.
    pub offset: u64,
    /// Data rows before it.
    pub rows: u64,
    /// The names of the columns; empty before the header.
    pub names: Vec<String>,
}

/// Turns blocks of bytes into rows.
pub struct Scanner {
    limits: CsvLimits,
    wanted: Wanted,
    names: Vec<String>,
    rows: u64,
    longest_row_bytes: usize,
    offset: u64,        // of the first byte not yet fed
    bom_possible: bool, // only the first bytes of a file can be a byte order mark
    carry: Vec<u8>,     // a row whose end has not come yet
    carry_state: State, // where in that row its last byte left off
    spans: Vec<Span>,   // scratch, for one row
    unescaped: Vec<u8>, // scratch: cells of one row that held doubled quotes
}

#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    unescaped: bool,
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl Scanner {
    /// Goes on where another scanner stopped; at the start of a file with `Resume::default()`.
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
            carry_state: State::CellStart,
            spans: Vec::new(),
            unescaped: Vec::new(),
        }
    }

    /// The next bytes of the file, any number of them.
    pub fn feed<R: Rows>(&mut self, block: &[u8], rows: &mut R) -> Result<(), R::Error> {
        self.offset += block.len() as u64;
        let mut rest = self.skip_byte_order_mark(block);
        // The header and what the last block left over go through the carry; the rest is scanned where it is.
        while !rest.is_empty() && (self.names.is_empty() || !self.carry.is_empty()) {
            rest = self.complete_carried_row(rest, rows)?;
        }
        // What lies within the limits as a whole needs no look at its rows for that.
        let is_small = rest.len() <= self.limits.row_bytes_max.min(self.limits.cell_bytes_max);
        let scanned = match self.wanted {
            Wanted::Column(column) if R::TAKES_SUMS && is_small => self.scan_sums(rest, column, rows)?,
            Wanted::Column(_) | Wanted::All => self.scan(rest, rows)?,
        };
        let unfinished = &rest[scanned..];
        if !unfinished.is_empty() {
            self.carry.extend_from_slice(unfinished);
            self.carry_state = State::CellStart;
            self.carry_state.row_end(unfinished);
            self.check_row_bytes(self.carry.len())?;
        }
        Ok(())
    }

    /// The end of the file: its last row may lack a row end.
    pub fn finish<R: Rows>(&mut self, rows: &mut R) -> Result<(), R::Error> {
        if !self.carry.is_empty() {
            self.deliver_carry(rows)?;
        }
        if self.names.is_empty() { Err(CsvError::NoHeader.into()) } else { Ok(()) }
    }

    /// How to go on later with what follows the last complete row.
    pub fn into_resume(self) -> Resume {
        Resume { offset: self.offset - self.carry.len() as u64, rows: self.rows, names: self.names }
    }

    fn skip_byte_order_mark<'a>(&mut self, mut block: &'a [u8]) -> &'a [u8] {
        while self.bom_possible && !block.is_empty() {
            if block[0] != BYTE_ORDER_MARK[self.carry.len()] {
                self.bom_possible = false;
                self.carry_state = if self.carry.is_empty() { State::CellStart } else { State::Plain };
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

    /// Adds to the row that was begun up to its end and nothing beyond, and says where in `block` that end is; at 0 if
    /// no row was begun.
    fn feed_row_end<R: Rows>(&mut self, block: &[u8], rows: &mut R) -> Result<Option<usize>, R::Error> {
        if self.carry.is_empty() {
            return Ok(Some(0));
        }
        let rest = self.complete_carried_row(block, rows)?;
        // The row's end is taken with it, so an empty rest may be the end or not; an empty carry tells.
        let end = if self.carry.is_empty() { Some(block.len() - rest.len()) } else { None };
        self.offset += end.unwrap_or(block.len()) as u64;
        Ok(end)
    }

    /// Adds to the carried row up to its end, and delivers it if the end is there. Returns what follows.
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
        self.carry_state = State::CellStart;
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

    /// Delivers a row to one who takes sums, without a look at each of its cells. False: it has to be looked at.
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

    /// The same as `scan`, for one who takes sums: stretches of rows that are plain are added up without a look at them.
    fn scan_sums<R: Rows>(&mut self, block: &[u8], column: usize, rows: &mut R) -> Result<usize, R::Error> {
        let mut at = 0;
        if simd::serves(self.names.len()) {
            let stretch_end = |at: usize| block.len().min(at + SUMMED_BYTES);
            while let Some(last) = memrchr2(b'\n', b'\r', &block[at..stretch_end(at)]) {
                let stretch = &block[at..=at + last];
                if let Some(added) = simd::sum_rows(stretch, self.names.len(), column) {
                    self.rows += added.rows;
                    rows.sum(Sum::of(added.total));
                    at += stretch.len();
                    continue;
                }
                let scanned = self.scan_column(stretch, column, rows)?;
                at += scanned;
                if scanned < stretch.len() {
                    break; // the stretch ended inside a quoted cell
                }
            }
        }
        Ok(at + self.scan_column(&block[at..], column, rows)?)
    }

    /// The same as `scan`, for one column of rows that are within the limits.
    fn scan_column<R: Rows>(&mut self, block: &[u8], column: usize, rows: &mut R) -> Result<usize, R::Error> {
        let mut cells = [RowCell::default(); CELLS_AT_ONCE];
        let mut at = 0;
        loop {
            let rest = &block[at..];
            let found = simd::find_cells(rest, self.names.len(), column, &mut cells);
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
                rows.row(Row { number: self.rows, bytes: row, unescaped: &[], spans: &spans })?;
            }
            at += found.next;
            match found.stopped {
                Stopped::Full => {}
                Stopped::End => return Ok(at),
                // Where one row is odd, others are: the careful scan has the rest.
                Stopped::Odd => return Ok(at + self.scan(&block[at..], rows)?),
            }
        }
    }

    /// Scans rows where they are and returns the start of the row that does not end in `block`. Quotes are rare
    /// enough that a row with one is read again by `deliver_quoted`.
    fn scan<R: Rows>(&mut self, block: &[u8], rows: &mut R) -> Result<usize, R::Error> {
        let columns = self.names.len();
        let wanted = self.wanted;
        let mut row = 0; // where the row starts
        let mut cell = 0; // where the cell starts
        let mut cells = 0; // cells of the row that have ended
        let mut found = Span { start: 0, end: 0, unescaped: false }; // the one cell that is wanted
        let mut base = 0; // of the 64 bytes at hand
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
                    let Some(len) = State::CellStart.row_end(&block[row..]) else {
                        return Ok(row);
                    };
                    self.deliver_quoted(&block[row..row + len], rows)?;
                    row += len + 1;
                    base = row;
                    (cell, cells) = (row, 0);
                    self.spans.clear();
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
                        self.check_row(at - row, cells)?;
                        self.rows += 1;
                        let spans = std::slice::from_ref(&found);
                        rows.row(Row { number: self.rows, bytes: &block[row..], unescaped: &[], spans })?;
                    }
                    (row, cells) = (cell, 0);
                }
            }
            base += LANES;
        }
        Ok(row)
    }

    /// Checks a row whose spans are found, and hands it on: the first `len` of `bytes`, and what follows it.
    fn deliver<R: Rows>(&mut self, bytes: &[u8], len: usize, cells: usize, rows: &mut R) -> Result<(), R::Error> {
        if len > self.limits.cell_bytes_max {
            self.check_row_bytes(len)?;
            for (column_index, span) in self.spans.iter().enumerate() {
                self.check_cell_bytes(column_index, span.end - span.start)?;
            }
        }
        self.check_row(len, cells)?;
        self.rows += 1;
        self.longest_row_bytes = self.longest_row_bytes.max(len);
        rows.row(Row { number: self.rows, bytes, unescaped: &self.unescaped, spans: &self.spans })
    }

    /// Checks what can be wrong with a whole row.
    fn check_row(&self, bytes: usize, cells: usize) -> Result<(), CsvError> {
        self.check_row_bytes(bytes)?;
        let header_cells = self.names.len();
        if cells != header_cells {
            return Err(CsvError::Ragged { row: self.rows + 1, cells, header_cells });
        }
        Ok(())
    }

    /// Finds the spans of a row that may have quoted cells, and delivers it.
    fn deliver_quoted<R: Rows>(&mut self, bytes: &[u8], rows: &mut R) -> Result<(), R::Error> {
        self.check_row_bytes(bytes.len())?;
        let cells = self.split(bytes, self.names.len(), self.wanted)?;
        self.deliver(bytes, bytes.len(), cells, rows)?;
        self.spans.clear();
        Ok(())
    }

    /// Fills `spans` with the first `cells_max` cells of a row, as far as they are wanted, and counts all of them.
    fn split(&mut self, bytes: &[u8], cells_max: usize, wanted: Wanted) -> Result<usize, CsvError> {
        self.spans.clear();
        self.unescaped.clear();
        let mut cells = 0;
        let mut at = 0;
        loop {
            let mut span = Span { start: at, end: 0, unescaped: false };
            if bytes.get(at) == Some(&b'"') {
                let unescaped_start = self.unescaped.len();
                let mut from = at + 1; // what was not copied yet
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
            return Err(CsvError::TooManyColumns { columns_max });
        }
        let row = Row { number: 0, bytes, unescaped: &self.unescaped, spans: &self.spans };
        let mut names = Vec::with_capacity(cells);
        for (column_index, cell) in row.cells().enumerate() {
            if cell.len() > NAME_BYTES_MAX {
                return Err(self.cell_error(column_index, CellFault::TooLong { bytes_max: NAME_BYTES_MAX }));
            }
            names.push(text_of(cell).map_err(|fault| self.cell_error(column_index, fault))?.to_owned());
        }
        let mut seen = HashSet::with_capacity(cells);
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(CsvError::DuplicateColumn { name: twice.clone() });
        }
        self.names = names;
        self.spans.clear();
        Ok(())
    }

    fn check_row_bytes(&self, bytes: usize) -> Result<(), CsvError> {
        let bytes_max = self.limits.row_bytes_max;
        if self.names.is_empty() && bytes > bytes_max.min(HEADER_BYTES_MAX) {
            return Err(CsvError::HeaderTooLong { bytes_max: bytes_max.min(HEADER_BYTES_MAX) });
        }
        if bytes > bytes_max {
            return Err(CsvError::RowTooLong { row: self.rows + 1, bytes_max });
        }
        Ok(())
    }

    fn check_cell_bytes(&self, column_index: usize, bytes: usize) -> Result<(), CsvError> {
        let bytes_max = self.limits.cell_bytes_max;
        if bytes <= bytes_max { Ok(()) } else { Err(self.cell_error(column_index, CellFault::TooLong { bytes_max })) }
    }

    fn cell_error(&self, column_index: usize, problem: CellFault) -> CsvError {
        let row = if self.names.is_empty() { 0 } else { self.rows + 1 };
        CsvError::Cell { place: Place { row, column_index, column: self.names.get(column_index).cloned() }, problem }
    }
}

/// The header row of a file that is in memory, as it stands there; empty if the file has none.
pub fn header_of(csv: &[u8]) -> &[u8] {
    let csv = csv.strip_prefix(BYTE_ORDER_MARK).unwrap_or(csv);
    let start = csv.iter().position(|byte| !matches!(byte, b'\n' | b'\r')).unwrap_or(csv.len());
    let header = &csv[start..];
    &header[..State::CellStart.row_end(header).unwrap_or(header.len())]
}

/// Where a row starts that does not begin before the end of `window`'s first byte; `window` is a piece from the middle
/// of a file with so many columns. A guess, as nobody knows from the middle whether a quote is open there: of the two
/// it is the one under which the rows that follow are rows of this file. None if the window does not tell.
pub fn guess_row_start(window: &[u8], columns_count: usize, limits: CsvLimits) -> Option<usize> {
    struct Ignore;
    impl Rows for Ignore {
        type Error = CsvError;
        fn header(&mut self, _names: &[String]) -> Result<(), CsvError> {
            Ok(())
        }
        fn row(&mut self, _row: Row<'_>) -> Result<(), CsvError> {
            Ok(())
        }
    }
    [State::Plain, State::Quoted].into_iter().find_map(|mut state| {
        let start = state.row_end(window)? + 1;
        // Any names will do: they are counted.
        let resume = Resume { offset: 1, rows: 0, names: vec![String::new(); columns_count] };
        let mut scanner = Scanner::new(limits, Wanted::All, resume);
        scanner.feed(&window[start..], &mut Ignore).is_ok().then_some(start)
    })
}

/// How far a step of a scan came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// As far as it was to go; there is more.
    Pause,
    /// The first row that begins where the scan is to stop, or after.
    Stop,
    /// A row that is longer than the scan has room for.
    LongRow,
    /// The file's end.
    End,
}

/// A scan of a file that can be put down after any slice.
pub struct FileScan<R> {
    /// Who receives the rows.
    pub rows: R,
    file_bytes: u64,
    blocks: Blocks,
    scanner: Scanner,
    stop: u64,
    long_row_bytes: usize,
}

impl<R: Rows<Error: From<Error>>> FileScan<R> {
    /// A scan from where `resume` says.
    pub fn new(file: Reader, limits: CsvLimits, wanted: Wanted, resume: Resume, rows: R) -> Self {
        let scanner = Scanner::new(limits, wanted, resume);
        let (file_bytes, blocks) = (file.bytes(), file.blocks());
        Self { rows, file_bytes, blocks, scanner, stop: u64::MAX, long_row_bytes: usize::MAX }
    }

    /// Stops at a row of more than so many bytes, as soon as it has seen so many and a block of it.
    pub fn stop_at_long_row(mut self, bytes: usize) -> Self {
        self.long_row_bytes = bytes;
        self
    }

    /// Makes room for a row of so many bytes, in its two buffers, which then never grow by doubling. Pages that are not
    /// written cost nothing.
    pub fn with_room_for_row(mut self, bytes: usize) -> Self {
        self.scanner.carry.reserve_exact(bytes + READ_BLOCK_BYTES);
        self.scanner.unescaped.reserve_exact(bytes + READ_BLOCK_BYTES);
        self
    }

    /// Leaves the rows alone that begin at this offset or after it.
    pub fn stop_at(mut self, offset: u64) -> Self {
        self.stop = offset;
        self
    }

    /// Reads on for about `bytes_max` bytes and says whether that was the end of the file.
    pub fn step(&mut self, bytes_max: usize) -> Result<bool, R::Error> {
        Ok(self.step_to_stop(bytes_max)? == Reached::End)
    }

    /// Reads on for about `bytes_max` bytes, not beyond the row that holds the byte before the stop.
    pub fn step_to_stop(&mut self, bytes_max: usize) -> Result<Reached, R::Error> {
        let mut bytes = 0;
        while bytes < bytes_max {
            let before_stop = usize::try_from(self.stop.saturating_sub(self.scanner.offset)).unwrap_or(usize::MAX);
            if before_stop == 0 && self.scanner.carry.is_empty() {
                return Ok(Reached::Stop);
            }
            if self.scanner.carry.len() > self.long_row_bytes {
                return Ok(Reached::LongRow);
            }
            let block = self.blocks.from(self.scanner.offset)?;
            let wanted = if before_stop == 0 { block.len() } else { block.len().min(before_stop) };
            let block = &block[..wanted.min(bytes_max - bytes)];
            if before_stop > 0 {
                self.scanner.feed(block, &mut self.rows)?;
            } else if self.scanner.feed_row_end(block, &mut self.rows)?.is_some() {
                return Ok(Reached::Stop);
            }
            bytes += block.len();
            if self.scanner.offset >= self.file_bytes {
                self.scanner.finish(&mut self.rows)?;
                return Ok(Reached::End);
            }
        }
        Ok(Reached::Pause)
    }

    /// The names of the columns; empty before the header.
    pub fn names(&self) -> &[String] {
        &self.scanner.names
    }

    /// Where the next row begins, as far as it is known.
    pub fn offset(&self) -> u64 {
        self.scanner.offset - self.scanner.carry.len() as u64
    }

    /// Data rows so far.
    pub fn rows_count(&self) -> u64 {
        self.scanner.rows
    }

    /// Bytes of the longest row so far.
    pub fn longest_row_bytes(&self) -> usize {
        self.scanner.longest_row_bytes
    }

    /// How to go on later with what follows the last complete row.
    pub fn into_resume(self) -> (Resume, R) {
        (self.scanner.into_resume(), self.rows)
    }
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

/// A cell's bytes as text, or what keeps them from being text.
pub fn text_of(cell: &[u8]) -> Result<&str, CellFault> {
    if memchr(0, cell).is_some() {
        return Err(CellFault::Nul);
    }
    std::str::from_utf8(cell).ok().ok_or(CellFault::NotUtf8)
}

/// Where in a row a byte stands: all that is needed to find the row's end.
#[derive(Clone, Copy, Debug)]
enum State {
    CellStart,
    Plain,
    Quoted,
    /// After a quote inside a quoted cell: the cell's end, or the first of two.
    Closing,
}

impl State {
    /// The index of the first byte that ends a row; none if there is none, and then the state is after `bytes`.
    fn row_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match self {
                Self::Quoted => {
                    at += memchr(b'"', &bytes[at..])?;
                    *self = Self::Closing;
                }
                Self::Plain => {
                    let Some(found) = memchr3(b'"', b'\n', b'\r', &bytes[at..]) else {
                        if bytes.ends_with(b",") {
                            *self = Self::CellStart;
                        }
                        return None;
                    };
                    at += found;
                    if bytes[at] != b'"' {
                        return Some(at);
                    }
                    // Right after a comma it opens a cell, elsewhere it is text.
                    if bytes[..at].ends_with(b",") {
                        *self = Self::Quoted;
                    }
                }
                Self::CellStart | Self::Closing => {
                    *self = match bytes[at] {
                        b'\n' | b'\r' => return Some(at),
                        b',' => Self::CellStart,
                        b'"' => Self::Quoted,
                        _ => Self::Plain, // after a closing quote this is an error, which `split` reports
                    }
                }
            }
            at += 1;
        }
        None
    }
}

/// Bytes of rows that are added up together, if they are plain.
const SUMMED_BYTES: usize = if cfg!(test) { 200 } else { 16 * KIB };

/// Rows of which the cells of one column are found together.
const CELLS_AT_ONCE: usize = if cfg!(test) { 4 } else { 128 };

/// Bytes that are looked at together.
const LANES: usize = 64;

/// One bit for each of the 64 bytes from `base` that is a comma, a row end or a quote. Bytes past the end have none.
fn structure(block: &[u8], base: usize) -> u64 {
    if let Some(lanes) = block[base..].first_chunk::<LANES>() {
        structure_of(lanes)
    } else {
        let mut lanes = [0; LANES];
        lanes[..block.len() - base].copy_from_slice(&block[base..]);
        structure_of(&lanes)
    }
}

/// The comparisons become vector instructions; the multiplication gathers the lowest bit of each of eight bytes in the
/// highest byte, first byte first.
fn structure_of(lanes: &[u8; LANES]) -> u64 {
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let is_mark = lanes.map(|byte| u8::from((byte == b',') | (byte == b'\n') | (byte == b'\r') | (byte == b'"')));
    let (eights, _) = is_mark.as_chunks::<8>();
    let gathered = eights.iter().map(|eight| u64::from_le_bytes(*eight).wrapping_mul(GATHER) >> 56);
    gathered.enumerate().fold(0, |marks, (index, bits)| marks | bits << (8 * index))
}

/// What `structure_of` means, byte by byte.
#[cfg(test)]
fn structure_plain(lanes: &[u8; LANES]) -> u64 {
    let is_mark = |byte: &u8| matches!(byte, b',' | b'\n' | b'\r' | b'"');
    lanes.iter().enumerate().fold(0, |marks, (index, byte)| marks | u64::from(is_mark(byte)) << index)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as text, with the header as row 0.
    #[derive(Default)]
    struct Collected(Vec<Vec<String>>);

    impl Rows for Collected {
        type Error = CsvError;

        fn header(&mut self, names: &[String]) -> Result<(), CsvError> {
            self.0.push(names.to_vec());
            Ok(())
        }

        fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
            assert_eq!(row.number, self.0.len() as u64);
            self.0.push(row.cells().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect());
            Ok(())
        }
    }

    const SMALL: CsvLimits = CsvLimits { columns_max: 5, cell_bytes_max: 80, row_bytes_max: 200 };

    fn scan(limits: CsvLimits, blocks: &[&[u8]]) -> Result<Vec<Vec<String>>, String> {
        let mut rows = Collected::default();
        let mut scanner = Scanner::new(limits, Wanted::All, Resume::default());
        let result = blocks.iter().try_for_each(|block| scanner.feed(block, &mut rows));
        match result.and_then(|()| scanner.finish(&mut rows)) {
            Ok(()) => Ok(rows.0),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Scans whole, byte by byte, in halves cut everywhere, and behind enough rows to leave the first 64 bytes.
    fn check(csv: &str, expected: Result<&[&[&str]], &str>) {
        let csv = csv.as_bytes();
        let expected = expected
            .map(|rows| rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect())
            .map_err(str::to_owned);
        let shown = String::from_utf8_lossy(csv);
        assert_eq!(scan(SMALL, &[csv]), expected, "whole: {shown:?}");
        let bytes: Vec<&[u8]> = csv.chunks(1).collect();
        assert_eq!(scan(SMALL, &bytes), expected, "byte by byte: {shown:?}");
        for cut in 0..=csv.len() {
            let (left, right) = csv.split_at(cut);
            assert_eq!(scan(SMALL, &[left, right]), expected, "cut at {cut}: {shown:?}");
        }
    }

    #[test]
    fn rows_end_as_they_come() {
        let rows: &[&[&str]] = &[&["x", "y"], &["1", "2"], &["3", "4"]];
        for csv in [
            "x,y\n1,2\n3,4\n",
            "x,y\n1,2\n3,4",
            "x,y\r\n1,2\r\n3,4\r\n",
            "x,y\r1,2\r3,4\r",
            "x,y\r1,2\n3,4\r\n",
            "\n\nx,y\n\n\r\n1,2\n\r\r3,4\n\n",
            "\u{feff}x,y\n1,2\n3,4\n",
            "\u{feff}\"x\",y\n\"1\",2\n3,\"4\"",
            "\u{feff}\nx,y\n1,2\n3,4\n",
        ] {
            check(csv, Ok(rows));
        }
    }

    #[test]
    fn quotes_hold_anything() {
        check("a,b\n\"1,2\",\"3\n4\"\n", Ok(&[&["a", "b"], &["1,2", "3\n4"]]));
        check("a,b\n\"say \"\"hi\"\"\",\"\"\n\"\"\"\",x", Ok(&[&["a", "b"], &["say \"hi\"", ""], &["\"", "x"]]));
        check("\"a\r\n\",\"b,\"\n1,2", Ok(&[&["a\r\n", "b,"], &["1", "2"]]));
        check("a\n\"\"\nx\n", Ok(&[&["a"], &[""], &["x"]]));
        // A quote that does not open a cell is text.
        check("a,b\n5\" pipe,x\"y\"\n", Ok(&[&["a", "b"], &["5\" pipe", "x\"y\""]]));
        check("a,b\n \"x\",2\n", Ok(&[&["a", "b"], &[" \"x\"", "2"]]));
    }

    #[test]
    fn empty_things() {
        check("", Err("the file has no header row"));
        check("\n\r\n\n", Err("the file has no header row"));
        check("\u{feff}", Err("the file has no header row"));
        check("x", Ok(&[&["x"]]));
        check(",\n1,\n", Err("the header names two columns \"\""));
        check(",x\n,\n", Ok(&[&["", "x"], &["", ""]]));
        check("\"\"\n1\n", Ok(&[&[""], &["1"]]));
    }

    #[test]
    fn what_is_refused_says_where() {
        check("a,b\n1,2\n3\n", Err("row 2 has 1 cell, the header has 2"));
        check("a,b\n1,2,3", Err("row 1 has 3 cells, the header has 2"));
        check("a,b\n\"1\",2,", Err("row 1 has 3 cells, the header has 2"));
        check("a,b\n1,\"2\n3,4\n", Err("row 1, column \"b\": a quoted cell is not closed"));
        check("a,b\n1,\"2\n3\"\n", Ok(&[&["a", "b"], &["1", "2\n3"]]));
        check("\"a,b\n1,2\n", Err("header, column 1: a quoted cell is not closed"));
        check("a,b\n1,2\n\"1\"x,2\n", Err("row 2, column \"a\": text after a closing quote"));
        check("a,b\n1,2,\"3\" \n", Err("row 1, column 3: text after a closing quote"));
        check("a,\"b\"c\n", Err("header, column 2: text after a closing quote"));
        check("a,b\0\n", Err("header, column 2: a NUL byte"));
        check("a,b,a\n", Err("the header names two columns \"a\""));
        check("a,b,c,d,e,f\n", Err("the header has more than 5 columns"));
        check("a,b,c,d,e\n1,2,3,4,5", Ok(&[&["a", "b", "c", "d", "e"], &["1", "2", "3", "4", "5"]]));
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let cell = |len| "c".repeat(len);
        check(&format!("a,b\n{},2\n", cell(80)), Ok(&[&["a", "b"], &[&cell(80), "2"]]));
        check(&format!("a,b\n1,{}", cell(81)), Err("row 1, column \"b\": the cell is longer than 80 bytes"));
        check(&format!("a,b\n1,\"{}\"\"\"", cell(79)), Ok(&[&["a", "b"], &["1", &(cell(79) + "\"")]]));
        check(&format!("a,b\n1,\"{}\"\"\"", cell(80)), Err("row 1, column \"b\": the cell is longer than 80 bytes"));
        // A cell beyond the header is not measured: that it is there is the error.
        let beyond = format!("a,b\n1,2,{}\n", cell(81));
        check(&beyond, Err("row 1 has 3 cells, the header has 2"));
        let row = |last| format!("a,b,c\n{},{},{}\n", cell(80), cell(80), cell(last));
        check(&row(38), Ok(&[&["a", "b", "c"], &[&cell(80), &cell(80), &cell(38)]]));
        check(&row(39), Err("row 1 is longer than 200 bytes; is a quote not closed?"));
        let open = format!("a,b\n1,2\n\"{}", cell(300));
        check(&open, Err("row 2 is longer than 200 bytes; is a quote not closed?"));
        check(&cell(201), Err("the header is longer than 200 bytes"));
    }

    #[test]
    fn invalid_text_in_the_header() {
        assert_eq!(scan(SMALL, &[b"a,\xff\n"]), Err("header, column 2: invalid UTF-8".to_owned()));
    }

    #[test]
    fn one_column_is_that_column_of_all() {
        struct One<const FAST: bool>(Vec<String>);
        impl<const FAST: bool> Rows for One<FAST> {
            type Error = CsvError;

            const TAKES_SUMS: bool = FAST;

            fn header(&mut self, _names: &[String]) -> Result<(), CsvError> {
                Ok(())
            }
            fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
                self.0.extend(row.cells().map(|cell| String::from_utf8_lossy(cell).into_owned()));
                Ok(())
            }
            fn sum(&mut self, _sum: Sum) {
                panic!("no cell is an integer");
            }
        }
        fn column<const FAST: bool>(parts: [&[u8]; 2], column: usize) -> Result<Vec<String>, String> {
            let mut one = One::<FAST>(Vec::new());
            let mut scanner = Scanner::new(SMALL, Wanted::Column(column), Resume::default());
            let fed = parts.into_iter().try_for_each(|part| scanner.feed(part, &mut one));
            fed.and_then(|()| scanner.finish(&mut one)).map(|()| one.0).map_err(|error| error.to_string())
        }
        for csv in [
            "a,b,c\nA,\"B,\"\"\",C\nD,E,F\n,,\nG,\"H\n\",I",
            "a,b,c\nA,B,C\nD,\"E,F",
            "a,b,c\nA,B,C\nD,E\"\n",
            "a,b,c\nA,B,C\nD,E\",F,G\n",
            "a,b,c\nA,B,C\nD,\"E\"x,F\nG,H,I\n",
        ] {
            let csv = csv.as_bytes();
            let all = scan(SMALL, &[csv]);
            for (index, cut) in (0..3).flat_map(|index| (0..=csv.len()).map(move |cut| (index, cut))) {
                let parts = csv.split_at(cut).into();
                let expected = all.clone().map(|all| all[1..].iter().map(|row| row[index].clone()).collect());
                assert_eq!(column::<false>(parts, index), expected, "column {index}, cut at {cut}");
                assert_eq!(column::<true>(parts, index), expected, "fast, column {index}, cut at {cut}");
            }
        }
    }

    /// The sum of a column, fast if `FAST`, as `query.rs` has it.
    #[derive(Default)]
    struct Summing<const FAST: bool>(Sum);

    impl<const FAST: bool> Rows for Summing<FAST> {
        type Error = CsvError;

        const TAKES_SUMS: bool = FAST;

        fn header(&mut self, _names: &[String]) -> Result<(), CsvError> {
            Ok(())
        }

        fn row(&mut self, row: Row<'_>) -> Result<(), CsvError> {
            let (len, window) = row.first_cell().expect("the wanted cell");
            let value = crate::engine::cell::summand(len, window).map_err(|problem| CsvError::Summand {
                row: row.number,
                column: String::new(),
                cell: String::from_utf8_lossy(&window[..len]).into_owned(),
                problem,
            })?;
            self.0.add(value.unwrap_or(0));
            Ok(())
        }

        fn sum(&mut self, sum: Sum) {
            self.0.merge(sum);
        }
    }

    fn sum<const FAST: bool>(column: usize, blocks: &[&[u8]]) -> Result<(Sum, u64), String> {
        let mut rows = Summing::<FAST>::default();
        let mut scanner = Scanner::new(CsvLimits::default(), Wanted::Column(column), Resume::default());
        let result = blocks.iter().try_for_each(|block| scanner.feed(block, &mut rows));
        result.and_then(|()| scanner.finish(&mut rows)).map_err(|error| error.to_string())?;
        Ok((rows.0, scanner.rows))
    }

    /// Hostile files from a seed: what is added up or found by vectors is what the careful scan reads, errors too.
    #[test]
    fn fast_sums_equal_careful_ones() {
        let (mut sums, mut errors) = (0, 0);
        for seed in 0..4000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let columns_count = [1, 2, 3, 5, 16, 17, 40][random.usize(..7)];
            let names: Vec<String> = (0..columns_count).map(|index| format!("c{index}")).collect();
            let mut text = names.join(",").into_bytes();
            let row_end: &[u8] = [&b"\n"[..], b"\r\n", b"\r"][random.usize(..3)];
            let quotes = random.bool();
            let oddness = [0, 0, 1, 30][random.usize(..4)];
            for _ in 0..random.usize(1..60) {
                text.extend_from_slice(row_end);
                for column in 0..columns_count {
                    if column > 0 {
                        text.push(b',');
                    }
                    let number = (random.i64(..) >> random.u32(0..64)).to_string();
                    let cell = match random.u32(..1000) {
                        kind if kind < oddness => {
                            ["x", " 7", "+1", "\"", "5\" pipe", "\"1\"2", "1,2", "9223372036854775808", "\"\"\"\""]
                                [random.usize(..9)]
                            .to_owned()
                        }
                        kind if quotes && kind < 200 => format!("\"{number}\""),
                        kind if quotes && kind < 210 => "\"\n\"".to_owned(),
                        kind if kind < 300 => String::new(),
                        _ => number,
                    };
                    text.extend_from_slice(cell.as_bytes());
                }
            }
            if random.bool() {
                text.extend_from_slice(row_end);
            }
            let column = random.usize(..columns_count);
            let expected = sum::<false>(column, &[&text]);
            let cut = random.usize(..=text.len());
            let (left, right) = text.split_at(cut);
            for blocks in [&[&text[..]][..], &[left, right]] {
                let shown = String::from_utf8_lossy(&text);
                assert_eq!(sum::<true>(column, blocks), expected, "seed {seed}, column {column}, cut {cut}: {shown:?}");
            }
            *(if expected.is_ok() { &mut sums } else { &mut errors }) += 1;
        }
        assert!(sums > 1000 && errors > 500, "{sums} sums, {errors} errors");
    }

    #[test]
    fn a_scan_goes_on_where_another_stopped() {
        let csv = b"a,b\n1,2\n\"3\n\",4\r\n5,6";
        let whole = scan(SMALL, &[csv]).expect("valid");
        for cut in 0..=csv.len() {
            let mut rows = Collected::default();
            let mut first = Scanner::new(SMALL, Wanted::All, Resume::default());
            first.feed(&csv[..cut], &mut rows).expect("valid");
            let resume = first.into_resume();
            let offset = usize::try_from(resume.offset).expect("small");
            let mut second = Scanner::new(SMALL, Wanted::All, resume);
            second.feed(&csv[offset..], &mut rows).and_then(|()| second.finish(&mut rows)).expect("valid");
            assert_eq!(rows.0, whole, "cut at {cut}");
        }
    }

    #[test]
    fn structure_equals_its_plain_twin() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let mut lanes = [0; LANES];
            lanes.fill_with(|| if random.bool() { *b",\n\r\"".get(random.usize(..4)).unwrap() } else { random.u8(..) });
            assert_eq!(structure_of(&lanes), structure_plain(&lanes), "{lanes:?}");
        }
    }
}
