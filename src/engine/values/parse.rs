//! Parses cells: the column types that a cell may have, and its value for each type. Pure functions over bytes; nothing
//! here knows rows, files or columns.
//!
//! Invariant: a type accepts a cell only if no information is lost, and [`class`] returns exactly the types whose parsers
//! accept the cell.

use chrono::NaiveDate;
use memchr::memchr;

use crate::error::csv::CellProblem;

/// A set of column types, one bit each: the types that a cell, or all cells of a column, may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    /// Only text.
    pub const TEXT: Self = Self(0);
    /// A 64-bit integer in canonical form.
    pub const INT64: Self = Self(1);
    /// A JSON number of at most 17 significant digits.
    pub const NUMBER: Self = Self(1 << 1);
    /// `true` or `false`, also with a capital letter.
    pub const BOOLEAN: Self = Self(1 << 2);
    /// A calendar date.
    pub const DATE32: Self = Self(1 << 3);
    /// A date and a time.
    pub const TIMESTAMP: Self = Self(1 << 4);
    /// A date and a time in UTC.
    pub const TIMESTAMP_UTC: Self = Self(1 << 5);
    /// All types: a column before its first cell.
    pub const ANY: Self = Self((1 << 6) - 1);

    /// The types in both sets.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The types in either set.
    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it has all types of `other`.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The types that a cell may have. It must not be empty.
pub fn class(cell: &[u8]) -> Class {
    match cell.first() {
        Some(b'0'..=b'9' | b'-') => {
            let integer = parse_int64(cell).is_some();
            // 17 bytes have at most 17 digits. This is the common case.
            if integer && cell.len() <= 17 {
                return Class::INT64.or(Class::NUMBER);
            }
            let mut class = if integer { Class::INT64 } else { Class::TEXT };
            if parse_float64(cell).is_some() {
                class = class.or(Class::NUMBER);
            } else if parse_date(cell).is_some() {
                class = class.or(Class::DATE32);
            } else if let Some((_, utc)) = parse_timestamp(cell) {
                class = class.or(if utc { Class::TIMESTAMP_UTC } else { Class::TIMESTAMP });
            }
            class
        }
        Some(b't' | b'f' | b'T' | b'F') if parse_boolean(cell).is_some() => Class::BOOLEAN,
        _ => Class::TEXT,
    }
}

/// Whether a JSON number has a fraction or an exponent, which makes a column of numbers one of Float64.
pub fn is_fractional(number: &[u8]) -> bool {
    number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
}

/// A 64-bit integer in canonical form: no `+`, no leading zeros, no `-0`.
pub fn parse_int64(cell: &[u8]) -> Option<i64> {
    let digits = cell.strip_prefix(b"-").unwrap_or(cell);
    match digits {
        [] => None,
        [b'0'] => (cell.len() == 1).then_some(0),
        [b'0', ..] => None,
        _ => parse_digits(digits, cell.len() != digits.len()),
    }
}

/// [`parse_int64`] of `block[start..end]`, which is not empty. If eight bytes precede `end`, it parses eight digits at once.
#[inline]
pub fn integer_before(block: &[u8], start: usize, end: usize) -> Option<i64> {
    let negative = usize::from(block[start] == b'-');
    let len = end - start - negative;
    let (1..=8, Some(eight)) = (len, block[..end].last_chunk::<8>()) else {
        return parse_int64(&block[start..end]);
    };
    let word = u64::from_le_bytes(*eight);
    let others = 64 - 8 * len; // bits before the digits
    let starts_with_zero = (word >> others) & 0xff == u64::from(b'0');
    if starts_with_zero && (len > 1 || negative == 1) {
        return None;
    }
    let value = eight_digits(word >> others << others | ZEROS & !(u64::MAX << others))?;
    let mask = (negative as u64).wrapping_neg();
    Some(((value ^ mask).wrapping_sub(mask)).cast_signed()) // negated where the mask is all ones
}

/// The value of a JSON number (RFC 8259, section 6) of at most 17 significant digits, if a double can represent it: it is
/// neither infinite, nor subnormal, nor rounded to 0.
pub fn parse_float64(cell: &[u8]) -> Option<f64> {
    const SIGNIFICANT_DIGITS_MAX: usize = 17;
    let take_digits = |rest: &[u8]| rest.iter().take_while(|b| b.is_ascii_digit()).count();

    let rest = cell.strip_prefix(b"-").unwrap_or(cell);
    let whole = take_digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return None;
    }
    let (whole, mut rest) = rest.split_at(whole);
    let mut fraction: &[u8] = b"";
    if let Some(after_point) = rest.strip_prefix(b".") {
        (fraction, rest) = after_point.split_at(take_digits(after_point));
        if fraction.is_empty() {
            return None;
        }
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let digits = exponent.strip_prefix(b"-").or_else(|| exponent.strip_prefix(b"+")).unwrap_or(exponent);
        if digits.is_empty() || take_digits(digits) != digits.len() {
            return None;
        }
    } else if !rest.is_empty() {
        return None;
    }

    let mut digits = whole.iter().chain(fraction);
    let significant = match digits.position(|&digit| digit != b'0') {
        Some(leading_zeros) => whole.len() + fraction.len() - leading_zeros,
        None => 0,
    };
    if significant > SIGNIFICANT_DIGITS_MAX {
        return None;
    }
    let value: f64 = std::str::from_utf8(cell).ok()?.parse().ok()?;
    (value.is_normal() || significant == 0).then_some(value)
}

/// `true` or `false`, or as Python prints them `True` or `False`.
pub fn parse_boolean(cell: &[u8]) -> Option<bool> {
    match cell {
        b"true" | b"True" => Some(true),
        b"false" | b"False" => Some(false),
        _ => None,
    }
}

/// `YYYY-MM-DD` (ISO 8601, years 0001 to 9999, proleptic Gregorian) as days since 1970-01-01.
pub fn parse_date(cell: &[u8]) -> Option<i32> {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = *cell else {
        return None;
    };
    let year = two_digits(y0, y1)? * 100 + two_digits(y2, y3)?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, two_digits(m0, m1)?, two_digits(d0, d1)?)?;
    (year > 0).then(|| date.to_epoch_days())
}

/// `YYYY-MM-DDThh:mm:ss` with an optional fraction of up to six digits and an optional `Z` (ISO 8601), as microseconds since
/// 1970-01-01T00:00:00 and whether there is a `Z`. There may be a space instead of the `T`, as pandas and SQL print it. Other
/// offsets, leap seconds and hour 24 are not accepted.
pub fn parse_timestamp(cell: &[u8]) -> Option<(i64, bool)> {
    let (date, time) = cell.split_at_checked(10)?;
    let days = parse_date(date)?;
    let (time, utc) = match time.strip_suffix(b"Z") {
        Some(time) => (time, true),
        None => (time, false),
    };
    let (seconds, fraction) = time.split_at_checked(9)?;
    let [b'T' | b' ', h0, h1, b':', m0, m1, b':', s0, s1] = *seconds else {
        return None;
    };
    let (hour, minute, second) = (two_digits(h0, h1)?, two_digits(m0, m1)?, two_digits(s0, s1)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = match fraction {
        [] => 0,
        [b'.', digits @ ..] if (1..=6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) => {
            let value = digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
            value * 10_i64.pow(6 - u32::try_from(digits.len()).ok()?)
        }
        _ => return None,
    };
    let second_of_day = i64::from(hour * 3600 + minute * 60 + second);
    Some(((i64::from(days) * 86_400 + second_of_day) * 1_000_000 + micros, utc))
}

/// The value of a cell in a sum, unless its column is of doubles. ASCII white space around it is ignored; then it must be
/// `[+-]?[0-9]+` or `[+-]?[0-9]+\.0*` in 64 bits, or empty, which adds nothing.
///
/// The cell is the first `len` bytes of `window`. The bytes after it do not change the value, but if there are enough
/// of them, eight digits are parsed at once.
#[inline]
pub fn summand(len: usize, window: &[u8]) -> Result<Option<i64>, CellProblem> {
    if let Some(nine) = window.first_chunk::<9>() {
        // There is no branch on the sign, which would often be mispredicted.
        let negative = u64::from(nine[0] == b'-') & u64::from(len > 0);
        let [from_first, from_second] = [0, 1].map(|start| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&nine[start..start + 8]);
            u64::from_le_bytes(eight)
        });
        let mask = negative.wrapping_neg();
        let digits = from_first ^ (from_first ^ from_second) & mask;
        if let Some(value) = parse_up_to_eight(len as u64 - negative, digits) {
            return Ok(Some(((value ^ mask).wrapping_sub(mask)).cast_signed())); // negated where the mask is all ones
        }
    }
    any_summand(&window[..len])
}

const ZEROS: u64 = 0x3030_3030_3030_3030;

/// The value of 1 to 8 digits in the low bytes, the first digit in the lowest. `None` if one of them is not a digit.
#[inline]
fn parse_up_to_eight(len: u64, bytes: u64) -> Option<u64> {
    if len.wrapping_sub(1) >= 8 {
        return None;
    }
    // The digits are shifted to the high bytes, with zeros before them. Two shifts, because a shift by 64 is not allowed.
    eight_digits(bytes << (64 - 8 * len) | ZEROS >> (8 * len - 8) >> 8)
}

/// The value of eight digits, the first in the lowest byte. `None` if one of them is not a digit. The three multiplications
/// are from Lemire, "Quickly parsing eight digits" (2018).
#[inline]
fn eight_digits(digits: u64) -> Option<u64> {
    const HIGH_NIBBLES: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    // The high nibble of a digit is 3, and still 3 after 6 is added.
    let is_high_three = |word: u64| word & HIGH_NIBBLES == ZEROS;
    if !is_high_three(digits) || !is_high_three(digits.wrapping_add(0x0606_0606_0606_0606)) {
        return None;
    }
    let values = digits - ZEROS;
    let pairs = values.wrapping_mul(10) + (values >> 8);
    let low = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let high = (pairs >> 16 & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
    Some(low.wrapping_add(high) >> 32)
}

fn any_summand(cell: &[u8]) -> Result<Option<i64>, CellProblem> {
    // The common case: a few digits.
    if let 1..=18 = cell.len() {
        let mut value = 0_i64;
        let mut all_digits = true;
        for &byte in cell {
            let digit = byte.wrapping_sub(b'0');
            all_digits &= digit < 10;
            value = value.wrapping_mul(10).wrapping_add(i64::from(digit)); // wraps only if a byte is not a digit
        }
        if all_digits {
            return Ok(Some(value));
        }
    }
    let cell = cell.trim_ascii();
    let digits = match cell {
        [] => return Ok(None),
        [b'+' | b'-', digits @ ..] => digits,
        digits => digits,
    };
    // pandas writes integers so in a column with empty cells: 1.0
    let digits = match memchr(b'.', digits) {
        Some(point) if digits[point + 1..].iter().all(|&byte| byte == b'0') => &digits[..point],
        _ => digits,
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(CellProblem::NotAnInteger);
    }
    let value = parse_digits(digits, cell[0] == b'-').ok_or(CellProblem::TooLarge)?;
    Ok(Some(value))
}

/// As [`summand`], for a cell of a column of doubles: the double must be an [`integral`] one.
pub fn double_summand(cell: &[u8]) -> Result<Option<i64>, CellProblem> {
    if cell.is_empty() {
        return Ok(None);
    }
    integral(parse_float64(cell).ok_or(CellProblem::NotANumber)?).map(Some)
}

/// The value of a double in a sum: an integer below 2^53 in magnitude, because from there on different integers have the same
/// double.
#[allow(clippy::cast_possible_truncation, reason = "the value is integral and small enough")]
pub fn integral(value: f64) -> Result<i64, CellProblem> {
    const EXACT_BELOW: f64 = (1_u64 << 53) as f64;
    if value.abs() >= EXACT_BELOW {
        return Err(CellProblem::NotExact);
    }
    if value.fract() == 0.0 { Ok(value as i64) } else { Err(CellProblem::NotAnInteger) }
}

/// How errors show a cell of a column of doubles, from CSV as from Parquet: as its double.
pub fn double_text(cell: &[u8]) -> String {
    parse_float64(cell).map_or_else(|| String::from_utf8_lossy(cell).into_owned(), |value| format!("{value:?}"))
}

/// The value of a cell in the statistics. ASCII white space around it is ignored; then it is empty and has no value, or is a
/// double, or an integer as in a [`summand`]. An integer beyond 2^53 becomes the nearest double, as in a column of doubles, so
/// that its value does not depend on other cells.
pub fn number(cell: &[u8]) -> Result<Option<f64>, CellProblem> {
    let cell = cell.trim_ascii();
    if cell.is_empty() {
        return Ok(None);
    }
    if let Some(double) = parse_float64(cell) {
        return Ok(Some(double));
    }
    // Integers of more digits than a double keeps, and such as +5 and 007.
    match any_summand(cell) {
        Ok(Some(integer)) => Ok(Some(integer as f64)),
        Ok(None) | Err(_) => Err(CellProblem::NotANumber),
    }
}

/// The value of decimal digits in 64 bits. `None` if it does not fit, or if a byte is not a digit.
fn parse_digits(digits: &[u8], negative: bool) -> Option<i64> {
    let mut value = 0_i64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // Computed as a negative number, because the negative range has one more value.
        value = value.checked_mul(10)?.checked_sub(i64::from(digit))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

fn two_digits(tens: u8, ones: u8) -> Option<u32> {
    (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| u32::from(tens - b'0') * 10 + u32::from(ones - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: Class = Class::INT64.or(Class::NUMBER);

    #[test]
    fn each_cell_has_its_class() {
        let cases: &[(&str, Class)] = &[
            ("0", INT),
            ("-1", INT),
            ("12345678901234567", INT),
            ("123456789012345678", Class::INT64), // 18 digits: an integer, but no double
            ("9223372036854775807", Class::INT64),
            ("-9223372036854775808", Class::INT64),
            ("9223372036854775808", Class::TEXT),
            ("-9223372036854775809", Class::TEXT),
            ("-0", Class::NUMBER), // a JSON number, but not how an integer is printed
            ("007", Class::TEXT),
            ("-01", Class::TEXT),
            ("+5", Class::TEXT),
            (" 5", Class::TEXT),
            ("5 ", Class::TEXT),
            ("-", Class::TEXT),
            ("1.5", Class::NUMBER),
            ("-0.0", Class::NUMBER),
            ("1e5", Class::NUMBER),
            ("1E+05", Class::NUMBER),
            ("1.", Class::TEXT),
            (".5", Class::TEXT),
            ("1e", Class::TEXT),
            ("1e+", Class::TEXT),
            ("0x10", Class::TEXT),
            ("1_000", Class::TEXT),
            ("NaN", Class::TEXT),
            ("inf", Class::TEXT),
            ("1e309", Class::TEXT),                   // no double is so large
            ("1e-400", Class::TEXT),                  // would become 0
            ("4.9406564584124654e-324", Class::TEXT), // a subnormal double keeps fewer digits
            ("2.2250738585072014e-308", Class::NUMBER),
            ("0e999", Class::NUMBER),
            ("1.2345678901234567", Class::NUMBER),
            ("1.23456789012345678", Class::TEXT),      // 18 significant digits
            ("0.00012345678901234567", Class::NUMBER), // leading zeros are not significant
            ("true", Class::BOOLEAN),
            ("false", Class::BOOLEAN),
            ("True", Class::BOOLEAN),
            ("False", Class::BOOLEAN),
            ("TRUE", Class::TEXT),
            ("Truely", Class::TEXT),
            ("2024-02-29", Class::DATE32),
            ("2023-02-29", Class::TEXT),
            ("0000-01-01", Class::TEXT),
            ("2024-1-01", Class::TEXT),
            ("2024-01-01T00:00:00", Class::TIMESTAMP),
            ("2024-01-01T23:59:59.123456", Class::TIMESTAMP),
            ("2024-01-01T23:59:59.1Z", Class::TIMESTAMP_UTC),
            ("2024-01-01T23:59:59.1234567", Class::TEXT), // would lose a digit
            ("2024-01-01T23:59:60", Class::TEXT),
            ("2024-01-01T24:00:00", Class::TEXT),
            ("2024-01-01T00:00:00+01:00", Class::TEXT), // would lose the offset
            ("2021-12-19 13:12:30", Class::TIMESTAMP),
            ("2021-12-19 13:12:30.25Z", Class::TIMESTAMP_UTC),
            ("2021-12-19  13:12:30", Class::TEXT),
            ("2021-12-19t13:12:30", Class::TEXT),
            ("2024-01-01T00:00:00.", Class::TEXT),
            ("text", Class::TEXT),
            ("\u{660}", Class::TEXT), // a digit, but not an ASCII one
        ];
        for &(cell, expected) in cases {
            assert_eq!(class(cell.as_bytes()), expected, "{cell}");
        }
    }

    #[test]
    fn values_are_what_the_text_says() {
        assert_eq!(parse_int64(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_float64(b"0.1"), Some(0.1));
        assert_eq!(parse_float64(b"-0.0").map(f64::to_bits), Some((-0.0_f64).to_bits()));
        assert_eq!(parse_date(b"1970-01-01"), Some(0));
        assert_eq!(parse_date(b"0001-01-01"), Some(-719_162));
        assert_eq!(parse_date(b"9999-12-31"), Some(2_932_896));
        assert_eq!(parse_timestamp(b"1970-01-02T00:00:01.5"), Some((86_401_500_000, false)));
        assert_eq!(parse_timestamp(b"1970-01-02 00:00:01.5"), Some((86_401_500_000, false)));
        assert_eq!((parse_boolean(b"True"), parse_boolean(b"False")), (Some(true), Some(false)));
        assert_eq!(parse_timestamp(b"1969-12-31T23:59:59.999999Z"), Some((-1, true)));
    }

    #[test]
    fn numbers_do_not_depend_on_the_columns_type() {
        for text in ["0", "-7", "34.1", "-0.0", "1e308", "12345678901234567", "9007199254740993"] {
            let double = parse_float64(text.as_bytes()).expect(text);
            assert_eq!(number(format!(" {text}\t").as_bytes()), Ok(Some(double)), "{text}");
            if let Some(integer) = parse_int64(text.as_bytes()) {
                assert_eq!((integer as f64).to_bits(), double.to_bits(), "{text}");
            }
        }
        assert_eq!(number(b"9223372036854775807"), Ok(Some(9_223_372_036_854_775_807.0)));
        assert_eq!(number(b" \r\n"), Ok(None));
        for text in ["~", "NaN", "inf", "1e309", "4e-324", "+", "9223372036854775808", "1,000", "true", "34.1%", "+1.5"]
        {
            assert_eq!(number(text.as_bytes()), Err(CellProblem::NotANumber), "{text}");
        }
        // What is an integer to a sum is a number here.
        for (text, value) in [("+5", 5), ("007", 7), ("-010", -10), ("+3.0", 3), ("7.", 7)] {
            assert_eq!(number(format!("\t{text} ").as_bytes()), Ok(Some(f64::from(value))), "{text}");
            assert_eq!(summand(text.len(), text.as_bytes()), Ok(Some(value.into())), "{text}");
        }
    }

    #[test]
    fn summands_are_what_the_design_says() {
        let cases: &[(&str, Result<Option<i64>, CellProblem>)] = &[
            ("", Ok(None)),
            (" \t\r\n\u{c}", Ok(None)),
            ("0", Ok(Some(0))),
            ("007", Ok(Some(7))),
            ("+5", Ok(Some(5))),
            (" -5 ", Ok(Some(-5))),
            ("-0", Ok(Some(0))),
            ("999999999999999999", Ok(Some(999_999_999_999_999_999))),
            ("0000000000000000000000000000001", Ok(Some(1))),
            ("9223372036854775807", Ok(Some(i64::MAX))),
            ("-9223372036854775808", Ok(Some(i64::MIN))),
            ("9223372036854775808", Err(CellProblem::TooLarge)),
            ("-9223372036854775809", Err(CellProblem::TooLarge)),
            ("99999999999999999999999", Err(CellProblem::TooLarge)),
            ("+", Err(CellProblem::NotAnInteger)),
            ("--5", Err(CellProblem::NotAnInteger)),
            ("+-5", Err(CellProblem::NotAnInteger)),
            ("5 5", Err(CellProblem::NotAnInteger)),
            ("1.0", Ok(Some(1))),
            ("-1.", Ok(Some(-1))),
            (" +007.000 ", Ok(Some(7))),
            ("-0.0", Ok(Some(0))),
            ("9223372036854775807.0", Ok(Some(i64::MAX))),
            ("9223372036854775808.0", Err(CellProblem::TooLarge)),
            ("1.5", Err(CellProblem::NotAnInteger)),
            ("1.01", Err(CellProblem::NotAnInteger)),
            ("1.0.0", Err(CellProblem::NotAnInteger)),
            ("1.0 0", Err(CellProblem::NotAnInteger)),
            (".0", Err(CellProblem::NotAnInteger)),
            (".", Err(CellProblem::NotAnInteger)),
            ("+.0", Err(CellProblem::NotAnInteger)),
            ("1e3", Err(CellProblem::NotAnInteger)),
            ("x", Err(CellProblem::NotAnInteger)),
            ("\u{a0}5", Err(CellProblem::NotAnInteger)), // white space, but not ASCII
            ("\u{b}5", Err(CellProblem::NotAnInteger)),  // vertical tab: not in Rust's ASCII white space
        ];
        for &(cell, expected) in cases {
            assert_eq!(summand(cell.len(), cell.as_bytes()), expected, "{cell:?}");
            for after in [",12345678", "\n0000000", "999999999"] {
                let window = [cell, after].concat();
                assert_eq!(summand(cell.len(), window.as_bytes()), expected, "{cell:?} before {after:?}");
            }
        }
    }

    #[test]
    fn doubles_are_added_if_they_are_integral_and_exact() {
        for (cell, expected) in [
            ("", Ok(None)),
            ("1.0", Ok(Some(1))),
            ("-0.0", Ok(Some(0))),
            ("-3", Ok(Some(-3))),
            ("1e3", Ok(Some(1000))),
            ("0e999", Ok(Some(0))),
            ("9007199254740991", Ok(Some((1 << 53) - 1))),
            ("-9007199254740991.0", Ok(Some(1 - (1 << 53)))),
            ("9007199254740992", Err(CellProblem::NotExact)),
            ("9007199254740993", Err(CellProblem::NotExact)), // the same double as the one before
            ("-1e300", Err(CellProblem::NotExact)),
            ("0.5", Err(CellProblem::NotAnInteger)),
            ("1e-300", Err(CellProblem::NotAnInteger)),
        ] {
            assert_eq!(double_summand(cell.as_bytes()), expected, "{cell}");
        }
        assert_eq!(double_text(b"0.50"), "0.5");
        assert_eq!(double_text(b"1e300"), "1e300");
    }

    #[test]
    fn eight_at_once_equals_one_by_one() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            let mut window = [0; 10];
            // Digits, at times a sign, and now and then their neighbours in ASCII or any byte.
            window.fill_with(|| match random.u8(..40) {
                0 => *b"/:+- ,\n\0".get(random.usize(..8)).unwrap(),
                1 => random.u8(..),
                _ => random.u8(b'0'..=b'9'),
            });
            if random.bool() {
                window[0] = b'-';
            }
            for len in 0..=8 {
                assert_eq!(summand(len, &window), any_summand(&window[..len]), "{:?}", &window[..len]);
            }
        }
    }
}
