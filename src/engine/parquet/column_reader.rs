//! Reads several columns of a part's Parquet file: for each range of rows, one column after another.
//!
//! Only one page is in memory, however many columns a question has, and rows that one column excludes are skipped in the
//! next. As in `column_sum.rs`, only the footer and the chunks of these columns are read.

use std::ops::Range;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use parquet::{
    column::reader::ColumnReader,
    data_type::{AsBytes, DataType},
    errors::ParquetError,
    file::metadata::RowGroupMetaData,
};

use super::{
    file::ParquetFile,
    numbers::{Number, Numbers},
    read_rows::{TEXTS_MAX, TypedReader, read_rows},
    text_codes::TextCodes,
};
use crate::{
    engine::storage::reader::Reader,
    error::Error,
    limits::TASK_BYTES,
    model::{
        part::Part,
        schema::{ColumnType, Schema},
    },
};

/// A column of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnRef<'n> {
    /// Its index in the part.
    pub index: usize,
    /// Its name.
    pub name: &'n str,
    /// Its type in the part.
    pub column_type: ColumnType,
}

impl<'n> ColumnRef<'n> {
    /// The column of this name, if there is one.
    pub fn find(schema: &Schema, name: &'n str) -> Option<Self> {
        let (index, column_type) = schema.find(name)?;
        Some(Self { index, name, column_type })
    }
}

/// Where the next range begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    row_group: usize,
    /// Rows of the row group before it.
    group_rows: u64,
    /// Rows of the part before it.
    part_rows: u64,
}

/// Consecutive rows of one row group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRange {
    row_group: usize,
    group_rows: Range<usize>,
    ends_group: bool,
    part_rows: u64,
    bytes: u64,
    remaining: Vec<Range<usize>>,
}

impl RowRange {
    /// The number of rows.
    pub fn rows_count(&self) -> usize {
        self.group_rows.len()
    }

    /// The index of their row group.
    pub fn row_group(&self) -> usize {
        self.row_group
    }

    /// Where they begin in the row group.
    pub fn start_in_group(&self) -> usize {
        self.group_rows.start
    }

    /// The offsets in the range of the rows that count: all of them, unless some are of removed parts.
    pub fn remaining(&self) -> &[Range<usize>] {
        &self.remaining
    }

    /// The same offsets one by one, for [`PartColumns::filter_rows`].
    pub fn offsets(&self) -> impl Iterator<Item = u32> {
        let offset = |offset| u32::try_from(offset).unwrap_or(u32::MAX);
        self.remaining.iter().flat_map(move |rows| offset(rows.start)..offset(rows.end))
    }

    /// About how many bytes the cells of the requested columns have, uncompressed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number in the part, from 1, of the row at this offset in the range.
    pub fn row_number(&self, offset: u32) -> u64 {
        self.part_rows + u64::from(offset) + 1
    }
}

/// A cell of a Parquet file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// A null.
    Empty,
    /// An integer.
    Int64(i64),
    /// A finite double.
    Float64(f64),
    /// `true` or `false`
    Boolean(bool),
    /// A day.
    Date32(NaiveDate),
    /// A time, and whether it ends in `Z`.
    Timestamp(NaiveDateTime, bool),
    /// Any text.
    Utf8(&'a str),
}

impl<'a> Cell<'a> {
    /// A text of the cell's value, which is the text in the CSV with these exceptions: a double is the shortest text of its value without an
    /// exponent (`1.5` for `1.50`), a time has a `T` and its fraction no trailing zeros, and a Boolean has no capital letter.
    pub fn text(self, buffer: &'a mut String) -> &'a str {
        *buffer = match self {
            Self::Empty => return "",
            Self::Utf8(text) => return text,
            Self::Int64(value) => value.to_string(),
            Self::Float64(value) => value.to_string(),
            Self::Boolean(value) => value.to_string(),
            Self::Date32(date) => date.to_string(),
            Self::Timestamp(time, utc) => {
                let text = time.format("%Y-%m-%dT%H:%M:%S%.6f").to_string();
                let text = text.trim_end_matches('0').trim_end_matches('.');
                format!("{text}{}", if utc { "Z" } else { "" })
            }
        };
        buffer
    }
}

/// A part's Parquet file, open for reading.
pub struct PartColumns<'a> {
    part: &'a Part,
    parquet: ParquetFile<'a>,
    removed: &'a [Range<u64>],
}

impl<'a> PartColumns<'a> {
    /// Reads the footer. Errors: it does not match its checksum or the receipt; it cannot be read.
    pub fn open(file: &'a Reader, part: &'a Part) -> Result<Self, Error> {
        Ok(Self { part, parquet: ParquetFile::open(file, part)?, removed: &[] })
    }

    /// Leaves out these rows, counted from 0, in ascending order: [`RowRange::remaining`] is without them.
    #[must_use]
    pub fn without(self, removed: &'a [Range<u64>]) -> Self {
        Self { removed, ..self }
    }

    /// The rows from `at` on and the position after them; `None` after the last. There are at most `rows_max` rows, and
    /// fewer if their cells in `columns` would be more than one task may read.
    pub fn next_rows(
        &self,
        at: Position,
        columns: &[&ColumnRef<'_>],
        rows_max: usize,
    ) -> Result<Option<(RowRange, Position)>, Error> {
        let Position { mut row_group, mut group_rows, part_rows } = at;
        let group = loop {
            let Some(group) = self.parquet.row_groups().get(row_group) else {
                if part_rows != self.part.rows {
                    return Err(self.damaged(format!("{part_rows} rows, the receipt says {}", self.part.rows)));
                }
                return Ok(None);
            };
            if group_rows < group.num_rows().cast_unsigned() {
                break group;
            }
            (row_group, group_rows) = (row_group + 1, 0);
        };
        let range = || -> Result<_, std::num::TryFromIntError> {
            let rows = u64::try_from(group.num_rows())?;
            let row_bytes = (columns_bytes(group, columns) / rows).saturating_add(1);
            let rows_max = (TASK_BYTES as u64 / row_bytes).max(1).min(rows_max as u64);
            let count = rows_max.min(rows - group_rows);
            let start = usize::try_from(group_rows)?;
            let ends_group = group_rows + count == rows;
            let group_rows = start..start + usize::try_from(count)?;
            let remaining = remaining(self.removed, part_rows..part_rows + count);
            let bytes = count.saturating_mul(row_bytes);
            Ok(RowRange { row_group, group_rows, ends_group, part_rows, bytes, remaining })
        };
        let range = range().map_err(|error| self.damaged(error.to_string()))?;
        let count = range.rows_count() as u64;
        let after = Position { row_group, group_rows: group_rows + count, part_rows: part_rows + count };
        Ok(Some((range, after)))
    }

    /// A column of a row group, as codes; `None` if Parquet does not keep the texts of its type, or if not all its values are
    /// in a dictionary.
    pub fn codes(&self, row_group: usize, column: &ColumnRef<'_>) -> Result<Option<TextCodes<'_>>, Error> {
        TextCodes::open(&self.parquet.chunk(row_group, column.index, column.name)?, column.column_type)
    }

    /// Whether [`PartColumns::codes`] returns codes for all row groups.
    pub fn is_coded(&self, column: &ColumnRef<'_>) -> Result<bool, Error> {
        for row_group in 0..self.parquet.row_groups().len() {
            if !self.parquet.chunk(row_group, column.index, column.name)?.is_dictionary() {
                return Ok(false);
            }
        }
        Ok(column.column_type.keeps_texts())
    }

    /// The position of a row, counted from 0.
    pub fn position_of(&self, row: u64) -> Position {
        let mut before = 0;
        for (row_group, group) in self.parquet.row_groups().iter().enumerate() {
            let end = before + group.num_rows().cast_unsigned();
            if row < end {
                return Position { row_group, group_rows: row - before, part_rows: row };
            }
            before = end;
        }
        Position { row_group: self.parquet.row_groups().len(), group_rows: 0, part_rows: row }
    }

    /// The position of the first row of a row group.
    pub fn row_group_start(&self, row_group: usize) -> Position {
        let before = self.parquet.row_groups().iter().take(row_group);
        let part_rows = before.map(|group| group.num_rows().cast_unsigned()).fold(0, u64::wrapping_add);
        Position { row_group, group_rows: 0, part_rows }
    }

    /// A column of a row group, if it can be read as such numbers.
    pub fn numbers<T: Number>(
        &self,
        row_group: usize,
        column: &ColumnRef<'_>,
    ) -> Result<Option<Numbers<'_, T>>, Error> {
        Numbers::open(&self.parquet.chunk(row_group, column.index, column.name)?, column.column_type)
    }

    /// Calls `keep` with a column's cell in each of `rows`, and removes the rows for which it returns false. `rows` are
    /// ascending offsets in the range, with the caller's data.
    ///
    /// Errors: the file does not match its receipt; the first error of `keep`.
    pub fn filter_rows<T>(
        &self,
        column: &ColumnRef<'_>,
        range: &RowRange,
        rows: &mut Vec<(u32, T)>,
        keep: impl FnMut(u32, &mut T, Cell<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let reader = self.parquet.chunk(range.row_group, column.index, column.name)?.open()?;
        let invalid = |what: &str| self.damaged(format!("column {}: {what}", column.index));
        let result = match (column.column_type, reader) {
            (ColumnType::Int64, ColumnReader::Int64ColumnReader(reader)) => {
                filter_chunk(reader, range, rows, keep, |&value| Ok(Cell::Int64(value)))
            }
            (ColumnType::Float64, ColumnReader::DoubleColumnReader(reader)) => {
                let finite =
                    |value: f64| if value.is_finite() { Ok(value) } else { Err(invalid("a double is not finite")) };
                filter_chunk(reader, range, rows, keep, |&value| Ok(Cell::Float64(finite(value)?)))
            }
            (ColumnType::Boolean, ColumnReader::BoolColumnReader(reader)) => {
                filter_chunk(reader, range, rows, keep, |&value| Ok(Cell::Boolean(value)))
            }
            (ColumnType::Date32, ColumnReader::Int32ColumnReader(reader)) => {
                let date = |days| NaiveDate::from_epoch_days(days).ok_or_else(|| invalid("a date is out of range"));
                filter_chunk(reader, range, rows, keep, |&days| Ok(Cell::Date32(date(days)?)))
            }
            (ColumnType::Timestamp | ColumnType::TimestampUtc, ColumnReader::Int64ColumnReader(reader)) => {
                let utc = column.column_type == ColumnType::TimestampUtc;
                let time = |us| DateTime::from_timestamp_micros(us).ok_or_else(|| invalid("a time is out of range"));
                filter_chunk(reader, range, rows, keep, |&us| Ok(Cell::Timestamp(time(us)?.naive_utc(), utc)))
            }
            (ColumnType::Utf8, ColumnReader::ByteArrayColumnReader(reader)) => {
                filter_chunk(reader, range, rows, keep, |bytes| {
                    let text = std::str::from_utf8(bytes.as_bytes()).map_err(|error| invalid(&error.to_string()))?;
                    Ok(Cell::Utf8(text))
                })
            }
            (column_type, _) => {
                return Err(self.damaged(format!("its column {} is not of type {column_type}", column.index)));
            }
        };
        result.map_err(|error| self.parquet.read_error(error))
    }

    fn damaged(&self, what: String) -> Error {
        self.parquet.damaged(&what)
    }
}

/// The rows that are not in `removed`, which is in ascending order, as offsets from the first.
fn remaining(removed: &[Range<u64>], rows: Range<u64>) -> Vec<Range<usize>> {
    let offset = |row: u64| usize::try_from(row - rows.start).unwrap_or(usize::MAX);
    let (mut found, mut start) = (Vec::new(), rows.start);
    let first = removed.partition_point(|gap| gap.end <= rows.start);
    for gap in removed[first..].iter().take_while(|gap| gap.start < rows.end) {
        if gap.start > start {
            found.push(offset(start)..offset(gap.start));
        }
        start = start.max(gap.end);
    }
    if start < rows.end {
        found.push(offset(start)..offset(rows.end));
    }
    found
}

/// The uncompressed size of these columns in a row group.
fn columns_bytes(group: &RowGroupMetaData, columns: &[&ColumnRef<'_>]) -> u64 {
    let chunks = columns.iter().filter_map(|column| group.columns().get(column.index));
    chunks.map(|chunk| u64::try_from(chunk.uncompressed_size()).unwrap_or(0)).fold(0, u64::saturating_add)
}

/// Whether there is a row and its offset is less than `end`.
fn is_before<T>(row: Option<&(u32, T)>, end: usize) -> bool {
    row.is_some_and(|(offset, _)| (*offset as usize) < end)
}

/// [`PartColumns::filter_rows`] for one type. Blocks of rows without a wanted row are skipped, not decoded. An error of
/// `keep` or `cell` is returned as [`ParquetError::External`].
fn filter_chunk<P: DataType, T>(
    mut reader: TypedReader<P>,
    range: &RowRange,
    rows: &mut Vec<(u32, T)>,
    mut keep: impl FnMut(u32, &mut T, Cell<'_>) -> Result<bool, Error>,
    cell: impl for<'v> Fn(&'v P::T) -> Result<Cell<'v>, Error>,
) -> Result<(), ParquetError> {
    let short = || ParquetError::EOF("a column chunk has fewer rows than its row group".to_owned());
    let skip = |reader: &mut TypedReader<P>, count: usize| {
        if reader.skip_records(count)? == count { Ok(()) } else { Err(short()) }
    };
    skip(&mut reader, range.group_rows.start)?;
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (mut next, mut kept) = (0, 0);
    let count = range.rows_count();
    let mut start = 0;
    while start < count {
        let mut end = count.min(start + TEXTS_MAX);
        if !is_before(rows.get(next), end) {
            values.clear(); // they keep their page in memory
            skip(&mut reader, end - start)?;
            start = end;
            continue;
        }
        end = start + read_rows(&mut reader, end - start, &mut levels, &mut values)?;
        if end == start || levels.len() != end - start {
            return Err(short());
        }
        // Nulls have no value; their definition level is 0.
        let mut present = values.iter();
        for (offset, level) in (start..end).zip(&levels) {
            let value = if *level > 0 { Some(present.next().ok_or_else(short)?) } else { None };
            if !is_before(rows.get(next), offset + 1) {
                continue;
            }
            let (at, data) = &mut rows[next];
            let is_kept = value.map_or(Ok(Cell::Empty), &cell).and_then(|cell| keep(*at, data, cell));
            if is_kept.map_err(|error| ParquetError::External(Box::new(error)))? {
                rows.swap(kept, next);
                kept += 1;
            }
            next += 1;
        }
        start = end;
    }
    rows.truncate(kept);
    if range.ends_group && reader.skip_records(1)? != 0 {
        return Err(ParquetError::General("a column chunk has more rows than its row group".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::engine::values::parse::{parse_boolean, parse_date, parse_float64, parse_int64, parse_timestamp};

    use super::*;

    /// The cell that the conversion makes of a text.
    fn cell(text: &str) -> Cell<'_> {
        let bytes = text.as_bytes();
        if let Some((micros, utc)) = parse_timestamp(bytes) {
            let time = DateTime::from_timestamp_micros(micros).expect("in the calendar");
            return Cell::Timestamp(time.naive_utc(), utc);
        }
        let date = parse_date(bytes).and_then(NaiveDate::from_epoch_days).map(Cell::Date32);
        let integer = || parse_int64(bytes).map(Cell::Int64);
        let double = || parse_float64(bytes).map(Cell::Float64);
        let boolean = || parse_boolean(bytes).map(Cell::Boolean);
        date.or_else(integer).or_else(double).or_else(boolean).unwrap_or(Cell::Utf8(text))
    }

    #[test]
    fn removed_rows_do_not_remain() {
        let offsets = |removed: &[Range<u64>], rows| -> Vec<_> {
            remaining(removed, rows).into_iter().map(|rows| (rows.start, rows.end)).collect()
        };
        let removed = [0..2, 4..5, 5..7, 9..20];
        for (rows, expected) in [
            (0..30, vec![(2, 4), (7, 9), (20, 30)]),
            (1..6, vec![(1, 3)]),
            (4..7, vec![]),
            (7..9, vec![(0, 2)]),
            (8..8, vec![]),
        ] {
            assert_eq!(offsets(&removed, rows.clone()), expected, "{rows:?}");
        }
        assert_eq!(offsets(&[], 3..9), [(0, 6)]);
    }

    #[test]
    fn texts_are_as_in_the_csv() {
        let same = [
            "-9223372036854775808",
            "0",
            "34.1",
            "-0.25",
            "true",
            "false",
            "0001-01-01",
            "2024-02-29",
            "9999-12-31",
            "0001-01-01T00:00:00",
            "2024-02-29T10:20:30",
            "1969-12-31T23:59:59.999999Z",
            "2024-02-29T10:20:00.5",
            "2024-02-29T00:00:00Z",
            "007",
            "it's",
        ];
        let shorter = [
            ("1.50", "1.5"),
            ("1e3", "1000"),
            ("-0.0", "-0"),
            ("1.5e-7", "0.00000015"),
            ("2024-02-29T10:20:30.500", "2024-02-29T10:20:30.5"),
            ("2024-02-29T10:20:30.0Z", "2024-02-29T10:20:30Z"),
            ("2024-02-29 10:20:30", "2024-02-29T10:20:30"),
            ("True", "true"),
            ("False", "false"),
        ];
        for (text, expected) in same.map(|text| (text, text)).into_iter().chain(shorter) {
            assert_eq!(cell(text).text(&mut String::new()), expected, "{:?}", cell(text));
        }
        assert_eq!(Cell::Empty.text(&mut String::from("before")), "");
    }
}
