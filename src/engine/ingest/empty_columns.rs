//! The types of columns in which a file has no value. Such a column gets the type that it has in the parts that were committed
//! before, so that other engines can read all Parquet files as one table.

use crate::{
    engine::state::{Shared, column_types::TypedName},
    model::{
        part::Receipt,
        schema::{Column, ColumnType, name_hash},
    },
};

/// The type of a column without any value that no earlier part has. With it, most sequences of parts can be read (see
/// `docs/decisions.md`).
pub(crate) const TYPE_WITHOUT_VALUES: ColumnType = ColumnType::Int64;

/// Gives the columns that have no value their types. `rows` is the number of the file's rows.
pub(super) fn type_empty_columns(state: &Shared, columns: &mut [Column], rows: u64) {
    let mut empty: Vec<_> = columns.iter_mut().filter(|column| column.nulls == rows).collect();
    if empty.is_empty() {
        return;
    }
    let hashes: Vec<_> = empty.iter().map(|column| name_hash(&column.name)).collect();
    let mut types = vec![None; hashes.len()];
    state.with(|state| {
        for (found, hash) in types.iter_mut().zip(&hashes) {
            *found = state.parts.column_types().find(*hash);
        }
    });
    for (column, found) in empty.iter_mut().zip(types) {
        column.column_type = found.unwrap_or(TYPE_WITHOUT_VALUES);
    }
}

/// Notes the types of a part's columns for later files.
pub(super) fn note_types(state: &Shared, receipt: &Receipt) {
    let typed = |column: &Column| TypedName {
        hash: name_hash(&column.name),
        column_type: column.column_type,
        has_values: column.nulls < receipt.rows,
    };
    let columns: Vec<_> = receipt.columns.iter().map(typed).collect();
    state.with(|state| state.parts.note_types(&columns));
}
