//! A page of the columns of the table: names in the order of their bytes, found in one pass over columns in any order.

use std::collections::BTreeMap;

/// Collects the smallest names after a name, with a value for each, as many as fit in a number of bytes and in a count; but at
/// least one.
pub(super) struct NamePage<T> {
    after: Option<String>,
    /// This name and greater ones are left for the next page.
    end: Option<String>,
    entries: BTreeMap<String, T>,
    bytes: usize,
    bytes_max: usize,
    count_max: usize,
    /// The bytes of an entry, by its name. Values add to this what they grow by.
    entry_bytes: fn(&str) -> usize,
    /// The bytes that values of names have grown by.
    value_bytes: fn(&T) -> usize,
}

impl<T: Default> NamePage<T> {
    pub(super) fn new(
        after: Option<String>,
        bytes_max: usize,
        count_max: usize,
        entry_bytes: fn(&str) -> usize,
        value_bytes: fn(&T) -> usize,
    ) -> Self {
        let entries = BTreeMap::new();
        Self { after, end: None, entries, bytes: 0, bytes_max, count_max, entry_bytes, value_bytes }
    }

    /// Adds to the value of a name, if the name is on this page.
    pub(super) fn add(&mut self, name: &str, add: impl FnOnce(&mut T)) {
        let is_before = self.after.as_ref().is_some_and(|after| name <= after.as_str());
        let is_left = self.end.as_ref().is_some_and(|end| name >= end.as_str());
        if is_before || is_left {
            return;
        }
        let before = match self.entries.get(name) {
            Some(value) => (self.value_bytes)(value),
            None => {
                self.bytes += (self.entry_bytes)(name);
                0
            }
        };
        let value = match self.entries.get_mut(name) {
            Some(value) => value,
            None => self.entries.entry(name.to_owned()).or_default(),
        };
        add(value);
        self.bytes = self.bytes - before + (self.value_bytes)(value);
        // A name that was left once stays left, because parts that have it were passed.
        while (self.bytes > self.bytes_max || self.entries.len() > self.count_max)
            && self.entries.len() > 1
            && let Some((last, value)) = self.entries.pop_last()
        {
            self.bytes -= (self.entry_bytes)(&last) + (self.value_bytes)(&value);
            self.end = Some(last);
        }
    }

    /// The names with their values, and whether greater names are left.
    pub(super) fn finish(self) -> (BTreeMap<String, T>, bool) {
        (self.entries, self.end.is_some())
    }
}
