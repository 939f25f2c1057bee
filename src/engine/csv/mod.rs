//! CSV: bytes to rows and back, the header, column types, and byte ranges of a file that are read in parallel. Nothing here
//! knows what the rows are used for.

pub mod dialect;
pub mod file_scan;
pub mod header;
pub mod infer;
pub mod lines;
mod plain_rows;
pub mod row_end;
pub mod rows;
pub mod scanner;
pub mod sniff;
pub mod split;
pub mod stored;
pub mod text;
pub mod write;

#[cfg(test)]
mod tests;
