//! Reads the rows of a part from Parquet, and of its columns only those of the question.
//!
//! That is possible if Parquet keeps the texts of the columns to group by, and all of them are in dictionaries. Then the group
//! of a row is looked up once for each combination of codes, not once for each row.
//!
//! Memory: a page and a dictionary of each column, and the groups of the combinations. A long row of CSV takes more, and one
//! can be in memory when no part is read in this way: see [`Work::tables_bytes`](super::work::Work).

use super::{
    accumulate::PartitionGroups,
    columnar_part::{ColumnarPart, columns_of},
    hash_table::{BATCH_KEY_BYTES_MAX, EntryOffset, key_bytes},
    work::Work,
};
use crate::{
    engine::parquet::{
        column_reader::{ColumnRef, PartColumns},
        numbers::Numbers,
        text_codes::TextCodes,
    },
    error::Error,
    limits::TASK_BYTES,
};

/// Rows whose codes are decoded together, one column after the other.
const BATCH_ROWS: usize = 2048;
/// Combinations of codes for which the group is kept. If there are more, it is looked up for each row.
const COMBINATIONS_MAX: usize = 512 * 1024;
/// So many bytes of CSV have the rows that are read from Parquet in the time in which one byte is read from CSV.
pub(super) const CSV_BYTES_PER_BYTE: u64 = 4;

/// Adds the rows from `from` on to the groups, up to `until`, or up to the rows that have about `bytes_max` bytes of CSV
/// times [`CSV_BYTES_PER_BYTE`]. Returns the next row.
pub(super) fn read(
    columnar: &ColumnarPart,
    work: &Work,
    groups: &mut PartitionGroups,
    from: u64,
    until: u64,
    bytes_max: usize,
) -> Result<u64, Error> {
    let file = PartColumns::open(&columnar.file, &columnar.part)?;
    let (by, sum) = (columns_of(&columnar.schema, work.spec.by()), columns_of(&columnar.schema, work.spec.sum()));
    let all: Vec<_> = by.iter().chain(&sum).collect();
    let row_bytes = (columnar.part.csv_bytes / columnar.part.rows.max(1)).max(1);
    let rows_max = (bytes_max.min(TASK_BYTES) as u64 * CSV_BYTES_PER_BYTE / row_bytes).max(1);
    let until = until.min(from.saturating_add(rows_max));
    let mut row = from;
    while row < until {
        let rows_max = usize::try_from(until - row).unwrap_or(usize::MAX);
        let Some((range, _)) = file.next_rows(file.position_of(row), &all, rows_max)? else { break };
        let mut columns = GroupColumns::open(&file, range.row_group(), &by, &sum)?;
        columns.skip(range.start_in_group())?;
        let mut left = range.rows_count();
        while left > 0 {
            let count = left.min(BATCH_ROWS);
            columns.add(count, work, groups)?;
            left -= count;
        }
        row += range.rows_count() as u64;
    }
    Ok(row)
}

/// The columns of one row group.
struct GroupColumns<'a> {
    by: Vec<TextCodes<'a>>,
    sum: Vec<Numbers<'a>>,
    /// The entry of each combination of codes, once it was looked up. Empty if there are too many combinations.
    entries: Vec<Option<EntryOffset>>,
    /// How often the table had been cleared when `entries` were looked up.
    clears: u64,
    /// The codes of a batch, one list for each column.
    codes: Vec<Vec<u32>>,
    combinations: Vec<usize>,
    /// The values of a batch, those of a row one after the other.
    values: Vec<i64>,
}

impl<'a> GroupColumns<'a> {
    fn open(
        file: &'a PartColumns<'_>,
        row_group: usize,
        by: &[ColumnRef<'_>],
        sum: &[ColumnRef<'_>],
    ) -> Result<Self, Error> {
        let missing = || Error::Internal("a column of a group sum is not in a dictionary".to_owned());
        let by: Vec<_> =
            by.iter().map(|column| file.codes(row_group, column)?.ok_or_else(missing)).collect::<Result<_, _>>()?;
        let sum: Vec<_> =
            sum.iter().map(|column| file.numbers(row_group, column)?.ok_or_else(missing)).collect::<Result<_, _>>()?;
        let combinations =
            by.iter().try_fold(1_usize, |product, texts| product.checked_mul(texts.texts().codes_count()));
        let combinations = combinations.filter(|&count| count <= COMBINATIONS_MAX).unwrap_or(0);
        Ok(Self {
            codes: vec![Vec::new(); by.len()],
            by,
            sum,
            entries: vec![None; combinations],
            clears: 0,
            combinations: Vec::new(),
            values: Vec::new(),
        })
    }

    fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.by.iter_mut().try_for_each(|texts| texts.skip(count))?;
        self.sum.iter_mut().try_for_each(|numbers| numbers.skip(count))
    }

    /// Adds the next `count` rows.
    fn add(&mut self, count: usize, work: &Work, groups: &mut PartitionGroups) -> Result<(), Error> {
        for (texts, codes) in self.by.iter_mut().zip(&mut self.codes) {
            texts.read(count, codes)?;
        }
        let sums_count = self.sum.len();
        self.values.clear();
        self.values.resize(count * sums_count, 0);
        for (index, numbers) in self.sum.iter_mut().enumerate() {
            let mut values = self.values.iter_mut().skip(index).step_by(sums_count);
            numbers.read_integers(count, |value| {
                if let Some(place) = values.next() {
                    *place = value;
                }
            })?;
        }
        if self.entries.is_empty() {
            return self.add_each(count, work, groups);
        }
        self.combinations.clear();
        self.combinations.resize(count, 0);
        for (texts, codes) in self.by.iter().zip(&self.codes) {
            let codes_count = texts.texts().codes_count();
            for (combination, code) in self.combinations.iter_mut().zip(codes) {
                *combination = *combination * codes_count + *code as usize;
            }
        }
        for row in 0..count {
            let values = &self.values[row * sums_count..][..sums_count];
            if self.clears != groups.table.clears() {
                self.entries.fill(None);
                self.clears = groups.table.clears();
            }
            let entry = &mut self.entries[self.combinations[row]];
            match *entry {
                Some(offset) => groups.table.add(offset, values),
                None => {
                    let cells = self.by.iter().zip(&self.codes).map(|(texts, codes)| texts.texts().text(codes[row]));
                    let offset = groups.add_row(work, cells, values)?;
                    // If the table was cleared for the row, all others are forgotten before the next row.
                    *entry = offset;
                }
            }
        }
        Ok(())
    }

    /// Looks up the group of each row.
    fn add_each(&self, count: usize, work: &Work, groups: &mut PartitionGroups) -> Result<(), Error> {
        for row in 0..count {
            let values = &self.values[row * self.sum.len()..][..self.sum.len()];
            let cells = self.by.iter().zip(&self.codes).map(|(texts, codes)| texts.texts().text(codes[row]));
            if key_bytes(cells.clone()) > BATCH_KEY_BYTES_MAX {
                groups.flush(work)?;
                groups.add_row(work, cells, values)?;
                continue;
            }
            groups.batch.push(&groups.table, cells, values.iter().copied());
            if groups.batch.is_full() {
                groups.flush(work)?;
            }
        }
        groups.flush(work)
    }
}
