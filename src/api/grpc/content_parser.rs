//! Finds field 1, the content of an upload, in the messages of a request's body while it arrives; and in the first message of
//! a stream field 2, the options of the upload.
//!
//! The bytes come in pieces of any length, and the content leaves as slices of the same memory. Nothing is copied, and
//! nothing is allocated for a length that a client announces: between two pieces only a few integers are kept, and options
//! of a few KiB.
//!
//! Format: protobuf's encoding guide (<https://protobuf.dev/programming-guides/encoding/>).

use bytes::{Buf as _, Bytes};
use prost::encoding::decode_varint;

use super::framing::{BodyError, CONTENT_BYTES_MAX, Framing, GROUPS_MAX, Mode};
use crate::limits::UPLOAD_OPTIONS_BYTES_MAX;

/// Field numbers have 29 bits.
pub(super) const FIELD_NUMBER_MAX: u64 = (1 << 29) - 1;
/// The field that is the content: `UploadReq.csv_data`, `UploadChunk.data`.
const CONTENT_FIELD: u32 = 1;
/// The field that has the options: `UploadChunk.options`.
const OPTIONS_FIELD: u32 = 2;
/// 64 bits in groups of 7.
const VARINT_BYTES_MAX: usize = 10;

/// The parser of one body.
#[derive(Debug)]
pub(super) struct ContentParser {
    framing: Framing,
    field: Field,
    /// Field numbers of the unknown groups that have begun and not ended, the innermost last.
    groups: Vec<u32>,
    /// Whether field 1 of the current message has begun.
    content_seen: bool,
    options: Options,
}

/// The options of an upload.
#[derive(Debug)]
enum Options {
    /// The messages have none: field 2 is an unknown field.
    Unknown,
    /// They may come now.
    Expected,
    /// As far as they have arrived.
    Arriving(Vec<u8>),
    /// All of them, until they are taken.
    Complete(Vec<u8>),
    /// They may not come any more.
    Late,
}

/// The element of a message that its next byte belongs to.
#[derive(Debug)]
enum Field {
    Key(Varint),
    /// The value of an unknown varint field.
    Number(Varint),
    /// The length of a length-delimited field.
    Length {
        field: u32,
        length: Varint,
    },
    /// The bytes of an unknown field; `left` is never 0.
    Skip {
        left: u32,
    },
    /// The bytes of field 1; `left` is never 0.
    Content {
        left: u32,
    },
    /// The bytes of field 2 of a stream.
    Options {
        left: u32,
    },
}

impl ContentParser {
    pub(super) fn new(mode: Mode) -> ContentParser {
        ContentParser {
            framing: Framing::new(mode),
            field: Field::Key(Varint::default()),
            groups: Vec::new(),
            content_seen: false,
            options: if mode == Mode::Stream { Options::Expected } else { Options::Unknown },
        }
    }

    /// The options, once they have arrived. They come before the first slice, if at all.
    pub(super) fn take_options(&mut self) -> Option<Vec<u8>> {
        match &mut self.options {
            Options::Complete(options) => {
                let options = std::mem::take(options);
                self.options = Options::Late;
                Some(options)
            }
            Options::Unknown | Options::Expected | Options::Arriving(_) | Options::Late => None,
        }
    }

    /// The next slice of field 1, taken from the front of `input` and never empty. None once `input` is used up.
    ///
    /// After an error the position in the body is unknown, and the parser cannot be used any more.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, BodyError> {
        while !input.is_empty() {
            if self.framing.message_left() == 0 {
                self.framing.take_prefix(input.get_u8())?;
                continue;
            }
            let mut slice = None;
            match &mut self.field {
                Field::Key(key) => {
                    if let Some(key) = key.take(self.framing.take_byte(input))? {
                        self.field = self.begin(key)?;
                    }
                }
                Field::Number(value) => {
                    if value.take(self.framing.take_byte(input))?.is_some() {
                        self.field = Field::Key(Varint::default());
                    }
                }
                Field::Length { field, length } => {
                    let field = *field;
                    if let Some(length) = length.take(self.framing.take_byte(input))? {
                        self.field = self.begin_bytes(field, length)?;
                    }
                }
                Field::Skip { left } => {
                    let taken = self.framing.take(input.len().min(*left as usize));
                    input.advance(taken as usize);
                    self.field = Field::skip(*left - taken);
                }
                Field::Content { left } => {
                    let bytes = input.split_to(input.len().min(*left as usize));
                    let taken = self.framing.take(bytes.len());
                    self.field = Field::content(*left - taken);
                    slice = Some(bytes);
                }
                Field::Options { left } => {
                    let bytes = input.split_to(input.len().min(*left as usize));
                    let left = *left - self.framing.take(bytes.len());
                    self.field = self.continue_options(&bytes, left);
                }
            }
            if self.framing.message_left() == 0 {
                self.end_message()?;
            }
            if slice.is_some() {
                return Ok(slice);
            }
        }
        Ok(None)
    }

    /// Whether the body may end here.
    pub(super) fn finish(&self) -> Result<(), BodyError> {
        self.framing.finish()
    }

    /// The state after the key of a field.
    fn begin(&mut self, key: u64) -> Result<Field, BodyError> {
        let number = key >> 3;
        if number == 0 || number > FIELD_NUMBER_MAX {
            return Err(BodyError::FieldNumber(number));
        }
        let field = u32::try_from(number).map_err(|_too_large| BodyError::FieldNumber(number))?;
        let wire_type = (key & 7) as u8;
        if field == CONTENT_FIELD && self.groups.is_empty() && wire_type != 2 {
            return Err(BodyError::ContentWireType { wire_type });
        }
        match wire_type {
            0 => Ok(Field::Number(Varint::default())),
            1 => self.begin_fixed(8),
            2 => Ok(Field::Length { field, length: Varint::default() }),
            3 if self.groups.len() == GROUPS_MAX => Err(BodyError::GroupsTooDeep),
            3 => {
                self.groups.push(field);
                Ok(Field::Key(Varint::default()))
            }
            4 if self.groups.pop() != Some(field) => Err(BodyError::GroupMismatch { field }),
            4 => Ok(Field::Key(Varint::default())),
            5 => self.begin_fixed(4),
            _ => Err(BodyError::WireType { field, wire_type }),
        }
    }

    fn begin_fixed(&self, width: u32) -> Result<Field, BodyError> {
        if width > self.framing.message_left() {
            return Err(BodyError::EndsInField);
        }
        Ok(Field::skip(width))
    }

    /// The state after the length of a length-delimited field. Field 1 inside an unknown group is not the content.
    fn begin_bytes(&mut self, field: u32, length: u64) -> Result<Field, BodyError> {
        let left = self.framing.message_left();
        let Some(fits) = u32::try_from(length).ok().filter(|length| *length <= left) else {
            return Err(BodyError::FieldTooLong { field, length, left });
        };
        if field == OPTIONS_FIELD && self.groups.is_empty() && !matches!(self.options, Options::Unknown) {
            return self.begin_options(fits);
        }
        if field != CONTENT_FIELD || !self.groups.is_empty() {
            return Ok(Field::skip(fits));
        }
        if length > CONTENT_BYTES_MAX {
            return Err(BodyError::ContentTooLong { length });
        }
        if self.content_seen {
            return Err(BodyError::SecondContent);
        }
        self.content_seen = true;
        self.expect_no_options();
        Ok(Field::content(fits))
    }

    fn begin_options(&mut self, length: u32) -> Result<Field, BodyError> {
        if !matches!(self.options, Options::Expected) {
            return Err(BodyError::LateOptions);
        }
        if length as usize > UPLOAD_OPTIONS_BYTES_MAX {
            return Err(BodyError::OptionsTooLong { length: length.into() });
        }
        self.options = Options::Arriving(Vec::new());
        Ok(self.continue_options(&[], length))
    }

    /// Keeps bytes of the options. Returns what comes next, if `left` bytes are still to come.
    fn continue_options(&mut self, bytes: &[u8], left: u32) -> Field {
        if let Options::Arriving(options) = &mut self.options {
            options.extend_from_slice(bytes);
            if left == 0 {
                self.options = Options::Complete(std::mem::take(options));
            }
        }
        if left == 0 { Field::Key(Varint::default()) } else { Field::Options { left } }
    }

    fn expect_no_options(&mut self) {
        if matches!(self.options, Options::Expected) {
            self.options = Options::Late;
        }
    }

    fn end_message(&mut self) -> Result<(), BodyError> {
        let between_fields = matches!(&self.field, Field::Key(key) if key.len == 0);
        if !between_fields {
            return Err(BodyError::EndsInField);
        }
        if let Some(field) = self.groups.pop() {
            return Err(BodyError::EndsInGroup { field });
        }
        self.content_seen = false;
        self.expect_no_options();
        Ok(())
    }
}

impl Field {
    fn skip(left: u32) -> Field {
        if left == 0 { Field::Key(Varint::default()) } else { Field::Skip { left } }
    }

    fn content(left: u32) -> Field {
        if left == 0 { Field::Key(Varint::default()) } else { Field::Content { left } }
    }
}

/// The bytes of a varint that have arrived. It may be padded with zeros, as in every protobuf decoder.
#[derive(Debug, Default)]
struct Varint {
    bytes: [u8; VARINT_BYTES_MAX],
    len: usize,
}

impl Varint {
    /// Adds a byte. Returns the number if that was its last one.
    fn take(&mut self, byte: u8) -> Result<Option<u64>, BodyError> {
        self.bytes[self.len] = byte;
        self.len += 1;
        if byte >= 0x80 && self.len < VARINT_BYTES_MAX {
            return Ok(None);
        }
        decode_varint(&mut &self.bytes[..self.len]).map(Some).map_err(|_over_64_bits| BodyError::VarintTooLong)
    }
}
