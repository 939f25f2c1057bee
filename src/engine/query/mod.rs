//! Column sums over parts.

pub mod column_sum;
pub mod csv_ranges;
pub mod part_batches;
