//! Errors as problem details (RFC 9457), with their position as data, so that a program can show the cell that is wrong.

use axum::{
    Json,
    extract::rejection::QueryRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::errors::{Fault, RETRY_AFTER_S, ShuttingDown, TaskError, status_of};
use crate::{
    error::{
        ColumnPosition, Error,
        csv::{CellFault, CsvError},
        dialect::DialectError,
        foreign_file::{ForeignFile, Separator, Use},
    },
    limits::PROBLEM_TEXT_CHARS_MAX,
};

/// The media type of problem details.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was refused.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    fault: Option<Fault>,
    details: Box<ProblemDetails>,
}

/// What is wrong with a request, and where (RFC 9457). What is not known is absent.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(examples(json!({
    "type": "about:blank", "title": "Bad Request", "status": 400,
    "detail": "row 7 (line 9), column \"qty\": text after a closing quote: a quote inside a quoted cell is written twice",
    "field": "file", "row": 7, "line": 9, "column": "qty", "column_index": 2
})))]
pub(super) struct ProblemDetails {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[schema(value_type = String)]
    r#type: &'static str,
    /// The reason phrase of the status.
    #[schema(value_type = String)]
    title: &'static str,
    status: u16,
    /// What is wrong, where, and what to do, for people.
    detail: String,
    /// The part of the request that is wrong: the name of a parameter or header, `query`, or `file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    field: Option<&'static str>,
    /// The part of the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    part: Option<u64>,
    /// The data row, from 1; 0 is the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    row: Option<u64>,
    /// The line of the file on which the row begins, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    line: Option<u64>,
    /// The column's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    column: Option<String>,
    /// The index of the column, from 0; of a row with too many cells, that of the first one too many, or of the first of these that has a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    column_index: Option<usize>,
    /// The cell's text; cut after 256 characters, and then it ends with `…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cell: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    hint: Option<String>,
    /// The name of the file in the form.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    file: Option<String>,
    /// The index of the file in the form, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    index: Option<usize>,
    /// The parts that were added from the files before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    uploaded: Option<Vec<u64>>,
}

impl Problem {
    /// A problem of the request as a whole.
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let details = ProblemDetails {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: detail.into(),
            ..ProblemDetails::default()
        };
        Self { status, fault: None, details: Box::new(details) }
    }

    /// A parameter or header that is wrong.
    pub(super) fn bad_request(field: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail).of_field(field)
    }

    /// The same problem, of this part of the request.
    pub(super) fn of_field(mut self, field: &'static str) -> Self {
        self.details.field = Some(field);
        self
    }

    /// The same problem, of this part of the request if the request is what is wrong.
    pub(super) fn of_input(self, field: &'static str) -> Self {
        if self.status == StatusCode::BAD_REQUEST { self.of_field(field) } else { self }
    }

    /// The same problem, of one of several files. `uploaded` are the parts of the files before it.
    pub(super) fn of_file(mut self, name: Option<&str>, index: usize, uploaded: Vec<u64>) -> Self {
        self.details.file = name.map(cut);
        self.details.index = Some(index);
        self.details.uploaded = Some(uploaded);
        self
    }

    #[cfg(test)]
    pub(super) fn field_and_detail(&self) -> (Option<&'static str>, &str) {
        (self.details.field, &self.details.detail)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = status_of(&error);
        let position = error.position();
        let mut problem = Self { fault: Fault::of(status, &error), ..Self::new(status, error.to_string()) };
        let details = &mut problem.details;
        (details.row, details.line) = (position.row, position.line);
        details.part = position.part.map(|part| part.get()).or(part_of(&error));
        match position.column {
            Some(ColumnPosition::Name(name)) => details.column = Some(name.to_owned()),
            Some(ColumnPosition::Index(index)) => details.column_index = Some(index),
            None => {}
        }
        details.column_index = details.column_index.or(column_index_of(&error));
        details.cell = cell_of(&error).map(cut);
        details.hint = hint_of(&error);
        problem
    }
}

impl From<TaskError> for Problem {
    fn from(error: TaskError) -> Self {
        let TaskError { status, field, message, fault } = error;
        let problem = Self { fault, ..Self::new(status, message) };
        if field == "request" { problem } else { problem.of_field(field) }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request("query", rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, fault, details } = self;
        let mut response = (status, Json(details)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        fault.map(|fault| response.extensions_mut().insert(fault));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.extensions_mut().insert(ShuttingDown);
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
        }
        response
    }
}

/// The beginning of a text from a client.
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(PROBLEM_TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The part that an error is about, if that is no position in the data.
fn part_of(error: &Error) -> Option<u64> {
    match error {
        Error::NoSuchPart { part } | Error::NotInQuarantine { part } => Some(*part),
        Error::InQuarantine { part } | Error::KeyUsed { part, .. } | Error::PartRemoved { part, .. } => {
            Some(part.get())
        }
        Error::PartsMissing { first, .. } | Error::RemovedRows { first, .. } => Some(first.get()),
        _no_part => None,
    }
}

fn column_index_of(error: &Error) -> Option<usize> {
    match error {
        Error::Csv(CsvError::Cell { position, .. }) => Some(position.column_index),
        Error::Csv(CsvError::Ragged { cells, header_cells, first_extra, .. }) if cells > header_cells => {
            Some(*first_extra)
        }
        Error::Dialect(DialectError::LongWhiteSpace { column, .. }) => usize::try_from(column.saturating_sub(1)).ok(),
        _unknown => None,
    }
}

fn cell_of(error: &Error) -> Option<&str> {
    match error {
        Error::Cell { cell, .. } | Error::Csv(CsvError::Summand { cell, .. }) => Some(cell),
        _no_cell => None,
    }
}

/// What the sender of a request can do about an error, in the words of the HTTP API: messages name the flags of `tally`.
fn hint_of(error: &Error) -> Option<String> {
    let again = |query: &str| Some(format!("send it again with ?{query}"));
    match error {
        Error::Csv(CsvError::Foreign { file, used_for: Use::Upload }) => match file {
            ForeignFile::Separated(separator) => again(&format!("delimiter={}", in_query(*separator))),
            ForeignFile::SeparatorLine(Some(separator)) => {
                Some(format!("remove the first line, and send it with ?delimiter={}", in_query(*separator)))
            }
            ForeignFile::SeparatorLine(None) => Some("remove the first line".to_owned()),
            ForeignFile::Utf16Le => again("encoding=utf-16le"),
            ForeignFile::Utf16Be => again("encoding=utf-16be"),
            ForeignFile::Gzip => again("decompress=gzip"),
            ForeignFile::Zstd => again("decompress=zstd"),
            _no_option => None,
        },
        Error::Csv(CsvError::Cell { problem: CellFault::NotUtf8 { used_for: Use::Upload, .. }, .. }) => {
            again("encoding=windows-1252")
        }
        Error::Csv(CsvError::Cell { problem: CellFault::TextAfterQuote | CellFault::UnclosedQuote, .. }) => {
            Some("write a quote inside a quoted cell twice".to_owned())
        }
        Error::Csv(CsvError::Ragged { extra_are_empty: true, used_for: Use::Upload, .. }) => {
            again("drop_trailing_empty=true")
        }
        Error::Csv(CsvError::Ragged { .. }) => {
            Some("put quotes around a cell that has a comma in it, or fill the row up with empty cells".to_owned())
        }
        Error::Dialect(DialectError::LongWhiteSpace { .. }) => Some("send it without trim".to_owned()),
        Error::RemovedRows { .. } => again("with_removed=true"),
        Error::KeyUsed { .. } => Some("use a new Idempotency-Key".to_owned()),
        Error::Cell { .. } | Error::ColumnSum(_) => None,
        _says_it_itself => None,
    }
}

fn in_query(separator: Separator) -> &'static str {
    match separator {
        Separator::Semicolon => "%3B",
        Separator::Tab => "tab",
        Separator::Pipe => "%7C",
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use crate::{
        error::csv::{CellPosition, CellProblem, FileRow},
        model::part::PartId,
    };

    fn json_of(problem: &Problem) -> serde_json::Value {
        serde_json::to_value(&problem.details).expect("JSON")
    }

    #[test]
    fn the_cell_that_is_wrong_is_data() {
        let part = PartId::new(12).expect("a number");
        let (column, cell) = ("qty".to_owned(), "é".repeat(300));
        let problem = Problem::from(Error::Cell { part, row: 7, column, cell, problem: CellProblem::NotAnInteger });
        let found = json_of(&problem);
        for (name, expected) in [("part", 12), ("row", 7), ("status", 400)] {
            assert_eq!(found[name], expected, "{name}");
        }
        assert_eq!((&found["column"], &found["title"]), (&"qty".into(), &"Bad Request".into()));
        assert_eq!(found["cell"], "é".repeat(256) + "…");
        assert!(found.get("line").is_none() && found.get("hint").is_none() && found.get("uploaded").is_none());
    }

    #[test]
    fn a_cell_of_an_upload_has_its_line_and_index() {
        let row = FileRow { number: 3, line: Some(5) };
        let position = CellPosition { row, column_index: 2, column: Some("a".to_owned()) };
        let error = CsvError::Cell { position, problem: CellFault::NotUtf8 { byte: 0xff, used_for: Use::Upload } };
        let found = json_of(&Problem::from(Error::from(error)).of_input("file").of_file(Some("x.csv"), 1, vec![4]));
        for (name, expected) in [("row", 3), ("line", 5), ("column_index", 2), ("index", 1)] {
            assert_eq!(found[name], expected, "{name}");
        }
        assert_eq!((&found["field"], &found["column"]), (&"file".into(), &"a".into()));
        assert_eq!(found["hint"], "send it again with ?encoding=windows-1252");
        assert_eq!((&found["file"], &found["uploaded"][0]), (&"x.csv".into(), &4.into()));
    }

    #[test]
    fn the_first_cell_too_many_is_marked() {
        let row = FileRow { number: 3, line: None };
        let ragged = |cells| CsvError::Ragged {
            row,
            cells,
            header_cells: 2,
            first_extra: 3,
            extra_are_empty: false,
            used_for: Use::Upload,
        };
        assert_eq!(json_of(&Problem::from(Error::from(ragged(4))))["column_index"], 3);
        assert!(json_of(&Problem::from(Error::from(ragged(1)))).get("column_index").is_none());
    }
}
