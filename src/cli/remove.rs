//! `tally remove` and `tally restore`: take parts out of the table, and put them back.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::{Args, builder::BoolishValueParser};
use serde::Serialize;

use super::{
    connect::{ClientArgs, Refusals, connect},
    failure::Failure,
    output::{print_error, write_json},
};
use crate::proto::pb::tally::{RemovePartRequest, RestorePartRequest, RestorePartResponse, tally_client::TallyClient};

/// Remove parts from the table
///
/// Sums, group sums and statistics that are asked from then on are without these parts. For a day
/// (--undo-s of the server), `tally restore` can bring them back; then their files are deleted.
/// With --purge they are deleted at once. The number of a part is not used again.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally parts                 lists the parts with their numbers\n  \
        tally remove 3              asks before it removes part 3\n  \
        tally remove 3 4 --yes      does not ask\n  \
        tally remove 3 --yes --json {\"part\":3,\"parts\":11,\"restorable_until\":\"2026-12-01T08:48:57Z\"}"
)]
pub struct RemoveArgs {
    /// Numbers of the parts
    #[arg(value_name = "PART", required = true)]
    pub parts: Vec<u64>,

    /// Do not ask for confirmation. Without a terminal, this is needed
    #[arg(long, env = "TALLY_YES", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub yes: bool,

    /// Delete the files at once, to free their space; the parts cannot be restored. This also works for parts that
    /// were removed before
    #[arg(long, env = "TALLY_PURGE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub purge: bool,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Put removed parts back into the table
///
/// A part that was removed with `tally remove` can be restored for a day (--undo-s of the server),
/// unless it was purged.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally restore 3\n  \
        tally restore 3 --json      {\"part\":3,\"parts\":12}"
)]
pub struct RestoreArgs {
    /// Numbers of the parts
    #[arg(value_name = "PART", required = true)]
    pub parts: Vec<u64>,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Serialize)]
struct RemovedJson {
    part: u64,
    /// Parts that the table has now.
    parts: u64,
    /// Null if it was purged.
    restorable_until: Option<String>,
}

#[derive(Serialize)]
struct RestoredJson {
    part: u64,
    /// Parts that the table has now.
    parts: u64,
}

pub(super) async fn remove(args: RemoveArgs) -> Result<ExitCode, Failure> {
    let RemoveArgs { parts: numbers, yes, purge, client: ClientArgs { server, json, credentials } } = args;
    if !yes && !io::stdin().is_terminal() {
        print_error("standard input is no terminal, so nobody can be asked: use --yes to remove the parts");
        return Ok(ExitCode::from(2));
    }
    if !yes && !confirm(&numbers, purge).map_err(Failure::Input)? {
        print_error("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    let mut tally = TallyClient::new(connect(&server, &credentials).await?);
    let (mut out, mut refusals) = (io::stdout(), Refusals::default());
    for part in numbers {
        let answer = tally.remove_part(RemovePartRequest { part, purge }).await;
        let Some(answer) = refusals.answer_of(&server, answer)? else { continue };
        let restorable_until = Some(answer.restorable_until).filter(|until| !until.is_empty());
        match restorable_until {
            _ if json => write_json(&mut out, &RemovedJson { part, parts: answer.parts, restorable_until })?,
            Some(until) => {
                writeln!(out, "part {part} is removed; until {until}, `tally restore {part}` brings it back")?
            }
            None => writeln!(out, "part {part} is purged")?,
        }
    }
    Ok(refusals.exit_code())
}

/// Asks on the terminal.
fn confirm(numbers: &[u64], purge: bool) -> io::Result<bool> {
    let list = numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let plural = if numbers.len() == 1 { "" } else { "s" };
    let what = if purge { "and delete their files for good? [y/N] " } else { "from the table? [y/N] " };
    let mut terminal = io::stderr();
    write!(terminal, "remove part{plural} {list} {what}")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(super) async fn restore(args: RestoreArgs) -> Result<ExitCode, Failure> {
    let RestoreArgs { parts: numbers, client: ClientArgs { server, json, credentials } } = args;
    let mut tally = TallyClient::new(connect(&server, &credentials).await?);
    let (mut out, mut refusals) = (io::stdout(), Refusals::default());
    for part in numbers {
        let answer = tally.restore_part(RestorePartRequest { part }).await;
        let Some(RestorePartResponse { parts }) = refusals.answer_of(&server, answer)? else { continue };
        if json {
            write_json(&mut out, &RestoredJson { part, parts })?;
        } else {
            writeln!(out, "part {part} is back in the table")?;
        }
    }
    Ok(refusals.exit_code())
}
