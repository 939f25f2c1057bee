//! Request bodies: JSON in memory, at most 1 MiB of it, and the one file of a multipart form as a stream.
//!
//! Invariant: nothing here holds more of a body than `limits.rs` says, whatever the client announces or sends.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, BodyDataStream},
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use multer::{Field, Multipart};
use serde::de::DeserializeOwned;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Surface,
    convert::{Refusal, SurveyRefusal},
    log,
};
use crate::{
    api::caller::Caller,
    engine::{
        runtime::transfers::{Permit, TooSlow},
        state::transfers::{self, Origin},
    },
    error::{Error, quoted::Quoted},
    limits::{
        FORM_BYTES_MAX, FORM_BYTES_PER_S_MIN, JSON_BYTES_MAX, LARGE_JSON_BODY_S, REFUSED_BYTES_MAX,
        SMALL_JSON_BYTES_MAX, TRANSFER_SHORT_GRACE_S,
    },
};

/// How long the rest of a refused body is read, so that the client gets to read the answer.
pub(super) const REFUSED_MAX: Duration = Duration::from_secs(5);
/// The same where permits are few.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(1);
/// How long a JSON body may take before its call counts as a long one.
const SHORT_BODY_MAX: Duration = Duration::from_secs(1);

/// A JSON object, whatever content type it came as: the original servers parsed what was there.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned + std::fmt::Debug> FromRequest<Surface> for Asked<T> {
    type Rejection = SurveyRefusal;

    async fn from_request(request: Request, surface: &Surface) -> Result<Self, SurveyRefusal> {
        let Caller { origin, .. } = Caller::of(request.extensions());
        let body = request.into_body().into_data_stream();
        if !surface.takes_jobs() {
            throw_away(body, BUSY_MAX).await;
            return Err(Error::JobsRefused.into()); // whatever the body says
        }
        let (bytes, _permit) = read_in_time(body, origin, surface).await?;
        let refused = |reason: String| SurveyRefusal::new(StatusCode::BAD_REQUEST, reason);
        // serde would take an array for the fields in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(refused("the body is no JSON object".to_owned()));
        }
        // serde's text may quote what came, whatever its length.
        let told = |error: serde_json::Error| format!("the body: {}", log::cut(&error.to_string()));
        let asked = serde_json::from_slice(&bytes).map_err(|error| refused(told(error)))?;
        log::parameters(&asked);
        Ok(Self(asked))
    }
}

/// The whole body, and the permit that a large one takes for as long as it is there.
type Read = (Vec<u8>, Option<Permit>);

/// The same of a client that may be slow. One that takes more than a moment takes a permit for a long call.
async fn read_in_time(body: BodyDataStream, origin: Origin, surface: &Surface) -> Result<Read, SurveyRefusal> {
    let long_call = Turns::default();
    let mut reading = std::pin::pin!(read_json(body, origin, surface, &long_call));
    if let Ok(read) = timeout(SHORT_BODY_MAX, &mut reading).await {
        return read;
    }
    let end = CancellationToken::new();
    let permit = tokio::select! {
        read = &mut reading => return read,
        permit = surface.long_call(origin, end.clone()) => permit.map_err(SurveyRefusal::from)?,
    };
    long_call.begin(permit.pace());
    let seconds = surface.idle_max.as_secs();
    let reason = format!("the body did not come within {seconds} s");
    let too_slow = SurveyRefusal::new(StatusCode::REQUEST_TIMEOUT, reason);
    tokio::select! {
        read = timeout(surface.idle_max, reading) => read.unwrap_or(Err(too_slow)),
        () = end.cancelled() => Err(Error::TooSlow { seconds: TRANSFER_SHORT_GRACE_S }.into()),
    }
}

/// Whose turn it is in a call that may get a permit later: its pace is measured from then on.
#[derive(Default)]
struct Turns {
    pace: OnceLock<Arc<transfers::Pace>>,
    is_clients: AtomicBool,
}

impl Turns {
    /// The call has a permit from here on.
    fn begin(&self, pace: Arc<transfers::Pace>) {
        let pace = self.pace.get_or_init(|| pace);
        if self.is_clients.load(Ordering::Relaxed) {
            pace.waits();
        }
    }

    /// From here on the client is waited for.
    fn is_clients(&self) {
        self.is_clients.store(true, Ordering::Relaxed);
        self.pace.get().into_iter().for_each(|pace| pace.waits());
    }

    /// The client is not waited for any more: so many bytes have come.
    fn is_ours(&self, bytes: usize) {
        self.is_clients.store(false, Ordering::Relaxed);
        self.pace.get().into_iter().for_each(|pace| pace.moved(bytes));
    }
}

/// The body of a call, whose turns `long_call` is told.
async fn read_json(
    mut body: BodyDataStream,
    origin: Origin,
    surface: &Surface,
    long_call: &Turns,
) -> Result<Read, SurveyRefusal> {
    let mut bytes = Vec::new();
    let (mut permit, large, end_large) = (None, Turns::default(), CancellationToken::new());
    loop {
        [long_call, &large].into_iter().for_each(Turns::is_clients);
        let piece = tokio::select! {
            piece = body.next() => piece,
            () = end_large.cancelled() => {
                let reason = format!(
                    "the body came at less than 1 KiB/s or took more than {LARGE_JSON_BODY_S} s while another waited"
                );
                return Err(SurveyRefusal::new(StatusCode::REQUEST_TIMEOUT, reason));
            }
        };
        let piece = piece.transpose().map_err(|error| SurveyRefusal::from(broken(error)))?;
        let bytes_come = piece.as_ref().map_or(0, Bytes::len);
        [long_call, &large].into_iter().for_each(|turns| turns.is_ours(bytes_come));
        let Some(piece) = piece else { break };
        let so_far = bytes.len() + piece.len();
        if so_far > JSON_BYTES_MAX {
            drop((bytes, permit));
            throw_away(body, REFUSED_MAX).await;
            let reason = format!("the body has more than {JSON_BYTES_MAX} bytes");
            return Err(SurveyRefusal::new(StatusCode::PAYLOAD_TOO_LARGE, reason));
        }
        if so_far > SMALL_JSON_BYTES_MAX && permit.is_none() {
            permit = surface.large_bodies.enter(origin, end_large.clone()).await;
            if let Some(permit) = &permit {
                large.begin(permit.pace());
            } else {
                drop(bytes);
                throw_away(body, REFUSED_MAX).await;
                let reason = "too many large bodies are being read: try again";
                return Err(SurveyRefusal::new(StatusCode::TOO_MANY_REQUESTS, reason));
            }
        }
        // Exactly what a body of its kind may have: a vector that grows by itself takes twice as much.
        let bytes_max = if permit.is_some() { JSON_BYTES_MAX } else { SMALL_JSON_BYTES_MAX };
        bytes.reserve_exact(bytes_max - bytes.len());
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, permit))
}

/// Reads on for a while: a client that is still sending would take a closed connection for the answer.
pub(super) async fn throw_away(mut body: BodyDataStream, time_max: Duration) {
    let mut left = REFUSED_BYTES_MAX;
    let read = async {
        while let Some(Ok(piece)) = body.next().await
            && piece.len() as u64 <= left
        {
            left -= piece.len() as u64;
        }
    };
    let _enough_either_way = timeout(time_max, read).await;
}

fn broken(error: axum::Error) -> Error {
    Error::Aborted(error.to_string())
}

/// A form that holds a file named `file`; what else it holds is skipped.
pub(super) struct FileForm {
    form: Multipart<'static>,
    bounds: Arc<Bounds>,
}

/// What may still come of a form.
struct Bounds {
    /// Bytes around the file; or all that are thrown away, once nothing of the form is wanted.
    left: AtomicU64,
    is_over: AtomicBool,
}

impl FileForm {
    /// Errors: the request is no multipart form.
    pub(super) async fn new(
        headers: &HeaderMap,
        body: Body,
        transfer: Arc<transfers::Pace>,
        idle_max: Duration,
    ) -> Result<Self, Refusal> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let boundary = multer::parse_boundary(content_type.unwrap_or_default());
        let Ok(boundary) = boundary else {
            throw_away(body.into_data_stream(), REFUSED_MAX).await;
            return Err(no_file());
        };
        let bounds = Bounds { left: AtomicU64::new(FORM_BYTES_MAX as u64), is_over: AtomicBool::new(false) };
        let bounds = Arc::new(bounds);
        let (body, pace) = (body.into_data_stream(), Pace::new(idle_max));
        let too_slow = TooSlow::new(transfer, idle_max);
        let pieces = Pieces { body, bounds: Arc::clone(&bounds), pace, too_slow, pause: false };
        Ok(Self { form: Multipart::new(pieces, boundary), bounds })
    }

    /// The content of the file as it comes. Errors: the form has none, or none that is a CSV by its name.
    pub(super) async fn file(
        &mut self,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + use<>, Refusal> {
        let file = self.find().await?;
        self.bounds.left.store(u64::MAX, Ordering::Relaxed); // the engine has bounds of its own for it
        Ok(file.map(|piece| piece.map_err(form_error)))
    }

    async fn find(&mut self) -> Result<Field<'static>, Refusal> {
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

    /// Takes what comes after the file, or after what was refused, so that the client gets to read the answer. The
    /// form's parser, which would keep the head of a part until it ends, sees nothing of it.
    pub(super) async fn finish(mut self) {
        self.bounds.left.store(REFUSED_BYTES_MAX, Ordering::Relaxed);
        self.bounds.is_over.store(true, Ordering::Relaxed);
        let read = async { while let Ok(Some(_skipped)) = self.form.next_field().await {} };
        let _enough_either_way = timeout(REFUSED_MAX, read).await;
    }
}

fn no_file() -> Refusal {
    Refusal::bad_file("No file part in the request")
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(Refusal::bad_file("No file selected"));
    }
    match name.rsplit_once('.') {
        Some((_, extension)) if extension.eq_ignore_ascii_case("csv") => Ok(()),
        Some((_, extension)) => {
            Err(Refusal::bad_file(format!("File extension {} is not supported, it is csv", Quoted(extension))))
        }
        None => Err(Refusal::bad_file(format!("File name {} has no extension, it ends with .csv", Quoted(name)))),
    }
}

/// What the form's parser found; an error of our own stream comes out as it went in.
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

/// A body, piece by piece: multer takes all that a stream has ready, so this one has never more than one piece.
struct Pieces {
    body: BodyDataStream,
    bounds: Arc<Bounds>,
    pace: Pace,
    too_slow: TooSlow,
    pause: bool,
}

/// Gives up a client that sends no more than what keeps its permit. Only the time counts in which it is waited for.
struct Pace {
    /// So much has to come ...
    bytes_min: u64,
    /// ... within so much time.
    time_max: Duration,
    bytes: u64,
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Pace {
    fn new(time_max: Duration) -> Self {
        let bytes_min = FORM_BYTES_PER_S_MIN * time_max.as_secs();
        Self { bytes_min, time_max, bytes: 0, waited: Duration::ZERO, waiting: None }
    }

    fn came(&mut self, bytes: u64) {
        self.waited += self.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        self.bytes += bytes;
        if self.bytes >= self.bytes_min {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
    }

    /// Ready when it takes too long.
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
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(broken(error)))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                self.too_slow.pace().waits();
                if let Poll::Ready(ended) = self.too_slow.poll_ended(context) {
                    return Poll::Ready(Some(Err(ended)));
                }
                return self.pace.poll_wait(context).map(|slow| Some(Err(slow)));
            }
        };
        self.too_slow.pace().moved(piece.len());
        let bytes = piece.len() as u64;
        self.pace.came(bytes);
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

    use super::*;

    const IDLE_MAX: Duration = Duration::from_secs(60);

    fn transfer() -> Arc<transfers::Pace> {
        Arc::new(transfers::Pace::new(CancellationToken::new()))
    }

    /// What a form gives whose bytes come as pieces of this size.
    async fn file_of(form: &[u8], piece_bytes: usize) -> Result<Vec<u8>, String> {
        let pieces: Vec<_> = form.chunks(piece_bytes).map(|piece| Ok::<_, Error>(piece.to_vec())).collect();
        let headers = [(header::CONTENT_TYPE, "multipart/form-data; boundary=B".parse().expect("a value"))];
        let body = Body::from_stream(stream::iter(pieces));
        let mut form = FileForm::new(&headers.into_iter().collect(), body, transfer(), IDLE_MAX)
            .await
            .map_err(|refusal| refusal.message)?;
        let file = form.file().await.map_err(|refusal| refusal.message)?;
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
    async fn what_is_no_file_is_bounded() {
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
