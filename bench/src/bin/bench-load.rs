//! Uploads files with `/Table/Upload`, the unary call, and reports the rate and the response times. Each client has its own
//! connection and sends one file after the other.
//!
//! It runs on one thread, because it shares the cores with the server that it measures. If all files together are small,
//! they are read before the clock starts; otherwise each file is read when it is about to be sent.

use std::{cell::Cell, error::Error, fs, io, path::PathBuf, time::Instant};

use bytes::Bytes;
use clap::{Parser, value_parser};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use self::pb::{UploadReq, table_client::TableClient};

/// Generated from proto/table.proto by build.rs.
#[allow(clippy::all)]
mod pb {
    tonic::include_proto!("_");
}

/// Significant digits of a response time: its error is below 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;
/// The files are read in advance if all of them together are at most this large.
const READ_AHEAD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Upload files to a table server; print the rate and the response times as JSON
#[derive(Debug, Parser)]
struct Args {
    /// The server's gRPC address
    #[arg(long, value_name = "HOST:PORT")]
    server: String,

    /// Number of clients that upload at the same time
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(1..))]
    clients: u8,

    /// Number of uploads, of all clients together [default: the number of files]
    #[arg(long)]
    uploads: Option<usize>,

    /// The files to send, in this order, again from the first one if --uploads asks for more
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// The uploads to make. Each client takes the next one when it is free.
struct Uploads {
    files: Vec<PathBuf>,
    /// The content of all files, in the same order; empty if it is too large to be read in advance.
    contents: Vec<Bytes>,
    next: Cell<usize>,
    end: usize,
}

impl Uploads {
    fn of(args: &Args) -> io::Result<Self> {
        let mut bytes = 0;
        for file in &args.files {
            bytes += fs::metadata(file)?.len();
        }
        let contents = if bytes <= READ_AHEAD_BYTES_MAX {
            args.files.iter().map(|file| fs::read(file).map(Bytes::from)).collect::<Result<_, _>>()?
        } else {
            Vec::new()
        };
        let end = args.uploads.unwrap_or(args.files.len());
        Ok(Self { files: args.files.clone(), contents, next: Cell::new(0), end })
    }

    fn next(&self) -> io::Result<Option<Bytes>> {
        let number = self.next.get();
        if number == self.end {
            return Ok(None);
        }
        self.next.set(number + 1);
        let index = number % self.files.len();
        match self.contents.get(index) {
            Some(content) => Ok(Some(content.clone())),
            None => fs::read(&self.files[index]).map(|content| Some(content.into())),
        }
    }
}

/// Uploads on one connection until there is nothing left to send; returns the response times in nanoseconds.
async fn run_client(channel: Channel, uploads: &Uploads) -> Result<Histogram<u64>, Box<dyn Error>> {
    let mut nanoseconds = Histogram::new(SIGNIFICANT_DIGITS)?;
    let mut table = TableClient::new(channel);
    while let Some(csv_data) = uploads.next()? {
        let sent = Instant::now();
        let answer = table.upload(UploadReq { csv_data }).await?.into_inner();
        if !answer.error.is_empty() {
            return Err(answer.error.into());
        }
        nanoseconds.record(u64::try_from(sent.elapsed().as_nanos())?)?;
    }
    Ok(nanoseconds)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let uploads = Uploads::of(&args)?;
    let endpoint = Endpoint::from_shared(format!("http://{}", args.server))?.tcp_nodelay(true);
    let channels = try_join_all((0..args.clients).map(|_| endpoint.connect())).await?;

    let start = Instant::now();
    let response_times = try_join_all(channels.into_iter().map(|channel| run_client(channel, &uploads))).await?;
    let seconds = start.elapsed().as_secs_f64();

    let mut nanoseconds = Histogram::new(SIGNIFICANT_DIGITS)?;
    for of_one_client in &response_times {
        nanoseconds.add(of_one_client)?;
    }
    let ms = |quantile| nanoseconds.value_at_quantile(quantile) as f64 / 1e6;
    let report = json!({
        "uploads": nanoseconds.len(),
        "seconds": seconds,
        "per_second": nanoseconds.len() as f64 / seconds,
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
    });
    println!("{report}");
    Ok(())
}
