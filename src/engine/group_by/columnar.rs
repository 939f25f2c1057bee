//! Reads the rows of a part, or of a segment's Parquet file, and of its columns only those of the question.
//!
//! That is possible if Parquet keeps the texts of the columns to group by, and all of them are in dictionaries. Then values are
//! first added up for each combination of texts (`coded_groups.rs`), and the group of a combination is looked up once for all
//! of its rows.
//!
//! Memory: a page and a dictionary of each column, and the totals of the combinations. A long row of CSV takes more, and one
//! can be in memory when no part is read in this way: see [`Work::tables_bytes`](super::work::Work).

use super::{
    accumulate::PartitionGroups,
    coded_groups::CodedGroups,
    columnar_part::{ColumnarPart, columns_of},
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
/// With more combinations for each row, most of them would be empty: it is faster to look up the group of each row.
const COMBINATIONS_PER_ROW_MAX: usize = 4;
/// So many bytes of CSV have the rows that are read from Parquet in the time in which one byte is read from CSV.
pub(super) const CSV_BYTES_PER_BYTE: u64 = 4;

/// Adds the rows from `from` on to `coded`, or to the groups if there are too many combinations of their texts, up to `until`, or up to the rows that have about `bytes_max` bytes of CSV
/// times [`CSV_BYTES_PER_BYTE`]. Returns the next row.
pub(super) fn read(
    columnar: &ColumnarPart,
    work: &Work,
    groups: &mut PartitionGroups,
    coded: &mut Option<CodedGroups>,
    from: u64,
    until: u64,
    bytes_max: usize,
) -> Result<u64, Error> {
    let file = PartColumns::open(&columnar.file, &columnar.part)?.without(&columnar.removed);
    let (by, sum) = (columns_of(&columnar.schema, work.spec.by()), columns_of(&columnar.schema, work.spec.sum()));
    let all: Vec<_> = by.iter().chain(&sum).collect();
    let row_bytes = (columnar.part.csv_bytes / columnar.part.rows.max(1)).max(1);
    let rows_max = (bytes_max.min(TASK_BYTES) as u64 * CSV_BYTES_PER_BYTE / row_bytes).max(1);
    let until = until.min(from.saturating_add(rows_max));
    let mut row = from;
    while row < until {
        let rows_max = usize::try_from(until - row).unwrap_or(usize::MAX);
        let Some((range, _)) = file.next_rows(file.position_of(row), &all, rows_max)? else { break };
        let mut columns = GroupColumns::open(&file, range.row_group(), &by, &sum, work.spec.totals_count())?;
        columns.skip(range.start_in_group())?;
        columns.number_texts(work, groups, coded, columnar.part.rows)?;
        let mut start = 0;
        for rows in range.remaining() {
            columns.skip(rows.start - start)?;
            start = rows.start;
            while start < rows.end {
                let count = BATCH_ROWS.min(rows.end - start);
                columns.add(count, work, groups, coded)?;
                start += count;
            }
        }
        columns.skip(range.rows_count() - start)?;
        row += range.rows_count() as u64;
    }
    Ok(row)
}

/// The columns of one row group.
struct GroupColumns<'a> {
    by: Vec<TextCodes<'a>>,
    sum: Vec<Numbers<'a, i64>>,
    /// For each column to group by, the number of the text of each code; `None` if there are too many texts.
    numbers: Option<Vec<Vec<u32>>>,
    /// The codes of a batch, one list for each column.
    codes: Vec<Vec<u32>>,
    /// The values of a batch, one list for each total.
    values: Vec<Vec<i64>>,
}

impl<'a> GroupColumns<'a> {
    fn open(
        file: &'a PartColumns<'_>,
        row_group: usize,
        by: &[ColumnRef<'_>],
        sum: &[ColumnRef<'_>],
        totals_count: usize,
    ) -> Result<Self, Error> {
        let missing = || Error::Internal("a column of a group sum is not in a dictionary".to_owned());
        let by: Vec<_> =
            by.iter().map(|column| file.codes(row_group, column)?.ok_or_else(missing)).collect::<Result<_, _>>()?;
        let sum: Vec<_> =
            sum.iter().map(|column| file.numbers(row_group, column)?.ok_or_else(missing)).collect::<Result<_, _>>()?;
        let (codes, values) = (vec![Vec::new(); by.len()], vec![Vec::new(); totals_count]);
        Ok(Self { by, sum, numbers: None, codes, values })
    }

    fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.by.iter_mut().try_for_each(|texts| texts.skip(count))?;
        self.sum.iter_mut().try_for_each(|numbers| numbers.skip(count))
    }

    /// Numbers the texts of the dictionaries. If `coded` has no room for them, its totals are added to the groups, and it begins
    /// again with these texts.
    fn number_texts(
        &mut self,
        work: &Work,
        groups: &mut PartitionGroups,
        coded: &mut Option<CodedGroups>,
        part_rows: u64,
    ) -> Result<(), Error> {
        let texts: Vec<_> = self.by.iter().map(TextCodes::texts).collect();
        if let Some(known) = coded {
            self.numbers = known.number(&texts);
            if self.numbers.is_some() {
                return Ok(());
            }
            known.finish(work, groups)?;
        }
        let rows = usize::try_from(part_rows).unwrap_or(usize::MAX);
        *coded = CodedGroups::new(&texts, self.values.len(), rows.saturating_mul(COMBINATIONS_PER_ROW_MAX));
        self.numbers = coded.as_mut().and_then(|coded| coded.number(&texts));
        Ok(())
    }

    /// Adds the next `count` rows: to the totals of their combinations, or if there are too many of these, to their groups.
    fn add(
        &mut self,
        count: usize,
        work: &Work,
        groups: &mut PartitionGroups,
        coded: &mut Option<CodedGroups>,
    ) -> Result<(), Error> {
        for (texts, codes) in self.by.iter_mut().zip(&mut self.codes) {
            texts.read(count, codes)?;
        }
        for (numbers, values) in self.sum.iter_mut().zip(&mut self.values) {
            numbers.read(count, values)?;
        }
        if work.spec.counts_rows
            && let Some(ones) = self.values.last_mut()
        {
            ones.clear();
            ones.resize(count, 1);
        }
        let (Some(numbers), Some(coded)) = (&self.numbers, coded) else { return self.add_each(count, work, groups) };
        if coded.add(numbers, &self.codes, &self.values) {
            return Ok(());
        }
        coded.finish(work, groups)?;
        // A batch whose own totals may not fit in 64 bits is added row by row.
        if coded.add(numbers, &self.codes, &self.values) { Ok(()) } else { self.add_each(count, work, groups) }
    }

    /// Looks up the group of each row of the batch.
    fn add_each(&self, count: usize, work: &Work, groups: &mut PartitionGroups) -> Result<(), Error> {
        let mut values = Vec::with_capacity(self.values.len());
        for row in 0..count {
            values.clear();
            values.extend(self.values.iter().map(|values| values[row]));
            let cells = self.by.iter().zip(&self.codes).map(|(texts, codes)| texts.texts().text(codes[row]));
            let windows = cells.clone().map(|cell| (cell.len(), cell));
            if !groups.batch.push(&groups.table, windows, values.iter().copied()) {
                groups.flush(work)?;
                groups.add_row(work, cells, &values)?;
                continue;
            }
            if groups.batch.is_full() {
                groups.flush(work)?;
            }
        }
        groups.flush(work)
    }
}
