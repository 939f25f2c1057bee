//! What can be wrong with a call of the key/value service.

use super::{kind::Kind, quoted::Quoted};

/// Why a value is not set, or a factorial not computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumStoreError {
    /// A key over the limit.
    #[error("the key has {bytes} bytes, at most {bytes_max} are allowed")]
    KeyTooLong {
        /// What it has.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// As many keys as there may be.
    #[error("there are {keys_max} keys, which is the limit")]
    TooManyKeys {
        /// The limit.
        keys_max: usize,
    },
    /// A key that was never given a value.
    #[error("key {} is not set", Quoted(key))]
    KeyNotSet {
        /// Which.
        key: String,
    },
    /// A value below 0.
    #[error("key {}: {value} has no factorial", Quoted(key))]
    NoFactorial {
        /// Whose.
        key: String,
        /// The value.
        value: i64,
    },
    /// A value above 20.
    #[error("key {}: the factorial of {value} does not fit in 64 bits", Quoted(key))]
    FactorialTooLarge {
        /// Whose.
        key: String,
        /// The value.
        value: i64,
    },
    /// A value with which the total of all would be no int64.
    #[error("key {}: the total {total} would not fit in 64 bits", Quoted(key))]
    TotalOverflow {
        /// Whose.
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
