//! Errors of the key/value service.

use super::{kind::Kind, quoted::Quoted};

/// Why a value is not set, or a factorial not computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumStoreError {
    /// The key is too long.
    #[error("the key has {bytes} bytes, at most {bytes_max} are allowed")]
    KeyTooLong {
        /// The length of the key.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// There are too many keys.
    #[error("there are {keys_max} keys, which is the limit")]
    TooManyKeys {
        /// The limit.
        keys_max: usize,
    },
    /// The key has no value.
    #[error("key {} is not set", Quoted(key))]
    KeyNotSet {
        /// The key.
        key: String,
    },
    /// The value is below 0.
    #[error("key {}: {value} has no factorial", Quoted(key))]
    NoFactorial {
        /// The key.
        key: String,
        /// The value.
        value: i64,
    },
    /// The value is above 20.
    #[error("key {}: the factorial of {value} does not fit in 64 bits", Quoted(key))]
    FactorialTooLarge {
        /// The key.
        key: String,
        /// The value.
        value: i64,
    },
    /// With this value the total of all values would not fit in an int64.
    #[error("key {}: the total {total} would not fit in 64 bits", Quoted(key))]
    TotalOverflow {
        /// The key.
        key: String,
        /// The exact total.
        total: i128,
    },
}

impl NumStoreError {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::KeyTooLong { .. }
            | Self::KeyNotSet { .. }
            | Self::NoFactorial { .. }
            | Self::FactorialTooLarge { .. } => Kind::Input,
            Self::TotalOverflow { .. } => Kind::OutOfRange,
            Self::TooManyKeys { .. } => Kind::Exhausted,
        }
    }
}
