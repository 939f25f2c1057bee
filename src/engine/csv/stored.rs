//! The CSV of a stored part: its limits, and checks against its receipt.

use super::header::stored_names;
use crate::{
    limits::{COLUMNS_MAX, CsvLimits, ROW_BYTES_CEILING},
    model::schema::Schema,
};

/// The limits for stored files. They were checked when they were uploaded, possibly with other limits.
pub const STORED_LIMITS: CsvLimits =
    CsvLimits { columns_max: COLUMNS_MAX, cell_bytes_max: ROW_BYTES_CEILING, row_bytes_max: ROW_BYTES_CEILING };

/// Checks a file's header against the receipt.
pub fn check_header(names: &[String], schema: &Schema) -> Result<(), String> {
    let agree = |names: &[String]| names.iter().eq(schema.columns().iter().map(|(name, _)| name));
    let agrees = agree(names) || agree(&stored_names(names));
    if agrees { Ok(()) } else { Err("its header does not match the receipt".to_owned()) }
}

/// Checks the number of a file's rows against the receipt.
pub fn check_rows(rows: u64, rows_in_receipt: u64) -> Result<(), String> {
    if rows == rows_in_receipt { Ok(()) } else { Err(format!("{rows} rows, the receipt says {rows_in_receipt}")) }
}
