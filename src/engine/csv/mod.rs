//! CSV: bytes to rows, the header, column types, and cutting a file into ranges that are read side by side.

pub mod file_scan;
pub mod header;
pub mod infer;
pub mod row_end;
pub mod rows;
pub mod scanner;
pub mod split;
pub mod stored;

#[cfg(test)]
mod tests;
