//! Where a row ends: the state machine over quotes and line ends.

use memchr::{memchr, memchr3};

/// Where in a row a byte stands: all that is needed to find the row's end.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    CellStart,
    Plain,
    Quoted,
    /// After a quote inside a quoted cell: the cell's end, or the first of two.
    Closing,
}

impl State {
    /// The index of the first byte that ends a row; none if there is none, and then the state is after `bytes`.
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
