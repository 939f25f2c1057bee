//! Asks for sums of a column with `/Table/ColSum`, again and again, and reports the rate and the response times. Each client
//! has its own connection and asks for one sum after the other.
//!
//! It runs on one thread, because it shares the cores with the server that it measures.

use std::{cell::Cell, error::Error, time::Instant};

use clap::{Parser, value_parser};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use self::pb::{ColSumReq, table_client::TableClient};

/// Generated from proto/table.proto by build.rs.
#[allow(clippy::all)]
mod pb {
    tonic::include_proto!("_");
}

/// Significant digits of a response time: its error is below 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Ask a table server for sums; print the rate and the response times as JSON
#[derive(Debug, Parser)]
struct Args {
    /// The server's gRPC address
    #[arg(long, value_name = "HOST:PORT")]
    server: String,

    /// Number of clients that ask at the same time
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(1..))]
    clients: u8,

    /// Number of sums, of all clients together
    #[arg(long)]
    sums: usize,

    /// csv or parquet
    #[arg(long)]
    format: String,

    /// The sum that each answer must have
    #[arg(long, allow_negative_numbers = true)]
    expected: i64,

    /// The column to sum
    column: String,
}

/// Asks on one connection until there are enough sums; returns the response times in nanoseconds.
async fn run_client(channel: Channel, args: &Args, left: &Cell<usize>) -> Result<Histogram<u64>, Box<dyn Error>> {
    let mut nanoseconds = Histogram::new(SIGNIFICANT_DIGITS)?;
    let mut table = TableClient::new(channel);
    while let Some(others) = left.get().checked_sub(1) {
        left.set(others);
        let sent = Instant::now();
        let question = ColSumReq { column: args.column.clone(), format: args.format.clone() };
        let answer = table.col_sum(question).await?.into_inner();
        if !answer.error.is_empty() {
            return Err(answer.error.into());
        }
        if answer.total != args.expected {
            return Err(format!("the sum is {}, expected {}", answer.total, args.expected).into());
        }
        nanoseconds.record(u64::try_from(sent.elapsed().as_nanos())?)?;
    }
    Ok(nanoseconds)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let left = Cell::new(args.sums);
    let endpoint = Endpoint::from_shared(format!("http://{}", args.server))?.tcp_nodelay(true);
    let channels = try_join_all((0..args.clients).map(|_| endpoint.connect())).await?;

    let start = Instant::now();
    let response_times = try_join_all(channels.into_iter().map(|channel| run_client(channel, &args, &left))).await?;
    let seconds = start.elapsed().as_secs_f64();

    let mut nanoseconds = Histogram::new(SIGNIFICANT_DIGITS)?;
    for of_one_client in &response_times {
        nanoseconds.add(of_one_client)?;
    }
    let ms = |quantile| nanoseconds.value_at_quantile(quantile) as f64 / 1e6;
    let report = json!({
        "sums": nanoseconds.len(),
        "seconds": seconds,
        "per_second": nanoseconds.len() as f64 / seconds,
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
    });
    println!("{report}");
    Ok(())
}
