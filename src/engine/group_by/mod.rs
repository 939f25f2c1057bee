//! Group sums: partitions of the input, a hash table each, spill to disk, merge.

pub mod accumulate;
pub mod calls;
pub mod group_sum;
pub mod hash_table;
pub mod merge;
pub mod output;
pub mod partition;
pub mod sources;
pub mod spec;
pub mod spill;
pub mod work;
