//! Groups of rows as bytes, as another machine sends them: a key, and numbers that are added if two groups have the same key.
//! What the bytes mean, only the question knows (`group_by/lists.rs`, `survey/lists.rs`).
//!
//! **Architecture invariant:** adding cannot wrap. A sum that does not fit is an error, not another sum.

use twox_hash::XxHash3_64;

/// Bytes of the number of rows at the start of a group's value.
const COUNT_BYTES: usize = size_of::<u64>();
/// A prime, 2^61 - 1, modulo which checksums are computed: reducing a number modulo it needs no division.
const PRIME: u64 = (1 << 61) - 1;

/// How a group's value is made up: the number of its rows in 64 bits, and then numbers of the same length. All of them are
/// little-endian, and the numbers are signed, in two's complement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueLayout {
    /// How many numbers there are.
    pub numbers: usize,
    /// Bytes of each, which are a multiple of 8.
    pub number_bytes: usize,
}

impl ValueLayout {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        COUNT_BYTES + self.numbers * self.number_bytes
    }

    /// Adds the numbers of a value to those of another. `None` if one does not fit, or if a value has another length.
    pub fn add(self, total: &mut [u8], more: &[u8]) -> Option<()> {
        if total.len() != self.bytes() || more.len() != self.bytes() {
            return None;
        }
        let count = count_of(total)?.checked_add(count_of(more)?)?;
        total[..COUNT_BYTES].copy_from_slice(&count.to_le_bytes());
        let numbers = total[COUNT_BYTES..].chunks_exact_mut(self.number_bytes);
        numbers.zip(more[COUNT_BYTES..].chunks_exact(self.number_bytes)).try_for_each(|(total, more)| add(total, more))
    }
}

/// Groups, each with its key and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRows {
    /// The keys, one after the other.
    keys: Vec<u8>,
    /// Where each key ends.
    ends: Vec<usize>,
    /// The values, one after the other.
    values: Vec<u8>,
}

impl GroupRows {
    /// Adds a group. All values must have the same length, which is not 0.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len());
        self.values.extend_from_slice(value);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.keys.len() + self.values.len()
    }

    /// The groups: the key and the value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let keys = starts.zip(&self.ends).map(move |(start, &end)| &self.keys[start..end]);
        let value_bytes = self.values.len().checked_div(self.len()).unwrap_or(0);
        keys.zip(self.values.chunks_exact(value_bytes.max(1)))
    }
}

/// What groups add up to, in whichever way their rows are divided: the number of their rows, and a checksum. Sending a group twice, or not,
/// changes it.
///
/// The checksum is a sum over all groups: of the hash of the key, times a sum of the group's numbers. It is linear, so it stays the same if
/// two groups of a key are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupsCheck {
    /// Rows of all groups.
    pub rows: u64,
    /// The checksum.
    pub sum: u64,
}

impl GroupsCheck {
    /// Adds a group.
    pub fn add(&mut self, layout: ValueLayout, key: &[u8], value: &[u8]) {
        let hash = XxHash3_64::oneshot(key);
        let count = count_of(value).unwrap_or(0);
        let numbers = value.get(COUNT_BYTES..).unwrap_or_default().chunks_exact(layout.number_bytes.max(1));
        let of_numbers = numbers.zip(1_u64..).fold(count % PRIME, |sum, (number, index)| {
            // Each number has a weight, so that it matters which it is.
            let weight = XxHash3_64::oneshot_with_seed(index, key) % PRIME;
            plus(sum, times(weight, modulo_prime(number)))
        });
        self.rows = self.rows.saturating_add(count);
        self.sum = plus(self.sum, times(hash % (PRIME - 1) + 1, of_numbers));
    }

    /// Adds what other groups add up to.
    pub fn merge(&mut self, other: Self) {
        self.rows = self.rows.saturating_add(other.rows);
        self.sum = plus(self.sum, other.sum % PRIME);
    }
}

/// The rows at the start of a value.
pub fn count_of(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The numbers of a value.
pub fn numbers_of(value: &[u8], number_bytes: usize) -> impl Iterator<Item = &[u8]> {
    value.get(COUNT_BYTES..).unwrap_or_default().chunks_exact(number_bytes.max(1))
}

fn limbs(number: &[u8]) -> impl DoubleEndedIterator<Item = u64> {
    number.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// `None` if the sum does not fit.
fn add(total: &mut [u8], more: &[u8]) -> Option<()> {
    let is_negative = |number: &[u8]| number.last().is_some_and(|byte| byte >> 7 == 1);
    let (before, other) = (is_negative(total), is_negative(more));
    let mut carry = false;
    for (bytes, more) in total.as_chunks_mut().0.iter_mut().zip(limbs(more)) {
        let (sum, first) = u64::from_le_bytes(*bytes).overflowing_add(more);
        let (sum, second) = sum.overflowing_add(u64::from(carry));
        *bytes = sum.to_le_bytes();
        carry = first || second;
    }
    (before != other || is_negative(total) == before).then_some(())
}

fn plus(one: u64, other: u64) -> u64 {
    (one + other) % PRIME
}

#[allow(clippy::cast_possible_truncation, reason = "a remainder of a number of 61 bits")]
fn times(one: u64, other: u64) -> u64 {
    (u128::from(one) * u128::from(other) % u128::from(PRIME)) as u64
}

/// A signed number modulo [`PRIME`].
fn modulo_prime(number: &[u8]) -> u64 {
    // 2^64 is 8 modulo 2^61 - 1.
    let unsigned = limbs(number).rev().fold(0, |sum, limb| plus(times(sum, 8), limb % PRIME));
    let is_negative = number.last().is_some_and(|byte| byte >> 7 == 1);
    if !is_negative {
        return unsigned;
    }
    let too_much = (0..number.len() / 8).fold(1, |power, _| times(power, 8));
    plus(unsigned, PRIME - too_much)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(count: u64, numbers: &[i128]) -> Vec<u8> {
        let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
        count.to_le_bytes().into_iter().chain(numbers).collect()
    }

    #[test]
    fn numbers_are_added_exactly_or_not_at_all() {
        let layout = ValueLayout { numbers: 2, number_bytes: 16 };
        let sum = |one: &[i128], other: &[i128]| {
            let mut total = value(3, one);
            layout.add(&mut total, &value(4, other)).map(|()| total)
        };
        let (max, min) = (i128::MAX, i128::MIN);
        for (one, other) in
            [(1, 2), (-1, 1), (max, 0), (max, -1), (min, max), (min, 0), (i128::from(u64::MAX), 1), (-5, -7)]
        {
            assert_eq!(sum(&[one, 0], &[other, 9]), Some(value(7, &[one + other, 9])), "{one} {other}");
            assert_eq!(sum(&[0, other], &[-9, one]), Some(value(7, &[-9, one + other])), "{one} {other}");
        }
        for (one, other) in [(max, 1), (min, -1), (max, max), (min, min)] {
            assert_eq!(sum(&[one, 0], &[other, 0]), None, "{one} {other}");
            assert_eq!(sum(&[0, one], &[0, other]), None, "{one} {other}");
        }
        let mut many = value(u64::MAX, &[0, 0]);
        assert_eq!(layout.add(&mut many, &value(1, &[0, 0])), None, "too many rows");
        assert_eq!(layout.add(&mut many, &value(1, &[0])), None, "another length");
    }

    #[test]
    fn the_checksum_does_not_depend_on_how_rows_are_divided() {
        let layout = ValueLayout { numbers: 2, number_bytes: 16 };
        let check = |groups: &[(&str, u64, [i128; 2])]| {
            let mut check = GroupsCheck::default();
            groups.iter().for_each(|(key, count, numbers)| check.add(layout, key.as_bytes(), &value(*count, numbers)));
            check
        };
        let (a, b): (i128, i128) = (1 << 100, -(1 << 80));
        let whole = check(&[("x", 5, [a + b, 3]), ("", 1, [-4, 0])]);
        assert_eq!(whole, check(&[("x", 2, [b, -3]), ("", 1, [-4, 0]), ("x", 3, [a, 6])]));
        assert_eq!(whole.rows, 6);
        let mut merged = check(&[("x", 5, [a + b, 3])]);
        merged.merge(check(&[("", 1, [-4, 0])]));
        assert_eq!(merged, whole);
        // Whatever is lost, sent twice, or of another key or column.
        for other in [
            vec![("x", 5, [a + b, 3])],
            vec![("x", 5, [a + b, 3]), ("", 1, [-4, 0]), ("", 1, [-4, 0])],
            vec![("y", 5, [a + b, 3]), ("", 1, [-4, 0])],
            vec![("x", 5, [3, a + b]), ("", 1, [-4, 0])],
            vec![("x", 5, [a + b, 3]), ("x", 1, [-4, 0])],
            vec![("x", 5, [a + b + 1, 3]), ("", 1, [-5, 0])],
            vec![("x", 5, [0, 0]), ("", 1, [0, 0])],
        ] {
            assert_ne!(check(&other).sum, whole.sum, "{other:?}");
        }
        assert_ne!(check(&[("x", 1, [0, 0])]), check(&[]), "a group of zeros");
    }

    #[test]
    fn groups_are_read_as_they_are_pushed() {
        let mut rows = GroupRows::default();
        assert_eq!(rows.iter().count(), 0);
        let groups = [("", 1), ("a", 2), ("", 3), ("long", 4)];
        groups.iter().for_each(|(key, count)| rows.push(key.as_bytes(), &value(*count, &[7])));
        let read: Vec<_> = rows.iter().map(|(key, value)| (str_of(key), count_of(value).expect("a count"))).collect();
        assert_eq!(read, groups);
        assert_eq!((rows.len(), rows.bytes()), (4, 5 + 4 * 24));
    }

    fn str_of(key: &[u8]) -> &str {
        std::str::from_utf8(key).expect("text")
    }
}
