//! Text of clients in error messages: quoted, escaped, and cut if it is long.

use std::fmt;

/// The first few of several texts, each displayed as [`Quoted`].
pub(super) struct QuotedList<'a>(pub(super) &'a [String]);

impl fmt::Display for QuotedList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TEXTS_MAX: usize = 4;
        for (index, text) in self.0.iter().take(TEXTS_MAX).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{}", Quoted(text))?;
        }
        if self.0.len() > TEXTS_MAX { f.write_str(", …") } else { Ok(()) }
    }
}

/// Displays text in quotes, with control characters escaped, cut to 64 characters and 160 bytes.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 64;
        const BYTES_MAX: usize = 160;
        f.write_str("\"")?;
        let mut bytes = 0;
        for (index, c) in self.0.chars().enumerate() {
            bytes += if c == '\'' { 1 } else { c.escape_debug().map(char::len_utf8).sum() };
            if index == CHARS_MAX || bytes > BYTES_MAX {
                return f.write_str("…\"");
            }
            match c {
                '\'' => f.write_str("'")?,
                c => write!(f, "{}", c.escape_debug())?,
            }
        }
        f.write_str("\"")
    }
}
