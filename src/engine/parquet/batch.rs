//! Converts rows of text to record batches of typed columns. No files, no threads.
//!
//! Invariant: a batch is bounded in rows, in cells and in bytes of text, whatever the table's width.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayBuilder, ArrayRef, BooleanBuilder, Date32Builder, Float64Builder, Int64Builder, RecordBatch,
        RecordBatchOptions, StringBuilder, TimestampMicrosecondBuilder,
    },
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};

use crate::{
    engine::{csv::rows::Row, values::parse},
    error::Error,
    limits::{BATCH_BYTES_MAX, BATCH_CELLS_MAX, BATCH_ROWS_MAX},
    model::schema::{Column, ColumnType},
};

/// The Arrow schema of a part. Every column is nullable, so that all parts of a table have one schema.
pub fn arrow_schema(columns: &[Column]) -> SchemaRef {
    let field = |column: &Column| Field::new(&column.name, data_type(column.column_type), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

fn data_type(column_type: ColumnType) -> DataType {
    match column_type {
        ColumnType::Int64 => DataType::Int64,
        ColumnType::Float64 => DataType::Float64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Date32 => DataType::Date32,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::TimestampUtc => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ColumnType::Utf8 => DataType::Utf8,
    }
}

/// Collects rows for a record batch.
pub struct BatchBuilder {
    schema: SchemaRef,
    columns: Vec<Builder>,
    rows: usize,
    rows_max: usize,
    text_bytes: usize,
}

enum Builder {
    Int64(Int64Builder),
    Float64(Float64Builder),
    Boolean(BooleanBuilder),
    Date32(Date32Builder),
    Timestamp { utc: bool, values: TimestampMicrosecondBuilder },
    Utf8(StringBuilder),
}

impl BatchBuilder {
    /// An empty builder for rows with these columns.
    pub fn new(columns: &[Column]) -> Self {
        let rows_max = (BATCH_CELLS_MAX / columns.len().max(1)).clamp(1, BATCH_ROWS_MAX);
        let builder = |column: &Column| match column.column_type {
            ColumnType::Int64 => Builder::Int64(Int64Builder::with_capacity(0)),
            ColumnType::Float64 => Builder::Float64(Float64Builder::with_capacity(0)),
            ColumnType::Boolean => Builder::Boolean(BooleanBuilder::with_capacity(0)),
            ColumnType::Date32 => Builder::Date32(Date32Builder::with_capacity(0)),
            ColumnType::Timestamp => Builder::timestamp(false),
            ColumnType::TimestampUtc => Builder::timestamp(true),
            ColumnType::Utf8 => Builder::Utf8(StringBuilder::with_capacity(0, 0)),
        };
        let schema = arrow_schema(columns);
        Self { schema, columns: columns.iter().map(builder).collect(), rows: 0, rows_max, text_bytes: 0 }
    }

    /// Adds a row. Errors: a cell does not have its column's type, which was inferred from the same file.
    pub fn push(&mut self, row: &Row<'_>) -> Result<(), Error> {
        for (text, column) in row.cells().zip(&mut self.columns) {
            let taken = if text.is_empty() { column.push_null() } else { column.push(text) };
            if taken.is_none() {
                return Err(Error::Internal(format!("row {} changed between two readings of the file", row.number)));
            }
            self.text_bytes += text.len();
        }
        self.rows += 1;
        Ok(())
    }

    /// Whether the batch must be taken before the next row.
    pub fn is_full(&self) -> bool {
        self.rows >= self.rows_max || self.text_bytes >= BATCH_BYTES_MAX
    }

    /// Returns the collected rows and empties the builder.
    pub fn take(&mut self) -> Result<RecordBatch, Error> {
        let columns = self.columns.iter_mut().map(Builder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        (self.rows, self.text_bytes) = (0, 0);
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|error| Error::Internal(format!("record batch: {error}")))
    }
}

impl Builder {
    fn timestamp(utc: bool) -> Self {
        let time_zone = utc.then(|| Arc::from("UTC"));
        Self::Timestamp {
            utc,
            values: TimestampMicrosecondBuilder::with_capacity(0).with_timezone_opt::<Arc<str>>(time_zone),
        }
    }

    /// `None` if the text is not of the column's type.
    fn push(&mut self, text: &[u8]) -> Option<()> {
        match self {
            Self::Int64(values) => values.append_value(parse::parse_int64(text)?),
            Self::Float64(values) => values.append_value(parse::parse_float64(text)?),
            Self::Boolean(values) => values.append_value(parse::parse_boolean(text)?),
            Self::Date32(values) => values.append_value(parse::parse_date(text)?),
            Self::Timestamp { utc, values } => {
                let (micros, is_utc) = parse::parse_timestamp(text)?;
                values.append_value((is_utc == *utc).then_some(micros)?);
            }
            Self::Utf8(values) => values.append_value(std::str::from_utf8(text).ok()?),
        }
        Some(())
    }

    fn push_null(&mut self) -> Option<()> {
        match self {
            Self::Int64(values) => values.append_null(),
            Self::Float64(values) => values.append_null(),
            Self::Boolean(values) => values.append_null(),
            Self::Date32(values) => values.append_null(),
            Self::Timestamp { values, .. } => values.append_null(),
            Self::Utf8(values) => values.append_null(),
        }
        Some(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Int64(values) => ArrayBuilder::finish(values),
            Self::Float64(values) => ArrayBuilder::finish(values),
            Self::Boolean(values) => ArrayBuilder::finish(values),
            Self::Date32(values) => ArrayBuilder::finish(values),
            Self::Timestamp { values, .. } => ArrayBuilder::finish(values),
            Self::Utf8(values) => ArrayBuilder::finish(values),
        }
    }
}
