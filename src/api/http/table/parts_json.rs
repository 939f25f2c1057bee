//! The JSON of the table's parts. Receipts have the fields of the `N.json` files of the data folder.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    engine::{
        RestorablePart,
        parts::{
            listing::{GrowthPoint, PartSummary, PartsList},
            receipts::UnreadablePart,
        },
        query::preview::Preview,
    },
    limits::{PREVIEW_JSON_BYTES_MAX, REMOVED_LISTED_MAX},
    model::{
        dialect::Source,
        part::{FileInfo, PartId, Receipt},
        schema::{Column, ColumnType},
    },
};

/// Bytes of a part without its columns as JSON, about.
const PART_JSON_BYTES: usize = 256;

/// A part: its receipt.
#[derive(Serialize, ToSchema)]
pub(super) struct PartReply {
    /// Its number.
    part: u64,
    /// Data rows; the header is not counted.
    rows: u64,
    /// In the order of the file; absent if the answer would be long.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    columns: Option<Vec<PartColumn>>,
    /// The number of columns, where they are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    columns_count: Option<usize>,
    csv: StoredFile,
    parquet: StoredFile,
    /// RFC 3339, UTC.
    uploaded_at: String,
    /// The file that was sent and its dialect; absent if it was stored as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    source: Option<PartSource>,
    /// The segment that has the part; absent if the part has its own files, and in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    segment: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct PartColumn {
    name: String,
    #[schema(value_type = String, examples("int64"))]
    r#type: ColumnType,
    /// The number of empty cells.
    nulls: u64,
}

#[derive(Serialize, ToSchema)]
struct StoredFile {
    bytes: u64,
    /// XXH3 of 64 bits, seed 0, in hexadecimal.
    #[schema(examples("2d06800538d394c2"))]
    xxh3: String,
}

#[derive(Serialize, ToSchema)]
struct PartSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    delimiter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    encoding: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    null: Vec<String>,
    trim: bool,
    drop_trailing_empty: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    decompress: Option<String>,
    bytes: u64,
    xxh3: String,
}

impl PartReply {
    pub(super) fn of(receipt: Receipt) -> Self {
        let column = |Column { name, column_type, nulls }| PartColumn { name, r#type: column_type, nulls };
        Self {
            part: receipt.part.get(),
            rows: receipt.rows,
            columns: Some(receipt.columns.into_iter().map(column).collect()),
            columns_count: None,
            csv: to_file(receipt.csv),
            parquet: to_file(receipt.parquet),
            uploaded_at: receipt.uploaded_at,
            source: receipt.source.map(|source| to_source(*source)),
            segment: receipt.segment.map(|segment| segment.to_string()),
        }
    }

    pub(super) fn part(&self) -> u64 {
        self.part
    }

    /// Removes the columns from the receipt, for an answer that has no room for them.
    pub(super) fn take_columns(&mut self) -> Vec<PartColumn> {
        self.columns.take().unwrap_or_default()
    }

    /// Replaces the columns with their number.
    pub(super) fn leave_columns_out(&mut self) {
        self.columns_count = self.columns.take().map(|columns| columns.len()).or(self.columns_count);
    }

    /// About how many bytes it takes as JSON.
    pub(super) fn json_bytes(&self) -> usize {
        const COLUMN_BYTES: usize = 48;
        let columns = self.columns.iter().flatten().map(|column| COLUMN_BYTES + cell_json_bytes(Some(&column.name)));
        PART_JSON_BYTES + columns.sum::<usize>()
    }
}

fn to_file(FileInfo { bytes, xxh3 }: FileInfo) -> StoredFile {
    StoredFile { bytes, xxh3 }
}

fn to_source(source: Source) -> PartSource {
    let Source { delimiter, encoding, null, trim, drop_trailing_empty, decompress, bytes, xxh3 } = source;
    PartSource { delimiter, encoding, null, trim, drop_trailing_empty, decompress, bytes, xxh3 }
}

/// What a list says of a part.
#[derive(Serialize, ToSchema)]
struct ListedPart {
    /// Its number.
    part: u64,
    /// Data rows; the header is not counted.
    rows: u64,
    columns_count: usize,
    csv: ListedFile,
    parquet: ListedFile,
    /// RFC 3339, UTC; null if the receipt is damaged.
    uploaded_at: Option<String>,
    /// The file that was sent and its dialect; absent if it was stored as it was sent, or if the receipt is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    source: Option<PartSource>,
    /// What is wrong with the receipt, if it is damaged or cannot be read; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    damaged: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct ListedFile {
    bytes: u64,
    /// XXH3 of 64 bits, seed 0, in hexadecimal; null if the receipt is damaged.
    #[schema(examples("2d06800538d394c2"))]
    xxh3: Option<String>,
}

impl ListedPart {
    fn of(part: Result<PartSummary, UnreadablePart>) -> Self {
        let summary = match part {
            Ok(summary) => summary,
            Err(unreadable) => return Self::of_unreadable(unreadable),
        };
        let file = |FileInfo { bytes, xxh3 }| ListedFile { bytes, xxh3: Some(xxh3) };
        Self {
            part: summary.part.get(),
            rows: summary.rows,
            columns_count: summary.columns_count,
            csv: file(summary.csv),
            parquet: file(summary.parquet),
            uploaded_at: Some(summary.uploaded_at),
            source: summary.source.map(|source| to_source(*source)),
            damaged: None,
        }
    }

    fn of_unreadable(part: UnreadablePart) -> Self {
        let file = |bytes| ListedFile { bytes, xxh3: None };
        Self {
            part: part.part.get(),
            rows: part.rows,
            columns_count: part.columns_count as usize,
            csv: file(part.csv_bytes),
            parquet: file(part.parquet_bytes),
            uploaded_at: None,
            source: None,
            damaged: Some(part.what),
        }
    }
}

/// A page of the list of parts.
#[derive(Serialize, ToSchema)]
pub(super) struct PartsReply {
    parts: Vec<ListedPart>,
    /// What the next page begins after, or before with `order=newest`; null on the last page.
    next: Option<u64>,
    /// How many parts the table has.
    total: usize,
}

impl PartsReply {
    pub(super) fn of(PartsList { parts, next, total }: PartsList) -> Self {
        let parts = parts.into_iter().map(ListedPart::of).collect();
        Self { parts, next: next.map(|id| id.get()), total }
    }
}

/// The removed parts that can be restored.
#[derive(Serialize, ToSchema)]
pub(super) struct RemovedReply {
    removed: Vec<RemovedEntry>,
    /// What the next page begins after; null on the last page.
    next: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct RemovedEntry {
    part: u64,
    rows: u64,
    csv_bytes: u64,
    parquet_bytes: u64,
    /// RFC 3339, UTC.
    removed_at: String,
    /// RFC 3339, UTC.
    restorable_until: String,
}

impl RemovedReply {
    pub(super) fn of(removed: Vec<RestorablePart>) -> Self {
        let last = removed.last().filter(|_| removed.len() == REMOVED_LISTED_MAX);
        let next = last.map(|removed| removed.part.get());
        let entry = |removed: RestorablePart| {
            let RestorablePart { part, rows, csv_bytes, parquet_bytes, removed_at, restorable_until } = removed;
            RemovedEntry { part: part.get(), rows, csv_bytes, parquet_bytes, removed_at, restorable_until }
        };
        Self { removed: removed.into_iter().map(entry).collect(), next }
    }
}

/// How the table has grown.
#[derive(Serialize, ToSchema)]
pub(super) struct GrowthReply {
    points: Vec<PointReply>,
}

/// The sizes of all parts up to one of them.
#[derive(Serialize, ToSchema)]
struct PointReply {
    part: u64,
    /// RFC 3339, UTC; null if the receipt cannot be read.
    uploaded_at: Option<String>,
    rows: u64,
    csv_bytes: u64,
    parquet_bytes: u64,
}

impl GrowthReply {
    pub(super) fn of(points: Vec<GrowthPoint>) -> Self {
        let point = |GrowthPoint { part, uploaded_at, rows, csv_bytes, parquet_bytes }| PointReply {
            part: PartId::get(part),
            uploaded_at,
            rows,
            csv_bytes,
            parquet_bytes,
        };
        Self { points: points.into_iter().map(point).collect() }
    }
}

/// The first rows of a part.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"columns": ["a", "b"], "columns_left_out": 0, "rows": [["1", null]], "more": true})))]
pub(super) struct PreviewReply {
    /// The names of the first columns: 256, or as many as take 96 KiB.
    columns: Vec<String>,
    /// How many columns there are besides.
    columns_left_out: usize,
    /// The cells as they are in the CSV, null for an empty one. A text of more than 256 characters is cut, and ends with `…`.
    rows: Vec<Vec<Option<String>>>,
    /// Whether the part has more rows.
    more: bool,
}

impl PreviewReply {
    pub(super) fn of(Preview { mut columns, mut columns_left_out, mut rows, more }: Preview) -> Self {
        let mut bytes = 0;
        let named = columns.iter().take_while(|name| {
            bytes += cell_json_bytes(Some(name));
            bytes <= PREVIEW_JSON_BYTES_MAX
        });
        let named = named.count();
        columns_left_out += columns.len() - named;
        columns.truncate(named);
        rows.iter_mut().for_each(|row| row.truncate(named));
        let mut bytes = 0;
        let mut fits = |row: &Vec<Option<String>>| {
            bytes += row.iter().map(|cell| cell_json_bytes(cell.as_deref())).sum::<usize>();
            bytes <= PREVIEW_JSON_BYTES_MAX
        };
        let count = rows.iter().take_while(|row| fits(row)).count();
        let more = more || count < rows.len();
        rows.truncate(count);
        Self { columns, columns_left_out, rows, more }
    }
}

/// Bytes of a cell as JSON, with a comma: control characters take six.
fn cell_json_bytes(cell: Option<&str>) -> usize {
    let text_bytes = |byte: u8| match byte {
        0..0x20 | 0x7f => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    cell.map_or("null,".len(), |text| 3 + text.bytes().map(text_bytes).sum::<usize>())
}
