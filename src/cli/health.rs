//! `tally health`: calls the standard gRPC health check. The container's HEALTHCHECK runs it.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    connect::{ClientArgs, call_failure, connect},
    credentials::CredentialArgs,
    failure::Failure,
    output::write_json,
    server_addr::ServerAddr,
};

/// A healthy server answers at once. A server that hangs must not block this command.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// Ask a server whether it accepts calls
///
/// Prints `serving` and exits with 0 if it does. Otherwise the exit code is 1: for a server that
/// is shutting down (`not serving`), that does not answer within 5 seconds, or that is not there.
/// This is a call of the standard service grpc.health.v1, so other tools can do the same.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally health\n  \
        tally health --server http://tally.internal:5440\n  \
        tally health --json         {\"status\":\"serving\"}\n  \
        HEALTHCHECK CMD [\"tally\", \"health\"]"
)]
pub struct HealthArgs {
    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Serialize)]
struct Health<'a> {
    status: &'a str,
}

pub(super) async fn run(args: HealthArgs) -> Result<ExitCode, Failure> {
    // A probe needs no token; in the container, TALLY_TOKEN_FILE is the server's.
    let ClientArgs { server, json, mut credentials } = args.client;
    credentials.token_file = None;
    let serving = match tokio::time::timeout(ANSWER_TIME_MAX, ask(&server, &credentials)).await {
        Ok(answer) => answer? == ServingStatus::Serving,
        Err(_elapsed) => {
            let reason = format!("no answer within {} s", ANSWER_TIME_MAX.as_secs());
            return Err(Failure::NoAnswer { server, reason });
        }
    };
    let status = if serving { "serving" } else { "not serving" };
    let mut out = io::stdout();
    if json {
        write_json(&mut out, &Health { status })?;
    } else {
        writeln!(out, "{status}")?;
    }
    Ok(if serving { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask(server: &ServerAddr, credentials: &CredentialArgs) -> Result<ServingStatus, Failure> {
    let mut health = HealthClient::new(connect(server, credentials).await?);
    // The empty name means the server as a whole.
    let request = HealthCheckRequest { service: String::new() };
    let answer = health.check(request).await.map_err(|status| call_failure(server, &status))?;
    Ok(answer.into_inner().status())
}
