//! The parts that several encodings of pages have in common: Parquet's hybrid of runs and bit-packed numbers, and the
//! definition levels, which are encoded in it. No file, no thread.
//!
//! The format: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>

use crate::engine::values::varint::{take_i64, take_u64};

/// Readable bytes that must follow packed values, with any content: they are loaded 8 bytes at a time.
pub const SLACK_BYTES: usize = 8;

/// A page is not as our writer writes it.
#[derive(Debug, PartialEq, Eq)]
pub struct UnsupportedPage;

/// A run of Parquet's RLE / bit-packing hybrid.
pub(super) enum Run<'a> {
    /// The same number `count` times.
    Repeated { index: usize, count: usize },
    /// `count` bit-packed numbers, with [`SLACK_BYTES`] after them.
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

/// Reads `bytes` from `at` to `end`. At least [`SLACK_BYTES`] follow.
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

    /// The bytes of `values` packed values, which are a multiple of 8, and [`SLACK_BYTES`] more.
    pub(super) fn packed(&mut self, values: usize, width: u8) -> Result<&'a [u8], UnsupportedPage> {
        let start = self.at;
        let bytes = (values / 8).checked_mul(usize::from(width)).ok_or(UnsupportedPage)?;
        self.take(bytes)?;
        self.bytes.get(start..start + bytes + SLACK_BYTES).ok_or(UnsupportedPage)
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

/// A value of at most 56 bits.
#[inline]
pub(super) fn unpack(packed: &[u8], at: usize, width: u8) -> usize {
    let bit = at * usize::from(width);
    let mut word = [0; 8];
    word.copy_from_slice(&packed[bit / 8..][..8]);
    let value = (u64::from_le_bytes(word) >> (bit % 8)) & ((1 << width) - 1);
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Reads the definition levels and returns how many of the rows are not null.
pub(super) fn count_non_null(cursor: &mut Cursor<'_>, rows: usize) -> Result<usize, UnsupportedPage> {
    let levels_bytes = u32::from_le_bytes(*cursor.take(4)?.first_chunk().ok_or(UnsupportedPage)?) as usize;
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
                let whole = count / 8;
                let last = packed[whole] & ((1 << (count % 8)) - 1);
                ones(&packed[..whole]) + ones(&[last])
            }
        };
        Ok(())
    })?;
    cursor.at = end;
    Ok(present)
}
