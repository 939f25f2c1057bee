//! Byte ranges of CSV files that are read in parallel.
//!
//! Inside a file it is not known whether a quote is open, so the start of a range's first row is guessed
//! ([`guess_row_start`]). Ranges are read in any order, and checked in the order of the file ([`RangeStart::follows`]): one
//! that did not begin where the range before it ended is read again from there. So the rows, their numbers and the first
//! error are the same as with one reader.

use super::{
    row_end::QuoteState,
    rows::{Resume, Row, Rows, Wanted},
    scanner::Scanner,
};
use crate::{
    engine::storage::reader::Reader,
    error::{Error, csv::CsvError},
    limits::{CsvLimits, KIB},
};

/// Sizes of the window in which a row's start is looked for; a larger one is tried if the smaller one is not enough. For
/// ranges that are read in a few milliseconds.
pub const QUICK_GUESS: &[usize] = &[8 * KIB, 256 * KIB];

/// As [`QUICK_GUESS`], for longer ranges, where a wrong guess costs more.
pub const CAREFUL_GUESS: &[usize] = &[256 * KIB];

/// The position at which the reading of a range began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeStart<P> {
    /// The start of a file, or the end of the range before. The rows before it are known.
    Known(P),
    /// A guessed start of a row inside a file. Rows are counted from there.
    Guessed(P),
    /// No guess was possible, and nothing was read.
    Unknown,
}

impl<P: PartialEq> RangeStart<P> {
    /// Whether the range began where the range before it ended. A guessed start also requires that the header was read.
    pub fn follows(&self, end_before: &P, header_was_read: bool) -> bool {
        match self {
            Self::Known(start) => start == end_before,
            Self::Guessed(start) => start == end_before && header_was_read,
            Self::Unknown => false,
        }
    }

    /// What must be added to this range's row numbers, if `rows_before` rows precede it.
    pub fn uncounted_rows(&self, rows_before: u64) -> u64 {
        if matches!(self, Self::Guessed(_)) { rows_before } else { 0 }
    }
}

/// Guesses where the first row starts at or after `offset`, which is not 0. `None` if no guess is possible.
pub fn guess_row_start(
    file: &Reader,
    offset: u64,
    columns_count: usize,
    limits: CsvLimits,
    window_bytes: &[usize],
) -> Result<Option<u64>, Error> {
    let from = offset - 1; // a row that ends with this byte is followed by one that starts at the offset
    for &bytes in window_bytes {
        let window = file.block(from, bytes)?;
        if let Some(start) = row_start_in(&window, columns_count, limits) {
            return Ok(Some(from + start as u64));
        }
    }
    Ok(None)
}

/// The start of the first row after the first byte of `window`: after a row end that is followed by rows with as many cells
/// as there are columns. First it is assumed that no quote is open at the start of the window, then that one is.
fn row_start_in(window: &[u8], columns_count: usize, limits: CsvLimits) -> Option<usize> {
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
    [QuoteState::Plain, QuoteState::Quoted].into_iter().find_map(|mut state| {
        let start = state.row_end(window)? + 1;
        // Only the number of names matters.
        let resume = Resume { offset: 1, rows: 0, names: vec![String::new(); columns_count] };
        let mut scanner = Scanner::new(limits, Wanted::All, resume);
        scanner.feed(&window[start..], &mut Ignore).is_ok().then_some(start)
    })
}
