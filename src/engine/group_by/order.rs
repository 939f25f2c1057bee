//! Sorting entries by their keys.

/// An entry as it is sorted. The prefix decides nearly all comparisons, without reading the key.
#[derive(Clone, Copy)]
pub struct Ordered {
    prefix: u64,
    /// Where the entry begins.
    pub offset: u32,
}

impl Ordered {
    /// Whether the keys of two entries that were sorted together may be equal.
    pub(super) fn may_equal(&self, other: &Self) -> bool {
        self.prefix == other.prefix
    }
}

/// Sorts `count` entries by their keys. `entries` are their offsets and keys in any order; `key_at` finds a key again.
///
/// Keys of one file often begin with the same bytes, which are skipped, so that the prefixes differ.
pub(super) fn sorted<'a>(
    count: usize,
    entries: impl Iterator<Item = (u32, &'a [u8])> + Clone,
    key_at: impl Fn(u32) -> &'a [u8],
) -> Vec<Ordered> {
    let mut common = entries.clone().next().map_or(&[][..], |(_, key)| key);
    for (_, key) in entries.clone() {
        if !key.starts_with(common) {
            common = &common[..common_bytes(common, key)];
        }
    }
    let skip = common.len();
    let mut ordered = Vec::with_capacity(count);
    ordered.extend(entries.map(|(offset, key)| Ordered { prefix: prefix(&key[skip..]), offset }));
    ordered.sort_unstable_by_key(|entry| entry.prefix);
    for tied in ordered.chunk_by_mut(Ordered::may_equal) {
        if tied.len() > 1 {
            tied.sort_unstable_by(|a, b| key_at(a.offset).cmp(key_at(b.offset)));
        }
    }
    ordered
}

/// How many bytes two keys have in common at their start.
pub(super) fn common_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The first eight bytes as a number: a key with a smaller prefix is smaller. Keys with equal prefixes have to be compared
/// whole.
#[inline]
pub(super) fn prefix(key: &[u8]) -> u64 {
    if let Some(eight) = key.first_chunk::<8>() {
        return u64::from_be_bytes(*eight);
    }
    let mut eight = [0; 8];
    eight[..key.len()].copy_from_slice(key);
    u64::from_be_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_keys() {
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let common = vec![b'c'; [0, 1, 7, 8, 30][random.usize(..5)]];
            let letters = [b'\0', b'a', b'b', 0xff];
            let mut key = || {
                let rest = (0..random.usize(..12)).map(|_| letters[random.usize(..letters.len())]);
                common.iter().copied().chain(rest).collect::<Vec<u8>>()
            };
            let keys: Vec<Vec<u8>> = (0..seed % 60).map(|_| key()).collect();
            let entries = (0..).zip(keys.iter().map(Vec::as_slice));
            let ordered = sorted(keys.len(), entries, |offset| &keys[offset as usize]);
            let found: Vec<_> = ordered.iter().map(|entry| &keys[entry.offset as usize]).collect();
            let mut expected: Vec<_> = keys.iter().collect();
            expected.sort();
            assert_eq!(found, expected, "seed {seed}");
            for (pair, keys) in ordered.windows(2).zip(found.windows(2)) {
                assert!(pair[0].may_equal(&pair[1]) || keys[0] != keys[1], "seed {seed}");
            }
        }
    }
}
