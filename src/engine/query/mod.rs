//! Column sums over parts, and the first rows of a part.

pub mod column_sum;
pub mod csv_ranges;
pub mod part_batches;
pub mod preview;
pub mod read;
mod segment_csv;
mod segment_sum;
