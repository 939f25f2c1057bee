//! Reads a column as codes: the code of a row says which text of the chunk's dictionary the row has. So a text is compared or
//! looked up once for each dictionary, not once for each row.
//!
//! Memory: the dictionary, and one page with the codes of its rows.

use std::ops::Range;

use bytes::Bytes;
use chrono::NaiveDate;
use parquet::basic::Encoding;

use super::{
    file::Chunk,
    hybrid::{Cursor, Levels, UnsupportedPage, read_indices},
    row_pages::{DecodedPage, RowPages},
};
use crate::{engine::kernels::expand, error::Error, model::schema::ColumnType};

/// Bytes of a text's length in a page.
const LENGTH_BYTES: usize = 4;

/// Bits of an index in a page.
const CODE_BITS_MAX: u8 = 32;

/// A column of one row group. All its values are in one dictionary.
pub struct TextCodes<'a> {
    rows: RowPages<'a, CodePage>,
    texts: Texts,
}

/// The codes of a page's rows.
#[derive(Default)]
pub(super) struct CodePage {
    /// The code of a row without a value. All others are less.
    pub(super) null: u32,
    pub(super) codes: Vec<u32>,
    /// The codes of the rows that have a value, if there are others.
    present: Vec<u32>,
}

/// The texts of a dictionary.
#[derive(Default)]
pub struct Texts {
    bytes: Bytes,
    ranges: Vec<Range<usize>>,
}

impl Texts {
    /// The number of codes: one for each text, and one for no text, which is the last.
    pub fn codes_count(&self) -> usize {
        self.ranges.len() + 1
    }

    /// The code of a row without a text.
    pub fn null_code(&self) -> u32 {
        u32::try_from(self.ranges.len()).unwrap_or(u32::MAX)
    }

    /// The text of a code; empty for [`Texts::null_code`].
    pub fn text(&self, code: u32) -> &[u8] {
        self.ranges.get(code as usize).map_or(&[], |range| &self.bytes[range.clone()])
    }

    /// For each code, the value that `of` gives its text, and `null` for [`Texts::null_code`].
    pub fn map<T: Clone>(&self, null: T, of: impl Fn(&[u8]) -> T) -> Vec<T> {
        let texts = self.ranges.iter().map(|range| of(&self.bytes[range.clone()]));
        texts.chain(std::iter::once(null)).collect()
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
        let mut rows = RowPages::open(chunk, CodePage::default())?;
        let damaged = |what: &str| chunk.parquet.damaged(what);
        let (page, count) =
            rows.dictionary()?.ok_or_else(|| damaged("a column chunk does not begin with its dictionary"))?;
        let texts = match column_type {
            ColumnType::Int64 => numbers(&page, |value| Some(i64::from_le_bytes(value).to_string())),
            ColumnType::Date32 => numbers(&page, |value| {
                NaiveDate::from_epoch_days(i32::from_le_bytes(value)).map(|date| date.to_string())
            }),
            _ => texts(page),
        };
        let texts = texts.filter(|texts| texts.ranges.len() == count);
        let texts = texts.ok_or_else(|| damaged("a dictionary is not a list of values of its column"))?;
        rows.page.null = texts.null_code();
        Ok(Some(Self { rows, texts }))
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
        self.rows.read(count, |page, here, _| codes.extend_from_slice(&page.codes[here]))
    }

    /// Replaces `codes` by those of some of the next `count` rows, and passes over the others. `wanted` are ascending offsets
    /// below `count`.
    ///
    /// Errors: as [`TextCodes::read`].
    pub fn read_some(&mut self, count: usize, wanted: &[u32], codes: &mut Vec<u32>) -> Result<(), Error> {
        codes.clear();
        let mut left = wanted;
        self.rows.read(count, |page, here, before| {
            let (first, rest) = left.split_at(left.partition_point(|&row| (row as usize) < before + here.len()));
            codes.extend(first.iter().map(|&row| page.codes[here.start + row as usize - before]));
            left = rest;
        })
    }

    /// Passes over the next `count` rows; whole pages are not decoded.
    ///
    /// Errors: as [`TextCodes::read`].
    pub fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.rows.skip(count)
    }
}

impl DecodedPage for CodePage {
    fn decode(&mut self, page: &[u8], rows: usize, encoding: Encoding) -> Result<(), UnsupportedPage> {
        if !matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY) {
            return Err(UnsupportedPage);
        }
        let mut cursor = Cursor { bytes: page, at: 0, end: page.len() };
        let levels = Levels::read(&mut cursor, rows)?;
        self.codes.resize(rows, 0);
        let Some(bits) = levels.bits else {
            return read_indices(&mut cursor, CODE_BITS_MAX, self.null as usize, &mut self.codes);
        };
        self.present.resize(levels.present, 0);
        read_indices(&mut cursor, CODE_BITS_MAX, self.null as usize, &mut self.present)?;
        expand(&bits, &self.present, self.null, &mut self.codes);
        Ok(())
    }
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
