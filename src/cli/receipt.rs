//! How `tally parts` and `tally upload` show a receipt.

use serde::Serialize;

use crate::proto::pb::tally::{Column, ColumnType, File, Receipt, Source};

/// A receipt as JSON. The fields are named as in the `N.json` files of the data folder.
#[derive(Serialize)]
pub(super) struct ReceiptJson<'a> {
    part: u64,
    rows: u64,
    columns: Vec<ColumnJson<'a>>,
    csv: Option<FileJson<'a>>,
    parquet: Option<FileJson<'a>>,
    uploaded_at: &'a str,
    /// Set by an upload that added nothing, because its key was used before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    /// Absent if the file was stored as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceJson<'a>>,
    /// What is wrong with a receipt that the server cannot read.
    #[serde(skip_serializing_if = "str::is_empty")]
    damaged: &'a str,
    /// Absent if the part has its own files.
    #[serde(skip_serializing_if = "str::is_empty")]
    segment: &'a str,
}

#[derive(Serialize)]
struct ColumnJson<'a> {
    name: &'a str,
    r#type: &'static str,
    nulls: u64,
}

#[derive(Serialize)]
struct SourceJson<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    delimiter: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    encoding: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    null: &'a [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    trim: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    drop_trailing_empty: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    decompress: &'a str,
    #[serde(flatten)]
    file: Option<FileJson<'a>>,
}

impl<'a> SourceJson<'a> {
    fn of(source: &'a Source) -> Option<Self> {
        let options = source.options.as_ref()?;
        Some(Self {
            delimiter: &options.delimiter,
            encoding: &options.encoding,
            null: &options.null,
            trim: options.trim,
            drop_trailing_empty: options.drop_trailing_empty,
            decompress: &options.decompress,
            file: source.file.as_ref().map(FileJson::of),
        })
    }
}

#[derive(Serialize)]
struct FileJson<'a> {
    bytes: u64,
    xxh3: &'a str,
}

impl<'a> FileJson<'a> {
    fn of(file: &'a File) -> Self {
        Self { bytes: file.bytes, xxh3: &file.xxh3 }
    }
}

impl<'a> From<&'a Receipt> for ReceiptJson<'a> {
    fn from(receipt: &'a Receipt) -> Self {
        let column =
            |column: &'a Column| ColumnJson { name: &column.name, r#type: type_name(column), nulls: column.nulls };
        Self {
            part: receipt.part,
            rows: receipt.rows,
            columns: receipt.columns.iter().map(column).collect(),
            csv: receipt.csv.as_ref().map(FileJson::of),
            parquet: receipt.parquet.as_ref().map(FileJson::of),
            uploaded_at: &receipt.uploaded_at,
            replayed: receipt.replayed,
            source: receipt.source.as_ref().and_then(SourceJson::of),
            damaged: &receipt.damaged,
            segment: &receipt.segment,
        }
    }
}

/// The name of a column's type, as in the `N.json` files.
pub(super) fn type_name(column: &Column) -> &'static str {
    type_name_of(column.r#type())
}

/// The name of a type, as in the `N.json` files.
pub(super) fn type_name_of(column_type: ColumnType) -> &'static str {
    match column_type {
        ColumnType::Int64 => "int64",
        ColumnType::Float64 => "float64",
        ColumnType::Boolean => "boolean",
        ColumnType::Date32 => "date32",
        ColumnType::Timestamp => "timestamp",
        ColumnType::TimestampUtc => "timestamp_utc",
        ColumnType::Utf8 => "utf8",
        // Also a type of a newer server that this client does not know.
        ColumnType::Unspecified => "unknown",
    }
}

/// Bytes of a part's CSV or Parquet file. A server always sends them.
pub(super) fn file_bytes(file: Option<&File>) -> u64 {
    file.map_or(0, |file| file.bytes)
}
