//! Conversions between the engine's types and those of protobuf and gRPC. Nothing else in this folder converts.

use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    engine::{
        ColumnSum, MissingParts, Read, RestorablePart, StreamOptions, TableColumn, TypeInParts, UnreadablePart,
        group_by::output::Group,
        parts::table_files::{FilesHead, FilesPage, RemovedRows, TableFile},
        scrub::{DamagedFile, Progress},
    },
    error::{Error, Kind},
    model::{
        dialect::{Dialect, NullTexts, Source},
        format::Format,
        idempotency_key::IdempotencyKey,
        part::{FileInfo, PartId, Receipt},
        schema::{Column, ColumnType},
    },
    proto::pb::tally,
};

/// The gRPC status of an error.
pub(super) fn to_status(error: &Error) -> Status {
    let code = match error.kind() {
        Kind::Input | Kind::Malformed => Code::InvalidArgument,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Unsupported => Code::Unimplemented,
        Kind::Cancelled => Code::Aborted,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict => Code::FailedPrecondition,
        Kind::DataLoss => Code::DataLoss,
        Kind::Internal => Code::Internal,
    };
    let mut status = Status::new(code, error.to_string());
    if let Error::Quota { retry_s, .. } = error {
        push_back(&mut status, *retry_s);
    }
    status
}

/// Says when the client may come again, as gRPC's retry design has it (proposal A6).
pub(super) fn push_back(status: &mut Status, seconds: u64) {
    status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(seconds.saturating_mul(1000)));
}

/// The answer to a call of `Table` or `NumStore`. An error that the caller can fix goes into the answer's `error` field,
/// as the clients of the course projects expect; any other is a status.
pub(super) fn to_reply<T, R>(result: Result<T, Error>, ok: fn(T) -> R, bad: fn(String) -> R) -> Result<R, Status> {
    match result {
        Ok(value) => Ok(ok(value)),
        Err(error) if error.kind() == Kind::Input => Ok(bad(error.to_string())),
        Err(error) => Err(to_status(&error)),
    }
}

/// The error of a request's body: it is malformed, or the client has interrupted it.
pub(super) fn from_status(status: &Status) -> Error {
    let message = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument => Error::Malformed(message),
        Code::Unimplemented => Error::Unsupported(message),
        Code::Aborted | Code::Cancelled => Error::Aborted(message),
        _ => Error::Internal(format!("request stream: {message}")),
    }
}

pub(super) fn to_files_head(head: FilesHead, folder: &str) -> tally::FilesHead {
    let FilesHead { parts, rows, segments, removed_parts } = head;
    let [parts, segments, removed_parts] = [parts, segments, removed_parts].map(|count| count as u64);
    tally::FilesHead { parts, rows, segments, removed_parts, folder: folder.to_owned() }
}

pub(super) fn to_files_page(page: FilesPage) -> tally::ListFilesResponse {
    let file = |TableFile { path, first, last, parts, rows, offset, bytes }| {
        let (first_part, last_part) = (first.get(), last.get());
        tally::TableFile { path, first_part, last_part, parts, rows, offset, bytes }
    };
    let removed =
        |RemovedRows { path, part, first_row, rows }| tally::RemovedRows { path, part: part.get(), first_row, rows };
    let mut answer = tally::ListFilesResponse::default();
    match page {
        FilesPage::Files(files) => answer.files = files.into_iter().map(file).collect(),
        FilesPage::Removed(rows) => answer.removed = rows.into_iter().map(removed).collect(),
        FilesPage::End => {}
    }
    answer
}

pub(super) fn to_group_block(groups: Vec<Group>) -> tally::GroupBlock {
    let group = |Group { cells, totals }| tally::Group { cells, totals };
    tally::GroupBlock { groups: groups.into_iter().map(group).collect() }
}

/// Errors: it is no format that there is.
pub(super) fn to_format(format: i32) -> Result<Format, Error> {
    match tally::Format::try_from(format) {
        Ok(tally::Format::Csv) => Ok(Format::Csv),
        Ok(tally::Format::Parquet) => Ok(Format::Parquet),
        Ok(tally::Format::Unspecified) | Err(_) => {
            Err(Error::Malformed(format!("formats: {format} is no format: there are CSV (1) and PARQUET (2)")))
        }
    }
}

pub(super) fn to_format_sum(sum: ColumnSum, format: Format, elapsed: Duration) -> tally::FormatSum {
    let ColumnSum { total, read: Read { parts, rows, bytes } } = sum;
    let format = match format {
        Format::Csv => tally::Format::Csv,
        Format::Parquet => tally::Format::Parquet,
    };
    let elapsed_ms = elapsed.as_secs_f64() * 1000.0;
    tally::FormatSum { format: format.into(), total, elapsed_ms, bytes, parts, rows }
}

pub(super) fn to_quarantine(missing: &MissingParts) -> tally::ListQuarantineResponse {
    let parts = missing.listed().iter().map(|id| id.get()).collect();
    tally::ListQuarantineResponse { parts, count: missing.count() as u64 }
}

pub(super) fn to_removed(parts: Vec<RestorablePart>) -> tally::ListRemovedResponse {
    let removed = |it: RestorablePart| tally::RemovedPart {
        part: it.part.get(),
        rows: it.rows,
        csv_bytes: it.csv_bytes,
        parquet_bytes: it.parquet_bytes,
        removed_at: it.removed_at,
        restorable_until: it.restorable_until,
    };
    tally::ListRemovedResponse { parts: parts.into_iter().map(removed).collect() }
}

pub(super) fn to_progress(Progress { files, bytes, damaged }: Progress) -> tally::VerifyProgress {
    let damaged = damaged.into_iter().map(|DamagedFile { file, what }| tally::DamagedFile { file, what });
    tally::VerifyProgress { files, bytes, damaged: damaged.collect() }
}

pub(super) fn to_receipt(receipt: Receipt) -> tally::Receipt {
    tally::Receipt {
        part: receipt.part.get(),
        rows: receipt.rows,
        columns: receipt.columns.into_iter().map(to_column).collect(),
        csv: Some(to_file(receipt.csv)),
        parquet: Some(to_file(receipt.parquet)),
        uploaded_at: receipt.uploaded_at,
        replayed: false,
        source: receipt.source.map(|source| to_source(*source)),
        damaged: String::new(),
        segment: receipt.segment.map(|segment| segment.to_string()).unwrap_or_default(),
    }
}

/// A part in the list whose receipt cannot be read.
pub(super) fn to_unreadable(part: UnreadablePart) -> tally::Receipt {
    let file = |bytes| Some(tally::File { bytes, xxh3: String::new() });
    tally::Receipt {
        part: part.part.get(),
        rows: part.rows,
        csv: file(part.csv_bytes),
        parquet: file(part.parquet_bytes),
        damaged: part.what,
        ..tally::Receipt::default()
    }
}

fn to_source(source: Source) -> tally::Source {
    let Source { delimiter, encoding, null, trim, drop_trailing_empty, decompress, bytes, xxh3 } = source;
    let options = tally::UploadOptions {
        delimiter: delimiter.unwrap_or_default(),
        encoding: encoding.unwrap_or_default(),
        null,
        trim,
        drop_trailing_empty,
        decompress: decompress.unwrap_or_default(),
        idempotency_key: String::new(),
    };
    tally::Source { options: Some(options), file: Some(tally::File { bytes, xxh3 }) }
}

/// What the options of an upload say. `message`: of `UploadOptions`.
pub(super) fn to_stream_options(message: &[u8]) -> Result<StreamOptions, Error> {
    let options =
        tally::UploadOptions::decode(message).map_err(|error| Error::Malformed(format!("options: {error}")))?;
    let tally::UploadOptions { delimiter, encoding, null, trim, drop_trailing_empty, decompress, idempotency_key } =
        options;
    let given = |text: String| (!text.is_empty()).then_some(text);
    let key = given(idempotency_key).map(|text| IdempotencyKey::parse(text.as_bytes())).transpose();
    let dialect = Dialect {
        delimiter: given(delimiter).map(|text| text.parse()).transpose()?,
        encoding: given(encoding).map(|text| text.parse()).transpose()?,
        null: NullTexts::new(null)?,
        trim,
        drop_trailing_empty,
        decompress: given(decompress).map(|text| text.parse()).transpose()?,
    };
    Ok(StreamOptions { dialect, key: key.map_err(|invalid| Error::Malformed(format!("options: {invalid}")))? })
}

pub(super) fn to_table_column(column: TableColumn, table_parts: u64) -> tally::TableColumn {
    let types = column.types.into_iter().map(|TypeInParts { column_type, parts, first_parts }| tally::TypeInParts {
        r#type: to_column_type(column_type).into(),
        parts,
        first_parts: first_parts.into_iter().map(PartId::get).collect(),
    });
    tally::TableColumn { types: types.collect(), name: column.name, table_parts }
}

fn to_column(Column { name, column_type, nulls }: Column) -> tally::Column {
    tally::Column { name, r#type: to_column_type(column_type).into(), nulls }
}

fn to_column_type(column_type: ColumnType) -> tally::ColumnType {
    match column_type {
        ColumnType::Int64 => tally::ColumnType::Int64,
        ColumnType::Float64 => tally::ColumnType::Float64,
        ColumnType::Boolean => tally::ColumnType::Boolean,
        ColumnType::Date32 => tally::ColumnType::Date32,
        ColumnType::Timestamp => tally::ColumnType::Timestamp,
        ColumnType::TimestampUtc => tally::ColumnType::TimestampUtc,
        ColumnType::Utf8 => tally::ColumnType::Utf8,
    }
}

fn to_file(FileInfo { bytes, xxh3 }: FileInfo) -> tally::File {
    tally::File { bytes, xxh3 }
}
