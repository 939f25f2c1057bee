//! Parses the command line, runs it, answers with an exit code.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    tally::cli::run(tally::cli::Cli::parse()).await
}
