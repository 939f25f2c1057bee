//! The calls of [`Engine`] for those who look at the table and at what the server does: lists, single parts and their files,
//! jobs, and figures of the moment.

use tokio_util::sync::CancellationToken;

use super::{
    Engine,
    ingest::keyed,
    pack::part_parquet,
    parts::{
        listing::{self, GrowthPoint, Order, PartsList},
        part_file::{self, PartFile},
        table_files::{self, TableFiles},
    },
    query::preview::{self, Preview},
    runtime::transfers::Admission,
    state::jobs::ListedJob,
    stats::{self, Activity},
};
use crate::{
    error::Error,
    limits::{HEADER_BYTES_MAX, NAME_BYTES_MAX, RECEIPT_BYTES, RECEIPT_COLUMN_BYTES},
    model::{
        format::Format,
        idempotency_key::IdempotencyKey,
        part::{PartId, Receipt},
    },
};

impl Engine {
    /// A page of the list of parts: those beyond one of them, at most `count_max`, and about as many as take `bytes_max` as text.
    pub async fn list_parts(
        &self,
        order: Order,
        beyond: Option<PartId>,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<PartsList, Error> {
        listing::list_parts(&self.context, order, beyond, count_max, bytes_max).await
    }

    /// Whether a part was uploaded with this key.
    ///
    /// Errors: a receipt whose key may be this one is damaged.
    pub async fn has_upload_with(&self, key: &IdempotencyKey) -> Result<bool, Error> {
        Ok(keyed::find(&self.context, &CancellationToken::new(), key).await?.is_some())
    }

    /// About how much memory the receipt of a part takes. Errors: there is no such part.
    pub async fn receipt_bytes(&self, id: PartId) -> Result<usize, Error> {
        let part = listing::find(&self.context, id).await?;
        let columns = part.columns_count as usize;
        let names_max = HEADER_BYTES_MAX.min(columns * NAME_BYTES_MAX);
        let names = part.schema.as_ref().map_or(names_max, |schema| schema.bytes() / 2);
        Ok(RECEIPT_BYTES + columns * RECEIPT_COLUMN_BYTES + names + part.source_bytes as usize)
    }

    /// The receipt of a part. Errors: there is no such part; its receipt is damaged.
    pub async fn receipt(&self, id: PartId) -> Result<Receipt, Error> {
        listing::receipt(&self.context, id).await
    }

    /// Opens a file of a part. Errors: there is no such part; the file is damaged.
    pub async fn open_part_file(&self, id: PartId, format: Format) -> Result<PartFile, Error> {
        let part = listing::find_verifiable(&self.context, id).await?;
        if part.packed.is_some() && format == Format::Parquet {
            return part_parquet::open(&self.context, part).await;
        }
        part_file::open_part_file(&self.context, part, format).await
    }

    /// The first rows of a part. Errors: there is no such part; its CSV is damaged.
    pub async fn preview(&self, id: PartId, rows_max: usize) -> Result<Preview, Error> {
        preview::preview(&self.context, id, rows_max).await
    }

    /// How the table has grown, at `points_max` of its parts.
    pub async fn growth(&self, points_max: usize) -> Result<Vec<GrowthPoint>, Error> {
        listing::growth(&self.context, points_max).await
    }

    /// The files that have each row of the table exactly once, as it is now.
    ///
    /// Errors: a part is missing from the table; Parquet files have rows of removed parts, unless `with_removed`.
    pub fn table_files(&self, format: Format, with_removed: bool) -> Result<TableFiles, Error> {
        table_files::table_files(&self.context, format, with_removed)
    }

    /// The jobs of both kinds that were accepted last, the newest first.
    pub fn newest_jobs(&self, count_max: usize) -> Vec<ListedJob> {
        self.context.state.with(|state| state.jobs.newest(count_max))
    }

    /// Gives permits for those who watch the server for as long as they like.
    pub fn watchers(&self, watchers_max: usize) -> Admission {
        Admission::for_watchers(&self.context.state, watchers_max)
    }

    /// Gives permits for receipts with many columns, which are in memory while their clients read them.
    pub fn wide_receipts(&self) -> Admission {
        Admission::for_wide_receipts(&self.context.state)
    }

    /// What the server does now. Errors: it is shutting down.
    pub async fn activity(&self) -> Result<Activity, Error> {
        stats::activity(&self.context).await
    }
}
