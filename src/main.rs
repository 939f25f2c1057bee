//! Parses the command line, runs the command, returns its exit code.

use std::process::ExitCode;

use clap::Parser;

/// The bounds in `limits.rs` count memory that is in use. glibc's allocator would keep several times as much in the arenas of
/// the 8 workers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tally::cli::run(tally::cli::Cli::parse())
}
