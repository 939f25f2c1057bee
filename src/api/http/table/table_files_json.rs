//! The files of the table as JSON, some at a time as the client reads them.

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    engine::parts::table_files::{FilesHead, FilesPage, RemovedRows, TableFile, TableFiles},
    error::Error,
    limits::{ANSWER_PIECE_BYTES, FILE_ENTRY_BYTES},
};

/// The files of the table.
#[derive(ToSchema)]
#[allow(dead_code, reason = "the description of an answer that is written piece by piece")]
pub(super) struct FilesReply {
    /// `csv` or `parquet`.
    #[schema(examples("parquet"))]
    format: String,
    /// Parts of the table.
    parts: u64,
    /// Rows of the table: those of all files, without those of removed parts.
    rows: u64,
    /// Removed parts whose rows are still in the files.
    removed_parts: u64,
    /// In the order of their first parts.
    files: Vec<StoredTableFile>,
    /// Rows of these files that are not in the table, in the order of their parts.
    removed: Vec<RowsOfRemovedPart>,
}

/// A file of the table; of CSV, a part of the table, which is a range of a file.
#[derive(Serialize, ToSchema)]
struct StoredTableFile {
    /// In the data folder.
    #[schema(examples("parts/1-1024-1.parquet"))]
    path: String,
    /// No part in it has a smaller number.
    first_part: u64,
    /// No part in it has a greater number.
    last_part: u64,
    /// Its parts, with removed ones.
    parts: u64,
    /// Its rows, with those of removed parts.
    rows: u64,
    /// Of CSV: where the part begins in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    offset: Option<u64>,
    /// Its size; of CSV, that of the part.
    bytes: u64,
}

/// Rows of a file that are not in the table any more.
#[derive(Serialize, ToSchema)]
struct RowsOfRemovedPart {
    /// As in `files`.
    path: String,
    /// The part that was removed.
    part: u64,
    /// The position of its first row in the file, from 0.
    first_row: u64,
    /// How many rows it has.
    rows: u64,
}

/// The files that have not been sent.
pub(super) struct FilesAnswer {
    files: TableFiles,
    /// What is written and not sent yet.
    piece: Vec<u8>,
    /// Whether `removed` has begun.
    at_removed: bool,
    needs_comma: bool,
    at_end: bool,
}

impl FilesAnswer {
    /// The answer with its first files, so that an error is found before its head is sent.
    ///
    /// Errors: an index is damaged or cannot be read.
    pub(super) async fn begin(files: TableFiles) -> Result<Self, Error> {
        let FilesHead { parts, rows, segments: _, removed_parts } = files.head();
        let head = format!(
            "{{\"format\":\"{}\",\"parts\":{parts},\"rows\":{rows},\"removed_parts\":{removed_parts},\"files\":[",
            files.format()
        );
        let mut answer = Self { files, piece: head.into_bytes(), at_removed: false, needs_comma: false, at_end: false };
        answer.fill().await?;
        Ok(answer)
    }

    /// The answer: the files are listed while it is sent.
    pub(super) fn into_response(self) -> Response {
        let body = if self.at_end { Body::from(self.piece) } else { Body::from_stream(self.into_stream()) };
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::try_unfold(self, |mut answer| async move {
            answer.fill().await?;
            let piece = std::mem::take(&mut answer.piece);
            Ok((!piece.is_empty()).then(|| (Bytes::from(piece), answer)))
        })
    }

    /// Writes the next files, until a piece is full.
    async fn fill(&mut self) -> Result<(), Error> {
        while !self.at_end && self.piece.len() < ANSWER_PIECE_BYTES {
            match self.files.next_page(ANSWER_PIECE_BYTES / FILE_ENTRY_BYTES).await? {
                FilesPage::Files(files) => {
                    files.into_iter().try_for_each(|file| self.push(&StoredTableFile::of(file)))?
                }
                FilesPage::Removed(removed) => {
                    self.begin_removed();
                    removed.into_iter().try_for_each(|rows| self.push(&RowsOfRemovedPart::of(rows)))?;
                }
                FilesPage::End => {
                    self.begin_removed();
                    self.piece.extend_from_slice(b"]}");
                    self.at_end = true;
                }
            }
        }
        Ok(())
    }

    fn begin_removed(&mut self) {
        if !std::mem::replace(&mut self.at_removed, true) {
            self.piece.extend_from_slice(b"],\"removed\":[");
            self.needs_comma = false;
        }
    }

    fn push(&mut self, entry: &impl Serialize) -> Result<(), Error> {
        if std::mem::replace(&mut self.needs_comma, true) {
            self.piece.push(b',');
        }
        let written = serde_json::to_writer(&mut self.piece, entry);
        written.map_err(|error| Error::Internal(format!("a file of the table as JSON: {error}")))
    }
}

impl StoredTableFile {
    fn of(file: TableFile) -> Self {
        let TableFile { path, first, last, parts, rows, offset, bytes } = file;
        Self { path, first_part: first.get(), last_part: last.get(), parts, rows, offset, bytes }
    }
}

impl RowsOfRemovedPart {
    fn of(removed: RemovedRows) -> Self {
        let RemovedRows { path, part, first_row, rows } = removed;
        Self { path, part: part.get(), first_row, rows }
    }
}
