//! The types of columns in which a file has no value. Such a column gets the type that it has in the parts that were committed
//! before, so that other engines can read all Parquet files as one table.

use std::collections::HashMap;

use crate::{
    engine::state::{Shared, column_types::TypeSets},
    model::schema::{Column, ColumnType, name_hash},
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
    let hashes = empty.iter().map(|column| name_hash(&column.name));
    let wanted: HashMap<u64, usize> = hashes.zip(0..).collect();
    let mut types = vec![TypeSets::default(); empty.len()];
    state.with(|state| state.parts.add_unshared_types(&wanted, &mut types));
    let mut after = None;
    loop {
        after = state.with(|state| state.parts.add_types(after, &wanted, &mut types));
        if after.is_none() {
            break;
        }
    }
    for (column, types) in empty.iter_mut().zip(types) {
        column.column_type = types.first().unwrap_or(TYPE_WITHOUT_VALUES);
    }
}

#[cfg(test)]
#[cfg(not(feature = "model"))]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use crate::{
        engine::{Engine, engine_tests::in_time},
        error::Error,
        limits::{Limits, SCHEMA_BYTES_MAX},
        model::{durability::Durability, part::PartId},
    };

    use super::*;

    /// Opens the folder, once an engine that was closed has left it.
    async fn open(folder: &tempfile::TempDir) -> Engine {
        let open = async {
            loop {
                match Engine::open(folder.path(), Durability::None, Limits::default()).await {
                    Ok((engine, _)) => break engine,
                    Err(_in_use) => tokio::task::yield_now().await,
                }
            }
        };
        in_time("the folder is free", open).await
    }

    /// Uploads a file and returns its number and the type of its first column.
    async fn upload(engine: &Engine, csv: &'static str) -> (PartId, ColumnType) {
        let receipt = engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("a valid file");
        (receipt.part, receipt.columns[0].column_type)
    }

    const EMPTY: &str = "a,b\n,1\n";

    #[tokio::test]
    async fn values_count_although_an_earlier_part_with_the_schema_has_none() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let engine = open(&folder).await;
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Int64);
        assert_eq!(upload(&engine, "a\n1.5\n").await.1, ColumnType::Float64);
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Float64);
        // Int64 comes before Float64, now that it has values, too.
        let (with_values, _) = upload(&engine, "a,b\n7,1\n").await;
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Int64);
        engine.remove_part(with_values, true).await.expect("removed");
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Float64);
        engine.close();
    }

    #[tokio::test]
    async fn a_removed_part_counts_until_it_is_purged_and_a_restart_changes_nothing() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let engine = open(&folder).await;
        let (text, _) = upload(&engine, "a\nx\n").await;
        let (date, _) = upload(&engine, "a\n2020-01-01\n").await;
        engine.remove_part(text, false).await.expect("removed");
        engine.remove_part(date, false).await.expect("removed");
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Date32);
        engine.close();
        drop(engine);
        let engine = open(&folder).await;
        engine.remove_part(date, true).await.expect("purged");
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Utf8);
        engine.restore_part(text).await.expect("restored");
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Utf8);
        engine.remove_part(text, true).await.expect("purged");
        // Now no part has a value there, so the types of the parts without any count.
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Date32);
        for part in 3..=6 {
            engine.remove_part(PartId::new(part).expect("a number"), true).await.expect("purged");
        }
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Int64);
        engine.close();
    }

    #[tokio::test]
    async fn parts_without_a_schema_in_memory_count() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let engine = open(&folder).await;
        engine.context.state.with(|state| state.parts.fill_schemas(SCHEMA_BYTES_MAX));
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Int64);
        assert_eq!(upload(&engine, "a\nx\n").await.1, ColumnType::Utf8);
        assert_eq!(upload(&engine, EMPTY).await.1, ColumnType::Utf8);
        engine.close();
    }

    #[tokio::test]
    async fn all_schemas_are_looked_at() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let engine = open(&folder).await;
        for column in 0..200 {
            let csv = format!("a{column},b\n1.5,1\n");
            engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("a valid file");
        }
        for column in 0..200 {
            let csv = format!("a{column},c\n,1\n");
            let receipt = engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("a valid file");
            assert_eq!(receipt.columns[0].column_type, ColumnType::Float64, "{column}");
        }
        engine.close();
    }
}
