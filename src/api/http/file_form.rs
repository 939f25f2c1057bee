//! The file in a multipart form, as a stream.
//!
//! Invariant: at most [`FORM_BYTES_MAX`] bytes of a form that are not its file are read, whatever the client sends.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use multer::{Field, Multipart};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep, timeout},
};

use super::{
    discard::{DISCARD_MAX, discard},
    errors::{TaskError, interrupted, unsupported_encoding},
    tasks_json::Grouping,
};
use crate::{
    engine::{runtime::transfers::TooSlow, state::transfers::Pace},
    error::{Error, quoted::Quoted},
    limits::{FORM_BYTES_MAX, FORM_BYTES_PER_S_MIN, JOB_NAMES_BYTES_MAX, REFUSED_BYTES_MAX},
};

/// A multipart form with a file in its field `file`, and fields about the grouping before it. Other fields are refused.
pub(super) struct FileForm {
    /// `None` while the file is read.
    form: Option<Multipart<'static>>,
    /// Brings the form back when the file was read or dropped.
    lent: Option<oneshot::Receiver<Returned>>,
    /// The file that comes next, if its head was read.
    next: Option<NextField>,
    bounds: Arc<Bounds>,
}

/// A field whose head was read, or why it cannot be.
type NextField = Result<Field<'static>, multer::Error>;

/// A form whose file was read or dropped.
struct Returned {
    form: Multipart<'static>,
    next: Option<NextField>,
}

/// One of the files of a form.
pub(super) struct NamedFile {
    /// The name that the client gives it.
    pub(super) name: String,
    /// Its content as it arrives.
    pub(super) content: FileStream,
}

/// How much of a form may still arrive.
struct Bounds {
    /// Bytes that are not of the file; or, once the form is over, all bytes that are still read and dropped.
    left: AtomicU64,
    /// The form was read, or it was refused: the rest is read and dropped.
    is_over: AtomicBool,
}

impl FileForm {
    /// Errors: the request is not a multipart form.
    pub(super) async fn new(
        headers: &HeaderMap,
        body: Body,
        transfer: Arc<Pace>,
        idle_max: Duration,
    ) -> Result<Self, TaskError> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let boundary = multer::parse_boundary(content_type.unwrap_or_default());
        let boundary = match boundary {
            Ok(boundary) => boundary,
            Err(error) => {
                discard(body.into_data_stream(), DISCARD_MAX).await;
                return Err(if matches!(error, multer::Error::NoBoundary) { no_boundary() } else { no_file() });
            }
        };
        let bounds = Bounds { left: AtomicU64::new(FORM_BYTES_MAX as u64), is_over: AtomicBool::new(false) };
        let bounds = Arc::new(bounds);
        let (body, rate) = (body.into_data_stream(), MinimumRate::new(idle_max));
        let too_slow = TooSlow::new(transfer, idle_max);
        let pieces = Pieces { body, bounds: Arc::clone(&bounds), rate, too_slow, pause: false };
        Ok(Self { form: Some(Multipart::new(pieces, boundary)), lent: None, next: None, bounds })
    }

    /// The fields before the file, and the content of the file as it arrives.
    ///
    /// Errors: the form has no file, or its name does not end with `.csv`; a field that is wrong.
    pub(super) async fn file(&mut self) -> Result<(Grouping, FileStream), TaskError> {
        let form = self.form.as_mut().ok_or_else(no_file)?;
        let (grouping, file) = find_file(form).await?;
        Ok((grouping, self.lend(file, AfterFile::Nothing)?))
    }

    /// The next file, whatever its name; `None` after the last. The file before it must have been read or dropped.
    ///
    /// Errors: the form has anything else than files.
    pub(super) async fn next_file(&mut self) -> Result<Option<NamedFile>, TaskError> {
        if let Some(lent) = self.lent.take() {
            let Returned { form, next } = lent.await.map_err(|error| Error::Internal(error.to_string()))?;
            (self.form, self.next) = (Some(form), next);
        }
        let form = self.form.as_mut().ok_or_else(no_file)?;
        let next = match self.next.take() {
            Some(next) => next.map(Some),
            None => form.next_field().await,
        };
        let Some(field) = next.map_err(form_error)? else { return Ok(None) };
        let name = file_name(&field).ok_or_else(|| TaskError::bad_file(other_field(&field)))?;
        if name.is_empty() {
            return Err(no_file_selected());
        }
        check_encoding("file", &field)?;
        Ok(Some(NamedFile { name, content: self.lend(field, AfterFile::Files)? }))
    }

    fn lend(&mut self, file: Field<'static>, after: AfterFile) -> Result<FileStream, TaskError> {
        let form = self.form.take().ok_or_else(no_file)?;
        let (tx, rx) = oneshot::channel();
        self.lent = Some(rx);
        let bytes_left = self.bounds.left.swap(u64::MAX, Ordering::Relaxed); // the engine bounds the file
        let bounds = Arc::clone(&self.bounds);
        Ok(FileStream {
            file: Some(file),
            form: Some((form, tx)),
            after,
            next: None,
            is_read: false,
            bounds,
            bytes_left,
        })
    }

    /// Reads and drops the rest of the form, so that the client gets to read the answer. [`Pieces`] keeps the rest from the
    /// parser, which would hold the head of a field in memory until it ends.
    pub(super) async fn finish(mut self) {
        self.next = None; // before the form can be read on
        let read = async {
            let form = match (self.form, self.lent) {
                (Some(form), _) => Some(form),
                (None, Some(lent)) => lent.await.ok().map(|returned| returned.form),
                (None, None) => None,
            };
            self.bounds.left.store(REFUSED_BYTES_MAX, Ordering::Relaxed);
            self.bounds.is_over.store(true, Ordering::Relaxed);
            let Some(mut form) = form else { return };
            while let Ok(Some(_skipped)) = form.next_field().await {}
        };
        let _enough_either_way = timeout(DISCARD_MAX, read).await;
    }
}

/// Skips to the file. Returns it with the fields about the grouping before it.
async fn find_file(form: &mut Multipart<'static>) -> Result<(Grouping, Field<'static>), TaskError> {
    let (mut grouping, mut unknown) = (Grouping::default(), None);
    while let Some(field) = form.next_field().await.map_err(form_error)? {
        if let Some(name) = Grouping::field_name(field.name()) {
            check_encoding(name, &field)?;
            grouping.set(name, text_of(name, field).await?)?;
        } else if let Some(name) = file_name(&field) {
            check_encoding("file", &field)?;
            check_name(&name)?;
            return match unknown {
                None => Ok((grouping, field)),
                Some(unknown) => Err(TaskError::bad_file(unknown)),
            };
        } else {
            unknown.get_or_insert_with(|| unknown_field(&field));
        }
    }
    Err(no_file())
}

/// Checks that the content of a field is what it is about, byte for byte.
fn check_encoding(name: &'static str, field: &Field<'_>) -> Result<(), TaskError> {
    match unsupported_encoding(field.headers()).or_else(|| transfer_encoding(field.headers())) {
        Some(encoding) => Err(TaskError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, name, encoding)),
        None => Ok(()),
    }
}

/// Why a field cannot be read: it has an encoding of electronic mail, which RFC 7578, section 4.7, forbids in forms over HTTP.
fn transfer_encoding(headers: &HeaderMap) -> Option<String> {
    const PLAIN: [&str; 3] = ["7bit", "8bit", "binary"];
    let values = headers.get_all("content-transfer-encoding").into_iter();
    let mut names = values.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
    let unknown = names.find(|name| !PLAIN.iter().any(|plain| name.eq_ignore_ascii_case(plain)))?;
    Some(format!("Content-Transfer-Encoding {} is not supported: send the bytes as they are", Quoted(&unknown)))
}

/// The file name of the field `file`, as `filename*` (RFC 8187) or `filename` has it; `None` for any other field.
fn file_name(field: &Field<'_>) -> Option<String> {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION).map(HeaderValue::as_bytes);
    let encoded = || disposition.and_then(encoded_file_name);
    (field.name() == Some("file")).then(|| encoded().or_else(|| field.file_name().map(str::to_owned)))?
}

/// The value of the parameter `filename*`, for example `UTF-8''na%C3%AFve.csv`. `None` if there is none that can be read.
fn encoded_file_name(disposition: &[u8]) -> Option<String> {
    let text = str::from_utf8(disposition).ok()?;
    let mut in_quotes = false;
    let mut parameters = text.split(|character| {
        in_quotes ^= character == '"';
        character == ';' && !in_quotes
    });
    let value = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("filename*").then(|| value.trim())
    })?;
    let mut parts = value.splitn(3, '\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(encoded).collect();
    if charset.eq_ignore_ascii_case("utf-8") {
        String::from_utf8(bytes).ok()
    } else if charset.eq_ignore_ascii_case("iso-8859-1") {
        Some(bytes.into_iter().map(char::from).collect())
    } else {
        None
    }
}

/// The text of a field about the grouping.
async fn text_of(name: &'static str, mut field: Field<'static>) -> Result<String, TaskError> {
    let refused = |message: String| TaskError::new(StatusCode::BAD_REQUEST, name, message);
    let mut bytes = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(form_error)? {
        if bytes.len() + piece.len() > JOB_NAMES_BYTES_MAX {
            return Err(refused(format!("It has more than {JOB_NAMES_BYTES_MAX} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|error| refused(format!("It is not UTF-8: {}", error.utf8_error())))
}

/// The content of the file. After it, the rest of the form is read, because it must not have what would be ignored.
pub(super) struct FileStream {
    /// `None` once its end has been read.
    file: Option<Field<'static>>,
    /// Goes back to the [`FileForm`] when this is dropped.
    form: Option<(Multipart<'static>, oneshot::Sender<Returned>)>,
    /// What may come after the file.
    after: AfterFile,
    /// The file that comes after it, if its head was read.
    next: Option<NextField>,
    /// What follows the file was read, so that the next poll finds its end.
    is_read: bool,
    bounds: Arc<Bounds>,
    /// Bytes of the form that may still come after the file.
    bytes_left: u64,
}

impl Stream for FileStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(file) = &mut this.file {
            if let Some(piece) = ready!(file.poll_next_unpin(context)) {
                return Poll::Ready(Some(piece.map_err(form_error)));
            }
            this.file = None;
            this.bounds.left.store(this.bytes_left, Ordering::Relaxed);
        }
        let Some((form, _)) = &mut this.form else { return Poll::Ready(None) };
        while !this.is_read {
            let refused = match ready!(form.poll_next_field(context)) {
                Ok(None) => {
                    this.is_read = true;
                    None
                }
                Ok(Some(field)) if this.after == AfterFile::Nothing => after_file(&field).map(Error::Malformed),
                // This file is whole. What is wrong with the next one is not its fault.
                Ok(Some(field)) if field.name() == Some("file") && has_file_name(&field) => {
                    (this.next, this.is_read) = (Some(Ok(field)), true);
                    None
                }
                Ok(Some(field)) => Some(Error::Malformed(other_field(&field))),
                Err(error) if this.after == AfterFile::Files && is_of_head(&error) => {
                    (this.next, this.is_read) = (Some(Err(error)), true);
                    None
                }
                Err(error) => Some(form_error(error)),
            };
            if let Some(refused) = refused {
                return Poll::Ready(Some(Err(refused)));
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for FileStream {
    fn drop(&mut self) {
        self.file = None; // before the form can be read on
        if let Some((form, tx)) = self.form.take() {
            let _nobody_waits = tx.send(Returned { form, next: self.next.take() });
        }
    }
}

/// What may come after a file in a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterFile {
    /// Nothing that would change the result; the rest is read and checked with the file.
    Nothing,
    /// Other files, which are read and checked later.
    Files,
}

/// Why a field must not come after the file.
fn after_file(field: &Field<'_>) -> Option<String> {
    if file_name(field).is_some() {
        return Some("the form has a second file: send each file in a request of its own".to_owned());
    }
    let Some(name) = Grouping::field_name(field.name()) else { return Some(unknown_field(field)) };
    Some(format!("the form has {name} after the file: send it before the file, or as a query parameter"))
}

/// What is wrong with a field that is neither the file nor about the grouping.
fn unknown_field(field: &Field<'_>) -> String {
    match field.name().unwrap_or_default() {
        "file" if has_file_name(field) => NAME_NOT_UTF_8.to_owned(),
        "file" => "the form has a field \"file\" without a file name".to_owned(),
        name => format!("the form has an unknown field {}: there are file, group_by and sum", Quoted(name)),
    }
}

/// Why a field must not be beside files that become parts.
fn other_field(field: &Field<'_>) -> String {
    if field.name() == Some("file") && has_file_name(field) {
        return NAME_NOT_UTF_8.to_owned();
    }
    let name = Quoted(field.name().unwrap_or_default()).to_string();
    format!("the form has a field {name} that is not a file named \"file\": options are query parameters")
}

const NAME_NOT_UTF_8: &str = "the name of the file is not UTF-8";

/// Whether a field has a file name, in whatever encoding.
fn has_file_name(field: &Field<'_>) -> bool {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION).map_or(&[][..], HeaderValue::as_bytes);
    disposition.to_ascii_lowercase().windows(b"filename".len()).any(|bytes| bytes == b"filename")
}

/// Whether a field is wrong whose head has arrived.
fn is_of_head(error: &multer::Error) -> bool {
    matches!(
        error,
        multer::Error::ReadHeaderFailed(_)
            | multer::Error::DecodeHeaderName { .. }
            | multer::Error::DecodeHeaderValue { .. }
    )
}

fn no_boundary() -> TaskError {
    let message =
        "The form's Content-Type has no boundary, which separates its fields: leave the header to the HTTP library";
    TaskError::new(StatusCode::BAD_REQUEST, "Content-Type", message)
}

fn no_file_selected() -> TaskError {
    TaskError::bad_file("No file selected")
}

pub(super) fn no_file() -> TaskError {
    TaskError::bad_file("No file part in the request")
}

fn check_name(name: &str) -> Result<(), TaskError> {
    if name.is_empty() {
        return Err(no_file_selected());
    }
    match name.rsplit_once('.') {
        Some((_, extension)) if extension.eq_ignore_ascii_case("csv") => Ok(()),
        Some((_, extension)) => {
            Err(TaskError::bad_file(format!("File extension {} is not supported, it is csv", Quoted(extension))))
        }
        None => Err(TaskError::bad_file(format!("File name {} has no extension, it ends with .csv", Quoted(name)))),
    }
}

/// An error of the form's parser. If it was [`Pieces`] that failed, its own error.
fn form_error(error: multer::Error) -> Error {
    match error {
        multer::Error::StreamReadFailed(cause) => match cause.downcast::<Error>() {
            Ok(error) => *error,
            Err(cause) => Error::Aborted(cause.to_string()),
        },
        multer::Error::IncompleteStream | multer::Error::IncompleteFieldData { .. } => {
            Error::Malformed("the form ends before its last boundary".to_owned())
        }
        error => Error::Malformed(format!("the form: {error}")),
    }
}

/// A body, piece by piece. multer buffers all pieces that a stream has ready, so after each piece this stream is pending
/// once.
struct Pieces {
    body: BodyDataStream,
    bounds: Arc<Bounds>,
    rate: MinimumRate,
    too_slow: TooSlow,
    /// The next poll is to be pending.
    pause: bool,
}

/// Ends a form that arrives too slowly, though fast enough to keep its permit. Only time spent waiting for the client
/// counts.
struct MinimumRate {
    /// Bytes that have to arrive within `time_max`.
    bytes_min: u64,
    time_max: Duration,
    bytes: u64,
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl MinimumRate {
    fn new(time_max: Duration) -> Self {
        let bytes_min = FORM_BYTES_PER_S_MIN * time_max.as_secs();
        Self { bytes_min, time_max, bytes: 0, waited: Duration::ZERO, waiting: None }
    }

    fn received(&mut self, bytes: u64) {
        self.waited += self.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        self.bytes += bytes;
        if self.bytes >= self.bytes_min {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
    }

    /// Ready when the client is too slow.
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        let left = self.time_max.saturating_sub(self.waited);
        let (_, waiting) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        let (bytes_min, seconds) = (self.bytes_min, self.time_max.as_secs());
        let slow = format!("less than {bytes_min} bytes of the form came within {seconds} s");
        waiting.as_mut().poll(context).map(|()| Error::Aborted(slow))
    }
}

impl Stream for Pieces {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.pause) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = match self.body.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(piece))) => piece,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(interrupted(error)))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                self.too_slow.pace().waits();
                if let Poll::Ready(ended) = self.too_slow.poll_ended(context) {
                    return Poll::Ready(Some(Err(ended)));
                }
                return self.rate.poll_wait(context).map(|slow| Some(Err(slow)));
            }
        };
        self.too_slow.pace().moved(piece.len());
        let bytes = piece.len() as u64;
        self.rate.received(bytes);
        let Bounds { left, is_over } = &*self.bounds;
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        if is_over.load(Ordering::Relaxed) {
            context.waker().wake_by_ref();
            return if taken.is_ok() { Poll::Pending } else { Poll::Ready(None) };
        }
        self.pause = true;
        if taken.is_err() {
            let what = format!("the form has more than {FORM_BYTES_MAX} bytes beside its file");
            return Poll::Ready(Some(Err(Error::Malformed(what))));
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
#[path = "file_form_tests.rs"]
mod tests;
