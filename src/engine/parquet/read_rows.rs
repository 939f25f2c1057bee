//! Rows of one column chunk through the Parquet library's reader.

use parquet::{data_type::DataType, errors::ParquetError};

/// Texts that are decoded together. Their bytes stay in the page, so this bounds only the references to them.
pub(super) const TEXTS_MAX: usize = 1024;

/// The library's reader of one column chunk.
pub(super) type TypedReader<T> = parquet::column::reader::ColumnReaderImpl<T>;

/// Replaces `levels` and `values` by those of the next rows, and returns the number of rows; 0 after the last. A call stops
/// at the end of a page, so that the texts, which refer to their page, keep only one page in memory.
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
        0 => read(), // the reader was at the empty page that `WithEmptyPages` inserts
        count => Ok(count),
    }
}
