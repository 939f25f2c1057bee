//! `tally upload`: sends files to the server, several at the same time, with a few blocks of each in memory.

mod blocks;
pub(super) mod progress;

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use bytes::Bytes;
use clap::{Args, value_parser};
use futures_util::stream::{self, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use indicatif::ProgressBar;
use serde::Serialize;
use tonic::{Status, body::Body, transport::Channel};
use tower::{Service as _, ServiceExt as _, service_fn};

use self::{
    blocks::{Buffers, Upload, is_stdin},
    progress::Progress,
};
use super::{
    connect::{ClientArgs, RECEIPT_BYTES_MAX, call_failure, connect},
    failure::Failure,
    output::{escaped, print_error, rows_text, write_json},
    receipt::{ReceiptJson, file_bytes},
    server_addr::ServerAddr,
};
use crate::proto::pb::tally::{Receipt, tally_client::TallyClient};

/// Upload CSV files; each becomes one part of the table
///
/// A file is CSV as in RFC 4180, in UTF-8, with a header row. It is sent in messages of up to
/// 252 KiB and never held in memory as a whole. When a file's line is printed, the server has
/// stored it. If the server refuses a file, it keeps nothing of that file, the other files are
/// still uploaded, and the exit code is 1.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally upload inputs/*.csv\n  \
        tally upload --parallel 8 --server tally.internal:5440 day-*.csv\n  \
        zcat big.csv.gz | tally upload -\n  \
        tally upload --json a.csv      {\"file\":\"a.csv\",\"part\":1,\"rows\":2,...} or {\"file\":...,\"error\":...}"
)]
pub struct UploadArgs {
    /// The files; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// How many files are sent at once, 1 to 64
    #[arg(long, value_name = "N", env = "TALLY_PARALLEL", hide_env_values = true, default_value_t = 4,
          value_parser = value_parser!(u8).range(1..=64))]
    pub parallel: u8,

    /// Where and how to send.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What `--json` prints for a file.
#[derive(Serialize)]
struct FileJson<'a> {
    file: &'a str,
    #[serde(flatten)]
    outcome: OutcomeJson<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OutcomeJson<'a> {
    Receipt(ReceiptJson<'a>),
    Refused { error: String },
}

impl<'a> FileJson<'a> {
    fn of(file: &'a str, outcome: &'a Result<Receipt, Failure>) -> Self {
        let outcome = match outcome {
            Ok(receipt) => OutcomeJson::Receipt(receipt.into()),
            Err(failure) => OutcomeJson::Refused { error: failure.to_string() },
        };
        Self { file, outcome }
    }
}

pub(super) async fn run(args: UploadArgs) -> Result<ExitCode, Failure> {
    let UploadArgs { files, parallel, client: ClientArgs { server, json } } = args;
    if files.iter().filter(|file| is_stdin(file)).count() > 1 {
        print_error("standard input (-) can be uploaded only once");
        return Ok(ExitCode::from(2));
    }

    // Each file that is being sent has a connection: on one connection they would share its HTTP/2 window. The connections
    // are made before the first file is read, so that a missing server is reported once.
    let mut channels = VecDeque::new();
    for _ in 0..files.len().min(parallel.into()) {
        channels.push_back(connect(&server).await?);
    }

    let progress = Progress::new(files.len());
    let buffers = Buffers::new(channels.len());
    let mut failed = false;
    let mut files = files.into_iter();
    let mut running = stream::FuturesUnordered::new();
    loop {
        // As many files are sent at once as there are connections; a file that is done passes its connection on.
        while !channels.is_empty()
            && let Some(file) = files.next()
            && let Some(channel) = channels.pop_front()
        {
            running.push(upload(channel, &server, file, &buffers, &progress));
        }
        let Some((file, channel, outcome)) = running.next().await else {
            break;
        };
        channels.push_back(channel);
        let name = file.to_string_lossy();
        failed |= outcome.is_err();
        if let Err(error) = progress.suspend(|| print_outcome(&name, &outcome, json)) {
            // Nobody reads our output any more, but the files are still to be sent.
            if error.kind() != io::ErrorKind::BrokenPipe {
                failed = true;
                progress.suspend(|| print_error(Failure::Output(error)));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_outcome(name: &str, outcome: &Result<Receipt, Failure>, json: bool) -> io::Result<()> {
    let mut out = io::stdout();
    if let Err(failure) = outcome {
        print_error(format!("{name}: {failure}"));
    }
    match outcome {
        _ if json => write_json(&mut out, &FileJson::of(name, outcome)),
        Ok(receipt) => {
            let (name, rows, bytes) = (escaped(name), rows_text(receipt.rows), file_bytes(receipt.csv.as_ref()));
            writeln!(out, "part {}: {name}, {rows}, {bytes} bytes", receipt.part)
        }
        Err(_) => Ok(()),
    }
}

/// Sends one file and waits for the server's receipt. Returns the file's name and the connection, too.
async fn upload(
    channel: Channel,
    server: &ServerAddr,
    file: PathBuf,
    buffers: &Buffers,
    progress: &Progress,
) -> (PathBuf, Channel, Result<Receipt, Failure>) {
    let outcome = match Upload::open(&file, buffers.clone()).await {
        Ok(upload) => {
            let bar = progress.start(&file, upload.bytes);
            let outcome = send(channel.clone(), server, upload, bar.clone()).await;
            progress.finish(&bar);
            outcome
        }
        Err(error) => Err(Failure::Input(error)),
    };
    progress.count();
    (file, channel, outcome)
}

async fn send(channel: Channel, server: &ServerAddr, upload: Upload, bar: ProgressBar) -> Result<Receipt, Failure> {
    let Upload { blocks, read_error, .. } = upload;
    let frames = blocks.map(move |block| {
        bar.inc(block.data_bytes as u64);
        Ok::<_, Status>(Frame::data(block.message))
    });
    // tonic would copy each block into its message. So tonic gets a call without messages, and its empty body is replaced
    // with ours.
    let mut body = Some(Body::new(StreamBody::new(frames)));
    let replace = service_fn(move |request: http::Request<Body>| {
        let body = body.take().unwrap_or_else(|| broken(Status::internal("a file is sent only once")));
        let channel = channel.clone();
        async move { channel.ready_oneshot().await?.call(request.map(|_empty| body)).await }
    });
    let mut tally = TallyClient::new(replace).max_decoding_message_size(RECEIPT_BYTES_MAX);
    tokio::select! {
        answer = tally.upload(stream::empty()) => {
            answer.map(tonic::Response::into_inner).map_err(|status| call_failure(server, &status))
        }
        // The call is dropped: this resets its stream, and the server keeps nothing.
        Ok(error) = read_error => Err(Failure::Input(error)),
    }
}

/// A body that ends with an error, so that the server cannot take it for a whole file.
fn broken(status: Status) -> Body {
    Body::new(StreamBody::new(stream::iter([Err::<Frame<Bytes>, _>(status)])))
}
