//! Uploads by P3's unary call, for bench/: some clients, each on a connection of its own, one file after the other.
//!
//! One thread, because it shares the cores with the server that it measures. The files are read before the clock runs
//! where all of them are small, and else each when its turn comes.

use std::{cell::Cell, error::Error, fs, io, path::PathBuf, time::Instant};

use bytes::Bytes;
use clap::{Parser, value_parser};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use serde_json::json;
use tally::api::grpc::pb::{UploadReq, table_client::TableClient};
use tonic::transport::{Channel, Endpoint};

/// Digits to which a response time is kept: its error is below 0.1 %.
const DIGITS: u8 = 3;
/// Bytes of all files together that are held in memory.
const HELD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Put uploads on a table server; print their rate and response times as JSON
#[derive(Debug, Parser)]
struct Args {
    /// The server's gRPC address
    #[arg(long, value_name = "HOST:PORT")]
    server: String,

    /// Clients at once
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(1..))]
    clients: u8,

    /// Uploads of all clients together; each file once unless given
    #[arg(long)]
    uploads: Option<usize>,

    /// The files, sent in turn
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// What is sent, in turn, by whichever client is free.
struct Uploads {
    files: Vec<PathBuf>,
    /// The files' content, or none of it.
    held: Vec<Bytes>,
    next: Cell<usize>,
    end: usize,
}

impl Uploads {
    fn of(args: &Args) -> io::Result<Self> {
        let mut bytes = 0;
        for file in &args.files {
            bytes += fs::metadata(file)?.len();
        }
        let held = if bytes <= HELD_BYTES_MAX {
            args.files.iter().map(|file| fs::read(file).map(Bytes::from)).collect::<Result<_, _>>()?
        } else {
            Vec::new()
        };
        let end = args.uploads.unwrap_or(args.files.len());
        Ok(Self { files: args.files.clone(), held, next: Cell::new(0), end })
    }

    fn next(&self) -> io::Result<Option<Bytes>> {
        let turn = self.next.get();
        if turn == self.end {
            return Ok(None);
        }
        self.next.set(turn + 1);
        let index = turn % self.files.len();
        match self.held.get(index) {
            Some(content) => Ok(Some(content.clone())),
            None => fs::read(&self.files[index]).map(|content| Some(content.into())),
        }
    }
}

/// One client, until nothing is left to send.
async fn client(channel: Channel, uploads: &Uploads) -> Result<Histogram<u64>, Box<dyn Error>> {
    let mut nanoseconds = Histogram::new(DIGITS)?;
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
    let measured = try_join_all(channels.into_iter().map(|channel| client(channel, &uploads))).await?;
    let seconds = start.elapsed().as_secs_f64();

    let mut nanoseconds = Histogram::new(DIGITS)?;
    for one in &measured {
        nanoseconds.add(one)?;
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
