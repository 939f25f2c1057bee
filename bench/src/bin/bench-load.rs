//! Uploads files with `/Table/Upload`, the unary call, and reports the rate and the response times. Each client has its own
//! connection and sends one file after the other.
//!
//! It runs on one thread, because it shares the cores with the server that it measures. If all files together are small,
//! they are read before the clock starts; otherwise each file is read when it is about to be sent.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Parser, value_parser};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use serde_json::json;
use tonic::{
    Request,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

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

/// The report has the number of uploads in each interval of this length.
const INTERVAL: Duration = Duration::from_secs(10);

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

    /// Upload for so many seconds, and at most --uploads files if that is given
    #[arg(long)]
    seconds: Option<f64>,

    /// Cut each file into CSV files with so many rows, and send these. No cell may have a newline in it
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    cut_rows: Option<u32>,

    /// A file with the secret of a token, which each call shows
    #[arg(long)]
    token_file: Option<PathBuf>,

    /// The files to send, in this order, again from the first one if --uploads asks for more
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// The uploads to make. Each client takes the next one when it is free.
struct Uploads {
    files: Vec<PathBuf>,
    /// The content of what is sent, in order; empty if it is too large to be read in advance.
    contents: Vec<Bytes>,
    next: Cell<usize>,
    end: usize,
    start: Instant,
    seconds: f64,
    /// How many ended in each [`INTERVAL`].
    ended: RefCell<Vec<u64>>,
}

impl Uploads {
    fn of(args: &Args) -> io::Result<Self> {
        let mut bytes = 0;
        for file in &args.files {
            bytes += fs::metadata(file)?.len();
        }
        let mut contents = Vec::new();
        if bytes <= READ_AHEAD_BYTES_MAX || args.cut_rows.is_some() {
            for file in &args.files {
                let content = fs::read(file)?;
                match args.cut_rows {
                    Some(rows) => contents.extend(cut(&content, rows as usize)),
                    None => contents.push(content.into()),
                }
            }
        }
        let once = if contents.is_empty() { args.files.len() } else { contents.len() };
        let end = args.uploads.unwrap_or(if args.seconds.is_some() { usize::MAX } else { once });
        Ok(Self {
            files: args.files.clone(),
            contents,
            next: Cell::new(0),
            end,
            start: Instant::now(),
            seconds: args.seconds.unwrap_or(f64::INFINITY),
            ended: RefCell::default(),
        })
    }

    fn next(&self) -> io::Result<Option<Bytes>> {
        let number = self.next.get();
        if number == self.end || self.start.elapsed().as_secs_f64() >= self.seconds {
            return Ok(None);
        }
        self.next.set(number + 1);
        if !self.contents.is_empty() {
            return Ok(Some(self.contents[number % self.contents.len()].clone()));
        }
        fs::read(&self.files[number % self.files.len()]).map(|content| Some(content.into()))
    }

    fn count_ended(&self) {
        let interval = self.start.elapsed().as_secs() / INTERVAL.as_secs();
        let mut ended = self.ended.borrow_mut();
        while ended.len() as u64 <= interval {
            ended.push(0);
        }
        if let Some(last) = ended.last_mut() {
            *last += 1;
        }
    }
}

/// Cuts a CSV file into files of so many rows, each with the header.
fn cut(content: &[u8], rows: usize) -> Vec<Bytes> {
    let mut lines = content.split_inclusive(|&byte| byte == b'\n');
    let header = lines.next().unwrap_or_default();
    let lines: Vec<_> = lines.collect();
    lines
        .chunks(rows)
        .map(|rows| [header].into_iter().chain(rows.iter().copied()).collect::<Vec<_>>().concat().into())
        .collect()
}

/// Uploads on one connection until there is nothing left to send; returns the response times in nanoseconds.
async fn run_client(
    channel: Channel,
    authorization: Option<&AsciiMetadataValue>,
    uploads: &Uploads,
) -> Result<Histogram<u64>, Box<dyn Error>> {
    let mut nanoseconds = Histogram::new(SIGNIFICANT_DIGITS)?;
    let mut table = TableClient::new(channel);
    while let Some(csv_data) = uploads.next()? {
        let sent = Instant::now();
        let mut request = Request::new(UploadReq { csv_data });
        if let Some(authorization) = authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        let answer = table.upload(request).await?.into_inner();
        if !answer.error.is_empty() {
            return Err(answer.error.into());
        }
        nanoseconds.record(u64::try_from(sent.elapsed().as_nanos())?)?;
        uploads.count_ended();
    }
    Ok(nanoseconds)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let mut uploads = Uploads::of(&args)?;
    let authorization = match &args.token_file {
        Some(file) => Some(format!("Bearer {}", fs::read_to_string(file)?.trim()).parse()?),
        None => None,
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", args.server))?.tcp_nodelay(true);
    let channels = try_join_all((0..args.clients).map(|_| endpoint.connect())).await?;

    uploads.start = Instant::now();
    let clients = channels.into_iter().map(|channel| run_client(channel, authorization.as_ref(), &uploads));
    let response_times = try_join_all(clients).await?;
    let seconds = uploads.start.elapsed().as_secs_f64();

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
        "interval_s": INTERVAL.as_secs(),
        "in_each_interval": uploads.ended.take(),
    });
    println!("{report}");
    Ok(())
}
