//! The file in a multipart form, as a stream.
//!
//! Invariant: at most [`FORM_BYTES_MAX`] bytes of a form that are not its file are read, whatever the client sends.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use multer::{Field, Multipart};
use tokio::time::{Sleep, sleep, timeout};

use super::{
    discard::{DISCARD_MAX, discard},
    errors::{TaskError, interrupted},
};
use crate::{
    engine::{runtime::transfers::TooSlow, state::transfers::Pace},
    error::{Error, quoted::Quoted},
    limits::{FORM_BYTES_MAX, FORM_BYTES_PER_S_MIN, REFUSED_BYTES_MAX},
};

/// A multipart form with a file in its field `file`. Other fields are skipped.
pub(super) struct FileForm {
    form: Multipart<'static>,
    bounds: Arc<Bounds>,
}

/// How much of a form may still arrive.
struct Bounds {
    /// Bytes that are not of the file; or, once the form is over, all bytes that are still read and dropped.
    left: AtomicU64,
    /// The file has been read, or the form was refused: the rest is read and dropped.
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
        Ok(Self { form: Multipart::new(pieces, boundary), bounds })
    }

    /// The content of the file as it arrives. Errors: the form has no file, or its name does not end with `.csv`.
    pub(super) async fn file(
        &mut self,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + use<>, TaskError> {
        let file = self.find_file().await?;
        self.bounds.left.store(u64::MAX, Ordering::Relaxed); // the engine bounds the file
        Ok(file.map(|piece| piece.map_err(form_error)))
    }

    async fn find_file(&mut self) -> Result<Field<'static>, TaskError> {
        while let Some(field) = self.form.next_field().await.map_err(form_error)? {
            if field.name() == Some("file")
                && let Some(name) = field.file_name()
            {
                check_name(name)?;
                return Ok(field);
            }
        }
        Err(no_file())
    }

    /// Reads and drops the rest of the form, so that the client gets to read the answer. [`Pieces`] keeps the rest from the
    /// parser, which would hold the head of a field in memory until it ends.
    pub(super) async fn finish(mut self) {
        self.bounds.left.store(REFUSED_BYTES_MAX, Ordering::Relaxed);
        self.bounds.is_over.store(true, Ordering::Relaxed);
        let read = async { while let Ok(Some(_skipped)) = self.form.next_field().await {} };
        let _enough_either_way = timeout(DISCARD_MAX, read).await;
    }
}

fn no_file() -> TaskError {
    TaskError::bad_file("No file part in the request")
}

fn check_name(name: &str) -> Result<(), TaskError> {
    if name.is_empty() {
        return Err(TaskError::bad_file("No file selected"));
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
        let file = form.file().await.map_err(|error| error.message)?;
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
        let form = part("name=\"other\"", "x") + &part("name=\"file\"; filename=\"P.CSV\"", content);
        let form = form + &part("name=\"later\"", "y") + "--B--\r\n";
        for piece_bytes in [1, 2, 3, 7, 16, 1000] {
            assert_eq!(file_of(form.as_bytes(), piece_bytes).await.as_deref(), Ok(content.as_bytes()), "{piece_bytes}");
        }
        let cut = &form.as_bytes()[..form.len() - 80];
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
        let mut file = form.file().await.expect("a file");
        file.next().await.expect("a piece").expect("no error");
        assert!(given.load(Ordering::Relaxed) <= 2, "{} pieces were taken for one", given.load(Ordering::Relaxed));
    }
}
