//! Values: text to numbers, exact sums and means, variable-length integers. Pure: no file, no thread, no clock.

pub mod mean;
pub mod parse;
pub mod sum;
pub mod varint;
