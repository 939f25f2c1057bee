//! The groups of an answer as JSON, as JSON lines or as CSV, some at a time as the client reads them.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;

use super::json::{GroupFormat, TableGroup, Total, to_ms};
use crate::{
    engine::group_by::output::{Group, StoredGroups, csv_header, write_csv_row},
    error::Error,
    limits::ANSWER_PIECE_BYTES,
};

/// The groups that have not been sent.
pub(super) struct GroupAnswer {
    groups: StoredGroups,
    format: GroupFormat,
    /// Groups that were read, the next one last.
    block: Vec<Group>,
    /// How many groups may be sent.
    left: u64,
    elapsed: Duration,
    /// What is written and not sent yet.
    piece: Vec<u8>,
    is_first: bool,
    at_end: bool,
}

impl GroupAnswer {
    /// `by` and `sum` are the columns; `elapsed` is how long the groups took.
    pub(super) fn new(
        groups: StoredGroups,
        format: GroupFormat,
        by: Vec<String>,
        sum: Vec<String>,
        limit: Option<u64>,
        elapsed: Duration,
    ) -> Self {
        let left = limit.unwrap_or(u64::MAX);
        let piece = match format {
            GroupFormat::Json => {
                let mut text = b"{\"by\":".to_vec();
                push_json(&mut text, &by);
                text.extend_from_slice(b",\"sum\":");
                push_json(&mut text, &sum);
                text.extend_from_slice(b",\"groups\":[");
                text
            }
            GroupFormat::Ndjson => Vec::new(),
            GroupFormat::Csv => csv_header(&[by, sum].concat()),
        };
        Self { groups, format, block: Vec::new(), left, elapsed, piece, is_first: true, at_end: false }
    }

    /// The answer: its groups are read while it is sent.
    pub(super) fn into_response(self) -> Response {
        let kind = match self.format {
            GroupFormat::Json => "application/json",
            GroupFormat::Ndjson => "application/x-ndjson",
            GroupFormat::Csv => "text/csv; charset=utf-8",
        };
        let is_file = self.format == GroupFormat::Csv;
        let mut response = ([(header::CONTENT_TYPE, kind)], Body::from_stream(self.into_stream())).into_response();
        if is_file {
            let name = HeaderValue::from_static("attachment; filename=groups.csv");
            response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
        }
        response
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        let pace = self.groups.pace();
        stream::try_unfold((self, 0), move |(mut answer, sent)| {
            let pace = Arc::clone(&pace);
            async move {
                pace.moved(sent); // the client has read the last piece when hyper polls for more
                while !answer.at_end && answer.piece.len() < ANSWER_PIECE_BYTES {
                    answer.add_group().await?;
                }
                let piece = std::mem::take(&mut answer.piece);
                pace.waits();
                let sent = piece.len();
                Ok((sent > 0).then(|| (Bytes::from(piece), (answer, sent))))
            }
        })
    }

    /// Writes the next group, or the end.
    async fn add_group(&mut self) -> Result<(), Error> {
        if self.block.is_empty() {
            self.block = self.groups.next_block().await?;
            self.block.reverse();
        }
        match self.block.pop() {
            Some(group) if self.left > 0 => {
                self.left -= 1;
                self.write(&group);
            }
            left_out => self.end(left_out.is_some()),
        }
        Ok(())
    }

    fn write(&mut self, group: &Group) {
        if self.format == GroupFormat::Csv {
            write_csv_row(&mut self.piece, group);
            return;
        }
        if !std::mem::take(&mut self.is_first) && self.format == GroupFormat::Json {
            self.piece.push(b',');
        }
        let totals = group.totals.iter().map(|&total| Total::from(total)).collect();
        push_json(&mut self.piece, &TableGroup { key: &group.cells, totals });
        if self.format == GroupFormat::Ndjson {
            self.piece.push(b'\n');
        }
    }

    fn end(&mut self, is_cut: bool) {
        #[derive(Serialize)]
        struct End {
            more: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            groups_count: Option<u64>,
            elapsed_ms: f64,
        }
        self.at_end = true;
        if self.format != GroupFormat::Json {
            return;
        }
        let groups_count = self.groups.groups_count();
        let more = is_cut || groups_count.is_some_and(|count| count > u64::MAX - self.left);
        let mut end = Vec::new();
        push_json(&mut end, &End { more, groups_count, elapsed_ms: to_ms(self.elapsed) });
        self.piece.extend_from_slice(b"],");
        self.piece.extend_from_slice(&end[1..]); // without its brace
    }
}

/// Appends a value that has only texts and numbers, so that it can always be written.
fn push_json(text: &mut Vec<u8>, value: &impl Serialize) {
    if let Err(error) = serde_json::to_writer(text, value) {
        tracing::error!(%error, "a value cannot be written as JSON");
    }
}
