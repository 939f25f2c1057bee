//! Cutting a CSV file into byte ranges that are read side by side.

use super::{
    row_end::State,
    rows::{Resume, Row, Rows, Wanted},
    scanner::Scanner,
};
use crate::{error::csv::CsvError, limits::CsvLimits};

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
