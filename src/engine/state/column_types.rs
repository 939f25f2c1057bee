//! The names of the table's columns: how many there are, and which types they have, for columns of new parts that have no value.

use std::collections::HashMap;

use crate::{limits::COLUMN_NAMES_MAX, model::schema::ColumnType};

/// The types of each column, by a hash of its name. If two names have the same hash, a column without any value may get the
/// type of another one, which changes no sum, and the two are counted as one.
pub struct ColumnTypes {
    types: HashMap<u64, TypeSets>,
    /// How many names columns of the table have.
    in_table: usize,
}

/// Sets of types, as bits in the order of [`ColumnType`].
#[derive(Clone, Copy, Default)]
struct TypeSets {
    /// The types of columns that have values.
    with_values: u8,
    /// The types of columns that have none.
    without_values: u8,
    /// How many schemas that parts of the table have, and parts of the table without a schema in memory, have the column.
    uses: u32,
}

/// A column of a part.
#[derive(Clone, Copy, Debug)]
pub struct TypedName {
    /// The hash of its name.
    pub hash: u64,
    /// Its type in the part.
    pub column_type: ColumnType,
    /// Whether it has a value there.
    pub has_values: bool,
}

impl ColumnTypes {
    /// Knows no column. All memory is allocated here.
    pub fn new() -> Self {
        Self { types: HashMap::with_capacity(COLUMN_NAMES_MAX), in_table: 0 }
    }

    /// Notes the columns of a part. Beyond the limit, further names are not noted.
    pub fn note(&mut self, columns: &[TypedName]) {
        for TypedName { hash, column_type, has_values } in columns {
            if self.types.len() >= COLUMN_NAMES_MAX && !self.types.contains_key(hash) {
                continue;
            }
            let TypeSets { with_values, without_values, .. } = self.types.entry(*hash).or_default();
            *(if *has_values { with_values } else { without_values }) |= 1 << *column_type as u8;
        }
    }

    /// Notes that columns with these names are in the table. Their types must have been noted.
    pub(super) fn add_names(&mut self, hashes: &[u64]) {
        for hash in hashes {
            if let Some(TypeSets { uses, .. }) = self.types.get_mut(hash) {
                self.in_table += usize::from(*uses == 0);
                *uses += 1;
            }
        }
    }

    /// Notes that what [`Self::add_names`] was called for is not in the table any more.
    pub(super) fn remove_names(&mut self, hashes: &[u64]) {
        for hash in hashes {
            if let Some(TypeSets { uses, .. }) = self.types.get_mut(hash) {
                self.in_table -= usize::from(*uses == 1);
                *uses = uses.saturating_sub(1);
            }
        }
    }

    /// How many names the columns of the table have, without those beyond the limit.
    pub fn names_count(&self) -> usize {
        self.in_table
    }

    /// The type of a column in the parts that were noted. If they differ: the first in the order of [`ColumnType`] among the
    /// parts in which the column has values, or, without such parts, among the others.
    pub fn find(&self, hash: u64) -> Option<ColumnType> {
        let TypeSets { with_values, without_values, .. } = self.types.get(&hash)?;
        let set = if *with_values != 0 { with_values } else { without_values };
        ColumnType::ALL.into_iter().find(|column_type| set & 1 << *column_type as u8 != 0)
    }
}

impl Default for ColumnTypes {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;

    #[test]
    fn values_decide_and_then_the_order_of_the_types() {
        let mut types = ColumnTypes::new();
        let note = |types: &mut ColumnTypes, column_type, has_values| {
            types.note(&[TypedName { hash: 7, column_type, has_values }]);
            types.find(7)
        };
        assert_eq!(types.find(7), None);
        assert_eq!(note(&mut types, ColumnType::Utf8, false), Some(ColumnType::Utf8));
        assert_eq!(note(&mut types, ColumnType::Int64, false), Some(ColumnType::Int64));
        assert_eq!(note(&mut types, ColumnType::Utf8, true), Some(ColumnType::Utf8));
        assert_eq!(note(&mut types, ColumnType::Date32, true), Some(ColumnType::Date32));
        assert_eq!(note(&mut types, ColumnType::Timestamp, true), Some(ColumnType::Date32));
        assert_eq!(types.find(8), None);
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let mut types = ColumnTypes::new();
        let capacity = types.types.capacity();
        let column_type = ColumnType::Float64;
        for hash in 0..2 * COLUMN_NAMES_MAX as u64 {
            types.note(&[TypedName { hash, column_type, has_values: true }]);
        }
        assert_eq!((types.types.len(), types.types.capacity()), (COLUMN_NAMES_MAX, capacity));
        types.note(&[TypedName { hash: 0, column_type: ColumnType::Int64, has_values: true }]);
        assert_eq!((types.find(0), types.find(COLUMN_NAMES_MAX as u64)), (Some(ColumnType::Int64), None));
    }
}
