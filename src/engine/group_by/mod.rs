//! Group sums: the sources are split into partitions, each partition fills a hash table that spills to disk when it is
//! full, and the tables or runs are merged. `group_sum.rs` is the place to start reading.

pub mod accumulate;
pub mod calls;
mod coded_groups;
mod collected;
mod columnar;
mod columnar_part;
mod combinations;
mod entry;
pub mod group_sum;
pub mod hash_table;
mod key_hash;
mod key_range;
pub mod lists;
pub mod merge;
mod order;
pub mod output;
pub mod partition;
mod pieces;
mod row_buffer;
pub mod sources;
pub mod spec;
pub mod spill;
mod top;
pub mod work;
