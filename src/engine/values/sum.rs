//! Exact sums of integers, for CSV and Parquet.

/// An exact sum of integers. It cannot overflow: 2^64 cells of 64 bits fit in 128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(i128);

impl Sum {
    /// The sum that has this value.
    pub fn of(total: i128) -> Self {
        Self(total)
    }

    /// The sum's value, whether it fits in 64 bits or not.
    pub fn exact(self) -> i128 {
        self.0
    }

    /// Adds one value.
    pub fn add(&mut self, value: i64) {
        self.0 += i128::from(value);
    }

    /// Adds many values. Their low and high halves are added separately, so that the compiler can use 64-bit vector lanes.
    pub fn add_all(&mut self, values: &[i64]) {
        // 2^31 halves of 32 bits cannot overflow 64 bits.
        for block in values.chunks(1 << 31) {
            let (mut low, mut high) = (0_u64, 0_i64);
            for &value in block {
                low += value.cast_unsigned() & 0xffff_ffff;
                high += value >> 32;
            }
            self.0 += (i128::from(high) << 32) + i128::from(low);
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: Self) {
        self.0 += other.0;
    }

    /// Subtracts another sum.
    pub fn subtract(&mut self, other: Self) {
        self.0 -= other.0;
    }

    /// The sum in 64 bits. The error is the exact sum if it does not fit.
    pub fn total(self) -> Result<i64, i128> {
        i64::try_from(self.0).ok().ok_or(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_add_up_to_the_whole() {
        let mut random = fastrand::Rng::with_seed(7);
        for len in [0, 1, 2, 3, 100, 1000] {
            let edge = [i64::MIN, i64::MAX, -1, 0, 1, i64::from(i32::MIN), i64::from(u32::MAX)];
            let values: Vec<i64> = (0..len)
                .map(|_| if random.bool() { random.i64(..) } else { edge[random.usize(..edge.len())] })
                .collect();
            let (mut all, mut one_by_one) = (Sum::default(), Sum::default());
            all.add_all(&values);
            values.iter().for_each(|&value| one_by_one.add(value));
            assert_eq!(all, one_by_one, "{values:?}");
        }
    }

    #[test]
    fn only_a_total_must_fit() {
        let mut sum = Sum::default();
        sum.add_all(&[i64::MAX, 1]);
        assert_eq!(sum.total(), Err(1_i128 << 63));
        sum.add(-1);
        assert_eq!(sum.total(), Ok(i64::MAX));
    }
}
