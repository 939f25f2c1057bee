//! What an executor has to know of a part, as a row of numbers: its files' sizes and checksums, and where it is in its segment.
//! The names of its columns are not sent; executors read them from the receipt, which must describe the same files.

use std::sync::{Arc, LazyLock};

use datafusion::{
    arrow::{
        array::{ArrayRef, RecordBatch, UInt64Array},
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    error::Result,
};
use tally::model::{
    packed::{Packed, Segment, SegmentId},
    part::{Checks, Part, PartId},
};

use super::{malformed, u64s};

/// The columns of a row. Those from `segment_first` on are 0 for a part that has its own files.
const FIELDS: [&str; 21] = [
    "part",
    "rows",
    "csv_bytes",
    "parquet_bytes",
    "row_groups",
    "footer_bytes",
    "columns_count",
    "csv_check",
    "parquet_check",
    "chunks_in_sums",
    "segment_first",
    "segment_last",
    "segment_version",
    "segment_file",
    "csv_start",
    "segment_csv_bytes",
    "segment_csv_check",
    "index_bytes",
    "index_check",
    "index_blocks",
    "fences_check",
];

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let fields = FIELDS.map(|name| Field::new(name, DataType::UInt64, false));
    Arc::new(Schema::new(fields.to_vec()))
});

/// The schema of rows of parts.
pub fn schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// Parts as rows.
///
/// Errors: a part of format version 1, which has no checksums.
pub fn to_batch(parts: &[Arc<Part>]) -> Result<RecordBatch> {
    let mut columns: Vec<Vec<u64>> = FIELDS.iter().map(|_| Vec::with_capacity(parts.len())).collect();
    for part in parts {
        let checks = part.checks.ok_or_else(|| malformed(format!("part {} has no checksums", part.id)))?;
        for (column, number) in columns.iter_mut().zip(numbers_of(part, checks)) {
            column.push(number);
        }
    }
    let columns = columns.into_iter().map(|column| Arc::new(UInt64Array::from(column)) as ArrayRef);
    Ok(RecordBatch::try_new(schema(), columns.collect())?)
}

fn numbers_of(part: &Part, checks: Checks) -> [u64; FIELDS.len()] {
    let own = [
        part.id.get(),
        part.rows,
        part.csv_bytes,
        part.parquet_bytes,
        part.row_groups.into(),
        part.footer_bytes.into(),
        part.columns_count.into(),
        checks.csv,
        checks.parquet,
        checks.chunks_in_sums.into(),
    ];
    let mut numbers = [0; FIELDS.len()];
    numbers[..own.len()].copy_from_slice(&own);
    if let Some(packed) = &part.packed {
        let segment = &packed.segment;
        numbers[own.len()..].copy_from_slice(&[
            segment.id.first.get(),
            segment.id.last.get(),
            segment.id.version.into(),
            packed.file.into(),
            packed.csv_start,
            segment.csv_bytes,
            segment.csv_check,
            segment.index_bytes,
            segment.index_check,
            segment.index_blocks,
            segment.fences_check,
        ]);
    }
    numbers
}

/// Parts from rows.
///
/// Errors: the rows are not those that [`to_batch`] makes.
pub fn of_batch(batch: &RecordBatch) -> Result<Vec<Arc<Part>>> {
    let columns = FIELDS.iter().map(|name| u64s(batch, name).map(|column| column.values()));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    // Parts that follow each other mostly are in the same segment.
    let mut last: Option<Arc<Segment>> = None;
    let parts = (0..batch.num_rows()).map(|row| {
        let mut numbers = [0; FIELDS.len()];
        for (number, column) in numbers.iter_mut().zip(&columns) {
            *number = column[row];
        }
        part_of(&numbers, &mut last).map(Arc::new).ok_or_else(|| malformed("a number of a part is too large"))
    });
    parts.collect()
}

fn part_of(numbers: &[u64; FIELDS.len()], last: &mut Option<Arc<Segment>>) -> Option<Part> {
    let [
        id,
        rows,
        csv_bytes,
        parquet_bytes,
        row_groups,
        footer_bytes,
        columns_count,
        csv,
        parquet,
        in_sums,
        packed @ ..,
    ] = *numbers;
    let packed = match packed[0] {
        0 => None,
        _ => Some(Box::new(packed_of(packed, last)?)),
    };
    Some(Part {
        id: PartId::new(id)?,
        rows,
        csv_bytes,
        parquet_bytes,
        row_groups: u32::try_from(row_groups).ok()?,
        footer_bytes: u32::try_from(footer_bytes).ok()?,
        columns_count: u32::try_from(columns_count).ok()?,
        source_bytes: 0,
        schema: None,
        checks: Some(Checks { csv, parquet, chunks_in_sums: in_sums != 0 }),
        key_hash: None,
        packed,
    })
}

fn packed_of(numbers: [u64; 11], last: &mut Option<Arc<Segment>>) -> Option<Packed> {
    let [
        first,
        last_part,
        version,
        file,
        csv_start,
        csv_bytes,
        csv_check,
        index_bytes,
        index_check,
        index_blocks,
        fences_check,
    ] = numbers;
    let id =
        SegmentId { first: PartId::new(first)?, last: PartId::new(last_part)?, version: u32::try_from(version).ok()? };
    let segment = match last {
        Some(segment) if segment.id == id => Arc::clone(segment),
        _ => Arc::clone(last.insert(Arc::new(Segment {
            id,
            parts: 0,
            csv_bytes,
            csv_check,
            index_bytes,
            index_check,
            index_blocks,
            fences_check,
            keys: (0, 0),
            files: Box::default(),
        }))),
    };
    Some(Packed { segment, file: u32::try_from(file).ok()?, csv_start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_are_written() {
        let id = |number| PartId::new(number).expect("above 0");
        let own = Part {
            id: id(7),
            rows: u64::MAX,
            csv_bytes: 11,
            parquet_bytes: 12,
            row_groups: 13,
            footer_bytes: u32::MAX,
            columns_count: 15,
            source_bytes: 0,
            schema: None,
            checks: Some(Checks { csv: 16, parquet: u64::MAX, chunks_in_sums: true }),
            key_hash: None,
            packed: None,
        };
        let segment = Arc::new(Segment {
            id: SegmentId { first: id(1), last: id(9), version: 3 },
            parts: 0,
            csv_bytes: 21,
            csv_check: 22,
            index_bytes: 23,
            index_check: 24,
            index_blocks: 25,
            fences_check: 26,
            keys: (0, 0),
            files: Box::default(),
        });
        let packed = Part { packed: Some(Box::new(Packed { segment, file: 2, csv_start: 27 })), ..own.clone() };
        let parts = [Arc::new(own), Arc::new(packed.clone()), Arc::new(packed)];
        let read = of_batch(&to_batch(&parts).expect("rows")).expect("parts");
        assert_eq!(format!("{read:?}"), format!("{parts:?}"));
        let segment = |index: usize| Arc::clone(&read[index].packed.as_ref().expect("packed").segment);
        assert!(Arc::ptr_eq(&segment(1), &segment(2)), "one segment for both");
    }
}
