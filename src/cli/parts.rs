//! `tally parts`: lists the receipts of the table.

use std::{
    borrow::Cow,
    collections::VecDeque,
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use clap::{Args, builder::BoolishValueParser};
use console::{Term, truncate_str};
use serde::Serialize;
use tonic::{Code, Status};

use super::{
    connect::{ClientArgs, Connection, RECEIPT_BYTES_MAX, call_failure, connect},
    failure::Failure,
    output::{escaped, rows_text, write_json},
    receipt::{ReceiptJson, file_bytes, type_name},
    server_addr::ServerAddr,
};
use crate::proto::pb::tally::{
    Column, ListPartsRequest, ListQuarantineRequest, ListQuarantineResponse, ListRemovedRequest, Receipt, RemovedPart,
    tally_client::TallyClient,
};

/// Characters of a line if standard output is not a terminal.
const LINE_CHARS: usize = 120;
/// Lines that are collected before they are aligned and printed. This bounds the memory for a long list.
const TABLE_LINES_MAX: usize = 1000;
/// Characters of the longest name of a column type, timestamp_utc.
const TYPE_CHARS: usize = 13;

/// List the parts of the table
///
/// One line for each part, in the order of their numbers: number, data rows, bytes of the CSV and
/// of the Parquet file, time of the upload (UTC), and as many columns as fit in the terminal's
/// width (120 characters without a terminal). Damaged parts in quarantine are listed, too: sums
/// are refused until they are restored or forgotten (see `tally forget --help`). So are parts whose
/// receipts are damaged; then the exit code is 1.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally parts\n  \
        tally parts --after 1000 --limit 10\n  \
        tally parts --columns\n  \
        tally parts --removed               parts that `tally restore` can put back\n  \
        tally parts --json | jq .rows       complete receipts, one JSON object a line"
)]
pub struct PartsArgs {
    /// Show each part's columns with type and number of empty cells (--json always shows them)
    #[arg(long, env = "TALLY_COLUMNS", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub columns: bool,

    /// Show the removed parts that can be restored instead, with the time of their removal and the time until then
    #[arg(long, env = "TALLY_REMOVED", hide_env_values = true, value_parser = BoolishValueParser::new(), conflicts_with = "columns")]
    pub removed: bool,

    /// Show only parts with a greater number
    #[arg(long, value_name = "PART", env = "TALLY_AFTER", hide_env_values = true, default_value_t = 0)]
    pub after: u64,

    /// Show at most this many parts; 0 shows all
    #[arg(long, value_name = "N", env = "TALLY_LIMIT", hide_env_values = true, default_value_t = 0)]
    pub limit: u64,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A part in quarantine as JSON.
#[derive(Serialize)]
struct QuarantinedJson {
    part: u64,
    in_quarantine: bool,
}

/// A removed part as JSON.
#[derive(Serialize)]
struct RemovedJson {
    part: u64,
    rows: u64,
    csv_bytes: u64,
    parquet_bytes: u64,
    removed_at: String,
    restorable_until: String,
}

/// The number of parts in quarantine that the server has not listed, as JSON.
#[derive(Serialize)]
struct MoreQuarantinedJson {
    more_in_quarantine: u64,
}

/// The parts in quarantine that are not printed yet. Each is printed before the receipts with greater numbers.
struct Quarantined {
    parts: VecDeque<u64>,
    /// Parts that the server counted, but did not list.
    more: u64,
}

impl Quarantined {
    /// A server that does not know the call has no quarantine. Errors: the call failed.
    async fn ask(tally: &mut TallyClient<Connection>, after: u64) -> Result<Self, Status> {
        let ListQuarantineResponse { parts, count } = match tally.list_quarantine(ListQuarantineRequest {}).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => ListQuarantineResponse::default(),
            Err(status) => return Err(status),
        };
        let more = count.saturating_sub(parts.len() as u64);
        Ok(Self { parts: parts.into_iter().filter(|part| *part > after).collect(), more })
    }

    /// The next part with a number below `part`.
    fn next_before(&mut self, part: u64) -> Option<u64> {
        if self.parts.front().is_some_and(|next| *next < part) { self.parts.pop_front() } else { None }
    }
}

/// Prints lines in the form that the flags ask for.
struct Printer<W> {
    out: W,
    json: bool,
    columns: bool,
    line_chars: usize,
    table: Table,
}

impl Printer<BufWriter<io::Stdout>> {
    /// To standard output. `table`: of lines as long as this.
    fn new(json: bool, columns: bool, table: fn(usize) -> Table) -> Self {
        let line_chars = Term::stdout().size_checked().map_or(LINE_CHARS, |(_lines, chars)| usize::from(chars));
        Self { out: BufWriter::new(io::stdout()), json, columns, line_chars, table: table(line_chars) }
    }
}

impl<W: Write> Printer<W> {
    fn receipt(&mut self, receipt: &Receipt) -> io::Result<()> {
        if self.json {
            write_json(&mut self.out, &ReceiptJson::from(receipt))
        } else if self.columns {
            write_columns(&mut self.out, receipt, self.line_chars)
        } else if receipt.damaged.is_empty() {
            self.table.add(&mut self.out, receipt)
        } else {
            self.table.add_damaged(&mut self.out, receipt)
        }
    }

    fn quarantined(&mut self, part: u64) -> io::Result<()> {
        if self.json {
            write_json(&mut self.out, &QuarantinedJson { part, in_quarantine: true })
        } else if self.columns {
            writeln!(self.out, "part {part}: in quarantine")
        } else {
            self.table.add_quarantined(&mut self.out, part)
        }
    }

    fn removed(&mut self, removed: RemovedPart) -> io::Result<()> {
        let RemovedPart { part, rows, csv_bytes, parquet_bytes, removed_at, restorable_until } = removed;
        if self.json {
            let json = RemovedJson { part, rows, csv_bytes, parquet_bytes, removed_at, restorable_until };
            return write_json(&mut self.out, &json);
        }
        let numbers = [part, rows, csv_bytes, parquet_bytes].map(|number| number.to_string());
        let [part, rows, csv, parquet] = numbers;
        let until = cut(&restorable_until, self.line_chars);
        self.table.add_line(&mut self.out, [part, rows, csv, parquet, cut(&removed_at, self.line_chars)], until)
    }

    fn end(&mut self, more_quarantined: u64) -> io::Result<()> {
        if !self.json && !self.columns {
            self.table.write(&mut self.out)?;
        }
        if more_quarantined > 0 && self.json {
            write_json(&mut self.out, &MoreQuarantinedJson { more_in_quarantine: more_quarantined })?;
        } else if more_quarantined > 0 {
            writeln!(self.out, "and {more_quarantined} more in quarantine")?;
        }
        self.out.flush()
    }
}

pub(super) async fn run(args: PartsArgs) -> Result<ExitCode, Failure> {
    let PartsArgs { columns, removed, after, limit, client: ClientArgs { server, json, credentials } } = args;
    let mut tally =
        TallyClient::new(connect(&server, &credentials).await?).max_decoding_message_size(RECEIPT_BYTES_MAX);
    if removed {
        return list_removed(&server, &mut tally, json, after, limit).await;
    }
    let asked = Quarantined::ask(&mut tally, after).await;
    let mut quarantined = asked.map_err(|status| call_failure(&server, &status))?;
    let request = ListPartsRequest { after, limit };
    let mut receipts = tally.list_parts(request).await.map_err(|status| call_failure(&server, &status))?.into_inner();

    let mut printer = Printer::new(json, columns, Table::new);
    let (mut printed, mut damaged) = (0, 0_u64);
    let ended = loop {
        let receipt = match receipts.message().await {
            Ok(Some(receipt)) => receipt,
            Ok(None) => break damaged_failure(damaged).map_or(Ok(ExitCode::SUCCESS), Err),
            Err(status) => break Err(call_failure(&server, &status)),
        };
        while let Some(part) = quarantined.next_before(receipt.part) {
            printer.quarantined(part)?;
        }
        printer.receipt(&receipt)?;
        printed += 1;
        damaged += u64::from(!receipt.damaged.is_empty());
    };
    // If --limit cut the list, its last line is a receipt. `--after` with that number then shows all the rest.
    let is_cut = limit > 0 && printed == limit;
    while !is_cut && let Some(part) = quarantined.next_before(u64::MAX) {
        printer.quarantined(part)?;
    }
    printer.end(if is_cut { 0 } else { quarantined.more })?;
    ended
}

fn damaged_failure(count: u64) -> Option<Failure> {
    let receipts = match count {
        0 => return None,
        1 => "the receipt of 1 part is".to_owned(),
        _ => format!("the receipts of {count} parts are"),
    };
    Some(Failure::WrongAnswer(format!("{receipts} damaged: put back the files from a backup, or remove the parts")))
}

/// Lists the removed parts, answer by answer.
async fn list_removed(
    server: &ServerAddr,
    tally: &mut TallyClient<Connection>,
    json: bool,
    mut after: u64,
    limit: u64,
) -> Result<ExitCode, Failure> {
    let mut printer = Printer::new(json, false, Table::of_removed);
    let mut left = if limit == 0 { u64::MAX } else { limit };
    loop {
        let answer = tally.list_removed(ListRemovedRequest { after }).await;
        let parts = answer.map_err(|status| call_failure(server, &status))?.into_inner().parts;
        let Some(last) = parts.last() else { break };
        after = last.part;
        for part in parts {
            if left > 0 {
                printer.removed(part)?;
                left -= 1;
            }
        }
        if left == 0 {
            break;
        }
    }
    printer.end(0)?;
    Ok(ExitCode::SUCCESS)
}

/// The list with a line for each part. A column is as wide as its widest cell so far, so a list of any length can be printed
/// while it arrives.
struct Table {
    line_chars: usize,
    /// The widths of the first five columns; the last one takes the rest of the line.
    widths: [usize; 5],
    /// Lines not yet printed, the header first.
    lines: Vec<([String; 5], String)>,
}

impl Table {
    fn new(line_chars: usize) -> Self {
        Self::with_header(line_chars, "uploaded at", "columns")
    }

    fn of_removed(line_chars: usize) -> Self {
        Self::with_header(line_chars, "removed at", "restorable until")
    }

    fn with_header(line_chars: usize, time: &str, rest: &str) -> Self {
        let header = ["part", "rows", "csv bytes", "parquet bytes", time].map(str::to_owned);
        Self { line_chars, widths: [0; 5], lines: vec![(header, rest.to_owned())] }
    }

    fn add(&mut self, out: &mut impl Write, receipt: &Receipt) -> io::Result<()> {
        let uploaded_at = cut(&receipt.uploaded_at, self.line_chars);
        self.add_line(out, fixed(receipt, uploaded_at), column_names(&receipt.columns, self.line_chars))
    }

    fn add_damaged(&mut self, out: &mut impl Write, receipt: &Receipt) -> io::Result<()> {
        let what = format!("damaged: {}", cut(&receipt.damaged, self.line_chars));
        self.add_line(out, fixed(receipt, "-".to_owned()), what)
    }

    fn add_quarantined(&mut self, out: &mut impl Write, part: u64) -> io::Result<()> {
        let fixed = [&part.to_string(), "-", "-", "-", "-"].map(str::to_owned);
        self.add_line(out, fixed, "in quarantine".to_owned())
    }

    fn add_line(&mut self, out: &mut impl Write, fixed: [String; 5], rest: String) -> io::Result<()> {
        self.lines.push((fixed, rest));
        if self.lines.len() >= TABLE_LINES_MAX { self.write(out) } else { Ok(()) }
    }

    fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        for (fixed, _) in &self.lines {
            for (width, cell) in self.widths.iter_mut().zip(fixed) {
                *width = (*width).max(cell.len());
            }
        }
        let [part, rows, csv, parquet, uploaded] = self.widths;
        // Two spaces follow each of the five. Numbers are aligned on the right, text on the left.
        let rest_chars = self.line_chars.saturating_sub(self.widths.iter().sum::<usize>() + 5 * 2);
        for ([p, r, c, q, u], names) in self.lines.drain(..) {
            let names = truncate_str(&names, rest_chars, "…");
            writeln!(out, "{p:>part$}  {r:>rows$}  {c:>csv$}  {q:>parquet$}  {u:<uploaded$}  {names}")?;
        }
        Ok(())
    }
}

/// The first five cells of a part's line.
fn fixed(receipt: &Receipt, uploaded_at: String) -> [String; 5] {
    let (csv, parquet) = (file_bytes(receipt.csv.as_ref()), file_bytes(receipt.parquet.as_ref()));
    let [part, rows, csv, parquet] = [receipt.part, receipt.rows, csv, parquet].map(|number| number.to_string());
    [part, rows, csv, parquet, uploaded_at]
}

/// One part with a line for each column.
fn write_columns(out: &mut impl Write, receipt: &Receipt, line_chars: usize) -> io::Result<()> {
    let Receipt { part, rows, columns, csv, parquet, uploaded_at, damaged, .. } = receipt;
    let (csv, parquet) = (file_bytes(csv.as_ref()), file_bytes(parquet.as_ref()));
    write!(out, "part {part}: {}, {csv} bytes of csv, {parquet} of parquet, ", rows_text(*rows))?;
    if !damaged.is_empty() {
        return writeln!(out, "damaged: {}", cut(damaged, line_chars));
    }
    writeln!(out, "uploaded at {}", cut(uploaded_at, line_chars))?;
    let nulls_chars = rows.to_string().len().max("nulls".len());
    let rest_chars = line_chars.saturating_sub(2 + TYPE_CHARS + 2 + nulls_chars + 2);
    writeln!(out, "  {:<TYPE_CHARS$}  {:>nulls_chars$}  column", "type", "nulls")?;
    for column in columns {
        let name = cut(&shown_name(&column.name), rest_chars);
        writeln!(out, "  {:<TYPE_CHARS$}  {:>nulls_chars$}  {name}", type_name(column), column.nulls)?;
    }
    Ok(())
}

/// `3: x, y, z`, cut when it is longer than a line of `chars_max`.
fn column_names(columns: &[Column], chars_max: usize) -> String {
    let mut text = format!("{}:", columns.len());
    for (index, column) in columns.iter().enumerate() {
        text.push_str(if index == 0 { " " } else { ", " });
        text.push_str(&cut(&shown_name(&column.name), chars_max));
        if text.chars().count() > chars_max {
            break;
        }
    }
    text
}

/// The name, in quotes if it is empty or has a comma and so could not be recognised in a list.
fn shown_name(name: &str) -> Cow<'_, str> {
    if name.is_empty() || name.contains(',') { Cow::Owned(format!("\"{name}\"")) } else { Cow::Borrowed(name) }
}

/// The text, safe for a terminal and at most `chars_max` wide. It is cut before it is escaped, because names may be long.
fn cut(text: &str, chars_max: usize) -> String {
    let end = text.char_indices().nth(chars_max + 1).map_or(text.len(), |(end, _)| end);
    truncate_str(&escaped(&text[..end]), chars_max, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use crate::proto::pb::tally::{ColumnType, File};

    use super::*;

    fn receipt(part: u64, rows: u64, names: &[&str]) -> Receipt {
        let column = |name: &&str| Column { name: (*name).to_owned(), r#type: ColumnType::Int64.into(), nulls: 1 };
        let file = |bytes| Some(File { bytes, xxh3: "0123456789abcdef".to_owned() });
        Receipt {
            part,
            rows,
            columns: names.iter().map(column).collect(),
            csv: file(rows * 10),
            parquet: file(rows * 3),
            uploaded_at: "2026-11-20T08:48:57.123456Z".to_owned(),
            ..Receipt::default()
        }
    }

    fn table(receipts: &[Receipt], line_chars: usize) -> String {
        let mut out = Vec::new();
        let mut table = Table::new(line_chars);
        for receipt in receipts {
            assert!(table.add(&mut out, receipt).is_ok());
        }
        assert!(table.write(&mut out).is_ok());
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn a_table_is_aligned() {
        let text = table(&[receipt(1, 2, &["x", "y"]), receipt(12, 250_000, &["", "a\nb", "c, d"])], 120);
        assert_eq!(
            text,
            "part    rows  csv bytes  parquet bytes  uploaded at                  columns\n\
             \x20  1       2         20              6  2026-11-20T08:48:57.123456Z  2: x, y\n\
             \x20 12  250000    2500000         750000  2026-11-20T08:48:57.123456Z  3: \"\", a\\nb, \"c, d\"\n"
        );
    }

    #[test]
    fn a_part_in_quarantine_has_a_line() {
        let (mut out, mut table) = (Vec::new(), Table::new(120));
        assert!(table.add(&mut out, &receipt(1, 2, &["x", "y"])).is_ok());
        assert!(table.add_quarantined(&mut out, 12).is_ok() && table.write(&mut out).is_ok());
        assert_eq!(
            String::from_utf8_lossy(&out),
            "part  rows  csv bytes  parquet bytes  uploaded at                  columns\n\
             \x20  1     2         20              6  2026-11-20T08:48:57.123456Z  2: x, y\n\
             \x20 12     -          -              -  -                            in quarantine\n"
        );
    }

    #[test]
    fn a_line_is_no_wider_than_the_terminal() {
        let long = "n".repeat(1_000_000);
        let wide = "数".repeat(100);
        for names in [[long.as_str(), "y"], ["\x1b[31m", wide.as_str()], [wide.as_str(), wide.as_str()]] {
            for line_chars in [80, 100] {
                for line in table(&[receipt(1, 2, &names)], line_chars).lines() {
                    assert!(console::measure_text_width(line) <= line_chars, "{line_chars}: {line}");
                    assert!(!line.contains('\x1b'));
                }
                let mut out = Vec::new();
                assert!(write_columns(&mut out, &receipt(1, 2, &names), line_chars).is_ok());
                for line in String::from_utf8_lossy(&out).lines().skip(1) {
                    assert!(console::measure_text_width(line) <= line_chars, "{line_chars}: {line}");
                }
            }
        }
    }

    #[test]
    fn a_long_list_is_printed_as_it_comes() {
        let mut out = Vec::new();
        let mut table = Table::new(80);
        for part in 1..=2_500 {
            assert!(table.add(&mut out, &receipt(part, part, &["x"])).is_ok());
            assert!(table.lines.len() <= TABLE_LINES_MAX);
        }
        assert_eq!(String::from_utf8_lossy(&out).lines().count(), 2_000);
    }

    #[test]
    fn columns_have_types_and_nulls() {
        let mut out = Vec::new();
        assert!(write_columns(&mut out, &receipt(7, 2, &["x", "y z"]), 80).is_ok());
        assert_eq!(
            String::from_utf8_lossy(&out),
            "part 7: 2 rows, 20 bytes of csv, 6 of parquet, uploaded at 2026-11-20T08:48:57.123456Z\n  \
             type           nulls  column\n  \
             int64              1  x\n  \
             int64              1  y z\n"
        );
    }
}
