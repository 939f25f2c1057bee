//! The key that a client gives an upload, so that it can be repeated without being added twice.

use std::{fmt, num::NonZeroU64, sync::Arc};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::limits::IDEMPOTENCY_KEY_BYTES_MAX;

/// 1 to [`IDEMPOTENCY_KEY_BYTES_MAX`] visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(Arc<str>);

/// A text that is no such key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency-key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters")]
pub struct InvalidKey;

impl IdempotencyKey {
    /// Checks the bytes of a key.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidKey> {
        let is_valid = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
        let text = str::from_utf8(bytes).ok().filter(|_text| is_valid);
        text.map(|text| Self(text.into())).ok_or(InvalidKey)
    }

    /// The hash by which the registry finds the part of a key. The receipts distinguish keys with the same hash.
    pub fn hash(&self) -> NonZeroU64 {
        NonZeroU64::new(XxHash3_64::oneshot(self.0.as_bytes())).unwrap_or(NonZeroU64::MIN)
    }
}

impl TryFrom<String> for IdempotencyKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        Self::parse(text.as_bytes())
    }
}

impl From<IdempotencyKey> for String {
    fn from(key: IdempotencyKey) -> Self {
        key.0.as_ref().to_owned()
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_1_to_128_visible_characters() {
        for valid in ["a", "!~", "0b5e2c14-6f1a-4a52-9a0e-1f7a4e5b3c2d", &"k".repeat(128)] {
            assert_eq!(IdempotencyKey::parse(valid.as_bytes()).map(String::from).as_deref(), Ok(valid));
        }
        for wrong in ["", " ", "a b", "a\n", "caf\u{e9}", "\u{7f}", &"k".repeat(129)] {
            assert_eq!(IdempotencyKey::parse(wrong.as_bytes()), Err(InvalidKey), "{wrong:?}");
            let json = serde_json::to_string(wrong).expect("a text");
            assert!(serde_json::from_str::<IdempotencyKey>(&json).is_err(), "{wrong:?}");
        }
    }
}
