//! The values of the key/value service (see `engine/numstore.rs`) and its cache of factorials: a plain table under the
//! lock.

use std::collections::HashMap;

use lru::LruCache;

use crate::{
    error::{Error, numstore::NumStoreError},
    limits::{FACTORIALS_MAX, KEY_BYTES_MAX, KEYS_MAX},
};

/// Any text of at most [`KEY_BYTES_MAX`] bytes; it may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub(crate) Box<str>);

impl TryFrom<String> for Key {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        match text.len() {
            bytes if bytes > KEY_BYTES_MAX => Err(NumStoreError::KeyTooLong { bytes, bytes_max: KEY_BYTES_MAX }.into()),
            _ => Ok(Self(text.into_boxed_str())),
        }
    }
}

/// A factorial, and whether it was cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factorial {
    /// The product of 1 to the key's value.
    pub factorial: i64,
    /// Whether it was in the cache.
    pub hit: bool,
}

/// All keys with their values, their total, and the cached factorials.
pub struct Numbers {
    /// Created with capacity for the maximum number of keys, so that it never grows under the lock.
    pub(crate) values: HashMap<Key, i64>,
    total: i64,
    /// Factorials by value, so that keys with the same value share one.
    pub(crate) factorials: LruCache<i64, i64>,
}

impl Numbers {
    /// An empty table.
    pub fn new() -> Self {
        Self { values: HashMap::with_capacity(KEYS_MAX), total: 0, factorials: LruCache::new(FACTORIALS_MAX) }
    }

    /// Sets a key's value and returns the total of all values.
    ///
    /// Errors, which change nothing: the total would not fit in 64 bits; there are too many keys.
    pub fn set(&mut self, key: Key, value: i64) -> Result<i64, Error> {
        let old = self.values.get(&key).copied();
        if old.is_none() && self.values.len() >= KEYS_MAX {
            return Err(NumStoreError::TooManyKeys { keys_max: KEYS_MAX }.into());
        }
        let total = i128::from(self.total) + i128::from(value) - i128::from(old.unwrap_or(0));
        let Ok(fits) = i64::try_from(total) else {
            return Err(NumStoreError::TotalOverflow { key: key.0.into_string(), total }.into());
        };
        self.total = fits;
        self.values.insert(key, value);
        Ok(fits)
    }

    /// A key's value, and the value's factorial if the cache has it.
    pub(crate) fn look_up(&mut self, key: &Key) -> Option<(i64, Option<i64>)> {
        let value = *self.values.get(key)?;
        Some((value, self.factorials.get(&value).copied()))
    }

    pub(crate) fn keep(&mut self, value: i64, factorial: i64) {
        self.factorials.put(value, factorial);
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::new()
    }
}
