//! Parses the command line, runs it, answers with an exit code.

use std::process::ExitCode;

use clap::Parser;

/// The memory plan counts what is in use; glibc would keep several times that in the arenas of 8 workers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tally::cli::run(tally::cli::Cli::parse())
}
