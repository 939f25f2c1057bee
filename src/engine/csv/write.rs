//! Writes cells as a row of CSV.
//!
//! The csv crate does not quote a cell that begins with a byte order mark. As the first cell of a file, such a cell would
//! lose the mark when it is read.

/// Appends cells with commas between them, quoted where RFC 4180 needs it, and no row end.
pub fn write_cells<'a>(text: &mut Vec<u8>, cells: impl Iterator<Item = &'a [u8]>) {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write_cell(text, cell);
    }
}

/// Appends a cell, quoted where RFC 4180 needs it.
pub(super) fn write_cell(text: &mut Vec<u8>, cell: &[u8]) {
    let quoted =
        cell.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) || cell.starts_with(b"\xef\xbb\xbf");
    if !quoted {
        text.extend_from_slice(cell);
        return;
    }
    text.push(b'"');
    write_in_quotes(text, cell);
    text.push(b'"');
}

/// Appends a piece of a cell that is in quotes.
pub(super) fn write_in_quotes(text: &mut Vec<u8>, piece: &[u8]) {
    for piece in piece.split_inclusive(|&byte| byte == b'"') {
        text.extend_from_slice(piece);
        if piece.ends_with(b"\"") {
            text.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_written_as_the_csv_crate_does() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            // A single empty cell would be an empty line.
            let mut cells = vec![String::from("1")];
            for _ in 0..random.usize(..5) {
                let pieces = ["a", ",", "\"", "\n", "\r", " ", "#", "\u{e9}", "\u{feff}"];
                let text: String = (0..random.usize(..6)).map(|_| pieces[random.usize(..pieces.len())]).collect();
                cells.push(text.trim_start_matches('\u{feff}').to_owned());
            }
            let mut row = Vec::new();
            write_cells(&mut row, cells.iter().map(String::as_bytes));
            row.push(b'\n');
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(&cells).expect("memory");
            assert_eq!(row, writer.into_inner().expect("memory"), "{cells:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_quoted() {
        let mut row = Vec::new();
        write_cells(&mut row, [&b"\xef\xbb\xbfa"[..], b"b"].into_iter());
        assert_eq!(row, b"\"\xef\xbb\xbfa\",b");
    }
}
