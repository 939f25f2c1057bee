//! Compares every kernel with scalar code.

use super::{
    Added, LANES, MARKS_ROOM, RowCell,
    classify::{structure_of, structure_plain},
    delta, find_cells, find_marks, gather, put_deltas, put_narrow_deltas, read_integers, read_narrow_integers,
    scalar::{find_cells_by, find_marks_by, gather_plain, marks_plain},
    serves, sum_rows,
    types::{GATHER_COLUMNS_MAX, SUM_BYTES_MAX, SUM_COLUMNS_MAX},
};

/// `sum_rows`, row by row and cell by cell.
fn sum_rows_plain(block: &[u8], columns_count: usize, column_index: usize) -> Option<Added> {
    let lines = block.split(|byte| matches!(byte, b'\n' | b'\r'));
    let mut added = Added { rows: 0, total: 0 };
    for row in lines.filter(|line| !line.is_empty()) {
        let cells: Vec<_> = row.split(|&byte| byte == b',').collect();
        let text = std::str::from_utf8(cells.get(column_index)?).ok()?;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_plain = text.is_empty() || (1..=18).contains(&digits.len());
        let fits = is_plain && digits.bytes().all(|byte| byte.is_ascii_digit());
        if cells.len() != columns_count || !fits || row.contains(&b'"') {
            return None;
        }
        added.rows += 1;
        added.total += if text.is_empty() { 0 } else { text.parse::<i128>().ok()? };
    }
    Some(added)
}

fn random_cell(random: &mut fastrand::Rng, digits_max: usize) -> String {
    let digits: String = (0..random.usize(1..=digits_max)).map(|_| random.digit(10)).collect();
    match random.u8(..8) {
        0 => String::new(),
        1..3 => format!("-{digits}"),
        _ => digits,
    }
}

/// Random rows with any of the three row ends, sometimes with empty lines.
fn random_rows(random: &mut fastrand::Rng, columns_count: usize, bytes: usize) -> Vec<u8> {
    let row_ends = [["\n"; 4], ["\r\n"; 4], ["\r"; 4], ["\n", "\r\n", "\n\n", "\r\r\n"]];
    let row_ends = row_ends[random.usize(..4)];
    let digits_max = [1, 2, 7, 8, 9, 17, 18][random.usize(..7)];
    let mut text = String::new();
    while text.len() < bytes {
        let mut cells: Vec<_> = (0..columns_count).map(|_| random_cell(random, digits_max)).collect();
        if random.u8(..30) == 0 {
            cells[random.usize(..columns_count)] = "9".repeat(18);
        }
        text.push_str(&cells.join(","));
        text.push_str(row_ends[random.usize(..4)]);
    }
    text.into_bytes()
}

#[test]
fn sums_by_vectors_equal_scalar_sums() {
    let (mut plain, mut refused) = (0, 0);
    for seed in 0..6000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let columns_count = random.usize(1..=SUM_COLUMNS_MAX);
        let bytes = [10, 60, 64, 70, 130, 700][random.usize(..6)];
        let mut rows = random_rows(&mut random, columns_count, bytes);
        if random.bool() {
            // One byte that could be parsed wrongly.
            let at = random.usize(..rows.len());
            rows[at] = *b",,\n\r\"-0+ x\xff\0.:/"[..].get(random.usize(..16)).unwrap_or(&b'1');
        }
        for column_index in 0..columns_count {
            let expected = sum_rows_plain(&rows, columns_count, column_index);
            let found = sum_rows(&rows, columns_count, column_index);
            if serves(columns_count) {
                let shown = String::from_utf8_lossy(&rows);
                // Rows with mixed row ends may be left to the scanner.
                let mixed = rows.contains(&b'\r') && !rows.ends_with(b"\r") && !rows.ends_with(b"\r\n");
                if !mixed && matches!(rows.last(), Some(b'\n' | b'\r')) || found.is_some() {
                    assert_eq!(found, expected, "seed {seed}, column {column_index} of {columns_count}: {shown:?}");
                }
                plain += u32::from(found.is_some());
                refused += u32::from(found.is_none());
            }
        }
    }
    assert!(!serves(1) || plain > 5000 && refused > 5000, "{plain} plain, {refused} refused");
}

#[test]
fn cells_found_by_vectors_equal_scalar_ones() {
    let mut found_rows = 0;
    for seed in 0..6000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let columns_count = random.usize(1..60);
        let mut bytes = random_rows(&mut random, columns_count, 300);
        for _ in 0..random.usize(..8) {
            let at = random.usize(..bytes.len());
            let piece: &[u8] =
                [&b"\"a\""[..], b"\"", b",\"\",", b"\"x\n,\"\"y\"", b"\n", b"\"\"", b","][random.usize(..7)];
            bytes.splice(at..at, piece.iter().copied());
        }
        let room = random.usize(1..20);
        let (mut cells, mut plain) = (vec![RowCell::default(); room], vec![RowCell::default(); room]);
        let column_index = random.usize(..columns_count);
        let rows = find_cells(&bytes, columns_count, column_index, &mut cells);
        let expected = find_cells_by(&bytes, columns_count, column_index, &mut plain, marks_plain);
        assert_eq!((rows, cells), (expected, plain), "seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
        found_rows += rows.count;
    }
    assert!(found_rows > 3000, "{found_rows}");
}

#[test]
fn deltas_by_vectors_equal_scalar_ones() {
    for count in 0..600 {
        let mut random = fastrand::Rng::with_seed(count);
        let bits = random.u32(0..64);
        let values: Vec<i64> = (0..count).map(|_| random.i64(..) >> bits).collect();
        let (mut wide, mut plain) = (Vec::new(), Vec::new());
        let range = put_deltas(&values, &mut wide);
        assert_eq!(range, delta::put(&values, &mut plain));
        assert_eq!(range, values.iter().copied().min().zip(values.iter().copied().max()));
        assert_eq!(wide, plain, "{count} values of {} bits", 64 - bits);
    }
}

#[test]
fn narrow_deltas_are_the_same_bytes() {
    for round in 0..3000 {
        let mut random = fastrand::Rng::with_seed(round);
        let end = i64::from(delta::NARROW_DELTAS_END);
        let bits = random.u32(0..31);
        let values: Vec<i64> = (0..round % 600).map(|_| random.i64(1 - end..end) >> bits).collect();
        let narrow: Vec<_> = values.iter().map(|value| i32::try_from(*value).unwrap()).collect();
        let mut bytes = [Vec::new(), Vec::new(), Vec::new()];
        let ranges = [
            delta::put(&values, &mut bytes[0]),
            delta::put_narrow(&narrow, &mut bytes[1]),
            put_narrow_deltas(&narrow, &mut bytes[2]),
        ];
        assert_eq!(ranges, [ranges[0]; 3]);
        assert!(bytes[1] == bytes[0] && bytes[2] == bytes[0], "{} values, shifted by {bits}", values.len());
    }
}

#[test]
fn deltas_of_every_width_are_packed_bit_by_bit() {
    let mut random = fastrand::Rng::with_seed(1);
    for width in 0..=32 {
        // From `-height` to `height` and back: differences of four times that. The smallest widths have no room to go
        // back.
        let height = (1_i64 << width) / 4 - 1;
        let most = if width < 3 { (1 << width) - 1 } else { 4 * height };
        let mut values = vec![if width < 3 { 0 } else { -height }];
        for index in 1..=256 {
            let last = values[index - 1];
            values.push(match (width, index % 64) {
                (0..3, 0) => last,
                (0..3, 1) => last + most,
                (0..3, _) => last + random.i64(0..=most),
                (_, 0..4) if index % 2 == 0 => -height,
                (_, 0..4) => height,
                _ if index % 2 == 0 => -random.i64(0..=height),
                _ => random.i64(0..=height),
            });
        }
        let least = values.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
        let expected: Vec<_> = values.windows(2).map(|pair| pair[1] - pair[0] - least).collect();
        let narrow: Vec<_> = values.iter().map(|value| i32::try_from(*value).unwrap()).collect();
        let mut bytes = [Vec::new(), Vec::new(), Vec::new()];
        delta::put(&values, &mut bytes[0]);
        delta::put_narrow(&narrow, &mut bytes[1]);
        put_narrow_deltas(&narrow, &mut bytes[2]);
        let mut bits = vec![0_u8; 256 / 8 * width];
        for (index, offset) in expected.iter().enumerate() {
            for bit in (0..width).filter(|bit| offset >> bit & 1 == 1) {
                bits[(index * width + bit) / 8] |= 1 << ((index * width + bit) % 8);
            }
        }
        for bytes in bytes {
            let (head, packed) = bytes.split_at(bytes.len() - bits.len());
            assert!(head.ends_with(&[u8::try_from(width).unwrap(); 4]), "width {width}: {head:?}");
            assert_eq!(packed, bits, "width {width}");
        }
    }
}

#[test]
fn seven_digits_are_narrow_and_eight_are_not_at_any_offset() {
    for (cell, is_narrow) in [("9999999", true), ("-9999999", true), ("10000000", false), ("-10000000", false)] {
        for before in 0..2 * LANES {
            // Empty lines are no rows.
            let (shift, rows_before) = ("\n".repeat(before % 4), "1,2\n".repeat(before / 4));
            let rows = format!("{shift}{rows_before}{cell},1\n2,{cell}\n{}", "4,5\n".repeat(40));
            let (mut cells, mut empty) = (vec![0; 400], Vec::new());
            let taken = read_narrow_integers(rows.as_bytes(), 2, &mut cells, 0, &mut empty);
            if serves(2) {
                assert_eq!(taken.at_long, !is_narrow, "{rows:?}");
            }
            let found = cells[..taken.filled].iter().any(|found| found.to_string() == cell);
            assert_eq!(found, is_narrow && serves(2), "{rows:?}");
        }
    }
}

#[test]
fn a_column_gathered_by_vectors_equals_the_scalar_one() {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut column, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..2000 {
        let columns_count = random.usize(1..=GATHER_COLUMNS_MAX + 2);
        let cells: Vec<_> = (0..columns_count * random.usize(..100)).map(|_| random.i32(..)).collect();
        let column_index = random.usize(..columns_count);
        gather(&cells, columns_count, column_index, &mut column);
        plain.clear();
        gather_plain(&cells, columns_count, column_index, &mut plain);
        assert_eq!(column, plain, "column {column_index} of {columns_count}");
    }
}

#[test]
fn narrow_cells_equal_wide_ones() {
    let (mut short, mut long) = (0, 0);
    for seed in 0..6000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let columns_count = random.usize(1..=SUM_COLUMNS_MAX);
        // Long cells are rare, so that some of them cross the border between 64 bytes and the next.
        let bits = [54, 44, 41, 36][random.usize(..4)];
        let mut rows = Vec::new();
        while rows.len() < 400 {
            let cell = |_| match random.u8(..20) {
                0 => String::new(),
                1 => (random.i64(..) >> 36).to_string(),
                _ => (random.i64(..) >> bits).to_string(),
            };
            rows.extend((0..columns_count).map(cell).collect::<Vec<_>>().join(",").bytes());
            rows.push(b'\n');
        }
        if random.u8(..4) == 0 {
            let at = random.usize(..rows.len());
            rows[at] = *b",,\n\r\"-0+ x\xff\0.:/"[..].get(random.usize(..16)).unwrap_or(&b'1');
        }
        let filled = random.usize(..3) * columns_count;
        let (mut cells, mut narrow) = (vec![7_i64; 1200], vec![7_i32; 1200]);
        let (mut empty, mut narrow_empty) = (Vec::new(), Vec::new());
        let wide = read_integers(&rows, columns_count, &mut cells, filled, &mut empty);
        let taken = read_narrow_integers(&rows, columns_count, &mut narrow, filled, &mut narrow_empty);
        let shown = String::from_utf8_lossy(&rows);
        if taken.at_long {
            // It stops at the row that ends, or would end, in the 64 bytes with the eighth digit.
            let is_eighth = |at: &usize| rows[at - 7..=*at].iter().all(u8::is_ascii_digit);
            let eighth = (7..rows.len()).find(is_eighth).expect("a long cell");
            let before = &rows[..eighth / LANES * LANES];
            let row = before.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(0, |end| end + 1);
            // Only empty lines may be left.
            let left = rows[..row].get(taken.bytes..).expect("no row of them is taken");
            assert!(left.iter().all(|byte| matches!(byte, b'\n' | b'\r')), "seed {seed}: {shown:?}");
            empty.retain(|index| (*index as usize) < taken.filled);
            long += 1;
        } else {
            assert_eq!(taken, wide, "seed {seed}: {shown:?}");
            short += taken.filled;
        }
        let widened: Vec<_> = narrow[..taken.filled].iter().copied().map(i64::from).collect();
        assert_eq!(widened, cells[..taken.filled], "seed {seed}: {shown:?}");
        assert_eq!(narrow_empty, empty, "seed {seed}: {shown:?}");
    }
    assert!(!serves(1) || short > 5000 && long > 1000, "{short} cells, {long} stops");
}

#[test]
fn totals_do_not_wrap() {
    for (row, columns_count) in [("9\n", 1), ("99999999\n", 1), ("-999999999999999999,9\n", 2), ("9,-9\r\n", 2)] {
        let rows = row.repeat(SUM_BYTES_MAX / row.len()).into_bytes();
        for column_index in 0..columns_count {
            let found = sum_rows(&rows, columns_count, column_index);
            let expected = sum_rows_plain(&rows, columns_count, column_index);
            assert_eq!(found, expected.filter(|_| serves(1)), "{row:?}");
        }
    }
}

#[test]
fn structure_equals_scalar_structure() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..2000 {
        let mut lanes = [0; LANES];
        lanes.fill_with(|| if random.bool() { *b",\n\r\"".get(random.usize(..4)).unwrap() } else { random.u8(..) });
        assert_eq!(structure_of(&lanes), structure_plain(&lanes), "{lanes:?}");
    }
}

#[test]
fn marks_are_all_separators_and_quotes() {
    let mut random = fastrand::Rng::with_seed(21);
    for _ in 0..2000 {
        let every = [1, 2, 5, 40][random.usize(..4)];
        let mark = |random: &mut fastrand::Rng| b",\n\r\""[random.usize(..4)];
        let byte = |random: &mut fastrand::Rng| if random.usize(..every) == 0 { mark(random) } else { random.u8(..) };
        let bytes: Vec<u8> = (0..random.usize(..300)).map(|_| byte(&mut random)).collect();
        let is_mark = |byte: &u8| matches!(byte, b',' | b'\n' | b'\r' | b'"');
        let expected: Vec<u32> = (0..).zip(&bytes).filter(|(_, byte)| is_mark(byte)).map(|(at, _)| at).collect();
        let mut marks = vec![u32::MAX; bytes.len() + MARKS_ROOM];
        let count = find_marks(&bytes, &mut marks);
        assert_eq!(marks[..count], expected, "{bytes:?}");
        let count = find_marks_by(&bytes, &mut marks, structure_plain);
        assert_eq!(marks[..count], expected, "{bytes:?}, byte by byte");
    }
}
