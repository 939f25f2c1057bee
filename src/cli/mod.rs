//! The command line: one file a subcommand, and here what they share: how text is shown and how a failure is told.
//! All but `serve` and `group-sum` are clients of the server. They know proto/ and nothing of the engine, and hold a few
//! blocks or one receipt at a time. `group-sum` needs no server, nor does `verify` where none runs: they alone use the
//! engine. All leave with 0, or with 1
//! after a line on standard error (2, wrong usage, is clap's).

mod connect;
mod forget;
mod group_sum;
mod health;
mod load_numstore;
mod parts;
mod sum;
mod upload;
mod verify;

use std::{
    borrow::Cow,
    fmt::Display,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    thread,
};

use clap::{Parser, Subcommand};
use indicatif::ProgressStyle;
use serde::Serialize;
use tokio::runtime::Builder;

pub use self::connect::{ClientArgs, ServerAddr};
pub use self::forget::ForgetArgs;
pub use self::group_sum::GroupSumArgs;
pub use self::health::HealthArgs;
pub use self::load_numstore::LoadNumstoreArgs;
pub use self::parts::PartsArgs;
pub use self::sum::{Format, SumArgs};
pub use self::upload::UploadArgs;
pub use self::verify::VerifyArgs;

/// A table server: CSV files come in over gRPC, each is kept as CSV and as Parquet, and column sums are exact.
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

/// The subcommands. What each does stands at its arguments, for readers and for `--help`; a text here would hide it.
#[allow(missing_docs)]
#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(crate::config::ServeArgs),
    Upload(UploadArgs),
    Sum(SumArgs),
    GroupSum(GroupSumArgs),
    Parts(PartsArgs),
    Forget(ForgetArgs),
    Verify(VerifyArgs),
    Health(HealthArgs),
    LoadNumstore(LoadNumstoreArgs),
}

/// Runs the subcommand to its end. The result is the process's exit code.
pub fn run(cli: Cli) -> ExitCode {
    // These threads pass bytes between the network and those that work on them, for whom the other half of the cores is.
    // On two cores a second one would mostly be woken to wake the first.
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
            Command::Serve(args) => Ok(crate::server::serve_command(args).await),
            Command::Upload(args) => upload::run(args).await,
            Command::Sum(args) => sum::run(args).await,
            Command::GroupSum(args) => group_sum::run(args).await,
            Command::Parts(args) => parts::run(args).await,
            Command::Forget(args) => forget::run(args).await,
            Command::Verify(args) => verify::run(args).await,
            Command::Health(args) => health::run(args).await,
            Command::LoadNumstore(args) => load_numstore::run(args).await,
        }
    });
    match outcome {
        Ok(code) => code,
        // Whoever read us has seen enough: `tally parts | head` is no failure.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            print_error(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Why a command leaves with exit code 1. Its text is for [`print_error`], which makes it safe for a terminal.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no server at {server}: {reason}")]
    NoServer { server: ServerAddr, reason: String },
    /// The connection broke, or what answered speaks no gRPC.
    #[error("no answer from {server}: {reason}")]
    NoAnswer { server: ServerAddr, reason: String },
    /// What the server says, in its own words.
    #[error("{0}")]
    Refused(String),
    /// A file to upload, or standard input.
    #[error("cannot read: {0}")]
    Input(io::Error),
    /// The server answered, but not the truth.
    #[error("{0}")]
    WrongAnswer(String),
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    /// A file that a result is written to.
    #[error("cannot write to {}: {}", .0.display(), .1)]
    File(PathBuf, io::Error),
}

/// One line on standard error. Where even that is closed, the exit code has to do.
fn print_error(text: impl Display) {
    let _ = writeln!(io::stderr(), "error: {}", escaped(&text.to_string()));
}

/// `value` as JSON on a line of its own. JSON itself allows DEL, C1 and the like inside a string; a terminal may act
/// on them, so they are written as JSON's own escapes.
fn write_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(value)?;
    let safe = replaced(&json, |c| format!("\\u{:04x}", u32::from(c)));
    writeln!(out, "{safe}")
}

/// Text that came from a user or a server, for a terminal: what would move the cursor, change colours or turn the
/// reading direction is shown as an escape (`\n`, `\u{1b}`).
fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, |c| c.escape_default().to_string())
}

fn replaced(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(acts_on_terminals) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts_on_terminals(c) {
            safe.push_str(&escape(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// How a progress bar looks. The templates are ours, so a wrong one shows when it is first drawn.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_invalid| ProgressStyle::default_bar())
}

/// `1 row`, `2 rows`.
fn rows_text(rows_count: u64) -> String {
    format!("{rows_count} {}", if rows_count == 1 { "row" } else { "rows" })
}

/// Control characters, and the separators and direction marks of Unicode that make a line read as another.
fn acts_on_terminals(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn text_cannot_act_on_a_terminal() {
        let cases = [
            ("plain, ünïcode, 数, \"quoted\"", "plain, ünïcode, 数, \"quoted\""),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}"),
            ("del\x7f csi\u{9b}2J", "del\\u{7f} csi\\u{9b}2J"),
            ("\u{202e}gpj.exe\u{2066}", "\\u{202e}gpj.exe\\u{2066}"),
        ];
        for (text, expected) in cases {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn json_cannot_act_on_a_terminal_and_says_the_same() -> Result<(), Box<dyn std::error::Error>> {
        let text = "\x1b[2J \u{9b}2J \x7f \u{202e} \"quoted\" \\ \n ü";
        let mut line = Vec::new();
        write_json(&mut line, &text)?;
        let line = String::from_utf8(line)?;
        assert!(!line.trim_end_matches('\n').contains(acts_on_terminals), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line)?, text);
        Ok(())
    }
}
