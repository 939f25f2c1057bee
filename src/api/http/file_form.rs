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
    next: Option<Field<'static>>,
    bounds: Arc<Bounds>,
}

/// A form whose file was read or dropped.
struct Returned {
    form: Multipart<'static>,
    next: Option<Field<'static>>,
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
        let Ok(boundary) = boundary else {
            discard(body.into_data_stream(), DISCARD_MAX).await;
            return Err(no_file());
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
        let field = match self.next.take() {
            Some(field) => field,
            None => match form.next_field().await.map_err(form_error)? {
                Some(field) => field,
                None => return Ok(None),
            },
        };
        let name = file_name(&field).ok_or_else(|| TaskError::bad_file(other_field(&field)))?;
        if name.is_empty() {
            return Err(no_file_selected());
        }
        check_encoding(&field)?;
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
            grouping.set(name, text_of(name, field).await?)?;
        } else if let Some(name) = file_name(&field) {
            check_encoding(&field)?;
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

fn check_encoding(file: &Field<'_>) -> Result<(), TaskError> {
    match unsupported_encoding(file.headers()) {
        Some(encoding) => Err(TaskError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "file", encoding)),
        None => Ok(()),
    }
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
    next: Option<Field<'static>>,
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
                Ok(Some(field)) if file_name(&field).is_some() => {
                    (this.next, this.is_read) = (Some(field), true);
                    None
                }
                Ok(Some(field)) => Some(Error::Malformed(other_field(&field))),
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
    /// Other files, which are read later.
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
        "file" => "the form has a field \"file\" without a file name".to_owned(),
        name => format!("the form has an unknown field {}: there are file, group_by and sum", Quoted(name)),
    }
}

/// Why a field must not be beside files that become parts.
fn other_field(field: &Field<'_>) -> String {
    let name = Quoted(field.name().unwrap_or_default()).to_string();
    format!("the form has a field {name} that is not a file named \"file\": options are query parameters")
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
mod tests {
    use futures_util::{TryStreamExt, stream};
    use tokio_util::sync::CancellationToken;

    use super::*;

    const IDLE_MAX: Duration = Duration::from_secs(60);

    fn transfer() -> Arc<Pace> {
        Arc::new(Pace::new(CancellationToken::new()))
    }

    /// What a form gives whose bytes come as pieces of this size.
    async fn file_of(form: &[u8], piece_bytes: usize) -> Result<Vec<u8>, String> {
        let pieces: Vec<_> = form.chunks(piece_bytes).map(|piece| Ok::<_, Error>(piece.to_vec())).collect();
        let headers = [(header::CONTENT_TYPE, "multipart/form-data; boundary=B".parse().expect("a value"))];
        let body = Body::from_stream(stream::iter(pieces));
        let mut form = FileForm::new(&headers.into_iter().collect(), body, transfer(), IDLE_MAX)
            .await
            .map_err(|error| error.message)?;
        let (_, file) = form.file().await.map_err(|error| error.message)?;
        let content = file.try_fold(Vec::new(), |mut content, piece| async move {
            content.extend_from_slice(&piece);
            Ok(content)
        });
        let content = content.await.map_err(|error| error.to_string());
        form.finish().await;
        content
    }

    fn part(head: &str, content: &str) -> String {
        format!("--B\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
    }

    #[tokio::test]
    async fn the_file_comes_whole_however_it_is_cut() {
        let content = "a,b\r\n1,2\r\n\r--B\r\n-";
        let form = part("name=\"sum\"", "x") + &part("name=\"file\"; filename=\"P.CSV\"", content) + "--B--\r\n";
        for piece_bytes in [1, 2, 3, 7, 16, 1000] {
            assert_eq!(file_of(form.as_bytes(), piece_bytes).await.as_deref(), Ok(content.as_bytes()), "{piece_bytes}");
        }
        let cut = &form.as_bytes()[..form.len() - 10];
        assert_eq!(file_of(cut, 7).await, Err("malformed request: the form ends before its last boundary".to_owned()));
    }

    #[tokio::test]
    async fn forms_without_a_file_say_what_is_missing() {
        for (head, expected) in [
            ("name=\"other\"; filename=\"a.csv\"", "No file part in the request"),
            ("name=\"file\"", "No file part in the request"),
            ("name=\"file\"; filename=\"\"", "No file selected"),
            ("name=\"file\"; filename=\"a.txt\"", "File extension \"txt\" is not supported, it is csv"),
            ("name=\"file\"; filename=\"csv\"", "File name \"csv\" has no extension, it ends with .csv"),
            ("name=\"file\"; filename=\"a.\"", "File extension \"\" is not supported, it is csv"),
        ] {
            let form = part(head, "x") + "--B--\r\n";
            assert_eq!(file_of(form.as_bytes(), 7).await, Err(expected.to_owned()), "{head}");
        }
    }

    #[tokio::test]
    async fn nothing_after_the_file_is_ignored() {
        let file = part("name=\"file\"; filename=\"a.csv\"", "x");
        let refused = |what: &str| Err(format!("malformed request: the form has {what}"));
        let second = refused("a second file: send each file in a request of its own");
        let late = |name| refused(&format!("{name} after the file: send it before the file, or as a query parameter"));
        for (field, expected) in [
            (file.clone(), second.clone()),
            (part("name=\"file\"; filename*=UTF-8''b.csv", "y"), second),
            (part("name=\"group_by\"", "a"), late("group_by")),
            (part("name=\"sum\"", "a"), late("sum")),
            (part("name=\"file\"", "a text"), refused("a field \"file\" without a file name")),
            (part("name=\"later\"", "y"), refused("an unknown field \"later\": there are file, group_by and sum")),
        ] {
            for piece_bytes in [1, 7, 1000] {
                let form = file.clone() + &field + "--B--\r\n";
                assert_eq!(file_of(form.as_bytes(), piece_bytes).await, expected, "{field}");
            }
        }
        let endless = file.clone() + &part(&format!("name=\"{}\"", "x".repeat(2 * FORM_BYTES_MAX)), "");
        let too_much = format!("malformed request: the form has more than {FORM_BYTES_MAX} bytes beside its file");
        assert_eq!(file_of(endless.as_bytes(), 1000).await, Err(too_much));
    }

    #[test]
    fn encoded_file_names_are_read() {
        for (disposition, expected) in [
            ("form-data; name=\"file\"; filename*=UTF-8''na%C3%AFve.csv", Some("na\u{ef}ve.csv")),
            ("form-data; filename=\"a;b.txt\"; FileName* = utf-8'en'b.csv ", Some("b.csv")),
            ("form-data; filename*=ISO-8859-1''na%EFve.csv", Some("na\u{ef}ve.csv")),
            ("form-data; filename=\"filename*=UTF-8''c.csv\"", None),
            ("form-data; filename*=UTF-8''%FF.csv", None),
            ("form-data; filename*=koi8-r''a.csv", None),
            ("form-data; filename*=a.csv", None),
        ] {
            assert_eq!(encoded_file_name(disposition.as_bytes()).as_deref(), expected, "{disposition}");
        }
    }

    #[tokio::test]
    async fn all_but_the_file_is_bounded() {
        let too_much = format!("malformed request: the form has more than {FORM_BYTES_MAX} bytes beside its file");
        let endless = "x".repeat(2 * FORM_BYTES_MAX);
        for form in [
            endless.clone(),                                // no boundary
            format!("--B\r\nX: {endless}"),                 // a part's head that does not end
            part("name=\"other\"", &endless) + "--B--\r\n", // a field that nobody asked for
            part("name=\"file\"", &endless) + "--B--\r\n",
            "--B\r\n\r\n\r\n".repeat(FORM_BYTES_MAX), // many of them
        ] {
            assert_eq!(file_of(form.as_bytes(), 1000).await, Err(too_much.clone()));
        }
    }

    /// multer polls a stream until it has nothing: a client that is faster than the disk would fill the memory.
    #[tokio::test]
    async fn the_parser_holds_one_piece_at_a_time() {
        const PIECES: usize = 1000;
        let given = Arc::new(AtomicU64::new(0));
        let head = Bytes::from(part("name=\"file\"; filename=\"a.csv\"", "")[..].trim_end().to_owned() + "\r\n\r\n");
        let count = Arc::clone(&given);
        let pieces = stream::iter(0..PIECES).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Error>(Bytes::from_static(&[b'x'; 1000]))
        });
        let body = Body::from_stream(stream::iter([Ok(head)]).chain(pieces));
        let headers = [(header::CONTENT_TYPE, "multipart/form-data; boundary=B".parse().expect("a value"))];
        let mut form = FileForm::new(&headers.into_iter().collect(), body, transfer(), IDLE_MAX).await.expect("a form");
        let (_, mut file) = form.file().await.expect("a file");
        file.next().await.expect("a piece").expect("no error");
        assert!(given.load(Ordering::Relaxed) <= 2, "{} pieces were taken for one", given.load(Ordering::Relaxed));
    }
}
