//! Lists for people who look at the table: its parts page by page, and how the table has grown.
//!
//! Memory: a page of summaries, and one receipt on each worker that reads some.

use std::sync::Arc;

use imbl::OrdMap;

use super::{
    receipts::{UnreadablePart, listed_receipt},
    removal::restorable_until,
    upgrade::upgrade,
};
use crate::{
    engine::{
        runtime::{context::Context, detached::detached},
        state::{Lane, removed_parts::Removal},
        storage::Store,
    },
    error::Error,
    limits::{COLUMNS_MAX, TASK_PARTS_MAX},
    model::{
        dialect::Source,
        part::{FileInfo, Part, PartId, Receipt},
    },
};

/// Bytes of a part in a list, as text, without what is said of its source.
const SHORT_TEXTS_BYTES: usize = 320;

/// What a list says of a part: its receipt without the columns.
#[derive(Clone, Debug)]
pub struct PartSummary {
    /// The part's id.
    pub part: PartId,
    /// Data rows.
    pub rows: u64,
    /// The number of columns.
    pub columns_count: usize,
    /// The stored CSV.
    pub csv: FileInfo,
    /// The Parquet file.
    pub parquet: FileInfo,
    /// RFC 3339, UTC.
    pub uploaded_at: String,
    /// The file that was sent, if it was not stored as it came.
    pub source: Option<Box<Source>>,
}

/// The order of a list of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By id.
    OldestFirst,
    /// By id, the largest first.
    NewestFirst,
}

/// A page of a list of parts.
#[derive(Debug)]
pub struct PartsList {
    /// The parts, in the order of the list.
    pub parts: Vec<Result<PartSummary, UnreadablePart>>,
    /// The last of them, if more follow.
    pub next: Option<PartId>,
    /// How many parts the table has.
    pub total: usize,
}

/// The size of the table after a part was added. Parts that were removed since do not count.
#[derive(Clone, Debug)]
pub struct GrowthPoint {
    /// The part.
    pub part: PartId,
    /// When it was uploaded: RFC 3339, UTC; `None` if its receipt cannot be read.
    pub uploaded_at: Option<String>,
    /// Data rows of all parts up to this one.
    pub rows: u64,
    /// Bytes of their CSV.
    pub csv_bytes: u64,
    /// Bytes of their Parquet files.
    pub parquet_bytes: u64,
}

impl PartSummary {
    fn of(receipt: Receipt) -> Self {
        let Receipt { part, rows, columns, csv, parquet, uploaded_at, source, .. } = receipt;
        Self { part, rows, columns_count: columns.len(), csv, parquet, uploaded_at, source }
    }

    /// About how many bytes it takes as text.
    fn text_bytes(&self) -> usize {
        SHORT_TEXTS_BYTES + self.source.as_ref().map_or(0, |source| source.memory_bytes() as usize)
    }
}

/// A part of the table.
///
/// Errors: it was removed; it is in quarantine; there is no such part.
pub(crate) fn find(context: &Context, id: PartId) -> Result<Arc<Part>, Error> {
    let (part, removal, missing) = context.state.with(|state| {
        let is_missing = state.parts.missing().listed().binary_search(&id).is_ok();
        (state.parts.get(id), state.parts.removed().get(id), is_missing)
    });
    match (part, removal) {
        (Some(part), _) => Ok(part),
        (None, Some(Removal::Kept { since_s })) => {
            Err(Error::PartRemoved { part: id, restorable_until: restorable_until(context, since_s) })
        }
        (None, None) if missing => Err(Error::InQuarantine { part: id }),
        (None, _) => Err(Error::NoSuchPart { part: id.get() }),
    }
}

/// A part of the table whose files can be verified while they are read. One of format version 1 is upgraded first.
pub(crate) async fn find_verifiable(context: &Arc<Context>, id: PartId) -> Result<Arc<Part>, Error> {
    let part = find(context, id)?;
    if part.checks.is_some() {
        return Ok(part);
    }
    let of = Arc::clone(context);
    detached(move |_cancel| async move { upgrade(&of, Lane::Question, &part).await }).await?;
    find(context, id)
}

/// The receipt of a part of the table.
pub(crate) async fn receipt(context: &Context, id: PartId) -> Result<Receipt, Error> {
    let part = find(context, id)?;
    context.on_worker(Lane::Question, move |store| store.receipt_of(&part)).await
}

/// The parts beyond one of them in this order: at most `count_max`, and about as many as take `bytes_max` as text.
///
/// Errors: the server is shutting down.
pub(crate) async fn list_parts(
    context: &Context,
    order: Order,
    mut beyond: Option<PartId>,
    count_max: usize,
    bytes_max: usize,
) -> Result<PartsList, Error> {
    let parts = context.state.with(|state| state.parts.snapshot());
    let mut list = PartsList { parts: Vec::new(), next: None, total: parts.len() };
    let mut bytes = 0;
    while list.parts.len() < count_max && bytes < bytes_max {
        let of_task = next_parts(&parts, order, beyond, count_max - list.parts.len(), bytes_max - bytes);
        let Some(last) = of_task.last() else { return Ok(list) };
        beyond = Some(last.id);
        let found = context.on_worker(Lane::Question, move |store| Ok(summaries(store, &of_task))).await?;
        let text_bytes = |part: &Result<_, _>| part.as_ref().map_or(SHORT_TEXTS_BYTES, PartSummary::text_bytes);
        bytes += found.iter().map(text_bytes).sum::<usize>();
        list.parts.extend(found);
    }
    list.next = beyond.filter(|_| !next_parts(&parts, order, beyond, 1, 1).is_empty());
    Ok(list)
}

fn summaries(store: &Store, parts: &[Arc<Part>]) -> Vec<Result<PartSummary, UnreadablePart>> {
    parts.iter().map(|part| listed_receipt(store, part).map(PartSummary::of)).collect()
}

/// The next parts in an order: at most `count_max`, about as many as take `bytes_max` as text, and no more than one task reads
/// the receipts of; but at least one, if any is left.
fn next_parts(
    parts: &OrdMap<PartId, Arc<Part>>,
    order: Order,
    beyond: Option<PartId>,
    count_max: usize,
    bytes_max: usize,
) -> Vec<Arc<Part>> {
    let (mut columns, mut bytes) = (0, 0);
    let fits = |part: &Arc<Part>| {
        let has_room = columns < COLUMNS_MAX && bytes < bytes_max;
        columns += part.columns_count as usize;
        bytes += SHORT_TEXTS_BYTES + part.source_bytes as usize;
        has_room
    };
    let to_part = |(_, part): (&PartId, &Arc<Part>)| Arc::clone(part);
    let count_max = count_max.min(TASK_PARTS_MAX);
    match order {
        Order::OldestFirst => {
            let first = beyond.map_or(PartId::FIRST, PartId::next);
            parts.range(first..).map(to_part).take_while(fits).take(count_max).collect()
        }
        Order::NewestFirst => {
            let end = beyond.unwrap_or(PartId::END);
            parts.range(..end).rev().map(to_part).take_while(fits).take(count_max).collect()
        }
    }
}

/// The size of the table after some of its parts, in even steps: at most `points_max` of them, the last part always.
///
/// Errors: the server is shutting down.
pub(crate) async fn growth(context: &Context, points_max: usize) -> Result<Vec<GrowthPoint>, Error> {
    /// Receipts that one task reads.
    const TASK_RECEIPTS: usize = 16;
    let parts = context.state.with(|state| state.parts.snapshot());
    let mut chosen = context.workers.run(Lane::Question, move || grown(&parts, points_max)).await?;
    let mut points = Vec::with_capacity(chosen.len());
    while !chosen.is_empty() {
        let mut of_task: Vec<_> = chosen.drain(..chosen.len().min(TASK_RECEIPTS)).collect();
        let read = move |store: &Arc<Store>| {
            let uploaded_at = |part: &Part| store.receipt_of(part).ok().map(|receipt| receipt.uploaded_at);
            of_task.iter_mut().for_each(|(part, point)| point.uploaded_at = uploaded_at(part));
            Ok(of_task)
        };
        points.extend(context.on_worker(Lane::Question, read).await?.into_iter().map(|(_, point)| point));
    }
    Ok(points)
}

/// Adds up the sizes of all parts, and returns every n-th part with the sums up to it.
fn grown(parts: &OrdMap<PartId, Arc<Part>>, points_max: usize) -> Vec<(Arc<Part>, GrowthPoint)> {
    let (count, points) = (parts.len(), points_max.min(parts.len()));
    let (mut rows, mut csv_bytes, mut parquet_bytes) = (0, 0, 0);
    let mut found = Vec::with_capacity(points);
    for (index, (id, part)) in parts.iter().enumerate() {
        rows += part.rows;
        csv_bytes += part.csv_bytes;
        parquet_bytes += part.parquet_bytes;
        if (index + 1) * points / count > index * points / count {
            let point = GrowthPoint { part: *id, uploaded_at: None, rows, csv_bytes, parquet_bytes };
            found.push((Arc::clone(part), point));
        }
    }
    found
}
