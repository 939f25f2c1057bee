//! The parameters and the JSON of the table's parts. Receipts have the fields of the `N.json` files of the data folder.

use axum::http::StatusCode;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::errors::TaskError;
use crate::{
    error::{Error, quoted::Quoted},
    model::{
        dialect::{Dialect, InvalidDialect, NullTexts, Source},
        part::{FileInfo, Receipt},
        schema::{Column, ColumnType},
    },
};

/// What distinguishes a file from plain CSV, for the OpenAPI. Without parameters it is stored byte for byte.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes the parameters for the OpenAPI")]
pub(super) struct DialectQuery {
    /// What separates cells: one ASCII character, or `tab`.
    #[param(example = ";")]
    delimiter: Option<String>,
    /// The encoding, by a name of the WHATWG Encoding Standard.
    #[param(example = "windows-1252")]
    encoding: Option<String>,
    /// A cell with this text has no value; may be repeated.
    #[param(explode, style = Form)]
    null: Option<Vec<String>>,
    /// White space around names and cells is removed.
    trim: Option<bool>,
    /// Empty cells beyond the last column that has a name are removed.
    drop_trailing_empty: Option<bool>,
    /// `gzip`, `zstd`, or `auto`: one of these if the file begins like it.
    #[param(example = "auto")]
    decompress: Option<String>,
}

/// The dialect that the parameters of a request describe; `None` if there are none.
///
/// Errors: a parameter that does not exist, that occurs twice, or whose value is not allowed.
pub(super) fn to_dialect(parameters: Vec<(String, String)>) -> Result<Option<Dialect>, TaskError> {
    if parameters.is_empty() {
        return Ok(None);
    }
    let (mut dialect, mut null, mut seen) = (Dialect::default(), Vec::new(), Vec::new());
    for (name, text) in parameters {
        let field = match name.as_str() {
            "delimiter" => "delimiter",
            "encoding" => "encoding",
            "null" => "null",
            "trim" => "trim",
            "drop_trailing_empty" => "drop_trailing_empty",
            "decompress" => "decompress",
            _ => {
                let allowed = "delimiter, encoding, null, trim, drop_trailing_empty and decompress";
                return Err(refused("query", format!("there is no parameter {}: there are {allowed}", Quoted(&name))));
            }
        };
        if field != "null" && seen.contains(&field) {
            return Err(refused(field, "it occurs twice"));
        }
        seen.push(field);
        let invalid = |error: InvalidDialect| TaskError::from(Error::from(error)).of_field(field);
        match field {
            "delimiter" => dialect.delimiter = Some(text.parse().map_err(invalid)?),
            "encoding" => dialect.encoding = Some(text.parse().map_err(invalid)?),
            "trim" => dialect.trim = to_flag(field, text).map_err(invalid)?,
            "drop_trailing_empty" => dialect.drop_trailing_empty = to_flag(field, text).map_err(invalid)?,
            "decompress" => dialect.decompress = Some(text.parse().map_err(invalid)?),
            _ => null.push(text),
        }
    }
    dialect.null = NullTexts::new(null).map_err(|error| TaskError::from(Error::from(error)).of_field("null"))?;
    Ok(Some(dialect))
}

fn refused(field: &'static str, message: impl Into<String>) -> TaskError {
    TaskError::new(StatusCode::BAD_REQUEST, field, message)
}

/// `?trim` alone means `?trim=true`.
fn to_flag(option: &'static str, text: String) -> Result<bool, InvalidDialect> {
    match text.as_str() {
        "" | "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(InvalidDialect::Flag { option, text }),
    }
}

/// A part that was added.
#[derive(Serialize, ToSchema)]
pub(super) struct PartReply {
    /// Its number.
    part: u64,
    /// Data rows; the header is not counted.
    rows: u64,
    /// In the order of the file.
    columns: Vec<PartColumn>,
    csv: StoredFile,
    parquet: StoredFile,
    /// RFC 3339, UTC.
    uploaded_at: String,
    /// The file that was sent and its dialect; absent if it was stored as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    source: Option<PartSource>,
}

#[derive(Serialize, ToSchema)]
struct PartColumn {
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
            columns: receipt.columns.into_iter().map(column).collect(),
            csv: to_file(receipt.csv),
            parquet: to_file(receipt.parquet),
            uploaded_at: receipt.uploaded_at,
            source: receipt.source.map(|source| to_source(*source)),
        }
    }
}

fn to_file(FileInfo { bytes, xxh3 }: FileInfo) -> StoredFile {
    StoredFile { bytes, xxh3 }
}

fn to_source(source: Source) -> PartSource {
    let Source { delimiter, encoding, null, trim, drop_trailing_empty, decompress, bytes, xxh3 } = source;
    PartSource { delimiter, encoding, null, trim, drop_trailing_empty, decompress, bytes, xxh3 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect_of(parameters: &[(&str, &str)]) -> Result<Option<Dialect>, (&'static str, String)> {
        let parameters = parameters.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        to_dialect(parameters.collect()).map_err(|error| (error.field, error.message))
    }

    #[test]
    fn parameters_of_a_dialect() {
        assert_eq!(dialect_of(&[]), Ok(None));
        let found =
            dialect_of(&[("delimiter", "tab"), ("null", "NA"), ("null", "-"), ("trim", ""), ("encoding", "latin1")]);
        let found = found.expect("valid").expect("some");
        assert!(found.trim && !found.drop_trailing_empty && found.null.has(b"NA") && found.null.has(b"-"));
        assert_eq!(found.encoding.map(|encoding| encoding.to_string()).as_deref(), Some("windows-1252"));
        for (parameters, field, message) in [
            (&[("delimiter", ";;")][..], "delimiter", "delimiter \";;\": it is one ASCII character"),
            (&[("encoding", "x")], "encoding", "encoding \"x\": it is a name of"),
            (&[("decompress", "xz")], "decompress", "decompress \"xz\": it is gzip, zstd or auto"),
            (&[("trim", "1")], "trim", "trim \"1\": it is true or false"),
            (&[("trim", ""), ("trim", "")], "trim", "it occurs twice"),
            (&[("separator", ";")], "query", "there is no parameter \"separator\": there are delimiter, encoding"),
        ] {
            let error = dialect_of(parameters).expect_err("refused");
            assert!(error.0 == field && error.1.starts_with(message), "{error:?}");
        }
    }
}
