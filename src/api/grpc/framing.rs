//! Where messages begin and end in the body of a request, and everything that can be wrong with such a body.
//!
//! Lengths that a client announces are counted down, never allocated. No I/O, no HTTP and no gRPC status belongs here;
//! `content_parser` looks into the messages.
//!
//! Format: "Length-Prefixed-Message" in gRPC's PROTOCOL-HTTP2.md.

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::limits::UPLOAD_OPTIONS_BYTES_MAX;

/// How many messages a request consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Exactly one.
    Unary,
    /// Any number, also zero.
    Stream,
}

/// What is wrong with a request's body.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum BodyError {
    #[error("compressed messages are not supported")]
    Compressed,
    #[error("a message begins with flag byte {0}, it must be 0")]
    Flag(u8),
    #[error("the body ends inside the 5 bytes before a message")]
    EndsInPrefix,
    #[error("the body ends {missing} bytes before its message does")]
    EndsInMessage { missing: u32 },
    #[error("the body holds no message")]
    NoMessage,
    #[error("the body goes on after its one message")]
    SecondMessage,
    #[error("a varint does not fit in 64 bits")]
    VarintTooLong,
    #[error("field number {0} is not between 1 and 536870911")]
    FieldNumber(u64),
    #[error("field {field} has wire type {wire_type}, which does not exist")]
    WireType { field: u32, wire_type: u8 },
    #[error("field 1 has wire type {wire_type}, it must be 2 (length-delimited)")]
    ContentWireType { wire_type: u8 },
    #[error("field 1 occurs twice in one message")]
    SecondContent,
    #[error("field 1 is {length} bytes long, at most {CONTENT_BYTES_MAX} fit in one message")]
    ContentTooLong { length: u64 },
    #[error("field 2, the options, comes in the first message, once and before field 1")]
    LateOptions,
    #[error("field 2, the options, is {length} bytes long, at most {UPLOAD_OPTIONS_BYTES_MAX} are allowed")]
    OptionsTooLong { length: u64 },
    #[error("the message is longer than {bytes_max} bytes")]
    MessageTooLong { bytes_max: u32 },
    #[error("field {field} is {length} bytes long, its message has only {left} more")]
    FieldTooLong { field: u32, length: u64, left: u32 },
    #[error("the message ends inside a field")]
    EndsInField,
    #[error("the message ends inside the group of field {field}")]
    EndsInGroup { field: u32 },
    #[error("the end of a group of field {field} has no beginning")]
    GroupMismatch { field: u32 },
    #[error("groups are nested more than {GROUPS_MAX} deep")]
    GroupsTooDeep,
}

/// protobuf's own limit for a bytes field, 2 GiB - 1.
pub(super) const CONTENT_BYTES_MAX: u64 = i32::MAX as u64;
/// The limit for groups inside groups that protobuf implementations have.
pub(super) const GROUPS_MAX: usize = 100;
/// One byte of flags and four of length.
const PREFIX_BYTES: usize = 5;

/// The position in a body: in the prefix of a message, or in the message.
#[derive(Debug)]
pub(super) struct Framing {
    mode: Mode,
    /// Whether the prefix of a message has been read.
    message_seen: bool,
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of `prefix` that have arrived; always 0 inside a message.
    prefix_bytes: usize,
    /// Bytes of the current message that have not been read; 0 between messages.
    message_left: u32,
    message_bytes_max: u32,
}

impl Framing {
    pub(super) fn new(mode: Mode) -> Framing {
        Framing::with_message_bytes_max(mode, u32::MAX)
    }

    /// For bodies whose messages are decoded whole: a message that announces more is an error.
    pub(super) fn with_message_bytes_max(mode: Mode, message_bytes_max: u32) -> Framing {
        Framing {
            mode,
            message_seen: false,
            prefix: [0; PREFIX_BYTES],
            prefix_bytes: 0,
            message_left: 0,
            message_bytes_max,
        }
    }

    /// Checks the next piece of a body without looking into the messages.
    pub(super) fn check(&mut self, mut input: &[u8]) -> Result<(), BodyError> {
        while !input.is_empty() {
            if self.message_left == 0 {
                self.take_prefix(input.get_u8())?;
            } else {
                let taken = self.take(input.len());
                input.advance(taken as usize);
            }
        }
        Ok(())
    }

    /// Whether the body may end here.
    pub(super) fn finish(&self) -> Result<(), BodyError> {
        if self.message_left > 0 {
            return Err(BodyError::EndsInMessage { missing: self.message_left });
        }
        if self.prefix_bytes > 0 {
            return Err(BodyError::EndsInPrefix);
        }
        if self.mode == Mode::Unary && !self.message_seen {
            return Err(BodyError::NoMessage);
        }
        Ok(())
    }

    /// Bytes of the current message that have not been read; 0 between messages.
    pub(super) fn message_left(&self) -> u32 {
        self.message_left
    }

    /// Reads a byte of a prefix, between two messages.
    pub(super) fn take_prefix(&mut self, byte: u8) -> Result<(), BodyError> {
        if self.prefix_bytes == 0 {
            if self.mode == Mode::Unary && self.message_seen {
                return Err(BodyError::SecondMessage);
            }
            match byte {
                0 => {}
                1 => return Err(BodyError::Compressed),
                flag => return Err(BodyError::Flag(flag)),
            }
        }
        self.prefix[self.prefix_bytes] = byte;
        self.prefix_bytes += 1;
        if self.prefix_bytes == PREFIX_BYTES {
            let [_flag, length @ ..] = self.prefix;
            self.message_left = u32::from_be_bytes(length);
            if self.message_left > self.message_bytes_max {
                return Err(BodyError::MessageTooLong { bytes_max: self.message_bytes_max });
            }
            self.message_seen = true;
            self.prefix_bytes = 0;
        }
        Ok(())
    }

    /// The next byte of the current message. Neither the message nor `input` may be at its end.
    pub(super) fn take_byte(&mut self, input: &mut Bytes) -> u8 {
        self.message_left -= 1;
        input.get_u8()
    }

    /// Counts up to `bytes` bytes of the current message as read, and returns how many of them it had.
    pub(super) fn take(&mut self, bytes: usize) -> u32 {
        let taken = u32::try_from(bytes).map_or(self.message_left, |bytes| bytes.min(self.message_left));
        self.message_left -= taken;
        taken
    }
}
