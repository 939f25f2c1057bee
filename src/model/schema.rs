//! The columns of a part: names and types.

use std::{collections::HashMap, fmt, hash::Hasher};

use serde::{Deserialize, Serialize};
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::limits::{PACKED_COLUMN_TEXT_BYTES, PACKED_FILE_TEXT_BYTES};

/// The narrowest type that holds all cells of a column without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// Integers in canonical decimal form.
    Int64,
    /// JSON numbers of at most 17 significant digits, at least one of which is not an integer.
    Float64,
    /// `true` and `false`.
    Boolean,
    /// `2026-11-20`: days since 1970-01-01.
    Date32,
    /// `2026-11-20T08:48:57.123456`: microseconds, no time zone.
    Timestamp,
    /// The same with a `Z` at the end of every cell.
    TimestampUtc,
    /// Anything else.
    Utf8,
}

impl ColumnType {
    /// Every type, in the order of their declaration.
    pub const ALL: [Self; 7] =
        [Self::Int64, Self::Float64, Self::Boolean, Self::Date32, Self::Timestamp, Self::TimestampUtc, Self::Utf8];

    /// Whether the text of every cell follows from its value in Parquet. A column of doubles has `1.5` for `1.50`, too.
    pub fn keeps_texts(self) -> bool {
        match self {
            Self::Int64 | Self::Date32 | Self::Utf8 => true,
            Self::Float64 | Self::Boolean | Self::Timestamp | Self::TimestampUtc => false,
        }
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int64 => "Int64",
            Self::Float64 => "Float64",
            Self::Boolean => "Boolean",
            Self::Date32 => "Date32",
            Self::Timestamp => "Timestamp",
            Self::TimestampUtc => "Timestamp (UTC)",
            Self::Utf8 => "Utf8",
        })
    }
}

/// A column of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The name in the header.
    pub name: String,
    /// The type of all cells.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// The number of empty cells.
    pub nulls: u64,
}

/// Bytes that columns with these names may take in the receipt of a segment, as JSON, whatever their figures are.
pub fn packed_text_bytes<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    // As serde_json escapes them; of the control characters only some need six bytes.
    let bytes = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    let names = names.map(|name| PACKED_COLUMN_TEXT_BYTES + name.bytes().map(bytes).sum::<usize>());
    PACKED_FILE_TEXT_BYTES + names.sum::<usize>()
}

/// A column's name, as the registry knows it, and its type in a part.
#[derive(Clone, Copy, Debug)]
pub struct TypedName {
    /// The [`name_hash`] of the name.
    pub hash: u64,
    /// The type.
    pub column_type: ColumnType,
}

impl TypedName {
    /// Name and type of a column.
    pub fn of(column: &Column) -> Self {
        Self { hash: name_hash(&column.name), column_type: column.column_type }
    }
}

/// Names and types of columns. Parts with the same columns share one schema.
#[derive(Debug)]
pub struct Schema {
    columns: Vec<(String, ColumnType)>,
    index_of: HashMap<String, usize>,
    name_hashes: Vec<u64>,
    hash: u128,
    bytes: usize,
}

impl Schema {
    /// The schema of a receipt's columns.
    pub fn of(columns: &[Column]) -> Self {
        const ENTRY_BYTES: usize = 156; // with the figures that the registry keeps of each column
        Self {
            columns: columns.iter().map(|c| (c.name.clone(), c.column_type)).collect(),
            index_of: columns.iter().enumerate().map(|(i, c)| (c.name.clone(), i)).collect(),
            name_hashes: columns.iter().map(|column| name_hash(&column.name)).collect(),
            hash: Self::hash_of(columns),
            bytes: columns.iter().map(|c| 2 * c.name.len() + ENTRY_BYTES).sum(),
        }
    }

    /// Index and type of the column with this name.
    pub fn find(&self, name: &str) -> Option<(usize, ColumnType)> {
        let index = *self.index_of.get(name)?;
        Some((index, self.columns[index].1))
    }

    /// The number of columns.
    pub fn columns_count(&self) -> usize {
        self.columns.len()
    }

    /// The [`Self::hash`] of the schema of these columns.
    pub fn hash_of(columns: &[Column]) -> u128 {
        let mut hash = XxHash3_128::new();
        for Column { name, column_type, .. } in columns {
            hash.write(&(name.len() as u64).to_le_bytes());
            hash.write(name.as_bytes());
            hash.write(&[*column_type as u8]);
        }
        hash.finish_128()
    }

    /// A hash of all names and types, in the order of the file.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// The [`name_hash`] of each name, in the order of the file.
    pub fn name_hashes(&self) -> &[u64] {
        &self.name_hashes
    }

    /// Names and types as the registry knows them, in the order of the file.
    pub fn typed_names(&self) -> impl Iterator<Item = TypedName> {
        let columns = self.name_hashes.iter().zip(&self.columns);
        columns.map(|(hash, (_, column_type))| TypedName { hash: *hash, column_type: *column_type })
    }

    /// Bytes that the columns may take in the receipt of a segment.
    pub fn text_bytes(&self) -> usize {
        packed_text_bytes(self.columns.iter().map(|(name, _)| name.as_str()))
    }

    /// Approximate size in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The names, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.columns.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Names and types, in the order of the file.
    pub fn columns(&self) -> &[(String, ColumnType)] {
        &self.columns
    }
}

/// The hash of a column's name, by which the registry counts the names of the table.
pub fn name_hash(name: &str) -> u64 {
    let mut hash = XxHash3_64::with_seed(0);
    hash.write(name.as_bytes());
    hash.finish()
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.columns == other.columns
    }
}
