//! The commands with which other engines read a table as one, whatever the types of its parts.
//!
//! If a column has more than one type, its values are read as one of them: integers and doubles as doubles, all other
//! mixtures as text.

use std::{
    io::{self, Write},
    path::Path,
};

use crate::{
    cli::output::escaped,
    proto::pb::tally::{ColumnType, TableColumn, TypeInParts},
};

/// What the commands have to know of a table.
pub(super) struct Reading {
    columns_max: usize,
    /// All columns with the type under which they are read, up to `columns_max`.
    columns: Vec<(String, ColumnType)>,
    /// Names of columns that are read as text because their types differ, up to `columns_max`, wherever they are.
    as_text: Vec<String>,
    /// Whether more columns than that are read as text, so that there are no commands.
    has_more_as_text: bool,
    /// Those of them that have text in no part. DuckDB gives them a common type before it casts, `1` for `true` for example.
    without_text: Vec<String>,
    /// Whether some columns have integers in some parts and doubles in others.
    has_widened: bool,
    /// Whether there are more columns than are kept.
    has_more: bool,
}

impl Reading {
    pub(super) fn new(columns_max: usize) -> Self {
        Self {
            columns_max,
            columns: Vec::new(),
            as_text: Vec::new(),
            has_more_as_text: false,
            without_text: Vec::new(),
            has_widened: false,
            has_more: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    pub(super) fn add(&mut self, column: &TableColumn) {
        let types: Vec<_> = column.types.iter().map(TypeInParts::r#type).collect();
        let read_as = match types[..] {
            [only] => only,
            [ColumnType::Int64, ColumnType::Float64] => {
                self.has_widened = true;
                ColumnType::Float64
            }
            _ => ColumnType::Utf8,
        };
        if types.len() > 1 && read_as == ColumnType::Utf8 {
            if self.as_text.len() >= self.columns_max {
                self.has_more_as_text = true;
                return;
            }
            self.as_text.push(column.name.clone());
            if !types.contains(&ColumnType::Utf8) {
                self.without_text.push(column.name.clone());
            }
        }
        if self.columns.len() < self.columns_max {
            self.columns.push((column.name.clone(), read_as));
        } else {
            self.has_more = true;
        }
    }
}

/// Writes the commands, for a table in a data folder.
pub(super) fn write_commands(out: &mut impl Write, reading: &Reading, data: &Path) -> io::Result<()> {
    let files = data.join("parts").join("*.parquet").display().to_string();
    writeln!(out)?;
    if reading.has_more_as_text {
        let columns_max = reading.columns_max;
        return writeln!(out, "more than {columns_max} columns would have to be read as text: there are no commands");
    }
    write_duckdb(out, reading, &files)?;
    write_polars(out, reading, &files)?;
    write_pyarrow(out, reading, &files)?;
    write_spark(out, reading, &files)
}

fn write_duckdb(out: &mut impl Write, reading: &Reading, files: &str) -> io::Result<()> {
    writeln!(out, "DuckDB:")?;
    let replaced: Vec<_> = reading
        .as_text
        .iter()
        .filter(|name| !reading.without_text.contains(name))
        .map(|name| format!("CAST({name} AS VARCHAR) AS {name}", name = sql_name(name)))
        .collect();
    let replace = if replaced.is_empty() { String::new() } else { format!(" REPLACE ({})", replaced.join(", ")) };
    let excluded: Vec<_> = reading.without_text.iter().map(|name| sql_name(name)).collect();
    let exclude = if excluded.is_empty() { String::new() } else { format!(" EXCLUDE ({})", excluded.join(", ")) };
    if !excluded.is_empty() {
        writeln!(
            out,
            "  -- without the columns whose types DuckDB would merge into wrong values: {}",
            excluded.join(", ")
        )?;
    }
    writeln!(out, "  SELECT *{exclude}{replace} FROM read_parquet({}, union_by_name = true)", sql_text(files))
}

fn write_polars(out: &mut impl Write, reading: &Reading, files: &str) -> io::Result<()> {
    writeln!(out, "Polars:")?;
    let files = python_text(files);
    if reading.as_text.is_empty() && !reading.has_more {
        let schema: Vec<_> = reading
            .columns
            .iter()
            .map(|(name, read_as)| format!("{}: {}", python_text(name), polars_type(*read_as)))
            .collect();
        let casts =
            if reading.has_widened { ", cast_options=pl.ScanCastOptions(integer_cast=\"allow-float\")" } else { "" };
        writeln!(out, "  import polars as pl")?;
        return writeln!(
            out,
            "  pl.scan_parquet({files}, schema={{{}}}, missing_columns=\"insert\", extra_columns=\"ignore\"{casts})",
            schema.join(", ")
        );
    }
    if reading.as_text.is_empty() {
        writeln!(out, "  import glob, polars as pl")?;
        return writeln!(
            out,
            "  pl.concat([pl.scan_parquet(file) for file in glob.glob({files})], how=\"diagonal_relaxed\")"
        );
    }
    writeln!(out, "  import glob, polars as pl, polars.selectors as cs")?;
    writeln!(out, "  as_text = cs.by_name({}, require_all=False).cast(pl.String)", python_list(&reading.as_text))?;
    writeln!(
        out,
        "  pl.concat([pl.scan_parquet(file).with_columns(as_text) for file in glob.glob({files})], how=\"diagonal_relaxed\")"
    )
}

fn write_pyarrow(out: &mut impl Write, reading: &Reading, files: &str) -> io::Result<()> {
    writeln!(out, "pyarrow:")?;
    writeln!(out, "  import glob, pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq")?;
    writeln!(out, "  files = glob.glob({})", python_text(files))?;
    if reading.as_text.is_empty() {
        writeln!(
            out,
            "  schema = pa.unify_schemas([pq.read_schema(file) for file in files], promote_options=\"permissive\")"
        )?;
    } else {
        writeln!(out, "  as_text = {}", python_list(&reading.as_text))?;
        writeln!(
            out,
            "  text = lambda schema: pa.schema([field.with_type(pa.string()) if field.name in as_text else field for field in schema])"
        )?;
        writeln!(
            out,
            "  schema = pa.unify_schemas([text(pq.read_schema(file)) for file in files], promote_options=\"permissive\")"
        )?;
    }
    if !reading.has_widened {
        return writeln!(out, "  ds.dataset(files, schema=schema)");
    }
    // A dataset refuses integers beyond 2^53 where it has to read them as doubles.
    writeln!(
        out,
        "  fits = lambda part: pa.table([part[field.name].cast(field.type, safe=False) if field.name in part.column_names else pa.nulls(len(part), field.type) for field in schema], schema)"
    )?;
    writeln!(out, "  ds.dataset(pa.concat_tables([fits(pq.read_table(file)) for file in files]))")
}

fn write_spark(out: &mut impl Write, reading: &Reading, files: &str) -> io::Result<()> {
    writeln!(out, "Spark:")?;
    let files = python_text(files);
    if reading.as_text.is_empty() && !reading.has_widened {
        return writeln!(out, "  spark.read.option(\"mergeSchema\", \"true\").parquet({files})");
    }
    // mergeSchema refuses columns with different types.
    let parts = if reading.as_text.is_empty() {
        writeln!(out, "  import functools, glob")?;
        "spark.read.parquet(file)"
    } else {
        writeln!(out, "  import functools, glob, pyspark.sql.functions as F")?;
        writeln!(out, "  as_text = {}", python_list(&reading.as_text))?;
        writeln!(out, "  column = lambda name: F.col(\"`\" + name.replace(\"`\", \"``\") + \"`\")")?;
        writeln!(
            out,
            "  text = lambda part: part.select([column(name).cast(\"string\").alias(name) if name in as_text else column(name) for name in part.columns])"
        )?;
        "text(spark.read.parquet(file))"
    };
    writeln!(
        out,
        "  functools.reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), [{parts} for file in glob.glob({files})])"
    )
}

fn polars_type(column_type: ColumnType) -> &'static str {
    match column_type {
        ColumnType::Int64 => "pl.Int64",
        ColumnType::Float64 => "pl.Float64",
        ColumnType::Boolean => "pl.Boolean",
        ColumnType::Date32 => "pl.Date",
        ColumnType::Timestamp => "pl.Datetime(\"us\")",
        ColumnType::TimestampUtc => "pl.Datetime(\"us\", \"UTC\")",
        ColumnType::Utf8 | ColumnType::Unspecified => "pl.String",
    }
}

/// A quoted identifier of SQL. SQL has no way to write a character on which a terminal would act: such a name is shown, but
/// its command does not work.
fn sql_name(name: &str) -> String {
    format!("\"{}\"", escaped(&name.replace('"', "\"\"")))
}

/// A string of SQL.
fn sql_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A string of Python. What JSON escapes means the same there, and so does `\u` for what a terminal would act on.
fn python_text(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.chars()
        .map(|c| if c.is_ascii() && !c.is_control() || c.is_alphanumeric() { c.to_string() } else { python_escape(c) })
        .collect()
}

fn python_escape(c: char) -> String {
    let code = u32::from(c);
    if code <= 0xffff { format!("\\u{code:04x}") } else { format!("\\U{code:08x}") }
}

fn python_list(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| python_text(name)).collect();
    format!("[{}]", names.join(", "))
}
