//! The sum of an integer column straight from its Parquet pages, without an array of values between. Bytes in, a sum
//! out: no file, no thread.
//!
//! It reads what our own writer wrote, of this version or an earlier one, and takes nothing else: [`UnsupportedPage`] sends the
//! chunk to the Parquet library's reader, which then has the word on what is in it and on what is wrong with it. So
//! these functions never report an error, and must never take a page that the library would not.
//!
//! The formats: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>; a page's header is a struct of
//! Thrift's compact protocol.

use crate::engine::values::{
    sum::Sum,
    varint::{take_i64, take_u64},
};

/// Bytes beyond a chunk's end that must be there to be read, whatever they are: packed values are read 8 bytes at a time.
pub const SLACK_BYTES: usize = 8;
/// No header of a page that our writer wrote is longer.
const HEADER_BYTES_MAX: usize = 64;

/// Values that are added at once where they must be written down first.
const BLOCK_VALUES: usize = 256;
/// Values of a dictionary; our writer's have up to 256 KiB.
const DICTIONARY_VALUES_MAX: usize = 64 * 1024;

/// A page is not as our writer writes it.
#[derive(Debug, PartialEq, Eq)]
pub struct UnsupportedPage;

/// The pages of one column chunk, one after the other.
pub struct Pages {
    dictionary: Option<Vec<i64>>,
    /// Rows of the chunk: a page that claims more is none of ours.
    rows_max: u64,
    /// Rows so far.
    pub rows: u64,
    /// The sum of their values.
    pub sum: Sum,
}

/// What [`Pages::take`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// The page was so many bytes long and has been added.
    Page(usize),
    /// The page is so many bytes long, or at least so many, which are more than there were.
    Longer(usize),
}

impl Pages {
    /// Of a chunk of so many rows, before its first page.
    pub fn new(rows_max: u64) -> Self {
        Self { dictionary: None, rows_max, rows: 0, sum: Sum::default() }
    }

    /// Adds the page that begins `bytes`; of these, all but the last [`SLACK_BYTES`] are of the chunk.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Taken, UnsupportedPage> {
        let chunk_bytes = bytes.len().checked_sub(SLACK_BYTES).ok_or(UnsupportedPage)?;
        let mut cursor = Cursor { bytes, at: 0, end: chunk_bytes };
        let header = match header(&mut cursor) {
            Ok(header) => header,
            Err(UnsupportedPage) if chunk_bytes < HEADER_BYTES_MAX => return Ok(Taken::Longer(HEADER_BYTES_MAX)),
            Err(UnsupportedPage) => return Err(UnsupportedPage),
        };
        let end = cursor.at.checked_add(header.bytes).ok_or(UnsupportedPage)?;
        if end > chunk_bytes {
            return Ok(Taken::Longer(end));
        }
        cursor.end = end;
        match header.encoding {
            None => self.take_dictionary(&mut cursor, header.values)?,
            Some(_) if header.values as u64 > self.rows_max - self.rows => return Err(UnsupportedPage),
            Some(encoding) => {
                let present = present(&mut cursor, header.values)?;
                match encoding {
                    Encoding::Plain => self.add_plain(&cursor, present)?,
                    Encoding::Dictionary => self.add_indices(&mut cursor, present)?,
                    Encoding::Deltas => self.add_deltas(&mut cursor, present)?,
                }
                self.rows += header.values as u64;
            }
        }
        Ok(Taken::Page(end))
    }

    fn take_dictionary(&mut self, cursor: &mut Cursor<'_>, values: usize) -> Result<(), UnsupportedPage> {
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
        let mut block = [0; BLOCK_VALUES];
        for plain in plain.chunks(BLOCK_VALUES) {
            for (value, bytes) in block.iter_mut().zip(plain) {
                *value = i64::from_le_bytes(*bytes);
            }
            self.sum.add_all(&block[..plain.len()]);
        }
        Ok(())
    }

    /// Values as places in the dictionary.
    fn add_indices(&mut self, cursor: &mut Cursor<'_>, present: usize) -> Result<(), UnsupportedPage> {
        let dictionary = self.dictionary.as_deref().ok_or(UnsupportedPage)?;
        let width = if present == 0 && cursor.rest().is_empty() { 0 } else { cursor.byte()? };
        if width > 16 {
            return Err(UnsupportedPage);
        }
        let mut block = [0; BLOCK_VALUES];
        let sum = &mut self.sum;
        runs(cursor, width, present, |run| {
            match run {
                Run::Repeated { index, count } => {
                    let value = *dictionary.get(index).ok_or(UnsupportedPage)?;
                    sum.merge(Sum::of(i128::from(value) * count as i128));
                }
                Run::Packed { packed, count } => {
                    let mut inside = true;
                    for start in (0..count).step_by(BLOCK_VALUES) {
                        let values = &mut block[..BLOCK_VALUES.min(count - start)];
                        for (at, value) in (start..).zip(&mut *values) {
                            let found = dictionary.get(unpack(packed, at, width));
                            inside &= found.is_some();
                            *value = found.copied().unwrap_or(0);
                        }
                        sum.add_all(values);
                    }
                    if !inside {
                        return Err(UnsupportedPage);
                    }
                }
            }
            Ok(())
        })
    }

    /// Values as differences: blocks of 4 miniblocks, each of 64 differences with a width of its own.
    fn add_deltas(&mut self, cursor: &mut Cursor<'_>, present: usize) -> Result<(), UnsupportedPage> {
        let head = [cursor.varint()?, cursor.varint()?, cursor.varint()?];
        if head != [(MINIS * MINI_VALUES) as u64, MINIS as u64, present as u64] {
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
            let widths: [u8; MINIS] = *cursor.take(MINIS)?.first_chunk().ok_or(UnsupportedPage)?;
            let small = delta_min.unsigned_abs() < 1 << QUICK_BITS;
            for width in widths {
                if left == 0 {
                    break; // what is not filled has no bytes
                }
                let count = left.min(MINI_VALUES);
                let packed = cursor.packed(MINI_VALUES, width)?;
                match QUICK.get(usize::from(width)) {
                    Some(quick) if small && count == MINI_VALUES && last.unsigned_abs() < 1 << 62 => {
                        let (all, running) = quick(packed);
                        // No value is farther from `last` than 64 * 2^49, so none of these wraps.
                        let steps = delta_min * TRIANGLE + running.cast_signed();
                        let values = i128::from(last) * MINI_VALUES as i128 + i128::from(steps);
                        self.sum.merge(Sum::of(values));
                        last += delta_min * MINI_VALUES as i64 + all.cast_signed();
                    }
                    _ => last = add_mini(&mut self.sum, packed, width, delta_min, last, count)?,
                }
                left -= count;
            }
        }
        cursor.ended()
    }
}

/// Miniblocks of a block.
const MINIS: usize = 4;
/// Differences of a miniblock.
const MINI_VALUES: usize = 64;
/// 1 + 2 + ... + 64: how often the least difference is in the values of a miniblock.
const TRIANGLE: i64 = 64 * 65 / 2;
/// Differences up to this width are added without a look at each value: 2^48 * 2080 is far from 2^63.
const QUICK_BITS: usize = 48;

/// Unpacks a miniblock of one width, and says the sum of what is in it, and the sum of all sums on the way there.
type Quick = fn(&[u8]) -> (u64, u64);

/// By width.
const QUICK: [Quick; QUICK_BITS + 1] = {
    macro_rules! of_widths {
        ($($width:literal)*) => { [$(add_packed::<$width>),*] };
    }
    of_widths!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37
        38 39 40 41 42 43 44 45 46 47 48)
};

/// The width is a constant and 8 values are a whole number of bytes, so that every offset and mask is a constant too.
/// The values at one place of all eights are added where they stand in their word, and moved down once at the end; four
/// places at a time, which fit in the registers: 0.39 ns a value, of which a running sum takes 0.51.
fn add_packed<const WIDTH: usize>(packed: &[u8]) -> (u64, u64) {
    const EIGHTS: usize = MINI_VALUES / 8;
    let (mut all, mut running) = (0_u64, 0_u64);
    let packed = &packed[..EIGHTS * WIDTH + SLACK_BYTES];
    for first in [0, 4] {
        let (mut sums, mut weighted) = ([0_u64; 4], [0_u64; 4]);
        for eight in 0..EIGHTS {
            for (at, sum) in sums.iter_mut().enumerate() {
                let bit = (first + at) * WIDTH;
                let mut word = [0; 8];
                word.copy_from_slice(&packed[eight * WIDTH + bit / 8..][..8]);
                // 48 bits, moved up by 7, 36 times: they stay in their word.
                *sum += u64::from_le_bytes(word) & (((1 << WIDTH) - 1) << (bit % 8));
            }
            for (weighted, sum) in weighted.iter_mut().zip(sums) {
                *weighted += sum;
            }
        }
        for (at, (sum, weighted)) in (first..).zip(sums.into_iter().zip(weighted)) {
            let shift = at * WIDTH % 8;
            all += sum >> shift;
            // The value at this place of the first eight is in 64 - `at` of the sums, that of the next in 8 fewer.
            running += (weighted >> shift) * 8 - (sum >> shift) * at as u64;
        }
    }
    (all, running)
}

/// The same one value after the other, for any width, any distance and a miniblock that is not full. Says the last value.
fn add_mini(
    sum: &mut Sum,
    packed: &[u8],
    width: u8,
    delta_min: i64,
    mut last: i64,
    count: usize,
) -> Result<i64, UnsupportedPage> {
    if width > 64 {
        return Err(UnsupportedPage);
    }
    let mut values = [0; MINI_VALUES];
    for (at, value) in values[..count].iter_mut().enumerate() {
        // A distance of more than 63 bits wraps when it is taken, and wraps back here.
        last = last.wrapping_add(delta_min).wrapping_add(unpack_wide(packed, at, width).cast_signed());
        *value = last;
    }
    sum.add_all(&values[..count]);
    Ok(last)
}

/// A value of at most 56 bits.
#[inline]
fn unpack(packed: &[u8], at: usize, width: u8) -> usize {
    let bit = at * usize::from(width);
    let mut word = [0; 8];
    word.copy_from_slice(&packed[bit / 8..][..8]);
    let value = (u64::from_le_bytes(word) >> (bit % 8)) & ((1 << width) - 1);
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A value of at most 64 bits.
fn unpack_wide(packed: &[u8], at: usize, width: u8) -> u64 {
    let bit = at * usize::from(width);
    let (mut low, shift) = ([0; 8], bit % 8);
    low.copy_from_slice(&packed[bit / 8..][..8]);
    // A ninth byte is there unless the value ends before it: the slack begins with the byte after the last value.
    let ninth = packed.get(bit / 8 + 8).map_or(0, |byte| u64::from(*byte) << 1 << (63 - shift));
    let mask = 1_u64.checked_shl(u32::from(width)).map_or(u64::MAX, |bit| bit - 1);
    (u64::from_le_bytes(low) >> shift | ninth) & mask
}

/// How the values of a page are written.
#[derive(Clone, Copy)]
enum Encoding {
    Plain,
    Dictionary,
    Deltas,
}

/// What a page's header says.
struct Header {
    /// None if the page is the dictionary.
    encoding: Option<Encoding>,
    /// Rows, or values of the dictionary.
    values: usize,
    /// Of the page, without the header.
    bytes: usize,
}

/// Field 1, 2, 3, ... of a struct, an integer.
const INTEGER: u8 = 0x15;
const END: u8 = 0;

/// The header as our writer writes it, to the byte.
fn header(cursor: &mut Cursor<'_>) -> Result<Header, UnsupportedPage> {
    const DATA: i64 = 0;
    const DICTIONARY: i64 = 2;
    const DATA_HEADER: u8 = 0x2c; // field 5 after 3, a struct
    const DICTIONARY_HEADER: u8 = 0x4c; // field 7
    const NOT_SORTED: u8 = 0x12; // field 3 after 2, false
    const LEVELS: [u8; 4] = [INTEGER, 2 * 3, INTEGER, 2 * 3]; // both by runs
    let page = cursor.integer()?;
    let (bytes, packed_bytes) = (cursor.integer()?, cursor.integer()?);
    let wanted = match page {
        DATA => DATA_HEADER,
        DICTIONARY => DICTIONARY_HEADER,
        _ => return Err(UnsupportedPage),
    };
    if bytes != packed_bytes || cursor.byte()? != wanted {
        return Err(UnsupportedPage);
    }
    let (values, encoding) = (cursor.integer()?, cursor.integer()?);
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

/// How many of so many rows have a value.
fn present(cursor: &mut Cursor<'_>, rows: usize) -> Result<usize, UnsupportedPage> {
    let levels_bytes = u32::from_le_bytes(*cursor.take(4)?.first_chunk().ok_or(UnsupportedPage)?) as usize;
    let start = cursor.at;
    let end = start.checked_add(levels_bytes).filter(|&end| end <= cursor.end).ok_or(UnsupportedPage)?;
    let mut levels = Cursor { bytes: cursor.bytes, at: start, end };
    let mut present = 0;
    runs(&mut levels, 1, rows, |run| {
        present += match run {
            Run::Repeated { index: 0, .. } => 0,
            Run::Repeated { index: 1, count } => count,
            Run::Repeated { .. } => return Err(UnsupportedPage),
            Run::Packed { packed, count } => {
                let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones() as usize).sum::<usize>();
                let whole = count / 8;
                let odd = packed[whole] & ((1 << (count % 8)) - 1);
                ones(&packed[..whole]) + ones(&[odd])
            }
        };
        Ok(())
    })?;
    cursor.at = end;
    Ok(present)
}

/// Numbers that stand together.
enum Run<'a> {
    /// One, so many times.
    Repeated { index: usize, count: usize },
    /// So many, packed, with [`SLACK_BYTES`] after them.
    Packed { packed: &'a [u8], count: usize },
}

/// Goes through `count` numbers of a width that are packed or repeated, up to the cursor's end.
fn runs<'a>(
    cursor: &mut Cursor<'a>,
    width: u8,
    count: usize,
    mut each: impl FnMut(Run<'a>) -> Result<(), UnsupportedPage>,
) -> Result<(), UnsupportedPage> {
    let mut left = count;
    while left > 0 {
        let head = cursor.varint()?;
        let length = usize::try_from(head >> 1).ok().filter(|&length| length > 0).ok_or(UnsupportedPage)?;
        let count = if head & 1 == 0 {
            let mut word = [0; 8];
            let bytes = cursor.take(usize::from(width.div_ceil(8)))?;
            word[..bytes.len()].copy_from_slice(bytes);
            let index = usize::try_from(u64::from_le_bytes(word)).ok().ok_or(UnsupportedPage)?;
            if length > left {
                return Err(UnsupportedPage);
            }
            each(Run::Repeated { index, count: length })?;
            length
        } else {
            // The last eight may be more than are left.
            let values = length.checked_mul(8).filter(|&values| values < left + 8).ok_or(UnsupportedPage)?;
            let packed = cursor.packed(values, width)?;
            let count = values.min(left);
            each(Run::Packed { packed, count })?;
            count
        };
        left -= count;
    }
    cursor.ended()
}

/// Bytes from `at` to `end`; what is beyond, of which there are [`SLACK_BYTES`] at least, is not meant.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..self.end]
    }

    fn ended(&self) -> Result<(), UnsupportedPage> {
        if self.at == self.end { Ok(()) } else { Err(UnsupportedPage) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], UnsupportedPage> {
        let taken = self.rest().get(..count).ok_or(UnsupportedPage)?;
        self.at += count;
        Ok(taken)
    }

    /// So many packed values, a multiple of 8, with the slack after them.
    fn packed(&mut self, values: usize, width: u8) -> Result<&'a [u8], UnsupportedPage> {
        let start = self.at;
        let bytes = (values / 8).checked_mul(usize::from(width)).ok_or(UnsupportedPage)?;
        self.take(bytes)?;
        self.bytes.get(start..start + bytes + SLACK_BYTES).ok_or(UnsupportedPage)
    }

    fn byte(&mut self) -> Result<u8, UnsupportedPage> {
        Ok(self.take(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, UnsupportedPage> {
        let mut rest = self.rest();
        let value = take_u64(&mut rest).ok_or(UnsupportedPage)?;
        self.at = self.end - rest.len();
        Ok(value)
    }

    fn zigzag(&mut self) -> Result<i64, UnsupportedPage> {
        let mut rest = self.rest();
        let value = take_i64(&mut rest).ok_or(UnsupportedPage)?;
        self.at = self.end - rest.len();
        Ok(value)
    }

    /// The next field of a struct, an integer.
    fn integer(&mut self) -> Result<i64, UnsupportedPage> {
        if self.byte()? == INTEGER { self.zigzag() } else { Err(UnsupportedPage) }
    }
}
