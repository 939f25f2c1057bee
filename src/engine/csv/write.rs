//! Writes cells as a row of CSV. A file whose header is written here is never one that `sniff.rs` takes for something else.
//!
//! The csv crate does not quote a cell that begins with a byte order mark. As the first cell of a file, such a cell would
//! lose the mark when it is read.

use crate::error::foreign_file::Separator;

/// Appends cells with commas between them, quoted where RFC 4180 needs it, and no row end.
pub fn write_cells<'a>(text: &mut Vec<u8>, cells: impl Iterator<Item = &'a [u8]>) {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write_cell(text, cell);
    }
}

/// Appends a header with these names, and no row end.
pub fn write_header<'a>(text: &mut Vec<u8>, names: impl Iterator<Item = &'a [u8]>) {
    for (index, name) in names.enumerate() {
        if index > 0 {
            text.push(b',');
        }
        write_name(text, name, index);
    }
}

/// Appends a name of a header, quoted where RFC 4180 needs it, or where the file would seem to be something else without it.
pub(super) fn write_name(text: &mut Vec<u8>, name: &[u8], column_index: usize) {
    if is_misleading(name, column_index) {
        write_quoted(text, name);
    } else {
        write_cell(text, name);
    }
}

/// Whether a name without quotes may make its file look like one of another kind.
fn is_misleading(name: &[u8], column_index: usize) -> bool {
    let is_separated = name.iter().any(|byte| is_other_separator(*byte) || byte.is_ascii_control());
    let of_position = match column_index {
        0 => {
            let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
            let starts_like_a_name = name.trim_ascii_start().first().is_some_and(is_word);
            let is_separator_line = name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"sep="));
            !name.is_empty() && (!starts_like_a_name || is_separator_line)
        }
        // A line that ends with its only comma may be a title.
        1 => name.is_empty(),
        _ => false,
    };
    is_separated || of_position
}

/// Whether a byte separates the cells of other dialects.
pub(super) fn is_other_separator(byte: u8) -> bool {
    Separator::ALL.iter().any(|separator| separator.byte() == byte)
}

/// Appends a cell, quoted where RFC 4180 needs it.
pub(super) fn write_cell(text: &mut Vec<u8>, cell: &[u8]) {
    let quoted =
        cell.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) || cell.starts_with(b"\xef\xbb\xbf");
    if quoted {
        write_quoted(text, cell);
    } else {
        text.extend_from_slice(cell);
    }
}

/// Appends a cell in quotes.
pub(super) fn write_quoted(text: &mut Vec<u8>, cell: &[u8]) {
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
    use crate::{
        engine::csv::{header::parse_header, sniff::sniff},
        limits::CsvLimits,
    };

    #[test]
    fn what_is_written_is_never_taken_for_another_kind_of_file() {
        let starts = [
            "a",
            "1",
            "",
            " ",
            "_",
            "\u{e9}",
            "\u{feff}",
            "#",
            "<!DOCTYPE html>",
            " <html>",
            "<?xml ",
            "<!-- ",
            "{\"",
            "[{",
            "%PDF-",
            "PK\u{3}\u{4}",
            "PAR1\u{15}",
            "sep=",
            "SEP=;",
            "sep=,",
            "\"sep=|\"",
            "a;b",
            "a\tb;c",
            "x|y|z",
            "title, of",
        ];
        let texts = ["a", "1", "2.5", "", "a;b", "1|2", "x\ty", "<html>", "-3"];
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..20_000 {
            let columns = random.usize(2..5);
            let mut text_of = |texts: &[&str]| texts[random.usize(..texts.len())].to_owned();
            let names: Vec<_> = (0..columns)
                .map(|column| {
                    format!("{}{}", text_of(&starts), if column > 1 { column.to_string() } else { text_of(&["", "x"]) })
                })
                .collect();
            let mut file = Vec::new();
            write_header(&mut file, names.iter().map(String::as_bytes));
            file.push(b'\n');
            for _ in 0..3 {
                let cells: Vec<_> = (0..columns).map(|_| text_of(&texts)).collect();
                write_cells(&mut file, cells.iter().map(String::as_bytes));
                file.push(b'\n');
            }
            assert_eq!(sniff(&file), None, "{}", String::from_utf8_lossy(&file));
            if names[0] != names[1] {
                let header = parse_header(&file, CsvLimits::default());
                assert_eq!(header.map(|(names, _)| names), Some(names.clone()), "{}", String::from_utf8_lossy(&file));
            }
        }
    }

    #[test]
    fn ordinary_names_are_written_as_they_are() {
        let names = ["Song", " n ", "Number of Plays", "_id", "\u{e9}t\u{e9}", "x-y", "2020", "a#b"];
        let mut header = Vec::new();
        write_header(&mut header, names.iter().map(|name| name.as_bytes()));
        assert_eq!(header, names.join(",").as_bytes());
    }

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
