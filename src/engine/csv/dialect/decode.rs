//! Text of any encoding to UTF-8. Bytes that the encoding does not have are an error: nothing is replaced.

use encoding_rs::DecoderResult;

use crate::{error::dialect::DialectError, model::dialect::Encoding};

/// Bytes that are decoded at once.
const BUFFER_BYTES: usize = 4 * 1024;

/// The state of a text that is decoded.
pub(super) struct Utf8Decoder {
    decoder: encoding_rs::Decoder,
    /// Whether the text was decompressed before, for errors.
    is_decompressed: bool,
    /// Bytes of the text that were taken.
    offset: u64,
}

impl Utf8Decoder {
    pub(super) fn new(encoding: Encoding, is_decompressed: bool) -> Self {
        Self { decoder: encoding.decoder(), is_decompressed, offset: 0 }
    }

    /// Decodes the next bytes of the text, and if `is_last`, its end.
    ///
    /// Errors: bytes that the encoding does not have, or an incomplete character at the end.
    pub(super) fn push(&mut self, mut text: &[u8], is_last: bool, output: &mut Vec<u8>) -> Result<(), DialectError> {
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
