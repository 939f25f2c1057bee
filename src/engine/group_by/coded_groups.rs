//! Totals of groups whose cells are texts of dictionaries: each text of a column has a number, which is the same in all row
//! groups and parts that a partition reads, and a group is a combination of numbers (`combinations.rs`).
//!
//! Memory: the totals, and the texts, which are both bounded. If there is no room for a text, the totals are added to the
//! groups and all texts are forgotten.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;

use super::{
    accumulate::PartitionGroups,
    combinations::{Combinations, combinations_max},
    work::Work,
};
use crate::{engine::parquet::text_codes::Texts, error::Error, limits::MIB};

/// Bytes of the texts of all columns, about.
const TEXTS_BYTES_MAX: usize = MIB;
/// What a text takes besides its bytes: in the list, in the map, and the counts of its owners.
const TEXT_BYTES: usize = 80;

/// The totals of a partition's groups that are not in its hash table yet.
pub(super) struct CodedGroups {
    columns: Vec<ColumnTexts>,
    texts_bytes: usize,
    combinations: Combinations,
}

/// The texts of a column, by their numbers.
struct ColumnTexts {
    numbers: HashMap<Arc<[u8]>, u32, RandomState>,
    texts: Vec<Arc<[u8]>>,
    /// How many texts there may be.
    room: usize,
}

impl CodedGroups {
    /// Room for about as many texts as these columns have; `None` if they have too many combinations, or more than
    /// `count_max`.
    pub(super) fn new(columns: &[&Texts], sums_count: usize, count_max: usize) -> Option<Self> {
        let column = |texts: &&Texts| ColumnTexts {
            numbers: HashMap::default(),
            texts: Vec::new(),
            room: texts.codes_count().next_power_of_two(),
        };
        let columns: Vec<_> = columns.iter().map(column).collect();
        let count = columns.iter().try_fold(1_usize, |product, column| product.checked_mul(column.room));
        let count = count.filter(|&count| count <= combinations_max(sums_count).min(count_max))?;
        Some(Self { columns, texts_bytes: 0, combinations: Combinations::new(count, sums_count) })
    }

    /// The number of each code's text, for each column; `None` if there is no room for all texts.
    pub(super) fn number(&mut self, columns: &[&Texts]) -> Option<Vec<Vec<u32>>> {
        let bytes = &mut self.texts_bytes;
        columns.iter().zip(&mut self.columns).map(|(texts, column)| column.number(texts, bytes)).collect()
    }

    /// Adds the values of some rows. `numbers` has the number of each code, `codes` the code of each row, and `values` the
    /// values of each row, all of them one list for each column. Returns `false` without adding any if a total might not fit in
    /// 64 bits.
    pub(super) fn add(&mut self, numbers: &[Vec<u32>], codes: &[Vec<u32>], values: &[Vec<i64>]) -> bool {
        self.combinations.begin_batch(codes.first().map_or(0, Vec::len));
        for ((column, numbers), codes) in self.columns.iter().zip(numbers).zip(codes) {
            self.combinations.narrow_by(codes.iter().map(|&code| numbers[code as usize]), column.room);
        }
        self.combinations.add(values)
    }

    /// Adds the totals to the groups, and sets them to 0.
    pub(super) fn finish(&mut self, work: &Work, groups: &mut PartitionGroups) -> Result<(), Error> {
        let mut numbers = vec![0; self.columns.len()];
        let columns = &self.columns;
        self.combinations.take_each(|mut combination, totals| {
            for (number, column) in numbers.iter_mut().zip(columns).rev() {
                *number = combination % column.room;
                combination /= column.room;
            }
            let cells = columns.iter().zip(&numbers).map(|(column, &number)| &*column.texts[number]);
            groups.add_row(work, cells, totals)
        })
    }
}

impl ColumnTexts {
    fn number(&mut self, texts: &Texts, bytes: &mut usize) -> Option<Vec<u32>> {
        let mut numbers = Vec::with_capacity(texts.codes_count());
        for code in 0..=texts.null_code() {
            let text = texts.text(code);
            if let Some(&number) = self.numbers.get(text) {
                numbers.push(number);
                continue;
            }
            *bytes += TEXT_BYTES + text.len();
            if self.texts.len() == self.room || *bytes > TEXTS_BYTES_MAX {
                return None;
            }
            let (text, number) = (Arc::<[u8]>::from(text), u32::try_from(self.texts.len()).ok()?);
            self.texts.push(Arc::clone(&text));
            self.numbers.insert(text, number);
            numbers.push(number);
        }
        Some(numbers)
    }
}
