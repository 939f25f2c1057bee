//! Totals for each combination of numbers: an array that is indexed by the numbers of all columns together. It knows no texts,
//! files or groups.
//!
//! Totals have 64 bits, which is less than a group's total. They are only added to while no sum of values can exceed that.

/// Bytes for the totals.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// A number of 64 bits for each total, and one for the rows.
const NUMBER_BYTES: usize = size_of::<i64>();

/// Up to how many combinations there may be, for this number of columns that are summed.
pub(super) fn combinations_max(sums_count: usize) -> usize {
    BYTES_MAX / (NUMBER_BYTES * (sums_count + 1))
}

/// The totals of all combinations.
pub(super) struct Combinations {
    sums_count: usize,
    /// For each combination, the number of its rows and its totals.
    entries: Vec<i64>,
    /// No total is greater, nor less than this times -1.
    total_max: u64,
    /// The combinations of the batch's rows.
    batch: Vec<usize>,
}

impl Combinations {
    /// Totals of 0 for this many combinations and columns.
    pub(super) fn new(count: usize, sums_count: usize) -> Self {
        Self { sums_count, entries: vec![0; count * (sums_count + 1)], total_max: 0, batch: Vec::new() }
    }

    /// Begins a batch of rows. Until [`Combinations::narrow_by`], all of them have the same combination.
    pub(super) fn begin_batch(&mut self, rows_count: usize) {
        self.batch.clear();
        self.batch.resize(rows_count, 0);
    }

    /// Narrows the combinations of the batch's rows by their numbers, which are less than `count`, in one more column.
    pub(super) fn narrow_by(&mut self, numbers: impl Iterator<Item = u32>, count: usize) {
        for (combination, number) in self.batch.iter_mut().zip(numbers) {
            *combination = *combination * count + number as usize;
        }
    }

    /// Adds the values of the batch's rows, one list for each column. Returns `false` without adding any if a total might not
    /// fit in 64 bits.
    pub(super) fn add(&mut self, values: &[Vec<i64>]) -> bool {
        let greatest = values.iter().flatten().map(|value| value.unsigned_abs()).max().unwrap_or(0);
        let total_max = greatest.checked_mul(self.batch.len() as u64).and_then(|more| more.checked_add(self.total_max));
        let Some(total_max) = total_max.filter(|&total| total <= i64::MAX.unsigned_abs()) else { return false };
        self.total_max = total_max;
        if let [values] = values {
            let (entries, _) = self.entries.as_chunks_mut::<2>();
            for (&combination, value) in self.batch.iter().zip(values) {
                let [rows, total] = &mut entries[combination];
                *rows += 1;
                *total += value;
            }
            return true;
        }
        for (row, &combination) in self.batch.iter().enumerate() {
            let entry = &mut self.entries[combination * (self.sums_count + 1)..][..=self.sums_count];
            entry[0] += 1;
            for (total, values) in entry[1..].iter_mut().zip(values) {
                *total += values[row];
            }
        }
        true
    }

    /// Calls `take` with each combination that has rows and its totals, and sets them to 0.
    pub(super) fn take_each<E>(&mut self, mut take: impl FnMut(usize, &[i64]) -> Result<(), E>) -> Result<(), E> {
        self.total_max = 0;
        for (combination, entry) in self.entries.chunks_mut(self.sums_count + 1).enumerate() {
            if entry[0] > 0 {
                take(combination, &entry[1..])?;
                entry.fill(0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(combinations: &mut Combinations) -> Vec<(usize, Vec<i64>)> {
        let mut taken = Vec::new();
        let all = combinations.take_each(|combination, totals| {
            taken.push((combination, totals.to_vec()));
            Ok::<_, ()>(())
        });
        all.expect("no error");
        taken
    }

    #[test]
    fn totals_are_those_of_the_rows_with_the_same_numbers() {
        let mut random = fastrand::Rng::with_seed(1);
        for sums_count in 1..4 {
            let (first_count, second_count) = (5, 7);
            let mut combinations = Combinations::new(first_count * second_count, sums_count);
            let mut expected = std::collections::BTreeMap::new();
            for _ in 0..20 {
                let rows = random.usize(1..30);
                let mut numbers = |count: u32| -> Vec<u32> { (0..rows).map(|_| random.u32(..count)).collect() };
                let (first, second) = (numbers(5), numbers(7));
                let values: Vec<Vec<i64>> =
                    (0..sums_count).map(|_| (0..rows).map(|_| random.i64(-9..9)).collect()).collect();
                combinations.begin_batch(rows);
                combinations.narrow_by(first.iter().copied(), first_count);
                combinations.narrow_by(second.iter().copied(), second_count);
                assert!(combinations.add(&values));
                for row in 0..rows {
                    let combination = first[row] as usize * second_count + second[row] as usize;
                    let totals = expected.entry(combination).or_insert_with(|| vec![0; sums_count]);
                    totals.iter_mut().zip(&values).for_each(|(total, values)| *total += values[row]);
                }
            }
            assert_eq!(taken(&mut combinations), expected.into_iter().collect::<Vec<_>>());
            assert_eq!(taken(&mut combinations), [], "all were taken");
        }
    }

    /// A group whose values add up to 0 is a group, too.
    #[test]
    fn what_may_not_fit_in_64_bits_is_refused_and_a_total_of_0_is_kept() {
        let mut combinations = Combinations::new(2, 1);
        let mut add = |values: &[i64]| {
            combinations.begin_batch(values.len());
            combinations.narrow_by(std::iter::repeat_n(1, values.len()), 2);
            combinations.add(&[values.to_vec()])
        };
        assert!(!add(&[i64::MIN]), "its absolute value has 64 bits");
        assert!(!add(&[i64::MAX, 1]));
        assert!(add(&[i64::MAX - 1]));
        assert!(!add(&[1, 1]), "that might be too much");
        assert!(!add(&[-2]), "that would fit, but only values are compared");
        assert!(add(&[-1]));
        assert_eq!(taken(&mut combinations), [(1, vec![i64::MAX - 2])]);
        let mut add = |values: &[i64]| {
            combinations.begin_batch(values.len());
            combinations.add(&[values.to_vec()])
        };
        assert!(add(&[i64::MAX / 2, -(i64::MAX / 2)]), "there is room again");
        assert_eq!(taken(&mut combinations), [(0, vec![0])]);
    }
}
