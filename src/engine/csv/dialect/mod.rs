//! Turns a file of another dialect into plain CSV: decompressed, decoded to UTF-8, rewritten with commas.
//!
//! [`Transformer`] is a state machine without I/O. What it writes does not depend on where the input is cut. Each step takes
//! little input and writes little output, however much a few compressed bytes may become.
//!
//! What is wrong with a row (a quote that is not closed, too many cells) is not checked here: the row is written so that the
//! scanner finds the same fault in it.

mod decode;
mod decompress;
mod rewrite;
#[cfg(test)]
mod tests;

pub use self::decompress::Compression;
use self::{decode::Utf8Decoder, decompress::Decompressor, rewrite::Rewriter};
use crate::{
    error::{Error, dialect::DialectError},
    limits::REWRITE_STEP_BYTES,
    model::dialect::Dialect,
};

/// The state of a file that is turned into plain CSV.
pub struct Transformer {
    decompressor: Option<Decompressor>,
    text: TextTransformer,
    /// Decompressed bytes of the step that runs.
    decompressed: Vec<u8>,
    /// Bytes that were decompressed, or taken if the file is not compressed.
    plain_bytes: u64,
    plain_bytes_max: u64,
}

impl Transformer {
    /// The beginning of a file. Its text, once it is decompressed, may have `plain_bytes_max` bytes.
    ///
    /// Errors: the decompressor cannot be allocated.
    pub fn new(dialect: &Dialect, compression: Option<Compression>, plain_bytes_max: u64) -> Result<Self, Error> {
        Ok(Self {
            decompressor: compression.map(Decompressor::new).transpose()?,
            text: TextTransformer {
                decoder: dialect.encoding.map(|encoding| Utf8Decoder::new(encoding, compression.is_some())),
                rewriter: dialect.changes_rows().then(|| Rewriter::new(dialect)),
                decoded: Vec::new(),
            },
            decompressed: Vec::new(),
            plain_bytes: 0,
            plain_bytes_max,
        })
    }

    /// Bytes of text that were taken so far, decompressed.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Takes some bytes from the front of `input`, and appends what they become to `output`. It takes none if an earlier
    /// step has left decompressed bytes to be written; then it writes those.
    ///
    /// Errors: the input is not of the dialect, or becomes too long.
    pub fn step(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), Error> {
        let Some(decompressor) = &mut self.decompressor else {
            let (step, rest) = input.split_at(input.len().min(REWRITE_STEP_BYTES));
            *input = rest;
            self.plain_bytes += step.len() as u64;
            return Ok(self.text.push(step, output)?);
        };
        self.decompressed.clear();
        decompressor.step(input, &mut self.decompressed)?;
        self.count_plain(self.decompressed.len())?;
        Ok(self.text.push(&self.decompressed, output)?)
    }

    /// Ends the file: appends the rest of the output.
    ///
    /// Errors: the input is incomplete, not of the dialect, or becomes too long.
    pub fn finish(&mut self, output: &mut Vec<u8>) -> Result<(), Error> {
        self.decompressed.clear();
        if let Some(decompressor) = &mut self.decompressor {
            decompressor.finish(&mut self.decompressed)?;
            self.count_plain(self.decompressed.len())?;
        }
        self.text.push(&self.decompressed, output)?;
        Ok(self.text.finish(output)?)
    }

    fn count_plain(&mut self, bytes: usize) -> Result<(), Error> {
        self.plain_bytes += bytes as u64;
        if self.plain_bytes > self.plain_bytes_max {
            return Err(Error::UploadTooLarge { bytes_max: self.plain_bytes_max });
        }
        Ok(())
    }
}

/// What comes after the decompression.
struct TextTransformer {
    decoder: Option<Utf8Decoder>,
    rewriter: Option<Rewriter>,
    /// Decoded bytes of the step that runs.
    decoded: Vec<u8>,
}

impl TextTransformer {
    fn push(&mut self, text: &[u8], output: &mut Vec<u8>) -> Result<(), DialectError> {
        match (&mut self.decoder, &mut self.rewriter) {
            (None, None) => output.extend_from_slice(text),
            (None, Some(rewriter)) => rewriter.push(text, output)?,
            (Some(decoder), None) => decoder.push(text, false, output)?,
            (Some(decoder), Some(rewriter)) => {
                self.decoded.clear();
                decoder.push(text, false, &mut self.decoded)?;
                rewriter.push(&self.decoded, output)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, output: &mut Vec<u8>) -> Result<(), DialectError> {
        self.decoded.clear();
        if let Some(decoder) = &mut self.decoder {
            decoder.push(&[], true, &mut self.decoded)?;
        }
        match &mut self.rewriter {
            None => output.extend_from_slice(&self.decoded),
            Some(rewriter) => {
                rewriter.push(&self.decoded, output)?;
                rewriter.finish(output)?;
            }
        }
        Ok(())
    }
}
