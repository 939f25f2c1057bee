//! `tally forget`: accepts the loss of parts that are in quarantine.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use serde::Serialize;

use super::{
    connect::{ClientArgs, Refusals, connect},
    failure::Failure,
    output::write_json,
};
use crate::proto::pb::tally::{ForgetRequest, ForgetResponse, tally_client::TallyClient};

/// Accept the loss of parts that are in quarantine
///
/// A part that is damaged when the server starts is moved to quarantine/ in the data folder. While
/// it is missing, sums, group sums and statistics are refused. To restore it, stop the server,
/// copy undamaged files of the part (from a backup, for example) to parts/ in the data folder, and
/// start the server. If you have no such files, `tally forget` accepts the loss: from then on,
/// answers come from the other parts. This is recorded in the data folder, and the part's files
/// stay in quarantine/.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally parts                 shows which parts are in quarantine\n  \
        tally forget 3\n  \
        tally forget 3 --json       {\"part\":3,\"quarantined\":0}"
)]
pub struct ForgetArgs {
    /// Numbers of the parts
    #[arg(value_name = "PART", required = true)]
    pub parts: Vec<u64>,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Serialize)]
struct ForgottenJson {
    part: u64,
    /// Parts that are still in quarantine and not forgotten.
    quarantined: u64,
}

pub(super) async fn run(args: ForgetArgs) -> Result<ExitCode, Failure> {
    let ForgetArgs { parts, client: ClientArgs { server, json, credentials } } = args;
    let mut tally = TallyClient::new(connect(&server, &credentials).await?);
    let (mut out, mut refusals) = (io::stdout(), Refusals::default());
    for part in parts {
        let answer = tally.forget(ForgetRequest { part }).await;
        let Some(ForgetResponse { quarantined }) = refusals.answer_of(&server, answer)? else { continue };
        if json {
            write_json(&mut out, &ForgottenJson { part, quarantined })?;
        } else {
            let plural = if quarantined == 1 { "" } else { "s" };
            writeln!(out, "part {part} is forgotten; {quarantined} part{plural} in quarantine")?;
        }
    }
    Ok(refusals.exit_code())
}
