//! Bounds of TLS. Its buffers take the memory of connections that a server with TLS does not have.

/// As `CONNECTIONS_MAX`, with TLS.
pub const TLS_CONNECTIONS_MAX: usize = 80;
/// As `WIDE_CONNECTIONS_MAX`, with TLS.
pub const TLS_WIDE_CONNECTIONS_MAX: usize = 4;
/// Bytes of a connection's answers that are encrypted and not sent yet.
pub const TLS_SEND_BYTES: usize = 32 * 1024;
/// Bytes from a client that are not decrypted yet. rustls keeps so many of a handshake message that comes in pieces.
const TLS_RECEIVE_BYTES: usize = 64 * 1024;
/// Bytes of a record of the client (RFC 8446, section 5.2), decrypted.
const TLS_RECORD_BYTES: usize = 16 * 1024 + 512;
/// Bytes of TLS for one connection.
pub(super) const TLS_CONNECTION_BYTES: usize = TLS_SEND_BYTES + TLS_RECEIVE_BYTES + TLS_RECORD_BYTES + 4 * 1024;
/// Bytes of a file with certificates or a key.
pub const PEM_BYTES_MAX: usize = 64 * 1024;
