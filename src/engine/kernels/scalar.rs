//! Scalar code with the same results as the vector code. Tests compare the two.

use super::types::{FoundCells, LANES, RowCell, Stopped};

/// Appends a column of cells that are stored row by row.
pub(super) fn gather_plain(cells: &[i32], columns_count: usize, column_index: usize, column: &mut Vec<i32>) {
    column.extend(cells.chunks_exact(columns_count).map(|row| row[column_index]));
}

/// [`find_marks`](super::find_marks), with a function that marks 64 bytes.
#[inline(always)]
pub(super) fn find_marks_by(bytes: &[u8], marks: &mut [u32], structure_of: impl Fn(&[u8; LANES]) -> u64) -> usize {
    let mut count = 0;
    for (base, piece) in (0_u32..).step_by(LANES).zip(bytes.chunks(LANES)) {
        let mut bits = if let Ok(lanes) = piece.try_into() {
            structure_of(lanes)
        } else {
            let mut lanes = [0; LANES];
            lanes[..piece.len()].copy_from_slice(piece);
            structure_of(&lanes)
        };
        let mut at = count;
        count += bits.count_ones() as usize;
        while bits != 0 {
            // Always eight, so that the loop seldom ends at an unexpected time. Those after the last one are overwritten.
            let Some(eight) = marks[at..].first_chunk_mut::<8>() else { return at };
            for mark in eight {
                *mark = base + bits.trailing_zeros();
                bits &= bits.wrapping_sub(1);
            }
            at += 8;
        }
    }
    count
}

/// Which of 64 bytes are separators or quotes, a bit for each byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) commas: u64,
    pub(super) row_ends: u64,
    pub(super) quotes: u64,
}

/// The marks of 64 bytes, byte by byte.
pub(super) fn marks_plain(lanes: &[u8; LANES]) -> Marks {
    let bits = |is: fn(u8) -> bool| (0..).zip(lanes).fold(0, |bits, (at, &byte)| bits | u64::from(is(byte)) << at);
    Marks {
        commas: bits(|byte| byte == b','),
        row_ends: bits(|byte| matches!(byte, b'\n' | b'\r')),
        quotes: bits(|byte| byte == b'"'),
    }
}

/// [`find_cells`](super::find_cells), with a function that marks 64 bytes. Quotes open and close alternately, so the number
/// of quotes before a byte shows whether it is inside quotes. Each quote must be at the start or end of a cell.
#[inline(always)]
pub(super) fn find_cells_by(
    bytes: &[u8],
    columns_count: usize,
    column_index: usize,
    cells: &mut [RowCell],
    marks_of: impl Fn(&[u8; LANES]) -> Marks,
) -> FoundCells {
    let mut count = 0;
    let mut found = RowCell::default();
    let mut commas_before = 0; // in the row
    let mut quotes = Quotes { quoted: 0, after_separator: 1, after_close: 0 };
    let mut base = 0;
    let mut last = [0; LANES];
    while base < bytes.len() {
        let lanes = bytes[base..].first_chunk::<LANES>().unwrap_or_else(|| {
            last[..bytes.len() - base].copy_from_slice(&bytes[base..]);
            &last
        });
        let (Marks { mut commas, mut row_ends, .. }, irregular) = quotes.outside(marks_of(lanes));
        // Bytes after the first irregular one are ignored.
        let known = (irregular & irregular.wrapping_neg()).wrapping_sub(1);
        (commas, row_ends) = (commas & known, row_ends & known);
        loop {
            let row_end = row_ends & row_ends.wrapping_neg();
            let here = commas & row_end.wrapping_sub(1);
            let commas_here = here.count_ones() as usize;
            let wanted = column_index.wrapping_sub(commas_before);
            if wanted.wrapping_sub(1) < commas_here {
                found.start = base + nth_bit(here, wanted - 1) + 1;
            }
            if wanted < commas_here {
                found.end = base + nth_bit(here, wanted);
            }
            commas_before += commas_here;
            if row_end == 0 {
                break;
            }
            let at = base + row_end.trailing_zeros() as usize;
            commas &= !row_end.wrapping_sub(1);
            row_ends ^= row_end;
            if at > found.row {
                if commas_before + 1 != columns_count {
                    return FoundCells { count, next: found.row, stopped: Stopped::Irregular };
                }
                if count == cells.len() {
                    return FoundCells { count, next: found.row, stopped: Stopped::Full };
                }
                if column_index == commas_before {
                    found.end = at;
                }
                cells[count] = RowCell { row_end: at, ..found };
                count += 1;
            }
            commas_before = 0;
            found.row = at + 1;
            found.start = at + 1;
        }
        if irregular != 0 {
            return FoundCells { count, next: found.row, stopped: Stopped::Irregular };
        }
        base += LANES;
    }
    FoundCells { count, next: found.row, stopped: Stopped::End }
}

/// The state before the next 64 bytes.
struct Quotes {
    /// All ones if the last byte is inside quotes, or opens them.
    quoted: u64,
    /// In the lowest bit: whether the last byte was a separator.
    after_separator: u64,
    /// In the lowest bit: whether the last byte closed quotes.
    after_close: u64,
}

impl Quotes {
    /// The marks that are outside of quotes, and a bit for each byte where a quote, or what follows one, is irregular.
    #[inline(always)]
    fn outside(&mut self, marks: Marks) -> (Marks, u64) {
        let Marks { mut commas, mut row_ends, quotes } = marks;
        let mut irregular = 0;
        if quotes | self.quoted == 0 {
            irregular |= self.after_close & !(commas | row_ends);
            self.after_close = 0;
            self.after_separator = (commas | row_ends) >> 63;
        } else {
            let inside = prefix_xor(quotes) ^ self.quoted;
            (commas, row_ends) = (commas & !inside, row_ends & !inside);
            let separators = commas | row_ends;
            let (opens, closes) = (quotes & inside, quotes & !inside);
            irregular |= opens & !((separators | closes) << 1 | self.after_separator | self.after_close);
            irregular |= (closes << 1 | self.after_close) & !(separators | opens);
            self.quoted = (inside >> 63).wrapping_neg();
            self.after_separator = separators >> 63;
            self.after_close = closes >> 63;
        }
        (Marks { commas, row_ends, quotes }, irregular)
    }
}

/// For each bit, the parity of all bits up to it.
#[inline(always)]
fn prefix_xor(bits: u64) -> u64 {
    [1, 2, 4, 8, 16, 32].iter().fold(bits, |bits, by| bits ^ bits << by)
}

/// The index of the set bit that has `below` set bits below it.
#[inline(always)]
fn nth_bit(mut bits: u64, below: usize) -> usize {
    for _ in 0..below {
        bits &= bits - 1;
    }
    bits.trailing_zeros() as usize
}
