//! gzip and Zstandard, step by step.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use crate::{
    error::{Error, dialect::DialectError},
    limits::{MIB, REWRITE_STEP_BYTES, ZSTD_WINDOW_LOG_MAX},
    model::dialect::Decompress,
};

/// Bytes of Zstandard that are decompressed in one step.
const STEP_BYTES: usize = 4 * REWRITE_STEP_BYTES;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952
    Gzip,
    /// RFC 8878
    Zstd,
}

impl Compression {
    /// The compression of a file that begins with `first`. `None`: it is not compressed.
    pub fn of(decompress: Decompress, first: &[u8]) -> Option<Self> {
        match decompress {
            Decompress::Gzip => Some(Self::Gzip),
            Decompress::Zstd => Some(Self::Zstd),
            Decompress::Auto if first.starts_with(b"\x1f\x8b") => Some(Self::Gzip),
            // A frame, or a frame to be skipped (RFC 8878, sections 3.1.1 and 3.1.2).
            Decompress::Auto => match *first {
                [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
                _ => None,
            },
        }
    }
}

/// The state of a file that is decompressed.
pub(super) enum Decompressor {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd {
        decoder: Box<DCtx<'static>>,
        /// Whether the file may end here: after a frame.
        may_end: bool,
    },
}

impl Decompressor {
    /// Errors: there is no memory for it.
    pub(super) fn new(compression: Compression) -> Result<Self, Error> {
        match compression {
            Compression::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))),
            Compression::Zstd => {
                let failed = |what: &str| Error::Internal(format!("zstd: {what}"));
                let mut decoder = DCtx::try_create().ok_or_else(|| failed("out of memory"))?;
                decoder
                    .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                    .map_err(|code| failed(get_error_name(code)))?;
                Ok(Self::Zstd { decoder: Box::new(decoder), may_end: false })
            }
        }
    }

    /// Takes some bytes from the front of `input`, and puts what they become into `output`, which is empty. It may take bytes without output, and
    /// write output without taking bytes.
    ///
    /// Errors: the input is not valid.
    pub(super) fn step(&mut self, input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), DialectError> {
        match self {
            Self::Gzip(decoder) => {
                // It writes at most its own buffer for each call.
                let taken = decoder.write(input).map_err(|error| gzip_error(&error))?;
                *input = &input[taken..];
                std::mem::swap(output, decoder.get_mut());
            }
            Self::Zstd { decoder, may_end } => {
                output.resize(STEP_BYTES, 0);
                let mut to = OutBuffer::around(&mut output[..]);
                let mut from = InBuffer::around(input);
                let hint = decoder.decompress_stream(&mut to, &mut from).map_err(zstd_error)?;
                let (written, taken) = (to.pos(), from.pos());
                *may_end = hint == 0;
                output.truncate(written);
                *input = &input[taken..];
            }
        }
        Ok(())
    }

    /// Ends the input, and puts the rest into `output`, which is empty.
    ///
    /// Errors: the input is incomplete, or its checksum is wrong.
    pub(super) fn finish(&mut self, output: &mut Vec<u8>) -> Result<(), DialectError> {
        match self {
            Self::Gzip(decoder) => {
                let incomplete = |_| DialectError::decompress("gzip", "it is incomplete, or its checksum is wrong");
                decoder.try_finish().map_err(incomplete)?;
                std::mem::swap(output, decoder.get_mut());
                Ok(())
            }
            Self::Zstd { may_end: true, .. } => Ok(()),
            Self::Zstd { decoder, .. } => {
                // The input is taken, so what is left to be written is less than a block of 128 KiB.
                let (mut piece, mut written, mut hint) = (vec![0; STEP_BYTES], STEP_BYTES, 1);
                while written == STEP_BYTES && hint != 0 {
                    let mut to = OutBuffer::around(&mut piece[..]);
                    hint = decoder.decompress_stream(&mut to, &mut InBuffer::around(&[])).map_err(zstd_error)?;
                    written = to.pos();
                    output.extend_from_slice(&piece[..written]);
                }
                if hint == 0 { Ok(()) } else { Err(DialectError::decompress("zstd", "it is incomplete")) }
            }
        }
    }
}

fn gzip_error(error: &std::io::Error) -> DialectError {
    DialectError::decompress("gzip", error.to_string())
}

fn zstd_error(code: zstd_safe::ErrorCode) -> DialectError {
    let window_mib = (1 << ZSTD_WINDOW_LOG_MAX) / MIB;
    let problem = format!("{}; windows of up to {window_mib} MiB are read", get_error_name(code));
    DialectError::decompress("zstd", problem)
}
