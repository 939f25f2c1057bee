//! `tally health`: the standard gRPC health check, as the container's HEALTHCHECK asks it.

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
    failure::Failure,
    output::write_json,
    server_addr::ServerAddr,
};

/// A server that is well answers at once; one that is stuck must not hold the asker.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// Ask a server whether it serves
///
/// Prints `serving` and exits with 0; anything else, no answer within 5 seconds among it, exits
/// with 1. A server that is shutting down is `not serving`. This is the standard grpc.health.v1,
/// so other tools can ask the same.
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
    let ClientArgs { server, json } = args.client;
    let serving = match tokio::time::timeout(ANSWER_TIME_MAX, ask(&server)).await {
        Ok(answer) => answer? == ServingStatus::Serving,
        Err(_elapsed) => {
            let reason = format!("nothing came within {} s", ANSWER_TIME_MAX.as_secs());
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

async fn ask(server: &ServerAddr) -> Result<ServingStatus, Failure> {
    let mut health = HealthClient::new(connect(server).await?);
    // The empty name asks for the server as a whole.
    let request = HealthCheckRequest { service: String::new() };
    let answer = health.check(request).await.map_err(|status| call_failure(server, &status))?;
    Ok(answer.into_inner().status())
}
