//! Random CSV files from a seed, and a simple computation of their types and sums, with which the engine is compared.

use tally::{error::quoted::Quoted, model::schema::ColumnType};

use crate::common::quoted_csv_cell;

/// A cell of one of twelve kinds.
fn random_cell(random: &mut fastrand::Rng, kind: usize) -> String {
    let integers = [i64::MIN, i64::MAX, 0, 1, -1, 999_999_999_999_999_999, 1_000_000_000_000_000_000];
    match kind {
        0 => random.i64(-1000..1000).to_string(),
        1 => integers[random.usize(..integers.len())].to_string(),
        2 => {
            let sign = ["", "+", "-"][random.usize(..3)];
            let zeros = "0".repeat(random.usize(..25));
            let space = ["", " ", "\t", "\n", " \r\n"][random.usize(..5)];
            format!("{space}{sign}{zeros}{}{space}", random.u32(..))
        }
        3 => {
            ["9223372036854775808", "-9223372036854775809", "99999999999999999999999999"][random.usize(..3)].to_owned()
        }
        4 => format!("{:?}", random.f64() * 1000.0),
        5 => ["true", "false", "True", "False"][random.usize(..4)].to_owned(),
        6 => format!("20{:02}-0{}-1{}", random.u8(..100), random.u8(1..10), random.u8(..10)),
        7 => {
            let separator = ["T", " "][random.usize(..2)];
            format!("2024-02-29{separator}1{}:00:0{}.{}", random.u8(..10), random.u8(..10), random.u32(1..999_999))
        }
        8 => format!("2024-02-29T1{}:00:0{}Z", random.u8(..10), random.u8(..10)),
        9 => ["x", "a,b", "say \"hi\"", "line\nbreak", "\r\n", "ü✓", "1 2", "-", "5\"", "\u{a0}1"][random.usize(..10)]
            .to_owned(),
        10 => {
            let integer = if random.u8(..20) == 0 { 9_007_199_254_740_993 } else { random.i64(-1000..1000) };
            format!("{integer}.{}", "0".repeat(random.usize(1..3)))
        }
        _ => String::new(),
    }
}

/// A CSV file, with the names of its columns and the cells that it was made of.
pub(crate) struct RandomFile {
    pub(crate) csv: String,
    pub(crate) names: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

pub(crate) fn random_file(random: &mut fastrand::Rng) -> RandomFile {
    let all_names = ["x", "y", "", "a,b", "q\"q", "ü", "long name", "z"];
    let mut names: Vec<String> = all_names.iter().map(|name| (*name).to_owned()).collect();
    random.shuffle(&mut names);
    names.truncate(random.usize(1..=names.len()));
    if names.len() == 2 && names[1].is_empty() {
        names.swap(0, 1); // otherwise it may look like a title that a spreadsheet has padded
    }
    let kinds: Vec<Vec<usize>> = names
        .iter()
        .map(|_| match random.usize(..12) {
            0..=2 => vec![0],
            3 => vec![0, 1],
            4 => vec![0, 2],
            5 => vec![0, 0, 0, 0, 0, 0, 3],
            6 => vec![0, 0, 0, 0, 0, 0, 0, 9],
            10 => vec![0, 10],
            11 => vec![2, 10],
            kind => [vec![0, 4], vec![4 + random.usize(..5)], vec![9]][kind - 7].clone(),
        })
        .collect();
    let blanks = random.usize(..3); // 0: no empty cells, 1: some, 2: many
    let rows: Vec<Vec<String>> = (0..random.usize(..40))
        .map(|_| {
            let cell = |kinds: &Vec<usize>, random: &mut fastrand::Rng| match blanks {
                1 if random.u8(..8) == 0 => String::new(),
                2 if random.bool() => String::new(),
                _ => {
                    let kind = kinds[random.usize(..kinds.len())];
                    random_cell(random, kind)
                }
            };
            kinds.iter().map(|kinds| cell(kinds, random)).collect()
        })
        .collect();
    let mut csv = String::new();
    if random.u8(..4) == 0 {
        csv.push('\u{feff}');
    }
    let ends = ["\n", "\r\n", "\r", "\n\n", "\r\n\r\n"];
    let one_end = random.bool().then(|| ends[random.usize(..3)]);
    for (index, row) in std::iter::once(&names).chain(&rows).enumerate() {
        if index > 0 {
            csv.push_str(one_end.unwrap_or_else(|| ends[random.usize(..ends.len())]));
        }
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                csv.push(',');
            }
            // A row of one empty cell must be quoted, or it would be an empty line.
            let must_quote =
                cell.starts_with('"') || cell.contains([',', '\n', '\r']) || (row.len() == 1 && cell.is_empty());
            if must_quote || random.u8(..6) == 0 {
                csv.push_str(&quoted_csv_cell(cell));
            } else {
                csv.push_str(cell);
            }
        }
    }
    if random.bool() {
        csv.push('\n');
    }
    RandomFile { csv, names, rows }
}

/// The type of a column, by the rules of the documentation, one cell at a time.
pub(crate) fn expected_type(cells: &[&str]) -> ColumnType {
    let is_date = |cell: &str| cell.len() == 10 && chrono::NaiveDate::parse_from_str(cell, "%Y-%m-%d").is_ok();
    let is_time = |cell: &str| {
        let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
        let parses = |format| chrono::NaiveDateTime::parse_from_str(cell, format).is_ok();
        matches!(cell.get(10..11), Some("T" | " ")) && formats.into_iter().any(parses)
    };
    let is_number = |cell: &str| {
        let mantissa = cell.split(['e', 'E']).next().unwrap_or_default();
        let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
        serde_json::from_str::<serde_json::Number>(cell).is_ok()
            && !cell.contains(char::is_whitespace)
            && digits.trim_start_matches('0').len() <= 17
    };
    let all = |is: &dyn Fn(&str) -> bool| cells.iter().filter(|cell| !cell.is_empty()).all(|cell| is(cell));
    if cells.iter().all(|cell| cell.is_empty()) {
        ColumnType::Utf8
    } else if all(&|cell| cell.parse::<i64>().is_ok_and(|value| value.to_string() == cell)) {
        ColumnType::Int64
    } else if all(&is_number) && cells.iter().any(|cell| cell.contains(['.', 'e', 'E'])) {
        ColumnType::Float64
    } else if all(&|cell| matches!(cell, "true" | "false" | "True" | "False")) {
        ColumnType::Boolean
    } else if all(&is_date) {
        ColumnType::Date32
    } else if all(&is_time) {
        ColumnType::Timestamp
    } else if all(&|cell| cell.strip_suffix('Z').is_some_and(is_time)) {
        ColumnType::TimestampUtc
    } else {
        ColumnType::Utf8
    }
}

/// The sum of a column, or the error, by the rules of the documentation, one cell at a time.
pub(crate) fn expected_sum(parts: &[RandomFile], column: &str) -> Result<i64, String> {
    let mut total = 0_i128;
    for (index, part) in parts.iter().enumerate() {
        let Some(at) = part.names.iter().position(|name| name == column) else {
            continue;
        };
        let cells: Vec<&str> = part.rows.iter().map(|row| row[at].as_str()).collect();
        let (id, name) = (index + 1, Quoted(column));
        let column_type = expected_type(&cells);
        if !matches!(column_type, ColumnType::Int64 | ColumnType::Float64 | ColumnType::Utf8) {
            return Err(format!("part {id}, column {name}: its type is {column_type}, not an integer"));
        }
        for (row, cell) in cells.iter().enumerate() {
            if column_type == ColumnType::Float64 && !cell.is_empty() {
                let value: f64 = cell.parse().expect("a number");
                let problem = match value {
                    _ if value.abs() >= 9_007_199_254_740_992.0 => "is not below 2^53, where a double is exact",
                    _ if value.trunc() != value => "is not an integer",
                    _ => {
                        total += format!("{value:.0}").parse::<i128>().expect("an integer");
                        continue;
                    }
                };
                let shown = format!("{value:?}");
                return Err(format!("part {id}, row {}, column {name}: {} {problem}", row + 1, Quoted(&shown)));
            }
            let text = cell.trim_matches([' ', '\t', '\n', '\r', '\u{c}']);
            if text.is_empty() {
                continue;
            }
            let text = match text.split_once('.') {
                Some((integer, zeros)) if zeros.chars().all(|c| c == '0') => integer,
                _ => text,
            };
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            let shown = Quoted(cell);
            if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
                return Err(format!("part {id}, row {}, column {name}: {shown} is not an integer", row + 1));
            }
            match text.parse::<i64>() {
                Ok(value) => total += i128::from(value),
                Err(_) => {
                    return Err(format!("part {id}, row {}, column {name}: {shown} does not fit in 64 bits", row + 1));
                }
            }
        }
    }
    let name = Quoted(column);
    i64::try_from(total).map_err(|_| format!("column {name}: the sum {total} does not fit in 64 bits"))
}

/// The rows as the csv crate reads them.
pub(crate) fn read_by_csv_crate(csv: &str) -> Vec<Vec<String>> {
    let text = csv.strip_prefix('\u{feff}').unwrap_or(csv);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    reader.records().map(|row| row.expect("valid").iter().map(str::to_owned).collect()).collect()
}
