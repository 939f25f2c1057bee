//! Values: text to numbers, exact sums and means, variable-length integers. Pure functions and plain structs: no file,
//! no thread, no clock.

pub mod mean;
pub mod parse;
pub mod sum;
pub mod varint;
