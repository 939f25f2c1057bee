//! Parses the command line, runs the role, returns the exit code.

use std::process::ExitCode;

use clap::Parser;
use tally_cluster::command_line::{Cli, run};

/// As in `tally`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => {
            use std::io::Write;
            let _nobody_reads_it = writeln!(std::io::stderr(), "error: cannot start threads: {error}");
            ExitCode::FAILURE
        }
    }
}
