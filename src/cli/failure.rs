//! Why a command fails, as the user is told.

use std::{io, path::PathBuf};

use super::server_addr::ServerAddr;

/// Why a command exits with code 1. The text may have any characters; [`print_error`](super::output::print_error) makes it
/// safe for a terminal.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no server at {server}: {reason}")]
    NoServer { server: ServerAddr, reason: String },
    /// The connection broke, or what answered does not speak gRPC.
    #[error("no answer from {server}: {reason}")]
    NoAnswer { server: ServerAddr, reason: String },
    /// The server's or the engine's own words.
    #[error("{0}")]
    Refused(String),
    /// A pipe whose upload failed on the way.
    #[error("{0}; a pipe cannot be read again, so it was not sent again: look with `tally parts` whether it was added")]
    NotSentAgain(Box<Failure>),
    /// A file to upload, or standard input.
    #[error("cannot read: {0}")]
    Input(io::Error),
    /// The server answered, and the answer is wrong.
    #[error("{0}")]
    WrongAnswer(String),
    /// A bug of this program.
    #[error("internal error: {0}")]
    Internal(String),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    /// A new token is of no use.
    #[error("cannot write the secret to standard error: {0}")]
    NoSecret(io::Error),
    /// A file to which a result is written.
    #[error("cannot write to {}: {}", .0.display(), .1)]
    File(PathBuf, io::Error),
}
