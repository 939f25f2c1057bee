//! `tally token`: makes tokens. It needs no server.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::failure::Failure;
use crate::access::{
    scope::Scope,
    secret::Secret,
    token_file::{NewLine, checked_name},
};

/// Make the tokens of those who may call a server
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What can be done with tokens.
#[allow(missing_docs)]
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    New(NewTokenArgs),
}

/// Make a token
///
/// Prints the line for the server's --token-file on standard output, and the secret alone on standard
/// error. The line has only a hash of the secret: nobody can find the secret from it, so keep it now.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        umask 077   # nobody else may read the new files\n  \
        tally token new ingest --scope write >>tokens 2>ingest.token\n  \
        tally serve --token-file tokens\n  \
        tally upload --token-file ingest.token day.csv\n\n\
        Send SIGHUP to a running server, so that it reads its tokens again."
)]
pub struct NewTokenArgs {
    /// Who gets it. The name is in logs and metrics
    #[arg(value_name = "NAME", value_parser = name)]
    pub name: String,

    /// What it allows
    #[arg(long, value_name = "SCOPE", env = "TALLY_SCOPE", hide_env_values = true)]
    pub scope: Scope,
}

fn name(text: &str) -> Result<String, String> {
    checked_name(text).map(str::to_owned)
}

pub(super) fn run(args: TokenArgs) -> Result<ExitCode, Failure> {
    let TokenCommand::New(NewTokenArgs { name, scope }) = args.command;
    let secret = Secret::random().map_err(|error| Failure::Internal(format!("no random numbers: {error}")))?;
    writeln!(io::stdout(), "{}", NewLine { name: &name, scope, secret: &secret })?;
    // Not through the usual writer of errors, which makes copies.
    writeln!(io::stderr(), "{}", secret.expose()).map_err(Failure::NoSecret)?;
    Ok(ExitCode::SUCCESS)
}
