//! What a cell may contain: UTF-8 without NUL. Every file is checked in all its cells, also in columns that nobody asks for.

use memchr::memchr;

use super::rows::Row;
use crate::error::{
    csv::{CellFault, CellPosition, CsvError},
    foreign_file::Use,
};

/// A cell's bytes as text, or why they are not text.
pub fn text_of(cell: &[u8]) -> Result<&str, CellFault> {
    if memchr(0, cell).is_some() {
        return Err(CellFault::Nul);
    }
    std::str::from_utf8(cell)
        .map_err(|error| CellFault::NotUtf8 { byte: cell[error.valid_up_to()], used_for: Use::Upload })
}

/// Checks that all cells of a row are text. `names` are those of the columns.
pub fn check_cells(row: &Row<'_>, names: &[String]) -> Result<(), CsvError> {
    for (column_index, cell) in row.cells().enumerate() {
        if let Err(problem) = text_of(cell) {
            let position = CellPosition::new(row.number.into(), column_index, names);
            return Err(CsvError::Cell { position, problem });
        }
    }
    Ok(())
}

/// Checks consecutive blocks of a file, which is much faster than checking each cell. As long as the blocks are text, so is
/// every cell, because cells end with ASCII characters.
#[derive(Default)]
pub struct TextCheck {
    /// The first bytes of a character that the end of a block has cut off.
    cut: Vec<u8>,
    failed: bool,
}

impl TextCheck {
    /// Reads the next block.
    pub fn feed(&mut self, mut block: &[u8]) {
        while !self.cut.is_empty() && !block.is_empty() {
            self.cut.push(block[0]);
            block = &block[1..];
            match std::str::from_utf8(&self.cut) {
                Ok(_whole) => self.cut.clear(),
                Err(error) if error.error_len().is_some() => {
                    self.failed = true;
                    self.cut.clear();
                }
                Err(_still_cut) => {}
            }
        }
        self.failed |= memchr(0, block).is_some();
        if let Err(error) = std::str::from_utf8(block) {
            self.failed |= error.error_len().is_some();
            self.cut = block[error.valid_up_to()..].to_vec();
        }
        if self.failed {
            self.cut.clear();
        }
    }

    /// Whether some cell of the blocks may not be text.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_text_if_and_only_if_the_whole_is() {
        let texts: [&[u8]; 10] = [
            b"plain",
            "é漢\u{10ffff}".as_bytes(),
            "漢".as_bytes(),
            b"a\0b",
            b"\xe9t\xe9",
            b"\xe6\xbc",
            b"\xe6\xbca",
            b"\xed\xa0\x80", // a surrogate
            b"a\xf4\x90\x80\x80",
            b"\x80",
        ];
        for text in texts {
            let bytes = [text, b"\n"].concat(); // the end of the last row
            for cut in 0..=bytes.len() {
                for second in cut..=bytes.len() {
                    let mut check = TextCheck::default();
                    for block in [&bytes[..cut], &bytes[cut..second], &bytes[second..]] {
                        check.feed(block);
                    }
                    assert_eq!(check.has_failed(), text_of(text).is_err(), "{text:?}, cut at {cut} and {second}");
                }
            }
        }
    }
}
