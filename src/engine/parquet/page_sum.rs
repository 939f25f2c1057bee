//! Sums an integer column directly from the bytes of its Parquet pages, without an array of decoded values. No file, no
//! thread.
//!
//! Only pages as our own writer wrote them, in this version or an earlier one, are accepted. For any other page it returns
//! [`UnsupportedPage`], and the Parquet library reads the whole chunk and reports what is wrong with it. Invariant: no page
//! is accepted that the library would reject.
//!
//! The formats: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>; a page's header is a struct of
//! Thrift's compact protocol.

use super::hybrid::{Cursor, SLACK_BYTES, UnsupportedPage, count_non_null, read_indices};
use crate::engine::{
    kernels::{
        add_deltas,
        delta::{MINIBLOCK_VALUES, MINIBLOCKS},
        sum_miniblock,
        unpack::SUM_BITS_MAX,
    },
    values::sum::Sum,
};

/// The headers that our writer writes for integer pages are shorter.
const INTEGER_PAGE_HEADER_BYTES_MAX: usize = 64;

/// Values that are decoded into a buffer and then added together.
const BUFFER_VALUES: usize = 256;
/// Values of a dictionary; those of our writer have up to 256 KiB.
const DICTIONARY_VALUES_MAX: usize = 1 << DICTIONARY_BITS_MAX;
/// Bits of an index in it.
const DICTIONARY_BITS_MAX: u8 = 16;

/// The sum of one column chunk, to which its pages are added in order.
pub struct PageSum {
    dictionary: Option<Vec<i64>>,
    /// The dictionary's indices of a page.
    indices: Vec<u32>,
    /// Rows of the chunk. A page that would exceed them is not supported.
    rows_max: u64,
    /// Rows of the pages that were added.
    pub rows: u64,
    /// The sum of their values.
    pub sum: Sum,
}

/// The result of [`PageSum::add_page`], if the page is supported.
#[derive(Debug, PartialEq, Eq)]
pub enum PageStatus {
    /// The page was added; it has this many bytes.
    Added(usize),
    /// The page does not end in the bytes that were given. It needs at least this many.
    Incomplete(usize),
}

impl PageSum {
    /// The sum of no pages yet, for a chunk of `rows_max` rows.
    pub fn new(rows_max: u64) -> Self {
        Self { dictionary: None, indices: Vec::new(), rows_max, rows: 0, sum: Sum::default() }
    }

    /// Adds the page at the start of `bytes`. The last [`SLACK_BYTES`] of these are not part of the chunk.
    pub fn add_page(&mut self, bytes: &[u8]) -> Result<PageStatus, UnsupportedPage> {
        let chunk_bytes = bytes.len().checked_sub(SLACK_BYTES).ok_or(UnsupportedPage)?;
        let mut cursor = Cursor { bytes, at: 0, end: chunk_bytes };
        let header = match header(&mut cursor) {
            Ok(header) => header,
            Err(UnsupportedPage) if chunk_bytes < INTEGER_PAGE_HEADER_BYTES_MAX => {
                return Ok(PageStatus::Incomplete(INTEGER_PAGE_HEADER_BYTES_MAX));
            }
            Err(UnsupportedPage) => return Err(UnsupportedPage),
        };
        let end = cursor.at.checked_add(header.bytes).ok_or(UnsupportedPage)?;
        if end > chunk_bytes {
            return Ok(PageStatus::Incomplete(end));
        }
        cursor.end = end;
        match header.encoding {
            None => self.set_dictionary(&mut cursor, header.values)?,
            Some(_) if header.values as u64 > self.rows_max - self.rows => return Err(UnsupportedPage),
            Some(encoding) => {
                let present = count_non_null(&mut cursor, header.values)?;
                match encoding {
                    Encoding::Plain => self.add_plain(&cursor, present)?,
                    Encoding::Dictionary => self.add_indices(&mut cursor, present)?,
                    Encoding::Deltas => self.add_deltas(&mut cursor, present)?,
                }
                self.rows += header.values as u64;
            }
        }
        Ok(PageStatus::Added(end))
    }

    fn set_dictionary(&mut self, cursor: &mut Cursor<'_>, values: usize) -> Result<(), UnsupportedPage> {
        let (plain, rest) = cursor.rest().as_chunks::<8>();
        let is_first = self.rows == 0 && self.dictionary.is_none();
        if !is_first || !rest.is_empty() || plain.len() != values || values > DICTIONARY_VALUES_MAX {
            return Err(UnsupportedPage);
        }
        self.dictionary = Some(plain.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect());
        Ok(())
    }

    fn add_plain(&mut self, cursor: &Cursor<'_>, present: usize) -> Result<(), UnsupportedPage> {
        let (plain, rest) = cursor.rest().as_chunks::<8>();
        if !rest.is_empty() || plain.len() != present {
            return Err(UnsupportedPage);
        }
        let mut block = [0; BUFFER_VALUES];
        for plain in plain.chunks(BUFFER_VALUES) {
            for (value, bytes) in block.iter_mut().zip(plain) {
                *value = i64::from_le_bytes(*bytes);
            }
            self.sum.add_all(&block[..plain.len()]);
        }
        Ok(())
    }

    /// Adds values that are given as indices in the dictionary.
    fn add_indices(&mut self, cursor: &mut Cursor<'_>, present: usize) -> Result<(), UnsupportedPage> {
        let dictionary = self.dictionary.as_deref().ok_or(UnsupportedPage)?;
        self.indices.resize(present, 0);
        read_indices(cursor, DICTIONARY_BITS_MAX, dictionary.len(), &mut self.indices)?;
        let mut block = [0; BUFFER_VALUES];
        for indices in self.indices.chunks(BUFFER_VALUES) {
            for (value, &index) in block.iter_mut().zip(indices) {
                *value = dictionary[index as usize];
            }
            self.sum.add_all(&block[..indices.len()]);
        }
        Ok(())
    }

    /// Adds a DELTA_BINARY_PACKED page: blocks of 4 miniblocks, each with 64 deltas of one bit width.
    fn add_deltas(&mut self, cursor: &mut Cursor<'_>, present: usize) -> Result<(), UnsupportedPage> {
        let head = [cursor.varint()?, cursor.varint()?, cursor.varint()?];
        if head != [(MINIBLOCKS * MINIBLOCK_VALUES) as u64, MINIBLOCKS as u64, present as u64] {
            return Err(UnsupportedPage);
        }
        let mut last = cursor.zigzag()?;
        if present == 0 {
            return cursor.ended();
        }
        self.sum.add(last);
        let mut left = present - 1;
        while left > 0 {
            let delta_min = cursor.zigzag()?;
            let widths: [u8; MINIBLOCKS] = *cursor.take(MINIBLOCKS)?.first_chunk().ok_or(UnsupportedPage)?;
            let small = delta_min.unsigned_abs() < 1 << u32::from(SUM_BITS_MAX);
            for width in widths {
                if left == 0 {
                    break; // miniblocks without values are not stored
                }
                let count = left.min(MINIBLOCK_VALUES);
                let packed = cursor.packed(MINIBLOCK_VALUES, width)?;
                if small && width <= SUM_BITS_MAX && count == MINIBLOCK_VALUES && last.unsigned_abs() < 1 << 62 {
                    let (all, running) = sum_miniblock(packed, width);
                    // No value differs from `last` by more than 64 * 2^49, so nothing here overflows.
                    let steps = delta_min * PREFIXES_SUM + running.cast_signed();
                    let values = i128::from(last) * MINIBLOCK_VALUES as i128 + i128::from(steps);
                    self.sum.merge(Sum::of(values));
                    last += delta_min * MINIBLOCK_VALUES as i64 + all.cast_signed();
                } else if width <= 64 {
                    // The writer's subtraction wraps if a delta needs more than 63 bits; this addition wraps back.
                    let mut values = [0; MINIBLOCK_VALUES];
                    last = add_deltas(packed, width, delta_min, last, &mut values[..count]);
                    self.sum.add_all(&values[..count]);
                } else {
                    return Err(UnsupportedPage);
                }
                left -= count;
            }
        }
        cursor.ended()
    }
}

/// 1 + 2 + ... + 64: how often the minimum delta is contained in the sum of a miniblock's values.
const PREFIXES_SUM: i64 = 64 * 65 / 2;
/// The encoding of a page's values.
#[derive(Clone, Copy)]
enum Encoding {
    Plain,
    Dictionary,
    Deltas,
}

/// The header of a page.
struct Header {
    /// `None` for a dictionary page.
    encoding: Option<Encoding>,
    /// Rows, or values of the dictionary.
    values: usize,
    /// The page's size without the header.
    bytes: usize,
}

/// Thrift: the next field of a struct is an integer.
const INTEGER: u8 = 0x15;
const END: u8 = 0;

/// Reads a header, which must have exactly the fields that our writer writes.
fn header(cursor: &mut Cursor<'_>) -> Result<Header, UnsupportedPage> {
    const DATA: i64 = 0;
    const DICTIONARY: i64 = 2;
    const DATA_HEADER: u8 = 0x2c; // field 5 after 3, a struct
    const DICTIONARY_HEADER: u8 = 0x4c; // field 7
    const NOT_SORTED: u8 = 0x12; // field 3 after 2, false
    const LEVELS: [u8; 4] = [INTEGER, 2 * 3, INTEGER, 2 * 3]; // RLE for both kinds of levels
    let page = integer(cursor)?;
    let (bytes, packed_bytes) = (integer(cursor)?, integer(cursor)?);
    let wanted = match page {
        DATA => DATA_HEADER,
        DICTIONARY => DICTIONARY_HEADER,
        _ => return Err(UnsupportedPage),
    };
    if bytes != packed_bytes || cursor.byte()? != wanted {
        return Err(UnsupportedPage);
    }
    let (values, encoding) = (integer(cursor)?, integer(cursor)?);
    let (rest, encoding): (&[u8], _) = match (page, encoding) {
        (DICTIONARY, 0) => (&[NOT_SORTED], None),
        (DATA, 0) => (&LEVELS, Some(Encoding::Plain)),
        (DATA, 8) => (&LEVELS, Some(Encoding::Dictionary)),
        (DATA, 5) => (&LEVELS, Some(Encoding::Deltas)),
        _ => return Err(UnsupportedPage),
    };
    if cursor.take(rest.len())? != rest || cursor.take(2)? != [END, END] {
        return Err(UnsupportedPage);
    }
    // Both are 32 bits wide in the format.
    let size = |value: i64| {
        u32::try_from(value).ok().filter(|&value| value <= i32::MAX.cast_unsigned()).ok_or(UnsupportedPage)
    };
    Ok(Header { encoding, values: size(values)? as usize, bytes: size(bytes)? as usize })
}

/// The value of the next field of a Thrift struct, which must be an integer.
fn integer(cursor: &mut Cursor<'_>) -> Result<i64, UnsupportedPage> {
    if cursor.byte()? == INTEGER { cursor.zigzag() } else { Err(UnsupportedPage) }
}
