//! A result on its way out: piece by piece from the disk, whole or a range of it (RFC 9110, section 14).

use std::ops::Range;

use axum::http::{HeaderMap, Method, header};
use bytes::Bytes;
use futures_util::{Stream, stream};

use crate::{
    engine::{Engine, jobs::result_file::ResultFile, state::jobs::JobId},
    error::Error,
    limits::HTTP_BUFFER_BYTES,
};

/// What of a result was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Some bytes.
    Range(Range<u64>),
    /// Bytes that it does not have.
    Unsatisfiable,
}

impl Part {
    /// What a request's headers ask of a file with this entity tag. What is no single range of bytes is ignored, as
    /// the RFC allows.
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

/// The numbers beside the hyphen of a single range. (The crates for it take `-500` of a shorter file for unsatisfiable.)
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

/// The bytes of a range. What is told of their end is kept until the connection has taken the last of them.
///
/// Errors: the first piece cannot be read, or is not what was written. A later one can only break the body off.
pub(super) async fn pieces_of<T: AtEnd>(
    file: ResultFile,
    range: Range<u64>,
    told: T,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send, Error> {
    // Read before the head of the answer is sent, while there can still be another answer.
    let mut first = if range.is_empty() { None } else { Some(piece_of(&file, &range).await?) };
    Ok(stream::try_unfold((file, range, told), move |(file, mut range, mut told)| {
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
                told.at_end();
            }
            Ok(Some((piece, (file, range, told))))
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

/// Who wants to know that all bytes were handed over.
pub(super) trait AtEnd: Send {
    fn at_end(&mut self);
}

/// Nobody.
impl AtEnd for () {
    fn at_end(&mut self) {}
}

/// Marks a task as downloaded when the connection has taken the whole of its result.
///
/// hyper drops a body once it has taken as many bytes as Content-Length says. What then is still in its buffer and in the
/// kernel's, which `HTTP_SEND_BUFFER_BYTES` bounds, may never arrive, and no server can know: so the result is kept for a
/// while. Of a client that reads nothing, results of 400 kB were taken so, of 700 kB not; with a kernel on the client's
/// side that takes as much as it likes, 600 kB and not 1,000.
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

impl AtEnd for Download {
    fn at_end(&mut self) {
        self.is_complete = true;
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
