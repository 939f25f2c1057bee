//! Sends a result piece by piece from the disk: the whole file or a range of it (RFC 9110, section 14).

use std::ops::Range;

use axum::http::{HeaderMap, Method, header};
use bytes::Bytes;
use futures_util::{Stream, stream};

use crate::{
    engine::{Engine, jobs::result_file::ResultFile, state::jobs::JobId},
    error::Error,
    limits::HTTP_BUFFER_BYTES,
};

/// The part of a result that a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Some bytes.
    Range(Range<u64>),
    /// Bytes after its end.
    Unsatisfiable,
}

impl Part {
    /// The part that a request's headers ask for, of a file with this entity tag and length. Anything but a single range of
    /// bytes is ignored, as the RFC allows.
    pub(super) fn of(method: &Method, headers: &HeaderMap, tag: &str, bytes: u64) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(range) = text(header::RANGE).filter(|_| *method == Method::GET) else { return Self::Whole };
        if headers.contains_key(header::IF_RANGE) && text(header::IF_RANGE) != Some(tag) {
            return Self::Whole;
        }
        let range = match ends_of(range) {
            Some((Some(first), None)) => first..bytes,
            Some((Some(first), Some(last))) if first <= last => first..bytes.min(last.saturating_add(1)),
            Some((None, Some(count))) => bytes.saturating_sub(count)..bytes,
            _ => return Self::Whole,
        };
        if range.is_empty() { Self::Unsatisfiable } else { Self::Range(range) }
    }
}

/// The numbers before and after the hyphen of a single range. We parse it because the crates for it reject `-500` if the
/// file is shorter.
fn ends_of(range: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    // A number too large for 64 bits is beyond the end of any file.
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true if text.is_empty() => Some(None),
        true => Some(Some(text.parse().unwrap_or(u64::MAX))),
        false => None,
    };
    unit.eq_ignore_ascii_case("bytes").then_some((number(first)?, number(last)?))
}

/// The bytes of a range. `download` is complete when the last piece is passed on, and dropped when the connection has taken
/// it.
///
/// Errors: the first piece cannot be read, or its checksum is wrong. An error in a later piece cuts the body off.
pub(super) async fn pieces_of(
    file: ResultFile,
    range: Range<u64>,
    download: Option<Download>,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send, Error> {
    // Read before the head of the answer is sent, while the answer can still be an error.
    let mut first = if range.is_empty() { None } else { Some(piece_of(&file, &range).await?) };
    Ok(stream::try_unfold((file, range, download), move |(file, mut range, mut download)| {
        let first = first.take();
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let piece = match first {
                Some(piece) => piece,
                None => piece_of(&file, &range).await?,
            };
            range.start += piece.len() as u64;
            if range.is_empty() {
                download.iter_mut().for_each(|download| download.is_complete = true);
            }
            Ok(Some((piece, (file, range, download))))
        }
    }))
}

/// Some bytes from the start of a range that is not empty.
async fn piece_of(file: &ResultFile, range: &Range<u64>) -> Result<Bytes, Error> {
    let bytes_max = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(HTTP_BUFFER_BYTES);
    let piece = file.read(range.start, bytes_max).await?;
    if piece.is_empty() {
        return Err(Error::Internal("a result is shorter than it was".to_owned()));
    }
    Ok(piece)
}

/// Marks a task as downloaded when the connection has taken the whole of its result.
///
/// hyper drops a body once it has taken as many bytes as Content-Length says. The bytes that are then still in its buffer
/// and in the kernel's, which `HTTP_SEND_BUFFER_BYTES` bounds, may never arrive, and the server cannot know. So the result
/// is kept for a while. For a client that reads nothing, a result of 400 kB was marked as downloaded and one of 700 kB was
/// not; if the client's kernel buffers without a limit, 600 kB was and 1,000 kB was not.
pub(super) struct Download {
    engine: Engine,
    id: JobId,
    is_complete: bool,
}

impl Download {
    pub(super) fn new(engine: Engine, id: JobId) -> Self {
        Self { engine, id, is_complete: false }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if !self.is_complete {
            return;
        }
        let (engine, id) = (self.engine.clone(), self.id);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = engine.mark_downloaded(id).await {
                    tracing::warn!(%id, %error, "sent, but not marked as downloaded");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        const TAG: &str = "\"t\"";
        let check = |range: &str, if_range: Option<&str>, bytes| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().expect("a value"));
            if let Some(value) = if_range {
                headers.insert(header::IF_RANGE, value.parse().expect("a value"));
            }
            Part::of(&Method::GET, &headers, TAG, bytes)
        };
        for (range, expected) in [
            ("bytes=0-0", Part::Range(0..1)),
            ("bytes=0-", Part::Range(0..10)),
            ("bytes=3-5", Part::Range(3..6)),
            ("bytes=3-500", Part::Range(3..10)),
            ("bytes=-3", Part::Range(7..10)),
            ("bytes=-30", Part::Range(0..10)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=10-20", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=18446744073709551615-", Part::Unsatisfiable),
            ("bytes=99999999999999999999-", Part::Unsatisfiable),
            ("bytes=0-99999999999999999999", Part::Range(0..10)),
            ("bytes=5-3", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=+1-3", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=x", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("", Part::Whole),
        ] {
            assert_eq!(check(range, None, 10), expected, "{range}");
        }
        assert_eq!(check("bytes=0-18446744073709551615", None, 10), Part::Range(0..10));
        assert_eq!(check("bytes=0-1", Some(TAG), 10), Part::Range(0..2));
        assert_eq!(check("bytes=0-1", Some("\"other\""), 10), Part::Whole);
        assert_eq!(check("bytes=0-", None, 0), Part::Unsatisfiable);
    }
}
