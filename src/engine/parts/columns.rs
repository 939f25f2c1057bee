//! The columns of the table: each name once, with the types that it has in the parts and how many parts have each.
//!
//! Names come in pages, in the order of their bytes. A page needs one pass over all parts. Most parts have their schema in
//! memory; those that do not are read from their receipts, a few in each task.
//!
//! Memory: the columns of one page, and one receipt.

use std::sync::Arc;

use super::name_page::NamePage;
use crate::{
    engine::{
        runtime::context::Context,
        state::{Lane, registry::Snapshot},
        storage::{Store, segments::cursor::PartCursor},
    },
    error::Error,
    limits::{LISTED_TYPE_PARTS_MAX, TABLE_COLUMN_BYTES, TASK_COLUMNS, TASK_PARTS_MAX},
    model::{
        part::PartId,
        schema::{ColumnType, Schema},
    },
};

/// A column of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableColumn {
    /// The name in the headers.
    pub name: String,
    /// The types that it has, in the order of [`ColumnType`].
    pub types: Vec<TypeInParts>,
}

/// A type of a column, and the parts that have the column with this type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInParts {
    /// The type.
    pub column_type: ColumnType,
    /// How many parts.
    pub parts: u64,
    /// The smallest ids among them.
    pub first_parts: Vec<PartId>,
}

/// The columns of the table at one moment, page by page.
pub struct TableColumns {
    context: Arc<Context>,
    parts: Snapshot,
    /// The last name of the page before.
    after: Option<String>,
    at_end: bool,
}

/// The columns of the table as it is now.
pub(crate) fn table_columns(context: &Arc<Context>) -> TableColumns {
    let parts = context.state.with(|state| state.parts.snapshot());
    TableColumns { context: Arc::clone(context), parts, after: None, at_end: false }
}

impl TableColumns {
    /// How many parts there are.
    pub fn parts_count(&self) -> usize {
        self.parts.len()
    }

    /// The next columns: as many as fit in `bytes_max`, but at least one. Empty if there are no more.
    ///
    /// Errors: a receipt that is damaged or cannot be read.
    pub async fn next_page(&mut self, bytes_max: usize) -> Result<Vec<TableColumn>, Error> {
        if self.at_end {
            return Ok(Vec::new());
        }
        let entry_bytes = |name: &str| TABLE_COLUMN_BYTES + name.len();
        let page = NamePage::new(self.after.take(), bytes_max, usize::MAX, entry_bytes, |_types| 0);
        let _permit = match self.parts.segments.is_empty() {
            true => None,
            false => Some(self.context.packed_questions.acquire().await.ok().ok_or(Error::Draining)?),
        };
        let parts = PartCursor::new(self.parts.clone());
        let mut pass = Pass { parts, next: PartId::FIRST, page, run: None };
        while pass.next != PartId::END {
            let store = Arc::clone(&self.context.store);
            let task = move || {
                pass.step(&store)?;
                Ok(pass)
            };
            pass = self.context.workers.run(Lane::Question, task).await.flatten()?;
        }
        let (columns, has_more) = pass.page.finish();
        self.at_end = !has_more;
        self.after = columns.last_key_value().map(|(name, _)| name.clone());
        let to_column = |(name, types): (String, Types)| TableColumn { name, types: types.into_list() };
        Ok(columns.into_iter().map(to_column).collect())
    }
}

/// One pass over all parts.
struct Pass {
    parts: PartCursor,
    next: PartId,
    page: NamePage<Types>,
    /// Parts with equal columns that follow each other are added together.
    run: Option<Run>,
}

struct Run {
    schema: Arc<Schema>,
    parts: u64,
    first_parts: Vec<PartId>,
}

impl Pass {
    /// One task: some parts.
    fn step(&mut self, store: &Store) -> Result<(), Error> {
        let (mut columns, mut receipts) = (0, 0);
        while let Some(part) = self.parts.first_from(store, self.next)? {
            if columns >= TASK_COLUMNS || receipts >= TASK_PARTS_MAX {
                return Ok(());
            }
            receipts += usize::from(part.schema.is_none());
            columns += 1 + self.add(part.id, store.schema(&part)?);
            self.next = part.id.next();
        }
        self.end_run();
        self.next = PartId::END;
        Ok(())
    }

    /// Adds a part. Returns how many columns were added to the page.
    fn add(&mut self, id: PartId, schema: Arc<Schema>) -> usize {
        if let Some(run) = self.run.as_mut().filter(|run| Arc::ptr_eq(&run.schema, &schema)) {
            run.parts += 1;
            if run.first_parts.len() < LISTED_TYPE_PARTS_MAX {
                run.first_parts.push(id);
            }
            return 0;
        }
        let columns = self.end_run();
        self.run = Some(Run { schema, parts: 1, first_parts: vec![id] });
        columns
    }

    fn end_run(&mut self) -> usize {
        let Some(Run { schema, parts, first_parts }) = self.run.take() else { return 0 };
        for (name, column_type) in schema.columns() {
            self.page.add(name, |types| types.add(*column_type, parts, &first_parts));
        }
        schema.columns_count()
    }
}

/// The types of one column.
#[derive(Default)]
struct Types([TypeCount; ColumnType::ALL.len()]);

#[derive(Default)]
struct TypeCount {
    parts: u64,
    first_parts: Vec<PartId>,
}

impl Types {
    fn add(&mut self, column_type: ColumnType, parts: u64, first_parts: &[PartId]) {
        let count = &mut self.0[column_type as usize];
        count.parts += parts;
        let room = LISTED_TYPE_PARTS_MAX - count.first_parts.len();
        count.first_parts.extend(first_parts.iter().take(room));
    }

    fn into_list(self) -> Vec<TypeInParts> {
        let with_type = ColumnType::ALL.into_iter().zip(self.0);
        let found = with_type.filter(|(_, count)| count.parts > 0);
        found
            .map(|(column_type, TypeCount { parts, first_parts })| TypeInParts { column_type, parts, first_parts })
            .collect()
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
        model::durability::Durability,
    };

    use super::*;

    async fn table(files: &[&str]) -> (Engine, tempfile::TempDir) {
        let folder = tempfile::TempDir::new().expect("a folder");
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        let (engine, _) = opened.expect("a data folder");
        for file in files {
            let body = stream::iter([Ok::<_, Error>(Bytes::from((*file).to_owned()))]);
            engine.upload(body).await.expect("a valid file");
        }
        (engine, folder)
    }

    /// All columns as text, from pages of this size.
    async fn listed(engine: &Engine, bytes_max: usize) -> Vec<String> {
        let (mut columns, mut all) = (engine.table_columns(), Vec::new());
        loop {
            let page = columns.next_page(bytes_max).await.expect("receipts");
            if page.is_empty() {
                return all;
            }
            for TableColumn { name, types } in page {
                let type_text = |TypeInParts { column_type, parts, first_parts }: TypeInParts| {
                    let ids: Vec<_> = first_parts.iter().map(PartId::to_string).collect();
                    format!("{column_type} x{parts} ({})", ids.join(","))
                };
                all.push(format!("{name}: {}", types.into_iter().map(type_text).collect::<Vec<_>>().join(", ")));
            }
        }
    }

    #[tokio::test]
    async fn columns_have_all_types_of_all_parts_whatever_the_size_of_a_page() {
        let files = ["b,a\n1,x\n", "a,c\n1.5,2\n", "b,a\n2,y\n", "b\n3\n", " b,\n4,5\n", "b,a\n2,y\n", "b,a\n2,1\n"];
        let (engine, _folder) = table(&files).await;
        let expected = [
            ": Int64 x1 (5)",
            " b: Int64 x1 (5)",
            "a: Int64 x1 (7), Float64 x1 (2), Utf8 x3 (1,3,6)",
            "b: Int64 x5 (1,3,4,6,7)",
            "c: Int64 x1 (2)",
        ];
        for bytes_max in [0, TABLE_COLUMN_BYTES * 2, TABLE_COLUMN_BYTES * 3, 1 << 20] {
            assert_eq!(listed(&engine, bytes_max).await, expected, "{bytes_max}");
        }
        let (empty, _folder) = table(&[]).await;
        assert_eq!(listed(&empty, 1 << 20).await, [""; 0]);
        engine.close();
        empty.close();
    }

    #[tokio::test]
    async fn columns_that_are_not_in_memory_are_read_from_receipts() {
        let (engine, _folder) = table(&["a\n1\n"]).await;
        // No further schema fits.
        engine.context.state.with(|state| state.parts.fill_schemas(SCHEMA_BYTES_MAX));
        for csv in ["b\n1\n", "a\nx\n", "b\n2\n"] {
            engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("a valid file");
        }
        assert_eq!(listed(&engine, 0).await, ["a: Int64 x1 (1), Utf8 x1 (3)", "b: Int64 x2 (2,4)"]);
        engine.close();
    }
}
