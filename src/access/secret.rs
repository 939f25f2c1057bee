//! The secrets of tokens, and their hashes. A server keeps hashes alone.

use std::fmt::{self, Write as _};

use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

const SECRET_BYTES: usize = 32;
const HASH_BYTES: usize = 32;

/// The secret of a token: 256 random bits as 64 hexadecimal digits. It is overwritten when it is dropped.
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    /// A new one, from the operating system's generator (getrandom(2)).
    ///
    /// Errors: the generator fails.
    pub(crate) fn random() -> std::io::Result<Self> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        let mut filled = 0;
        while filled < SECRET_BYTES {
            filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
        }
        let mut text = Zeroizing::new(String::with_capacity(2 * SECRET_BYTES));
        write_hex(&mut text, &*bytes);
        Ok(Self(text))
    }

    /// One that a user has.
    pub(crate) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    pub(crate) fn hash(&self) -> SecretHash {
        SecretHash::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The SHA-256 (FIPS 180-4) of a secret's text. A secret has 256 random bits, so a fast hash without salt is enough.
#[derive(Clone, Copy)]
pub(crate) struct SecretHash([u8; HASH_BYTES]);

impl SecretHash {
    pub(crate) fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// 64 hexadecimal digits. `None` for any other text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; HASH_BYTES];
        if text.len() != 2 * HASH_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, index) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(text.get(index..index + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Whether they are equal, in constant time.
    pub(crate) fn equals(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(2 * HASH_BYTES);
        write_hex(&mut text, &self.0);
        f.write_str(&text)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

fn write_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _a_string_takes_all = write!(text, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_sha_256_of_the_secrets_text() {
        // FIPS 180-4, the example "abc".
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(SecretHash::of(b"abc").to_string(), expected);
        let parsed = SecretHash::parse(&expected.to_uppercase()).expect("64 digits");
        assert!(bool::from(parsed.equals(&SecretHash::of(b"abc"))));
        assert!(!bool::from(parsed.equals(&SecretHash::of(b"abd"))));
        for wrong in ["", "ba78", &expected[1..], &format!("{expected}0"), &expected.replace('b', "g")] {
            assert!(SecretHash::parse(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn secrets_differ_and_are_never_printed() {
        let (one, other) = (Secret::random().expect("random"), Secret::random().expect("random"));
        assert_eq!(one.expose().len(), 64);
        assert_ne!(one.expose(), other.expose());
        let printed = format!("{one:?} {:?}", one.hash());
        assert_eq!(printed, "Secret(..) SecretHash(..)");
    }
}
