//! The start of the engine: the workers, the data folder and what is found in it, and the background tasks.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use imbl::{OrdMap, OrdSet};
use tokio::sync::mpsc;

use super::{
    ingest::{commit, queues::Queues},
    jobs::{
        record,
        recover::{self, Recovered},
        run, sweep,
    },
    pack,
    parts::removal,
    runtime::{
        context::{Context, unix_seconds},
        part_engine::Cluster,
        workers::Workers,
    },
    scrub,
    state::{
        Lane, Shared,
        registry::{PackedFigures, Snapshot},
        removed_parts::Removal,
        schemas::SchemaFigures,
    },
    storage::{
        Store,
        recover::{Found, RecoveryReport},
        segments::{cursor::PartCursor, reading::OpenSegment},
    },
};
use crate::{
    error::Error,
    limits::Limits,
    model::{
        durability::Durability,
        packed::Segment,
        part::{ColumnFigures, Part, PartFigures},
        schema::{Schema, TypedName},
        segment::SegmentReceipt,
    },
};

/// Starts the workers, opens and recovers the data folder, and then starts the background tasks.
///
/// Errors: the folder is in use, cannot be written, or holds parts of a newer version.
pub(super) async fn start(
    root: &Path,
    durability: Durability,
    limits: Limits,
    cluster: Option<Arc<dyn Cluster>>,
) -> Result<(Arc<Context>, Queues, RecoveryReport), Error> {
    let state = Shared::new();
    state.with(|state| {
        state.parts.set_parts_max(limits.parts_max);
        state.parts.set_pack_above(limits.pack_above);
    });
    let workers = Workers::start(state.clone()).map_err(Error::io("worker threads"))?;
    let (root, shared) = (root.to_owned(), state.clone());
    let open = move || open_folder(&root, durability, &shared);
    let (store, found) = workers.run(Lane::Upload, open).await.flatten().inspect_err(|_| workers.close())?;
    state.with(|state| state.jobs.set_surveys_at_once(limits.jobs.statistics_at_once));
    if state.with(|state| state.parts.taken() >= state.parts.warning_len()) {
        commit::warn_nearly_full(&state);
    }
    let (pack_requests, pack_queue) = mpsc::channel(1);
    let context = Arc::new(Context::new(state, workers, Arc::new(store), limits, cluster, pack_requests));
    let queues = Queues::start(&context);
    run::dispatch(&context);
    tokio::spawn(sweep::keep_sweeping(Arc::downgrade(&context), context.limits.jobs.sweep_interval));
    let in_quarantine = found.segments_in_quarantine.iter().copied().collect();
    let at_start = pack::FoundAtStart { in_quarantine, replaced: found.replaced.iter().copied().collect() };
    tokio::spawn(pack::keep_packing(Arc::downgrade(&context), pack_queue, at_start));
    let interval = context.limits.undo.min(context.limits.jobs.sweep_interval);
    tokio::spawn(removal::keep_sweeping(Arc::downgrade(&context), interval));
    if let Some(interval) = context.limits.scrub_interval {
        tokio::spawn(scrub::keep_scrubbing(Arc::downgrade(&context), interval));
    }
    Ok((context, queues, found))
}

/// Opens the data folder, fills the registry and the job table with what is found, and removes leftovers.
fn open_folder(root: &Path, durability: Durability, shared: &Shared) -> Result<(Store, RecoveryReport), Error> {
    let store = Store::open(root, durability)?;
    let found_jobs = record::find(&store)?; // a newer version is refused before anything is changed
    let mut segments = Vec::new();
    let mut found = store.recover(|found| match found {
        Found::Segment(receipt) => segments.extend(restore_segment(&receipt, shared)),
        Found::Part(receipt) => {
            let schema = commit::share_schema(shared, Schema::of(&receipt.columns));
            let columns = PartFigures::of(&receipt, schema.as_ref());
            let part = Arc::new(Part::of(&receipt, schema));
            shared.with(|state| state.parts.restore(part, &columns));
        }
    })?;
    restore_removed(&store, &found, shared);
    restore_packed_removed(&store, &found, &segments, shared)?;
    let Recovered { jobs, leftovers, quarantined } = recover::recover(&store, found_jobs)?;
    found.leftovers += leftovers;
    found.jobs_quarantined = quarantined;
    shared.with(|state| {
        if let Some(last) = found.last_used {
            state.parts.skip_to(last);
        }
        state.parts.set_missing(found.missing.clone());
        state.jobs = jobs;
    });
    Ok((store, found))
}

/// Puts a segment that was found into the registry, and returns it.
fn restore_segment(receipt: &SegmentReceipt, shared: &Shared) -> Option<Arc<Segment>> {
    let (mut schemas, mut figures) = (Vec::new(), Vec::new());
    for file in &receipt.files {
        let schema = commit::share_schema(shared, Schema::of(&file.columns));
        let names = match &schema {
            Some(_) => Vec::new(),
            None => file.columns.iter().map(TypedName::of).collect(),
        };
        let columns = file.columns.iter().zip(&file.column_bytes);
        let columns = columns.map(|(column, bytes)| ColumnFigures { nulls: column.nulls, parquet_bytes: *bytes });
        let of_schema = SchemaFigures {
            parts: file.parts,
            parts_without_bytes: file.parts_without_bytes,
            rows: file.rows,
            has_unknown: false,
            columns: columns.collect(),
        };
        let with_values = file.with_values.clone();
        figures.push((PackedFigures { parquet_bytes: file.parts_parquet_bytes, names, with_values }, of_schema));
        schemas.push(schema);
    }
    let segment = Arc::new(Segment::of(receipt, schemas)?); // its checksums were parsed when it was found
    shared.with(|state| state.parts.restore_segment(Arc::clone(&segment), &figures));
    Some(segment)
}

/// Removes the parts of segments from the table that were removed before.
///
/// Errors: an index cannot be read.
fn restore_packed_removed(
    store: &Store,
    found: &RecoveryReport,
    segments: &[Arc<Segment>],
    shared: &Shared,
) -> Result<(), Error> {
    let kept = found.packed_removed.iter().map(|(id, at)| (*id, Removal::Kept { since_s: unix_seconds(*at) }));
    let mut removed: BTreeMap<_, _> = kept.collect();
    removed.extend(found.packed_purged.iter().map(|id| (*id, Removal::Purged)));
    let segments = segments.iter().map(|segment| (segment.id.first, Arc::clone(segment))).collect();
    let mut cursor = PartCursor::new(Snapshot::of(OrdMap::new(), segments, OrdSet::new()));
    let mut open = OpenSegment::default();
    for (id, removal) in removed {
        let Some(part) = cursor.first_from(store, id)?.filter(|part| part.id == id) else { continue };
        let receipt = store.receipt_with(&part, &mut open);
        let receipt =
            receipt.inspect_err(|error| tracing::warn!(part = %id, %error, "figures of columns are inexact")).ok();
        let columns = receipt.map(|receipt| PartFigures::of(&receipt, part.schema.as_ref()));
        let part = Arc::new(Part { packed: None, ..Part::clone(&part) });
        shared.with(|state| state.parts.remove_packed(part, columns.as_ref(), removal));
    }
    Ok(())
}

/// Puts the removed parts that were found into the registry.
fn restore_removed(store: &Store, found: &RecoveryReport, shared: &Shared) {
    for (&id, &since) in &found.removed {
        let Some(receipt) = store.removed_receipt(id) else {
            tracing::error!(part = %id, "the receipt of this removed part is damaged: it cannot be restored, only purged");
            continue;
        };
        let schema = commit::share_schema(shared, Schema::of(&receipt.columns));
        let columns = PartFigures::of(&receipt, schema.as_ref());
        let part = Arc::new(Part::of(&receipt, schema));
        shared.with(|state| state.parts.restore_removed(part, &columns, unix_seconds(since)));
    }
}
