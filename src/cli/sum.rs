//! `tally sum`: one column's exact sum.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::time::timeout;

use super::{
    columns::hint,
    connect::{ClientArgs, Connection, call_failure, connect},
    failure::Failure,
    output::{print_note, write_json},
    server_addr::ServerAddr,
};
use crate::proto::pb::{
    ColSumReq,
    table_client::TableClient,
    tally::{self, FormatSum, SumRequest, tally_client::TallyClient},
};

/// For how long the names of the columns are waited for. The total is printed before.
const HINT_TIME_MAX: Duration = Duration::from_secs(2);

/// Print the exact sum of an integer column over all parts
///
/// Parts without the column add nothing, and neither do empty cells. The sum of a column that no
/// part has is 0, and standard error names the columns that there are, unless that takes more than
/// 2 s. A cell that is not an integer, or a sum that does not fit in 64 bits, is an error. Standard
/// output has only the total, unless both formats are read.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally sum qty\n  \
        tally sum qty --format csv --server tally.internal:5440\n  \
        tally sum qty --json        {\"column\":\"qty\",\"format\":\"parquet\",\"total\":42}\n  \
        tally sum qty --format both the sum from CSV and from Parquet, with time and bytes read\n  \
        tally sum -- -qty           a column whose name begins with a dash"
)]
pub struct SumArgs {
    /// The column's name, as in the header
    pub column: String,

    /// Which files the server reads; both give the same answer, Parquet is faster. With `both`, the
    /// server reads CSV and then Parquet, and the time and the bytes that each took are printed
    #[arg(long, env = "TALLY_FORMAT", hide_env_values = true, default_value = "parquet")]
    pub format: Format,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// The two copies that the server keeps of each upload, or both.
#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file as it was uploaded
    Csv,
    /// The same rows as Parquet, of which only the column is read
    Parquet,
    /// One after the other, to compare them
    Both,
}

#[derive(Serialize)]
struct Sum<'a> {
    column: &'a str,
    format: Format,
    total: i64,
}

#[derive(Serialize)]
struct BothSums<'a> {
    column: &'a str,
    csv: Measured,
    parquet: Measured,
}

/// A sum, and what was read for it.
#[derive(Serialize)]
struct Measured {
    total: i64,
    elapsed_ms: f64,
    bytes: u64,
    parts: u64,
    rows: u64,
}

pub(super) async fn run(args: SumArgs) -> Result<ExitCode, Failure> {
    let SumArgs { column, format, client: ClientArgs { server, json, credentials } } = args;
    let channel = connect(&server, &credentials).await?;
    let asked = Asked { server: &server, column: &column, json };
    let total = match format {
        Format::Csv | Format::Parquet => asked.print_one(channel.clone(), format).await?,
        Format::Both => asked.print_both(channel.clone()).await?,
    };
    if total == 0
        && let Ok(Some(hint)) = timeout(HINT_TIME_MAX, hint(channel, &column)).await
    {
        print_note(hint);
    }
    Ok(ExitCode::SUCCESS)
}

/// A question, and how its answer is printed.
struct Asked<'a> {
    server: &'a ServerAddr,
    column: &'a str,
    json: bool,
}

impl Asked<'_> {
    async fn print_one(&self, channel: Connection, format: Format) -> Result<i64, Failure> {
        let format_name = if matches!(format, Format::Csv) { "csv" } else { "parquet" };
        let request = ColSumReq { column: self.column.to_owned(), format: format_name.to_owned() };
        let answer = TableClient::new(channel).column_sum(request).await;
        let answer = answer.map_err(|status| call_failure(self.server, &status))?.into_inner();
        if !answer.error.is_empty() {
            return Err(Failure::Refused(answer.error));
        }
        let mut out = io::stdout();
        if self.json {
            write_json(&mut out, &Sum { column: self.column, format, total: answer.total })?;
        } else {
            writeln!(out, "{}", answer.total)?;
        }
        out.flush()?;
        Ok(answer.total)
    }

    async fn print_both(&self, channel: Connection) -> Result<i64, Failure> {
        let formats = vec![tally::Format::Csv.into(), tally::Format::Parquet.into()];
        let request = SumRequest { column: self.column.to_owned(), formats };
        let answer = TallyClient::new(channel).sum(request).await;
        let sums = answer.map_err(|status| call_failure(self.server, &status))?.into_inner().sums;
        let Ok([csv, parquet]) = <[FormatSum; 2]>::try_from(sums) else {
            return Err(Failure::WrongAnswer("the server did not answer with two sums".to_owned()));
        };
        let [csv, parquet] = [csv, parquet].map(|sum| {
            let FormatSum { total, elapsed_ms, bytes, parts, rows, .. } = sum;
            Measured { total, elapsed_ms, bytes, parts, rows }
        });
        let total = csv.total;
        let mut out = io::stdout();
        if self.json {
            write_json(&mut out, &BothSums { column: self.column, csv, parquet })?;
        } else {
            let digits = csv.total.to_string().len().max(parquet.total.to_string().len());
            for (name, Measured { total, elapsed_ms, bytes, .. }) in [("csv", csv), ("parquet", parquet)] {
                writeln!(out, "{name:7}  {total:digits$}  {elapsed_ms:.2} ms  {bytes} bytes")?;
            }
        }
        out.flush()?;
        Ok(total)
    }
}
