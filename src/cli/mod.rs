//! The command line: one module for each subcommand.
//!
//! Except for `serve`, the subcommands are clients of a server. They know `proto/`, not `api/`, and hold a few blocks or one
//! receipt in memory at a time. Only `group-sum`, and `verify` if no server holds the data folder, use the engine themselves.
//! Exit codes: 0 done, 1 failed (a line on standard error says why), 2 wrong usage (clap's).

mod backup;
mod columns;
mod connect;
mod credentials;
mod failure;
mod files;
mod forget;
mod group_sum;
mod health;
mod links;
mod load_numstore;
mod output;
mod pack;
mod parts;
mod receipt;
mod remove;
mod schema;
mod server_addr;
mod sum;
mod token;
mod upload;
mod verify;

use std::{io, process::ExitCode, thread};

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

use self::{failure::Failure, output::print_error};

pub use self::backup::BackupArgs;
pub use self::connect::ClientArgs;
pub use self::credentials::CredentialArgs;
pub use self::files::FilesArgs;
pub use self::forget::ForgetArgs;
pub use self::group_sum::GroupSumArgs;
pub use self::health::HealthArgs;
pub use self::load_numstore::LoadNumstoreArgs;
pub use self::pack::PackArgs;
pub use self::parts::PartsArgs;
pub use self::remove::{RemoveArgs, RestoreArgs};
pub use self::schema::SchemaArgs;
pub use self::server_addr::ServerAddr;
pub use self::sum::{Format, SumArgs};
pub use self::token::{NewTokenArgs, TokenArgs, TokenCommand};
pub use self::upload::UploadArgs;
pub use self::verify::VerifyArgs;

/// A table server: stores uploaded CSV files as CSV and as Parquet, and answers exact sums of their columns.
#[derive(Debug, Parser)]
#[command(
    name = "tally",
    version,
    after_help = "Start a server with `tally serve`, then try `tally upload FILE.csv` and `tally sum COLUMN`.\n\
                  Every flag has an environment variable, see `tally COMMAND --help`.\n\
                  Exit codes: 0 done, 1 failed (a line on standard error says why), 2 wrong usage."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands. The doc comment of each one's arguments is its `--help`; a doc comment on a variant would replace it.
#[allow(missing_docs)]
#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(Box<crate::config::ServeArgs>),
    Upload(UploadArgs),
    Sum(SumArgs),
    GroupSum(GroupSumArgs),
    Parts(PartsArgs),
    Remove(RemoveArgs),
    Restore(RestoreArgs),
    Pack(PackArgs),
    Schema(SchemaArgs),
    Files(FilesArgs),
    Backup(BackupArgs),
    Forget(ForgetArgs),
    Verify(VerifyArgs),
    Health(HealthArgs),
    LoadNumstore(LoadNumstoreArgs),
    Token(TokenArgs),
}

/// Runs the subcommand to its end and returns the process's exit code.
pub fn run(cli: Cli) -> ExitCode {
    // These threads only pass bytes between the network and the workers, which need the other half of the cores. On two
    // cores, a second thread would mostly be woken to wake the first one.
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let runtime = match Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(format!("cannot start threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => Ok(crate::server::serve_command(*args).await),
            Command::Upload(args) => upload::run(args).await,
            Command::Sum(args) => sum::run(args).await,
            Command::GroupSum(args) => group_sum::run(args).await,
            Command::Parts(args) => parts::run(args).await,
            Command::Remove(args) => remove::remove(args).await,
            Command::Restore(args) => remove::restore(args).await,
            Command::Pack(args) => pack::run(args).await,
            Command::Schema(args) => schema::run(args).await,
            Command::Backup(args) => backup::run(args).await,
            Command::Files(args) => files::run(args).await,
            Command::Forget(args) => forget::run(args).await,
            Command::Verify(args) => verify::run(args).await,
            Command::Health(args) => health::run(args).await,
            Command::LoadNumstore(args) => load_numstore::run(args).await,
            Command::Token(args) => token::run(args),
        }
    });
    match outcome {
        Ok(code) => code,
        // The reader of our output has seen enough: `tally parts | head` has not failed.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            print_error(&failure);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
