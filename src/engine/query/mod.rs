//! Column sums over parts, and the first rows of a part.

mod answers;
pub mod by_list;
mod by_part;
pub mod column_sum;
pub mod csv_ranges;
pub mod list_answers;
mod local_parts;
pub mod part_batches;
pub mod part_sum;
pub mod preview;
mod segment_csv;
mod segment_sum;
pub mod shared_sum;
