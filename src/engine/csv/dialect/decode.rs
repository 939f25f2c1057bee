//! Text of any encoding to UTF-8. Bytes that the encoding does not have are an error: nothing is replaced.

use encoding_rs::DecoderResult;

use crate::{error::dialect::DialectError, model::dialect::Encoding};

/// Bytes that are decoded at once.
const BUFFER_BYTES: usize = 4 * 1024;

/// Bytes of the longest byte order mark.
const MARK_BYTES_MAX: usize = 3;

/// The state of a text that is decoded.
pub(super) struct Utf8Decoder {
    decoder: encoding_rs::Decoder,
    /// Whether the text was decompressed before, for errors.
    is_decompressed: bool,
    /// Bytes of the text that were taken.
    offset: u64,
    /// The first bytes, until there are enough to see whether they are a byte order mark. The decoder gets them at once: if it got
    /// them in pieces, it would be wrong about where a bad byte is.
    start: Option<Vec<u8>>,
}

impl Utf8Decoder {
    pub(super) fn new(encoding: Encoding, is_decompressed: bool) -> Self {
        Self { decoder: encoding.decoder(), is_decompressed, offset: 0, start: Some(Vec::new()) }
    }

    /// Decodes the next bytes of the text, and if `is_last`, its end.
    ///
    /// Errors: bytes that the encoding does not have, or an incomplete character at the end.
    pub(super) fn push(&mut self, mut text: &[u8], is_last: bool, output: &mut Vec<u8>) -> Result<(), DialectError> {
        if let Some(mut start) = self.start.take() {
            let (more, rest) = text.split_at(text.len().min(MARK_BYTES_MAX - start.len()));
            start.extend_from_slice(more);
            if start.len() < MARK_BYTES_MAX && !is_last {
                self.start = Some(start);
                return Ok(());
            }
            let is_all = is_last && rest.is_empty();
            self.decode(&start, is_all, output)?;
            if is_all {
                return Ok(());
            }
            text = rest;
        }
        self.decode(text, is_last, output)
    }

    fn decode(&mut self, mut text: &[u8], is_last: bool, output: &mut Vec<u8>) -> Result<(), DialectError> {
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            let (result, taken, decoded) = self.decoder.decode_to_utf8_without_replacement(text, &mut buffer, is_last);
            self.offset += taken as u64;
            text = &text[taken..];
            output.extend_from_slice(&buffer[..decoded]);
            match result {
                DecoderResult::InputEmpty => return Ok(()),
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(bytes, bytes_after) => {
                    return Err(DialectError::Undecodable {
                        encoding: self.decoder.encoding().name(),
                        offset: self.offset.saturating_sub(u64::from(bytes) + u64::from(bytes_after)),
                        decompressed: self.is_decompressed,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a text in pieces becomes.
    fn decode<'a>(encoding: &str, pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, String> {
        let mut decoder = Utf8Decoder::new(encoding.parse().expect("an encoding"), false);
        let mut output = Vec::new();
        let all = || -> Result<(), DialectError> {
            for piece in pieces {
                decoder.push(piece, false, &mut output)?;
            }
            decoder.push(&[], true, &mut output)
        };
        all().map_err(|error| error.to_string())?;
        Ok(output)
    }

    #[test]
    fn what_begins_like_a_byte_order_mark_is_the_same_in_any_pieces() {
        let texts: [&[u8]; 8] =
            [b"", b"a", b"\xef", b"\xef\xbb", b"\xef\xbb\xbf", b"\xef\xbb\xbfa", b"\xef\xbb\xc2a,b", b"\xff\xfea\0"];
        for encoding in ["utf-8", "windows-1252", "utf-16le", "shift_jis", "iso-2022-jp", "gb18030"] {
            for text in texts {
                let whole = decode(encoding, std::iter::once(text));
                assert_eq!(decode(encoding, text.chunks(1)), whole, "{encoding}, {text:?}");
                assert_eq!(decode(encoding, text.chunks(2)), whole, "{encoding}, {text:?}");
            }
        }
        let error = decode("iso-2022-jp", b"\xef\xbb\xc2a".chunks(1)).expect_err("no text");
        assert_eq!(error, "byte 0 of the file is not valid ISO-2022-JP");
    }
}
