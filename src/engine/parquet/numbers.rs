//! Reads a column of integers or doubles, some rows at a time.
//!
//! Memory: the dictionary, and one page with the values of its rows, or with their codes in the dictionary.

use parquet::basic::{Encoding, Type};

use super::{
    file::Chunk,
    hybrid::{Cursor, Levels, UnsupportedPage},
    row_pages::{DecodedPage, RowPages},
    text_codes::CodePage,
};
use crate::{engine::kernels::add_deltas, error::Error, model::schema::ColumnType};

/// A column of integers or doubles of one row group, read as `T`.
pub struct Numbers<'a, T> {
    rows: RowPages<'a, NumberPage<T>>,
}

/// What a column of numbers is read as.
pub trait Number: Copy {
    /// What a null is read as.
    const NULL: Self;

    /// An integer as this.
    fn of_integer(value: i64) -> Self;

    /// A double as this; `None` if it cannot be.
    fn of_double(value: f64) -> Option<Self>;
}

/// Integers: a null is 0. A column of doubles is not read as integers.
impl Number for i64 {
    const NULL: Self = 0;

    fn of_integer(value: i64) -> Self {
        value
    }

    fn of_double(_value: f64) -> Option<Self> {
        None
    }
}

/// Finite doubles: a null is NaN.
impl Number for f64 {
    const NULL: Self = Self::NAN;

    fn of_integer(value: i64) -> Self {
        value as Self
    }

    fn of_double(value: f64) -> Option<Self> {
        value.is_finite().then_some(value)
    }
}

/// The rows of a page.
struct NumberPage<T> {
    physical_type: Type,
    /// The values of all codes, the last of which is that of a null.
    dictionary: Vec<T>,
    /// Whether the rows are codes.
    is_coded: bool,
    codes: CodePage,
    values: Vec<T>,
    /// The values that are not null, if some are.
    present: Vec<i64>,
}

impl<'a, T: Number> Numbers<'a, T> {
    /// Opens a chunk; `None` if the column cannot be read as `T`.
    ///
    /// Errors: the chunk cannot be read; its type is not that of the receipt.
    pub(super) fn open(chunk: &Chunk<'a>, column_type: ColumnType) -> Result<Option<Self>, Error> {
        let physical_type = match column_type {
            ColumnType::Int64 => Type::INT64,
            ColumnType::Float64 if T::of_double(0.0).is_some() => Type::DOUBLE,
            _ => return Ok(None),
        };
        if chunk.metadata.column_descr().physical_type() != physical_type {
            let what = format!("its column {} is not of type {column_type}", chunk.column_index);
            return Err(chunk.parquet.damaged(&what));
        }
        let page = NumberPage {
            physical_type,
            dictionary: vec![T::NULL],
            is_coded: false,
            codes: CodePage::default(),
            values: Vec::new(),
            present: Vec::new(),
        };
        let mut rows = RowPages::open(chunk, page)?;
        if let Some((bytes, count)) = rows.dictionary()? {
            let page = &mut rows.page;
            let values = page.plain(&bytes).filter(|values| values.len() == count);
            page.dictionary =
                values.ok_or_else(|| chunk.parquet.damaged("a dictionary is not a list of values of its column"))?;
            page.codes.null = u32::try_from(count).unwrap_or(u32::MAX);
            page.dictionary.push(T::NULL);
        }
        Ok(Some(Self { rows }))
    }

    /// Replaces `values` by those of the next `count` rows.
    ///
    /// Errors: there are fewer rows; a double is not finite; the chunk does not match its checksums.
    pub fn read(&mut self, count: usize, values: &mut Vec<T>) -> Result<(), Error> {
        values.clear();
        self.rows.read(count, |page, here, _| match page.is_coded {
            true => values.extend(page.codes.codes[here].iter().map(|&code| page.dictionary[code as usize])),
            false => values.extend_from_slice(&page.values[here]),
        })
    }

    /// Replaces `values` by those of some of the next `count` rows, and passes over the others. `wanted` are ascending offsets
    /// below `count`.
    ///
    /// Errors: as [`Numbers::read`].
    pub fn read_some(&mut self, count: usize, wanted: &[u32], values: &mut Vec<T>) -> Result<(), Error> {
        values.clear();
        let mut left = wanted;
        self.rows.read(count, |page, here, before| {
            let (first, rest) = left.split_at(left.partition_point(|&row| (row as usize) < before + here.len()));
            let rows = first.iter().map(|&row| here.start + row as usize - before);
            match page.is_coded {
                true => values.extend(rows.map(|row| page.dictionary[page.codes.codes[row] as usize])),
                false => values.extend(rows.map(|row| page.values[row])),
            }
            left = rest;
        })
    }

    /// Passes over the next `count` rows; whole pages are not decoded.
    ///
    /// Errors: as [`Numbers::read`].
    pub fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.rows.skip(count)
    }
}

impl<T: Number> NumberPage<T> {
    /// The values in PLAIN encoding; `None` if they are damaged.
    fn plain(&self, bytes: &[u8]) -> Option<Vec<T>> {
        let (values, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return None;
        }
        match self.physical_type {
            Type::INT64 => Some(values.iter().map(|value| T::of_integer(i64::from_le_bytes(*value))).collect()),
            _ => values.iter().map(|value| T::of_double(f64::from_le_bytes(*value))).collect(),
        }
    }

    /// Spreads the values that are not null over the rows.
    fn spread(&mut self, rows: usize, levels: &Levels, mut present: impl Iterator<Item = T>) {
        self.values.clear();
        if levels.bits.is_none() {
            self.values.extend(present);
            return;
        }
        let value = |row| if levels.is_present(row) { present.next().unwrap_or(T::NULL) } else { T::NULL };
        self.values.extend((0..rows).map(value));
    }
}

impl<T: Number> DecodedPage for NumberPage<T> {
    fn decode(&mut self, page: &[u8], rows: usize, encoding: Encoding) -> Result<(), UnsupportedPage> {
        self.is_coded = matches!(encoding, Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY);
        if self.is_coded {
            return self.codes.decode(page, rows, encoding);
        }
        let mut cursor = Cursor { bytes: page, at: 0, end: page.len() };
        let levels = Levels::read(&mut cursor, rows)?;
        match encoding {
            Encoding::PLAIN => {
                let values = self.plain(cursor.rest()).filter(|values| values.len() == levels.present);
                self.spread(rows, &levels, values.ok_or(UnsupportedPage)?.into_iter());
            }
            Encoding::DELTA_BINARY_PACKED if self.physical_type == Type::INT64 => {
                let mut present = std::mem::take(&mut self.present);
                present.resize(levels.present, 0);
                read_deltas(&mut cursor, &mut present)?;
                self.spread(rows, &levels, present.iter().map(|&value| T::of_integer(value)));
                self.present = present;
            }
            _ => return Err(UnsupportedPage),
        }
        Ok(())
    }
}

/// Fills `out` with the values of a DELTA_BINARY_PACKED page, which end at the cursor's end.
fn read_deltas(cursor: &mut Cursor<'_>, out: &mut [i64]) -> Result<(), UnsupportedPage> {
    let size = |value: u64| usize::try_from(value).ok().ok_or(UnsupportedPage);
    let [block_values, miniblocks, count] = [size(cursor.varint()?)?, size(cursor.varint()?)?, size(cursor.varint()?)?];
    let mut last = cursor.zigzag()?;
    let miniblock_values = block_values.checked_div(miniblocks).ok_or(UnsupportedPage)?;
    if count != out.len() || miniblock_values == 0 || !miniblock_values.is_multiple_of(8) {
        return Err(UnsupportedPage);
    }
    let Some((first, mut left)) = out.split_first_mut() else { return cursor.ended() };
    *first = last;
    while !left.is_empty() {
        let delta_min = cursor.zigzag()?;
        for &width in cursor.take(miniblocks)? {
            if left.is_empty() {
                break; // miniblocks without values are not stored
            }
            let packed = cursor.packed(miniblock_values, width)?;
            if width > 64 {
                return Err(UnsupportedPage);
            }
            let values = left.split_off_mut(..miniblock_values.min(left.len())).unwrap_or_default();
            last = add_deltas(packed, width, delta_min, last, values);
        }
    }
    cursor.ended()
}
