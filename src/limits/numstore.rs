//! Bounds of the key/value service.

use std::num::NonZeroUsize;

/// Bytes of a key.
pub const KEY_BYTES_MAX: usize = 128;
/// Keys.
pub const KEYS_MAX: usize = 50_000;
/// Bytes of a key in memory: its share of the hash table, which has 65,536 slots of 25 bytes for so many keys, and its text.
pub const KEY_ENTRY_BYTES: usize = 25 * 65_536 / KEYS_MAX + 1 + KEY_BYTES_MAX;
/// Results in the cache of factorials.
#[allow(clippy::unwrap_used, reason = "it is checked at compile time")]
pub const FACTORIALS_MAX: NonZeroUsize = NonZeroUsize::new(10).unwrap();
/// Calls that compute at once; more wait. The original NumStore server has as many threads.
pub const NUMSTORE_CALLS_MAX: usize = 4;
