//! Hashing and comparing keys, sixteen bytes at a time. Most keys have some tens of bytes, for which calls of general functions
//! take longer than the work.

use ahash::RandomState;

const CHUNK_BYTES: usize = 16;

/// A hash function with secret seeds, so that nobody can make a file whose keys collide: each sixteen bytes are mixed in by the
/// multiplication of two words to 128 bits, whose halves are combined (as in wyhash and in the fallback of ahash).
pub(super) struct KeyHasher {
    seeds: [u64; 3],
}

impl KeyHasher {
    /// Seeded at random.
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self { seeds: [0_u64, 1, 2].map(|index| random.hash_one(index)) }
    }

    /// The hash of a key.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        let (chunks, rest) = key.as_chunks::<CHUNK_BYTES>();
        let hash = chunks.iter().fold(self.first(key.len()), |hash, chunk| self.mix(hash, u128::from_le_bytes(*chunk)));
        if rest.is_empty() {
            return self.last(hash);
        }
        let mut last = [0; CHUNK_BYTES];
        last[..rest.len()].copy_from_slice(rest);
        self.last(self.mix(hash, u128::from_le_bytes(last)))
    }

    /// The same for the key of `len` bytes at the start of a window, which has at least fifteen bytes more.
    #[inline]
    pub(super) fn hash_window(&self, window: &[u8], len: usize) -> u64 {
        let (chunks, _) = window.as_chunks::<CHUNK_BYTES>();
        let (whole, rest) = chunks.split_at(len / CHUNK_BYTES);
        let hash = whole.iter().fold(self.first(len), |hash, chunk| self.mix(hash, u128::from_le_bytes(*chunk)));
        let rest_bytes = len % CHUNK_BYTES;
        if rest_bytes == 0 {
            return self.last(hash);
        }
        let of_key = (1 << (8 * rest_bytes)) - 1;
        self.last(self.mix(hash, u128::from_le_bytes(rest[0]) & of_key))
    }

    fn first(&self, len: usize) -> u64 {
        self.seeds[0] ^ len as u64
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    fn mix(&self, hash: u64, chunk: u128) -> u64 {
        let product = u128::from(hash ^ chunk as u64) * u128::from(self.seeds[1] ^ (chunk >> 64) as u64);
        product as u64 ^ (product >> 64) as u64
    }

    #[inline]
    fn last(&self, hash: u64) -> u64 {
        self.mix(hash, u128::from(self.seeds[2]))
    }
}

/// Whether two keys are equal.
#[inline]
pub(super) fn are_equal(a: &[u8], b: &[u8]) -> bool {
    match (a.last_chunk::<CHUNK_BYTES>(), b.last_chunk::<CHUNK_BYTES>()) {
        (Some(last), Some(other)) if a.len() == b.len() => {
            let (chunks, others) = (a.as_chunks::<CHUNK_BYTES>().0, b.as_chunks::<CHUNK_BYTES>().0);
            last == other && chunks.iter().zip(others).all(|(chunk, other)| chunk == other)
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_the_hash_of_its_key() {
        let hasher = KeyHasher::new();
        let mut random = fastrand::Rng::with_seed(1);
        let mut hashes = std::collections::HashSet::new();
        for len in 0..400 {
            let window: Vec<u8> = (0..len + CHUNK_BYTES).map(|_| random.u8(..)).collect();
            let key = &window[..len];
            assert_eq!(hasher.hash_window(&window, len), hasher.hash(key), "{key:?}");
            hashes.insert(hasher.hash(key));
            // Zeros after a key make another one.
            hashes.insert(hasher.hash(&[key, &[0]].concat()));
        }
        assert_eq!(hashes.len(), 800);
    }

    #[test]
    fn keys_that_differ_anywhere_are_not_equal() {
        for len in 0..70 {
            let key: Vec<u8> = (0..).take(len).collect();
            assert!(are_equal(&key, &key.clone()));
            assert!(!are_equal(&key, &[&key[..], b"x"].concat()) && !are_equal(&[&key[..], b"x"].concat(), &key));
            for at in 0..len {
                let mut other = key.clone();
                other[at] ^= 0x80;
                assert!(!are_equal(&key, &other), "{len} bytes, byte {at}");
            }
        }
    }
}
