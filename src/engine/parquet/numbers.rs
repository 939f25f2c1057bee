//! Reads a column of numbers through the Parquet library, some rows at a time.

use parquet::{
    column::reader::ColumnReader,
    data_type::{DataType, DoubleType, Int64Type},
    errors::ParquetError,
};

use super::{
    file::{Chunk, ParquetFile},
    read_rows::{TypedReader, read_rows},
};
use crate::{error::Error, model::schema::ColumnType};

/// A column of integers or doubles of one row group.
pub struct Numbers<'a> {
    parquet: &'a ParquetFile<'a>,
    reader: Reader,
    levels: Vec<i16>,
    integers: Vec<i64>,
    doubles: Vec<f64>,
    rows_left: usize,
}

enum Reader {
    Integers(TypedReader<Int64Type>),
    Doubles(TypedReader<DoubleType>),
}

impl<'a> Numbers<'a> {
    /// Opens a chunk; `None` if the column is not of integers or doubles.
    ///
    /// Errors: the chunk cannot be read; its type is not that of the receipt.
    pub(super) fn open(chunk: &Chunk<'a>, column_type: ColumnType) -> Result<Option<Self>, Error> {
        if !matches!(column_type, ColumnType::Int64 | ColumnType::Float64) {
            return Ok(None);
        }
        let parquet = chunk.parquet;
        let reader = match (column_type, chunk.open()?) {
            (ColumnType::Int64, ColumnReader::Int64ColumnReader(reader)) => Reader::Integers(reader),
            (ColumnType::Float64, ColumnReader::DoubleColumnReader(reader)) => Reader::Doubles(reader),
            _ => {
                return Err(parquet.damaged(&format!("its column {} is not of type {column_type}", chunk.column_index)));
            }
        };
        let (levels, integers, doubles) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Some(Self { parquet, reader, levels, integers, doubles, rows_left: chunk.rows_count()? }))
    }

    /// Calls `each` with the integer of each of the next `count` rows, 0 for a null.
    ///
    /// Errors: there are fewer rows; the column is not of integers; the chunk does not match its checksums.
    pub fn read_integers(&mut self, count: usize, mut each: impl FnMut(i64)) -> Result<(), Error> {
        let Self { parquet, reader: Reader::Integers(reader), levels, integers, .. } = self else {
            return Err(Error::Internal("a column of doubles was read as integers".to_owned()));
        };
        let read = read_options(reader, count, levels, integers, |value: Option<i64>| each(value.unwrap_or(0)));
        read.map_err(|error| parquet.read_error(error))?;
        self.passed(count)
    }

    /// Calls `each` with the value of each of the next `count` rows as a double, NaN for a null.
    ///
    /// Errors: there are fewer rows; a double is not finite; the chunk does not match its checksums.
    pub fn read_doubles(&mut self, count: usize, mut each: impl FnMut(f64)) -> Result<(), Error> {
        let Self { parquet, reader, levels, integers, doubles, .. } = self;
        let mut is_finite = true;
        let read = match reader {
            Reader::Integers(reader) => read_options(reader, count, levels, integers, |value: Option<i64>| {
                each(value.map_or(f64::NAN, |value| value as f64));
            }),
            Reader::Doubles(reader) => read_options(reader, count, levels, doubles, |value: Option<f64>| {
                is_finite &= value.is_none_or(f64::is_finite);
                each(value.unwrap_or(f64::NAN));
            }),
        };
        read.map_err(|error| parquet.read_error(error))?;
        if !is_finite {
            return Err(parquet.damaged("a double is not finite"));
        }
        self.passed(count)
    }

    /// Passes over the next `count` rows.
    ///
    /// Errors: there are fewer rows.
    pub fn skip(&mut self, count: usize) -> Result<(), Error> {
        let skipped = match &mut self.reader {
            Reader::Integers(reader) => reader.skip_records(count),
            Reader::Doubles(reader) => reader.skip_records(count),
        };
        if skipped.map_err(|error| self.parquet.read_error(error))? != count {
            return Err(self.parquet.damaged("a column chunk has fewer rows than its row group"));
        }
        self.passed(count)
    }

    /// After the last row, there must be no other one.
    fn passed(&mut self, count: usize) -> Result<(), Error> {
        self.rows_left = self.rows_left.saturating_sub(count);
        if self.rows_left > 0 || count == 0 {
            return Ok(());
        }
        let more = match &mut self.reader {
            Reader::Integers(reader) => reader.skip_records(1),
            Reader::Doubles(reader) => reader.skip_records(1),
        };
        match more.map_err(|error| self.parquet.read_error(error))? {
            0 => Ok(()),
            _ => Err(self.parquet.damaged("a column chunk has more rows than its row group")),
        }
    }
}

/// Calls `each` with the value of each of the next `count` rows.
fn read_options<P: DataType>(
    reader: &mut TypedReader<P>,
    count: usize,
    levels: &mut Vec<i16>,
    values: &mut Vec<P::T>,
    mut each: impl FnMut(Option<P::T>),
) -> Result<(), ParquetError>
where
    P::T: Copy,
{
    let short = || ParquetError::EOF("a column chunk has fewer rows than its row group".to_owned());
    let mut left = count;
    while left > 0 {
        let rows = read_rows(reader, left, levels, values)?;
        if rows == 0 || rows > left || levels.len() != rows {
            return Err(short());
        }
        left -= rows;
        if values.len() == rows {
            values.iter().for_each(|value| each(Some(*value)));
            continue;
        }
        let mut present = values.iter();
        for level in &*levels {
            each(if *level > 0 { Some(*present.next().ok_or_else(short)?) } else { None });
        }
    }
    Ok(())
}
