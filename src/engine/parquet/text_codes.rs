//! Reads a column as codes: the code of a row says which text of the chunk's dictionary the row has. So a text is compared or
//! looked up once for each dictionary, not once for each row.
//!
//! Memory: the dictionary, and one page with the codes of its rows.

use std::ops::Range;

use bytes::Bytes;
use chrono::NaiveDate;
use parquet::{
    basic::Encoding,
    column::page::{Page, PageReader},
    errors::ParquetError,
    file::serialized_reader::SerializedPageReader,
};

use super::{
    file::{Chunk, ParquetFile},
    hybrid::{Cursor, Run, SLACK_BYTES, UnsupportedPage, count_non_null, for_each_run, unpack},
    window::Window,
};
use crate::{error::Error, model::schema::ColumnType};

/// Bytes of a text's length in a page.
const LENGTH_BYTES: usize = 4;

/// Bits of an index in a page.
const CODE_BITS_MAX: u8 = 32;

/// The code of a row without a text.
pub const NULL_CODE: u32 = 0;

/// A column of one row group. All its values are in one dictionary.
pub struct TextCodes<'a> {
    parquet: &'a ParquetFile<'a>,
    pages: SerializedPageReader<Window>,
    /// Rows of the row group that no page had yet.
    rows_left: usize,
    texts: Texts,
    /// The codes of the current page.
    page: Vec<u32>,
    /// How many of them were read.
    at: usize,
}

/// The texts of a dictionary.
#[derive(Default)]
pub struct Texts {
    bytes: Bytes,
    ranges: Vec<Range<usize>>,
}

impl Texts {
    /// The number of codes: one for each text, and [`NULL_CODE`].
    pub fn codes_count(&self) -> usize {
        self.ranges.len() + 1
    }

    /// The text of a code; empty for [`NULL_CODE`].
    pub fn text(&self, code: u32) -> &[u8] {
        let range = (code as usize).checked_sub(1).and_then(|index| self.ranges.get(index));
        range.map_or(&[], |range| &self.bytes[range.clone()])
    }

    /// For each code, the value that `of` gives its text, and `null` for [`NULL_CODE`].
    pub fn map<T: Clone>(&self, null: T, of: impl Fn(&[u8]) -> T) -> Vec<T> {
        let texts = self.ranges.iter().map(|range| of(&self.bytes[range.clone()]));
        std::iter::once(null).chain(texts).collect()
    }
}

impl<'a> TextCodes<'a> {
    /// Opens a chunk; `None` if not all of its values are in a dictionary, or if Parquet does not keep the texts of its type.
    ///
    /// Errors: the chunk cannot be read, or does not match its checksums.
    pub(super) fn open(chunk: &Chunk<'a>, column_type: ColumnType) -> Result<Option<Self>, Error> {
        if !chunk.is_dictionary() || !column_type.keeps_texts() {
            return Ok(None);
        }
        let (parquet, rows_left) = (chunk.parquet, chunk.rows_count()?);
        let mut codes =
            Self { parquet, pages: chunk.pages()?, rows_left, texts: Texts::default(), page: Vec::new(), at: 0 };
        codes.texts = codes.read_dictionary(column_type).map_err(|error| parquet.read_error(error))?;
        Ok(Some(codes))
    }

    /// The dictionary.
    pub fn texts(&self) -> &Texts {
        &self.texts
    }

    /// Replaces `codes` by those of the next `count` rows.
    ///
    /// Errors: there are fewer rows; the chunk does not match its checksums.
    pub fn read(&mut self, count: usize, codes: &mut Vec<u32>) -> Result<(), Error> {
        codes.clear();
        while codes.len() < count {
            if self.at == self.page.len() {
                self.next_page().map_err(|error| self.parquet.read_error(error))?;
            }
            let end = self.page.len().min(self.at + count - codes.len());
            codes.extend_from_slice(&self.page[self.at..end]);
            self.at = end;
        }
        self.check_end()
    }

    /// Passes over the next `count` rows; whole pages are not decoded.
    ///
    /// Errors: as [`TextCodes::read`].
    pub fn skip(&mut self, mut count: usize) -> Result<(), Error> {
        while count > 0 {
            let rest = self.page.len() - self.at;
            if rest > 0 {
                let skipped = rest.min(count);
                self.at += skipped;
                count -= skipped;
                continue;
            }
            let skipped = self.skip_page(count).map_err(|error| self.parquet.read_error(error))?;
            count -= skipped;
        }
        self.check_end()
    }

    /// Passes over the next page if it has at most `rows_max` rows, and returns how many; otherwise it is decoded.
    fn skip_page(&mut self, rows_max: usize) -> Result<usize, ParquetError> {
        let rows = self.pages.peek_next_page()?.and_then(|page| page.num_rows.or(page.num_levels));
        match rows {
            Some(rows) if rows <= rows_max && rows <= self.rows_left => {
                self.pages.skip_next_page()?;
                self.rows_left -= rows;
                Ok(rows)
            }
            _ => self.next_page().map(|()| 0),
        }
    }

    fn read_dictionary(&mut self, column_type: ColumnType) -> Result<Texts, ParquetError> {
        let Some(Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, .. }) =
            self.pages.get_next_page()?
        else {
            return Err(general("a column chunk does not begin with its dictionary"));
        };
        let texts = match column_type {
            ColumnType::Int64 => numbers(&buf, |value| Some(i64::from_le_bytes(value).to_string())),
            ColumnType::Date32 => numbers(&buf, |value| {
                NaiveDate::from_epoch_days(i32::from_le_bytes(value)).map(|date| date.to_string())
            }),
            _ => texts(buf),
        };
        let texts = texts.filter(|texts| texts.ranges.len() == num_values as usize);
        texts.ok_or_else(|| general("a dictionary is not a list of values of its column"))
    }

    /// Decodes the next page that has rows.
    fn next_page(&mut self) -> Result<(), ParquetError> {
        self.at = 0;
        self.page.clear();
        while self.page.is_empty() {
            let Some(Page::DataPage { buf, num_values, encoding, .. }) = self.pages.get_next_page()? else {
                return Err(ParquetError::EOF("a column chunk has fewer rows than its row group".to_owned()));
            };
            let rows = num_values as usize;
            let is_coded = matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY);
            if !is_coded || rows > self.rows_left {
                return Err(general("a page is not as the footer says"));
            }
            self.rows_left -= rows;
            let decoded = decode_page(&buf, rows, self.texts.ranges.len(), &mut self.page);
            decoded.map_err(|UnsupportedPage| general("a page of dictionary indices is damaged"))?;
        }
        Ok(())
    }

    /// After the last row, there must be no other page.
    fn check_end(&mut self) -> Result<(), Error> {
        if self.rows_left > 0 || self.at < self.page.len() {
            return Ok(());
        }
        match self.pages.peek_next_page() {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.parquet.damaged("a column chunk has more rows than its row group")),
            Err(error) => Err(self.parquet.read_error(error)),
        }
    }
}

fn general(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

/// The texts of a PLAIN dictionary page: each has its length, 4 bytes, little endian, before it. `None` if it is damaged.
fn texts(bytes: Bytes) -> Option<Texts> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at + LENGTH_BYTES;
        let length = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
        let end = start.checked_add(length)?;
        std::str::from_utf8(bytes.get(start..end)?).ok()?;
        ranges.push(start..end);
        at = end;
    }
    Some(Texts { bytes, ranges })
}

/// The texts of a PLAIN dictionary page of numbers with `WIDTH` bytes each. `None` if it is damaged.
fn numbers<const WIDTH: usize>(page: &[u8], text: impl Fn([u8; WIDTH]) -> Option<String>) -> Option<Texts> {
    let (values, rest) = page.as_chunks::<WIDTH>();
    let (mut bytes, mut ranges) = (Vec::new(), Vec::with_capacity(values.len()));
    for value in values {
        let start = bytes.len();
        bytes.extend_from_slice(text(*value)?.as_bytes());
        ranges.push(start..bytes.len());
    }
    rest.is_empty().then(|| Texts { bytes: bytes.into(), ranges })
}

/// Appends the codes of a page of `rows` rows: levels, then indices below `texts_count`.
#[allow(clippy::cast_possible_truncation, reason = "the greatest index is checked")]
fn decode_page(page: &[u8], rows: usize, texts_count: usize, codes: &mut Vec<u32>) -> Result<(), UnsupportedPage> {
    let mut padded = Vec::with_capacity(page.len() + SLACK_BYTES);
    padded.extend_from_slice(page);
    padded.resize(page.len() + SLACK_BYTES, 0);
    let mut cursor = Cursor { bytes: &padded, at: 0, end: page.len() };
    let present = count_non_null(&mut cursor, rows)?;
    let levels_end = cursor.at;
    codes.reserve(rows);
    let width = if present == 0 && cursor.rest().is_empty() { 0 } else { cursor.byte()? };
    if width > CODE_BITS_MAX {
        return Err(UnsupportedPage);
    }
    for_each_run(&mut cursor, width, present, |run| {
        match run {
            Run::Repeated { index, count } => {
                let code = code_of(index, texts_count)?;
                codes.extend(std::iter::repeat_n(code, count));
            }
            Run::Packed { packed, count } => {
                let mut greatest = 0;
                codes.extend((0..count).map(|at| {
                    let index = unpack(packed, at, width);
                    greatest = greatest.max(index);
                    (index as u32).wrapping_add(1) // of an index that is too large, it is not used
                }));
                code_of(greatest, texts_count)?;
            }
        }
        Ok(())
    })?;
    if present < rows {
        let mut levels = Cursor { bytes: &padded, at: 4, end: levels_end };
        *codes = with_nulls(codes, &mut levels, rows)?;
    }
    Ok(())
}

fn code_of(index: usize, texts_count: usize) -> Result<u32, UnsupportedPage> {
    if index < texts_count {
        u32::try_from(index + 1).map_err(|_too_large| UnsupportedPage)
    } else {
        Err(UnsupportedPage)
    }
}

/// The codes of all rows, from those of the rows that have a value and the levels, which say which rows these are.
fn with_nulls(present: &[u32], levels: &mut Cursor<'_>, rows: usize) -> Result<Vec<u32>, UnsupportedPage> {
    let mut codes = Vec::with_capacity(rows);
    let mut values = present.iter().copied();
    let mut next = || values.next().ok_or(UnsupportedPage);
    for_each_run(levels, 1, rows, |run| {
        match run {
            Run::Repeated { index: 0, count } => codes.extend(std::iter::repeat_n(NULL_CODE, count)),
            Run::Repeated { count, .. } => {
                for _ in 0..count {
                    codes.push(next()?);
                }
            }
            Run::Packed { packed, count } => {
                for at in 0..count {
                    let is_present = packed[at / 8] >> (at % 8) & 1 == 1;
                    codes.push(if is_present { next()? } else { NULL_CODE });
                }
            }
        }
        Ok(())
    })?;
    Ok(codes)
}
