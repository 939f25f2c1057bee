//! The parts that several encodings of pages have in common: Parquet's hybrid of runs and bit-packed numbers, and the
//! definition levels, which are encoded in it. No file, no thread.
//!
//! The format: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>

use crate::engine::{
    kernels::unpack,
    values::varint::{take_i64, take_u64},
};

/// Readable bytes that must follow the pages that are summed, with any content: their values are loaded 8 bytes at a time.
pub const SLACK_BYTES: usize = 8;

/// A page is not as our writer writes it.
#[derive(Debug, PartialEq, Eq)]
pub struct UnsupportedPage;

/// A run of Parquet's RLE / bit-packing hybrid.
pub(super) enum Run<'a> {
    /// The same number `count` times.
    Repeated { index: usize, count: usize },
    /// `count` bit-packed numbers, and all bytes after them.
    Packed { packed: &'a [u8], count: usize },
}

/// Calls `each` with the runs of `count` numbers, which must end at the cursor's end.
pub(super) fn for_each_run<'a>(
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
            // The last group of eight may be padded.
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

/// Reads `bytes` from `at` to `end`. Others may follow.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) end: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..self.end]
    }

    pub(super) fn ended(&self) -> Result<(), UnsupportedPage> {
        if self.at == self.end { Ok(()) } else { Err(UnsupportedPage) }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], UnsupportedPage> {
        let taken = self.rest().get(..count).ok_or(UnsupportedPage)?;
        self.at += count;
        Ok(taken)
    }

    /// The bytes of `values` packed values, which are a multiple of 8, and all bytes after them.
    pub(super) fn packed(&mut self, values: usize, width: u8) -> Result<&'a [u8], UnsupportedPage> {
        let start = self.at;
        let bytes = (values / 8).checked_mul(usize::from(width)).ok_or(UnsupportedPage)?;
        self.take(bytes)?;
        Ok(&self.bytes[start..])
    }

    pub(super) fn byte(&mut self) -> Result<u8, UnsupportedPage> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn varint(&mut self) -> Result<u64, UnsupportedPage> {
        let mut rest = self.rest();
        let value = take_u64(&mut rest).ok_or(UnsupportedPage)?;
        self.at = self.end - rest.len();
        Ok(value)
    }

    pub(super) fn zigzag(&mut self) -> Result<i64, UnsupportedPage> {
        let mut rest = self.rest();
        let value = take_i64(&mut rest).ok_or(UnsupportedPage)?;
        self.at = self.end - rest.len();
        Ok(value)
    }
}

/// The definition levels of a page: which of its rows are not null.
pub(super) struct Levels {
    /// How many are not null.
    pub(super) present: usize,
    /// A bit for each row, the first the lowest of its byte; `None` if no row is null.
    pub(super) bits: Option<Vec<u8>>,
}

impl Levels {
    /// Reads the levels at the start of a page.
    pub(super) fn read(cursor: &mut Cursor<'_>, rows: usize) -> Result<Self, UnsupportedPage> {
        let start = cursor.at;
        let present = count_non_null(cursor, rows)?;
        if present == rows {
            return Ok(Self { present, bits: None });
        }
        let mut levels = Cursor { bytes: cursor.bytes, at: start + LEVELS_LENGTH_BYTES, end: cursor.at };
        let mut bits = Bits { bytes: Vec::with_capacity(rows / 8 + 2), filled: 0 };
        for_each_run(&mut levels, 1, rows, |run| {
            match run {
                Run::Repeated { index, count } => bits.repeat(index == 1, count),
                Run::Packed { packed, count } => bits.append(packed, count),
            }
            Ok(())
        })?;
        Ok(Self { present, bits: Some(bits.bytes) })
    }

    /// Whether a row is not null.
    pub(super) fn is_present(&self, row: usize) -> bool {
        self.bits.as_ref().is_none_or(|bits| bits[row / 8] >> (row % 8) & 1 == 1)
    }
}

/// Bytes of the length before the levels.
const LEVELS_LENGTH_BYTES: usize = 4;

/// Bits that are collected, the first the lowest of its byte.
struct Bits {
    bytes: Vec<u8>,
    /// Bits of the last byte that are filled, 0 if all are. The others are 0.
    filled: usize,
}

impl Bits {
    fn repeat(&mut self, is_set: bool, mut count: usize) {
        let byte = if is_set { 0xff } else { 0 };
        if self.filled > 0 {
            let here = count.min(8 - self.filled);
            self.push(byte, here);
            count -= here;
        }
        self.bytes.resize(self.bytes.len() + count / 8, byte);
        let rest = count % 8;
        if rest > 0 {
            self.push(byte, rest);
        }
    }

    fn append(&mut self, packed: &[u8], count: usize) {
        let (whole, rest) = (&packed[..count / 8], count % 8);
        match (self.filled, self.bytes.pop()) {
            (1.., Some(mut last)) => {
                let filled = self.filled;
                self.bytes.extend(whole.iter().map(|&byte| {
                    let complete = last | byte << filled;
                    last = byte >> (8 - filled);
                    complete
                }));
                self.bytes.push(last);
            }
            (_, last) => {
                self.bytes.extend(last);
                self.bytes.extend_from_slice(whole);
            }
        }
        if rest > 0 {
            self.push(packed[count / 8], rest);
        }
    }

    /// Appends the lowest `count` bits, 1 to 8.
    fn push(&mut self, byte: u8, count: usize) {
        let byte = u16::from(byte) & ((1 << count) - 1);
        match self.bytes.last_mut() {
            Some(last) if self.filled > 0 => {
                let [low, high] = (u16::from(*last) | byte << self.filled).to_le_bytes();
                *last = low;
                if self.filled + count > 8 {
                    self.bytes.push(high);
                }
            }
            _ => self.bytes.extend(byte.to_le_bytes().first()),
        }
        self.filled = (self.filled + count) % 8;
    }
}

/// Reads the definition levels and returns how many of the rows are not null.
pub(super) fn count_non_null(cursor: &mut Cursor<'_>, rows: usize) -> Result<usize, UnsupportedPage> {
    let length = cursor.take(LEVELS_LENGTH_BYTES)?.first_chunk().ok_or(UnsupportedPage)?;
    let levels_bytes = u32::from_le_bytes(*length) as usize;
    let start = cursor.at;
    let end = start.checked_add(levels_bytes).filter(|&end| end <= cursor.end).ok_or(UnsupportedPage)?;
    let mut levels = Cursor { bytes: cursor.bytes, at: start, end };
    let mut present = 0;
    for_each_run(&mut levels, 1, rows, |run| {
        present += match run {
            Run::Repeated { index: 0, .. } => 0,
            Run::Repeated { index: 1, count } => count,
            Run::Repeated { .. } => return Err(UnsupportedPage),
            Run::Packed { packed, count } => {
                let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones() as usize).sum::<usize>();
                let (whole, rest) = (count / 8, count % 8);
                let last = if rest > 0 { packed[whole] & ((1 << rest) - 1) } else { 0 };
                ones(&packed[..whole]) + ones(&[last])
            }
        };
        Ok(())
    })?;
    cursor.at = end;
    Ok(present)
}

/// Fills `out` with indices less than `count`: their width in a byte, then runs, which end at the cursor's end.
///
/// Errors: a width of more than `width_max` bits; an index that is too large.
pub(super) fn read_indices(
    cursor: &mut Cursor<'_>,
    width_max: u8,
    count: usize,
    out: &mut [u32],
) -> Result<(), UnsupportedPage> {
    let width = if out.is_empty() && cursor.rest().is_empty() { 0 } else { cursor.byte()? };
    if width > width_max.min(INDEX_BITS_MAX) {
        return Err(UnsupportedPage);
    }
    let mut start = 0;
    for_each_run(cursor, width, out.len(), |run| {
        let greatest = match run {
            Run::Repeated { index, count } => {
                let index = u32::try_from(index).ok().ok_or(UnsupportedPage)?;
                out[start..start + count].fill(index);
                start += count;
                index
            }
            Run::Packed { packed, count } => {
                let end = start + count;
                let greatest = unpack(packed, width, &mut out[start..end]);
                start = end;
                greatest
            }
        };
        if (greatest as usize) < count { Ok(()) } else { Err(UnsupportedPage) }
    })
}

/// Bits of an index in a page.
const INDEX_BITS_MAX: u8 = 32;
