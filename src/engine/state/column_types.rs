//! The names of the table's columns: how many there are. And the types of columns, for columns of new parts that have no value.

use std::collections::HashMap;

use crate::{
    limits::COLUMN_NAMES_MAX,
    model::schema::{ColumnType, TypedName},
};

/// The columns of each name, by a hash of it. If two names have the same hash, they are counted as one.
pub struct ColumnNames {
    names: HashMap<u64, NameUse>,
    /// How many names columns of the table have.
    in_table: usize,
}

#[derive(Clone, Copy, Default)]
struct NameUse {
    /// How many schemas that parts of the table have, and parts of the table without a schema in memory, have the column.
    uses: u32,
    /// The types that the column has had in parts without a schema in memory. They are never removed.
    unshared: TypeSets,
}

/// Sets of types, as bits in the order of [`ColumnType`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TypeSets {
    /// The types of columns that have values.
    with_values: u8,
    /// The types of all columns.
    all: u8,
}

impl TypeSets {
    /// Adds the type of a column.
    pub fn add(&mut self, column_type: ColumnType, has_values: bool) {
        let bit = 1 << column_type as u8;
        self.all |= bit;
        self.with_values |= if has_values { bit } else { 0 };
    }

    /// The first type in the order of [`ColumnType`] among those of columns with values, or, without such columns, among all.
    pub fn first(self) -> Option<ColumnType> {
        let set = if self.with_values != 0 { self.with_values } else { self.all };
        ColumnType::ALL.into_iter().find(|column_type| set & 1 << *column_type as u8 != 0)
    }
}

impl ColumnNames {
    /// Knows no column. All memory is allocated here.
    pub fn new() -> Self {
        Self { names: HashMap::with_capacity(COLUMN_NAMES_MAX), in_table: 0 }
    }

    /// The columns with a name. `None` beyond the limit. Names stay, so that the hash table never grows.
    fn of(&mut self, hash: u64) -> Option<&mut NameUse> {
        let is_full = self.names.len() >= COLUMN_NAMES_MAX && !self.names.contains_key(&hash);
        (!is_full).then(|| self.names.entry(hash).or_default())
    }

    /// Notes the type of a column of a part without a schema in memory. Beyond the limit, further names are not noted.
    pub(super) fn note_unshared(&mut self, column: TypedName, has_values: bool) {
        if let Some(name) = self.of(column.hash) {
            name.unshared.add(column.column_type, has_values);
        }
    }

    /// Notes that columns with these names are in the table.
    pub(super) fn add(&mut self, hashes: impl Iterator<Item = u64>) {
        for hash in hashes {
            if let Some(name) = self.of(hash) {
                name.uses += 1;
                self.in_table += usize::from(name.uses == 1);
            }
        }
    }

    /// Notes that what [`Self::add`] was called for is not in the table any more.
    pub(super) fn remove(&mut self, hashes: impl Iterator<Item = u64>) {
        for hash in hashes {
            if let Some(NameUse { uses, .. }) = self.names.get_mut(&hash) {
                self.in_table -= usize::from(*uses == 1);
                *uses = uses.saturating_sub(1);
            }
        }
    }

    /// How many names the columns of the table have, without those beyond the limit.
    pub fn count(&self) -> usize {
        self.in_table
    }

    /// The types that a column has had in parts without a schema in memory.
    pub(super) fn unshared(&self, hash: u64) -> TypeSets {
        self.names.get(&hash).map_or(TypeSets::default(), |name| name.unshared)
    }
}

impl Default for ColumnNames {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;

    #[test]
    fn values_decide_and_then_the_order_of_the_types() {
        let mut types = TypeSets::default();
        let mut note = |column_type, has_values| {
            types.add(column_type, has_values);
            types.first()
        };
        assert_eq!(TypeSets::default().first(), None);
        assert_eq!(note(ColumnType::Utf8, false), Some(ColumnType::Utf8));
        assert_eq!(note(ColumnType::Int64, false), Some(ColumnType::Int64));
        assert_eq!(note(ColumnType::Utf8, true), Some(ColumnType::Utf8));
        assert_eq!(note(ColumnType::Date32, true), Some(ColumnType::Date32));
        assert_eq!(note(ColumnType::Timestamp, true), Some(ColumnType::Date32));
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let mut names = ColumnNames::new();
        let capacity = names.names.capacity();
        for hash in 0..2 * COLUMN_NAMES_MAX as u64 {
            names.add(std::iter::once(hash));
            names.note_unshared(TypedName { hash, column_type: ColumnType::Float64 }, true);
        }
        assert_eq!((names.names.len(), names.names.capacity()), (COLUMN_NAMES_MAX, capacity));
        assert_eq!(names.count(), COLUMN_NAMES_MAX);
        names.note_unshared(TypedName { hash: 0, column_type: ColumnType::Int64 }, true);
        let found = [0, COLUMN_NAMES_MAX as u64].map(|hash| names.unshared(hash).first());
        assert_eq!(found, [Some(ColumnType::Int64), None]);
        names.remove(0..2 * COLUMN_NAMES_MAX as u64);
        assert_eq!(names.count(), 0);
    }
}
