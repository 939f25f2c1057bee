//! The connection to a server, and why there is none or a call failed.

use std::{error::Error, io, process::ExitCode, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use tonic::{
    Code, Response, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use super::{
    credentials::{CredentialArgs, ShowToken},
    failure::Failure,
    output::{print_error, print_note},
    server_addr::ServerAddr,
};

/// A server that does not accept the connection within this time counts as not there.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// A long answer may take any time, but the server answers HTTP/2 pings meanwhile: so a dead connection is found.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIME_MAX: Duration = Duration::from_secs(20);

/// Bytes of the longest receipt that is accepted. A receipt names every column, and a header may have 1 MiB.
pub(super) const RECEIPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The flags of every subcommand that is a client.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The server's gRPC address, with or without http://; the default port is 5440
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "TALLY_SERVER",
        hide_env_values = true,
        default_value = "localhost:5440"
    )]
    pub server: ServerAddr,

    /// Print JSON, one object in each line
    #[arg(long, env = "TALLY_JSON", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub json: bool,

    /// Who asks.
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

/// A connection to a server, whose calls show who makes them.
pub(super) type Connection = InterceptedService<Channel, ShowToken>;

/// Connects to a server.
pub(super) async fn connect(server: &ServerAddr, credentials: &CredentialArgs) -> Result<Connection, Failure> {
    let (token, tls) = (credentials.token()?, credentials.tls(server)?);
    if token.is_some() && tls.is_none() && !server.is_loopback() {
        print_note(format!("the token is sent to {server} unencrypted: use https:// or --ca"));
    }
    let unusable =
        |error: &(dyn Error + 'static)| Failure::NoServer { server: server.clone(), reason: root_cause(error) };
    let mut endpoint = Endpoint::from(server.uri(tls.is_some()).map_err(|error| unusable(&error))?);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).map_err(|error| unusable(&error))?;
    }
    let channel = endpoint
        .connect_timeout(CONNECT_TIME_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME_MAX)
        .connect()
        .await
        .map_err(|error| unusable(&error))?;
    Ok(InterceptedService::new(channel, token))
}

/// Whether a call may succeed if it is repeated: it was interrupted, or its answer was lost.
pub(super) fn is_worth_repeating(status: &Status) -> bool {
    // See `call_failure`.
    matches!(status.code(), Code::Unavailable | Code::Aborted) || status.source().is_some()
}

/// Turns the status of a failed call into what the user is told.
pub(super) fn call_failure(server: &ServerAddr, status: &Status) -> Failure {
    // A status that tonic made because no answer came has a source; one that the server sent has none.
    match status.source() {
        Some(cause) => Failure::NoAnswer { server: server.clone(), reason: root_cause(cause) },
        None if status.message().is_empty() => Failure::Refused(status.code().to_string()),
        None => Failure::Refused(status.message().to_owned()),
    }
}

/// Whether the server has refused one of several calls. The others are made all the same.
#[derive(Default)]
pub(super) struct Refusals(bool);

impl Refusals {
    /// The answer; `None` if the server refused the call, after this was printed.
    ///
    /// Errors: there is no answer, so that the other calls would have none either.
    pub(super) fn answer_of<T>(
        &mut self,
        server: &ServerAddr,
        answer: Result<Response<T>, Status>,
    ) -> Result<Option<T>, Failure> {
        match answer.map_err(|status| call_failure(server, &status)) {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(refusal @ Failure::Refused(_)) => {
                print_error(refusal);
                self.0 = true;
                Ok(None)
            }
            Err(no_answer) => Err(no_answer),
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        if self.0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// The last error of the chain: the others only say that there was an error.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<io::Error>() {
        // Without "(os error 111)", which helps nobody at a terminal.
        Some(error) if error.raw_os_error().is_some() => error.kind().to_string(),
        _ => last.to_string(),
    }
}
