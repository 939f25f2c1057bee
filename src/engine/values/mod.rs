//! Parsing of cells, exact sums and means, variable-length integers. Pure functions and plain structs: no files, threads or
//! clocks.

pub mod mean;
pub mod parse;
pub mod sum;
pub mod varint;
