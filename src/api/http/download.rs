//! Sends a stored file piece by piece from the disk: the whole file or a range of it (RFC 9110, section 14).

use std::{future::Future, ops::Range};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};

use crate::{
    engine::{Engine, jobs::result_file::ResultFile, parts::part_file::PartFile, state::jobs::JobId},
    error::Error,
    limits::{HTTP_BUFFER_BYTES, HTTP_SHORT_ANSWER_BYTES},
};

/// A file that is sent: the result of a job, or a file of a part.
pub(super) trait SentFile: Send + Sync + 'static {
    /// The file's size.
    fn bytes(&self) -> u64;

    /// Reads verified bytes from `offset` on: at most `bytes_max`, and at least one unless the file ends there. Only with `reads_on`
    /// more than these bytes is kept in memory, for those that follow.
    fn read(
        &mut self,
        offset: u64,
        bytes_max: usize,
        reads_on: bool,
    ) -> impl Future<Output = Result<Bytes, Error>> + Send;
}

impl SentFile for ResultFile {
    fn bytes(&self) -> u64 {
        Self::bytes(self)
    }

    fn read(
        &mut self,
        offset: u64,
        bytes_max: usize,
        reads_on: bool,
    ) -> impl Future<Output = Result<Bytes, Error>> + Send {
        Self::read(self, offset, bytes_max, reads_on)
    }
}

impl SentFile for PartFile {
    fn bytes(&self) -> u64 {
        Self::bytes(self)
    }

    fn read(
        &mut self,
        offset: u64,
        bytes_max: usize,
        reads_on: bool,
    ) -> impl Future<Output = Result<Bytes, Error>> + Send {
        Self::read(self, offset, bytes_max, reads_on)
    }
}

/// What the head of an answer says of its file.
pub(super) struct FileHead {
    /// The entity tag, with its quotes.
    pub(super) tag: String,
    pub(super) content_type: &'static str,
    /// The name under which a browser stores the file.
    pub(super) name: String,
}

/// Why a file is not sent.
pub(super) enum NotSent {
    /// It has only this many bytes, and none of the range that was asked for.
    Unsatisfiable { bytes: u64 },
    /// It cannot be read, or is damaged.
    Failed(Error),
}

impl From<Error> for NotSent {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The answer to a range that a file does not have, with an error in the form of the path.
pub(super) fn unsatisfiable(bytes: u64, error: impl IntoResponse) -> Response {
    ([(header::CONTENT_RANGE, format!("bytes */{bytes}"))], error).into_response()
}

/// Whether the client has the file with this entity tag (RFC 9110, section 13.1.2, with weak comparison).
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = lists.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// A file, or the range of it that a request asks for. `download` is complete when the whole file was sent.
///
/// Errors: the file has no such range; its first piece is damaged or cannot be read.
pub(super) async fn send<F: SentFile>(
    file: F,
    head: FileHead,
    method: &Method,
    headers: &HeaderMap,
    download: Option<Download>,
) -> Result<Response, NotSent> {
    let FileHead { tag, content_type, name } = head;
    let bytes = file.bytes();
    let (status, range) = match Part::of(method, headers, &tag, bytes) {
        Part::Whole => (StatusCode::OK, 0..bytes),
        Part::Range(range) => (StatusCode::PARTIAL_CONTENT, range),
        Part::Unsatisfiable => return Err(NotSent::Unsatisfiable { bytes }),
    };
    let is_whole = status == StatusCode::OK;
    let mut answer = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_DISPOSITION, format!("attachment; filename={name}"))
        .header(header::CONTENT_LENGTH, range.end - range.start)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
        .header(header::ETAG, tag);
    if !is_whole {
        answer = answer.header(header::CONTENT_RANGE, format!("bytes {}-{}/{bytes}", range.start, range.end - 1));
    }
    let body = Body::from_stream(pieces_of(file, range, download.filter(|_| is_whole)).await?);
    answer.body(body).map_err(|error| Error::Internal(format!("headers: {error}")).into())
}

/// The part of a file that a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
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
    fn of(method: &Method, headers: &HeaderMap, tag: &str, bytes: u64) -> Self {
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
pub(super) async fn pieces_of<F: SentFile>(
    mut file: F,
    range: Range<u64>,
    download: Option<Download>,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send, Error> {
    // Read before the head of the answer is sent, while the answer can still be an error. A long answer waits for its permit now,
    // and a short one needs none, so neither may keep a block of the file in memory.
    let mut first = if range.is_empty() { None } else { Some(first_piece_of(&mut file, &range).await?) };
    Ok(stream::try_unfold((file, range, download), move |(mut file, mut range, mut download)| {
        let first = first.take();
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let piece = match first {
                Some(piece) => piece,
                None => piece_of(&mut file, &range, HTTP_BUFFER_BYTES as u64, true).await?,
            };
            range.start += piece.len() as u64;
            if range.is_empty() {
                download.iter_mut().for_each(|download| download.is_complete = true);
            }
            Ok(Some((piece, (file, range, download))))
        }
    }))
}

/// All bytes of a range that makes a short answer, or the first ones of a longer one.
async fn first_piece_of<F: SentFile>(file: &mut F, range: &Range<u64>) -> Result<Bytes, Error> {
    if range.end - range.start > HTTP_SHORT_ANSWER_BYTES {
        return piece_of(file, range, HTTP_BUFFER_BYTES as u64, false).await;
    }
    let mut whole = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let next = piece_of(file, &(at..range.end), HTTP_SHORT_ANSWER_BYTES, false).await?;
        at += next.len() as u64;
        whole.extend_from_slice(&next);
    }
    Ok(whole.into())
}

/// Some bytes from the start of a range that is not empty: at most `bytes_max`.
async fn piece_of<F: SentFile>(
    file: &mut F,
    range: &Range<u64>,
    bytes_max: u64,
    reads_on: bool,
) -> Result<Bytes, Error> {
    let bytes_max = usize::try_from((range.end - range.start).min(bytes_max)).unwrap_or(usize::MAX);
    let piece = file.read(range.start, bytes_max, reads_on).await?;
    if piece.is_empty() {
        return Err(Error::Internal("a file is shorter than it was".to_owned()));
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
    fn entity_tags_that_a_client_knows() {
        let is_known_in = |lists: &[&'static str]| {
            let values = lists.iter().map(|list| (header::IF_NONE_MATCH, HeaderValue::from_static(list)));
            is_known(&values.collect(), "\"t\"")
        };
        for known in [&["\"t\""][..], &["*"], &["W/\"t\""], &["\"a\", \"t\""], &["\"a\"", "\"t\""]] {
            assert!(is_known_in(known), "{known:?}");
        }
        for unknown in [&[][..], &["t"], &["\"a\""], &["\"T\""], &[""]] {
            assert!(!is_known_in(unknown), "{unknown:?}");
        }
    }

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
