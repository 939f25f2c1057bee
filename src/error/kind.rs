//! The kinds of errors, by which the gRPC status and the HTTP status are chosen.

/// The kind of an error: one for each different reaction of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller can fix its data or its question.
    Input,
    /// A number would exceed its range.
    OutOfRange,
    /// The request is not a valid message.
    Malformed,
    /// The request is of a form that is not supported.
    Unsupported,
    /// The caller cancelled the call or closed the connection.
    Cancelled,
    /// A limit is reached, or the disk is full: try again later, or make room.
    Exhausted,
    /// The server is shutting down, or not ready yet.
    Unavailable,
    /// Nothing has that name or id.
    NotFound,
    /// The request does not fit the state of the server, for example because it is for another server.
    Conflict,
    /// A stored file is damaged.
    DataLoss,
    /// The server or its machine failed.
    Internal,
}
