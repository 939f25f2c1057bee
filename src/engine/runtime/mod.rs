//! What features share: workers, memory pools, permits.

pub mod context;
pub mod detached;
pub mod drop_on_worker;
pub mod group_rows;
pub mod memory_pool;
pub(crate) mod paced_source;
pub mod part_engine;
pub mod secret_file;
pub mod transfers;
pub mod workers;
