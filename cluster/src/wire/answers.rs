//! The answers about parts, and groups, as rows. A cell that cannot be added is such an answer, not the failure of a task.

use std::sync::{Arc, LazyLock};

use datafusion::{
    arrow::{
        array::{
            ArrayRef, AsArray, BinaryArray, BinaryBuilder, FixedSizeBinaryBuilder, RecordBatch, StringBuilder,
            UInt8Builder, UInt64Builder,
        },
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    error::Result,
};
use tally::{
    engine::runtime::{
        group_rows::GroupRows,
        part_engine::{PartAnswer, PartGroups, PartOutcome, PartTotals},
    },
    error::{Error, column_sum::ColumnSumError, csv::CellProblem, statistics::StatisticsError},
    limits::SURVEY_BYTES_MAX,
    model::{part::PartId, schema::ColumnType},
};

use super::{column, malformed, u8s, u64s};

/// Characters of a text that are sent. An error quotes fewer of a cell.
const TEXT_CHARS_MAX: usize = 200;
const SUM_BYTES: i32 = 16;
/// The column that has the key of a group.
pub const KEY: &str = "key";

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        // 0 for a group.
        Field::new("part", DataType::UInt64, false),
        // A `Kind`.
        Field::new("kind", DataType::UInt8, false),
        // The rows. Of a cell: its row.
        Field::new("rows", DataType::UInt64, false),
        // Of groups: their checksum.
        Field::new("bytes", DataType::UInt64, false),
        // 128 bits, little-endian.
        Field::new("sum", DataType::FixedSizeBinary(SUM_BYTES), false),
        // Of a cell: its problem. Of a type: which.
        Field::new("code", DataType::UInt8, false),
        // Of a cell: its text. Of an unreadable part: why.
        Field::new("text", DataType::Utf8, false),
        // Of a group: its key. Of a cell or a type: the name of the column. Of too many groups: the question.
        Field::new(KEY, DataType::Binary, false),
        // Of a group.
        Field::new("value", DataType::Binary, false),
    ]))
});

/// The schema of answers.
pub fn schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// What a row says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    WithoutColumn = 0,
    Sum = 1,
    Cell = 2,
    Type = 3,
    Unreadable = 4,
    Grouped = 5,
    Passed = 6,
    Group = 7,
    TooManyGroups = 8,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::WithoutColumn,
        Self::Sum,
        Self::Cell,
        Self::Type,
        Self::Unreadable,
        Self::Grouped,
        Self::Passed,
        Self::Group,
        Self::TooManyGroups,
    ];
}

const PROBLEMS: [CellProblem; 4] =
    [CellProblem::NotAnInteger, CellProblem::TooLarge, CellProblem::NotExact, CellProblem::NotANumber];

/// A row before it is in columns.
struct Row<'a> {
    kind: Kind,
    rows: u64,
    bytes: u64,
    sum: i128,
    code: usize,
    text: &'a str,
    key: &'a [u8],
    value: &'a [u8],
}

/// A row that says nothing.
const EMPTY: Row<'_> =
    Row { kind: Kind::WithoutColumn, rows: 0, bytes: 0, sum: 0, code: 0, text: "", key: &[], value: &[] };

/// Groups as rows.
pub fn groups_to_batch(groups: &GroupRows) -> Result<RecordBatch> {
    to_rows(groups.iter().map(|(key, value)| (0, Row { kind: Kind::Group, key, value, ..EMPTY })))
}

/// Answers as rows.
pub fn to_batch(answers: &[PartAnswer]) -> Result<RecordBatch> {
    to_rows(answers.iter().map(|answer| (answer.part.get(), row_of(&answer.outcome))))
}

fn to_rows<'a>(all: impl Iterator<Item = (u64, Row<'a>)>) -> Result<RecordBatch> {
    let (mut parts, mut kinds, mut rows) = (UInt64Builder::new(), UInt8Builder::new(), UInt64Builder::new());
    let (mut bytes, mut sums) = (UInt64Builder::new(), FixedSizeBinaryBuilder::new(SUM_BYTES));
    let (mut codes, mut texts) = (UInt8Builder::new(), StringBuilder::new());
    let (mut keys, mut values) = (BinaryBuilder::new(), BinaryBuilder::new());
    for (part, row) in all {
        parts.append_value(part);
        kinds.append_value(row.kind as u8);
        rows.append_value(row.rows);
        bytes.append_value(row.bytes);
        sums.append_value(row.sum.to_le_bytes())?;
        codes.append_value(u8::try_from(row.code).unwrap_or(u8::MAX));
        texts.append_value(row.text.chars().take(TEXT_CHARS_MAX).collect::<String>());
        keys.append_value(row.key);
        values.append_value(row.value);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(parts.finish()),
        Arc::new(kinds.finish()),
        Arc::new(rows.finish()),
        Arc::new(bytes.finish()),
        Arc::new(sums.finish()),
        Arc::new(codes.finish()),
        Arc::new(texts.finish()),
        Arc::new(keys.finish()),
        Arc::new(values.finish()),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

fn row_of(outcome: &PartOutcome) -> Row<'_> {
    match outcome {
        PartOutcome::WithoutColumn => EMPTY,
        PartOutcome::Passed => Row { kind: Kind::Passed, ..EMPTY },
        PartOutcome::Grouped(PartGroups { rows, check }) => {
            Row { kind: Kind::Grouped, rows: *rows, bytes: *check, ..EMPTY }
        }
        PartOutcome::Summed(PartTotals { sum, rows, bytes }) => {
            Row { kind: Kind::Sum, rows: *rows, bytes: *bytes, sum: *sum, ..EMPTY }
        }
        PartOutcome::Failed(Error::Cell { row, column, cell, problem, .. }) => {
            let code = PROBLEMS.iter().position(|it| it == problem).unwrap_or(PROBLEMS.len());
            Row { kind: Kind::Cell, rows: *row, code, text: cell, key: column.as_bytes(), ..EMPTY }
        }
        PartOutcome::Failed(Error::ColumnSum(ColumnSumError::NotSummable { column, column_type, .. })) => {
            let code = ColumnType::ALL.iter().position(|it| it == column_type).unwrap_or(ColumnType::ALL.len());
            Row { kind: Kind::Type, code, key: column.as_bytes(), ..EMPTY }
        }
        PartOutcome::Failed(Error::Statistics(StatisticsError::TooManyGroups { question, .. })) => {
            Row { kind: Kind::TooManyGroups, key: question.as_bytes(), ..EMPTY }
        }
        // The server reads the part itself, and finds out what the error is.
        PartOutcome::Failed(_) => Row { kind: Kind::Unreadable, text: "an error", ..EMPTY },
        PartOutcome::Unreadable(why) => Row { kind: Kind::Unreadable, text: why, ..EMPTY },
    }
}

/// What rows say.
#[derive(Debug, Default)]
pub struct Answered {
    /// The answers about parts.
    pub parts: Vec<PartAnswer>,
    /// The groups.
    pub groups: GroupRows,
}

/// The groups among some rows: the key and the value of each.
///
/// Errors: [`to_batch`] or [`groups_to_batch`] did not make the rows.
pub(crate) fn groups_in(batch: &RecordBatch) -> Result<impl Iterator<Item = (&[u8], &[u8])>> {
    let (kinds, keys, values) = (u8s(batch, "kind")?, binaries(batch, KEY)?, binaries(batch, "value")?);
    let rows = (0..batch.num_rows()).filter(move |row| kinds.value(*row) == Kind::Group as u8);
    Ok(rows.map(move |row| (keys.value(row), values.value(row))))
}

/// The numbers of the rows that are no groups.
///
/// Errors: as [`groups_in`].
pub(crate) fn others_in(batch: &RecordBatch) -> Result<Vec<u32>> {
    let kinds = (0_u32..).zip(u8s(batch, "kind")?.values());
    Ok(kinds.filter(|(_, kind)| **kind != Kind::Group as u8).map(|(row, _)| row).collect())
}

fn binaries<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a BinaryArray> {
    column(batch, name)?.as_binary_opt::<i32>().ok_or_else(|| malformed(name))
}

/// Answers and groups from rows.
///
/// Errors: [`to_batch`] or [`groups_to_batch`] did not make the rows.
pub fn of_batch(batch: &RecordBatch) -> Result<Answered> {
    let (parts, kinds, rows) = (u64s(batch, "part")?, u8s(batch, "kind")?, u64s(batch, "rows")?);
    let (bytes, codes) = (u64s(batch, "bytes")?, u8s(batch, "code")?);
    let sums = column(batch, "sum")?.as_fixed_size_binary_opt().ok_or_else(|| malformed("sum"))?;
    let texts = column(batch, "text")?.as_string_opt::<i32>().ok_or_else(|| malformed("text"))?;
    let (keys, mut found) = (binaries(batch, KEY)?, Answered::default());
    groups_in(batch)?.for_each(|(key, value)| found.groups.push(key, value));
    let answer = |at: usize| {
        let name = || String::from_utf8(keys.value(at).to_vec()).map_err(|error| malformed(error.to_string()));
        let part = PartId::new(parts.value(at)).ok_or_else(|| malformed("part 0"))?;
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == kinds.value(at));
        let code = usize::from(codes.value(at));
        let outcome = match kind.ok_or_else(|| malformed("an answer of another kind"))? {
            Kind::WithoutColumn => PartOutcome::WithoutColumn,
            Kind::Sum => {
                let sum = <[u8; 16]>::try_from(sums.value(at)).map_err(|error| malformed(error.to_string()))?;
                let sum = i128::from_le_bytes(sum);
                PartOutcome::Summed(PartTotals { sum, rows: rows.value(at), bytes: bytes.value(at) })
            }
            Kind::Cell => PartOutcome::Failed(Error::Cell {
                part,
                row: rows.value(at),
                column: name()?,
                cell: texts.value(at).to_owned(),
                problem: *PROBLEMS.get(code).ok_or_else(|| malformed("another problem"))?,
            }),
            Kind::Type => PartOutcome::Failed(Error::ColumnSum(ColumnSumError::NotSummable {
                part,
                column: name()?,
                column_type: *ColumnType::ALL.get(code).ok_or_else(|| malformed("another type"))?,
            })),
            Kind::Unreadable => PartOutcome::Unreadable(texts.value(at).to_owned()),
            Kind::Passed => PartOutcome::Passed,
            Kind::Grouped => PartOutcome::Grouped(PartGroups { rows: rows.value(at), check: bytes.value(at) }),
            Kind::TooManyGroups => PartOutcome::Failed(too_many_groups(name()?)),
            Kind::Group => return Err(malformed("a group of a part")),
        };
        Ok(PartAnswer { part, outcome })
    };
    found.parts = others_in(batch)?.into_iter().map(|at| answer(at as usize)).collect::<Result<_>>()?;
    Ok(found)
}

fn too_many_groups(question: String) -> Error {
    StatisticsError::TooManyGroups { question, bytes_max: SURVEY_BYTES_MAX }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_are_written() {
        let part = PartId::new(3).expect("above 0");
        let cell = |cell: &str, problem| {
            PartOutcome::Failed(Error::Cell { part, row: 5, column: "a".into(), cell: cell.into(), problem })
        };
        let mut outcomes = vec![
            PartOutcome::WithoutColumn,
            PartOutcome::Summed(PartTotals { sum: i128::MIN, rows: u64::MAX, bytes: 1 }),
            PartOutcome::Summed(PartTotals { sum: i128::MAX, rows: 0, bytes: u64::MAX }),
            PartOutcome::Unreadable("no such file".to_owned()),
            PartOutcome::Passed,
            PartOutcome::Grouped(PartGroups { rows: 7, check: u64::MAX }),
            PartOutcome::Failed(too_many_groups("a question".to_owned())),
        ];
        outcomes.extend(PROBLEMS.map(|problem| cell("ä\"\n", problem)));
        outcomes.extend(ColumnType::ALL.map(|column_type| {
            let column = "a".to_owned();
            PartOutcome::Failed(Error::ColumnSum(ColumnSumError::NotSummable { part, column, column_type }))
        }));
        let answers: Vec<_> = outcomes.into_iter().map(|outcome| PartAnswer { part, outcome }).collect();
        let read = of_batch(&to_batch(&answers).expect("rows")).expect("answers");
        assert_eq!(format!("{:?}", read.parts), format!("{answers:?}"));
        assert!(read.groups.is_empty());
    }

    #[test]
    fn groups_are_read_as_they_are_written() {
        let mut groups = GroupRows::default();
        for (key, value) in [("", [1; 24]), ("a\0b", [2; 24]), ("ä", [3; 24])] {
            groups.push(key.as_bytes(), &value);
        }
        let read = of_batch(&groups_to_batch(&groups).expect("rows")).expect("groups");
        assert_eq!(read.groups, groups);
        assert!(read.parts.is_empty());
    }

    #[test]
    fn a_long_cell_is_quoted_as_it_would_be_in_full() {
        let part = PartId::new(3).expect("above 0");
        for cell in ["x".repeat(10_000), "\u{1}".repeat(10_000), "😀'".repeat(1000), "x".repeat(64), "x".repeat(65)] {
            let error = Error::Cell { part, row: 1, column: "a".into(), cell, problem: CellProblem::NotAnInteger };
            let text = error.to_string();
            let answers = [PartAnswer { part, outcome: PartOutcome::Failed(error) }];
            let read = of_batch(&to_batch(&answers).expect("rows")).expect("answers").parts;
            let PartOutcome::Failed(error) = &read[0].outcome else { panic!("not an error") };
            assert_eq!(error.to_string(), text);
        }
    }
}
