//! `tally upload`: sends files to the server, several at the same time, with a few blocks of each in memory.

mod blocks;
mod dialect;
pub(super) mod progress;

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, value_parser};
use futures_util::stream::{self, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::sleep;
use tonic::{Request, Status, body::Body, metadata::MetadataValue};
use tower::{Service as _, ServiceExt as _, service_fn};
use uuid::Uuid;

use self::{
    blocks::{Buffers, Upload, is_stdin},
    dialect::DialectArgs,
    progress::Progress,
};
use super::{
    connect::{ClientArgs, Connection, RECEIPT_BYTES_MAX, call_failure, connect, is_worth_repeating},
    failure::Failure,
    output::{escaped, print_error, print_note, rows_text, write_json},
    receipt::{ReceiptJson, file_bytes},
    server_addr::ServerAddr,
};
use crate::proto::pb::tally::{Receipt, tally_client::TallyClient};

/// How long a file waits before it is sent again for the first time; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// Upload CSV files; each becomes one part of the table
///
/// A file is CSV as in RFC 4180, in UTF-8, with a header row; options say what is different. It is sent in messages of up to
/// 252 KiB and never held in memory as a whole. When a file's line is printed, the server has
/// stored it. If the server refuses a file, it keeps nothing of that file, the other files are
/// still uploaded, and the exit code is 1.
///
/// If the connection breaks or the server is restarting, a file is sent again, after a pause that
/// doubles each time. Every attempt has the same random idempotency key, so the file is added only
/// once, even if the answer to an earlier attempt was lost. A pipe is not sent again.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally upload inputs/*.csv\n  \
        tally upload --parallel 8 --server tally.internal:5440 day-*.csv\n  \
        tally upload --decompress name *.csv.gz\n  \
        tally upload --delimiter \";\" --encoding windows-1252 --null NA export.csv\n  \
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

    /// How often a file is sent again, 0 to 20
    #[arg(long, value_name = "N", env = "TALLY_RETRIES", hide_env_values = true, default_value_t = 6,
          value_parser = value_parser!(u8).range(0..=20))]
    pub retries: u8,

    /// In which way the files differ from plain CSV.
    #[command(flatten)]
    pub dialect: DialectArgs,

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
    Receipt(Box<ReceiptJson<'a>>),
    Refused { error: String },
}

impl<'a> FileJson<'a> {
    fn of(file: &'a str, outcome: &'a Result<Receipt, Failure>) -> Self {
        let outcome = match outcome {
            Ok(receipt) => OutcomeJson::Receipt(Box::new(receipt.into())),
            Err(failure) => OutcomeJson::Refused { error: failure.to_string() },
        };
        Self { file, outcome }
    }
}

pub(super) async fn run(args: UploadArgs) -> Result<ExitCode, Failure> {
    let UploadArgs { files, parallel, retries, dialect, client: ClientArgs { server, json, credentials } } = args;
    if files.iter().filter(|file| is_stdin(file)).count() > 1 {
        print_error("standard input (-) can be uploaded only once");
        return Ok(ExitCode::from(2));
    }
    if let Err(invalid) = dialect.check() {
        print_error(invalid);
        return Ok(ExitCode::from(2));
    }

    // Each file that is being sent has a connection: on one connection they would share its HTTP/2 window. The connections
    // are made before the first file is read, so that a missing server is reported once.
    let mut channels = VecDeque::new();
    for _ in 0..files.len().min(parallel.into()) {
        channels.push_back(connect(&server, &credentials).await?);
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
            let options = dialect.message(&file);
            running.push(upload(channel, &server, file, options, retries, &buffers, &progress));
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
            let replayed = if receipt.replayed { " (added by an earlier attempt)" } else { "" };
            writeln!(out, "part {}: {name}, {rows}, {bytes} bytes{replayed}", receipt.part)
        }
        Err(_) => Ok(()),
    }
}

/// Sends one file and waits for the server's receipt. Returns the file's name and the connection, too.
async fn upload(
    channel: Connection,
    server: &ServerAddr,
    file: PathBuf,
    options: Option<Bytes>,
    retries: u8,
    buffers: &Buffers,
    progress: &Progress,
) -> (PathBuf, Connection, Result<Receipt, Failure>) {
    let key = Uuid::new_v4().to_string();
    let mut attempts = 0;
    let outcome = loop {
        let upload = match Upload::open(&file, buffers.clone()).await {
            Ok(upload) => upload,
            Err(error) => break Err(Failure::Input(error)),
        };
        let is_pipe = upload.bytes.is_none();
        let bar = progress.start(&file, upload.bytes);
        let sent = send(channel.clone(), server, options.clone(), upload, &key, bar.clone()).await;
        progress.finish(&bar);
        match sent {
            Err(Unsent::Broken(failure)) if is_pipe => break Err(Failure::NotSentAgain(Box::new(failure))),
            Err(Unsent::Broken(failure)) if attempts < retries => {
                let pause = FIRST_PAUSE.saturating_mul(1 << attempts).min(PAUSE_MAX);
                attempts += 1;
                let seconds = pause.as_secs_f32();
                let note = format!(
                    "{}: {failure}; attempt {attempts} of {retries} to send it again in {seconds} s",
                    file.display()
                );
                progress.suspend(|| print_note(note));
                sleep(pause).await;
            }
            Err(Unsent::Broken(failure) | Unsent::Failed(failure)) => break Err(failure),
            Ok(receipt) => break Ok(receipt),
        }
    };
    progress.count();
    (file, channel, outcome)
}

/// Why a file was not uploaded, or may not have been.
enum Unsent {
    /// The call was interrupted. It can be repeated.
    Broken(Failure),
    Failed(Failure),
}

/// `options`: the message that goes first, if the file is not plain CSV.
async fn send(
    channel: Connection,
    server: &ServerAddr,
    options: Option<Bytes>,
    upload: Upload,
    key: &str,
    bar: ProgressBar,
) -> Result<Receipt, Unsent> {
    let has_options = options.is_some();
    let Upload { blocks, read_error, .. } = upload;
    let blocks = blocks.map(move |block| {
        bar.inc(block.data_bytes as u64);
        block.message
    });
    let frames = stream::iter(options).chain(blocks).map(|message| Ok::<_, Status>(Frame::data(message)));
    // tonic would copy each block into its message. So tonic gets a call without messages, and its empty body is replaced
    // with ours.
    let mut body = Some(Body::new(StreamBody::new(frames)));
    let replace = service_fn(move |request: http::Request<Body>| {
        let body = body.take().unwrap_or_else(|| broken(Status::internal("a file is sent only once")));
        let channel = channel.clone();
        async move { channel.ready_oneshot().await?.call(request.map(|_empty| body)).await }
    });
    let mut tally = TallyClient::new(replace).max_decoding_message_size(RECEIPT_BYTES_MAX);
    let mut request = Request::new(stream::empty());
    let key = MetadataValue::try_from(key).map_err(|error| Unsent::Failed(Failure::Internal(error.to_string())))?;
    request.metadata_mut().insert("idempotency-key", key);
    tokio::select! {
        answer = tally.upload(request) => {
            let receipt = answer.map_err(|status| {
                let failure = call_failure(server, &status);
                if is_worth_repeating(&status) { Unsent::Broken(failure) } else { Unsent::Failed(failure) }
            })?;
            check_source(receipt.into_inner(), has_options).map_err(Unsent::Failed)
        }
        // The call is dropped: this resets its stream, and the server keeps nothing.
        Ok(error) = read_error => Err(Unsent::Failed(Failure::Input(error))),
    }
}

/// Errors: the server does not know options.
fn check_source(receipt: Receipt, has_options: bool) -> Result<Receipt, Failure> {
    if has_options && receipt.source.is_none() {
        let part = receipt.part;
        return Err(Failure::WrongAnswer(format!(
            "the server is too old for the options of this upload, and stored the file as it is: part {part}"
        )));
    }
    Ok(receipt)
}

/// A body that ends with an error, so that the server cannot take it for a whole file.
fn broken(status: Status) -> Body {
    Body::new(StreamBody::new(stream::iter([Err::<Frame<Bytes>, _>(status)])))
}
