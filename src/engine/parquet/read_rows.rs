//! Rows of one column chunk through the Parquet library's reader.

use parquet::{data_type::DataType, errors::ParquetError};

/// Texts that are decoded at once: they lie in the page, so this bounds their handles alone.
pub(super) const TEXTS_MAX: usize = 1024;

/// Reads the values of one column chunk.
pub(super) type TypedReader<T> = parquet::column::reader::ColumnReaderImpl<T>;

/// Replaces `levels` and `values` by those of the next rows: at most so many, and fewer at the end of a page, so that
/// texts, which lie in their page, keep one page in memory. Says how many rows; 0 after the last.
pub(super) fn read_rows<T: DataType>(
    reader: &mut TypedReader<T>,
    rows_max: usize,
    levels: &mut Vec<i16>,
    values: &mut Vec<T::T>,
) -> Result<usize, ParquetError> {
    levels.clear();
    values.clear();
    let mut read = || Ok(reader.read_records(rows_max, Some(&mut *levels), None, &mut *values)?.0);
    match read()? {
        0 => read(), // the rows before these ended with their page, so there was only the empty one
        count => Ok(count),
    }
}
