//! Parquet: the writer, and readers of single columns.

pub mod batch;
pub mod buffered_pages;
pub mod chunk_checksums;
pub mod column_reader;
pub mod column_sum;
pub mod file;
pub mod hybrid;
pub mod integer_writer;
pub mod numbers;
pub mod page_sum;
pub mod read_rows;
pub mod row_pages;
mod slim_footer;
pub mod text_codes;
pub mod verified_bytes;
pub mod wide;
pub mod window;
pub mod writer;

#[cfg(test)]
pub(crate) mod tests;
