//! Receipts with many columns, of which only few are in memory at once. If another one waits, a receipt whose client does not
//! read it is dropped.

use std::vec;

use axum::{
    Json,
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::{
    ids::of_part,
    parts_json::{PartColumn, PartReply},
};
use crate::{
    api::http::{long_calls::Busy, problem::Problem, surface::Surface},
    engine::{
        runtime::{
            paced_source::{PacedSource, Source},
            transfers::Permit,
        },
        state::transfers::Origin,
    },
    error::Error,
    limits::{ANSWER_PIECE_BYTES, NARROW_RECEIPT_BYTES},
    model::part::PartId,
};

/// The permit to have a receipt in memory; `None` for one that needs none, because it is short.
///
/// Errors: there is no such part; other receipts are still being sent, and their clients read them.
pub(super) async fn permit(surface: &Surface, origin: Origin, id: PartId) -> Result<Option<Permit>, Problem> {
    if surface.engine.receipt_bytes(id).await.map_err(of_part)? <= NARROW_RECEIPT_BYTES {
        return Ok(None);
    }
    surface.wide_receipts.enter(origin, CancellationToken::new()).await.map(Some).ok_or_else(|| Busy.into())
}

/// A receipt as JSON, piece by piece if it has a permit, which is given back when it was sent.
pub(super) fn answer(mut receipt: PartReply, permit: Option<Permit>) -> Response {
    let Some(permit) = permit else { return Json(receipt).into_response() };
    let columns = receipt.take_columns().into_iter();
    let receipt = PacedSource::new(Unsent { head: Some(receipt), columns, at_end: false }, permit);
    let pieces = stream::try_unfold((receipt, 0), |(mut receipt, sent)| async move {
        let pace = receipt.pace();
        pace.moved(sent); // the client has read the last piece when hyper polls for more
        let piece = receipt.next().await?;
        pace.waits();
        let sent = piece.len();
        Ok::<_, Error>((sent > 0).then_some((piece, (receipt, sent))))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

/// What has not been sent of a receipt.
struct Unsent {
    /// The receipt without its columns, until it was written.
    head: Option<PartReply>,
    columns: vec::IntoIter<PartColumn>,
    at_end: bool,
}

impl Source for Unsent {
    /// Empty after the end.
    type Piece = Bytes;

    async fn next(&mut self) -> Result<Bytes, Error> {
        if self.at_end {
            return Ok(Bytes::new());
        }
        let piece = self.next_piece().map_err(|error| Error::Internal(format!("a receipt as JSON: {error}")))?;
        Ok(piece.into())
    }
}

impl Unsent {
    /// The next piece of `{"part":1,...,"columns":[...]}`.
    fn next_piece(&mut self) -> Result<Vec<u8>, serde_json::Error> {
        let (mut text, mut needs_comma) = (Vec::new(), true);
        if let Some(head) = self.head.take() {
            serde_json::to_writer(&mut text, &head)?;
            text.pop(); // the closing brace
            text.extend_from_slice(b",\"columns\":[");
            needs_comma = false;
        }
        while text.len() < ANSWER_PIECE_BYTES
            && let Some(column) = self.columns.next()
        {
            if needs_comma {
                text.push(b',');
            }
            needs_comma = true;
            serde_json::to_writer(&mut text, &column)?;
        }
        self.at_end = self.columns.len() == 0;
        if self.at_end {
            text.extend_from_slice(b"]}");
        }
        Ok(text)
    }
}
