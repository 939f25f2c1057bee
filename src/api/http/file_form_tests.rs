//! Unit tests of forms with files.

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
