//! Receipts with many columns, of which only few are in memory at once, however slowly their clients read.

use std::{sync::Arc, time::Duration, vec};

use axum::{
    Json,
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    ids::of_part,
    parts_json::{PartColumn, PartReply},
};
use crate::{
    api::http::{long_calls::Busy, problem::Problem, surface::Surface},
    error::Error,
    limits::{ANSWER_PIECE_BYTES, NARROW_RECEIPT_BYTES, TRANSFER_WAIT_MS_MAX},
    model::part::PartId,
};

/// The permit to have a receipt in memory; `None` for one that needs none, because it is short.
///
/// Errors: there is no such part; other receipts are still being sent.
pub(super) async fn permit(surface: &Surface, id: PartId) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    if surface.engine.receipt_bytes(id).map_err(of_part)? <= NARROW_RECEIPT_BYTES {
        return Ok(None);
    }
    let permit = Arc::clone(&surface.wide_receipts).acquire_owned();
    match timeout(Duration::from_millis(TRANSFER_WAIT_MS_MAX), permit).await {
        Ok(permit) => Ok(Some(permit.ok().ok_or(Error::Draining)?)),
        Err(_elapsed) => Err(Busy.into()),
    }
}

/// A receipt as JSON, piece by piece if it has a permit, which is given back when it was sent.
pub(super) fn answer(mut receipt: PartReply, permit: Option<OwnedSemaphorePermit>) -> Response {
    let Some(permit) = permit else { return Json(receipt).into_response() };
    let columns = receipt.take_columns().into_iter();
    let state = Some(Sent { head: Some(receipt), columns, _permit: permit });
    let pieces = stream::unfold(state, |state| async move {
        let mut sent = state?;
        let piece = sent.next_piece();
        let rest = piece.as_ref().is_ok_and(|piece| piece.has_more).then_some(sent);
        Some((piece.map(|piece| Bytes::from(piece.text)), rest))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

struct Sent {
    /// The receipt without its columns, until it was written.
    head: Option<PartReply>,
    columns: vec::IntoIter<PartColumn>,
    _permit: OwnedSemaphorePermit,
}

struct Piece {
    text: Vec<u8>,
    has_more: bool,
}

impl Sent {
    /// The next piece of `{"part":1,...,"columns":[...]}`.
    fn next_piece(&mut self) -> Result<Piece, serde_json::Error> {
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
        let has_more = self.columns.len() > 0;
        if !has_more {
            text.extend_from_slice(b"]}");
        }
        Ok(Piece { text, has_more })
    }
}
