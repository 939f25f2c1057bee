//! A message with one bytes field, written without a copy of its content: `UploadChunk` is sent this way.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

/// The most bytes that [`message_head`] returns: gRPC's prefix, the key of field 1, and the content's length.
pub(crate) const MESSAGE_HEAD_BYTES_MAX: usize = 5 + 1 + 5;
/// The key of field 1 with wire type 2 (length-delimited).
pub(crate) const CONTENT_KEY: u8 = 1 << 3 | 2;

/// The bytes of a message that precede its content, `content_bytes` bytes of field 1.
pub(crate) fn message_head(content_bytes: usize) -> Bytes {
    let content_bytes = content_bytes as u64;
    let field_bytes = 1 + encoded_len_varint(content_bytes) as u64 + content_bytes;
    let mut head = BytesMut::with_capacity(MESSAGE_HEAD_BYTES_MAX);
    head.put_u8(0); // not compressed
    head.put_uint(field_bytes, 4);
    head.put_u8(CONTENT_KEY);
    encode_varint(content_bytes, &mut head);
    head.freeze()
}
