//! `tally schema`: the columns of the table, the parts that disagree about types, and how other engines read the table.

mod engines;

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, builder::BoolishValueParser};
use serde::Serialize;

use self::engines::{Reading, write_commands};
use super::{
    connect::{ClientArgs, RECEIPT_BYTES_MAX, call_failure, connect},
    failure::Failure,
    output::{escaped, write_json},
    receipt::type_name_of,
};
use crate::proto::pb::tally::{ListColumnsRequest, TableColumn, TypeInParts, tally_client::TallyClient};

/// Columns beyond this number are not named in the commands for other engines.
const COMMAND_COLUMNS_MAX: usize = 256;

/// Show the columns of the table, and how other engines read it
///
/// One line for each type of each column, with the number of parts and the first of them. The
/// parts of a table may have different columns, and a column may have different types in
/// different parts. Below are the commands with which DuckDB, Polars, pyarrow and Spark read the
/// Parquet files of this very table.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally schema\n  \
        tally schema --data /srv/table\n  \
        tally schema --check        exit code 1 if a column has different types\n  \
        tally schema --json | jq .column"
)]
pub struct SchemaArgs {
    /// Only say which columns have different types in different parts. If there are any, the exit code is 1
    #[arg(long, env = "TALLY_CHECK", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub check: bool,

    /// The server's data folder, as it is to be written in the commands
    #[arg(long, value_name = "DIR", env = "TALLY_DATA", hide_env_values = true, default_value = "tally-data")]
    pub data: PathBuf,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A column as JSON.
#[derive(Serialize)]
struct ColumnJson<'a> {
    column: &'a str,
    types: Vec<TypeJson<'a>>,
    table_parts: u64,
}

#[derive(Serialize)]
struct TypeJson<'a> {
    r#type: &'static str,
    parts: u64,
    first_parts: &'a [u64],
}

pub(super) async fn run(args: SchemaArgs) -> Result<ExitCode, Failure> {
    let SchemaArgs { check, data, client: ClientArgs { server, json, credentials } } = args;
    let mut tally =
        TallyClient::new(connect(&server, &credentials).await?).max_decoding_message_size(RECEIPT_BYTES_MAX);
    let listed = tally.list_columns(ListColumnsRequest {}).await;
    let mut columns = listed.map_err(|status| call_failure(&server, &status))?.into_inner();
    let mut out = BufWriter::new(io::stdout());
    let (mut reading, mut differing) = (Reading::new(COMMAND_COLUMNS_MAX), 0_u64);
    while let Some(column) = columns.message().await.map_err(|status| call_failure(&server, &status))? {
        let differs = column.types.len() > 1;
        differing += u64::from(differs);
        if json && (differs || !check) {
            write_json(&mut out, &ColumnJson::from(&column))?;
        } else if differs || !check {
            write_column(&mut out, &column)?;
        }
        reading.add(&column);
    }
    if !json && !check && !reading.is_empty() {
        write_commands(&mut out, &reading, &data)?;
    }
    out.flush()?;
    if !check || differing == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let what = if differing == 1 { "1 column has" } else { &format!("{differing} columns have") };
    Err(Failure::Refused(format!(
        "{what} different types in different parts: `tally schema` shows how engines read them nevertheless"
    )))
}

/// `qty: int64 in 2 of 3 parts (1, 2), float64 in 1 (3)`
fn write_column(out: &mut impl Write, column: &TableColumn) -> io::Result<()> {
    let TableColumn { name, types, table_parts } = column;
    write!(out, "{}: ", escaped(&shown_name(name)))?;
    for (index, of_type) in types.iter().enumerate() {
        let TypeInParts { parts, first_parts, .. } = of_type;
        let of = if index == 0 { format!(" of {table_parts} part{}", plural(*table_parts)) } else { String::new() };
        let more = if *parts > first_parts.len() as u64 { ", …" } else { "" };
        let ids: Vec<_> = first_parts.iter().map(u64::to_string).collect();
        let comma = if index == 0 { "" } else { ", " };
        write!(out, "{comma}{} in {parts}{of} ({}{more})", type_name_of(of_type.r#type()), ids.join(", "))?;
    }
    writeln!(out)
}

/// The name, in quotes if it could not be recognised otherwise.
fn shown_name(name: &str) -> String {
    if name.is_empty() || name.trim() != name || name.contains([',', ':', '"']) {
        format!("{name:?}")
    } else {
        name.to_owned()
    }
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

impl<'a> From<&'a TableColumn> for ColumnJson<'a> {
    fn from(TableColumn { name, types, table_parts }: &'a TableColumn) -> Self {
        let to_json = |of_type: &'a TypeInParts| TypeJson {
            r#type: type_name_of(of_type.r#type()),
            parts: of_type.parts,
            first_parts: &of_type.first_parts,
        };
        Self { column: name, types: types.iter().map(to_json).collect(), table_parts: *table_parts }
    }
}
