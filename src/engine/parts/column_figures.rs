//! The figures of the table's columns: of each name its types, parts, rows, empty cells and bytes as Parquet.
//!
//! They are sums over the schemas in the registry, whose figures are kept up when parts are added and removed
//! (`state/schemas.rs`). Only parts whose schema the registry has no room for are read from their receipts, and only up to
//! [`COLUMN_RECEIPTS_MAX`] of them.
//!
//! Memory: a page, and on the worker a copy of one schema's figures or one receipt.

use std::sync::Arc;

use super::name_page::NamePage;
use crate::{
    engine::{
        runtime::context::Context,
        state::{Lane, Shared, registry::Snapshot, schemas::SchemaFigures},
        storage::{Store, segments::cursor::PartCursor},
    },
    error::Error,
    limits::{
        COLUMN_FIGURES_BYTES, COLUMN_FIGURES_TYPE_BYTES, COLUMN_RECEIPTS_MAX, COLUMNS_MAX, COLUMNS_PAGE_BYTES,
        ESCAPED_BYTES_MAX, TASK_PARTS_MAX,
    },
    model::{
        part::{Part, PartFigures},
        schema::{ColumnType, Schema},
    },
};

/// Some columns of the table, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnsPage {
    /// The columns.
    pub columns: Vec<ColumnSummary>,
    /// How many parts the table has.
    pub table_parts: usize,
    /// Whether there are columns after these.
    pub has_more: bool,
    /// Whether all parts are counted exactly. Otherwise columns and figures may be missing.
    pub is_complete: bool,
}

/// A column of the table: all columns of its parts that have this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSummary {
    /// The name in the headers.
    pub name: String,
    /// Each type that it has, in the order of [`ColumnType`], and how many parts have it with this type.
    pub types: Vec<(ColumnType, u64)>,
    /// Data rows of the parts that have it.
    pub rows: u64,
    /// Empty cells.
    pub nulls: u64,
    /// Bytes of its chunks in the Parquet files of those parts whose receipts say it.
    pub parquet_bytes: u64,
    /// The other parts: they were written by a program that did not record it.
    pub parts_without_bytes: u64,
}

/// The first columns after a name: at most `count_max`, and as many as fit in [`COLUMNS_PAGE_BYTES`], but at least one.
///
/// Errors: a receipt that is damaged or cannot be read.
pub(crate) async fn columns_page(
    context: &Arc<Context>,
    after: Option<String>,
    count_max: usize,
) -> Result<ColumnsPage, Error> {
    let (parts, without_schema) = context.state.with(|state| (state.parts.snapshot(), state.parts.without_schema()));
    let table_parts = parts.len();
    let pass = Pass { page: new_page(after, count_max), is_exact: true };
    let state = context.state.clone();
    let mut pass = context.on_worker(Lane::Question, move |_store| Ok(pass.add_schemas(&state))).await?;
    if without_schema > 0 {
        pass = add_receipts(context, pass, parts).await?;
    }
    let (entries, has_more) = pass.page.finish();
    let columns = entries.into_iter().map(|(name, sums)| sums.into_summary(name)).collect();
    Ok(ColumnsPage { columns, table_parts, has_more, is_complete: pass.is_exact })
}

fn new_page(after: Option<String>, count_max: usize) -> NamePage<Sums> {
    // The page is written as JSON, in which each byte of a name may be escaped.
    let entry_bytes = |name: &str| COLUMN_FIGURES_BYTES + ESCAPED_BYTES_MAX * name.len();
    NamePage::new(after, COLUMNS_PAGE_BYTES, count_max, entry_bytes, Sums::types_bytes)
}

async fn add_receipts(context: &Arc<Context>, mut pass: Pass, parts: Snapshot) -> Result<Pass, Error> {
    // As long as they are here, their files are not deleted.
    let mut left: Vec<Arc<Part>> = context.on_worker(Lane::Question, move |store| without_schema(store, parts)).await?;
    if left.len() > COLUMN_RECEIPTS_MAX {
        pass.is_exact = false;
        left.truncate(COLUMN_RECEIPTS_MAX);
    }
    for some in left.chunks(TASK_PARTS_MAX) {
        let some = some.to_vec();
        pass = context.on_worker(Lane::Question, move |store| pass.add_parts(store, &some)).await?;
    }
    Ok(pass)
}

/// The first parts whose schemas the registry does not have, one more than are read.
fn without_schema(store: &Store, parts: Snapshot) -> Result<Vec<Arc<Part>>, Error> {
    let own = parts.parts.values().filter(|part| part.schema.is_none()).take(COLUMN_RECEIPTS_MAX + 1);
    let mut found: Vec<_> = own.cloned().collect();
    let segments: Vec<_> = parts.segments.values().cloned().collect();
    let mut cursor = PartCursor::new(parts);
    for segment in segments.iter().filter(|segment| segment.files.iter().any(|file| file.schema.is_none())) {
        let mut from = segment.id.first;
        while let Some(part) = cursor.first_from(store, from)?.filter(|part| segment.id.covers(part.id)) {
            if found.len() > COLUMN_RECEIPTS_MAX {
                return Ok(found);
            }
            from = part.id.next();
            if part.packed.is_some() && part.schema.is_none() {
                found.push(part);
            }
        }
    }
    Ok(found)
}

/// One pass over the columns of all parts.
struct Pass {
    page: NamePage<Sums>,
    is_exact: bool,
}

impl Pass {
    /// Adds the figures of all schemas that the registry has. Each is copied under the lock, and a part is in one of them, so a
    /// part that is added or removed meanwhile is counted as a whole or not at all.
    fn add_schemas(mut self, state: &Shared) -> Self {
        let mut figures = SchemaFigures { columns: Vec::with_capacity(COLUMNS_MAX), ..SchemaFigures::default() };
        let mut after = None;
        while let Some(schema) = state.with(|state| state.parts.next_schema(after, &mut figures)) {
            self.is_exact &= !figures.has_unknown;
            self.add(&schema, &figures);
            after = Some(schema.hash());
        }
        self
    }

    /// Adds parts whose schemas the registry does not have.
    fn add_parts(mut self, store: &Store, parts: &[Arc<Part>]) -> Result<Self, Error> {
        for part in parts {
            let receipt = store.receipt_of(part)?;
            let PartFigures { figures: columns, has_bytes, .. } = PartFigures::of(&receipt, None);
            let parts_without_bytes = u64::from(!has_bytes);
            let figures = SchemaFigures { parts: 1, parts_without_bytes, rows: part.rows, has_unknown: false, columns };
            self.add(&Schema::of(&receipt.columns), &figures);
        }
        Ok(self)
    }

    fn add(&mut self, schema: &Schema, figures: &SchemaFigures) {
        for ((name, column_type), column) in schema.columns().iter().zip(&figures.columns) {
            self.page.add(name, |sums| {
                sums.types[*column_type as usize] += figures.parts;
                sums.rows = sums.rows.wrapping_add(figures.rows);
                sums.nulls = sums.nulls.wrapping_add(column.nulls);
                sums.parquet_bytes = sums.parquet_bytes.wrapping_add(column.parquet_bytes);
                sums.parts_without_bytes += figures.parts_without_bytes;
            });
        }
    }
}

/// The sums of one column.
#[derive(Default)]
struct Sums {
    /// Parts by type.
    types: [u64; ColumnType::ALL.len()],
    rows: u64,
    nulls: u64,
    parquet_bytes: u64,
    parts_without_bytes: u64,
}

impl Sums {
    fn types_bytes(&self) -> usize {
        self.types.iter().filter(|parts| **parts > 0).count() * COLUMN_FIGURES_TYPE_BYTES
    }

    fn into_summary(self, name: String) -> ColumnSummary {
        let types = ColumnType::ALL.into_iter().zip(self.types).filter(|(_, parts)| *parts > 0).collect();
        let Self { rows, nulls, parquet_bytes, parts_without_bytes, .. } = self;
        ColumnSummary { name, types, rows, nulls, parquet_bytes, parts_without_bytes }
    }
}

#[cfg(test)]
#[cfg(not(feature = "model"))]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use crate::{
        engine::Engine,
        limits::{Limits, SCHEMA_BYTES_MAX},
        model::{durability::Durability, part::PartId},
    };

    use super::*;

    async fn table() -> (Engine, tempfile::TempDir) {
        let folder = tempfile::TempDir::new().expect("a folder");
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        (opened.expect("a data folder").0, folder)
    }

    async fn upload(engine: &Engine, csv: String) {
        engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("a valid file");
    }

    /// All columns as text, and whether every page was complete, from pages of this many columns.
    async fn listed(engine: &Engine, count_max: usize) -> (Vec<String>, bool) {
        let (mut all, mut after, mut is_complete) = (Vec::new(), None, true);
        loop {
            let page = engine.columns_page(after, count_max).await.expect("receipts");
            is_complete &= page.is_complete;
            after = page.columns.last().map(|column| column.name.clone());
            for ColumnSummary { name, types, rows, nulls, parquet_bytes, parts_without_bytes } in page.columns {
                assert!(parquet_bytes > 0 && parts_without_bytes == 0, "{name}: {parquet_bytes}");
                all.push(format!("{name} {types:?} {rows} {nulls}"));
            }
            if !page.has_more {
                return (all, is_complete);
            }
        }
    }

    #[tokio::test]
    async fn parts_without_a_schema_in_memory_are_read_from_their_receipts() {
        let (engine, _folder) = table().await;
        upload(&engine, "b,a\n1,\n2,x\n".to_owned()).await;
        engine.context.state.with(|state| state.parts.fill_schemas(SCHEMA_BYTES_MAX));
        for csv in ["a,c\n1,2\n", "b,a\n,y\n", "c\n\"\"\n5\n"] {
            upload(&engine, csv.to_owned()).await;
        }
        let expected = ["a [(Int64, 1), (Utf8, 2)] 4 1", "b [(Int64, 2)] 3 1", "c [(Int64, 2)] 3 1"];
        for count_max in [1, 2, 1000] {
            let (found, is_complete) = listed(&engine, count_max).await;
            assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{count_max}");
            assert!(is_complete);
        }
        assert_eq!(engine.overview().columns, 3);
        for part in [2, 4] {
            engine.remove_part(PartId::new(part).expect("a number"), false).await.expect("removed");
        }
        assert_eq!(listed(&engine, 1000).await.0, ["a [(Utf8, 2)] 3 1", "b [(Int64, 2)] 3 1"]);
        assert_eq!(engine.overview().columns, 2);
        engine.close();
    }

    #[tokio::test]
    async fn a_page_is_bounded_in_bytes_and_receipts_in_number() {
        let (engine, _folder) = table().await;
        let names: Vec<_> = (0..300).map(|number| format!("{number:0900}")).collect();
        upload(&engine, format!("{}\n", names.join(",")) + &vec!["1"; names.len()].join(",")).await;
        let page = engine.columns_page(None, 1000).await.expect("in memory");
        assert!(page.has_more && (2..20).contains(&page.columns.len()), "{}", page.columns.len());
        let (found, is_complete) = listed(&engine, 1000).await;
        assert_eq!((found.len(), is_complete), (300, true));
        engine.context.state.with(|state| state.parts.fill_schemas(SCHEMA_BYTES_MAX));
        for _ in 0..=COLUMN_RECEIPTS_MAX {
            upload(&engine, "z\n1\n".to_owned()).await;
        }
        let (found, is_complete) = listed(&engine, 1000).await;
        assert_eq!((found.last().map(String::as_str), is_complete), (Some("z [(Int64, 256)] 256 0"), false));
        engine.close();
    }

    #[tokio::test]
    async fn a_part_whose_receipt_is_damaged_can_be_removed_and_the_figures_say_that_they_are_inexact() {
        let (engine, folder) = table().await;
        for csv in ["a\n1\n2\n", "a\n3\n"] {
            upload(&engine, csv.to_owned()).await;
        }
        std::fs::write(folder.path().join("parts/1.json"), "{}").expect("written");
        engine.remove_part(PartId::FIRST, false).await.expect("removed");
        let page = engine.columns_page(None, 1000).await.expect("in memory");
        assert!(!page.is_complete);
        assert_eq!((page.columns[0].types.as_slice(), page.columns[0].rows), (&[(ColumnType::Int64, 1)][..], 1));
        assert_eq!((engine.overview().rows, engine.overview().parts), (1, 1));
        engine.remove_part(PartId::new(2).expect("a number"), false).await.expect("removed");
        let page = engine.columns_page(None, 1000).await.expect("in memory");
        assert_eq!((page.columns.len(), page.is_complete), (0, true));
        assert_eq!(engine.overview().columns, 0);
        engine.close();
    }
}
