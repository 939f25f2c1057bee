//! `tally verify`: reads everything that is stored and compares it with its checksums, through the server if one runs.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, builder::BoolishValueParser};
use serde::Serialize;

use super::{
    connect::{call_failure, connect},
    credentials::CredentialArgs,
    failure::Failure,
    output::{escaped, write_json},
    server_addr::ServerAddr,
};
use crate::{
    engine::scrub,
    error::Error,
    proto::pb::tally::{DamagedFile, ListQuarantineRequest, VerifyProgress, VerifyRequest, tally_client::TallyClient},
};

/// The defaults of the data folder and the server.
const DATA: &str = "./tally-data";
const SERVER: &str = "localhost:5440";

/// Read everything that is stored and report what is damaged
///
/// Reads every file of the parts and jobs and compares it with its checksums. Prints a line for
/// each file that is damaged or cannot be read; the exit code is then 1.
///
/// If no server uses the data folder, this program does the work, and moves damaged parts to
/// quarantine/ as a start of the server does. If a server uses the folder, this program asks that
/// server (at --server) to do the work between its other work. The server only reports: a damaged
/// part stays where it is until the next start, or until its files are put back. With --server
/// and without DATA, the server is asked, whatever its data folder is.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally verify /srv/table\n  \
        tally verify --server tally.internal:5440\n  \
        tally verify /srv/table --json      one JSON object a line, the last one a summary"
)]
pub struct VerifyArgs {
    /// The data folder [default: ./tally-data]
    #[arg(value_name = "DATA", env = "TALLY_DATA", hide_env_values = true)]
    pub data: Option<PathBuf>,

    /// The gRPC address of the server that uses the folder [default: localhost:5440]
    #[arg(long, visible_alias = "addr", value_name = "HOST[:PORT]", env = "TALLY_SERVER", hide_env_values = true)]
    pub server: Option<ServerAddr>,

    /// Print JSON, one object in each line
    #[arg(long, env = "TALLY_JSON", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub json: bool,

    /// Who asks.
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

#[derive(Serialize)]
struct DamagedJson<'a> {
    file: &'a str,
    what: &'a str,
}

#[derive(Serialize)]
struct SummaryJson {
    files: u64,
    bytes: u64,
    damaged: u64,
    /// Parts that were moved to quarantine now.
    set_aside: Vec<u64>,
    /// Parts that are in quarantine and not forgotten.
    quarantined: u64,
}

/// Prints each damaged file when it is reported, and counts.
struct Report {
    json: bool,
    summary: SummaryJson,
    /// The error of the first line that could not be written.
    failure: Option<io::Error>,
}

impl Report {
    fn new(json: bool) -> Self {
        let summary = SummaryJson { files: 0, bytes: 0, damaged: 0, set_aside: Vec::new(), quarantined: 0 };
        Self { json, summary, failure: None }
    }

    fn add(&mut self, files: u64, bytes: u64) {
        self.summary.files += files;
        self.summary.bytes += bytes;
    }

    fn damaged(&mut self, file: &str, what: &str) {
        self.summary.damaged += 1;
        let mut out = io::stdout();
        let written = if self.json {
            write_json(&mut out, &DamagedJson { file, what })
        } else {
            writeln!(out, "{}: {}", escaped(file), escaped(what))
        };
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
    }

    fn end(self) -> Result<ExitCode, Failure> {
        if let Some(error) = self.failure {
            return Err(Failure::Output(error));
        }
        let mut out = io::stdout();
        if self.json {
            write_json(&mut out, &self.summary)?;
        } else {
            let SummaryJson { files, bytes, damaged, set_aside, quarantined } = &self.summary;
            for part in set_aside {
                writeln!(out, "part {part} was moved to quarantine/")?;
            }
            let plural = |count: u64| if count == 1 { "" } else { "s" };
            write!(out, "{files} file{}, {bytes} bytes: {damaged} damaged", plural(*files))?;
            if *quarantined > 0 {
                write!(out, "; {quarantined} part{} in quarantine", plural(*quarantined))?;
            }
            writeln!(out)?;
        }
        Ok(if self.summary.damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

pub(super) async fn run(args: VerifyArgs) -> Result<ExitCode, Failure> {
    let VerifyArgs { data, server, json, credentials } = args;
    let mut report = Report::new(json);
    match (data, server) {
        (None, Some(server)) => ask(&server, &credentials, 0, &mut report).await?,
        (data, server) => {
            let data = data.unwrap_or_else(|| DATA.into());
            let refused = |error: Error| Failure::Refused(error.to_string());
            match scrub::holder(&data).await.map_err(refused)? {
                Some(process) => {
                    let server = server.map_or_else(|| SERVER.parse().map_err(Failure::Internal), Ok)?;
                    ask(&server, &credentials, process, &mut report).await?;
                }
                None => verify(&data, &mut report).await.map_err(refused)?,
            }
        }
    }
    report.end()
}

async fn ask(
    server: &ServerAddr,
    credentials: &CredentialArgs,
    process: u64,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut tally = TallyClient::new(connect(server, credentials).await?);
    let failed = |status| call_failure(server, &status);
    let mut stream = tally.verify(VerifyRequest { process }).await.map_err(failed)?.into_inner();
    while let Some(VerifyProgress { files, bytes, damaged }) = stream.message().await.map_err(failed)? {
        report.add(files, bytes);
        for DamagedFile { file, what } in damaged {
            report.damaged(&file, &what);
        }
    }
    let quarantine = tally.list_quarantine(ListQuarantineRequest {}).await.map_err(failed)?;
    report.summary.quarantined = quarantine.into_inner().count;
    Ok(())
}

async fn verify(data: &Path, report: &mut Report) -> Result<(), Error> {
    let add = |scrub::Progress { files, bytes, damaged }: scrub::Progress| {
        report.add(files, bytes);
        for scrub::DamagedFile { file, what } in damaged {
            report.damaged(&file, &what);
        }
    };
    let verified = scrub::verify_folder(data, add).await?;
    report.summary.set_aside = verified.set_aside.iter().map(|part| part.get()).collect();
    report.summary.quarantined = verified.missing_count as u64;
    Ok(())
}
