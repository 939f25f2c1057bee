//! The parameters and the JSON of questions about the table.

use std::time::Duration;

use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::parameters::{Pairs, Parameters};
use crate::{
    api::http::problem::Problem,
    engine::{
        ColumnSum, ColumnSummary, ColumnsPage, Overview, Read,
        group_by::spec::GroupBy,
        survey::{names::SurveyNames, question::Best},
    },
    error::{Error, quoted::Quoted},
    limits::GROUP_TOP_MAX,
    model::{format::Format, schema::ColumnType},
};

/// The figures of the whole table.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "parts": 12, "parts_max": 100_000, "rows": 120, "columns": 3, "csv_bytes": 3400, "parquet_bytes": 5100,
    "quarantined": 0, "removed": 1, "version": "0.9.0"
})))]
pub(super) struct TableOverview {
    parts: usize,
    /// How many there may be.
    parts_max: usize,
    /// Data rows of all parts.
    rows: u64,
    /// Different names of columns; those beyond 28,672 are not counted.
    columns: usize,
    /// Bytes of all CSV files.
    csv_bytes: u64,
    /// Bytes of all Parquet files.
    parquet_bytes: u64,
    /// Damaged parts whose loss no operator has accepted.
    quarantined: usize,
    /// Removed parts that still have files.
    removed: usize,
    /// The server's version.
    #[schema(value_type = String)]
    version: &'static str,
}

impl From<Overview> for TableOverview {
    fn from(overview: Overview) -> Self {
        let Overview {
            parts, parts_max, rows, columns, csv_bytes, parquet_bytes, parts_missing, parts_removed, ..
        } = overview;
        Self {
            parts,
            parts_max,
            rows,
            columns,
            csv_bytes,
            parquet_bytes,
            quarantined: parts_missing,
            removed: parts_removed,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// Which columns are listed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes the parameters for the OpenAPI")]
pub(super) struct ColumnsQuery {
    /// Only names after this one.
    after: Option<String>,
    /// At most so many: 1,000 or less. A page has about 64 KiB, so it may have fewer.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Columns of the table.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "columns": [{
        "name": "x", "types": [{"type": "int64", "parts": 3}], "parts": 3, "rows": 10, "nulls": 1, "parquet_bytes": 99,
        "parts_without_bytes": 0
    }],
    "table_parts": 5, "next": null, "complete": true
})))]
pub(super) struct TableColumns {
    columns: Vec<TableColumn>,
    /// How many parts the table has, with and without these columns.
    table_parts: usize,
    /// The last name of this page, to be passed as `after`; null if there are no more columns.
    next: Option<String>,
    /// Whether all parts are counted. Otherwise more parts than the server's memory allows have headers of their own, or a
    /// receipt was damaged when its part was removed: names may be missing, and figures be too small or too large.
    complete: bool,
}

#[derive(Serialize, ToSchema)]
struct TableColumn {
    name: String,
    /// Each type that it has, and how many parts have it with this type.
    types: Vec<TypeInParts>,
    /// How many parts have it.
    parts: u64,
    /// Data rows of these parts.
    rows: u64,
    /// Empty cells.
    nulls: u64,
    /// Bytes of its column chunks in the Parquet files.
    parquet_bytes: u64,
    /// Parts whose receipts do not say how many bytes the column has, because an older version wrote them.
    parts_without_bytes: u64,
}

#[derive(Serialize, ToSchema)]
struct TypeInParts {
    #[schema(value_type = String, examples("int64"))]
    r#type: ColumnType,
    parts: u64,
}

impl From<ColumnsPage> for TableColumns {
    fn from(page: ColumnsPage) -> Self {
        let ColumnsPage { columns, table_parts, has_more, is_complete } = page;
        let next = columns.last().filter(|_| has_more).map(|column| column.name.clone());
        let columns = columns.into_iter().map(TableColumn::from).collect();
        Self { columns, table_parts, next, complete: is_complete }
    }
}

impl From<ColumnSummary> for TableColumn {
    fn from(column: ColumnSummary) -> Self {
        let ColumnSummary { name, types, rows, nulls, parquet_bytes, parts_without_bytes } = column;
        let parts = types.iter().map(|(_, parts)| parts).sum();
        let types = types.into_iter().map(|(r#type, parts)| TypeInParts { r#type, parts }).collect();
        Self { name, types, parts, rows, nulls, parquet_bytes, parts_without_bytes }
    }
}

/// What is summed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes the parameters for the OpenAPI")]
pub(super) struct SumQuery {
    /// The column's name, as in the header.
    column: String,
    /// Which files are read: `csv` (the default) or `parquet`. Both give the same sum.
    #[param(inline)]
    format: Option<SumFormat>,
}

/// The names of the formats, for the OpenAPI.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "it describes the parameter for the OpenAPI")]
enum SumFormat {
    Csv,
    Parquet,
}

/// The format that the parameter names.
pub(super) fn to_format(query: &mut Parameters) -> Result<Format, Problem> {
    let format = query.choice("format", &[("csv", Format::Csv), ("parquet", Format::Parquet)])?;
    Ok(format.unwrap_or(Format::Csv))
}

/// An exact sum, and what was read for it.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "column": "x", "format": "csv", "total": 12, "elapsed_ms": 1.23, "bytes": 100, "parts": 3, "rows": 10, "table_parts": 5
})))]
pub(super) struct TableSum {
    column: String,
    #[schema(value_type = String)]
    format: String,
    total: Total,
    elapsed_ms: f64,
    /// Bytes of the CSV files, or of the column's chunks in the Parquet files.
    bytes: u64,
    /// How many parts have the column.
    parts: u64,
    /// Data rows of these parts.
    rows: u64,
    /// How many parts the table has.
    table_parts: usize,
    /// What may be wrong with the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    hint: Option<String>,
}

impl TableSum {
    pub(super) fn of(column: String, format: Format, sum: ColumnSum, elapsed: Duration, table_parts: usize) -> Self {
        let ColumnSum { total, read: Read { parts, rows, bytes } } = sum;
        let hint = (parts == 0).then(|| format!("no part has a column {}", Quoted(&column)));
        let (format, elapsed_ms) = (format.to_string(), to_ms(elapsed));
        Self { column, format, total: total.into(), elapsed_ms, bytes, parts, rows, table_parts, hint }
    }
}

/// A duration in ms, exact to 1 µs.
pub(super) fn to_ms(elapsed: Duration) -> f64 {
    elapsed.as_micros() as f64 / 1000.0
}

/// A total: a number, or, from 2^53 in magnitude on, which many programs cannot read exactly from JSON, a string of its digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Total {
    Number(i64),
    #[schema(examples("9007199254740993"))]
    Digits(String),
}

impl From<i64> for Total {
    fn from(total: i64) -> Self {
        const EXACT_MAX: u64 = 1 << 53;
        if total.unsigned_abs() < EXACT_MAX { Self::Number(total) } else { Self::Digits(total.to_string()) }
    }
}

/// What is grouped and summed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes the parameters for the OpenAPI")]
pub(super) struct GroupsQuery {
    /// A column to group by; may be repeated.
    #[param(explode, style = Form)]
    by: Vec<String>,
    /// A column to sum; may be repeated.
    #[param(explode, style = Form)]
    sum: Vec<String>,
    /// `key` (the default): sorted by the bytes of the cells. `total`: the groups with the largest totals in the first column
    /// that is summed, the largest first, equal ones by their cells; it needs `limit`.
    #[param(inline)]
    order: Option<GroupOrder>,
    /// At most so many groups; up to 10,000 with `order=total`.
    #[param(minimum = 1)]
    limit: Option<u64>,
    /// `json` (the default), `ndjson` or `csv`.
    #[param(inline)]
    format: Option<GroupFormat>,
}

/// The names of the orders, for the OpenAPI.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "it describes the parameter for the OpenAPI")]
enum GroupOrder {
    Key,
    Total,
}

/// How groups are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum GroupFormat {
    /// One JSON object.
    Json,
    /// A JSON object for each group, each on a line.
    Ndjson,
    /// A header, and a row for each group.
    Csv,
}

/// A question for group sums.
pub(super) struct AskedGroups {
    pub(super) spec: GroupBy,
    pub(super) format: GroupFormat,
    pub(super) limit: Option<u64>,
    /// How many groups are wanted by rank.
    pub(super) top: Option<usize>,
}

/// The question that the parameters ask.
pub(super) fn to_groups(pairs: Pairs) -> Result<AskedGroups, Problem> {
    let mut query = Parameters::of(pairs, &["by", "sum", "order", "limit", "format"])?;
    let formats = [("json", GroupFormat::Json), ("ndjson", GroupFormat::Ndjson), ("csv", GroupFormat::Csv)];
    let format = query.choice("format", &formats)?.unwrap_or(GroupFormat::Json);
    let is_by_total = query.choice("order", &[("key", false), ("total", true)])?.unwrap_or(false);
    let (limit, top) = if is_by_total {
        let count = query.number("limit", 1..=GROUP_TOP_MAX)?;
        let count = count.ok_or_else(|| {
            Problem::bad_request("limit", format!("order=total needs a limit, up to {GROUP_TOP_MAX}"))
        })?;
        (None, Some(count))
    } else {
        (query.number("limit", 1..=u64::MAX)?, None)
    };
    let (by, sum) = (query.all("by"), query.all("sum"));
    let field = if by.is_empty() {
        "by"
    } else if sum.is_empty() {
        "sum"
    } else {
        "query"
    };
    let spec = GroupBy::new(by, sum).map_err(|error| Problem::from(Error::from(error)).of_field(field))?;
    Ok(AskedGroups { spec, format, limit, top })
}

/// Group sums.
#[derive(ToSchema)]
#[schema(examples(json!({
    "by": ["Song"], "sum": ["Plays"], "groups": [{"key": ["a"], "totals": [12]}], "more": false, "elapsed_ms": 1.5
})))]
#[allow(dead_code, reason = "it describes the answer for the OpenAPI")]
pub(super) struct TableGroups {
    /// The columns that were grouped by.
    by: Vec<String>,
    /// The columns that were summed.
    sum: Vec<String>,
    groups: Vec<TableGroup<'static>>,
    /// Whether `limit` left groups out.
    more: bool,
    /// With `order=total`: how many groups there are.
    #[schema(nullable = false)]
    groups_count: Option<u64>,
    /// Until all sums were complete.
    elapsed_ms: f64,
}

/// A group.
#[derive(Serialize, ToSchema)]
pub(super) struct TableGroup<'a> {
    /// Its cells, in the order of `by`.
    #[schema(value_type = Vec<String>)]
    pub(super) key: &'a [String],
    /// Its totals, in the order of `sum`.
    pub(super) totals: Vec<Total>,
}

/// Which questions are listed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes the parameters for the OpenAPI")]
pub(super) struct QuestionsQuery {
    /// At most so many: 1,000 or less.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// The questions of the survey.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"questions": [{"question": "Percent of adults ...", "rows": 1400, "best": "min"}], "complete": true})))]
pub(super) struct SurveyQuestions {
    questions: Vec<ListedQuestion>,
    /// Whether these are all. A list has about 64 KiB.
    complete: bool,
}

#[derive(Serialize, ToSchema)]
struct ListedQuestion {
    question: String,
    /// Rows with a value.
    rows: u64,
    /// Which mean is the best: `min` or `max`.
    #[schema(value_type = String)]
    best: Best,
}

impl SurveyQuestions {
    pub(super) fn of(names: SurveyNames, limit: usize) -> Self {
        let SurveyNames { rows_of, is_complete } = names;
        let complete = is_complete && rows_of.len() <= limit;
        let listed = |(question, rows): (String, u64)| ListedQuestion { best: Best::of(&question), question, rows };
        Self { questions: rows_of.into_iter().take(limit).map(listed).collect(), complete }
    }
}

/// Of which question the states are.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes the parameters for the OpenAPI")]
pub(super) struct StatesQuery {
    /// Only states with rows of this question.
    question: Option<String>,
}

/// The states of the survey.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"states": ["Alabama", "Ohio"], "complete": true})))]
pub(super) struct SurveyStates {
    states: Vec<String>,
    /// Whether these are all. A list has about 64 KiB.
    complete: bool,
}

impl From<SurveyNames> for SurveyStates {
    fn from(names: SurveyNames) -> Self {
        Self { states: names.rows_of.into_keys().collect(), complete: names.is_complete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_beyond_53_bits_are_strings() {
        const EDGE: i64 = 1 << 53;
        for (total, expected) in [
            (0, "0"),
            (EDGE - 1, "9007199254740991"),
            (1 - EDGE, "-9007199254740991"),
            (EDGE, "\"9007199254740992\""),
            (-EDGE, "\"-9007199254740992\""),
            (i64::MIN, "\"-9223372036854775808\""),
            (i64::MAX, "\"9223372036854775807\""),
        ] {
            assert_eq!(serde_json::to_string(&Total::from(total)).expect("JSON"), expected);
        }
    }
}
