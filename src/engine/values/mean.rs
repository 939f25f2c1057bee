//! Exact means of doubles: pure arithmetic, like `sum.rs`.
//!
//! A [`Mean`] holds the exact sum of its values as one integer of 2,176 bits, in units of 2^-1074: every finite double
//! is a multiple of that (the "small superaccumulator" idea: Kulisch; Neal, arXiv:1505.05571). Adding and merging are
//! integer additions, so nothing depends on order, threads or parts. The mean is rounded once: it is the double nearest
//! to the exact sum divided by the count, ties to even, like `statistics.mean` of Python. It cannot overflow.

/// The largest double is less than 2^2098 units; 2^63 of them and a sign fit in 2,176 bits.
const LIMBS: usize = 34;
/// Bits of a double's fraction; one more bit of its mantissa is implied.
const FRACTION_BITS: u32 = 52;

/// Bytes of a count and a sum.
pub const MEAN_BYTES: usize = (1 + LIMBS) * size_of::<u64>();

/// The exact sum of doubles, and how many there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mean {
    /// The sum in two's complement, lowest limb first.
    limbs: [u64; LIMBS],
    count: u64,
}

impl Default for Mean {
    fn default() -> Self {
        Self { limbs: [0; LIMBS], count: 0 }
    }
}

impl Mean {
    /// Adds a finite value.
    pub fn add(&mut self, value: f64) {
        debug_assert!(value.is_finite(), "{value} cannot be added");
        let bits = value.to_bits();
        let fraction = bits & ((1 << FRACTION_BITS) - 1);
        let (mantissa, shift) = match bits >> FRACTION_BITS & 0x7ff {
            0 => (fraction, 0), // zero or subnormal
            exponent => (fraction | 1 << FRACTION_BITS, exponent - 1),
        };
        let (bit, at) = (shift % 64, (shift / 64) as usize);
        // The mantissa extends over two limbs. Two shifts, because a shift by 64 is not allowed.
        let [low, high] = [mantissa << bit, mantissa >> 1 >> (63 - bit)];
        if value.is_sign_negative() {
            step(&mut self.limbs[at..], [low, high], u64::overflowing_sub);
        } else {
            step(&mut self.limbs[at..], [low, high], u64::overflowing_add);
        }
        self.count += 1;
    }

    /// Adds the values of another mean.
    pub fn merge(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, &more) in self.limbs.iter_mut().zip(&other.limbs) {
            (*limb, carry) = with_carry(u64::overflowing_add, *limb, more, carry);
        }
        self.count += other.count;
    }

    /// The number of values, and then the sum, little-endian.
    pub fn to_bytes(&self) -> [u8; MEAN_BYTES] {
        let mut bytes = [0; MEAN_BYTES];
        let limbs = std::iter::once(&self.count).chain(&self.limbs);
        for (bytes, limb) in bytes.as_chunks_mut().0.iter_mut().zip(limbs) {
            *bytes = limb.to_le_bytes();
        }
        bytes
    }

    /// Adds the values of another mean, which [`Self::to_bytes`] has made. `None` if the sum cannot be that of so many values.
    pub fn merge_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let bytes: &[u8; MEAN_BYTES] = bytes.try_into().ok()?;
        let mut numbers = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let count = numbers.next()?;
        let mut other = Self { limbs: [0; LIMBS], count };
        other.limbs.iter_mut().zip(numbers).for_each(|(limb, number)| *limb = number);
        if self.count.checked_add(count)? >> 63 != 0 {
            return None;
        }
        let is_negative = |mean: &Self| mean.limbs[LIMBS - 1] >> 63 == 1;
        let (before, more) = (is_negative(self), is_negative(&other));
        self.merge(&other);
        (before != more || is_negative(self) == before).then_some(())
    }

    /// The double nearest to the exact mean, never -0; `None` without values.
    pub fn mean(&self) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let negative = self.limbs[LIMBS - 1] >> 63 == 1;
        let mut quotient = self.limbs;
        if negative {
            let mut carry = true;
            for limb in &mut quotient {
                (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
            }
        }
        let remainder = divide(&mut quotient, self.count);
        let magnitude = nearest_double(&quotient, remainder, self.count);
        Some(if negative && magnitude > 0.0 { -magnitude } else { magnitude })
    }
}

/// Adds or subtracts two limbs to the lowest of these, and a carry or borrow to the others.
#[inline]
fn step(limbs: &mut [u64], halves: [u64; 2], step: impl Fn(u64, u64) -> (u64, bool) + Copy) {
    let (lowest, rest) = limbs.split_at_mut(2);
    let mut carry = false;
    for (limb, half) in lowest.iter_mut().zip(halves) {
        (*limb, carry) = with_carry(step, *limb, half, carry);
    }
    for limb in rest {
        if !carry {
            break;
        }
        (*limb, carry) = step(*limb, 1);
    }
}

/// Adds or subtracts with `step`, with a carry or borrow in and out.
#[inline]
fn with_carry(step: impl Fn(u64, u64) -> (u64, bool), limb: u64, more: u64, carry: bool) -> (u64, bool) {
    let (limb, first) = step(limb, more);
    let (limb, second) = step(limb, u64::from(carry));
    (limb, first || second)
}

/// Long division, limb by limb. Returns the remainder.
#[allow(clippy::cast_possible_truncation, reason = "the remainder is less than the divisor, so both halves fit")]
fn divide(limbs: &mut [u64; LIMBS], divisor: u64) -> u64 {
    let mut remainder = 0;
    for limb in limbs.iter_mut().rev() {
        let dividend = u128::from(remainder) << 64 | u128::from(*limb);
        *limb = (dividend / u128::from(divisor)) as u64;
        remainder = (dividend % u128::from(divisor)) as u64;
    }
    remainder
}

/// The double nearest to `quotient + remainder / divisor` units, ties to even.
fn nearest_double(quotient: &[u64; LIMBS], remainder: u64, divisor: u64) -> f64 {
    let top = quotient.iter().rposition(|&limb| limb != 0).unwrap_or(0);
    let bits = 64 * top + (64 - quotient[top].leading_zeros() as usize);
    // The number of bits below the 53 that a double has.
    let shift = bits.saturating_sub(FRACTION_BITS as usize + 1);
    let limb = |index: usize| quotient.get(index).copied().unwrap_or(0);
    let (index, bit) = (shift / 64, shift % 64);
    let across = limb(index) >> bit | limb(index + 1) << 1 << (63 - bit);
    let mantissa = across & ((1 << (FRACTION_BITS + 1)) - 1);
    let odd = mantissa & 1 == 1;
    let up = if shift == 0 {
        let (twice, divisor) = (2 * u128::from(remainder), u128::from(divisor));
        twice > divisor || (twice == divisor && odd)
    } else {
        let (index, bit) = ((shift - 1) / 64, (shift - 1) % 64);
        let half = limb(index) >> bit & 1 == 1;
        let below = limb(index) & ((1 << bit) - 1) != 0 || quotient[..index].iter().any(|&limb| limb != 0);
        half && (odd || below || remainder != 0)
    };
    // The implied bit of the mantissa and a carry of `up` each add one to the exponent.
    f64::from_bits(((shift as u64) << FRACTION_BITS) + mantissa + u64::from(up))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_of(values: &[f64]) -> Mean {
        let mut mean = Mean::default();
        values.iter().for_each(|&value| mean.add(value));
        mean
    }

    #[test]
    fn means_are_merged_as_bytes() {
        let (mut one, other) = (mean_of(&[1.5, -1e300]), mean_of(&[-7.0, f64::MAX, 5e-324]));
        let mut expected = one.clone();
        expected.merge(&other);
        assert_eq!(one.merge_bytes(&other.to_bytes()), Some(()));
        assert_eq!(one, expected);
        let mut huge = Mean { limbs: [u64::MAX; LIMBS], count: 1 };
        huge.limbs[LIMBS - 1] = u64::MAX >> 1;
        assert_eq!(huge.clone().merge_bytes(&huge.to_bytes()), None, "it does not fit");
        let many = Mean { count: u64::MAX, ..Mean::default() };
        assert_eq!(one.merge_bytes(&many.to_bytes()), None, "too many values");
        assert_eq!(one.merge_bytes(&other.to_bytes()[1..]), None, "another length");
    }

    /// The expected values are those of Python's `float(statistics.mean(Fraction(x) for x in values))`.
    #[test]
    fn means_are_the_nearest_doubles() {
        let least = f64::from_bits(1);
        let cases: &[(&[f64], f64)] = &[
            (&[0.1; 10], 0.1),
            (&[-3.0], -3.0),
            (&[-0.1, -0.2], -0.15000000000000002),
            (&[1.0, 2.0, 4.0], 2.3333333333333335),
            (&[1e308, 1e308], 1e308),
            (&[f64::MAX, f64::MAX, f64::MAX], f64::MAX),
            (&[-f64::MAX, -f64::MAX, 1.0], -1.1984620899082105e308),
            (&[f64::MAX, -f64::MAX, 1.0], 0.3333333333333333),
            (&[1e16, 1.0, -1e16], 0.3333333333333333),
            (&[1e16, 1.0, -1e16, 1.0], 0.5),
            (&[9007199254740992.0, 9007199254740994.0], 9007199254740992.0), // between two doubles: the even one
            (&[9007199254740994.0, 9007199254740996.0], 9007199254740996.0),
            (&[9007199254740992.0, 9007199254740994.0, 9007199254740996.0], 9007199254740994.0),
            (&[18014398509481988.0, 9007199254740991.0, 0.0], 9007199254740992.0),
            (&[18014398509481988.0, 9007199254740991.0, least], 9007199254740994.0), // a little more than between
            (&[least], least),
            (&[least, 0.0], 0.0), // half of the least double: the even one
            (&[least, least, 0.0], least),
            (&[least, 2.0 * least], 2.0 * least),
            (&[-least, 0.0, 0.0], 0.0),
            (&[f64::MIN_POSITIVE, -least], f64::MIN_POSITIVE / 2.0),
            (&[-0.0], 0.0),
            (&[34.1, 34.1, 34.1], 34.1),
        ];
        for &(values, expected) in cases {
            let mean = mean_of(values).mean().expect("there are values");
            assert_eq!(mean.to_bits(), expected.to_bits(), "{values:?}: {mean:e}, not {expected:e}");
            let negated: Vec<f64> = values.iter().map(|value| -value).collect();
            assert_eq!(mean_of(&negated).mean(), Some(-expected), "{negated:?}");
        }
        assert_eq!(Mean::default().mean(), None);
    }

    #[test]
    fn order_and_splits_do_not_matter() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..200 {
            let any = random.usize(1..200);
            let mut values: Vec<f64> = std::iter::repeat_with(|| f64::from_bits(random.u64(..))).take(any).collect();
            values.retain(|value| value.is_finite());
            values.push(random.f64() - 0.5);
            let expected = mean_of(&values);
            random.shuffle(&mut values);
            let mut merged = Mean::default();
            for piece in values.chunks(random.usize(1..=values.len())) {
                merged.merge(&mean_of(piece));
            }
            assert_eq!(merged, expected, "{values:?}");
        }
    }

    /// A sum of at most 53 bits is exact as a double, and dividing it rounds once.
    #[test]
    fn means_of_moderate_values_agree_with_integers() {
        const UNIT: f64 = 1.0 / (1_u64 << 20) as f64;
        let mut random = fastrand::Rng::with_seed(12);
        for _ in 0..2000 {
            let units: Vec<i32> = (0..random.usize(1..200)).map(|_| random.i32(..)).collect();
            let values: Vec<f64> = units.iter().map(|&units| f64::from(units) * UNIT).collect();
            let total: i64 = units.iter().map(|&units| i64::from(units)).sum();
            let expected = total as f64 / units.len() as f64 * UNIT;
            assert_eq!(mean_of(&values).mean(), Some(expected), "{values:?}");
        }
    }
}
