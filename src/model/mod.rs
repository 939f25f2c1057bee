//! Plain data that every layer shares: parts, receipts, columns, formats. It knows no other module.

pub mod checksum;
pub mod dialect;
pub mod durability;
pub mod file_mode;
pub mod format;
pub mod idempotency_key;
pub mod part;
pub mod schema;
