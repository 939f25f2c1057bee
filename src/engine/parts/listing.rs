//! Lists for people who look at the table: its parts page by page, and how the table has grown.
//!
//! Memory: a page of summaries, and one receipt on each worker that reads some.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::{
    find::find_part,
    receipts::{UnreadablePart, listed_receipt},
    removal::restorable_until,
    upgrade::upgrade,
};
use crate::{
    engine::{
        runtime::{context::Context, detached::detached},
        state::{Lane, registry::Snapshot, removed_parts::Removal},
        storage::{
            Store,
            segments::{cursor::PartCursor, reading::OpenSegment},
        },
    },
    error::Error,
    limits::{COLUMNS_MAX, TASK_PARTS_MAX},
    model::{
        dialect::Source,
        packed::Segment,
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
pub(crate) async fn find(context: &Context, id: PartId) -> Result<Arc<Part>, Error> {
    let part = find_part(context, id).await?;
    let (removal, missing) = context.state.with(|state| (state.parts.removal(id), state.parts.missing().may_have(id)));
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
    let part = find(context, id).await?;
    if part.checks.is_some() {
        return Ok(part);
    }
    let of = Arc::clone(context);
    detached(move |_cancel| async move { upgrade(&of, Lane::Question, &part).await }).await?;
    find(context, id).await
}

/// The receipt of a part of the table.
pub(crate) async fn receipt(context: &Context, id: PartId) -> Result<Receipt, Error> {
    let part = find(context, id).await?;
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
    let _permit = match parts.segments.is_empty() {
        true => None,
        false => Some(context.packed_questions.acquire().await.ok().ok_or(Error::Draining)?),
    };
    let mut cursor = PartCursor::new(parts);
    let mut list = PartsList { parts: Vec::new(), next: None, total: cursor.snapshot().len() };
    let mut bytes = 0;
    let mut has_more = true;
    while has_more && list.parts.len() < count_max && bytes < bytes_max {
        let (count_max, bytes_max) = (count_max - list.parts.len(), bytes_max - bytes);
        let task = move |store: &Arc<Store>| {
            let parts = next_parts(store, &mut cursor, order, beyond, count_max, bytes_max)?;
            let last = parts.last().map(|part| part.id).or(beyond);
            let has_more = !parts.is_empty() && step(store, &mut cursor, order, last)?.is_some();
            Ok((cursor, summaries(store, &parts), last, has_more))
        };
        let found;
        (cursor, found, beyond, has_more) = context.on_worker(Lane::Question, task).await?;
        let text_bytes = |part: &Result<_, _>| part.as_ref().map_or(SHORT_TEXTS_BYTES, PartSummary::text_bytes);
        bytes += found.iter().map(text_bytes).sum::<usize>();
        list.parts.extend(found);
    }
    list.next = beyond.filter(|_| has_more);
    Ok(list)
}

fn summaries(store: &Store, parts: &[Arc<Part>]) -> Vec<Result<PartSummary, UnreadablePart>> {
    let mut open = OpenSegment::default();
    parts.iter().map(|part| listed_receipt(store, part, &mut open).map(PartSummary::of)).collect()
}

/// The part beyond one of them in an order.
fn step(
    store: &Store,
    cursor: &mut PartCursor,
    order: Order,
    beyond: Option<PartId>,
) -> Result<Option<Arc<Part>>, Error> {
    match order {
        Order::OldestFirst => cursor.next(store, beyond),
        Order::NewestFirst => cursor.previous(store, beyond.unwrap_or(PartId::END)),
    }
}

/// The next parts in an order: at most `count_max`, about as many as take `bytes_max` as text, and no more than one task reads
/// the receipts of; but at least one, if any is left.
fn next_parts(
    store: &Store,
    cursor: &mut PartCursor,
    order: Order,
    mut beyond: Option<PartId>,
    count_max: usize,
    bytes_max: usize,
) -> Result<Vec<Arc<Part>>, Error> {
    let (mut columns, mut bytes, mut parts) = (0, 0, Vec::new());
    while parts.len() < count_max.min(TASK_PARTS_MAX) && columns < COLUMNS_MAX && bytes < bytes_max {
        let Some(part) = step(store, cursor, order, beyond)? else { break };
        columns += part.columns_count as usize;
        bytes += SHORT_TEXTS_BYTES + part.source_bytes as usize;
        beyond = Some(part.id);
        parts.push(part);
    }
    Ok(parts)
}

/// The size of the table after some of its parts, in even steps: at most `points_max` of them, the last part always.
///
/// Errors: the server is shutting down.
pub(crate) async fn growth(context: &Context, points_max: usize) -> Result<Vec<GrowthPoint>, Error> {
    /// Receipts that one task reads.
    const TASK_RECEIPTS: usize = 16;
    let parts = context.state.with(|state| state.parts.snapshot());
    let choose = move |store: &Arc<Store>| grown(store, parts, points_max);
    let mut chosen = context.on_worker(Lane::Question, choose).await?;
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

/// Adds up the sizes of all parts, and returns every n-th part with the sums up to it. A segment is one step.
fn grown(store: &Store, parts: Snapshot, points_max: usize) -> Result<Vec<(Arc<Part>, GrowthPoint)>, Error> {
    let (count, points) = (parts.len(), points_max.min(parts.len()));
    let (mut rows, mut csv_bytes, mut parquet_bytes, mut before) = (0, 0, 0, 0);
    let mut found = Vec::with_capacity(points);
    let mut cursor = PartCursor::new(parts.clone());
    let mut own = parts.parts.iter().peekable();
    let mut segments = parts.segments.iter().peekable();
    loop {
        let segment_is_next = match (own.peek(), segments.peek()) {
            (None, None) => return Ok(found),
            (Some((id, _)), Some((_, segment))) => segment.id.last < **id,
            (own, _) => own.is_none(),
        };
        let (last, some) = match segment_is_next {
            true => {
                let Some((_, segment)) = segments.next() else { return Ok(found) };
                let removed = removed_in(store, &parts, segment)?;
                rows += segment.files.iter().map(|file| file.rows).sum::<u64>();
                csv_bytes += segment.csv_bytes;
                parquet_bytes += segment.files.iter().map(|file| file.parts_parquet_bytes).sum::<u64>();
                for part in &removed {
                    rows = rows.saturating_sub(part.rows);
                    csv_bytes = csv_bytes.saturating_sub(part.csv_bytes);
                    parquet_bytes = parquet_bytes.saturating_sub(part.parquet_bytes);
                }
                let live = usize::try_from(segment.parts).unwrap_or(usize::MAX).saturating_sub(removed.len());
                (cursor.previous(store, segment.id.last.next())?, live)
            }
            false => {
                let Some((_, part)) = own.next() else { return Ok(found) };
                rows += part.rows;
                csv_bytes += part.csv_bytes;
                parquet_bytes += part.parquet_bytes;
                (Some(Arc::clone(part)), 1)
            }
        };
        let after = before + some;
        if let Some(part) = last.filter(|_| after * points / count > before * points / count) {
            let point = GrowthPoint { part: part.id, uploaded_at: None, rows, csv_bytes, parquet_bytes };
            found.push((part, point));
        }
        before = after;
    }
}

/// The removed parts of a segment that still has their rows.
fn removed_in(store: &Store, table: &Snapshot, segment: &Arc<Segment>) -> Result<Vec<Arc<Part>>, Error> {
    let ids = table.removed.range(segment.id.first..=segment.id.last);
    let segments = [(segment.id.first, Arc::clone(segment))].into_iter().collect();
    let mut cursor = PartCursor::new(Snapshot::of(OrdMap::new(), segments, OrdSet::new()));
    let mut removed = Vec::new();
    for &id in ids {
        removed.extend(cursor.first_from(store, id)?.filter(|part| part.id == id));
    }
    Ok(removed)
}
