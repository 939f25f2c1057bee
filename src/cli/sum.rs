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
    connect::{ClientArgs, call_failure, connect},
    failure::Failure,
    output::{print_note, write_json},
};
use crate::proto::pb::{ColSumReq, table_client::TableClient};

/// For how long the names of the columns are waited for. The total is printed before.
const HINT_TIME_MAX: Duration = Duration::from_secs(2);

/// Print the exact sum of an integer column over all parts
///
/// Parts without the column add nothing, and neither do empty cells. The sum of a column that no
/// part has is 0, and standard error names the columns that there are, unless that takes more than
/// 2 s. A cell that is not an integer, or a sum that does not fit in 64 bits, is an error. Standard
/// output has only the total.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally sum qty\n  \
        tally sum qty --format csv --server tally.internal:5440\n  \
        tally sum qty --json        {\"column\":\"qty\",\"format\":\"parquet\",\"total\":42}\n  \
        tally sum -- -qty           a column whose name begins with a dash"
)]
pub struct SumArgs {
    /// The column's name, as in the header
    pub column: String,

    /// Which files the server reads; both give the same answer, Parquet is faster
    #[arg(long, env = "TALLY_FORMAT", hide_env_values = true, default_value = "parquet")]
    pub format: Format,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// The two copies that the server keeps of each upload.
#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file as it was uploaded
    Csv,
    /// The same rows as Parquet, of which only the column is read
    Parquet,
}

#[derive(Serialize)]
struct Sum<'a> {
    column: &'a str,
    format: Format,
    total: i64,
}

pub(super) async fn run(args: SumArgs) -> Result<ExitCode, Failure> {
    let SumArgs { column, format, client: ClientArgs { server, json } } = args;
    let channel = connect(&server).await?;
    let mut table = TableClient::new(channel.clone());
    let format_name = match format {
        Format::Csv => "csv",
        Format::Parquet => "parquet",
    };
    let request = ColSumReq { column: column.clone(), format: format_name.to_owned() };
    let answer = table.column_sum(request).await.map_err(|status| call_failure(&server, &status))?.into_inner();
    if !answer.error.is_empty() {
        return Err(Failure::Refused(answer.error));
    }
    let mut out = io::stdout();
    if json {
        write_json(&mut out, &Sum { column: &column, format, total: answer.total })?;
    } else {
        writeln!(out, "{}", answer.total)?;
    }
    out.flush()?;
    if answer.total == 0
        && let Ok(Some(hint)) = timeout(HINT_TIME_MAX, hint(channel, &column)).await
    {
        print_note(hint);
    }
    Ok(ExitCode::SUCCESS)
}
