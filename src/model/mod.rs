//! Plain data that every layer shares: parts, receipts, columns, formats. It knows no other module.

pub mod checksum;
pub mod column_sum;
pub mod dialect;
pub mod durability;
pub mod file_mode;
pub(crate) mod folder_id;
pub mod format;
pub mod idempotency_key;
pub mod packed;
pub mod part;
pub mod part_id;
pub mod schema;
pub mod segment;
