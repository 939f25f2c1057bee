//! `tally pack`: packs all small parts into segments now.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use serde::Serialize;

use super::{
    connect::{ClientArgs, call_failure, connect},
    failure::Failure,
    output::write_json,
};
use crate::proto::pb::tally::{PackRequest, PackResponse, tally_client::TallyClient};

/// Pack small parts together
///
/// Many small parts become a segment: a few files instead of three for each part. A server does this
/// by itself when more than --pack-above small parts have their own files; this command does it at
/// once, and for all of them. It changes no answer, number, receipt or download.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally pack\n  \
        tally pack --json           {\"segments_written\":3,\"segments\":3,\"unpacked_parts\":0}"
)]
pub struct PackArgs {
    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Serialize)]
struct PackedJson {
    segments_written: u64,
    /// Segments that the table has now.
    segments: u64,
    /// Parts that have their own files now.
    unpacked_parts: u64,
}

pub(super) async fn run(args: PackArgs) -> Result<ExitCode, Failure> {
    let ClientArgs { server, json, credentials } = args.client;
    let mut tally = TallyClient::new(connect(&server, &credentials).await?);
    let answer = tally.pack(PackRequest {}).await.map_err(|status| call_failure(&server, &status))?;
    let PackResponse { segments_written, segments, unpacked_parts } = answer.into_inner();
    let mut out = io::stdout();
    if json {
        write_json(&mut out, &PackedJson { segments_written, segments, unpacked_parts })?;
    } else {
        writeln!(
            out,
            "{segments_written} segments were written; {segments} segments, {unpacked_parts} parts in files of their own"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
