//! Finds the end of a row: a state machine over quotes and row ends.

use memchr::{memchr, memchr3};

/// The state after some bytes of a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum QuoteState {
    /// A cell begins.
    CellStart,
    /// Inside a cell without quotes.
    Plain,
    /// Inside a quoted cell.
    Quoted,
    /// After a quote inside a quoted cell: it ends the cell, or it is the first of two.
    Closing,
}

impl QuoteState {
    /// The index of the first byte that ends a row. `None` if no row ends in `bytes`; `self` is then the state after
    /// them.
    pub(super) fn row_end(&mut self, bytes: &[u8]) -> Option<usize> {
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
