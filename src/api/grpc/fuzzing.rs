//! What the fuzz target `frames` checks of the bodies of uploads (`fuzz/src/bin/frames.rs`): however they are cut, they have the
//! same content and the same fault; and what prost reads of a body that is accepted is the same.

use bytes::Bytes;
use prost::Message;

use super::{
    content_parser::ContentParser,
    convert::to_stream_options,
    framing::{BodyError, Framing, Mode},
};

/// As `UploadReq` and `UploadChunk`.
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    options: Vec<u8>,
}

/// What a body is: its content, its options, and how it ends.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    content: Vec<u8>,
    options: Option<Vec<u8>>,
    ended: Result<(), BodyError>,
}

fn parse<'a>(mode: Mode, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut parser = ContentParser::new(mode);
    let mut found = Outcome { content: Vec::new(), options: None, ended: Ok(()) };
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        loop {
            let next = parser.next(&mut input);
            if let Some(options) = parser.take_options() {
                assert!(found.content.is_empty() && found.options.is_none(), "options after the content");
                found.options = Some(options);
            }
            match next {
                Ok(Some(slice)) => found.content.extend_from_slice(&slice),
                Ok(None) => break,
                Err(error) => return Outcome { ended: Err(error), ..found },
            }
        }
    }
    found.ended = parser.finish();
    found
}

/// The body of a call that has one message, or a stream of them.
pub fn check_body(is_stream: bool, body: &[u8]) {
    let mode = if is_stream { Mode::Stream } else { Mode::Unary };
    let whole = parse(mode, std::iter::once(body));
    assert_eq!(parse(mode, body.chunks(1)), whole, "byte by byte");
    let half = body.len() / 2;
    assert_eq!(parse(mode, [&body[..half], &body[half..]].into_iter()), whole, "in halves");
    if let Some(options) = &whole.options {
        drop(to_stream_options(options));
    }
    if whole.ended.is_err() {
        return;
    }
    let mut framing = Framing::new(mode);
    assert_eq!(framing.check(body).and_then(|()| framing.finish()), Ok(()));
    // prost reads message by message; it refuses some that no upload has, such as text that is not UTF-8.
    let (mut rest, mut content) = (body, Vec::new());
    while let Some((prefix, after)) = rest.split_first_chunk::<5>() {
        let [_flag, length @ ..] = *prefix;
        let (message, after) = after.split_at(u32::from_be_bytes(length) as usize);
        let Ok(message) = Content::decode(message) else { return };
        content.extend_from_slice(&message.data);
        rest = after;
    }
    assert_eq!(content, whole.content);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_kept_inputs_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frames");
        let mut inputs = 0;
        for entry in fs::read_dir(folder).expect("a corpus") {
            let input = fs::read(entry.expect("an entry").path()).expect("readable");
            check_body(input[0] == 1, &input[1..]);
            inputs += 1;
        }
        assert!(inputs > 3, "{inputs} inputs");
    }
}
